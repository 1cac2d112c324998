"""Compiled passes over dense arrays for QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.

Parameters lie along one axis: elements are seen as (outer, channels, inner), one scale and one zero point a
channel; one for all is one channel, and the elements are cut into pieces of `PIECE` then. What the passes
compute is in `lowgemm.compat.onnx`, as NumPy operations.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import DTypeLike

from lowgemm.compat.onnx_quotient import LANES as VECTOR
from lowgemm.compat.onnx_quotient import is_quick, prepare, quantize_vectors
from lowgemm.engine.parts import PASS
from lowgemm.jit.memory import load_f32, load_i64, offset, pointer_at, round_even, stack, store_32, store_64
from lowgemm.jit.routine import inner, inner_dividing, routine, unpack_words
from lowgemm.kernels.framework.irtools import at, const, i32, load, store, vec

_u64 = np.uint64
#: Elements of a piece of a pass that treats all alike.
PIECE = 4096


@inner_dividing
def quantize_one(x, scale, zero, below, above):
    """A number's step, between the limits `below` and `above`, from which the zero point is taken away: they
    and the quotient are whole float32 numbers, so nothing is rounded twice.
    """
    t = round_even(x / scale)
    t = t if t > below else below  # a NaN too
    t = t if t < above else above
    return np.int32(t) + np.int32(zero)


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


@routine(PASS)
def quantize(args, first, end, worker):
    """float32 to integers of `item` bytes, 1 or 2, between `low` and `high`; `zeros` are int32.

    Arguments: src, dst, scales, zeros, channels, inner, size, low, high, item. Pieces are the outer indices.
    """
    channels, inner_size, size = load_i64(args, 4), load_i64(args, 5), load_i64(args, 6)
    low, high, item = load_i64(args, 7), load_i64(args, 8), load_i64(args, 9)
    src, dst = pointer_at(args, 0), pointer_at(args, 1)
    x, out16 = numba.carray(src, (size,), np.float32), numba.carray(dst, (size,), np.uint16)
    scale = numba.carray(pointer_at(args, 2), (channels,), np.float32)
    zero = numba.carray(pointer_at(args, 3), (channels,), np.int32)
    for o in range(first, end):
        for c in range(channels):
            begin = (o * channels + c) * inner_size
            count = min(inner_size, size - begin)
            if item == 1:
                quantize_bytes(
                    offset(src, 4 * begin), offset(dst, begin), count, scale[c], zero[c], low, high
                )
            else:
                quantize_all(x, out16, begin, count, scale[c], zero[c], low, high, np.int32(0xFFFF))


@inner
def _dequantize(x, out, begin, count, scale, zero):
    """`count` integers of the array `x` to float32 numbers of `out`, from index `begin` on."""
    b, point = _u64(begin), np.float32(zero)
    for i in range(_u64(count)):
        out[b + i] = (np.float32(x[b + i]) - point) * scale


@routine(PASS)
def dequantize(args, first, end, worker):
    """Integers to float32; `kind` 0, 1, 2 for uint8, int8, int32; `zeros` are int32.

    Arguments: src, dst, scales, zeros, channels, inner, size, kind. Pieces are the outer indices.
    """
    channels, inner_size, size = load_i64(args, 4), load_i64(args, 5), load_i64(args, 6)
    src, kind = pointer_at(args, 0), load_i64(args, 7)
    u8, s8 = numba.carray(src, (size,), np.uint8), numba.carray(src, (size,), np.int8)
    s32, out = numba.carray(src, (size,), np.int32), numba.carray(pointer_at(args, 1), (size,), np.float32)
    scale = numba.carray(pointer_at(args, 2), (channels,), np.float32)
    zero = numba.carray(pointer_at(args, 3), (channels,), np.int32)
    for o in range(first, end):
        for c in range(channels):
            begin = (o * channels + c) * inner_size
            count = min(inner_size, size - begin)
            if kind == 0:
                _dequantize(u8, out, begin, count, scale[c], zero[c])
            elif kind == 1:
                _dequantize(s8, out, begin, count, scale[c], zero[c])
            else:
                _dequantize(s32, out, begin, count, scale[c], zero[c])


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


def split(x: np.ndarray, count: int, axis: int) -> tuple[int, int, int] | None:
    """Outer indices, channels, and elements of each, of a dense array with `count` parameters along an axis;
    None if they are not so laid out.
    """
    if count == 1:
        return -(-x.size // PIECE), 1, PIECE
    if not x.flags.c_contiguous:
        return None
    inner = 1
    for n in x.shape[axis + 1 :]:
        inner *= n
    return x.size // max(1, count * inner), count, inner
