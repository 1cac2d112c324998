"""Checks of the arguments of the fixed-point functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.checks.values import as_array

WIDE, NARROW = (np.int16, np.int32), (np.int8, np.int16, np.int32)


def value(x: Any, name: str, dtypes: tuple[type, ...] = WIDE) -> np.ndarray:
    """An argument as an array of one of `dtypes`."""
    a = as_array(x, name, "integers")
    if a.dtype not in [np.dtype(t) for t in dtypes]:
        raise TypeError(f"{name}: expected {' or '.join(t.__name__ for t in dtypes)}, got {a.dtype}")
    return a


def same(a: Any, b: Any, dtypes: tuple[type, ...] = WIDE) -> tuple[np.ndarray, np.ndarray]:
    """Two arguments of one dtype."""
    a, b = value(a, "a", dtypes), value(b, "b", dtypes)
    if a.dtype != b.dtype:
        raise TypeError(f"b: expected {a.dtype} like a, got {b.dtype}")
    return a, b


def whole(x: Any, name: str, low: int, high: int) -> np.ndarray:
    """Integers of `low` to `high`."""
    a = as_array(x, name, "integers")
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {a.dtype}")
    if a.size and (int(a.min()) < low or int(a.max()) > high):
        raise ValueError(f"{name}: expected {low} to {high}, got {int(a.min())} to {int(a.max())}")
    return a.astype(np.int64)


def bits_of(a: np.ndarray) -> int:
    """Width of the elements."""
    return a.dtype.itemsize * 8


def result(x: Any, dtype: np.dtype) -> Any:
    """What a reference function gave, as an array or scalar of `dtype`."""
    return np.asarray(x).astype(dtype)[()]


def as_integer_bits(value: Any, a: np.ndarray, reserve: int) -> np.ndarray:
    """Checked `integer_bits`; `reserve` of those that the width allows stay free."""
    return whole(value, "integer_bits", 0, bits_of(a) - 3 - reserve)
