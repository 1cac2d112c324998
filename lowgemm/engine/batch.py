"""Where the matrices of a batch begin: byte offsets from the first of each stack, by the rules of NumPy's
broadcasting.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lowgemm.checks.shapes import Shape
from lowgemm.engine.records import ITEM_RHS


class Batch(NamedTuple):
    """Leading dimensions of one kind of call; hashable, as part of a plan's key.

    Attributes
    ----------
    shape : tuple of int
        What the leading dimensions broadcast to.
    lhs, rhs : pair of tuples of int
        Leading shape and byte strides of the operands; of a packed rhs, those of its panels.
    out : tuple of int
        Leading byte strides of the result, whose leading shape is `shape`.
    sums : int
        Bytes from one packed rhs's column sums to the next.
    """

    shape: Shape = ()
    lhs: tuple[Shape, Shape] = ((), ())
    rhs: tuple[Shape, Shape] = ((), ())
    out: Shape = ()
    sums: int = 0

    @property
    def count(self) -> int:
        """Number of batch items."""
        return math.prod(self.shape)

    @property
    def distinct_rhs(self) -> int:
        """Number of distinct rhs matrices: a stride of 0 repeats one."""
        return math.prod(self._distinct())

    def _distinct(self) -> Shape:
        return tuple(1 if stride == 0 else size for size, stride in zip(*self.rhs, strict=True))

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Two tables: the numbers ``records.ITEM_...`` of each batch item, and ``records.RHS_...`` of each
        distinct rhs.
        """
        distinct, strides = self._distinct(), self.rhs[1]
        numbers = np.arange(self.distinct_rhs, dtype=np.int64)
        rhs_of_item = np.broadcast_to(numbers.reshape(distinct), self.shape).ravel()
        items = [offsets(self.shape, *self.lhs), offsets(self.shape, self.shape, self.out), rhs_of_item]
        rhs = [offsets(distinct, distinct, strides), numbers * self.sums]
        return np.stack(items, axis=1), np.stack(rhs, axis=1)

    def layout(self) -> tuple[np.ndarray, bool]:
        """Both tables as they lie behind a plan, and whether items with one rhs follow one another."""
        items, rhs = self.tables()
        in_order = bool((np.diff(items[:, ITEM_RHS]) >= 0).all())
        return np.concatenate([items.ravel(), rhs.ravel()]), in_order


def offsets(shape: Shape, own: Shape, strides: Shape) -> np.ndarray:
    """Byte offset of each matrix of a stack of leading shape `own` broadcast to `shape`, flat, in C order."""
    total = np.zeros((), dtype=np.int64)
    lead = len(shape) - len(own)
    for axis, size in enumerate(shape):
        stride = strides[axis - lead] if axis >= lead and own[axis - lead] != 1 else 0
        total = total[..., None] + np.arange(size, dtype=np.int64) * stride
    return total.ravel()
