"""Compiled passes that bring channels last, or second, while they scale: what stands between lowgemm's
convolutions and float nodes.

Convolutions want an image's channels last in memory, `(images, pixels, channels)`, and float nodes want them
second. A pass that changes the numbers reads and writes every element anyway; here it also turns blocks of
them over, in registers. What a pass computes is what `lowgemm.compat.onnx_passes` computes, and NumPy's
`moveaxis` says where.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.compat.onnx_passes import quantize_one
from lowgemm.jit.memory import offset
from lowgemm.jit.routine import inner, routine, unpack_words
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i32,
    load,
    shuffle,
    splat,
    store,
    vec,
)

_u64 = np.uint64
_f32 = ir.FloatType()
#: Channels and pixels of a block: 16 bytes are a row of one, a vector of 8 floats a row of the other.
BYTES, WORDS = 16, 8


def _turn(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Columns of a square of elements, one row a vector: halves are interleaved log2(rows) times."""
    half = len(rows) // 2
    for _ in range(half.bit_length()):
        turned = []
        for x, y in zip(rows[:half], rows[half:], strict=True):
            for first in (0, half):
                turned.append(
                    shuffle(b, x, y, [i for j in range(half) for i in (first + j, 2 * half + first + j)])
                )
        rows = turned
    return rows


def _block(emit: Any, names: str) -> Any:
    """An intrinsic of a tuple of words and pointers, which `emit` gets by name."""

    def make(typingctx, args):
        def codegen(context, builder, signature, values):
            words = unpack_words(context, builder, signature.args[0], values[0])
            emit(builder, dict(zip(names.split(), words, strict=True)))
            return context.get_dummy_value()

        return types.void(args), codegen

    return intrinsic(make)


def _rows(b: ir.IRBuilder, a: dict[str, ir.Value], ty: ir.Type, count: int) -> list[ir.Value]:
    step = a["step"]
    return [load(b, ty, at(b, a["src"], b.mul(step, const(step.type, i)))) for i in range(count)]


def _put(b: ir.IRBuilder, a: dict[str, ir.Value], rows: list[ir.Value]) -> None:
    to = a["to_step"]
    for i, row in enumerate(rows):
        store(b, row, at(b, a["dst"], b.mul(to, const(to.type, i))))


