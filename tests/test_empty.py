"""Arrays with a dimension of size 0, through every public function of the layers, the quantizers and the
block-wise products.
"""

import numpy as np
import pytest

import lowgemm
from lowgemm import blockwise as bw
from lowgemm import nn
from lowgemm import quantization as lq
from lowgemm.compat import onnx as ox
from lowgemm.nn import float_net as fl
from lowgemm.quantization import QParams

P = QParams(0.5, 3, "uint8")
SIZES = [(2, 0, 3), (0, 4, 3), (2, 4, 0), (0, 0, 0), (0, 0, 2), (2, 0, 0), (0, 3, 0)]
LEADS = [(), (2,), (0,), (2, 3), (2, 0, 3)]


@pytest.mark.parametrize(("m", "k", "n"), SIZES)
@pytest.mark.parametrize("lead", LEADS)
def test_products_of_nothing_are_the_bias(m, k, n, lead):
    """Of depth 0 (or of zeros) every product is its bias, in the shape that the operands' shapes give."""
    x, w, bias = (
        np.zeros((*lead, m, k), np.float32),
        np.zeros((k, n), np.int8),
        np.arange(n, dtype=np.float32),
    )
    expected = np.broadcast_to(bias, (*lead, m, n))
    integers, four = x.astype(np.int8), bw.pack_rhs_4bit(w.astype(np.float32))
    for got in (
        nn.dynamic_linear(x, w, 1.0, bias),
        nn.dynamic_linear(x, lowgemm.pack_rhs(w), np.ones(n), bias),
        nn.weight_only_linear(x, w, 1.0, bias),
        bw.mixed_linear(x, w.astype(np.float32), bias),
        bw.mixed_linear(x, bw.MixedWeight(w.astype(np.float32)), bias, threshold=0),
        bw.gemm_4bit(x, four, bias=bias),
        bw.gemm_4bit(integers, four, bias=bias, lhs_scale=np.ones(x.shape[:-1])),
        lowgemm.gemm(integers, w, output=[lowgemm.BiasAddition(bias.astype(np.int32))]),
        ox.matmul_integer(integers, w) + bias.astype(np.int32),
        fl.Linear(w, bias)(x) if w.size else expected,
    ):
        np.testing.assert_array_equal(got, expected)
    if m:
        assert nn.dynamic_linear(x[..., 0, :], w, 1.0, bias).shape == (*lead, n)
    one = np.float32(1)
    y = ox.qlinear_matmul(integers, one, np.int8(0), w, one, np.int8(0), one, np.uint8(4))
    np.testing.assert_array_equal(y, np.full((*lead, m, n), 4, np.uint8))


@pytest.mark.parametrize(("m", "k"), [(0, 4), (4, 0), (0, 0)])
def test_quantizers_of_nothing(m, k):
    x = np.zeros((m, k), np.float32)
    each = QParams(np.ones(k), 0, "int8", 1)
    for p in (P, each):
        assert lq.quantize(x, p).shape == lq.fake_quantize(x, p).shape == (m, k)
        assert lq.dequantize(x.astype(np.int8), p).shape == (m, k)
    assert ox.quantize_linear(x, np.ones(k, np.float32), np.zeros(k, np.int8)).shape == (m, k)
    assert ox.dequantize_linear(x.astype(np.int8), np.ones(k, np.float32), np.zeros(k, np.int8)).shape == (
        m,
        k,
    )
    y, scale, zero = ox.dynamic_quantize_linear(x)
    assert y.shape == (m, k) and y.dtype == zero.dtype == np.uint8 and (scale, zero) == (1, 0)
    for nested in (False, True):
        q = bw.quantize_blockwise(x, "nf4", nested=nested)
        assert bw.dequantize_blockwise(q).shape == (m, k)
        if not nested:
            assert bw.pack_rhs_4bit(q).to_array().shape == (k, m)
    codes, scales, outliers = bw.quantize_vectorwise(x, threshold=6.0)
    assert codes.shape == (m, k) and scales.shape == (m,) and outliers.size == 0
    assert bw.pack_rhs_4bit(x).to_array().shape == (m, k)
    for kind in (lq.MinMax, lq.MovingAverage, lq.Percentile, lq.MeanSquaredError, lq.Entropy):
        for axis in (None, 1):
            with pytest.raises(ValueError, match=r"^observer: expected at least one value"):
                kind(axis=axis).observe(x).qparams()
    for name, function in (
        ("x", lambda: lq.sqnr(x, P)),
        ("tensors", lambda: lq.range_report({"a": x})),
        ("expected", lambda: lq.correct_bias_from_outputs(None, x, x)),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            function()
    np.testing.assert_array_equal(lq.correct_bias(np.ones(k), x, x, np.zeros(m)), np.ones(k))
    w, b = lq.fold_batch_norm(x, None, np.ones(k), None, np.zeros(k), np.ones(k))
    assert w.shape == (m, k) and b.shape == (k,)
    assert lq.equalize_ranges([x, np.zeros((k, 2))]).weights[0].shape == (m, k)
    assert lq.scale_for_bias(each, x, np.ones(k), P)[0] == each
    assert lq.choose_qparams(np.zeros(k), np.zeros(k), axis=0).scale.shape == (k,)


def layers():
    w = np.ones((2, 2, 3, 4), np.int8)
    return [
        nn.QuantizedConv2d(w, np.arange(4, dtype=np.int32), P, QParams(0.25), P),
        nn.QuantizedConv2d(w[:, :, :1, :3], None, P, QParams(0.25), None, groups=3),
        nn.QuantizedMaxPool2d(P, 2),
        nn.QuantizedAveragePool2d(P, 2),
        nn.QuantizedFlatten(P),
    ]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: layer.kind)
def test_layers_of_no_images(layer):
    x = np.zeros((0, 4, 4, 3), np.uint8)
    model = nn.QuantizedSequential([layer])
    for y in (layer(x), model(x), model.reference(x), model.predict(x.astype(np.float32))):
        assert y.shape == layer.output_shape(x.shape)
    if layer.kind != "flatten":
        for shape in ((2, 0, 4, 3), (2, 4, 0, 3)):
            with pytest.raises(ValueError, match=r"^x:"):
                layer(np.zeros(shape, np.uint8))


def test_float_layers_of_no_images():
    x = np.zeros((0, 4, 4, 3), np.float32)
    net = [
        fl.Conv2d(np.ones((2, 2, 3, 4))),
        fl.MaxPool2d(2, 1),
        fl.AveragePool2d(2),
        fl.Flatten(),
        fl.Linear(np.ones((4, 2))),
    ]
    assert fl.run_float(net, x).shape == (0, 2)
    for bad in (x[..., :0], x[:, :0]):
        with pytest.raises(ValueError, match=r"^x:"):
            net[0](bad)
    with pytest.raises(ValueError, match=r"^x:"):
        net[-1](np.zeros((2, 0), np.float32))
    linear = nn.QuantizedLinear(np.ones((3, 2), np.int8), None, P, QParams(0.5), P)
    for shape in ((0, 3), (2, 0, 3)):
        assert (
            linear(np.zeros(shape, np.uint8)).shape
            == linear.reference(np.zeros(shape, np.uint8)).shape
            == (*shape[:-1], 2)
        )
