"""Checks of scales that are real numbers."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from lowgemm.checks.values import as_array


def signed_scale(value: Any, name: str = "scale") -> float | np.ndarray:
    """A number as a float, or a vector as a read-only float64 vector; finite, of any sign."""
    if isinstance(value, (bool, np.bool_, np.timedelta64)):
        raise TypeError(f"{name}: expected a number or a vector, got {type(value).__name__}")
    if isinstance(value, numbers.Real):
        try:
            a: Any = np.float64(value)
        except OverflowError:
            raise ValueError(f"{name}: expected a finite number that fits float64") from None
    else:
        a = as_array(value, name, "a number or a vector")
        if a.dtype.kind not in "fiu":
            raise TypeError(f"{name}: expected a number or a vector of numbers, got {a.dtype}")
    if np.ndim(a) > 1:
        raise ValueError(f"{name}: expected a number or a vector, got shape {np.shape(a)}")
    a = np.array(a, dtype=np.float64)
    if not np.isfinite(a).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    if a.ndim == 0:
        return float(a)
    a.flags.writeable = False
    return a


def real_scale(value: Any) -> float | np.ndarray:
    """As `signed_scale`, for a scale that is positive or zero."""
    scale = signed_scale(value)
    if (np.asarray(scale) < 0).any():
        raise ValueError("scale: expected numbers from 0 up")
    return scale
