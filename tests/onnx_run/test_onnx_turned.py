"""Passes that bring channels last or second, beside NumPy: any sizes around the blocks', both types,
extremes.
"""

from __future__ import annotations

import numpy as np
import pytest

from lowgemm.compat import onnx as ox
from lowgemm.onnx_run import turned

SIZES = [
    (1, 1, 1),
    (2, 3, 50),
    (1, 8, 8),
    (2, 16, 16),
    (1, 17, 33),
    (1, 40, 100),
    (2, 5, 70),
    (1, 70, 5),
    (2, 100, 40),
    (3, 24, 49),
    (1, 7, 15),
    (1, 15, 7),
]


def addresses(*arrays):
    return [a.ctypes.data for a in arrays]


@pytest.mark.parametrize("size", SIZES)
def test_sums_to_floats(size, threads):
    g = np.random.default_rng(sum(size))
    images, channels, pixels = size
    sums = g.integers(-(2**31), 2**31, (images, pixels, channels)).astype(np.int32)
    ints = g.integers(-9, 9, channels).astype(np.int32)
    scales, floats = g.random(channels, np.float32), g.standard_normal(channels).astype(np.float32)
    want = (sums + ints).astype(np.float32) * scales + floats
    turned.run_scaled_rows(*addresses(sums, ints, scales, floats), (images * pixels, channels), threads)
    np.testing.assert_array_equal(sums.view(np.float32), want)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("size", SIZES)
def test_bytes(size, dtype, threads):
    g = np.random.default_rng(sum(size))
    images, channels, pixels = size
    info, scale = np.iinfo(dtype), np.float32(0.013)
    zero = np.asarray(g.integers(info.min, info.max, endpoint=True)).astype(dtype)
    x = g.standard_normal(size).astype(np.float32)
    x.reshape(-1)[g.integers(0, x.size, 3)] = [np.nan, np.inf, -np.inf]
    got, point = np.empty((images, pixels, channels), dtype), int(zero)
    real = np.array([scale, info.min - point, info.max - point], np.float32)
    turned.run_turn(turned.QUANTIZED, *addresses(x, got, real), point, size, threads)
    want = ox.quantize_linear(x, scale, zero)
    np.testing.assert_array_equal(np.moveaxis(got, -1, 1), want)
    back, real = np.empty(size, np.float32), np.array([scale, zero], np.float32)
    flip = 128 if dtype == np.int8 else 0
    turned.run_turn(
        turned.DEQUANTIZED, *addresses(got, back, real), flip, (images, pixels, channels), threads
    )
    np.testing.assert_array_equal(back, ox.dequantize_linear(want, scale, zero))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_second_and_last(size, dtype, threads):
    """Elements with their channels last are brought into order and back; what is not so laid out is copied by
    NumPy.
    """
    x = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8).astype(dtype)
    lain = turned.empty_last(size, dtype)
    lain[...] = x
    for y in (lain, x, x.transpose(2, 1, 0)):
        got = turned.second(y, threads)
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, y)
        back = turned.last(y, threads)
        assert back.flags.c_contiguous
        np.testing.assert_array_equal(back, np.moveaxis(y, 1, -1))


def test_concatenated():
    """Along any axis, parts with their channels second or last."""
    g = np.random.default_rng(2)
    for _ in range(60):
        axis, shape = int(g.integers(-4, 4)), [int(n) for n in g.integers(1, 20, 4)]
        parts = []
        for _ in range(3):
            own = list(shape)
            own[axis] = int(g.integers(1, 20))
            x = g.integers(0, 256, own, dtype=np.uint8)
            parts.append(
                np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if g.random() < 0.5 else x
            )
        np.testing.assert_array_equal(turned.concatenated(parts, axis), np.concatenate(parts, axis=axis))
