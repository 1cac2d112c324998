"""ReduceMean over the last axis, of float32 numbers that lowgemm made: what a normalization begins with.

The order of the sum is onnxruntime's on x86: eight sums of every eighth number, the first four and the last
four put together, then four more numbers if as many are left, then ``(0 + 2) + (1 + 3)``. Its vectors begin
where memory is aligned to four numbers, as the first row is; so up to three numbers at the beginning of a row
are added one by one behind that, then those at the end. So the result has onnxruntime's bits, and no other
engine has to be called in the middle of a recording.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np

from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_f32, load_i64, offset, pointer_at, store_f32
from lowgemm.jit.routine import inner, inner_dividing, routine
from lowgemm.onnx_run.engines import attributes_of
from lowgemm.onnx_run.tape import Recorder, ways

#: Numbers of a vector.
LANES = 4


@inner_dividing
def mean_of(total, count):
    """A sum divided by a count, both float32."""
    return total / count


@inner
def _pairs(x, whole):
    """The sum of `whole` numbers at `x`, a multiple of `LANES` and not 0."""
    a, b, c, d = load_f32(x, 0), load_f32(x, 1), load_f32(x, 2), load_f32(x, 3)
    if whole > LANES:
        e, f, g, h = load_f32(x, 4), load_f32(x, 5), load_f32(x, 6), load_f32(x, 7)
        for i in range(1, whole // (2 * LANES)):
            y = offset(x, 8 * LANES * i)
            a, b, c, d = a + load_f32(y, 0), b + load_f32(y, 1), c + load_f32(y, 2), d + load_f32(y, 3)
            e, f, g, h = e + load_f32(y, 4), f + load_f32(y, 5), g + load_f32(y, 6), h + load_f32(y, 7)
        a, b, c, d = a + e, b + f, c + g, d + h
        if whole % (2 * LANES):
            y = offset(x, 4 * (whole - LANES))
            a, b, c, d = a + load_f32(y, 0), b + load_f32(y, 1), c + load_f32(y, 2), d + load_f32(y, 3)
    return (a + c) + (b + d)


@inner
def _total(x, count, before):
    """The sum of `count` numbers, whose vectors begin `before` numbers behind `x`."""
    whole = (count - before) // LANES * LANES
    if whole <= 0:
        total = load_f32(x, 0)
        for i in range(1, count):
            total += load_f32(x, i)
        return total
    total = _pairs(offset(x, 4 * before), whole)
    for i in range(before):
        total += load_f32(x, i)
    for i in range(before + whole, count):
        total += load_f32(x, i)
    return total


@routine(PASS)
def row_means(args, first, end, worker):
    """Means of rows of `count` numbers. Arguments: src, dst, count. Pieces are rows."""
    src, dst, count = pointer_at(args, 0), pointer_at(args, 1), load_i64(args, 2)
    for row in range(first, end):
        before = (LANES - row * count % LANES) % LANES
        total = _total(offset(src, 4 * row * count), count, before)
        store_f32(dst, row, mean_of(total, np.float32(count)))


def by_definition(x: np.ndarray) -> np.ndarray:
    """The means, in the order of the sums that the module describes."""
    count = x.shape[-1]
    rows = x.reshape(math.prod(x.shape[:-1]), count)
    found = np.zeros(len(rows), np.float32)
    for first in range(min(LANES, len(rows))):  # rows whose vectors begin at the same place
        some, before = rows[first::LANES], -first * count % LANES
        vectors = some[:, before : before + max(count - before, 0) // LANES * LANES]
        singles = [*some[:, :before].T, *some[:, before + vectors.shape[1] :].T]
        if vectors.shape[1]:
            parts = np.split(vectors, vectors.shape[1] // LANES, axis=1)
            sums, left = parts[:2], parts[2:]
            while len(left) > 1:
                sums, left = [sums[0] + left[0], sums[1] + left[1]], left[2:]
            for part in (*sums[1:], *left):
                sums[0] = sums[0] + part
            total = (sums[0][:, 0] + sums[0][:, 2]) + (sums[0][:, 1] + sums[0][:, 3])
        else:
            total = singles.pop(0) if singles else found[first::LANES]
        for number in singles:
            total = total + number
        found[first::LANES] = total
    return (found / np.float32(count)).reshape(*x.shape[:-1], 1)


def compiled(x: np.ndarray, num_threads: int | None = 1, recorder: Recorder | None = None) -> Any:
    """`by_definition`; NotImplemented if it is not for this."""
    if recorder is not None:
        x = recorder.in_order(x)
    if numba.config.DISABLE_JIT or not x.size or x.dtype != np.float32 or not x.flags.c_contiguous:
        return NotImplemented
    y = np.empty((*x.shape[:-1], 1), np.float32)
    at, _, run = ways(recorder)
    run_shared(row_means, (at(x), at(y), x.shape[-1]), y.size, 0.2 * x.size, num_threads, run)
    return y


def is_row_mean(node: Any, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether a node is a ReduceMean over the last axis, which stays as an axis of 1."""
    if node.op_type != "ReduceMean" or node.domain:
        return False
    numbers, given = attributes_of(node), list(node.input[1:])
    axes = constants.get(given[0]) if given and given[0] else numbers.get("axes")
    return numbers.get("keepdims", 1) == 1 and axes is not None and np.array_equal(np.ravel(axes), [-1])
