"""The common last stage in vector IR: scale, offset, clamp and store of 8 or 16 bits in one pass.

The arithmetic of the two scales, in fixed point and in float32, is in `kernels/framework/requant.py`; kernels
with 512-bit registers use it on their accumulators directly, and then these routines only see the edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.jit.routine import unpack_words
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i8, i32, i64, load, splat, store, vec
from lowgemm.kernels.framework.requant import FIXED_POINT, SCALES, constants_at
from lowgemm.output.parameters import ADDRESS, NUMBER, described
from lowgemm.output.tile_routine import Step, TileRoutine

#: Columns handled at a time.
WIDTH = 16


def _of_row(b: ir.IRBuilder, scaling: Any, params: ir.Value, row: ir.Value) -> list[ir.Value]:
    """Emit: the constants of a row, in every lane."""
    pointers = [load(b, i8.as_pointer(), at(b, params, 8 * i), 8) for i in range(scaling.vectors)]
    numbers = [load(b, i64, at(b, params, 8 * (scaling.vectors + i)), 8) for i in range(3)]
    place = b.mul(row, const(i64, 4))
    return scaling.constants(
        b, [splat(b, load(b, i32, at(b, p, place), 4), WIDTH) for p in pointers], *numbers
    )


def _emit(scaling: Any, bits: int, by_row: bool, b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    """Emit: for every 16 columns, for every row: load, scale, clamp, store."""
    size = bits // 8
    vector = vec(i32, WIDTH)
    steps = b.sdiv(b.add(a["cols"], const(i64, WIDTH - 1)), const(i64, WIDTH))
    with cgutils.for_range(b, steps) as loop:
        col = b.mul(loop.index, const(i64, WIDTH))
        left = b.sub(a["cols"], col)
        whole = b.icmp_signed(">=", left, const(i64, WIDTH))
        constants = [] if by_row else constants_at(b, scaling, a["params"], b.add(a["col"], col), WIDTH)
        lanes = ir.Constant(vec(i64, WIDTH), list(range(WIDTH)))
        mask = b.icmp_signed("<", lanes, splat(b, left, WIDTH))
        with cgutils.for_range(b, a["rows"]) as row_loop:
            row = row_loop.index
            if by_row:
                constants = _of_row(b, scaling, a["params"], b.add(a["row"], row))
            place = b.mul(b.add(b.mul(row, a["ld"]), col), const(i64, 4))
            x = load(b, vector, at(b, a["tile"], place), 4)
            result = scaling.result(b, x, constants, bits)
            target = at(b, a["out"], b.add(b.mul(row, a["row_stride"]), b.mul(col, const(i64, size))))
            with b.if_else(whole, likely=True) as (full, edge):
                with full:
                    store(b, result, target, size)
                with edge:
                    name = f"llvm.masked.store.v{WIDTH}i{bits}.p0"
                    pointer = b.bitcast(target, result.type.as_pointer())
                    call_intrinsic(b, name, ir.VoidType(), [result, pointer, const(i32, size), mask])


NAMES = ("tile", "ld", "rows", "cols", "row", "col", "params", "out", "row_stride")


@intrinsic(prefer_literal=True)
def requantize_rows(typingctx, scale, bits, by_row, args):
    """Body of the routine; `args` as in `NAMES`, the number of the scale, `bits` and `by_row` constants."""
    scaling, width, rows = SCALES[scale.literal_value], bits.literal_value, bool(by_row.literal_value)

    def codegen(context, builder, signature, values):
        a = dict(zip(NAMES, unpack_words(context, builder, signature.args[3], values[3]), strict=True))
        _emit(scaling, width, rows, builder, a)
        return context.get_dummy_value()

    return types.void(scale, bits, by_row, args), codegen


#: Multipliers from 0 up and right shifts from 1 up, one per row or column and `WIDTH` more, because the last
#: vector may read too far. Then the offset and the bounds. Kernels that scale and store by themselves read
#: this too (`kernels/framework/deferred.py`).
SCALE_AND_STORE = described(multiplier=ADDRESS, right=ADDRESS, offset=NUMBER, low=NUMBER, high=NUMBER)
#: The same for a scale in float32, whose vector is float32 and whose offset is the zero point.
FLOAT_SCALE_AND_STORE = described(scale=ADDRESS, offset=NUMBER, low=NUMBER, high=NUMBER)


def _make(scale: int, bits: int, by_row: int) -> TileRoutine:
    def scale_and_store(
        tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out,
        row_stride, col_stride,
    ):  # fmt: skip
        requantize_rows(scale, bits, by_row, (tile, ld, rows, cols, row, col, params, out, row_stride))

    fixed = SCALES[scale] is FIXED_POINT
    name = "requantize_store" if fixed else "float_requantize_store"
    scale_and_store.__name__ = f"{name}{bits}{'_by_row' if by_row else ''}"
    return TileRoutine(scale_and_store, SCALE_AND_STORE if fixed else FLOAT_SCALE_AND_STORE)


#: Scale, offset, clamp and store to contiguous rows: by number of the scale, bits, and whether the scales are
#: those of rows.
ROUTINES = {
    (scale, bits, by_row): _make(scale, bits, int(by_row))
    for scale in range(len(SCALES))
    for bits in (8, 16)
    for by_row in (False, True)
}
#: Names of those that a kernel can do itself, and the numbers of their scales.
FUSED = {ROUTINES[scale, 8, False].__name__: scale for scale in range(len(SCALES))}


def _padded(values: Any, length: int, dtype: Any) -> np.ndarray:
    """One value for each of `length` rows or columns, and `WIDTH` more."""
    padded = np.full(length + WIDTH, values.flat[0], dtype)
    padded[:length] = values
    return padded


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
        multiplier, right = (_padded(v, length, np.int32) for v in (self.multiplier, self.right))
        return ROUTINES[0, bits, self.by_row].step(
            multiplier=multiplier, right=right, offset=self.offset, low=low, high=high
        )


class FloatOnePass(NamedTuple):
    """A scale in float32 that can be put together with the store.

    Attributes
    ----------
    scale : ndarray of float32
        Of no dimension, or one value for each row or column.
    offset, low, high : int
        Zero point, and bounds of its own.
    by_row : bool
        Whether the values are those of rows.
    """

    scale: np.ndarray
    offset: int
    low: int
    high: int
    by_row: bool

    def step(self, bits: int, low: int, high: int, size: tuple[int, int]) -> Step:
        """Scale, clamp to both pairs of bounds and store `bits`, for a result of this size."""
        low, high = (min(max(bound, low), high) for bound in (self.low, self.high))
        scale = _padded(self.scale, size[0] if self.by_row else size[1], np.float32)
        return ROUTINES[1, bits, self.by_row].step(scale=scale, offset=self.offset, low=low, high=high)


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
