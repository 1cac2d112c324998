"""Fitted scikit-learn models in 8-bit integers: linear models and multi-layer perceptrons.

python examples/from_sklearn.py      fits five models on data that scikit-learn ships, and compares

`layers_of` is the part to copy. It reads `coef_` and `intercept_` (or `coefs_` and `intercepts_`), so it
works for every linear model and every MLP of scikit-learn. Needs scikit-learn.
"""

import warnings

import numpy as np

from lowgemm.nn.convert import convert
from lowgemm.nn.float_net import Linear


def layers_of(model, scaler=None):
    """The float layers of a fitted model, for `convert`.

    `scaler` is a fitted StandardScaler that stands before the model. It is put into the first layer:
    ``(x - mean) / std @ w + b`` is ``x @ (w / std) + (b - mean / std @ w)``.
    """
    if hasattr(model, "coefs_"):
        activation = {"relu": "relu", "identity": "none"}.get(model.activation)
        if activation is None:
            raise ValueError(f"activation: expected 'relu' or 'identity', got {model.activation!r}")
        pairs = list(zip(model.coefs_, model.intercepts_, strict=True))
    else:  # scikit-learn keeps a linear model's weights as (outputs, inputs), or (inputs,) for one output
        activation, pairs = "none", [(np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_))]
    if scaler is not None:
        w, b = pairs[0]
        pairs[0] = (w / scaler.scale_[:, None], b - (scaler.mean_ / scaler.scale_) @ w)
    last = len(pairs) - 1
    return [Linear(w, b, activation if i < last else "none") for i, (w, b) in enumerate(pairs)]


def predict(quantized, model, x):
    """What `model.predict` gives, from the integers' sums."""
    y = quantized.predict(x)
    if not hasattr(model, "classes_"):  # a regression
        return y[:, 0]
    return model.classes_[y.argmax(1) if y.shape[1] > 1 else (y[:, 0] > 0).astype(int)]


def main():
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.preprocessing import StandardScaler

    warnings.simplefilter("ignore", ConvergenceWarning)  # a few steps are enough to compare
    tasks = [
        (LogisticRegression(max_iter=200), load_digits),
        (SGDClassifier(random_state=0), load_breast_cancer),  # two classes: one output
        (Ridge(), load_diabetes),
        (MLPClassifier(hidden_layer_sizes=(64,), max_iter=40, random_state=0), load_digits),
        (MLPRegressor(hidden_layer_sizes=(32, 32), max_iter=200, random_state=0), load_diabetes),
    ]
    print(f"{'model':22s}{'data':16s}{'float64':>9s}{'int8':>9s}   the same, or correlation")
    for model, data in tasks:
        x, y = data(return_X_y=True)
        if data is load_diabetes:
            y = (y - y.mean()) / y.std()
        train, test = np.arange(len(x)) % 3 > 0, np.arange(len(x)) % 3 == 0
        scaler = StandardScaler().fit(x[train])
        model.fit(scaler.transform(x[train]), y[train])
        # the scaled inputs have one range; 30 columns in different units would have to share one scale
        # otherwise
        inputs = scaler.transform(x)
        quantized = convert(layers_of(model), [inputs[train]])
        real, got = model.predict(inputs[test]), predict(quantized, model, inputs[test])
        scores = [model.score(inputs[test], y[test])]
        if hasattr(model, "classes_"):
            scores.append(float((got == y[test]).mean()))
            alike = f"{(real == got).sum()} of {test.sum()} labels"
        else:
            scores.append(1 - ((got - y[test]) ** 2).sum() / ((y[test] - y[test].mean()) ** 2).sum())
            alike = f"{np.corrcoef(real, got)[0, 1]:.5f}"
        name = data.__name__.removeprefix("load_")
        print(f"{type(model).__name__:22s}{name:16s}{scores[0]:9.3f}{scores[1]:9.3f}   {alike}")

    # pixels have one unit, so the scaler can be put into the first layer, and the inputs be bytes
    x, y = load_digits(return_X_y=True)
    scaler = StandardScaler().fit(x)
    scaler.scale_[scaler.var_ < 0.1] = np.inf  # pixels at the border that are nearly always 0: leave them out
    model = LogisticRegression(max_iter=200).fit(scaler.transform(x), y)
    quantized = convert(layers_of(model, scaler), [x])
    same = (predict(quantized, model, x) == model.predict(scaler.transform(x))).sum()
    print(f"\nscaler in the first layer, pixels as they are: {same} of {len(x)} labels are the same")
    print(quantized)


if __name__ == "__main__":
    main()
