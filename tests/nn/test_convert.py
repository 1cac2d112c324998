"""Conversion of float networks."""

import copy
import functools
import itertools

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
        fl.Residual([fl.Conv2d(w(3, 3, 4, 8), padding=1, groups=2, activation="relu6"),
                     fl.Conv2d(w(1, 1, 8, 8))], "relu"),
        fl.AveragePool2d(2, 1, (0, 1, 0, 1)),
        fl.Flatten(),
        fl.Linear(w(72, 12), g.standard_normal(12) * 0.1, "relu"),
        fl.Linear(w(12, 5)),
    ]  # fmt: skip


def data(g, n):
    return g.uniform(-1, 2, (n, 6, 6, 2)).astype(np.float32)


def decibels(real, got):
    return 10 * np.log10((real**2).sum() / ((real - got) ** 2).sum())


@pytest.mark.parametrize("options",
                         [{}, {"per_channel": False}, {"symmetric_weights": False, "per_channel": False},
                                     {"rounding": "onnx", "correct_biases": True},
                                     {"float_output": False}])  # fmt: skip
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


def mlp(g, spoil):
    """Three linear layers with biases; `spoil` says what is done to channel 1 between the first two."""
    sizes = [16, 24, 20, 5]
    w = [g.standard_normal((a, b)) / np.sqrt(a) for a, b in itertools.pairwise(sizes)]
    b = [g.standard_normal(n) * 0.5 for n in sizes[1:]]
    b[0][1] = 1.0
    side, size = spoil
    if side == "weights":
        w[0][:, 1] *= size
    elif side == "readers":
        w[1][1] *= size
    elif side == "all":
        s = size ** g.uniform(-1, 1, 24)
        w[0], b[0], w[1] = w[0] * s, b[0] * s, w[1] / s[:, None]
    return [
        fl.Linear(*wb, activation) for *wb, activation in zip(w, b, ["relu", "relu", "none"], strict=True)
    ]


#: What equalizing may cost in decibels, where it is no use: data that calibration has not seen decide it.
WORSE = 2.0


@pytest.mark.parametrize(
    "spoil",
    [("none", 1), ("weights", 1e-2), ("weights", 1e-4), ("weights", 1e-8), ("weights", 1e2),
     ("readers", 1e-4),
     ("readers", 1e-8), ("all", 32.0)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("correct_biases", [False, True])
def test_equalizing_is_never_worse(spoil, correct_biases):
    gains = []
    for seed in range(8):
        for per_channel in (False, True):
            g = np.random.default_rng([seed, 9])
            net = mlp(g, spoil)
            x, unseen = (g.uniform(0, 1, (n, 16)).astype(np.float32) for n in (100, 1000))
            real = fl.run_float(net, unseen)
            options = {"per_channel": per_channel, "correct_biases": correct_biases}
            plain, equal = (
                decibels(real, convert(net, [x], equalize=e, **options).predict(unseen))
                for e in (False, True)
            )
            gains.append(equal - plain)
    assert min(gains) > -WORSE
    if spoil[0] == "all":
        assert min(gains) > 10


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("size", [1e-4, 1e-7, 1e-9, 1e-30, 0.0])
def test_channels_of_nearly_no_weight_keep_their_bias(per_channel, size):
    g = np.random.default_rng(8)
    w = g.standard_normal((64, 6)) * np.array([1, size, size, 1, 1, size])
    net = [fl.Linear(w, [0.3, 1.0, -0.02, 0, 1e-3, 700.0])]
    x = g.uniform(0, 1, (200, 64)).astype(np.float32)
    for correct_biases in (False, True):
        model = convert(net, [x], per_channel=per_channel, correct_biases=correct_biases)
        layer = model.layers[0]
        for extreme in (x, np.zeros_like(x), np.where(w[:, 0] > 0, 9, 0).astype(np.float32)[None]):
            real, got = fl.run_float(net, np.minimum(extreme, x.max())), model.predict(extreme)
            np.testing.assert_allclose(
                got[:, [1, 2, 5]], real[:, [1, 2, 5]], rtol=1e-3, atol=0.05 * (not per_channel)
            )
        raised = np.broadcast_to(layer.scale_raised, 6)
        assert (raised[[0, 3, 4]] == 1).all()
        if per_channel:
            assert size == 0 or (raised[1] > 1) == (size < 1e-6)
        np.testing.assert_array_equal(copy.deepcopy(layer).scale_raised, layer.scale_raised)


def test_a_tiny_channel_costs_the_network_nothing():
    """Depthwise and grouped convolutions, residuals, and what follows them: as precise as without the tiny
    channels.
    """
    g = np.random.default_rng(10)
    net = conv_net(g)
    x = data(g, 100)
    before = decibels(fl.run_float(net, x), convert(net, [x]).predict(x))
    for at in (0, 1, 2, 7):
        net[at].weight[..., 1] *= 1e-9
        net[at].bias[1] = 0.5
    after = decibels(fl.run_float(net, x), convert(net, [x]).predict(x))
    assert after > before - 3


def test_an_observer_is_a_pattern_or_what_makes_one():
    g = np.random.default_rng(11)
    net, x = conv_net(g), [data(g, 20)]
    expected = convert(net, x)
    for observer in (lq.MinMax("uint8"), lambda: lq.MinMax("uint8"), functools.partial(lq.MinMax, "uint8")):
        for a, b in zip(convert(net, x, observer=observer), expected, strict=True):
            assert a.output_qparams == b.output_qparams
    pattern = lq.Percentile("int8", bits=6, percentile=99.0)
    model = convert(net, x, observer=pattern)
    assert pattern.channels is None and model.input_qparams.qmax == 31
    assert (
        convert(net, x, observer=lq.MinMax).input_qparams
        == convert(net, x, observer=lq.MinMax("int8")).input_qparams
    )
    used = lq.MinMax("uint8").observe([1.0])
    for error, bad in (
        (ValueError, used), (ValueError, lambda: used), (ValueError, lq.MinMax("uint8", axis=0)),
        (ValueError, lq.MinMax("int16")), (TypeError, 3), (TypeError, "MinMax"), (TypeError, lambda: 3),
    ):  # fmt: skip
        with pytest.raises(error, match=r"^observer:"):
            convert(net, x, observer=bad)
    with pytest.raises(TypeError, match=r"^input_qparams:"):
        convert(net, x, input_qparams=3)
