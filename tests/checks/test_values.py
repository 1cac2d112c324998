"""Numbers, flags and names: what is one, what it becomes, and what an error says."""

from __future__ import annotations

import decimal
import enum
import fractions

import numpy as np
import pytest

from lowgemm.checks.values import as_array, choice, flag, integer, integers, is_masked, number


class Shade(enum.Enum):
    DARK = "dark"


class Odd(str):
    """Text that says it equals nothing."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return False


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_integers_of_every_kind_become_int(value):
    assert type(integer(value, "x")) is int and integer(value, "x") == 3


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float32(3), "3", None, np.timedelta64(3)])
def test_what_is_no_integer(value):
    with pytest.raises(TypeError, match=r"^x: expected an integer, got "):
        integer(value, "x")


@pytest.mark.parametrize(("low", "high"), [(0, 2), (4, 9)])
def test_bounds_belong_to_the_range(low, high):
    with pytest.raises(ValueError, match=rf"^x: expected {low} to {high}, got 3"):
        integer(3, "x", low, high)
    assert [integer(v, "x", low, high) for v in (low, high)] == [low, high]


@pytest.mark.parametrize("value", [2, 2.0, np.float16(2), np.int64(2), fractions.Fraction(2)])
def test_numbers(value):
    assert type(number(value, "x")) is float and number(value, "x") == 2


@pytest.mark.parametrize("value", [True, "2", None, 2j, decimal.Decimal(2), np.timedelta64(2)])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match=r"^x: expected a number, got "):
        number(value, "x")
    with pytest.raises(ValueError, match=r"^x: expected a number that fits float64"):
        number(10**400, "x")


def test_flags_are_bools_and_nothing_else():
    assert flag(np.True_, "x") is True and flag(False, "x") is False
    for value in (0, 1, "no", None, np.int8(1)):
        with pytest.raises(TypeError, match=r"^x: expected a bool, got "):
            flag(value, "x")


def test_a_choice_is_plain_text():
    assert choice(Shade.DARK, "x", ("light", "dark")) == "dark"
    assert type(choice(np.str_("dark"), "x", ("light", "dark"))) is str
    for value in ("Dark", Odd("dusk"), 1, None, b"dark"):
        with pytest.raises(ValueError, match=r"^x: expected 'light' or 'dark', got "):
            choice(value, "x", ("light", "dark"))


def test_integers_as_vector():
    assert integers(np.int8(4), "x") == 4 == integers(np.array(4), "x")
    made = integers([1, -2], "x", -2, 1)
    assert made.dtype == np.int32 and made.tolist() == [1, -2] and not made.flags.writeable
    for value, error in (([1, 2], ValueError), ([[1]], ValueError), ([0.5], TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"^x: expected "):
            integers(value, "x", -2, 1)


def test_lists_take_the_dtype_that_makes_sense():
    assert as_array([1, 2], "x", "a matrix", np.uint8).dtype == np.uint8
    assert as_array((1, 2), "x", "a matrix", np.float32).dtype == np.float32
    assert as_array(np.arange(2), "x", "a matrix", np.uint8).dtype == np.arange(2).dtype
    with pytest.raises(ValueError, match=r"^x: expected uint8 \(0 to 255\), got 1 to 256"):
        as_array([1, 256], "x", "a matrix", np.uint8)


def test_masked_arrays():
    assert is_masked(np.ma.masked_equal([1, 2], 2)) and not is_masked(np.ma.array([1, 2]))
    assert not is_masked(np.arange(2)) and not is_masked([1, 2])
