"""Real scales, activations, tables and user functions, against their equations."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm import reference
from lowgemm.output.check import check_pipeline
from lowgemm.output.stages.requantize import ROUNDINGS, quantize_multiplier

M, N = 21, 37
ACC = np.random.default_rng(0).integers(-(2**31), 2**31, (M, N)).astype(np.int32)


def check(acc, stages):
    checked, dtype = check_pipeline(stages, *acc.shape)
    expected = reference.apply_pipeline(acc, checked)
    got = lowgemm.requantize(acc, stages)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected)
    if dtype == np.float32:  # -0.0 is not 0.0
        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))
    return got


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_requantize_equals_its_equation(rounding, data):
    dtype = data.draw(st.sampled_from([np.uint8, np.int8, np.int16]))
    info = np.iinfo(dtype)
    axis = data.draw(st.sampled_from([0, 1]))
    number = st.one_of(st.sampled_from([0.0, 0.5, 0.25, 1.0, 2.0**-31, 1e-9, 2.0**-20]), st.floats(1e-10, 4))
    size = M if axis == 0 else N
    scale = data.draw(st.one_of(number, st.lists(number, min_size=size, max_size=size)))
    zero = data.draw(st.integers(info.min, info.max))
    reach = data.draw(st.sampled_from([2**31, 2**20, 600]))
    acc = (
        np.random.default_rng(data.draw(st.integers(0, 2**32)))
        .integers(-reach, reach, (M, N))
        .astype(np.int32)
    )
    check(acc, [lowgemm.Requantize(scale, zero, dtype, rounding=rounding, axis=axis)])


def test_ties():
    """The one place where the conventions differ by more than precision."""
    acc = np.array([[1, 3, 5, -1, -3, -5]], np.int32)  # halves

    def of(rounding, zero=0):
        return lowgemm.requantize(acc, lowgemm.Requantize(0.5, zero, np.int8, rounding=rounding))[0].tolist()

    assert of("gemmlowp") == of("tflite") == of("tflite_single") == [1, 2, 3, 0, -1, -2]
    assert of("onnx") == of("torch") == of("onnx_reference") == [0, 2, 2, 0, -2, -2]
    # an odd zero point moves the even neighbour if it is added before the rounding
    assert of("onnx", 1) == [1, 3, 3, 1, -1, -1] and of("onnx_reference", 1) == [2, 2, 4, 0, 0, -2]
    quarter = lowgemm.requantize(acc * 2, lowgemm.Requantize(0.25, 0, np.int8, rounding="gemmlowp"))[0]
    assert quarter.tolist() == [1, 2, 3, -1, -2, -3]  # exponent -1: RDP, away from zero
    single = lowgemm.requantize(acc * 2, lowgemm.Requantize(0.25, 0, np.int8, rounding="tflite_single"))[0]
    assert single.tolist() == [1, 2, 3, 0, -1, -2]


def test_fused_in_gemm(any_kernel, threads):
    rng = np.random.default_rng(1)
    lhs, rhs = rng.integers(0, 256, (M, 60), dtype=np.uint8), rng.integers(-128, 128, (60, N), dtype=np.int8)
    scale = rng.random(N) * 1e-3
    table = rng.integers(0, 256, 256, dtype=np.uint8)
    for tail in (
        *([lowgemm.Requantize(scale, 3, np.uint8, rounding=r, min=5, max=240)] for r in ROUNDINGS),
        [lowgemm.Dequantize(scale)],
        [lowgemm.Dequantize(scale, row_scale=rng.random(M) + 0.5, bias=rng.normal(size=N))],
        [lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 9, 100), lowgemm.Lut(table)],
        [lowgemm.Logistic(12)],
        [lowgemm.relu(5), lowgemm.relu6(0.1, 5)],
    ):
        output = [lowgemm.BiasAddition(np.arange(N) * 50), *tail]
        expected = reference.gemm(lhs, rhs, lhs_zero_point=9, output=output)
        got = lowgemm.gemm(lhs, rhs, lhs_zero_point=9, output=output, num_threads=threads)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        again = lowgemm.gemm(lhs, rhs, lhs_zero_point=9, output=output, num_threads=threads)
        np.testing.assert_array_equal(again, expected)


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-12, 2.0**29))
def test_multiplier_and_exponent_stand_for_the_scale(scale):
    multiplier, exponent = quantize_multiplier(scale)
    if multiplier == 0:
        assert scale < 2.0**-31
    else:
        assert 2**30 <= multiplier < 2**31
        assert abs(multiplier * 2.0 ** (exponent - 31) - scale) <= scale * 2.0**-31


def test_rounding_carry_of_the_multiplier():
    assert quantize_multiplier(1 - 2.0**-40) == (2**30, 1)
    assert quantize_multiplier(0.0) == (0, 0) and quantize_multiplier(2.0**-40) == (0, 0)


def test_dequantize_of_rows_and_columns():
    """Wider and higher than a tile, with sums of 0: 0 times a negative scale is -0.0, and stays it without a
    bias.
    """
    rng = np.random.default_rng(4)
    acc = rng.integers(-3, 4, (140, 150)).astype(np.int32)
    columns, rows = rng.normal(size=150), rng.normal(size=140)
    for bias in (None, rng.normal(size=150)):
        check(acc, [lowgemm.Dequantize(columns, row_scale=rows, bias=bias)])
    lhs, rhs = rng.integers(0, 9, (140, 20)).astype(np.uint8), rng.integers(-9, 9, (20, 150)).astype(np.int8)
    output = [lowgemm.Dequantize(columns, row_scale=rows, bias=rng.normal(size=150))]
    np.testing.assert_array_equal(
        lowgemm.gemm(lhs, rhs, output=output), reference.gemm(lhs, rhs, output=output)
    )


def test_dequantize_and_tables():
    check(ACC, [lowgemm.Dequantize(np.linspace(-1, 1, N))])
    check(ACC, [lowgemm.Dequantize(np.arange(M) + 0.5, axis=0)])
    rng = np.random.default_rng(3)
    for scale, axis in ((0.3, 1), (rng.normal(size=N), 1), (rng.normal(size=M), 0)):
        for bias in (None, -2.5, 0, rng.normal(size=N) * 1e5):
            check(ACC, [lowgemm.Dequantize(scale, axis, bias=bias)])
            if axis == 1:
                check(ACC, [lowgemm.Dequantize(scale, row_scale=rng.normal(size=M), bias=bias)])
    table = np.random.default_rng(2).integers(-128, 128, 256).astype(np.int8)
    got = check(np.arange(-300, 300, dtype=np.int32)[None, :], [lowgemm.Lut(table, np.int8)])
    assert got[0, 300] == table[128]


@numba.njit
def add_place(acc, row, col):
    return acc + 1000 * row + col


@numba.njit
def per_column(acc, row, col, scale, matrix):
    return acc * scale[col] + matrix[row, col]


def test_own_functions(any_kernel, threads):
    rng = np.random.default_rng(3)
    lhs, rhs = rng.integers(0, 256, (M, 60), dtype=np.uint8), rng.integers(-128, 128, (60, N), dtype=np.int8)
    arrays = (rng.integers(-5, 5, N), rng.integers(-100, 100, (M, N)))
    for output in (
        [lowgemm.Custom(add_place)],
        [lowgemm.Custom(per_column, arrays), lowgemm.Clamp(-500, 500), lowgemm.SaturatingCast(np.int16)],
        [lowgemm.Custom(lambda acc, row, col: acc // 3), lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 4),
         lowgemm.SaturatingCast(np.int8)],
    ):  # fmt: skip
        expected = reference.gemm(lhs, rhs, output=output)
        np.testing.assert_array_equal(lowgemm.gemm(lhs, rhs, output=output, num_threads=threads), expected)
        np.testing.assert_array_equal(lowgemm.requantize(lowgemm.gemm(lhs, rhs), output), expected)


def test_own_function_that_does_not_compile():
    import os

    with pytest.raises(TypeError, match=r"^function: Numba cannot compile"):
        lowgemm.Custom(lambda acc, row, col: os.getcwd())
    with pytest.raises(TypeError, match=r"^function: Numba cannot compile"):
        lowgemm.Custom(lambda acc: acc)
    with pytest.raises(TypeError, match=r"^arrays:"):
        lowgemm.Custom(add_place, [np.zeros(3)])
    with pytest.raises(TypeError, match=r"^function:"):
        lowgemm.Custom(3)


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: lowgemm.Requantize(-1.0), ValueError, "scale"),
        (lambda: lowgemm.Requantize(float("nan")), ValueError, "scale"),
        (lambda: lowgemm.Requantize([0.5, np.inf]), ValueError, "scale"),
        (lambda: lowgemm.Requantize("x"), TypeError, "scale"),
        (lambda: lowgemm.Requantize(True), TypeError, "scale"),
        (lambda: lowgemm.Requantize(2.0**31), ValueError, "scale"),
        (lambda: lowgemm.Requantize([[1.0]]), ValueError, "scale"),
        (lambda: lowgemm.Requantize(1.0, 300, np.uint8), ValueError, "zero_point"),
        (lambda: lowgemm.Requantize(1.0, 0.5), TypeError, "zero_point"),
        (lambda: lowgemm.Requantize(1.0, 0, np.int32), ValueError, "dtype"),
        (lambda: lowgemm.Requantize(1.0, rounding="nearest"), ValueError, "rounding"),
        (lambda: lowgemm.Requantize(1.0, min=5, max=3), ValueError, "max"),
        (lambda: lowgemm.Dequantize(float("inf")), ValueError, "scale"),
        (lambda: lowgemm.Dequantize(1, row_scale=2.0), TypeError, "row_scale"),
        (lambda: lowgemm.Dequantize(1, row_scale=[np.nan]), ValueError, "row_scale"),
        (lambda: lowgemm.Dequantize([1, 2], 0, row_scale=[3, 4]), ValueError, "row_scale"),
        (lambda: lowgemm.Dequantize(1, bias=["a"]), TypeError, "bias"),
        (
            lambda: lowgemm.requantize(ACC, lowgemm.Dequantize(1, row_scale=np.ones(M + 1))),
            ValueError,
            "output: Dequantize.row_scale",
        ),
        (
            lambda: lowgemm.requantize(ACC, lowgemm.Dequantize(1, bias=np.ones(N + 1))),
            ValueError,
            "output: Dequantize.bias",
        ),
        (lambda: lowgemm.Logistic(30), ValueError, "integer_bits"),
        (lambda: lowgemm.Lut(np.zeros(255, np.uint8)), ValueError, "table"),
        (lambda: lowgemm.Lut(np.zeros(256)), TypeError, "table"),
        (lambda: lowgemm.relu6(0), ValueError, "scale"),
    ],
)
def test_bad_fields_are_named(make, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        make()
