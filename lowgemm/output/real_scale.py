"""Checks of scales that are real numbers."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from lowgemm.checks.values import as_array


def real_scale(value: Any) -> float | np.ndarray:
    """`scale` as a float, or a read-only float64 vector; positive or zero and finite."""
    if isinstance(value, (bool, np.bool_, np.timedelta64)):
        raise TypeError(f"scale: expected a number or a vector, got {type(value).__name__}")
    if isinstance(value, numbers.Real):
        try:
            a: Any = np.float64(value)
        except OverflowError:
            raise ValueError("scale: expected a finite number that fits float64") from None
    else:
        a = as_array(value, "scale", "a number or a vector")
        if a.dtype.kind not in "fiu":
            raise TypeError(f"scale: expected a number or a vector of numbers, got {a.dtype}")
    if np.ndim(a) > 1:
        raise ValueError(f"scale: expected a number or a vector, got shape {np.shape(a)}")
    a = np.array(a, dtype=np.float64)
    if not np.isfinite(a).all() or (a < 0).any():
        raise ValueError("scale: expected finite numbers from 0 up")
    if a.ndim == 0:
        return float(a)
    a.flags.writeable = False
    return a


def signed_scale(value: Any) -> float | np.ndarray:
    """As `real_scale`, of any sign."""
    if isinstance(value, numbers.Real):
        return real_scale(value) if value >= 0 else -real_scale(-value)
    a = as_array(value, "scale", "a number or a vector")
    if a.dtype.kind not in "fiu":
        raise TypeError(f"scale: expected a number or a vector of numbers, got {a.dtype}")
    a = np.array(a, dtype=np.float64)
    real_scale(np.abs(a))
    if a.ndim == 0:
        return float(a)
    a.flags.writeable = False
    return a
