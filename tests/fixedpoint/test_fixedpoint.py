"""Fixed-point functions: golden data, the definition, NumPy arrays and compiled code."""

from __future__ import annotations

import golden
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm import fixedpoint
from lowgemm import reference_fixedpoint as ref

WIDTHS = {16: np.int16, 32: np.int32}


def second_argument(case):
    """The case's second argument, if any."""
    if "b" in case:
        return golden.array(case["b"]).astype(f"int{case['bits']}")
    for name in ("exponent", "offset", "integer_bits"):
        if name in case:
            return case[name]
    return None


@pytest.mark.parametrize(
    "case", golden.cases("fixedpoint"), ids=lambda c: f"{c['function']}-{c['bits']}-{c['id'][-4:]}"
)
def test_golden(case):
    bits, name = case["bits"], case["function"]
    a = golden.array(case["a"]).astype(f"int{bits}")
    extra = second_argument(case)
    args = (a,) if extra is None else (a, extra)
    expected = golden.array(case["expected"])
    got = getattr(fixedpoint, name)(*args)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    definition = getattr(ref, name)
    needs_bits = "bits" in definition.__code__.co_varnames[: definition.__code__.co_argcount]
    np.testing.assert_array_equal(definition(*args, **({"bits": bits} if needs_bits else {})), expected)


@pytest.mark.parametrize("bits", [16, 32])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_primitives_equal_the_definition(bits, data):
    low, high = ref.limits(bits)
    value = st.one_of(st.sampled_from([low, low + 1, -1, 0, 1, high - 1, high]), st.integers(low, high))
    a, b = (np.array(data.draw(st.lists(value, min_size=9, max_size=9)), WIDTHS[bits]) for _ in range(2))
    e = data.draw(st.integers(0, bits - 1))
    pairs = [
        (
            fixedpoint.saturating_rounding_doubling_high_mul(a, b),
            ref.saturating_rounding_doubling_high_mul(a, b, bits),
        ),
        (fixedpoint.rounding_divide_by_pot(a, e), ref.rounding_divide_by_pot(a, e)),
        (fixedpoint.shift_left(a, e), ref.shift_left(a, e, bits)),
        (fixedpoint.saturating_add(a, b), ref.saturating_add(a, b, bits)),
        (fixedpoint.rounding_half_sum(a, b), ref.rounding_half_sum(a, b)),
        (
            fixedpoint.saturating_rounding_multiply_by_pot(a, -e),
            ref.saturating_rounding_multiply_by_pot(a, -e, bits),
        ),
    ]
    for got, expected in pairs:
        assert got.dtype == a.dtype
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("bits", [16, 32])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_functions_equal_the_definition(bits, data):
    low, high = ref.limits(bits)
    raw = np.array(data.draw(st.lists(st.integers(low, high), min_size=20, max_size=20)), WIDTHS[bits])
    integer_bits = data.draw(st.integers(0, bits - 4))
    minus = np.minimum(raw, 0)
    unit = np.maximum(raw, 0)
    pairs = [
        (
            fixedpoint.exp_on_negative_values(minus, integer_bits),
            ref.exp_on_negative_values(minus, integer_bits, bits),
        ),
        (fixedpoint.tanh(raw, integer_bits), ref.tanh(raw, integer_bits, bits)),
        (fixedpoint.logistic(raw, integer_bits), ref.logistic(raw, integer_bits, bits)),
        (fixedpoint.one_over_one_plus_x_for_x_in_0_1(unit), ref.one_over_one_plus_x_for_x_in_0_1(unit, bits)),
        (
            fixedpoint.one_minus_x_over_one_plus_x_for_x_in_0_1(unit),
            ref.one_minus_x_over_one_plus_x_for_x_in_0_1(unit, bits),
        ),
    ]
    for got, expected in pairs:
        np.testing.assert_array_equal(got, expected)


def test_close_to_the_real_functions():
    """The definition itself approximates what its name says."""
    raw = np.linspace(-(2**31), 2**31 - 1, 1001).astype(np.int32)
    real = raw / 2**28
    np.testing.assert_allclose(fixedpoint.tanh(raw, 3) / 2**31, np.tanh(real), atol=3e-7)
    np.testing.assert_allclose(fixedpoint.logistic(raw, 3) / 2**31, 1 / (1 + np.exp(-real)), atol=3e-7)
    np.testing.assert_allclose(
        fixedpoint.exp_on_negative_values(raw[:500], 3) / 2**31, np.exp(real[:500]), atol=3e-7
    )


def test_strided_and_scalar_arguments():
    a = np.arange(-50, 50, dtype=np.int32).reshape(10, 10)
    np.testing.assert_array_equal(
        fixedpoint.rounding_divide_by_pot(a.T[::2, ::-3], 2), ref.rounding_divide_by_pot(a.T[::2, ::-3], 2)
    )
    assert fixedpoint.rounding_divide_by_pot(np.int32(-3), 1) == -2


@numba.njit
def compiled(a, b):
    total = fixedpoint.saturating_rounding_doubling_high_mul(a, b)
    return fixedpoint.rounding_divide_by_pot(total, 3), fixedpoint.tanh(a, 3)


def test_inside_compiled_code():
    a, b = np.array([2**30, -(2**31)], np.int32), np.array([2**30, -(2**31)], np.int32)
    got = compiled(a, b)
    srdhm = ref.saturating_rounding_doubling_high_mul(a, b, 32)
    np.testing.assert_array_equal(got[0], ref.rounding_divide_by_pot(srdhm, 3))
    np.testing.assert_array_equal(got[1], ref.tanh(a, 3, 32))
    scalar = compiled(np.int16(2**14), np.int16(2**14))
    assert scalar[0] == ref.rounding_divide_by_pot(2**13, 3)
    with pytest.raises(numba.errors.TypingError, match="expected int16 or int32"):
        compiled(1.5, 2.5)


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: fixedpoint.tanh(np.zeros(3), 3), TypeError, "a"),
        (lambda: fixedpoint.tanh(np.zeros(3, np.int32), 29), ValueError, "integer_bits"),
        (lambda: fixedpoint.saturating_rounding_doubling_high_mul(np.int32(1), np.int16(1)), TypeError, "b"),
        (lambda: fixedpoint.rounding_divide_by_pot(np.int32(1), 32), ValueError, "exponent"),
        (lambda: fixedpoint.rounding_divide_by_pot(np.int32(1), 0.5), TypeError, "exponent"),
        (lambda: fixedpoint.shift_left(np.uint8(1), 1), TypeError, "x"),
    ],
)
def test_bad_input_names_the_argument(call, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        call()
