"""Can an int32 sum pass 2**31 - 1? From dtypes and depth if that settles it, else from the data."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lowgemm.checks.values import INT32_MAX
from lowgemm.engine.packed_rhs import PackedRhs
from lowgemm.output.stages import BiasAddition

_LIMIT = INT32_MAX


def largest_distance(low: Any, high: Any, zero: Any) -> int:
    """Largest |x - zero| for x in [low, high]."""
    zero = np.asarray(zero, dtype=np.int64)
    reach = np.maximum(np.abs(low - zero), np.abs(high - zero))
    return int(reach.max()) if reach.size else 0


def leading_bias(stages: tuple[Any, ...]) -> np.ndarray | None:
    """Sum of the biases that a pipeline begins with: they are added to the int32 sums like
    another product.
    """
    total = None
    for stage in itertools.takewhile(lambda stage: isinstance(stage, BiasAddition), stages):
        bias = stage.bias.astype(np.int64)
        bias = bias[:, None] if stage.axis == 0 else bias[None, :]
        total = bias if total is None else total + bias
    return total


def _room(added: np.ndarray | None) -> np.ndarray:
    """How far each row's sums may go up and down from where they begin."""
    if added is None:
        return np.array([_LIMIT], dtype=np.int64)
    high, low = added.max(axis=-1).astype(np.int64), added.min(axis=-1).astype(np.int64)
    return np.minimum(_LIMIT - high, low + _LIMIT + 1)


def require_no_wrap(
    lhs: np.ndarray,
    rhs: np.ndarray | PackedRhs,
    lhs_zero: Any,
    rhs_zero: Any,
    added: np.ndarray | None = None,
) -> None:
    """Raise OverflowError unless every sum certainly fits int32; for results that have elements.

    Tried in order: the dtypes' ranges; the largest magnitudes present; the sum of magnitudes of each lhs row
    times the largest rhs magnitude. Each costs at most one pass over the data.

    `added` is what the sums begin with, of a shape that broadcasts with the result's (..., m, n): what `out`
    holds, or a bias.
    """
    depth = lhs.shape[-1]
    left, right = (np.iinfo(a.dtype) for a in (lhs, rhs))
    worst_left = largest_distance(left.min, left.max, lhs_zero)
    worst_right = largest_distance(right.min, right.max, rhs_zero)
    room = _room(added)
    least = int(room.min())
    if depth * worst_left * worst_right <= least:
        return
    real_left = real_right = 0
    if depth > 0:
        matrix = rhs.to_array() if isinstance(rhs, PackedRhs) else rhs
        real_right = largest_distance(int(matrix.min()), int(matrix.max()), rhs_zero)
        real_left = largest_distance(int(lhs.min()), int(lhs.max()), lhs_zero)
    if depth * real_left * real_right <= least:
        return
    zero = np.asarray(lhs_zero, dtype=np.int64)
    rows = np.abs(lhs.astype(np.int64) - (zero[:, None] if zero.ndim == 1 else zero)).sum(axis=-1)
    if (rows > room // max(real_right, 1)).any():
        also_added = "" if added is None else ", and what it is added to,"
        raise OverflowError(
            f"lhs, rhs: a sum over depth {depth}{also_added} may pass the int32 range (overflow='wrap' gives "
            "it modulo 2**32)"
        )
