"""Compiled passes over dense arrays for QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.

There is one scale and zero point for all, for each index of an axis, or for each block of it: `Layout` says
which is whose. One for all is cut into pieces of `PIECE` elements. What the passes
compute is in `lowgemm.compat.onnx`, as NumPy operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import DTypeLike

from lowgemm.compat.onnx_quotient import LANES as VECTOR
from lowgemm.compat.onnx_quotient import is_quick, prepare, quantize_vectors
from lowgemm.engine.parts import PASS
from lowgemm.jit.memory import (
    load_f32,
    load_i32,
    load_i64,
    nearest,
    offset,
    pointer_at,
    round_even,
    stack,
    store_32,
    store_64,
)
from lowgemm.jit.routine import inner, inner_dividing, routine, unpack_words
from lowgemm.kernels.framework.irtools import at, const, i32, load, store, vec

_u64 = np.uint64
#: Elements of a piece of a pass that treats all alike.
PIECE = 4096
#: Blocks of fewer elements are not gone through one by one: for so many elements at a time the parameters are
#: repeated, a set for each.
SHORT, REPEATED = 16, 256
_SET = 4 * REPEATED
_BOTH = 2 * _SET


@inner
def quantize_scaled(t, zero, below, above):
    """`quantize_one` of a number `t` that is divided already."""
    t = t if t > below else below  # a NaN too
    t = t if t < above else above
    return nearest(t) + np.int32(zero)


@inner_dividing
def quantize_one(x, scale, zero, below, above):
    """A number's step, between the limits `below` and `above`, from which the zero point is taken away: they
    are whole float32 numbers below 2**17, so it does not matter that they come before the rounding.
    """
    return quantize_scaled(x / scale, zero, below, above)


@inner_dividing
def quantize_all(x, out, begin, count, scale, zero, low, high, limit):
    """`quantize_one` of `count` numbers from `begin` on; `limit` keeps the low bits of an integer."""
    b = _u64(begin)
    below, above = np.float32(low - zero), np.float32(high - zero)
    for i in range(_u64(count)):
        out[b + i] = quantize_one(x[b + i], scale, zero, below, above) & limit


@inner
def quantize_bytes(src, dst, count, scale, zero, low, high):
    """`quantize_one` of `count` numbers to bytes; pointers."""
    done, below, above = 0, np.float32(low - zero), np.float32(high - zero)
    if is_quick(scale):
        parameters, vectors = stack(64), count // VECTOR
        prepare(parameters, scale, below, above)
        quantize_vectors((src, dst, parameters, zero, vectors))
        done = VECTOR * vectors
    x, out = numba.carray(src, (count,), np.float32), numba.carray(dst, (count,), np.uint8)
    quantize_all(x, out, done, count - done, scale, zero, low, high, np.int32(0xFF))


@inner
def _quantize_each(x, out, count, scale, zero, low, high, limit):
    """`quantize_one` of numbers with a scale and a zero point each."""
    for i in range(_u64(count)):
        below, above = np.float32(low - zero[i]), np.float32(high - zero[i])
        out[i] = quantize_one(x[i], scale[i], zero[i], below, above) & limit


@inner
def _row(args, o, r):
    """Of row `r` of outer index `o` of `Layout`: the first element, how many, and the number of its first
    parameter.
    """
    inner_size, whole, block = load_i64(args, 5), load_i64(args, 6), load_i64(args, 9)
    if block > 1:  # no division where there need be none
        at = r // block * load_i64(args, 8)
    else:
        at = r * load_i64(args, 8)
    return o * whole + r * inner_size, min(inner_size, whole - r * inner_size), at + o * load_i64(args, 7)


@inner
def _repeat(params, to, count, block):
    """Each of the 32-bit numbers `params` `block` times, for `count` elements."""
    given, made = numba.carray(params, (count,), np.int32), numba.carray(to, (count,), np.int32)
    whole = count // block
    for b in range(whole):
        for i in range(block):
            made[_u64(b * block + i)] = given[_u64(b)]
    for i in range(whole * block, count):
        made[_u64(i)] = given[_u64(whole)]


@inner
def _parameters(args, number, count, space):
    """Where the scales and the zero points of a row's elements are, from parameter `number` on; repeated for
    each element at `space` where they are those of short blocks.
    """
    scales, zeros = offset(pointer_at(args, 2), 4 * number), offset(pointer_at(args, 3), 4 * number)
    each = load_i64(args, 10)
    if each > 1:
        _repeat(scales, space, count, each)
        _repeat(zeros, offset(space, _SET), count, each)
        scales, zeros = space, offset(space, _SET)
    return scales, zeros


@routine(PASS)
def quantize(args, first, end, worker):
    """float32 to integers of `item` bytes, 1 or 2, between `low` and `high`; `zeros` are int32.

    Arguments: src, dst, scales, zeros, what `Layout` has but for `outer`, low, high, item. Pieces are rows of
    the layout.
    """
    each, low, high, item = load_i64(args, 10), load_i64(args, 11), load_i64(args, 12), load_i64(args, 13)
    space, rows = stack(_BOTH), load_i64(args, 4)
    o, r = first // rows, first % rows
    for _ in range(first, end):
        begin, count, number = _row(args, o, r)
        src, dst = offset(pointer_at(args, 0), 4 * begin), offset(pointer_at(args, 1), item * begin)
        scales, zeros = _parameters(args, number, count, space)
        x = numba.carray(src, (count,), np.float32)
        out8, out16 = numba.carray(dst, (count,), np.uint8), numba.carray(dst, (count,), np.uint16)
        if each != 0:
            scale, zero = numba.carray(scales, (count,), np.float32), numba.carray(zeros, (count,), np.int32)
            if item == 1:
                _quantize_each(x, out8, count, scale, zero, low, high, np.int32(0xFF))
            else:
                _quantize_each(x, out16, count, scale, zero, low, high, np.int32(0xFFFF))
        elif item == 1:
            quantize_bytes(src, dst, count, load_f32(scales, 0), np.int32(load_i32(zeros, 0)), low, high)
        else:
            one, zero = load_f32(scales, 0), np.int32(load_i32(zeros, 0))
            quantize_all(x, out16, 0, count, one, zero, low, high, np.int32(0xFFFF))
        r += 1
        if r == rows:
            o, r = o + 1, 0


@inner
def _dequantize(x, out, count, scales, zeros, each):
    """`count` integers to float32 numbers, with one scale and zero point, or one `each`."""
    if each != 0:
        scale, zero = numba.carray(scales, (count,), np.float32), numba.carray(zeros, (count,), np.int32)
        for i in range(_u64(count)):
            out[i] = (np.float32(x[i]) - np.float32(zero[i])) * scale[i]
    else:
        one, point = load_f32(scales, 0), np.float32(np.int32(load_i32(zeros, 0)))
        for i in range(_u64(count)):
            out[i] = (np.float32(x[i]) - point) * one


@routine(PASS)
def dequantize(args, first, end, worker):
    """Integers to float32; `kind` is the place of their type in `KINDS`; `zeros` are int32.

    Arguments: src, dst, scales, zeros, what `Layout` has but for `outer`, kind. Pieces are rows of the layout.
    """
    each, kind = load_i64(args, 10), load_i64(args, 11)
    width = 1 if kind < 2 else 4 if kind == 2 else 2
    space, rows = stack(_BOTH), load_i64(args, 4)
    o, r = first // rows, first % rows
    for _ in range(first, end):
        begin, count, number = _row(args, o, r)
        src = offset(pointer_at(args, 0), width * begin)
        out = numba.carray(offset(pointer_at(args, 1), 4 * begin), (count,), np.float32)
        scales, zeros = _parameters(args, number, count, space)
        if kind == 0:
            _dequantize(numba.carray(src, (count,), np.uint8), out, count, scales, zeros, each)
        elif kind == 1:
            _dequantize(numba.carray(src, (count,), np.int8), out, count, scales, zeros, each)
        elif kind == 2:
            _dequantize(numba.carray(src, (count,), np.int32), out, count, scales, zeros, each)
        elif kind == 3:
            _dequantize(numba.carray(src, (count,), np.uint16), out, count, scales, zeros, each)
        else:
            _dequantize(numba.carray(src, (count,), np.int16), out, count, scales, zeros, each)
        r += 1
        if r == rows:
            o, r = o + 1, 0


#: Types that `dequantize` takes.
KINDS = tuple(np.dtype(t) for t in (np.uint8, np.int8, np.int32, np.uint16, np.int16))


#: Smallest and largest are looked for in so many places at once.
LANES = 64


def _noted(lanes: int, nan: bool = True) -> Any:
    """An intrinsic: (ends, numbers) with `lanes` float32 numbers, as int32 keys in their order; without `nan`
    NaN counts as 0.
    """
    ty = vec(i32, lanes)

    def make(typingctx, args):
        def codegen(context, b, signature, values):
            ends, numbers = unpack_words(context, b, signature.args[0], values[0])
            x = load(b, ty, numbers)
            sign = b.ashr(x, const(ty, 31))
            key = b.xor(x, b.and_(sign, const(ty, 0x7FFFFFFF)))
            if not nan:
                size = b.and_(x, const(ty, 0x7FFFFFFF))
                key = b.select(b.icmp_signed(">", size, const(ty, 0x7F800000)), const(ty, 0), key)
            for place, order in ((0, "<"), (4 * LANES, ">")):
                kept = load(b, ty, at(b, ends, place))
                store(b, b.select(b.icmp_signed(order, key, kept), key, kept), at(b, ends, place))
            return context.get_dummy_value()

        return types.void(args), codegen

    return intrinsic(make)


_note, _note_few, _note_one = (_noted(lanes) for lanes in (LANES, 16, 1))
_note_numbers, _note_number = (_noted(lanes, nan=False) for lanes in (LANES, 1))


@inner
def note_range(ends, x, count):
    """Note the smallest and the largest of `count` float32 numbers in `ends`: int32 keys, `LANES` smallest
    and as many largest.

    A key is in the order of the numbers; NaNs lie beyond the infinities. Zeros in `ends` are the key of 0,
    which the range includes.
    """
    many, few = count // LANES, count // 16
    for i in range(many):
        _note((ends, offset(x, 4 * LANES * i)))
    for i in range(many * (LANES // 16), few):
        _note_few((ends, offset(x, 64 * i)))
    for i in range(16 * few, count):
        _note_one((ends, offset(x, 4 * i)))


@inner
def range_of(ends):
    """The keys of the smallest and of the largest that were noted."""
    e = numba.carray(ends, (2 * LANES,), np.int32)
    low, high = e[0], e[LANES]
    for i in range(1, LANES):
        low, high = min(low, e[i]), max(high, e[LANES + i])
    return low, high


@inner
def extremes_of(x, count):
    """The keys of the smallest and the largest number and of 0."""
    ends = stack(8 * 64)
    for i in range(LANES):
        store_64(ends, i, 0)
    note_range(ends, x, count)
    return range_of(ends)


@routine("ppn")
def extremes(src, dst, count):
    """Smallest and largest float32, as int32 keys in the same order as the numbers; NaNs lie beyond the
    infinities.
    """
    low, high = extremes_of(src, count)
    store_32(dst, 0, low)
    store_32(dst, 1, high)


@inner
def range_of_numbers(x, count):
    """Smallest and largest of `count` float32 numbers and 0, NaN left out; NaN if there is nothing else."""
    ends = stack(8 * 64)
    for i in range(LANES):
        store_64(ends, i, 0)
    whole = count // LANES
    for i in range(whole):
        _note_numbers((ends, offset(x, 4 * LANES * i)))
    for i in range(LANES * whole, count):
        _note_number((ends, offset(x, 4 * i)))
    low, high = range_of(ends)
    store_32(ends, 0, low ^ ((low >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    store_32(ends, 1, high)
    if low != 0 or high != 0:
        return load_f32(ends, 0), load_f32(ends, 1)
    for i in range(count):
        if load_f32(x, i) == load_f32(x, i):
            return np.float32(0), np.float32(0)
    return np.float32(np.nan), np.float32(np.nan)


#: Smallest scale. A smaller float32 is subnormal and has fewer bits.
SMALLEST = float(np.finfo(np.float32).tiny)


@inner_dividing
def scale_of(low, high):
    """DynamicQuantizeLinear's scale and zero point of a range."""
    if not (np.isfinite(low) and np.isfinite(high)):  # steps of infinity; of NaN where there is nothing else
        scale = np.float32(np.inf) if low == low else low
        return scale, np.int32(0) if low > np.float32(-np.inf) else np.int32(255)
    scale = (high - low) / np.float32(255) if high != low else np.float32(1)
    if not np.isfinite(scale) or scale < np.float32(SMALLEST):
        # a range that float32 cannot hold, or steps too small for it
        scale = np.float32(max((np.float64(high) - np.float64(low)) / 255.0, SMALLEST))
    point = min(max(np.float32(0) - low / scale, np.float32(0)), np.float32(255))
    return scale, np.int32(round_even(point))


