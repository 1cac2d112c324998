"""Every integer layer gives the bits of its definition."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm import nn
from lowgemm.quantization import QParams, dequantize, quantize

SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from(["uint8", "int8"])
ROUNDINGS = st.sampled_from(["gemmlowp", "tflite_single", "onnx"])
few = settings(max_examples=60, deadline=None)


def integers(g, shape, dtype):
    """Random integers, in half of the cases only the extremes."""
    info = np.iinfo(dtype)
    a = g.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    return np.where(a > 0, info.max, info.min).astype(dtype) if g.integers(4) == 0 else a


def tensor(g, dtype):
    """Random parameters of a tensor, sometimes with fewer integers."""
    info = np.iinfo(dtype)
    low, high = (info.min, info.max) if g.integers(3) else (info.min // 2, info.max // 2)
    return QParams(
        float(np.float32(2.0 ** g.uniform(-6, 1))), int(g.integers(low, high + 1)), dtype, None, low, high
    )


def weights(g, shape, dtype, per_channel):
    """Random weights, their parameters, and a bias."""
    info, outputs = np.iinfo(dtype), shape[-1]
    zero = 0 if dtype == "int8" and g.integers(2) else int(g.integers(info.min, info.max))
    scale = 2.0 ** g.uniform(-9, -3, outputs if per_channel else None)
    p = QParams(np.float32(scale), zero, dtype, -1 if per_channel else None)
    bias = g.integers(-(2**14), 2**14, outputs).astype(np.int32) if g.integers(3) else None
    return integers(g, shape, dtype), bias, p


def same(layer, x):
    y = layer(x)
    expected = layer.reference(x)
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)
    y = nn.QuantizedSequential([layer])(x)  # the same as a program
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)


@few
@given(
    SEEDS,
    DTYPES,
    DTYPES,
    st.booleans(),
    ROUNDINGS,
    st.sampled_from(["none", "relu", "relu6", "float", "float relu"]),
)
def test_linear(seed, dtype, weight_dtype, per_channel, rounding, kind):
    g = np.random.default_rng(seed)
    rows, depth, outputs = g.integers(0, 70), *g.integers(1, 90, 2)
    w, bias, p = weights(g, (depth, outputs), weight_dtype, per_channel)
    result = None if kind.startswith("float") else tensor(g, g.choice(["uint8", "int8"]))
    activation = {"float": "none", "float relu": "relu"}.get(kind, kind)
    layer = nn.QuantizedLinear(w, bias, tensor(g, dtype), p, result, activation=activation, rounding=rounding)
    same(layer, integers(g, (rows, depth), dtype))
    same(layer, integers(g, (2, 3, depth), dtype))
    same(layer, integers(g, (depth,), dtype))


@settings(max_examples=100, deadline=None)
@given(
    SEEDS,
    DTYPES,
    DTYPES,
    st.booleans(),
    ROUNDINGS,
    st.sampled_from(["plain", "point", "depthwise", "groups"]),
)
def test_conv2d(seed, dtype, weight_dtype, per_channel, rounding, kind):
    g = np.random.default_rng(seed)
    groups = {
        "plain": 1,
        "point": g.integers(1, 3),
        "depthwise": g.integers(2, 20),
        "groups": g.integers(2, 4),
    }[kind]
    depth = 1 if kind == "depthwise" else g.integers(1, 9)
    outputs = groups if kind == "depthwise" else groups * g.integers(1, 9)
    size = (1, 1) if kind == "point" else tuple(g.integers(1, 4, 2))
    stride, dilation = tuple(g.integers(1, 4, 2)), tuple(g.integers(1, 3, 2))
    padding = 0 if kind == "point" and g.integers(2) else tuple(g.integers(0, 4, 4))
    w, bias, p = weights(g, (*size, depth, outputs), weight_dtype, per_channel)
    layer = nn.QuantizedConv2d(
        w, bias, tensor(g, dtype), p, tensor(g, g.choice(["uint8", "int8"])) if g.integers(4) else None,
        stride=stride, padding=padding, dilation=dilation, groups=int(groups), rounding=rounding,
        activation=g.choice(["none", "relu"]),
    )  # fmt: skip
    n, (height, width) = g.integers(0, 3), g.integers(5, 11, 2)
    x = integers(g, (n, height, width, depth * groups), dtype)
    same(layer, x)
    same(layer, x[:, ::-1, :, ::-1])  # any strides


def test_conv2d_with_batch_norm_sized_sums_wraps():
    """Sums of -128 * -128 with zero points of 127 stay exact in int32."""
    p = QParams(1.0, 127, "int8")
    w = np.full((3, 3, 64, 2), -128, np.int8)
    layer = nn.QuantizedConv2d(w, None, p, QParams(1.0, 127, "int8"), None)
    x = np.full((1, 3, 3, 64), -128, np.int8)
    assert layer(x).ravel().tolist() == [255 * 255 * 576.0] * 2


@few
@given(SEEDS, DTYPES, st.booleans())
def test_pooling(seed, dtype, average):
    g = np.random.default_rng(seed)
    size, stride = tuple(g.integers(1, 5, 2)), tuple(g.integers(1, 4, 2))
    padding = (*g.integers(0, size[0], 2), *g.integers(0, size[1], 2))
    kind = nn.QuantizedAveragePool2d if average else nn.QuantizedMaxPool2d
    layer = kind(tensor(g, dtype), size, stride=stride, padding=padding)
    same(layer, integers(g, (g.integers(0, 3), *g.integers(4, 9, 2), g.integers(1, 40)), dtype))


def test_average_pooling_rounds_ties_away_from_zero():
    pool = nn.QuantizedAveragePool2d(QParams(1.0), (1, 2))
    x = np.array([[1, 2], [-1, -2], [-128, -127], [127, 126]], np.int8).reshape(4, 1, 2, 1)
    assert pool(x).ravel().tolist() == [2, -2, -128, 127]


@few
@given(SEEDS, DTYPES, DTYPES, DTYPES, st.sampled_from(["none", "relu"]))
def test_add(seed, a_dtype, b_dtype, dtype, activation):
    g = np.random.default_rng(seed)
    a_p, b_p, p = tensor(g, a_dtype), tensor(g, b_dtype), tensor(g, dtype)
    add = nn.QuantizedAdd(a_p, b_p, p, activation=activation)
    a, b = integers(g, (5, 37), a_dtype), integers(g, (37, 5), b_dtype).T
    y = add(a, b)
    np.testing.assert_array_equal(y, add.reference(a, b))
    real = float(a_p.scale) * (a.astype(float) - a_p.zero_point) + float(b_p.scale) * (
        b.astype(float) - b_p.zero_point
    )
    low = max(p.qmin, int(p.zero_point)) if activation == "relu" else p.qmin
    nearest = np.clip(np.rint(real / p.scale) + p.zero_point, low, p.qmax)
    assert np.abs(nearest - y).max() <= 1  # independent of the fixed-point arithmetic


def small_net(g):
    p = [QParams(0.5, 3, "uint8"), QParams(0.25, 5, "uint8"), QParams(0.125, -7), QParams(1.0, 9, "uint8")]
    w = [weights(g, s, "int8", True) for s in ((3, 3, 2, 4), (3, 3, 1, 4), (16, 3))]
    branch = nn.QuantizedConv2d(*w[1][:2], p[1], w[1][2], p[2], padding=1, groups=4)
    return nn.QuantizedSequential(
        [
            nn.QuantizedConv2d(*w[0][:2], p[0], w[0][2], p[1], padding=(1, 1, 1, 1), activation="relu"),
            nn.QuantizedResidual([branch], p[3], activation="relu"),
            nn.QuantizedMaxPool2d(p[3], 2),
            nn.QuantizedAveragePool2d(p[3], 2, stride=1, padding=(0, 1, 0, 1)),
            nn.QuantizedFlatten(p[3]),
            nn.QuantizedLinear(*w[2][:2], p[3], w[2][2]),
        ]
    )


def test_sequential_and_predict():
    g = np.random.default_rng(1)
    net = small_net(g)
    x = integers(np.random.default_rng(2), (3, 4, 4, 2), "uint8")
    np.testing.assert_array_equal(net(x), net.reference(x))
    assert net.output_shape(x.shape) == net(x).shape == (3, 3)
    np.testing.assert_array_equal(net.predict((x - 3.0) * 0.5), net(x))
    assert len(net) == len(list(net)) == 6


def test_count_maccs():
    cost = nn.count_maccs(small_net(np.random.default_rng(1)), (3, 4, 4, 2))
    pixels = 3 * 16
    expected = {
        "conv2d": [pixels * 9 * 2 * 4, pixels * 9 * 4],
        "linear": [3 * 16 * 3],
    }
    for kind, maccs in expected.items():
        assert [c.maccs for c in cost.layers if c.name == kind] == maccs
    assert cost.maccs == sum(sum(v) for v in expected.values())
    linear = cost.layers[-1]
    assert linear.bytes_moved in (3 * 16 + 48 + 4 * 9, 3 * 16 + 48 + 12 + 4 * 9)
    assert linear.intensity == linear.maccs / linear.bytes_moved
    assert "total" in str(cost)
    with pytest.raises(ValueError, match="input_shape"):
        nn.count_maccs(small_net(np.random.default_rng(1)))
    with pytest.raises(TypeError, match=r"model\[0\]"):
        nn.count_maccs([(1, 2)])


P, W = QParams(0.5, 3, "uint8"), QParams(1.0)
ONE = np.ones((2, 2), np.int8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.QuantizedLinear(ONE.astype(np.int16), None, P, W, P), TypeError, "weight"),
        (lambda: nn.QuantizedLinear(ONE[0], None, P, W, P), ValueError, "weight"),
        (lambda: nn.QuantizedLinear(ONE[:0], None, P, W, P), ValueError, "weight"),
        (lambda: nn.QuantizedLinear(ONE, np.zeros(2), P, W, P), TypeError, "bias"),
        (lambda: nn.QuantizedLinear(ONE, np.zeros(3, np.int32), P, W, P), ValueError, "bias"),
        (lambda: nn.QuantizedLinear(ONE, None, None, W, P), TypeError, "input_qparams"),
        (lambda: nn.QuantizedLinear(ONE, None, QParams(1.0, 0, "int16"), W, P), ValueError, "input_qparams"),
        (lambda: nn.QuantizedLinear(ONE, None, P, QParams([1.0, 2.0], 0, "int8", 0), P), ValueError,
         "weight_qparams"),
        (lambda: nn.QuantizedLinear(ONE, None, P, W, P, activation="tanh"), ValueError, "activation"),
        (lambda: nn.QuantizedLinear(ONE, None, P, W, None, activation="relu6"), ValueError, "activation"),
        (lambda: nn.QuantizedLinear(ONE, None, P, W, P, rounding="up"), ValueError, "rounding"),
        (lambda: nn.QuantizedConv2d(ONE[None, None], None, P, W, P, groups=3), ValueError, "groups"),
        (lambda: nn.QuantizedConv2d(ONE[None, None], None, P, W, P, stride=0), ValueError, "stride"),
        (lambda: nn.QuantizedConv2d(ONE[None, None], None, P, W, P, padding=(1, 2, 3)), ValueError,
         "padding"),
        (lambda: nn.QuantizedMaxPool2d(P, 2, padding=2), ValueError, "padding"),
        (lambda: nn.QuantizedAdd(P, P, None), TypeError, "output_qparams"),
        (lambda: nn.QuantizedAdd(P, P, P, activation="relu6"), ValueError, "activation"),
        (lambda: nn.QuantizedSequential([]), ValueError, "layers"),
        (lambda: nn.QuantizedSequential([nn.QuantizedFlatten(P), 3]), TypeError, r"layers\[1\]"),
        (lambda: nn.QuantizedSequential([nn.QuantizedFlatten(P), nn.QuantizedFlatten(W)]), ValueError,
         r"layers\[1\]"),
        (lambda: nn.QuantizedResidual([nn.QuantizedLinear(ONE, None, P, W)], P), ValueError, "branch"),
        (lambda: nn.QuantizedLinear(ONE, None, P, W, P)(np.zeros((1, 2))), TypeError, "x"),
        (lambda: nn.QuantizedLinear(ONE, None, P, W, P)(np.zeros((1, 3), np.uint8)), ValueError, "x"),
        (lambda: nn.QuantizedConv2d(ONE[None, None], None, P, W, P)(np.zeros((1, 2, 2, 3), np.uint8)),
         ValueError, "x"),
        (lambda: nn.QuantizedMaxPool2d(P, 3)(np.zeros((1, 2, 2, 3), np.uint8)), ValueError, "x"),
        (lambda: nn.QuantizedAdd(P, P, P)(np.zeros(3, np.uint8), np.zeros(4, np.uint8)), ValueError, "b"),
    ],
)  # fmt: skip
def test_errors(make, error, message):
    with pytest.raises(error, match=f"^{message}:"):
        make()


@pytest.mark.parametrize("part_bytes", [1, 3000, 1 << 30])
def test_parts_of_a_batch_float_inputs_and_copies(part_bytes, monkeypatch):
    """Images are taken in parts, results of earlier calls stay, a copy or a pickle runs by itself."""
    monkeypatch.setattr("lowgemm.nn.program.PART_BYTES", part_bytes)
    monkeypatch.setattr(nn.QuantizedLinear, "parameter_bytes", 0)
    monkeypatch.setattr(nn.QuantizedConv2d, "parameter_bytes", 0)
    g = np.random.default_rng(8)
    net = small_net(g)
    for n in (1, 7, 12):
        x = integers(g, (n, 4, 4, 2), "uint8")
        expected = net.reference(x)
        first = net(x)
        frozen = x.copy()
        frozen.flags.writeable = False
        for model in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            for a in (x, frozen, np.asfortranarray(x), x[::-1][::-1]):
                np.testing.assert_array_equal(model(a), expected)
        real = (x.astype(np.float32) - 3) * float(net.input_qparams.scale)
        q = quantize(real, net.input_qparams)
        for a in (real, real.astype(np.float64), np.asfortranarray(real)):
            y = net.predict(a)
            if net.output_qparams is None:
                np.testing.assert_array_equal(y, net.reference(q))
            else:
                np.testing.assert_array_equal(y, dequantize(net.reference(q), net.output_qparams))
        np.testing.assert_array_equal(first, expected)
        real[0, 1, 2, 1] = np.nan
        with pytest.raises(ValueError, match=r"^x: expected no NaN.* got 1$"):
            net.predict(real)
    real[0, 1, 2, 1] = np.inf
    np.testing.assert_array_equal(
        net(quantize(real, net.input_qparams)), net.reference(quantize(real, net.input_qparams))
    )
    assert net(np.zeros((0, 4, 4, 2), np.uint8)).shape == net.output_shape((0, 4, 4, 2))


def test_several_threads_give_the_same(monkeypatch):
    monkeypatch.setattr("lowgemm.engine.threads.choose_threads", lambda requested, macs, held=False: 2)
    g = np.random.default_rng(9)
    net = small_net(g)
    x = integers(g, (5, 4, 4, 2), "uint8")
    np.testing.assert_array_equal(net(x), net.reference(x))


def test_python_threads_share_a_network():
    from concurrent.futures import ThreadPoolExecutor

    g = np.random.default_rng(10)
    net = small_net(g)
    inputs = [integers(g, (1 + i % 3, 4, 4, 2), "uint8") for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(inputs, pool.map(net, inputs), strict=True):
            np.testing.assert_array_equal(y, net.reference(x))


def test_names_of_the_package_are_those_of_nn_and_loaded_late():
    import subprocess
    import sys

    code = (
        "import sys, lowgemm; assert 'lowgemm.nn' not in sys.modules; "
        "names = 'QuantizedLinear QuantizedConv2d QuantizedSequential count_maccs dynamic_linear'.split(); "
        "assert set(names) <= set(dir(lowgemm)); got = [getattr(lowgemm, n) for n in names]; "
        "import lowgemm.nn; assert got == [getattr(lowgemm.nn, n) for n in names]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("per_channel", [False, True])
def test_layers_from_float_raise_scales_that_leave_the_bias_no_room(per_channel):
    """Parameters for tiny weights as a user would choose them: the bias saturated, or bias and products
    wrapped.
    """
    size = [1e-9, 1e-7] if per_channel else 1e-8
    w, x = np.full((64, 2), 1.0) * size, np.full((3, 64), 255, np.uint8)
    given = QParams(
        np.abs(w).max(0) / 127 if per_channel else w.max() / 127, 0, "int8", -1 if per_channel else None
    )
    inputs = QParams(1 / 255, 0, "uint8")
    for layer in (
        nn.QuantizedLinear.from_float(w, [1.0, -2.0], inputs, given),
        nn.QuantizedConv2d.from_float(w[None, None], [1.0, -2.0], inputs, given),
    ):
        y = layer(x if layer.kind == "linear" else x[:, None, None]).reshape(3, 2)
        np.testing.assert_allclose(y, [[1.0, -2.0]] * 3, rtol=1e-4)
        assert (layer.scale_raised > 1).all()
        np.testing.assert_allclose(layer.weight_qparams.scale, given.scale * layer.scale_raised)
    assert nn.QuantizedLinear(w.astype(np.int8), None, inputs, given).scale_raised is None
