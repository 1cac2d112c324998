"""Arrays of more dimensions than the 32 at which some functions of NumPy stop: the same numbers as of the
flat array.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowgemm
import lowgemm.compat.onnx as onnx_operators
from lowgemm import blockwise, fixedpoint, quantization, reference
from lowgemm.checks.shapes import broadcast

#: What NumPy can hold: 64, or 32 before NumPy 2.
MOST = 64 if int(np.__version__.split(".")[0]) >= 2 else 32
DIMENSIONS = [d for d in (32, 33, 64) if d <= MOST]

rng = np.random.default_rng(5)
X, W = rng.integers(0, 256, (2, 4, 3), dtype=np.uint8), rng.integers(-128, 128, (3, 5), dtype=np.int8)
REAL = rng.standard_normal(X.shape).astype(np.float32)
STAGES = [lowgemm.BiasAddition([1, 2, 3, 4, 5]), lowgemm.Requantize(0.01, 3, np.uint8, rounding="onnx")]


def deep(a: np.ndarray, dimensions: int) -> np.ndarray:
    """The array with leading dimensions of 1."""
    return a.reshape((1,) * (dimensions - a.ndim) + a.shape)


def same(got, expected: np.ndarray, dimensions: int) -> None:
    assert (
        got.ndim == dimensions
        and got.shape[-expected.ndim :] == expected.shape
        and got.dtype == expected.dtype
    )
    assert np.array_equal(got.reshape(expected.shape), expected)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_products(dimensions, threads):
    x, flat = deep(X, dimensions), reference.gemm(X, W)
    for w in (W, deep(W, dimensions), np.repeat(deep(W, dimensions), 2, axis=-3)):
        for rhs in (w, lowgemm.pack_rhs(w)):
            for _ in range(2):  # planned, and seen before
                same(lowgemm.gemm(x, rhs, num_threads=threads), flat, dimensions)
            rows = {"lhs_zero_point": [1, 2, 3, 4], "rhs_zero_point": 7, "output": STAGES}
            same(lowgemm.gemm(x, rhs, **rows), reference.gemm(X, W, **rows), dimensions)
            out = np.ones((*x.shape[:-1], 5), np.int32)
            assert lowgemm.gemm(x, rhs, out=out, accumulate=True, overflow="raise") is out
            same(out, flat + np.int32(1), dimensions)
            same(lowgemm.plan(x, rhs)(x, rhs), flat, dimensions)
            assert "kernel" in str(lowgemm.explain(x, rhs))
    same(lowgemm.gemm(x, W[:, 0]), flat[..., 0], dimensions - 1)
    same(lowgemm.gemm(X[0, 0], deep(W, dimensions)), flat[0, 0], dimensions - 1)
    assert np.array_equal(lowgemm.pack_rhs(deep(W, dimensions)).to_array(), deep(W, dimensions))
    with pytest.raises(ValueError, match="rhs: batch dimensions"):
        lowgemm.gemm(x, np.zeros((3, 3, 5), np.int8))


@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_everything_else_that_takes_arrays(dimensions):
    x, real, last = deep(X, dimensions), deep(REAL, dimensions), dimensions - 1
    sums = X.astype(np.int32) * 1000
    stage = lowgemm.Requantize([0.5, 0.01, 2], 3, np.uint8, rounding="tflite")
    same(lowgemm.requantize(deep(sums, dimensions), stage), lowgemm.requantize(sums, stage), dimensions)

    same(onnx_operators.matmul_integer(x, W), reference.gemm(X, W), dimensions)
    scales = np.float32([0.5, 0.25, 2])
    for f, a in ((onnx_operators.quantize_linear, REAL), (onnx_operators.dequantize_linear, X)):
        same(f(deep(a, dimensions), scales, axis=-1), f(a, scales, axis=-1), dimensions)
    blocked = rng.uniform(0.1, 1, (2, 2, 3)).astype(np.float32)
    same(
        onnx_operators.quantize_linear(real, deep(blocked, dimensions), axis=-2, block_size=2),
        onnx_operators.quantize_linear(REAL, blocked, axis=-2, block_size=2),
        dimensions,
    )

    for low, high, axis, there in ((-1.0, 1.0, None, None), ([-1, -2, -3], [1, 2, 3], last, 2)):
        params = quantization.choose_qparams(low, high, "int8", axis=axis)
        flat = quantization.choose_qparams(low, high, "int8", axis=there)
        coded = quantization.quantize(real, params)
        same(coded, quantization.quantize(REAL, flat), dimensions)
        same(quantization.dequantize(coded, params), quantization.fake_quantize(REAL, flat), dimensions)
    for kind in (quantization.MinMax, quantization.Percentile, quantization.Entropy):
        seen, there = kind(axis=last), kind(axis=2)
        seen.observe(real)
        there.observe(REAL)
        assert np.array_equal(seen.qparams().scale, there.qparams().scale)

    same(fixedpoint.tanh(deep(sums, dimensions), 4), fixedpoint.tanh(sums, 4), dimensions)
    high_mul = fixedpoint.saturating_rounding_doubling_high_mul
    same(high_mul(deep(sums, dimensions), sums), high_mul(sums, sums), dimensions)

    same(
        blockwise.dequantize_blockwise(blockwise.quantize_blockwise(real)),
        blockwise.dequantize_blockwise(blockwise.quantize_blockwise(REAL)),
        dimensions,
    )
    packed = blockwise.pack_rhs_4bit(rng.standard_normal((3, 5)).astype(np.float32), "int4")
    same(blockwise.gemm_4bit(x, packed), blockwise.gemm_4bit(X, packed), dimensions)


SHAPE = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=4).map(tuple)


@given(SHAPE, SHAPE)
def test_broadcast_is_numpys(a, b):
    try:
        expected = np.broadcast_shapes(a, b)
    except ValueError:
        with pytest.raises(ValueError, match="do not broadcast"):
            broadcast(a, b)
    else:
        assert broadcast(a, b) == expected