def empty_like(x: np.ndarray, dtype: DTypeLike) -> np.ndarray | None:
    """An array of the same memory order, or None if `x` has gaps or overlaps."""
    if x.flags.c_contiguous:
        return np.empty(x.shape, dtype)
    out = np.empty_like(x, dtype)  # in the order of x's axes in memory
    item = out.itemsize
    return (
        out
        if x.size
        and all(
            s * item == o * x.itemsize
            for s, o, n in zip(x.strides, out.strides, x.shape, strict=True)
            if n > 1
        )
        else None
    )


class Layout(NamedTuple):
    """How elements in C order lie in rows, and which scale and zero point is whose.

    There are `outer` times `rows` rows of `inner` elements. `whole` is the number of elements of an outer
    index, so the last row of it may be shorter. The first parameter of a row is number ``o * by_outer + r //
    block * by_row``; it is for the whole row, or for the first `each` elements, and those behind it for the
    next.
    """

    outer: int
    rows: int
    inner: int
    whole: int
    by_outer: int = 0
    by_row: int = 0
    block: int = 1
    each: int = 0


def layout(shape: Sequence[int], count: int, axis: int, block_size: int = 0) -> Layout:
    """That of an array with `count` parameters: one, one for each index of an axis, or for each block of it."""
    if count == 1 and not block_size:
        size = math.prod(shape)
        return Layout(1, -(-size // PIECE), PIECE, size)
    outer, n, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    if not block_size:
        return Layout(outer, 1, n, n, each=1) if inner == 1 else Layout(outer, n, inner, n * inner, 0, 1)
    blocks = -(-n // block_size)
    if inner == 1:
        if n % block_size == 0:  # blocks follow one another all the way
            outer, n, blocks = 1, outer * n, outer * blocks
        if block_size >= SHORT:
            return Layout(outer, blocks, block_size, n, blocks, 1)
        some = REPEATED // block_size
        return Layout(outer, -(-blocks // some), some * block_size, n, blocks, some, each=block_size)
    return Layout(outer, n, inner, n * inner, blocks * inner, inner, block_size, 1)
