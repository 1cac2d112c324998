"""The scalar functions as NumPy ufuncs that Numba compiles when they are first called.

One ufunc for each function and width: NumPy would silently widen an int16 operand to a compiled int32 loop,
and the width decides the rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

from lowgemm.fixedpoint import scalar
from lowgemm.jit import disk_cache
from lowgemm.jit.routine import inner


@intrinsic
def _narrow(typingctx, value, like):
    """int64 `value` in the type of `like`."""

    def codegen(context, builder, signature, values):
        return builder.trunc(values[0], context.get_value_type(like))

    return like(types.int64, like), codegen


@inner
def _add(a, b, bits):
    """Saturating sum of raw values `a` and `b`."""
    return scalar.saturate(a + b, bits)


@inner
def _half_sum(a, b, bits):
    """Rounding half sum."""
    return scalar.half_sum(a, b)


@inner
def _divide_by_pot(x, exponent, bits):
    """RDP of the raw value `x` by 2**`exponent`."""
    return scalar.divide_by_pot(x, exponent)


#: Functions of one value, and of two; the width in bits comes last.
_OF_ONE = {
    "exp_interval": scalar.exp_interval,
    "one_over_one_plus_x": scalar.one_over_one_plus_x,
    "one_minus_x_over_one_plus_x": scalar.one_minus_x_over_one_plus_x,
}
_OF_TWO = {
    "high_mul": scalar.high_mul,
    "divide_by_pot": _divide_by_pot,
    "shift_left": scalar.shift_left,
    "add": _add,
    "half_sum": _half_sum,
    "multiply_by_pot": scalar.multiply_by_pot,
    "exp_negative": scalar.exp_negative,
    "tanh": scalar.tanh,
    "logistic": scalar.logistic,
}


@functools.cache
def ufunc(name: str, bits: int) -> Any:
    """Ufunc of a scalar function at one width."""
    if name in _OF_ONE:
        function = _OF_ONE[name]

        def run(a):
            return _narrow(function(numba.int64(a), bits), a)

    else:
        function = _OF_TWO[name]

        def run(a, b):
            return _narrow(function(numba.int64(a), numba.int64(b), bits), a)

    run.__name__ = name
    return disk_cache.vectorize(run)
