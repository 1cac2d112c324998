"""Fixed-point arithmetic with gemmlowp's names and roundings, on NumPy arrays and inside `@njit` code.

A raw value r of an int16 or int32 array with i integer bits stands for ``r / 2**(bits - 1 - i)``. The dtype
of the first argument decides the width and is the dtype of the result; scalars and arrays broadcast as in any
ufunc. Each function is compiled when it is first called. Source of the formulas: gemmlowp's
``fixedpoint/fixedpoint.h``; `lowgemm.reference_fixedpoint` has them as readable maths.
"""

from __future__ import annotations

from lowgemm.fixedpoint.arithmetic import (
    rounding_divide_by_pot,
    rounding_half_sum,
    saturating_add,
    saturating_rounding_doubling_high_mul,
    saturating_rounding_multiply_by_pot,
    shift_left,
)
from lowgemm.fixedpoint.checks import NARROW as _NARROW
from lowgemm.fixedpoint.functions import (
    exp_on_interval_between_negative_one_quarter_and_0_excl,
    exp_on_negative_values,
    logistic,
    one_minus_x_over_one_plus_x_for_x_in_0_1,
    one_over_one_plus_x_for_x_in_0_1,
    tanh,
)
from lowgemm.fixedpoint.in_njit import inside_njit as _inside_njit

__all__ = [
    "exp_on_interval_between_negative_one_quarter_and_0_excl",
    "exp_on_negative_values",
    "logistic",
    "one_minus_x_over_one_plus_x_for_x_in_0_1",
    "one_over_one_plus_x_for_x_in_0_1",
    "rounding_divide_by_pot",
    "rounding_half_sum",
    "saturating_add",
    "saturating_rounding_doubling_high_mul",
    "saturating_rounding_multiply_by_pot",
    "shift_left",
    "tanh",
]
_inside_njit(saturating_rounding_doubling_high_mul, "high_mul", "b")
_inside_njit(rounding_divide_by_pot, "divide_by_pot", "exponent", _NARROW)
_inside_njit(shift_left, "shift_left", "exponent", _NARROW)
_inside_njit(saturating_add, "add", "b", _NARROW)
_inside_njit(rounding_half_sum, "half_sum", "b")
_inside_njit(saturating_rounding_multiply_by_pot, "multiply_by_pot", "exponent", _NARROW)
_inside_njit(exp_on_interval_between_negative_one_quarter_and_0_excl, "exp_interval", None)
_inside_njit(exp_on_negative_values, "exp_negative", "integer_bits")
_inside_njit(one_over_one_plus_x_for_x_in_0_1, "one_over_one_plus_x", None)
_inside_njit(one_minus_x_over_one_plus_x_for_x_in_0_1, "one_minus_x_over_one_plus_x", None)
_inside_njit(tanh, "tanh", "integer_bits")
_inside_njit(logistic, "logistic", "integer_bits")
