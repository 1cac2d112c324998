"""Elements from one place to another, compiled: along any axes, with any strides.

A source may step backwards, or not at all, in which case an element is repeated. So one pass does what Slice,
Concat, Pad and Expand need. Where neighbours at the destination are apart at the source, and the other way
round, as in a transposed copy, squares of elements are turned over in registers. `take_rows` is for rows
whose places are only known when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import (
    copy_bytes,
    load_i32,
    load_i64,
    load_u8,
    offset,
    pointer_at,
    stack,
    store_8,
    store_64,
    store_f32,
)
from lowgemm.jit.routine import inner, routine
from lowgemm.onnx_run.turned import BLOCK, block_of_bytes, block_of_words

#: Bytes of an element.
WIDTHS = (1, 2, 4, 8)
#: Axes beside the innermost at most, after those that lie one behind the other are counted as one.
AXES = 9
#: Nanoseconds of a byte that is copied in a row, of an element by itself, of one in a square that is turned
#: over, and of a row.
BYTE, ELEMENT, TURNED, ROW = 0.05, 0.4, 0.1, 4.0
_STACK = 8 * AXES


@inner
def _move(to, source, count):
    """Copy `count` bytes."""
    if count >= 64:
        for i in range(count // 64):
            copy_bytes(offset(to, 64 * i), offset(source, 64 * i), 64)
        copy_bytes(offset(to, count - 64), offset(source, count - 64), 64)
        return
    whole = count // 8
    for i in range(whole):
        copy_bytes(offset(to, 8 * i), offset(source, 8 * i), 8)
    for i in range(8 * whole, count):
        store_8(to, i, load_u8(source, i))


@inner
def _row(to, source, width, count, to_step, step):
    """Copy `count` elements of `width` bytes, which lie `step` bytes apart at `source` and `to_step` bytes at
    `to`.
    """
    if step == width and to_step == width:
        _move(to, source, width * count)
    elif width == 1:
        for i in range(count):
            copy_bytes(offset(to, i * to_step), offset(source, i * step), 1)
    elif width == 2:
        for i in range(count):
            copy_bytes(offset(to, i * to_step), offset(source, i * step), 2)
    elif width == 4:
        for i in range(count):
            copy_bytes(offset(to, i * to_step), offset(source, i * step), 4)
    else:
        for i in range(count):
            copy_bytes(offset(to, i * to_step), offset(source, i * step), 8)


#: Numbers of the arguments of `copy`; then for each axis but the innermost, the innermost of them first: how
#: many, and bytes from one to the next of the source and of the destination.
SRC, DST, WIDTH, COUNT, SRC_STEP, DST_STEP, MORE, ALONG = range(8)


@routine(PASS)
def copy(args, first, end, worker):
    """Copy elements; pieces are rows along the innermost axis."""
    axes, index = load_i64(args, MORE), stack(_STACK)
    source, to, left = pointer_at(args, SRC), pointer_at(args, DST), first
    for a in range(axes):
        n = load_i64(args, ALONG + 3 * a)
        i = left % n
        left = left // n
        store_64(index, a, i)
        source = offset(source, i * load_i64(args, ALONG + 3 * a + 1))
        to = offset(to, i * load_i64(args, ALONG + 3 * a + 2))
    width, count = load_i64(args, WIDTH), load_i64(args, COUNT)
    step, to_step = load_i64(args, SRC_STEP), load_i64(args, DST_STEP)
    for _ in range(first, end):
        _row(to, source, width, count, to_step, step)
        for a in range(axes):
            n, along, to_along = (
                load_i64(args, ALONG + 3 * a), load_i64(args, ALONG + 3 * a + 1), load_i64(args, ALONG + 3 * a + 2)
            )  # fmt: skip
            i = load_i64(index, a) + 1
            if i < n:
                store_64(index, a, i)
                source, to = offset(source, along), offset(to, to_along)
                break
            store_64(index, a, 0)
            source, to = offset(source, (1 - n) * along), offset(to, (1 - n) * to_along)


#: Numbers of the arguments of `turn`; then the other axes, as in `copy`. `COUNT` elements lie side by side at
#: the destination and `SRC_STEP` bytes apart at the source; `ACROSS` others the other way round, `TO_ACROSS`
#: bytes apart at the destination.
ACROSS, TO_ACROSS, TURN_MORE, TURN_ALONG = range(5, 9)


@routine(PASS)
def turn(args, first, end, worker):
    """Copy elements of a byte or of four, square by square; pieces are `BLOCK` of the elements across, for
    each index of the other axes.
    """
    width, count, step = load_i64(args, WIDTH), load_i64(args, COUNT), load_i64(args, SRC_STEP)
    across, to_across = load_i64(args, ACROSS), load_i64(args, TO_ACROSS)
    blocks = (across + BLOCK - 1) // BLOCK
    for piece in range(first, end):
        # the last square begins so early that it is whole, and copies some elements again
        begin, left = min(piece % blocks * BLOCK, across - BLOCK), piece // blocks
        source = offset(pointer_at(args, SRC), begin * width)
        to = offset(pointer_at(args, DST), begin * to_across)
        for a in range(load_i64(args, TURN_MORE)):
            n = load_i64(args, TURN_ALONG + 3 * a)
            source = offset(source, left % n * load_i64(args, TURN_ALONG + 3 * a + 1))
            to = offset(to, left % n * load_i64(args, TURN_ALONG + 3 * a + 2))
            left = left // n
        for k in range(0, count, BLOCK):
            i = min(k, count - BLOCK)
            square = offset(source, i * step), step, offset(to, i * width), to_across, source, 0
            if width == 1:
                block_of_bytes(square)
            else:
                block_of_words(square)


@routine(PASS)
def take_rows(args, first, end, worker):
    """Rows of tables, by indices; negative ones count from the end.

    Arguments: tables, indices, bytes of an index (4 or 8), how many there are, rows of a table, bytes of a
    row, dst, and where NaN is put if an index lies beyond its table. Pieces are indices, all of them for each
    table.
    """
    indices, wide, count, rows, size = (
        pointer_at(args, 1), load_i64(args, 2), load_i64(args, 3), load_i64(args, 4), load_i64(args, 5)
    )  # fmt: skip
    for piece in range(first, end):
        table, i = piece // count, piece % count
        row = load_i64(indices, i) if wide == 8 else np.int64(load_i32(indices, i))
        row = row + rows if row < 0 else row
        if row < 0 or row >= rows:
            store_f32(pointer_at(args, 7), 0, np.float32(np.nan))
        else:
            source = offset(pointer_at(args, 0), (table * rows + row) * size)
            _move(offset(pointer_at(args, 6), piece * size), source, size)


def _joined(sizes: Sequence[int], steps: Sequence[Sequence[int]]) -> list[list[int]]:
    """Axes as [size, steps ...], the innermost first, those of one element left out and those that lie one
    behind the other in all arrays as one.
    """
    found: list[list[int]] = []
    # by how far apart the destination's elements are, so that it is written in its order
    for n, *by in sorted(zip(sizes, *steps, strict=True), key=lambda axis: abs(axis[-1])):
        if n == 1:
            continue
        if found and all(s == found[-1][0] * before for s, before in zip(by, found[-1][1:], strict=True)):
            found[-1][0] *= n
        else:
            found.append([n, *by])
    return found


def takes(y: np.ndarray, x: np.ndarray) -> bool:
    """Whether `run_copy` can copy `x` to `y`, of the same shape, or one that is repeated."""
    if y.itemsize not in WIDTHS or not y.size:
        return False
    return len(_joined(y.shape, (np.broadcast_to(x, y.shape).strides, y.strides))) <= AXES + 1


def run_copy(
    y: np.ndarray, x: np.ndarray, at: Callable[[np.ndarray], Any], run: Any, num_threads: Any
) -> None:
    """Copy `x` to `y`; `at` says where an array lies, and `run` runs a pass (`tape.ways`)."""
    steps, width = (np.broadcast_to(x, y.shape).strides, y.strides), y.itemsize
    (count, step, to_step), *more = _joined(y.shape, steps) or [[1, width, width]]
    args = [at(x), at(y), width, count, step]
    across = _across(width, more) if step != width == to_step and count >= BLOCK else None
    if across is not None:
        n, _, to_across = more.pop(across)
        args += [n, to_across, len(more), *(i for axis in more for i in axis)]
        pieces = -(-n // BLOCK) * math.prod(axis[0] for axis in more)
        run_shared(turn, args, pieces, TURNED * y.size, num_threads, run)
        return
    in_a_row = step == to_step == width
    if not in_a_row and count < BLOCK and more:  # a row takes as long as ten elements
        axes = [[count, step, to_step], *more]
        long = (
            i for i, axis in enumerate(axes) if axis[0] >= BLOCK
        )  # the first is written nearest to its order
        count, step, to_step = axes.pop(next(long, max(range(len(axes)), key=lambda i: axes[i][0])))
        more = axes
        args[3:] = count, step
    args += [to_step, len(more), *(n for axis in more for n in axis)]
    rows = math.prod(axis[0] for axis in more)
    time = rows * ROW + (BYTE * y.nbytes if in_a_row else ELEMENT * y.size)
    run_shared(copy, args, rows, time, num_threads, run)


def _across(width: int, axes: Sequence[Sequence[int]]) -> int | None:
    """Which axis has elements side by side at the source, so many that they can be turned over in squares."""
    if width not in (1, 4):
        return None
    fits = (i for i, (n, step, _) in enumerate(axes) if step == width and n >= BLOCK)
    return next(fits, None)
