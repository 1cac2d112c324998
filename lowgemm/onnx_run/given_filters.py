"""Filters of a convolution that come with the data, for a recorder.

What depends on shapes alone is found once: the plan, and where each filter's value goes. A run brings the
filters into the order in which a product reads them, channels last, and the product packs them. A loop for
depthwise or grouped filters reads them less their zero point in an order of its own, with their sums
(`engine/loop_plan.py`): a table says for each place which value comes there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowgemm.engine.loop_plan import LoopShape, arranged
from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_i32, load_i64, load_u8, offset, pointer_at, store_8, store_32
from lowgemm.jit.routine import inner, routine
from lowgemm.onnx_run.tape import Recorder, zero_point_of
from lowgemm.onnx_run.turned import brought_last

#: Places of a piece, and nanoseconds that a place and a summed byte take.
PIECE, PLACE, SUMMED = 512, 0.8, 0.3


@inner
def _value(filters, number, signed):
    """A byte as a number."""
    value = np.int64(load_u8(filters, number))
    return value - ((value & 128) << 1) if signed != 0 else value


@routine(PASS)
def arrange(args, first, end, worker):
    """Filters less their zero point, in the order of a table, and zeros between them.

    Arguments: filters, whether they are signed, the zero point (two of `tape.zero_point_of`), the table
    (int32: a value's number from 1 on, or 0), places, dst, bytes of a place (1 or 2). Pieces are `PIECE`
    places.
    """
    filters, table, dst = pointer_at(args, 0), pointer_at(args, 4), pointer_at(args, 6)
    signed, zero, wide = load_i64(args, 1), zero_point_of(args, 2), load_i64(args, 7)
    for i in range(first * PIECE, min(end * PIECE, load_i64(args, 5))):
        number = np.int64(load_i32(table, i))
        value = 0
        if number != 0:
            value = _value(filters, number - 1, signed) - zero
        if wide == 1:
            store_8(dst, i, value)
        else:
            store_8(dst, 2 * i, value)
            store_8(dst, 2 * i + 1, value >> 8)


@routine(PASS)
def sum_rows(args, first, end, worker):
    """The sum of each row of bytes, less a zero point each.

    Arguments: rows, whether they are signed, the zero point as in `arrange`, bytes of a row, dst (int32).
    Pieces are rows.
    """
    count, signed, zero = load_i64(args, 4), load_i64(args, 1), zero_point_of(args, 2)
    for row in range(first, end):
        at, total = offset(pointer_at(args, 0), row * count), np.int64(0)
        for i in range(count):
            total += _value(at, i, signed)
        store_32(pointer_at(args, 5), row, total - count * zero)


def _table(shape: tuple[int, ...], groups: int, loop: LoopShape) -> np.ndarray:
    """Of filters in ONNX's shape: for each place of a loop's weights the value's number from 1 on, or 0."""
    numbers = np.arange(1, math.prod(shape) + 1, dtype=np.int32).reshape(shape)
    return arranged(numbers.transpose(*range(2, len(shape)), 1, 0), groups, loop.bits, np.int32).reshape(-1)


def arranged_filters(
    recorder: Recorder, w: np.ndarray, groups: int, loop: LoopShape, zero: Any, num_threads: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """Take down what makes the weights and sums of a loop from filters in ONNX's order, with a zero point or
    an array that stands for one; None if it is no such.
    """
    point = recorder.point(zero, w)
    if point is None:
        return None
    w = w if w.flags.c_contiguous else recorder.copied(w)
    table, rows, signed = _table(w.shape, groups, loop), w.shape[0], int(w.dtype == np.int8)
    made, sums = np.empty(table.size, np.int8 if loop.bits else np.int16), np.empty(rows, np.int32)
    recorder.keep(made, sums)
    args = recorder.at(w), signed, *point, recorder.held(table), table.size, recorder.at(made), made.itemsize
    run_shared(arrange, args, -(-table.size // PIECE), PLACE * table.size, num_threads, recorder.run)
    point = recorder.point(zero, w)  # where it lies is asked for each pass
    args = recorder.at(w), signed, *point, w.size // rows, recorder.at(sums)
    run_shared(sum_rows, args, rows, SUMMED * w.size, num_threads, recorder.run)
    return made, sums


def filters_last(recorder: Recorder, w: np.ndarray, num_threads: Any) -> np.ndarray:
    """Filters with their channels last in memory, outputs first: a product's columns one after the other."""
    if w.transpose(0, *range(2, w.ndim), 1).flags.c_contiguous:
        return w
    if w.shape[1] == 1 or math.prod(w.shape[2:]) == 1:
        return w if w.flags.c_contiguous else recorder.copied(w)
    return brought_last(w if w.flags.c_contiguous else recorder.copied(w), num_threads, recorder)
