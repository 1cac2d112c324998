"""Fixed-point multiplication, division by powers of two, and addition, with their rounding.

Next file to open: `functions.py`.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm import reference_fixedpoint as _ref
from lowgemm.fixedpoint.checks import NARROW, bits_of, result, same, value, whole
from lowgemm.fixedpoint.ufuncs import ufunc


def saturating_rounding_doubling_high_mul(a: ArrayLike, b: ArrayLike) -> np.ndarray | np.integer:
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
    a, b = same(a, b)
    if numba.config.DISABLE_JIT:
        return result(_ref.saturating_rounding_doubling_high_mul(a, b, bits_of(a)), a.dtype)
    return ufunc("high_mul", bits_of(a))(a, b)


def rounding_divide_by_pot(x: ArrayLike, exponent: ArrayLike) -> np.ndarray | np.integer:
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
    x = value(x, "x", NARROW)
    exponent = whole(exponent, "exponent", 0, bits_of(x) - 1)
    if numba.config.DISABLE_JIT:
        return result(_ref.rounding_divide_by_pot(x, exponent), x.dtype)
    return ufunc("divide_by_pot", bits_of(x))(x, exponent)


def shift_left(x: ArrayLike, exponent: ArrayLike) -> np.ndarray | np.integer:
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
    x = value(x, "x", NARROW)
    exponent = whole(exponent, "exponent", 0, bits_of(x) - 1)
    if numba.config.DISABLE_JIT:
        return result(_ref.shift_left(x, exponent, bits_of(x)), x.dtype)
    return ufunc("shift_left", bits_of(x))(x, exponent)


def saturating_add(a: ArrayLike, b: ArrayLike) -> np.ndarray | np.integer:
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
    a, b = same(a, b, NARROW)
    if numba.config.DISABLE_JIT:
        return result(_ref.saturating_add(a, b, bits_of(a)), a.dtype)
    return ufunc("add", bits_of(a))(a, b)


def rounding_half_sum(a: ArrayLike, b: ArrayLike) -> np.ndarray | np.integer:
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
    a, b = same(a, b)
    if numba.config.DISABLE_JIT:
        return result(_ref.rounding_half_sum(a, b), a.dtype)
    return ufunc("half_sum", bits_of(a))(a, b)


def saturating_rounding_multiply_by_pot(x: ArrayLike, exponent: ArrayLike) -> np.ndarray | np.integer:
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
    x = value(x, "x", NARROW)
    exponent = whole(exponent, "exponent", 1 - bits_of(x), bits_of(x) - 1)
    if numba.config.DISABLE_JIT:
        return result(_ref.saturating_rounding_multiply_by_pot(x, exponent, bits_of(x)), x.dtype)
    return ufunc("multiply_by_pot", bits_of(x))(x, exponent)
