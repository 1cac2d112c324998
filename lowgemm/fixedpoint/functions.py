"""Fixed-point exp, 1 / (1 + x), (1 - x) / (1 + x), tanh and logistic.

Next file to open: `scalar.py`, the compiled loops' part.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm import reference_fixedpoint as _ref
from lowgemm.checks.shapes import broadcast
from lowgemm.fixedpoint.checks import as_integer_bits, bits_of, result, value
from lowgemm.fixedpoint.ufuncs import ufunc


def exp_on_interval_between_negative_one_quarter_and_0_excl(a: ArrayLike) -> np.ndarray | np.integer:
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
    a = value(a, "a")
    if numba.config.DISABLE_JIT:
        y = _ref.exp_on_interval_between_negative_one_quarter_and_0_excl(a, bits_of(a))
        return result(y, a.dtype)
    return ufunc("exp_interval", bits_of(a))(a)


def exp_on_negative_values(a: ArrayLike, integer_bits: ArrayLike) -> np.ndarray | np.integer:
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
    a = value(a, "a")
    integer_bits = as_integer_bits(integer_bits, a, 0)
    if numba.config.DISABLE_JIT:
        return result(_each(_ref.exp_on_negative_values, a, integer_bits), a.dtype)
    return ufunc("exp_negative", bits_of(a))(a, integer_bits)


def one_over_one_plus_x_for_x_in_0_1(a: ArrayLike) -> np.ndarray | np.integer:
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
    a = value(a, "a")
    if numba.config.DISABLE_JIT:
        return result(_ref.one_over_one_plus_x_for_x_in_0_1(a, bits_of(a)), a.dtype)
    return ufunc("one_over_one_plus_x", bits_of(a))(a)


def one_minus_x_over_one_plus_x_for_x_in_0_1(a: ArrayLike) -> np.ndarray | np.integer:
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
    a = value(a, "a")
    if numba.config.DISABLE_JIT:
        return result(_ref.one_minus_x_over_one_plus_x_for_x_in_0_1(a, bits_of(a)), a.dtype)
    return ufunc("one_minus_x_over_one_plus_x", bits_of(a))(a)


def tanh(a: ArrayLike, integer_bits: ArrayLike) -> np.ndarray | np.integer:
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
    a = value(a, "a")
    integer_bits = as_integer_bits(integer_bits, a, 1)
    if numba.config.DISABLE_JIT:
        return result(_each(_ref.tanh, a, integer_bits), a.dtype)
    return ufunc("tanh", bits_of(a))(a, integer_bits)


def logistic(a: ArrayLike, integer_bits: ArrayLike) -> np.ndarray | np.integer:
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
    a = value(a, "a")
    integer_bits = as_integer_bits(integer_bits, a, 0)
    if numba.config.DISABLE_JIT:
        return result(_each(_ref.logistic, a, integer_bits), a.dtype)
    return ufunc("logistic", bits_of(a))(a, integer_bits)


def _each(function: Any, a: np.ndarray, integer_bits: np.ndarray) -> np.ndarray:
    """Reference functions take one `integer_bits`; apply them for each that occurs."""
    shape = broadcast(a.shape, integer_bits.shape)
    a, integer_bits = np.broadcast_to(a, shape), np.broadcast_to(integer_bits, shape)
    y = np.empty(a.shape, dtype=np.int64)
    for count in np.unique(integer_bits):
        chosen = integer_bits == count
        y[chosen] = function(a[chosen], int(count), bits_of(a))
    return y
