"""Fixed-point arithmetic with gemmlowp's names and roundings, on NumPy arrays and inside `@njit` code.

A raw value r of an int16 or int32 array with i integer bits stands for ``r / 2**(bits - 1 - i)``. The dtype of the
first argument decides the width and is the dtype of the result; scalars and arrays broadcast as in any ufunc.
Each function is compiled when it is first called. Source of the formulas: gemmlowp's
``fixedpoint/fixedpoint.h``; `lowgemm.reference_fixedpoint` has them as readable maths.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import errors
from numba.extending import overload

from lowgemm import reference_fixedpoint as _ref
from lowgemm.fixedpoint.ufuncs import ufunc

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

_WIDE, _NARROW = (np.int16, np.int32), (np.int8, np.int16, np.int32)


def _value(x: Any, name: str, dtypes: tuple[type, ...] = _WIDE) -> np.ndarray:
    a = np.asarray(x)
    if a.dtype not in [np.dtype(t) for t in dtypes]:
        raise TypeError(f"{name}: expected {' or '.join(t.__name__ for t in dtypes)}, got {a.dtype}")
    return a


def _same(a: Any, b: Any, dtypes: tuple[type, ...] = _WIDE) -> tuple[np.ndarray, np.ndarray]:
    a, b = _value(a, "a", dtypes), _value(b, "b", dtypes)
    if a.dtype != b.dtype:
        raise TypeError(f"b: expected {a.dtype} like a, got {b.dtype}")
    return a, b


def _whole(x: Any, name: str, low: int, high: int) -> np.ndarray:
    a = np.asarray(x)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {a.dtype}")
    if a.size and (int(a.min()) < low or int(a.max()) > high):
        raise ValueError(f"{name}: expected {low} to {high}, got {int(a.min())} to {int(a.max())}")
    return a.astype(np.int64)


def _bits(a: np.ndarray) -> int:
    return a.dtype.itemsize * 8


def _result(x: Any, dtype: np.dtype) -> Any:
    return np.asarray(x).astype(dtype)[()]


def saturating_rounding_doubling_high_mul(a: Any, b: Any) -> Any:
    """SRDHM: ``a * b / 2**(bits - 1)`` to nearest, ties towards plus infinity; min * min gives max.

    Parameters
    ----------
    a, b : int16 or int32 array_like
        Raw values, both of one dtype.

    Returns
    -------
    ndarray or scalar
        Of the same dtype.

    Raises
    ------
    TypeError
        For any other dtype.

    Examples
    --------
    >>> import numpy as np
    >>> int(saturating_rounding_doubling_high_mul(np.int32(3), np.int32(2**30)))
    2
    """
    a, b = _same(a, b)
    if numba.config.DISABLE_JIT:
        return _result(_ref.saturating_rounding_doubling_high_mul(a, b, _bits(a)), a.dtype)
    return ufunc("high_mul", _bits(a))(a, b)


def rounding_divide_by_pot(x: Any, exponent: Any) -> Any:
    """RDP: ``x / 2**exponent`` to nearest, ties away from zero.

    Parameters
    ----------
    x : int8, int16 or int32 array_like
        Raw values.
    exponent : int array_like
        0 to bits - 1.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        If a dtype or the exponent does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> rounding_divide_by_pot(np.array([-3, -1, 1, 3], np.int32), 1)
    array([-2, -1,  1,  2], dtype=int32)
    """
    x = _value(x, "x", _NARROW)
    exponent = _whole(exponent, "exponent", 0, _bits(x) - 1)
    if numba.config.DISABLE_JIT:
        return _result(_ref.rounding_divide_by_pot(x, exponent), x.dtype)
    return ufunc("divide_by_pot", _bits(x))(x, exponent)


def shift_left(x: Any, exponent: Any) -> Any:
    """``x * 2**exponent``, saturating.

    Parameters
    ----------
    x : int8, int16 or int32 array_like
        Raw values.
    exponent : int array_like
        0 to bits - 1.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        If a dtype or the exponent does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> int(shift_left(np.int16(20000), 1))
    32767
    """
    x = _value(x, "x", _NARROW)
    exponent = _whole(exponent, "exponent", 0, _bits(x) - 1)
    if numba.config.DISABLE_JIT:
        return _result(_ref.shift_left(x, exponent, _bits(x)), x.dtype)
    return ufunc("shift_left", _bits(x))(x, exponent)


def saturating_add(a: Any, b: Any) -> Any:
    """``a + b``, saturating.

    Parameters
    ----------
    a, b : int8, int16 or int32 array_like
        Raw values, both of one dtype.

    Returns
    -------
    ndarray or scalar
        Of the same dtype.

    Raises
    ------
    TypeError
        For any other dtype.

    Examples
    --------
    >>> import numpy as np
    >>> int(saturating_add(np.int8(100), np.int8(100)))
    127
    """
    a, b = _same(a, b, _NARROW)
    if numba.config.DISABLE_JIT:
        return _result(_ref.saturating_add(a, b, _bits(a)), a.dtype)
    return ufunc("add", _bits(a))(a, b)


def rounding_half_sum(a: Any, b: Any) -> Any:
    """``(a + b) / 2`` to nearest, ties away from zero.

    Parameters
    ----------
    a, b : int16 or int32 array_like
        Raw values, both of one dtype.

    Returns
    -------
    ndarray or scalar
        Of the same dtype.

    Raises
    ------
    TypeError
        For any other dtype.

    Examples
    --------
    >>> import numpy as np
    >>> int(rounding_half_sum(np.int32(-1), np.int32(-2)))
    -2
    """
    a, b = _same(a, b)
    if numba.config.DISABLE_JIT:
        return _result(_ref.rounding_half_sum(a, b), a.dtype)
    return ufunc("half_sum", _bits(a))(a, b)


def saturating_rounding_multiply_by_pot(x: Any, exponent: Any) -> Any:
    """``x * 2**exponent``: saturating where exponent > 0, RDP where it is negative.

    Parameters
    ----------
    x : int8, int16 or int32 array_like
        Raw values.
    exponent : int array_like
        -(bits - 1) to bits - 1.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        If a dtype or the exponent does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> saturating_rounding_multiply_by_pot(np.array([5, 5], np.int32), [1, -1])
    array([10,  3], dtype=int32)
    """
    x = _value(x, "x", _NARROW)
    exponent = _whole(exponent, "exponent", 1 - _bits(x), _bits(x) - 1)
    if numba.config.DISABLE_JIT:
        return _result(_ref.saturating_rounding_multiply_by_pot(x, exponent, _bits(x)), x.dtype)
    return ufunc("multiply_by_pot", _bits(x))(x, exponent)


def exp_on_interval_between_negative_one_quarter_and_0_excl(a: Any) -> Any:
    """exp(a) for a in [-1/4, 0), both with 0 integer bits.

    Parameters
    ----------
    a : int16 or int32 array_like
        Raw values; outside the interval the result is defined but not an exponential.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `a`.

    Raises
    ------
    TypeError
        For any other dtype.

    Examples
    --------
    >>> import numpy as np
    >>> y = exp_on_interval_between_negative_one_quarter_and_0_excl(np.int32(-(2**28)))  # exp(-1/8)
    >>> round(int(y) / 2**31, 6)
    0.882497
    """
    a = _value(a, "a")
    if numba.config.DISABLE_JIT:
        y = _ref.exp_on_interval_between_negative_one_quarter_and_0_excl(a, _bits(a))
        return _result(y, a.dtype)
    return ufunc("exp_interval", _bits(a))(a)


def _integer_bits(value: Any, a: np.ndarray, reserve: int) -> np.ndarray:
    return _whole(value, "integer_bits", 0, _bits(a) - 3 - reserve)


def exp_on_negative_values(a: Any, integer_bits: Any) -> Any:
    """exp(a) for a <= 0; the result has 0 integer bits.

    Parameters
    ----------
    a : int16 or int32 array_like
        Raw values, at most 0.
    integer_bits : int array_like
        Integer bits of `a`, 0 to bits - 3.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `a`. 0 gives the largest raw value.

    Raises
    ------
    TypeError, ValueError
        If a dtype or `integer_bits` does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> round(int(exp_on_negative_values(np.int32(-(2**28)), 3)) / 2**31, 6)  # exp(-1)
    0.36788
    """
    a = _value(a, "a")
    integer_bits = _integer_bits(integer_bits, a, 0)
    if numba.config.DISABLE_JIT:
        return _result(_each(_ref.exp_on_negative_values, a, integer_bits), a.dtype)
    return ufunc("exp_negative", _bits(a))(a, integer_bits)


def one_over_one_plus_x_for_x_in_0_1(a: Any) -> Any:
    """1 / (1 + a) for a in [0, 1], both with 0 integer bits.

    Parameters
    ----------
    a : int16 or int32 array_like
        Raw values, at least 0.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `a`.

    Raises
    ------
    TypeError
        For any other dtype.

    Examples
    --------
    >>> import numpy as np
    >>> round(int(one_over_one_plus_x_for_x_in_0_1(np.int32(2**30))) / 2**31, 6)
    0.666667
    """
    a = _value(a, "a")
    if numba.config.DISABLE_JIT:
        return _result(_ref.one_over_one_plus_x_for_x_in_0_1(a, _bits(a)), a.dtype)
    return ufunc("one_over_one_plus_x", _bits(a))(a)


def one_minus_x_over_one_plus_x_for_x_in_0_1(a: Any) -> Any:
    """(1 - a) / (1 + a) for a in [0, 1], both with 0 integer bits.

    Parameters
    ----------
    a : int16 or int32 array_like
        Raw values, at least 0.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `a`.

    Raises
    ------
    TypeError
        For any other dtype.

    Examples
    --------
    >>> import numpy as np
    >>> round(int(one_minus_x_over_one_plus_x_for_x_in_0_1(np.int32(2**30))) / 2**31, 6)
    0.333333
    """
    a = _value(a, "a")
    if numba.config.DISABLE_JIT:
        return _result(_ref.one_minus_x_over_one_plus_x_for_x_in_0_1(a, _bits(a)), a.dtype)
    return ufunc("one_minus_x_over_one_plus_x", _bits(a))(a)


def tanh(a: Any, integer_bits: Any) -> Any:
    """Hyperbolic tangent; the result has 0 integer bits.

    Parameters
    ----------
    a : int16 or int32 array_like
        Raw values.
    integer_bits : int array_like
        Integer bits of `a`, 0 to bits - 4.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `a`.

    Raises
    ------
    TypeError, ValueError
        If a dtype or `integer_bits` does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> round(int(tanh(np.int32(2**28), 3)) / 2**31, 6)  # tanh(1)
    0.761594
    """
    a = _value(a, "a")
    integer_bits = _integer_bits(integer_bits, a, 1)
    if numba.config.DISABLE_JIT:
        return _result(_each(_ref.tanh, a, integer_bits), a.dtype)
    return ufunc("tanh", _bits(a))(a, integer_bits)


def logistic(a: Any, integer_bits: Any) -> Any:
    """``1 / (1 + exp(-a))``; the result has 0 integer bits.

    Parameters
    ----------
    a : int16 or int32 array_like
        Raw values.
    integer_bits : int array_like
        Integer bits of `a`, 0 to bits - 3.

    Returns
    -------
    ndarray or scalar
        Of the dtype of `a`.

    Raises
    ------
    TypeError, ValueError
        If a dtype or `integer_bits` does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> round(int(logistic(np.int32(2**28), 3)) / 2**31, 6)  # logistic(1)
    0.731059
    """
    a = _value(a, "a")
    integer_bits = _integer_bits(integer_bits, a, 0)
    if numba.config.DISABLE_JIT:
        return _result(_each(_ref.logistic, a, integer_bits), a.dtype)
    return ufunc("logistic", _bits(a))(a, integer_bits)


def _each(function: Any, a: np.ndarray, integer_bits: np.ndarray) -> np.ndarray:
    """Reference functions take one `integer_bits`; apply them for each that occurs."""
    a, integer_bits = np.broadcast_arrays(a, integer_bits)
    y = np.empty(a.shape, dtype=np.int64)
    for value in np.unique(integer_bits):
        here = integer_bits == value
        y[here] = function(a[here], int(value), _bits(a))
    return y


def _integer_type(like: types.Type, dtypes: tuple[type, ...]) -> int:
    """Width of an argument's type in compiled code."""
    scalar = like.dtype if isinstance(like, types.Array) else like
    if scalar not in [numba.from_dtype(np.dtype(t)) for t in dtypes]:
        raise errors.NumbaTypeError(f"expected {' or '.join(t.__name__ for t in dtypes)}, got {scalar}")
    return scalar.bitwidth


def _inside_njit(public: Any, name: str, second: str | None, dtypes: tuple[type, ...] = _WIDE) -> None:
    """Make `public` callable in compiled code; ranges are not checked there."""
    if second is None:

        @overload(public)
        def unary(a):
            call = ufunc(name, _integer_type(a, dtypes))
            return lambda a: call(a)

    elif second == "b":

        @overload(public)
        def binary(a, b):
            call = ufunc(name, _integer_type(a, dtypes))
            _integer_type(b, dtypes)
            return lambda a, b: call(a, b)

    elif second == "exponent":

        @overload(public)
        def by_exponent(x, exponent):
            call = ufunc(name, _integer_type(x, dtypes))
            return lambda x, exponent: call(x, exponent)

    else:

        @overload(public)
        def with_integer_bits(a, integer_bits):
            call = ufunc(name, _integer_type(a, dtypes))
            return lambda a, integer_bits: call(a, integer_bits)


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
