"""Rows of data of a MatMulNBits as int8: three digits of every number, or a code of every number with a scale
for each block.

A whole number of 24 bits, with its sign, is 65,536 times the first digit, 256 times the second, and the
third. With `accuracy_level` 4 each block of a row becomes codes with a scale of its own, as in onnxruntime.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from lowgemm.engine import parts
from lowgemm.jit.memory import load_i64, pointer_at, round_even, store_f32
from lowgemm.jit.routine import inner, inner_dividing, routine
from lowgemm.onnx_run.addresses import address

#: Largest whole number that a row is scaled to: its first digit is 127 at most.
WHOLE = 127 * 65536
#: Largest number of a block up to which its codes are 0, and of a row up to which its digits are: what they
#: are multiplied by would be infinite, or the scale have fewer bits.
SMALL, SMALL_ROW = 1e-36, 1e-31
_u64 = np.uint64
_f32 = np.float32


def codes_by_definition(rows: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Each block of a row as int8, and the scale of each: what `accuracy_level` 4 does to the data.

    It is multiplied by 127 over its largest, as in onnxruntime, which is not the inverse of the scale to the
    last bit.
    """
    codes, scales = np.empty(rows.shape, np.int8), []
    for begin in range(0, rows.shape[1], block):
        part = rows[:, begin : begin + block]
        largest = np.abs(part).max(axis=1, keepdims=True)
        inverse = np.where(largest > _f32(SMALL), _f32(127) / np.maximum(largest, _f32(SMALL)), _f32(0))
        codes[:, begin : begin + block] = np.rint(part * inverse)
        scales.append(largest / _f32(127))
    return codes, np.concatenate(scales, axis=1)


def digits_by_definition(rows: np.ndarray, _: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three digits of every number, as three times as many rows, and the scale of each of these rows."""
    largest = np.abs(rows).max(axis=1, initial=0)
    scale = largest / _f32(WHOLE)
    factor = np.where(largest > _f32(SMALL_ROW), _f32(WHOLE) / np.maximum(largest, _f32(SMALL_ROW)), _f32(0))
    whole = np.clip(np.rint(rows * factor[:, None]), -WHOLE, WHOLE).astype(np.int32)
    low = ((whole + 128) & 255) - 128
    rest = (whole - low) >> 8
    middle = ((rest + 128) & 255) - 128
    high = (rest - middle) >> 8
    digits = np.concatenate([high, middle, low]).astype(np.int8)
    return digits, np.concatenate([scale * _f32(65536), scale * _f32(256), scale])


@inner_dividing
def _scale(top, whole):
    """Of whole numbers up to `whole` for numbers up to `top`."""
    return top / whole


@inner_dividing
def _factor(top, whole, least):
    """What to multiply such numbers with; 0 if `top` is not above `least`."""
    return whole / top if top > least else np.float32(0)


@inner
def _largest(x, begin, count):
    """The largest size of `count` numbers; and a NaN if a number is none, or infinite, else 0."""
    top, bad, b = np.float32(0), np.float32(0), _u64(begin)
    for k in range(_u64(count)):
        top = max(top, abs(x[b + k]))
        bad += x[b + k] * np.float32(0)
    return top, bad


@inner
def _coded(x, begin, y, count, inverse):
    """`count` numbers times `inverse`, rounded to int8."""
    b = _u64(begin)
    for k in range(_u64(count)):
        y[b + k] = np.int8(np.int32(round_even(x[b + k] * inverse)))


@inner
def _digits(x, high, middle, low, to, step, count, factor, limit):
    """`count` numbers times `factor`, rounded and held within `limit`, as three digits to the base 256: the
    bytes `high`, `middle` and `low` of a place lie `step` apart.
    """
    p, q, r = _u64(to), _u64(to + step), _u64(to + 2 * step)
    for k in range(_u64(count)):
        v = round_even(x[p + k] * factor)
        whole = np.int32(min(max(v, -limit), limit))
        last = ((whole + np.int32(128)) & np.int32(255)) - np.int32(128)
        rest = (whole - last) >> np.int32(8)
        second = ((rest + np.int32(128)) & np.int32(255)) - np.int32(128)
        high[p + k] = np.int8((rest - second) >> np.int32(8))
        middle[q + k] = np.int8(second)
        low[r + k] = np.int8(last)


@routine(parts.PASS)
def code_rows(args, first, end, worker):
    """`codes_by_definition`.

    Arguments: rows, codes, scales, a float32 that becomes NaN if a number is infinite or none, else 0; how
    many rows, depth, depth of a block. One piece.
    """
    count, depth, block = load_i64(args, 4), load_i64(args, 5), load_i64(args, 6)
    x = numba.carray(pointer_at(args, 0), (count * depth,), np.float32)
    codes = numba.carray(pointer_at(args, 1), (count * depth,), np.int8)
    blocks = (depth + block - 1) // block
    s = numba.carray(pointer_at(args, 2), (count * blocks,), np.float32)
    found = np.float32(0)
    for r in range(count):
        for i in range(blocks):
            begin, size = r * depth + i * block, min(block, depth - i * block)
            top, bad = _largest(x, begin, size)
            found += bad
            if bad == np.float32(0):
                s[r * blocks + i] = _scale(top, np.float32(127))
                _coded(x, begin, codes, size, _factor(top, np.float32(127), np.float32(SMALL)))
    store_f32(pointer_at(args, 3), 0, found)


@routine(parts.PASS)
def split_rows(args, first, end, worker):
    """`digits_by_definition`. Arguments and pieces as those of `code_rows`; the depth of a block is not
    used.
    """
    count, depth, limit = load_i64(args, 4), load_i64(args, 5), np.float32(WHOLE)
    x = numba.carray(pointer_at(args, 0), (count * depth,), np.float32)
    digits = numba.carray(pointer_at(args, 1), (3 * count * depth,), np.int8)
    s = numba.carray(pointer_at(args, 2), (3 * count,), np.float32)
    found = np.float32(0)
    for r in range(count):
        begin = r * depth
        top, bad = _largest(x, begin, depth)
        found += bad
        if bad == np.float32(0):
            scale = _scale(top, limit)
            s[r], s[count + r], s[2 * count + r] = scale * np.float32(65536), scale * np.float32(256), scale
            factor = _factor(top, limit, np.float32(SMALL_ROW))
            _digits(x, digits, digits, digits, begin, count * depth, depth, factor, limit)
    store_f32(pointer_at(args, 3), 0, found)


def _prepared(
    rows: np.ndarray, definition: Any, work: Any, shapes: Any, block: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """What `work` makes of rows, int8 and float32 arrays of these shapes, or its definition; None if a number
    is infinite or NaN.
    """
    if numba.config.DISABLE_JIT:
        return definition(rows, block) if np.isfinite(rows).all() else None
    rows, finite = np.ascontiguousarray(rows), np.empty(1, _f32)
    codes, scales = np.empty(shapes[0], np.int8), np.empty(shapes[1], _f32)
    parts.run(work, [*(address(v) for v in (rows, codes, scales, finite)), *rows.shape, block], 1)
    return None if np.isnan(finite[0]) else (codes, scales)


def codes_of(rows: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray] | None:
    """int8 codes of rows, and the scales of their blocks; None if a number is infinite or NaN."""
    count, depth = rows.shape
    return _prepared(
        rows, codes_by_definition, code_rows, ((count, depth), (count, -(-depth // block))), block
    )


def digits_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Digits of rows and their scales; None if a number is infinite or NaN."""
    count, depth = rows.shape
    return _prepared(rows, digits_by_definition, split_rows, ((3 * count, depth), (3 * count,)), depth)
