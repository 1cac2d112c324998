"""How operands that are repeated lie against a chain's result: which rows it is gone through in, and where
each operand's numbers of a row are.

NumPy's rule says which axes an operand is repeated along. Axes that follow one another in memory for all
operands are counted as one. What is left at the end is a row: in it an operand is one number, or `period`
numbers over and over, or numbers each `period` times, or runs along beside the result. From row to row it
walks by steps of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: What an operand is in a row.
ONE, PERIOD, EACH, ALONG = (
    "one number", "some numbers, over and over", "numbers, each some times", "as many as the row",
)  # fmt: skip
#: Rows of fewer numbers become parts of longer ones, if that can be.
WIDE = 256
#: A row costs some 15 ns for each instruction. So many rows of so few numbers are left to another engine.
SHORT, MANY = 16, 4096


class Rows(NamedTuple):
    """Rows of a result.

    Attributes
    ----------
    outer : tuple of int
        Sizes of the axes that rows are counted by, the last the fastest.
    length, period : int
        Numbers of a row, and of those that are repeated in it, or how many times each is; 1 if none are.
    kinds : tuple of str
        What each operand is in a row.
    walks : tuple of tuple of int
        By how many numbers each operand moves on along each of the axes of `outer`.
    """

    outer: tuple[int, ...]
    length: int
    period: int
    kinds: tuple[str, ...]
    walks: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return math.prod(self.outer)


def steps_over(
    axes: Sequence[int], order: Sequence[int], shape: Sequence[int], steps: Sequence[int]
) -> tuple[int, ...] | None:
    """By how many numbers an operand moves on along each axis of a result.

    Parameters
    ----------
    axes : sequence of int
        Sizes of the result.
    order : sequence of int
        Its axes in the order of its memory.
    shape, steps : sequence of int
        Sizes of the operand, and how many numbers lie from one to the next.

    Returns
    -------
    tuple of int or None
        In the order of the memory; None if the operand has more axes than the result.
    """
    more = len(shape) - len(axes)
    if any(n != 1 for n in shape[: max(more, 0)]):
        return None
    moves = [0 if n == 1 else s for n, s in zip(shape, steps, strict=True)][max(more, 0) :]
    along = [0] * (len(axes) - len(moves)) + moves
    return tuple(along[a] for a in order)


def _kind(above: int, step: int, length: int) -> str | None:
    """What an operand is in a row that is made of two axes, by its steps along both, of which the second has
    `length` numbers; None if it is nothing of that.
    """
    if step:
        return {0: PERIOD, length: ALONG}.get(above)
    return {0: ONE, 1: EACH}.get(above)


def rows_of(sizes: Sequence[int], operands: Sequence[tuple[int, ...]]) -> Rows | None:
    """Rows of a result with these sizes, in the order of its memory, for operands that move on so (see
    `steps_over`); None if its operands lie in another way.
    """
    joined: list[tuple[int, tuple[int, ...]]] = []
    for i, n in enumerate(sizes):
        steps = tuple(o[i] for o in operands)
        if n == 1:
            continue
        if joined and all(a == n * s for a, s in zip(joined[-1][1], steps, strict=True)):
            joined[-1] = joined[-1][0] * n, steps
        else:
            joined.append((n, steps))
    *outer, (length, steps) = joined or [(1, (0,) * len(operands))]
    if any(s not in (0, 1) for s in steps):
        return None
    kinds, period = [ALONG if s else ONE for s in steps], 1
    if outer and length < WIDE:
        n, above = outer[-1]
        both = [_kind(a, s, length) for a, s in zip(above, steps, strict=True)]
        if None not in both:
            kinds = both
            period = length if PERIOD in kinds or EACH in kinds else 1
            length *= n
            outer.pop()
    found = Rows(
        tuple(n for n, _ in outer), length, period, tuple(kinds),
        tuple(tuple(steps[i] for _, steps in outer) for i in range(len(operands))),
    )  # fmt: skip
    return None if length < SHORT and found.count > MANY else found
