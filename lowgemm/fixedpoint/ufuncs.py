"""The scalar functions as NumPy ufuncs that Numba compiles when they are first called.

One ufunc for each function and width: NumPy would silently widen an int16 operand to a compiled int32 loop, and
the width decides the rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

from lowgemm.fixedpoint import scalar
from lowgemm.jit import disk_cache
from lowgemm.jit.stamp import source_stamp


@intrinsic
def _narrow(typingctx, value, like):
    """int64 `value` in the type of `like`."""

    def codegen(context, builder, signature, values):
        return builder.trunc(values[0], context.get_value_type(like))

    return like(types.int64, like), codegen


_lazy = disk_cache.vectorize


def _high_mul(bits: int, stamp: int) -> Any:
    @_lazy
    def high_mul(a, b):
        _ = stamp
        return _narrow(scalar.high_mul(numba.int64(a), numba.int64(b), bits), a)

    return high_mul


def _divide_by_pot(bits: int, stamp: int) -> Any:
    @_lazy
    def divide_by_pot(x, exponent):
        _ = stamp, bits
        return _narrow(scalar.divide_by_pot(numba.int64(x), numba.int64(exponent)), x)

    return divide_by_pot


def _shift_left(bits: int, stamp: int) -> Any:
    @_lazy
    def shift_left(x, exponent):
        _ = stamp
        return _narrow(scalar.shift_left(numba.int64(x), numba.int64(exponent), bits), x)

    return shift_left


def _add(bits: int, stamp: int) -> Any:
    @_lazy
    def add(a, b):
        _ = stamp
        return _narrow(scalar.saturate(numba.int64(a) + numba.int64(b), bits), a)

    return add


def _half_sum(bits: int, stamp: int) -> Any:
    @_lazy
    def half_sum(a, b):
        _ = stamp, bits
        return _narrow(scalar.half_sum(numba.int64(a), numba.int64(b)), a)

    return half_sum


def _multiply_by_pot(bits: int, stamp: int) -> Any:
    @_lazy
    def multiply_by_pot(x, exponent):
        _ = stamp
        return _narrow(scalar.multiply_by_pot(numba.int64(x), numba.int64(exponent), bits), x)

    return multiply_by_pot


def _exp_interval(bits: int, stamp: int) -> Any:
    @_lazy
    def exp_interval(a):
        _ = stamp
        return _narrow(scalar.exp_interval(numba.int64(a), bits), a)

    return exp_interval


def _exp_negative(bits: int, stamp: int) -> Any:
    @_lazy
    def exp_negative(a, integer_bits):
        _ = stamp
        return _narrow(scalar.exp_negative(numba.int64(a), numba.int64(integer_bits), bits), a)

    return exp_negative


def _one_over_one_plus_x(bits: int, stamp: int) -> Any:
    @_lazy
    def one_over_one_plus_x(a):
        _ = stamp
        return _narrow(scalar.one_over_one_plus_x(numba.int64(a), bits), a)

    return one_over_one_plus_x


def _one_minus_x_over_one_plus_x(bits: int, stamp: int) -> Any:
    @_lazy
    def one_minus_x_over_one_plus_x(a):
        _ = stamp
        return _narrow(scalar.one_minus_x_over_one_plus_x(numba.int64(a), bits), a)

    return one_minus_x_over_one_plus_x


def _tanh(bits: int, stamp: int) -> Any:
    @_lazy
    def tanh(a, integer_bits):
        _ = stamp
        return _narrow(scalar.tanh(numba.int64(a), numba.int64(integer_bits), bits), a)

    return tanh


def _logistic(bits: int, stamp: int) -> Any:
    @_lazy
    def logistic(a, integer_bits):
        _ = stamp
        return _narrow(scalar.logistic(numba.int64(a), numba.int64(integer_bits), bits), a)

    return logistic


_FACTORIES = {
    "high_mul": _high_mul,
    "divide_by_pot": _divide_by_pot,
    "shift_left": _shift_left,
    "add": _add,
    "half_sum": _half_sum,
    "multiply_by_pot": _multiply_by_pot,
    "exp_interval": _exp_interval,
    "exp_negative": _exp_negative,
    "one_over_one_plus_x": _one_over_one_plus_x,
    "one_minus_x_over_one_plus_x": _one_minus_x_over_one_plus_x,
    "tanh": _tanh,
    "logistic": _logistic,
}


@functools.cache
def ufunc(name: str, bits: int) -> Any:
    """Ufunc of a scalar function at one width."""
    return _FACTORIES[name](bits, source_stamp())
