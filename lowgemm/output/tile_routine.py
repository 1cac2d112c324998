"""What happens to a finished tile: a C routine of one signature, and the record of its parameters.

Every routine has the arguments

    tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out, row_stride, col_stride

* `tile`: pointer to `rows` x `cols` int32, whose rows are `ld` elements apart. Its corner is element (`row`,
  `col`) of the result.
* `params`: pointer to the record of its parameters.
* `sums`, `factors`, `lhs_zeros`, `rhs_zeros`: pointers to int32 for these rows or columns, which only
  `bilinear.py` reads. They are the sums of the lhs rows, the factors of the columns, and the zero points of
  the rows and of the columns.
* `out`: pointer to the corner in the result, whose rows and columns are `row_stride` and `col_stride` bytes
  apart.

All routines but the last rewrite the tile in place; the last stores it to `out`. The tile is in L1, so a
pipeline is fused into the tile loop without being compiled as one function: any list of standard stages runs
on what `warmup` has compiled.

Next file to open: `elementwise.py`, the loop of nearly all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.routine import Routine, signature
from lowgemm.output.parameters import Filler

SIGNATURE = signature("pnnnnnppppppnn")


@dataclass(frozen=True, eq=False)
class Step(NotCopied):
    """A routine with its parameters: what runs on each tile.

    Attributes
    ----------
    routine : Routine
        What runs; it has an `address` and a ``__name__``.
    record : ndarray
        Its parameters, of one element.
    keep : tuple
        What lives as long: arrays whose addresses the record holds.
    may_fail : Stage or None
        The stage, if its routine notes failures in the record: then no two calls share one.
    """

    instead: ClassVar[str] = "make it again from its stage"

    routine: Any
    record: np.ndarray
    keep: tuple[Any, ...] = ()
    may_fail: Any = None

    @property
    def name(self) -> str:
        """Name of the routine."""
        return self.routine.__name__


class TileRoutine(Routine):
    """A routine on tiles that knows how its parameters are described.

    Parameters
    ----------
    function : callable
        Of the arguments above, to be compiled.
    description : dtype
        Of its parameters; see `parameters.py`.
    """

    def __init__(self, function: Callable[..., Any], description: np.dtype) -> None:
        super().__init__(function, SIGNATURE)
        self.description, self._fill = description, Filler(description)

    def step(self, **values: Any) -> Step:
        """The routine with these values for its parameters."""
        return Step(self, *self._fill(values))


def tile_routine(description: np.dtype) -> Callable[[Callable[..., Any]], TileRoutine]:
    """Declare a routine on tiles that reads parameters of this description."""
    return lambda function: TileRoutine(function, description)
