"""Where the matrices of a batch begin: byte offsets from the first of each stack, by the rules of NumPy's broadcasting."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lowgemm.checks.shapes import Shape


class Batch(NamedTuple):
    """Leading dimensions of one kind of product; hashable, as part of a plan's key.

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
        """Number of products."""
        return math.prod(self.shape)

    @property
    def slots(self) -> int:
        """Number of distinct rhs matrices: a stride of 0 repeats one."""
        return math.prod(self._distinct())

    def _distinct(self) -> Shape:
        return tuple(1 if step == 0 else size for size, step in zip(*self.rhs, strict=True))

    def table(self) -> tuple[np.ndarray, bool]:
        """The table of `records.PRODUCT` and `records.SLOT`, and whether products with one rhs follow one another."""
        distinct, steps = self._distinct(), self.rhs[1]
        slots = np.arange(self.slots, dtype=np.int64).reshape(distinct)
        slot_of = np.broadcast_to(slots, self.shape).ravel()
        products = [offsets(self.shape, *self.lhs), offsets(self.shape, self.shape, self.out), slot_of]
        rhs = [offsets(distinct, distinct, steps), np.arange(self.slots, dtype=np.int64) * self.sums]
        table = np.concatenate([np.stack(columns, axis=1).ravel() for columns in (products, rhs)])
        return table, bool((np.diff(slot_of) >= 0).all())


def offsets(shape: Shape, own: Shape, strides: Shape) -> np.ndarray:
    """Byte offset of each matrix of a stack of leading shape `own` broadcast to `shape`, flat, in C order."""
    total = np.zeros((), dtype=np.int64)
    lead = len(shape) - len(own)
    for axis, size in enumerate(shape):
        stride = strides[axis - lead] if axis >= lead and own[axis - lead] != 1 else 0
        total = total[..., None] + np.arange(size, dtype=np.int64) * stride
    return total.ravel()
