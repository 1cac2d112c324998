"""Sums and scales at the ends of their ranges: nothing wraps on the way to 8 or 16 bits, and each rounding
constant counts.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import lowgemm
from lowgemm import reference
from lowgemm.output.check import check_pipeline
from lowgemm.output.stages.requantize import ROUNDINGS, quantize_multiplier

EDGES = np.array(
    [[2**31 - 1, -(2**31), 3_000_000, -3_000_000, 2**31 - 200, -(2**31) + 200, 40_000_000, 0, 1, -1]],
    np.int32,
)
#: Just below powers of two a multiplier is nearly 2**31, and the scaled sum comes nearest to the end of
#: int32.
SCALES = [1000.0, *(2.0**e * (1 - 2.0**-31) for e in (0, 1, 10, 29)), 2.0**29, 1.0, 1 - 2.0**-33, 0.999]
ZEROS = {np.uint8: (0, 128, 255), np.int8: (-128, 0, 127), np.int16: (-32768, 0, 32767)}


def exact(x: int, scale: float, zero: int) -> float:
    return math.floor(Fraction(x) * Fraction(scale) + Fraction(1, 2)) + zero


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", list(ZEROS))
def test_what_is_far_out_of_range_gives_the_bound(rounding, dtype):
    info = np.iinfo(dtype)
    for scale in SCALES:
        for zero in ZEROS[dtype]:
            for axis, vector in ((1, None), (1, EDGES.shape[1]), (0, 1)):
                stage = lowgemm.Requantize(
                    scale if vector is None else np.full(vector, scale),
                    zero,
                    dtype,
                    rounding=rounding,
                    axis=axis,
                )
                expected = np.clip(
                    [[exact(int(x), scale, zero) for x in row] for row in EDGES], info.min, info.max
                )
                for acc in (EDGES, np.asfortranarray(np.repeat(EDGES, 3, 0))[:1]):
                    out = np.zeros((1, 2 * EDGES.shape[1]), dtype)
                    got = lowgemm.requantize(acc, stage)
                    # a unit for what the conventions differ by in scale and ties, where it is not clipped
                    assert (np.abs(got.astype(np.int64) - expected) <= 1).all(), (scale, zero)
                    assert (got[:, :7] == expected[:, :7]).all(), (scale, zero)
                    np.testing.assert_array_equal(lowgemm.requantize(acc, stage, out=out[:, ::2]), got)
                    np.testing.assert_array_equal(reference.apply_pipeline(acc, (stage,)), got)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_far_out_of_range_in_a_product(rounding, any_kernel, threads):
    lhs = np.full((5, 100), 255, np.uint8)
    rhs = np.full((100, 35), 127, np.int8)
    lhs[3] = 0
    rhs[:, 4] = -128
    stage = lowgemm.Requantize(1024 * (1 - 2.0**-31), 128, np.uint8, rounding=rounding)
    expected = np.full((5, 35), 255)
    expected[:, 4] = 0
    expected[3] = 128
    got = lowgemm.gemm(lhs, rhs, output=stage, num_threads=threads)
    np.testing.assert_array_equal(got, expected)
    many = lowgemm.Requantize(np.full(35, 2048 * (1 - 2.0**-31)), 128, np.uint8, rounding=rounding)
    np.testing.assert_array_equal(lowgemm.gemm(lhs, rhs, output=many, num_threads=threads), expected)


def test_gemmlowps_own_stages_still_wrap():
    """Recorded results of the real library say so; only real scales saturate."""
    scale = lowgemm.ScaleInt32ByFixedPointAndExponent(2**31 - 1, 0, 100)
    got = lowgemm.requantize(np.array([[2**31 - 1]], np.int32), [scale])
    assert got.tolist() == [[-(2**31) + 98]]


# ---- rounding constants -----------------------------------------------------------------------------------
def ties_of_one_half(count: int) -> np.ndarray:
    """Odd numbers: times one half they lie between two integers, so the 2**30 of SRDHM decides each."""
    return np.arange(-count, count, 2, dtype=np.int32)[None, :] | 1


def test_half_of_the_first_rounding_is_whole():
    """``floor((x * M + 2**30) / 2**31)`` with 2**30 - 1 differs where x * M is 2**30 more than a multiple of
    2**31.
    """
    acc = ties_of_one_half(400)
    # exponent -1, M = 2**30: SRDHM(x) is a tie for every odd x; the quarter after it is not rounded twice
    # alike
    y = (acc.astype(np.int64) * 2**30 + 2**30) // 2**31
    expected = np.where(y < 0, -((-y + 1) // 2), (y + 1) // 2) + 3
    low = ((acc.astype(np.int64) * 2**30 + 2**30 - 1) // 2**31 != y).mean()
    assert low == 1.0  # each element is such a tie
    for stages in (
        [lowgemm.ScaleInt32ByFixedPointAndExponent(2**30, -1, 3), lowgemm.SaturatingCast(np.int16)],
        [lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 1, 3), lowgemm.SaturatingCast(np.int16)],
        [lowgemm.Requantize(0.25, 3, np.int16, rounding="gemmlowp")],
    ):
        np.testing.assert_array_equal(lowgemm.requantize(acc, stages), expected)
        by_row = np.ascontiguousarray(acc.T)
        np.testing.assert_array_equal(lowgemm.requantize(by_row, stages), expected.T)
        apart = np.zeros((1, 2 * acc.size), np.int16)[:, ::2]  # not contiguous: scale and store are two steps
        np.testing.assert_array_equal(lowgemm.requantize(acc, stages, out=apart), expected)


def test_ties_of_both_roundings_in_fused_products(any_kernel, threads):
    """Sums that are ties of SRDHM and then, or not, of RDP: on the kernel's own store, whole tiles
    and edges.
    """
    m, n = 33, 130
    lhs, rhs = np.zeros((m, 40), np.uint8), np.zeros((40, n), np.int8)
    lhs[:, 0], lhs[:, 1:3] = np.arange(m), (1, 200)
    rhs[:3] = np.array([[60], [0], [-5]])
    rhs[1] = np.arange(n) - 65
    sums = lhs.astype(np.int64) @ rhs  # 60 * row + column - 1065: both signs, odd and even
    for multiplier in (2**30, 2**31 - 2**8, 3 * 2**29):
        y = (sums * multiplier + 2**30) >> 31
        for shift, offset in ((1, 0), (1, -7), (2, 3), (3, 0), (8, 3)):
            half = 2**shift // 2
            rounded = np.where(y < 0, -((-y + half) >> shift), (y + half) >> shift) + offset
            one = lowgemm.ScaleInt32ByFixedPointAndExponent(multiplier, -shift, offset)
            each = lowgemm.ScaleInt32ByFixedPointAndExponent([multiplier] * n, [-shift] * n, offset)
            for scale in (one, each):
                for cast in (np.int8, np.int16):
                    stages = [scale, lowgemm.SaturatingCast(cast)]
                    expected = np.clip(rounded, np.iinfo(cast).min, np.iinfo(cast).max)
                    got = lowgemm.gemm(lhs, rhs, output=stages, num_threads=threads)
                    np.testing.assert_array_equal(got, expected)
                    np.testing.assert_array_equal(lowgemm.requantize(sums.astype(np.int32), stages), expected)


def test_multiplier_rounds_half_away():
    """A fraction that lies between two multipliers takes the upper one, even or odd: it is exact in
    float64.
    """
    for base in (2**30, 2**30 + 1, 2**30 + 12344, 2**31 - 3, 2**31 - 2):
        scale = (base + 0.5) / 2**31
        assert quantize_multiplier(scale) == (base + 1, 0)
        assert quantize_multiplier(np.nextafter(scale, 0)) == (base, 0)
    assert quantize_multiplier((2**31 - 0.5) / 2**31) == (2**30, 1)


@pytest.mark.parametrize("rounding", ["gemmlowp", "tflite", "tflite_single"])
def test_multiplier_of_a_tie_shows_in_the_result(rounding):
    """x * (base + 0.5) / 2**31, base even: a multiplier of base instead of base + 1 gives another integer."""
    shown = 0
    for base in (2**30, 2**30 + 2, 2**30 + 4, 2**30 + 86, 2**31 - 4):
        scale = (base + 0.5) / 2**31 / 2**17
        x = np.arange(2**31 - 400_000, 2**31 - 1, dtype=np.int32)[None, :]
        got = lowgemm.requantize(x, lowgemm.Requantize(scale, 0, np.int16, rounding=rounding))

        def scaled(multiplier, x=x):
            if rounding == "tflite_single":
                return (x.astype(np.int64) * multiplier + 2**47) >> 48
            return (((x.astype(np.int64) * multiplier + 2**30) >> 31) + 2**16) >> 17

        np.testing.assert_array_equal(got, scaled(base + 1))
        shown += int((scaled(base + 1) != scaled(base)).sum())
    assert shown > 0


def test_scale_vectors_take_the_same_multiplier():
    scales = [(b + 0.5) / 2**31 for b in (2**30, 2**30 + 2)]
    multiplier, exponent = lowgemm.Requantize(scales, 0, np.int8).fixed_point()
    assert multiplier.tolist() == [2**30 + 1, 2**30 + 3] and exponent.tolist() == [0, 0]
    stages, _ = check_pipeline(lowgemm.Requantize(scales), 3, 2)
    assert stages[0].fixed_point()[0].tolist() == multiplier.tolist()
