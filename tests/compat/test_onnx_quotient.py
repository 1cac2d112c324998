"""Rounded quotients by multiplication beside NumPy's division: near ties, at the limits, any divisors."""

from __future__ import annotations

import numpy as np
import pytest

from lowgemm.compat import onnx as ox
from lowgemm.compat import onnx_quotient


def quantized(x, scale, zero):
    """The definition, by a division."""
    info = np.iinfo(zero.dtype)
    with np.errstate(all="ignore"):
        steps = np.rint(x / scale)
    return np.minimum(np.fmax(steps.astype(np.float64) + float(zero), info.min), info.max).astype(zero.dtype)


def divisors(g):
    """Of any size, those with few and with many bits, and both sides of the bounds."""
    bounds = [onnx_quotient.LEAST, onnx_quotient.MOST]
    return np.float32([
        *10 ** g.uniform(-37, 37, 20), *g.random(20) + 0.001, *2.0 ** g.integers(-90, 90, 10),
        *g.integers(1, 1 << 24, 10) * 2.0**-20, *np.nextafter(np.float32([0.5, 1, 2]), np.float32(0)),
        *np.nextafter(np.float32([0.5, 1, 2]), np.float32(9)), *bounds,
        *(np.nextafter(b, np.float32(to)) for b in bounds for to in (0, np.inf)),
    ])  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_near_ties(dtype):
    """Halves of the divisor, and up to three floats beside them; NaN, infinities and the largest numbers."""
    g, info = np.random.default_rng(1), np.iinfo(dtype)
    for scale in divisors(g):
        zero = np.asarray(g.integers(info.min, info.max, endpoint=True)).astype(dtype)
        halves = np.arange(2 * (info.min - int(zero)) - 5, 2 * (info.max - int(zero)) + 6) / 2
        with np.errstate(over="ignore"):
            x = (halves * float(scale)).astype(np.float32)
        near = [x]
        for to in (-np.inf, np.inf):
            y = x
            for _ in range(3):
                y = np.nextafter(y, np.float32(to))
                near.append(y)
        most = np.finfo(np.float32).max
        odd = np.float32([np.nan, np.inf, -np.inf, most, -most, 0, -0.0, 1e-45, -1e-45, 1e-38] * 2)
        x = np.concatenate([*near, odd])
        np.testing.assert_array_equal(ox.quantize_linear(x, scale, zero), quantized(x, scale, zero))


def test_any_numbers():
    """Random numbers of all sizes around a divisor, of lengths that are no whole vectors."""
    g = np.random.default_rng(2)
    for scale in divisors(g):
        x = (g.standard_normal(int(g.integers(1, 9000))) * 100 * float(scale)).astype(np.float32)
        zero = np.uint8(g.integers(256))
        np.testing.assert_array_equal(ox.quantize_linear(x, scale, zero), quantized(x, scale, zero))
