"""The common last stage in vector IR: fixed-point scale, offset, clamp and store of 8 or 16 bits in one pass.

The arithmetic is in `kernels/framework/requant.py`; kernels with 512-bit registers use it on their
accumulators directly, and then this routine only sees the edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.jit.memory import offset
from lowgemm.jit.routine import unpack_words
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i32, i64, load, splat, store, vec
from lowgemm.kernels.framework.requant import requantize_constants, requantized
from lowgemm.output.parameters import ADDRESS, NUMBER, described, reader
from lowgemm.output.tile_routine import Step, TileRoutine

#: Columns handled at a time.
WIDTH = 16


def _emit(bits: int, by_row: bool, b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    """Emit: for every 16 columns, for every row: load, scale, clamp, store."""
    bounds = {name: splat(b, b.trunc(a[name], i32), WIDTH) for name in ("lo", "hi")}
    size = bits // 8
    vector = vec(i32, WIDTH)
    steps = b.sdiv(b.add(a["cols"], const(i64, WIDTH - 1)), const(i64, WIDTH))
    with cgutils.for_range(b, steps) as loop:
        col = b.mul(loop.index, const(i64, WIDTH))
        left = b.sub(a["cols"], col)
        whole = b.icmp_signed(">=", left, const(i64, WIDTH))
        if not by_row:
            byte = b.mul(col, const(i64, 4))
            m = load(b, vector, at(b, a["multipliers"], byte), 4)
            constants = requantize_constants(b, m, load(b, vector, at(b, a["rights"], byte), 4), a["after"])
        lanes = ir.Constant(vec(i64, WIDTH), list(range(WIDTH)))
        mask = b.icmp_signed("<", lanes, splat(b, left, WIDTH))
        with cgutils.for_range(b, a["rows"]) as row_loop:
            row = row_loop.index
            if by_row:
                byte = b.mul(row, const(i64, 4))
                m = splat(b, load(b, i32, at(b, a["multipliers"], byte), 4), WIDTH)
                constants = requantize_constants(
                    b, m, splat(b, load(b, i32, at(b, a["rights"], byte), 4), WIDTH), a["after"]
                )
            place = b.mul(b.add(b.mul(row, a["ld"]), col), const(i64, 4))
            x = load(b, vector, at(b, a["tile"], place), 4)
            result = requantized(b, x, constants, bounds["lo"], bounds["hi"], bits)
            target = at(b, a["out"], b.add(b.mul(row, a["row_stride"]), b.mul(col, const(i64, size))))
            with b.if_else(whole, likely=True) as (full, edge):
                with full:
                    store(b, result, target, size)
                with edge:
                    name = f"llvm.masked.store.v{WIDTH}i{bits}.p0"
                    pointer = b.bitcast(target, result.type.as_pointer())
                    call_intrinsic(b, name, ir.VoidType(), [result, pointer, const(i32, size), mask])


NAMES = ("tile", "ld", "rows", "cols", "multipliers", "rights", "after", "lo", "hi", "out", "row_stride")


@intrinsic(prefer_literal=True)
def requantize_rows(typingctx, bits, by_row, args):
    """Body of the routine; `args` as in `NAMES`, `bits` and `by_row` constants."""
    width, rows = bits.literal_value, bool(by_row.literal_value)

    def codegen(context, builder, signature, values):
        a = dict(zip(NAMES, unpack_words(context, builder, signature.args[2], values[2]), strict=True))
        _emit(width, rows, builder, a)
        return context.get_dummy_value()

    return types.void(bits, by_row, args), codegen


#: Multipliers from 0 up and right shifts from 1 up, one per row or column and `WIDTH` more, because the last
#: vector may read too far. Then the offset and the bounds. Kernels that scale and store by themselves read
#: this too (`kernels/framework/deferred.py`).
SCALE_AND_STORE = described(multiplier=ADDRESS, right=ADDRESS, offset=NUMBER, low=NUMBER, high=NUMBER)
_read = reader(SCALE_AND_STORE)


def _make(bits: int, by_row: int) -> TileRoutine:
    def scale_and_store(
        tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out,
        row_stride, col_stride,
    ):  # fmt: skip
        multiplier, right, after, low, high = _read(params)
        first = 4 * (row if by_row else col)
        args = (
            tile, ld, rows, cols, offset(multiplier, first), offset(right, first), after, low, high, out, row_stride,
        )  # fmt: skip
        requantize_rows(bits, by_row, args)

    scale_and_store.__name__ = f"requantize_store{bits}{'_by_row' if by_row else ''}"
    return TileRoutine(scale_and_store, SCALE_AND_STORE)


#: Scale, offset, clamp and store to contiguous rows: by bits, and whether the scales are those of rows.
ROUTINES = {(bits, by_row): _make(bits, int(by_row)) for bits in (8, 16) for by_row in (False, True)}


class OnePass(NamedTuple):
    """A scale that can be put together with the store.

    Attributes
    ----------
    multiplier, right : ndarray
        Of no dimension, or one value for each row or column.
    offset : int
        Added after the scale.
    by_row : bool
        Whether the values are those of rows.
    """

    multiplier: np.ndarray
    right: np.ndarray
    offset: int
    by_row: bool

    def step(self, bits: int, low: int, high: int, size: tuple[int, int]) -> Step:
        """Scale, clamp to the bounds and store `bits`, for a result of this size."""
        length = size[0] if self.by_row else size[1]
        padded = [np.full(length + WIDTH, v.flat[0], np.int32) for v in (self.multiplier, self.right)]
        for to, v in zip(padded, (self.multiplier, self.right), strict=True):
            to[:length] = v
        return ROUTINES[bits, self.by_row].step(
            multiplier=padded[0], right=padded[1], offset=self.offset, low=low, high=high
        )


def one_pass(multiplier: Any, exponent: Any, after: int, axis: int = 1) -> OnePass | None:
    """The scale ``multiplier * 2**(exponent - 31)`` and an offset, if this file can do them, else None."""
    multiplier, exponent = np.asarray(multiplier), np.asarray(exponent)
    if multiplier.ndim != exponent.ndim:
        multiplier, exponent = np.broadcast_arrays(multiplier, exponent)
    if multiplier.size == 0 or int(multiplier.min()) < 0 or int(exponent.max()) > -1:
        return None
    if abs(after) >= 2 ** (30 + int(exponent.min())):
        return None  # the offset would not fit the 64-bit sum
    return OnePass(multiplier, -exponent, after, axis == 0 and multiplier.ndim == 1)
