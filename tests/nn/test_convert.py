"""Conversion of float networks."""

import numpy as np
import pytest

from lowgemm import nn
from lowgemm import quantization as lq
from lowgemm.nn import float_net as fl
from lowgemm.nn.convert import convert, equalized


def conv_net(g, stretch=0):
    """A small network of every kind of layer, with channels of different range around the depthwise layer."""

    def w(*shape):
        return g.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))

    s = 2.0 ** g.uniform(-stretch, stretch, 6)
    return [
        fl.Conv2d(w(3, 3, 2, 6) * s, g.standard_normal(6) * 0.1 * s, "relu", padding=1),
        fl.Conv2d(w(3, 3, 1, 6), None, "relu", padding=1, groups=6),
        fl.Conv2d(w(1, 1, 6, 8) / s[:, None], None, "relu"),
        fl.MaxPool2d(2),
        fl.Residual([fl.Conv2d(w(3, 3, 4, 8), padding=1, groups=2, activation="relu6"), fl.Conv2d(w(1, 1, 8, 8))], "relu"),
        fl.AveragePool2d(2, 1, (0, 1, 0, 1)),
        fl.Flatten(),
        fl.Linear(w(72, 12), g.standard_normal(12) * 0.1, "relu"),
        fl.Linear(w(12, 5)),
    ]  # fmt: skip


def data(g, n):
    return g.uniform(-1, 2, (n, 6, 6, 2)).astype(np.float32)


def decibels(real, got):
    return 10 * np.log10((real**2).sum() / ((real - got) ** 2).sum())


@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"symmetric_weights": False, "per_channel": False},
                                     {"rounding": "onnx", "correct_biases": True}, {"float_output": False}])  # fmt: skip
def test_close_to_float_and_equal_to_the_reference(options):
    g = np.random.default_rng(0)
    net = conv_net(g)
    model = convert(net, [data(g, 40), data(g, 30)], **options)
    x = data(g, 50)
    assert decibels(fl.run_float(net, x), model.predict(x)) > 24
    q = lq.quantize(x[:4], model.input_qparams)
    np.testing.assert_array_equal(model(q), model.reference(q))
    assert (model.output_qparams is None) == options.get("float_output", True)


@pytest.mark.parametrize("observer", [lq.MinMax, lq.MovingAverage, lq.Percentile, lq.MeanSquaredError])
def test_observers_and_bits(observer):
    g = np.random.default_rng(1)
    net, batches, x = conv_net(g), [data(g, 40)], data(g, 20)
    model = convert(net, batches, observer=lambda: observer("int8", bits=6), weight_bits=6)
    for layer in model:
        if isinstance(layer, nn.QuantizedConv2d):
            assert np.abs(layer.weight).max() <= 31
            q = layer.output_qparams
            assert (q.qmin, q.qmax) == (-32, 31)
    q = lq.quantize(x, model.input_qparams)
    first = model.layers[0](q)
    assert first.min() >= -32 and first.max() <= 31
    assert decibels(fl.run_float(net, x), model.predict(x)) > 8


def test_equalization_changes_nothing_in_float_and_helps_one_scale_for_all():
    g = np.random.default_rng(2)
    net = conv_net(g, stretch=5)
    x = data(g, 30)
    real = fl.run_float(net, x)
    np.testing.assert_allclose(fl.run_float(equalized(net), x), real, rtol=1e-3, atol=1e-4)
    without, with_it = (
        decibels(real, convert(net, [x], per_channel=False, equalize=e).predict(x)) for e in (False, True)
    )
    assert with_it > without + 6


def test_bias_correction_takes_out_the_mean_error():
    g = np.random.default_rng(3)
    net = [fl.Linear(g.standard_normal((30, 10)), g.standard_normal(10), "none")]
    x = g.uniform(0, 3, (500, 30))
    errors = [
        np.abs(
            (convert(net, [x], weight_bits=3, correct_biases=c).predict(x) - fl.run_float(net, x)).mean(0)
        ).max()
        for c in (False, True)
    ]
    assert errors[1] < errors[0] / 20


def test_float_convolution_against_its_definition():
    g = np.random.default_rng(4)
    x = g.integers(-5, 6, (2, 7, 9, 4)).astype(np.float32)
    for groups, outputs in ((1, 3), (2, 6), (4, 4)):
        w = g.integers(-5, 6, (3, 2, 4 // groups, outputs))
        options = {"stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2), "groups": groups}
        layer = fl.Conv2d(w, None, **options)
        p = lq.QParams(1.0)
        exact = nn.QuantizedConv2d(w.astype(np.int8), None, p, p, None, **options)
        np.testing.assert_array_equal(layer(x), exact.reference(x.astype(np.int8)))


def test_errors():
    x = np.zeros((3, 2))
    for name, error, args in (
        ("layers", TypeError, ([], [x])),
        (r"layers\[0\]", TypeError, ([3], [x])),
        ("batches", TypeError, ([fl.Flatten()], x)),
        ("batches", TypeError, ([fl.Flatten()], [])),
    ):
        with pytest.raises(error, match=f"^{name}:"):
            convert(*args)
    for name, make in (
        ("weight", lambda: fl.Linear(np.zeros(3))),
        ("weight", lambda: fl.Linear([[np.nan]])),
        ("bias", lambda: fl.Linear(np.zeros((3, 2)), np.zeros(3))),
        ("activation", lambda: fl.Linear(np.zeros((3, 2)), None, "tanh")),
        ("groups", lambda: fl.Conv2d(np.zeros((1, 1, 1, 3)), groups=2)),
    ):
        with pytest.raises(ValueError, match=f"^{name}:"):
            make()