def _emit_scaled(b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    ints, floats = vec(i32, WORDS), vec(_f32, WORDS)
    whole, scale, more = (
        load(b, t, a[n]) for t, n in ((ints, "ints"), (floats, "scales"), (floats, "floats"))
    )
    rows = [b.sitofp(b.add(x, whole), floats) for x in _rows(b, a, ints, WORDS)]
    _put(b, a, _turn(b, [b.fadd(b.fmul(x, scale), more) for x in rows]))


def _emit_quantized(b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    floats = vec(_f32, BYTES)
    scale, below, above = (
        splat(b, load(b, _f32, at(b, a["real"], const(a["step"].type, 4 * i))), BYTES) for i in range(3)
    )
    zero = splat(b, b.trunc(a["zero"], i32), BYTES)
    rows = []
    for x in _rows(b, a, floats, BYTES):
        t = call_intrinsic(b, f"llvm.roundeven.v{BYTES}f32", floats, [b.fdiv(x, scale)])
        t = b.select(b.fcmp_ordered(">", t, below), t, below)  # a NaN too
        t = b.select(b.fcmp_ordered("<", t, above), t, above)
        rows.append(b.trunc(b.add(b.fptosi(t, vec(i32, BYTES)), zero), vec(i8, BYTES)))
    _put(b, a, _turn(b, rows))


def _emit_dequantized(b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    floats, ints = vec(_f32, BYTES), vec(i32, BYTES)
    scale, point = (
        splat(b, load(b, _f32, at(b, a["real"], const(a["step"].type, 4 * i))), BYTES) for i in range(2)
    )
    flip = splat(b, b.trunc(a["flip"], i32), BYTES)
    rows = _turn(b, _rows(b, a, vec(i8, BYTES), BYTES))
    real = [b.sitofp(b.sub(b.xor(b.zext(x, ints), flip), flip), floats) for x in rows]
    _put(b, a, [b.fmul(b.fsub(x, point), scale) for x in real])


def _emit_moved(b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    _put(b, a, _turn(b, _rows(b, a, vec(i8, BYTES), BYTES)))


#: A block each: `step` and `to_step` are bytes from one row to the next, before and after.
_scaled_block = _block(_emit_scaled, "src step dst to_step ints scales floats")
_quantized_block = _block(_emit_quantized, "src step dst to_step real zero")
_dequantized_block = _block(_emit_dequantized, "src step dst to_step real flip")
_moved_block = _block(_emit_moved, "src step dst to_step")


@routine("pppppnnn")
def scaled_second(src, dst, ints, scales, floats, images, pixels, channels):
    """int32 sums of (images, pixels, channels) to float32 of (images, channels, pixels).

    ``float(sum + ints[c]) * scales[c] + floats[c]``, rounded after the product too.
    """
    size = images * pixels * channels
    x, y = numba.carray(src, (size,), np.int32), numba.carray(dst, (size,), np.float32)
    whole = numba.carray(ints, (channels,), np.int32)
    scale, more = numba.carray(scales, (channels,), np.float32), numba.carray(floats, (channels,), np.float32)
    blocks = pixels >= WORDS and channels >= WORDS
    for n in range(images):
        begin = n * pixels * channels
        if blocks:
            # the last block of a row begins so early that it is whole, and computes some elements again
            for p in range(0, pixels, WORDS):
                i = min(p, pixels - WORDS)
                for k in range(0, channels, WORDS):
                    c = min(k, channels - WORDS)
                    _scaled_block(
                        (
                            offset(src, 4 * (begin + i * channels + c)), 4 * channels,
                            offset(dst, 4 * (begin + c * pixels + i)), 4 * pixels,
                            offset(ints, 4 * c), offset(scales, 4 * c), offset(floats, 4 * c),
                        )
                    )  # fmt: skip
        else:
            for c in range(channels):
                to = begin + c * pixels
                for i in range(pixels):
                    t = np.float32(x[begin + i * channels + c] + whole[c]) * scale[c]
                    y[to + i] = t + more[c]


@routine("pppppnn")
def scaled_rows(src, dst, ints, scales, floats, rows, columns):
    """The same for (rows, columns) that stay where they are; `dst` may be `src`."""
    size = rows * columns
    x, y = numba.carray(src, (size,), np.int32), numba.carray(dst, (size,), np.float32)
    whole = numba.carray(ints, (columns,), np.int32)
    scale, more = numba.carray(scales, (columns,), np.float32), numba.carray(floats, (columns,), np.float32)
    for r in range(rows):
        _scaled_line(x, y, whole, scale, more, r * columns, columns)


@inner
def _scaled_line(x, y, whole, scale, more, begin, count):
    b = _u64(begin)
    for c in range(_u64(count)):
        t = np.float32(x[b + c] + whole[c]) * scale[c]
        y[b + c] = t + more[c]


@routine("pppnnnnnn")
def quantized_last(src, dst, real, zero, images, channels, pixels, low, high):
    """float32 of (images, channels, pixels) to bytes of (images, pixels, channels); `real` has room for 3,
    the first the scale.
    """
    size = images * pixels * channels
    x, y, r = (
        numba.carray(src, (size,), np.float32),
        numba.carray(dst, (size,), np.uint8),
        numba.carray(real, (3,), np.float32),
    )
    r[1], r[2] = np.float32(low - zero), np.float32(high - zero)
    scale, below, above = r[0], r[1], r[2]
    blocks = pixels >= BYTES and channels >= BYTES
    for n in range(images):
        begin = n * pixels * channels
        if blocks:
            for k in range(0, channels, BYTES):
                c = min(k, channels - BYTES)
                for p in range(0, pixels, BYTES):
                    i = min(p, pixels - BYTES)
                    _quantized_block(
                        (
                            offset(src, 4 * (begin + c * pixels + i)), 4 * pixels,
                            offset(dst, begin + i * channels + c), channels, real, zero,
                        )
                    )  # fmt: skip
        else:
            for c in range(channels):
                at_x = begin + c * pixels
                for i in range(pixels):
                    y[begin + i * channels + c] = quantize_one(x[at_x + i], scale, zero, below, above)


@routine("pppnnnn")
def dequantized_second(src, dst, real, flip, images, pixels, channels):
    """Bytes of (images, pixels, channels) to float32 of (images, channels, pixels); `real` holds scale and
    zero point.
    """
    size = images * pixels * channels
    x, y, r = (
        numba.carray(src, (size,), np.uint8),
        numba.carray(dst, (size,), np.float32),
        numba.carray(real, (2,), np.float32),
    )
    scale, point, f = r[0], r[1], np.int32(flip)
    blocks = pixels >= BYTES and channels >= BYTES
    for n in range(images):
        begin = n * pixels * channels
        if blocks:
            for p in range(0, pixels, BYTES):
                i = min(p, pixels - BYTES)
                for k in range(0, channels, BYTES):
                    c = min(k, channels - BYTES)
                    _dequantized_block(
                        (
                            offset(src, begin + i * channels + c), channels,
                            offset(dst, 4 * (begin + c * pixels + i)), 4 * pixels, real, flip,
                        )
                    )  # fmt: skip
        else:
            for c in range(channels):
                to = begin + c * pixels
                for i in range(pixels):
                    v = (np.int32(x[begin + i * channels + c]) ^ f) - f
                    y[to + i] = (np.float32(v) - point) * scale


@routine("ppnnn")
def moved(src, dst, images, rows, columns):
    """Bytes of (images, rows, columns) to (images, columns, rows)."""
    size = images * rows * columns
    x, y = numba.carray(src, (size,), np.uint8), numba.carray(dst, (size,), np.uint8)
    blocks = rows >= BYTES and columns >= BYTES
    for n in range(images):
        begin = n * rows * columns
        if blocks:
            for p in range(0, rows, BYTES):
                i = min(p, rows - BYTES)
                for k in range(0, columns, BYTES):
                    c = min(k, columns - BYTES)
                    _moved_block(
                        (
                            offset(src, begin + i * columns + c),
                            columns,
                            offset(dst, begin + c * rows + i),
                            rows,
                        )
                    )
        else:
            for c in range(columns):
                for i in range(rows):
                    y[begin + c * rows + i] = x[begin + i * columns + c]


def sizes(x: np.ndarray) -> tuple[int, int, int] | None:
    """(images, channels, pixels) of an array with its channels second and last in memory, or None if it is
    not so.
    """
    if x.ndim < 3 or not x.size or x.flags.c_contiguous or not np.moveaxis(x, 1, -1).flags.c_contiguous:
        return None
    return x.shape[0], x.shape[1], x.size // (x.shape[0] * x.shape[1])


def empty_last(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array with its channels second, and last in memory."""
    return np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), dtype), -1, 1)


def last(x: np.ndarray) -> np.ndarray:
    """Bytes of images as (images, ..., channels), contiguous."""
    y = np.moveaxis(x, 1, -1)
    if y.flags.c_contiguous or not x.flags.c_contiguous or not x.size or numba.config.DISABLE_JIT:
        return np.ascontiguousarray(y)
    y = np.empty(y.shape, x.dtype)
    moved.ctypes(x.ctypes.data, y.ctypes.data, x.shape[0], x.shape[1], x.size // (x.shape[0] * x.shape[1]))
    return y


def concatenated(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Bytes one after the other; channels stay last in memory if they are in one part."""
    if parts[0].ndim > 2 and any(sizes(p) is not None for p in parts):
        axis = axis % parts[0].ndim
        where = axis if axis == 0 else parts[0].ndim - 1 if axis == 1 else axis - 1
        return np.moveaxis(np.concatenate([last(p) for p in parts], axis=where), -1, 1)
    return np.concatenate(parts, axis=axis)


def contiguous(x: np.ndarray) -> np.ndarray:
    """Bytes with their channels last in memory, in C order; other arrays as they are."""
    found = sizes(x) if x.dtype in (np.uint8, np.int8) and not numba.config.DISABLE_JIT else None
    if found is None:
        return x
    y = np.empty(x.shape, x.dtype)
    images, channels, pixels = found
    moved.ctypes(x.ctypes.data, y.ctypes.data, images, pixels, channels)
    return y
