"""A multi-layer perceptron and a convolutional network trained in NumPy on scikit-learn's digits.

digits.py quantizes them. By itself: ``python examples/digits_training.py`` trains both and prints their
accuracy.
"""

import os
import pathlib
import pickle
import time

import numpy as np

from lowgemm.nn import float_net as fl
from lowgemm.quantization import fold_batch_norm


def load():
    """1,200 training and 597 test images of 8 x 8 pixels in [0, 1], shuffled with a fixed seed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(2018).permutation(len(data.target))
    x = (data.images[order] / 16).astype(np.float32)[..., None]
    y = data.target[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


class Param:
    """A parameter, its gradient and its Adam state."""

    def __init__(self, value):
        self.value = np.asarray(value, np.float32)
        self.grad = self.m = self.v = np.zeros_like(self.value)

    def step(self, rate, t):
        self.m = 0.9 * self.m + 0.1 * self.grad
        self.v = 0.999 * self.v + 0.001 * self.grad**2
        self.value = self.value - rate * (self.m / (1 - 0.9**t)) / (np.sqrt(self.v / (1 - 0.999**t)) + 1e-8)


class Dense:
    def __init__(self, g, inputs, outputs):
        self.w = Param(g.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs))
        self.b = Param(np.zeros(outputs))
        self.params = [self.w, self.b]

    def forward(self, x, train):
        self.x = x
        return x @ self.w.value + self.b.value

    def backward(self, d):
        self.w.grad, self.b.grad = self.x.T @ d, d.sum(0)
        return d @ self.w.value.T


class Conv:
    """Square filter with padding that keeps the size, no bias (a batch normalisation follows)."""

    def __init__(self, g, size, inputs, outputs, depthwise=False):
        shape = (size, size, 1 if depthwise else inputs, outputs)
        self.w = Param(g.standard_normal(shape) * np.sqrt(2 / (size * size * shape[2])))
        self.params, self.depthwise, self.size, self.pad = [self.w], depthwise, size, size // 2

    def taps(self, padded):
        h, w = padded.shape[1] - 2 * self.pad, padded.shape[2] - 2 * self.pad
        return [padded[:, i : i + h, j : j + w] for i in range(self.size) for j in range(self.size)]

    def forward(self, x, train):
        p = self.pad
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0))) if p else x
        self.shape, self.seen = padded.shape, self.taps(padded)
        outputs = self.w.value.shape[3]
        if self.depthwise:
            return sum(t * f for t, f in zip(self.seen, self.w.value.reshape(-1, outputs), strict=True))
        self.patches = np.concatenate(self.seen, axis=-1)
        return self.patches @ self.w.value.reshape(-1, outputs)

    def backward(self, d):
        outputs = d.shape[3]
        padded = np.zeros(self.shape, np.float32)
        taps = self.taps(padded)
        if self.depthwise:
            self.w.grad = np.stack([(t * d).sum((0, 1, 2)) for t in self.seen]).reshape(self.w.value.shape)
            for tap, f in zip(taps, self.w.value.reshape(-1, outputs), strict=True):
                tap += d * f
        else:
            flat = self.patches.reshape(-1, self.patches.shape[3])
            self.w.grad = (flat.T @ d.reshape(-1, outputs)).reshape(self.w.value.shape)
            back = d @ self.w.value.reshape(-1, outputs).T
            for i, tap in enumerate(taps):
                tap += back[..., i * tap.shape[3] : (i + 1) * tap.shape[3]]
        p = self.pad
        return padded[:, p:-p, p:-p] if p else padded


class BatchNorm:
    def __init__(self, channels):
        self.gamma, self.beta = Param(np.ones(channels)), Param(np.zeros(channels))
        self.params = [self.gamma, self.beta]
        self.mean, self.variance = np.zeros(channels, np.float32), np.ones(channels, np.float32)

    def forward(self, x, train):
        if train:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.mean, self.variance = 0.9 * self.mean + 0.1 * mean, 0.9 * self.variance + 0.1 * variance
        else:
            mean, variance = self.mean, self.variance
        self.scale = 1 / np.sqrt(variance + 1e-5)
        self.normal = (x - mean) * self.scale
        return self.normal * self.gamma.value + self.beta.value

    def backward(self, d):
        self.gamma.grad, self.beta.grad = (d * self.normal).sum((0, 1, 2)), d.sum((0, 1, 2))
        n = d.size // d.shape[3]
        inner = d - self.beta.grad / n - self.normal * (self.gamma.grad / n)
        return inner * self.gamma.value * self.scale


class Relu:
    params = ()

    def forward(self, x, train):
        self.alive = x > 0
        return x * self.alive

    def backward(self, d):
        return d * self.alive


class Pool:
    """Windows of 2 x 2: largest value, or mean."""

    params = ()

    def __init__(self, average):
        self.average = average

    def forward(self, x, train):
        n, h, w, c = x.shape
        self.shape, blocks = x.shape, x.reshape(n, h // 2, 2, w // 2, 2, c)
        y = blocks.mean((2, 4)) if self.average else blocks.max((2, 4))
        if not self.average:
            self.chosen = (blocks == y[:, :, None, :, None]).astype(np.float32)
            self.chosen /= self.chosen.sum((2, 4), keepdims=True)
        return y

    def backward(self, d):
        d = d[:, :, None, :, None]
        n, h, w, c = self.shape
        spread = np.broadcast_to(d / 4, (n, h // 2, 2, w // 2, 2, c)) if self.average else d * self.chosen
        return spread.reshape(self.shape)


class Flat:
    params = ()

    def forward(self, x, train):
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, d):
        return d.reshape(self.shape)


class Skip:
    """x + branch(x)."""

    def __init__(self, *branch):
        self.branch, self.params = branch, [p for layer in branch for p in layer.params]

    def forward(self, x, train):
        return x + forward(self.branch, x, train)

    def backward(self, d):
        return d + backward(self.branch, d)


def forward(layers, x, train=False):
    for layer in layers:
        x = layer.forward(x, train)
    return x


def backward(layers, d):
    for layer in reversed(layers):
        d = layer.backward(d)
    return d


def mlp(g):
    return [Flat(), Dense(g, 64, 128), Relu(), Dense(g, 128, 64), Relu(), Dense(g, 64, 10)]


def conv_net(g):
    """3x3, depthwise 3x3, 1x1, max pool, a residual block (depthwise 3x3, 1x1), mean pool, linear."""
    skip = Skip(Conv(g, 3, 32, 32, True), BatchNorm(32), Relu(), Conv(g, 1, 32, 32), BatchNorm(32))
    first = [Conv(g, 3, 1, 16), BatchNorm(16), Relu(), Conv(g, 3, 16, 16, True), BatchNorm(16), Relu()]
    return [
        *first,
        Conv(g, 1, 16, 32),
        BatchNorm(32),
        Relu(),
        Pool(False),
        skip,
        Relu(),
        Pool(True),
        Flat(),
        Dense(g, 128, 10),
    ]


def train(layers, x, y, seed, epochs=30, batch=64, rate=3e-3):
    """Cross-entropy, Adam, cosine decay of the step."""
    g = np.random.default_rng(seed)
    params = [p for layer in layers for p in layer.params]
    steps, t = epochs * (len(x) // batch), 0
    for _ in range(epochs):
        order = g.permutation(len(x))
        for i in range(len(x) // batch):
            pick = order[i * batch : (i + 1) * batch]
            logits = forward(layers, x[pick], True)
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(batch), y[pick]] -= 1
            backward(layers, p / batch)
            t += 1
            for param in params:
                param.step(rate * 0.5 * (1 + np.cos(np.pi * t / steps)), t)
    return layers


def described(layers):
    """The trained network as float layers of lowgemm, batch normalisation folded."""
    out, i = [], 0
    while i < len(layers):
        layer = layers[i]
        if isinstance(layer, Conv):
            bn = layers[i + 1]
            w, b = fold_batch_norm(layer.w.value, None, bn.gamma.value, bn.beta.value, bn.mean, bn.variance)
            groups = w.shape[3] if layer.depthwise else 1
            out.append(fl.Conv2d(w, b, padding=layer.pad, groups=groups))
            i += 1
        elif isinstance(layer, Dense):
            out.append(fl.Linear(layer.w.value, layer.b.value))
        elif isinstance(layer, Relu):
            out[-1].activation = "relu"
        elif isinstance(layer, Pool):
            out.append(fl.AveragePool2d(2) if layer.average else fl.MaxPool2d(2))
        elif isinstance(layer, Skip):
            out.append(fl.Residual(described(layer.branch)))
        else:
            out.append(fl.Flatten())
        i += 1
    return out


def trained(kind, seed, x, y):
    """A trained network, described. It is kept in the folder that DIGITS_FOLDER names, if any, and found
    there the next time.
    """
    folder = os.environ.get("DIGITS_FOLDER")
    path = folder and pathlib.Path(folder, f"{kind}-{seed}.pickle")
    if path and path.exists():
        return pickle.loads(path.read_bytes())
    make = {"mlp": mlp, "conv": conv_net}[kind]
    net = described(train(make(np.random.default_rng(seed)), x, y, seed))
    if path:
        part = path.with_suffix(f".{os.getpid()}")  # another process may be reading or writing it
        part.write_bytes(pickle.dumps(net))
        part.replace(path)
    return net


def main():
    x, y, test_x, test_y = load()
    for kind in ("mlp", "conv"):
        begin = time.perf_counter()
        right = fl.run_float(trained(kind, 0, x, y), test_x).argmax(1) == test_y
        print(
            f"{kind}: {100 * right.mean():.2f} % of {len(test_y)} images, {time.perf_counter() - begin:.1f} s"
        )


if __name__ == "__main__":
    main()
