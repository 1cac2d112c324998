"""Can an int32 sum pass 2**31 - 1? From dtypes and depth if that settles it, else from the data."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.engine.packed import PackedRhs

_LIMIT = 2**31 - 1


def largest_distance(low: Any, high: Any, zero: Any) -> int:
    """Largest |x - zero| for x in [low, high]."""
    zero = np.asarray(zero, dtype=np.int64)
    reach = np.maximum(np.abs(low - zero), np.abs(high - zero))
    return int(reach.max()) if reach.size else 0


def require_no_wrap(lhs: np.ndarray, rhs: np.ndarray | PackedRhs, lhs_zero: Any, rhs_zero: Any) -> None:
    """Raise OverflowError unless every sum certainly fits int32.

    Tried in order: the dtypes' ranges; the largest magnitudes present; the sum of magnitudes of each lhs row
    times the largest rhs magnitude. Each costs at most one pass over the data.
    """
    depth = lhs.shape[-1]
    left, right = (np.iinfo(a.dtype) for a in (lhs, rhs))
    worst_left = largest_distance(left.min, left.max, lhs_zero)
    worst_right = largest_distance(right.min, right.max, rhs_zero)
    if depth * worst_left * worst_right <= _LIMIT or lhs.size == 0 or 0 in rhs.shape:
        return
    matrix = rhs.to_array() if isinstance(rhs, PackedRhs) else rhs
    real_right = largest_distance(int(matrix.min()), int(matrix.max()), rhs_zero)
    real_left = largest_distance(int(lhs.min()), int(lhs.max()), lhs_zero)
    if depth * real_left * real_right <= _LIMIT:
        return
    zero = np.asarray(lhs_zero, dtype=np.int64)
    rows = np.abs(lhs.astype(np.int64) - (zero[:, None] if zero.ndim else zero)).sum(axis=-1)
    if int(rows.max()) * real_right > _LIMIT:
        raise OverflowError(
            f"lhs, rhs: a sum over depth {depth} may pass the int32 range (overflow='wrap' gives it modulo 2**32)"
        )
