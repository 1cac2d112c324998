"""`lowgemm.quantize`: what it gives is what `gemm`, `Dequantize` and the layers take."""

from __future__ import annotations

import numpy as np
import pytest

import lowgemm
from lowgemm import reference
from lowgemm.quantization import QParams, choose_qparams, quantize


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_codes_are_those_of_the_range(dtype, axis, symmetric):
    x = np.random.default_rng(0).normal(1, 3, (7, 5))
    got = lowgemm.quantize(x, dtype, axis=axis, symmetric=symmetric)
    codes, qparams = got
    others = None if axis is None else 1 - axis % 2
    want = choose_qparams(x.min(others), x.max(others), dtype, symmetric=symmetric, axis=axis)
    assert qparams == want and isinstance(qparams, QParams) and codes.dtype == dtype
    np.testing.assert_array_equal(codes, quantize(x, want))
    assert (got.scale == want.scale).all() and (got.zero_point == want.zero_point).all()
    steps = np.broadcast_to(got.scale if axis != 0 else got.scale[:, None], x.shape)
    assert (abs(got.dequantize() - x) <= 0.5001 * steps).all()


def test_the_product_takes_codes_scales_and_zero_points_as_they_are():
    rng = np.random.default_rng(1)
    x, w = rng.normal(2, 1, (30, 40)), rng.normal(0, 1, (40, 20))
    a, b = lowgemm.quantize(x, "uint8"), lowgemm.quantize(w, axis=1)
    zeros = {"lhs_zero_point": a.zero_point, "rhs_zero_point": b.zero_point}
    output = lowgemm.Dequantize(a.scale * b.scale)
    got = lowgemm.gemm(a.codes, lowgemm.pack_rhs(b.codes), output=output, **zeros)
    np.testing.assert_array_equal(got, reference.gemm(a.codes, b.codes, output=output, **zeros))
    assert abs(got - x @ w).max() < 1
    rows = lowgemm.quantize(x, axis=0)
    got = lowgemm.gemm(rows.codes, b.codes, lhs_zero_point=rows.zero_point, rhs_zero_point=b.zero_point)
    assert abs(got * rows.scale[:, None] * b.scale - x @ w).max() < 1


def test_a_layer_takes_the_parameters_as_they_are():
    rng = np.random.default_rng(2)
    x, w = rng.normal(0, 1, (9, 16)), rng.normal(0, 1, (16, 4))
    a, b, y = lowgemm.quantize(x), lowgemm.quantize(w, axis=1, symmetric=True), lowgemm.quantize(x @ w)
    layer = lowgemm.nn.QuantizedLinear(b.codes, None, a.qparams, b.qparams, y.qparams)
    real = lowgemm.quantization.dequantize(layer(a.codes), y.qparams)
    assert abs(real - x @ w).max() < 3 * float(y.scale)


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros((2, 0)), [], 3.5, [0, 0], [-2, -1], [1, 2]])
def test_odd_arrays(x):
    codes, qparams = lowgemm.quantize(x)
    assert codes.shape == np.shape(x)
    assert np.allclose(
        lowgemm.quantization.dequantize(codes, qparams), x, atol=float(qparams.scale) / 2 + 1e-9
    )


@pytest.mark.parametrize(
    ("x", "more", "error", "text"),
    [
        ([1, np.nan], {}, ValueError, "x: expected finite numbers"),
        ([1, np.inf], {}, ValueError, "x: expected finite numbers"),
        (["a"], {}, TypeError, "x: "),
        ([1j], {}, TypeError, "x: "),
        ([1.0], {"axis": 1}, ValueError, "axis: expected an axis of x"),
        (2.0, {"axis": 0}, ValueError, "axis: expected an axis of x"),
        ([1.0], {"axis": 0.5}, TypeError, "axis: "),
        ([1.0], {"dtype": "float32"}, ValueError, "dtype: "),
        ([1.0], {"symmetric": 1}, TypeError, "symmetric: "),
    ],
)
def test_refusals(x, more, error, text):
    with pytest.raises((TypeError, ValueError) if text == "dtype: " else error, match=f"^{text}"):
        lowgemm.quantize(x, **more)
