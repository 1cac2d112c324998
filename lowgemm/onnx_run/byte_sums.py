"""Sums of columns of bytes, in vectors, which stay in registers over all rows.

A loop that adds each row to sums in memory loads and stores all of them for each row: the means of 56 x 56
pixels of 32 channels took 15 us so, and take 8.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.jit.memory import load_u8, offset, store_32
from lowgemm.jit.routine import inner, unpack_words
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i32,
    i64,
    load,
    shuffle,
    splat,
    store,
    vec,
)

#: Columns that are summed together, and of a vector of sums.
WIDE, LANES = 64, 16


def _emit(b: ir.IRBuilder, words: list[ir.Value], width: int) -> list[ir.Value]:
    """Vectors of int32 sums of `width` columns; `words` are (src, bytes from row to row, rows, flip)."""
    src, step, rows, flip = words
    sums, flips = vec(i32, LANES), splat(b, b.trunc(flip, i8), width)
    slots = [cgutils.alloca_once(b, sums) for _ in range(width // LANES)]
    for slot in slots:  # at each turn of a loop around this
        b.store(const(sums, 0), slot)
    with cgutils.for_range(b, rows) as loop:
        row = b.xor(load(b, vec(i8, width), at(b, src, b.mul(loop.index, step))), flips)
        for q, slot in enumerate(slots):
            part = shuffle(b, row, None, list(range(LANES * q, LANES * (q + 1))))
            b.store(b.add(b.load(slot), b.zext(part, sums)), slot)
    return [b.load(slot) for slot in slots]


def _columns(width: int) -> Any:
    def make(typingctx, args):
        """int32 sums of `width` columns of bytes, each with `flip` in it: (src, bytes from row to row, rows,
        flip, dst).
        """

        def codegen(context, b, signature, values):
            *words, dst = unpack_words(context, b, signature.args[0], values[0])
            for q, total in enumerate(_emit(b, words, width)):
                store(b, total, at(b, dst, 4 * LANES * q))
            return context.get_dummy_value()

        return types.void(args), codegen

    return intrinsic(make)


_wide, _narrow = _columns(WIDE), _columns(LANES)


@intrinsic
def _all(typingctx, args):
    """The sum of all of `WIDE` columns: (src, bytes from row to row, rows, flip)."""

    def codegen(context, b, signature, values):
        totals = _emit(b, unpack_words(context, b, signature.args[0], values[0]), WIDE)
        total = b.add(b.add(totals[0], totals[1]), b.add(totals[2], totals[3]))
        found = call_intrinsic(b, f"llvm.vector.reduce.add.v{LANES}i32", i32, [total])
        return b.sext(found, i64)

    return types.int64(args), codegen


@inner
def sum_columns(src, columns, step, rows, flip, dst):
    """int32 sums of `columns` columns of bytes, `step` bytes from row to row; what is in them with `flip` is
    unsigned. The last columns of many come twice, with the same sums.
    """
    done = 0
    while done + LANES <= columns:
        if done + WIDE <= columns:
            _wide((offset(src, done), step, rows, flip, offset(dst, 4 * done)))
            done += WIDE
        else:
            _narrow((offset(src, done), step, rows, flip, offset(dst, 4 * done)))
            done += LANES
    if done < columns and columns >= LANES:
        last = columns - LANES
        _narrow((offset(src, last), step, rows, flip, offset(dst, 4 * last)))
        done = columns
    for c in range(done, columns):
        total = 0
        for r in range(rows):
            total += load_u8(src, r * step + c) ^ flip
        store_32(dst, c, total)


@inner
def sum_run(src, count, flip):
    """The sum of `count` bytes that follow one another."""
    total, rows = 0, count // WIDE
    if rows:
        total += _all((src, WIDE, rows, flip))
    for i in range(rows * WIDE, count):
        total += load_u8(src, i) ^ flip
    return total
