"""Checked conversion of what callers pass as numbers and arrays. Each error names the argument."""

from __future__ import annotations

import enum
import numbers
import re
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from lowgemm.checks.arrays import to_numpy

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
#: Dimensions that an array of NumPy can have (32 before NumPy 2).
MAX_DIMS = 64
#: Types that Python counts among the integers but that are not meant (NumPy derives timedelta64 from its
#: integers).
_NO_INTEGERS = (bool, np.bool_, np.timedelta64)


def integer(value: Any, name: str, low: int = INT32_MIN, high: int = INT32_MAX) -> int:
    """`value` as an int in [low, high]."""
    if type(value) is not int:  # the abstract class takes 0.5 us to look up
        if isinstance(value, _NO_INTEGERS) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
        value = int(value)
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value}")
    return value


def number(value: Any, name: str) -> float:
    """`value` as a float, finite or not."""
    if isinstance(value, _NO_INTEGERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that fits float64") from None


def flag(value: Any, name: str) -> bool:
    """`value` as a bool; nothing else is one."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return bool(value)


def choice(value: Any, name: str, options: Iterable[str]) -> str:
    """`value` as one of the texts in `options`: itself, or a member of an enumeration whose value it is.

    What comes back is plain text, so that nothing after this depends on how a subclass of `str` compares or
    prints.
    """
    text = value.value if isinstance(value, enum.Enum) else value
    if isinstance(text, str):
        for option in options:
            if option == text:
                return option
    raise ValueError(f"{name}: expected {' or '.join(map(repr, options))}, got {value!r:.80}")


def integers(value: Any, name: str, low: int = INT32_MIN, high: int = INT32_MAX) -> int | np.ndarray:
    """`value` as an int, or as a read-only int32 vector, all in [low, high]."""
    if isinstance(value, (bool, np.bool_, numbers.Integral)):
        return integer(value, name, low, high)
    a = as_array(value, name, "an integer or a vector")
    if a.dtype.kind not in "iu":
        got = value if value is None else a.dtype
        raise TypeError(f"{name}: expected an integer or a vector of integers, got {got}")
    if a.ndim == 0:
        return integer(a[()], name, low, high)
    if a.ndim != 1:
        raise ValueError(f"{name}: expected an integer or a vector, got shape {a.shape}")
    if a.size and (int(a.min()) < low or int(a.max()) > high):
        raise ValueError(f"{name}: expected {low} to {high}, got {int(a.min())} to {int(a.max())}")
    a = a.astype(np.int32)
    a.flags.writeable = False
    return a


def renamed(error: Exception, **names: str) -> Exception:
    """The error of a function in the words of its caller: `names` maps the names of its parameters to those
    of the caller's.

    Examples
    --------
    >>> renamed(ValueError("rhs: expected depth 2 to match lhs, got 3"), lhs="A", rhs="B")
    ValueError('B: expected depth 2 to match A, got 3')
    """
    text = re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[1]], str(error))
    return TypeError(text) if isinstance(error, TypeError) else ValueError(text)


def as_array(value: Any, name: str, expected: str, listed: Any = None) -> np.ndarray:
    """`value` as an array; what NumPy cannot make one of is an error that says what was `expected`.

    A list or tuple has no dtype of its own. Where only one makes sense, `listed` is that dtype: numbers in a
    list become it, and integers that it cannot hold are an error.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return value if type(value) is np.ndarray else np.asarray(value)
    a = to_numpy(value, name, expected)
    return (
        _of_list(a, name, np.dtype(listed)) if listed is not None and isinstance(value, (list, tuple)) else a
    )


def _of_list(a: np.ndarray, name: str, dtype: np.dtype) -> np.ndarray:
    """What NumPy made of a list, as `dtype` if that loses nothing but a float's last bits; else as it is."""
    if a.size == 0 or (dtype.kind == "f" and a.dtype.kind in "fiu"):
        return a.astype(dtype)
    if a.dtype == dtype or a.dtype.kind not in "iu" or dtype.kind not in "iu":
        return a
    info, low, high = np.iinfo(dtype), int(a.min()), int(a.max())
    if low < info.min or high > info.max:
        raise ValueError(f"{name}: expected {dtype} ({info.min} to {info.max}), got {low} to {high}")
    return a.astype(dtype)


def is_masked(value: Any) -> bool:
    """Whether `value` is an array of `numpy.ma` with masked elements.

    Does not touch ``np.ma``, which NumPy imports when it is first named: a signal handler that multiplies in
    the middle of that import would end in a RecursionError. If nobody has imported it, `value` cannot be one
    of its arrays.
    """
    ma = sys.modules.get("numpy.ma")
    kind = getattr(ma, "MaskedArray", None)
    if kind is None or not isinstance(value, kind):
        return False
    return bool(ma.is_masked(value))  # type: ignore[union-attr]
