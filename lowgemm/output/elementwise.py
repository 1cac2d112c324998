"""The one tile loop of all stages that make a number out of a number.

A stage writes down what it does to one value, and what it needs to know for that:

    @elementwise(multiplier=per_channel(np.int32), offset=NUMBER)
    def scale(x, multiplier, offset):
        return x * multiplier + offset

The loop reads the fields, picks the values of the row or column, and calls the function for each element. All
of that is inlined, so that LLVM vectorises it as if it were written out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from lowgemm.jit.memory import load_i32, load_i64, offset, store_32
from lowgemm.jit.routine import inner
from lowgemm.output.parameters import NUMBER, channel_fields, described, picker, reader
from lowgemm.output.tile_routine import Step, TileRoutine

#: The head of the record of every elementwise routine. The channel of an element is
#: ``row * row_step + col * col_step``. Once `stopped` is not 0, nothing more is done.
HEAD = {"row_step": NUMBER, "col_step": NUMBER, "stopped": NUMBER}
ROW_STEP, COL_STEP, STOPPED = range(len(HEAD))


def tile_loop(read: Any, pick: Any, make: Any, by_channel: bool) -> Any:
    """The loop, to be compiled as a routine on tiles.

    Parameters
    ----------
    read : callable
        Compiled ``read(params) -> given``, called once per tile.
    pick : callable
        Compiled ``pick(given, channel) -> values``, called once for all that has the same channel.
    make : callable
        Compiled ``make(x, row, col, values) -> (go_on, y)``, called for each element. It is the last call
        where `go_on` is false.
    by_channel : bool
        Whether the values differ by channel.
    """

    def loop(
        tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out,
        row_stride, col_stride,
    ):  # fmt: skip
        if load_i64(params, STOPPED) != 0:
            return
        row_step, col_step = load_i64(params, ROW_STEP), load_i64(params, COL_STEP)
        given = read(params)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            channel = (row + r) * row_step + col * col_step
            if by_channel and col_step != 0:
                for c in range(cols):
                    go_on, y = make(load_i32(line, c), row + r, col + c, pick(given, channel + c))
                    if not go_on:
                        return
                    store_32(line, c, y)
            else:
                values = pick(given, channel)
                for c in range(cols):
                    go_on, y = make(load_i32(line, c), row + r, col + c, values)
                    if not go_on:
                        return
                    store_32(line, c, y)

    return loop


def _always(function: Any) -> Any:
    """What `tile_loop` calls, of a function that never fails and wants no row and column."""

    @inner
    def make(x, row, col, values):
        """What `tile_loop` calls: goes on always."""
        return True, function(x, *values)

    return make


class Elementwise(TileRoutine):
    """A routine on tiles that is made of a function of one value.

    Parameters
    ----------
    function : callable
        ``function(x, *fields) -> y`` on int64; the low 32 bits of y are kept.
    fields : dict
        Names and kinds of what it needs to know; see `parameters.py`.
    """

    def __init__(self, function: Callable[..., Any], fields: dict[str, np.dtype]) -> None:
        description = described(**HEAD, **fields)
        first, channels = len(HEAD), channel_fields(description)
        read, pick = reader(description, first), picker(description, first)
        made = _always(numba.njit(nogil=True)(function))
        super().__init__(tile_loop(read, pick, made, bool(channels)), description)
        functools.update_wrapper(self, function)
        self._channels = channels

    def step(self, axis: int = 1, **values: Any) -> Step:
        """The routine with these values, of which vectors have one for each row (`axis` 0) or column (1)."""
        differs = any(isinstance(values[name], np.ndarray) and values[name].ndim for name in self._channels)
        if differs and len(self._channels) > 1:
            each = np.broadcast_arrays(*(values[name] for name in self._channels))
            values.update(zip(self._channels, each, strict=True))
        row_step, col_step = int(differs and axis == 0), int(differs and axis == 1)
        return super().step(row_step=row_step, col_step=col_step, stopped=0, **values)


def elementwise(**fields: np.dtype) -> Callable[[Callable[..., Any]], Elementwise]:
    """Declare a routine that puts each element of a tile through a function.

    Examples
    --------
    >>> @elementwise(low=NUMBER)
    ... def at_least(x, low):
    ...     return max(x, low)
    >>> at_least.step(low=3).record.tolist()
    [(0, 0, 0, 3)]
    """
    return lambda function: Elementwise(function, fields)
