"""Compiled passes that bring channels last, or second: what stands between lowgemm's convolutions and float
nodes.

Convolutions want an image's channels last in memory, `(images, pixels, channels)`, and float nodes want them
second. `turn` swaps rows and columns of matrices, 16 by 16 elements at a time in registers. QuantizeLinear
and DequantizeLinear read and write every element anyway, so they turn blocks over at the same time. What they
compute is what `lowgemm.compat.onnx_passes` computes, and NumPy's `moveaxis` says where.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.compat import onnx_quotient
from lowgemm.compat.onnx_passes import quantize_one
from lowgemm.compat.onnx_quotient import is_quick, prepare
from lowgemm.engine.parts import PASS, run, workers_for
from lowgemm.jit.memory import (
    load_f32,
    load_i32,
    load_i64,
    load_u8,
    offset,
    pointer_at,
    stack,
    store_8,
    store_32,
    store_f32,
)
from lowgemm.jit.routine import inner, routine, unpack_words
from lowgemm.jit.target import round_even_name
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i32,
    i64,
    load,
    repeat,
    shuffle,
    splat,
    store,
    vec,
)
from lowgemm.onnx_run.addresses import address

_f32 = ir.FloatType()
#: Rows and columns of a block.
BLOCK = 16
#: What `turn` does with elements: bytes or words as they are, float32 to bytes, bytes to float32.
BYTES, WORDS, QUANTIZED, DEQUANTIZED = range(4)


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


def _block(emit: Any) -> Any:
    """An intrinsic that turns a block over: ``(src, step, dst, to_step, real, whole)``.

    `step` and `to_step` are bytes from one row to the next, before and after; `real` and `whole` are
    `turn`'s.
    """

    def make(typingctx, args):
        def codegen(context, b, signature, values):
            src, step, dst, to_step, real, whole = unpack_words(context, b, signature.args[0], values[0])
            sources = [at(b, src, b.mul(step, const(step.type, i))) for i in range(BLOCK)]
            for i, row in enumerate(emit(b, sources, real, whole)):
                store(b, row, at(b, dst, b.mul(to_step, const(to_step.type, i))))
            return context.get_dummy_value()

        return types.void(args), codegen

    return intrinsic(make)


def _numbers(b: ir.IRBuilder, real: ir.Value, count: int) -> list[ir.Value]:
    """float32 numbers at `real`, each in all elements of a vector."""
    return [splat(b, load(b, _f32, at(b, real, const(i64, 4 * i))), BLOCK) for i in range(count)]


def _emit_bytes(b: ir.IRBuilder, rows: list[ir.Value], real: ir.Value, whole: ir.Value) -> list[ir.Value]:
    return _turn(b, [load(b, vec(i8, BLOCK), row) for row in rows])


def _emit_words(b: ir.IRBuilder, rows: list[ir.Value], real: ir.Value, whole: ir.Value) -> list[ir.Value]:
    return _turn(b, [load(b, vec(i32, BLOCK), row) for row in rows])


def _emit_quantized(b: ir.IRBuilder, rows: list[ir.Value], real: ir.Value, whole: ir.Value) -> list[ir.Value]:
    floats, found = vec(_f32, BLOCK), []
    (scale, below, above), zero = _numbers(b, real, 3), splat(b, b.trunc(whole, i32), BLOCK)
    for row in rows:
        t = b.fdiv(load(b, floats, row), scale)
        t = call_intrinsic(b, round_even_name(f"v{BLOCK}f32"), floats, [t])
        t = b.select(b.fcmp_ordered(">", t, below), t, below)  # a NaN too
        t = b.select(b.fcmp_ordered("<", t, above), t, above)
        found.append(b.trunc(b.add(b.fptosi(t, vec(i32, BLOCK)), zero), vec(i8, BLOCK)))
    return _turn(b, found)


def _emit_dequantized(
    b: ir.IRBuilder, rows: list[ir.Value], real: ir.Value, whole: ir.Value
) -> list[ir.Value]:
    floats, ints = vec(_f32, BLOCK), vec(i32, BLOCK)
    (scale, point), flip = _numbers(b, real, 2), splat(b, b.trunc(whole, i32), BLOCK)
    turned = _emit_bytes(b, rows, real, whole)
    numbers = [b.sitofp(b.sub(b.xor(b.zext(x, ints), flip), flip), floats) for x in turned]
    return [b.fmul(b.fsub(x, point), scale) for x in numbers]


def _emit_quickly(b: ir.IRBuilder, rows: list[ir.Value], real: ir.Value, whole: ir.Value) -> list[ir.Value]:
    given, zero = onnx_quotient.load_parameters(b, real), splat(b, b.trunc(whole, i32), BLOCK)
    numbers = [onnx_quotient.emit_rounded(b, load(b, vec(_f32, BLOCK), row), given) for row in rows]
    return _turn(b, [b.trunc(b.add(x, zero), vec(i8, BLOCK)) for x in numbers])


_block_quickly = _block(_emit_quickly)
#: Of bytes, or of words, as they are; `real` and `whole` are not read.
block_of_bytes, block_of_words = _block(_emit_bytes), _block(_emit_words)
_block_quantized, _block_dequantized = _block(_emit_quantized), _block(_emit_dequantized)


@inner
def _one(kind, src, i, dst, j, real, whole):
    """Element `i` of the source to place `j`."""
    if kind == BYTES:
        store_8(dst, j, load_u8(src, i))
    elif kind == WORDS:
        store_32(dst, j, load_i32(src, i))
    elif kind == QUANTIZED:
        scale, below, above = load_f32(real, 0), load_f32(real, 1), load_f32(real, 2)
        store_8(dst, j, np.int64(quantize_one(load_f32(src, i), scale, whole, below, above)))
    else:
        f = np.int32(whole)
        v = (np.int32(load_u8(src, i)) ^ f) - f
        store_f32(dst, j, (np.float32(v) - load_f32(real, 1)) * load_f32(real, 0))


@inner
def turn_over(kind, src, dst, real, whole, rows, columns, first, end):
    """`turn`, for compiled callers."""
    wide = 4 if kind in (WORDS, QUANTIZED) else 1
    to_wide = 4 if kind in (WORDS, DEQUANTIZED) else 1
    step, to_step = wide * columns, to_wide * rows
    blocks = (max(rows, columns) + BLOCK - 1) // BLOCK
    quick, given = False, stack(64)
    if kind == QUANTIZED:
        quick = is_quick(load_f32(real, 0))
        prepare(given, load_f32(real, 0), load_f32(real, 1), load_f32(real, 2))
    while first < end:
        # a part of an image: some of its rows, or some of its columns
        begin, low = first // blocks * rows * columns, first % blocks
        high = min(blocks, low + end - first)
        first += high - low
        r0, r1, c0, c1 = 0, rows, 0, columns
        if rows > columns:
            r0, r1 = low * BLOCK, min(high * BLOCK, rows)
        else:
            c0, c1 = low * BLOCK, min(high * BLOCK, columns)
        if rows < BLOCK or columns < BLOCK:
            for c in range(c0, c1):
                for r in range(r0, r1):
                    _one(kind, src, begin + r * columns + c, dst, begin + c * rows + r, real, whole)
            continue
        # the last block of a row begins so early that it is whole, and computes some elements again
        for p in range(r0, r1, BLOCK):
            r = min(p, rows - BLOCK)
            for k in range(c0, c1, BLOCK):
                c = min(k, columns - BLOCK)
                place = offset(src, wide * (begin + r * columns + c))
                to = offset(dst, to_wide * (begin + c * rows + r))
                args = (place, step, to, to_step, real, whole)
                if kind == BYTES:
                    block_of_bytes(args)
                elif kind == WORDS:
                    block_of_words(args)
                elif quick:
                    _block_quickly((place, step, to, to_step, given, whole))
                elif kind == QUANTIZED:
                    _block_quantized(args)
                else:
                    _block_dequantized(args)


@routine(PASS)
def turn(args, first, end, worker):
    """Elements of (images, rows, columns) to (images, columns, rows).

    Arguments: kind, src, dst, real, whole, rows, columns. `real` points to float32 numbers. Of QUANTIZED they
    are the scale and the limits from which the zero point is taken away, and `whole` is the zero point. Of
    DEQUANTIZED they are the scale and the zero point, and `whole` is 128 for int8, else 0. Pieces are `BLOCK`
    rows of an image, or as many columns if it has more columns: `pieces_of`.
    """
    turn_over(
        load_i64(args, 0), pointer_at(args, 1), pointer_at(args, 2), pointer_at(args, 3), load_i64(args, 4),
        load_i64(args, 5), load_i64(args, 6), first, end,
    )  # fmt: skip


def pieces_of(images: int, rows: int, columns: int) -> int:
    """Pieces of `turn`."""
    return images * -(-max(rows, columns) // BLOCK)


#: Nanoseconds that turning an element over takes, about, by kind.
_TIMES = {BYTES: 0.1, WORDS: 0.4, QUANTIZED: 0.3, DEQUANTIZED: 0.4}


def run_turn(
    kind: int, src: Any, dst: Any, real: int, whole: int, sizes: tuple[int, int, int],
    num_threads: int | None, run: Any = run,
) -> None:  # fmt: skip
    """Turn (images, rows, columns) over; the other arguments are those of `turn`, and what runs the pass."""
    images, rows, columns = sizes
    pieces, time = pieces_of(*sizes), _TIMES[kind] * images * rows * columns
    args = kind, src, dst, real, whole, rows, columns
    run(turn, args, pieces, workers_for(time, pieces, num_threads), time)


@intrinsic
def _scaled_vectors(typingctx, x, y, whole, scale, more, vectors):
    """`scaled_rows` of so many vectors; `y` may be `x`, which keeps LLVM from making vectors of a plain loop."""

    def codegen(context, b, signature, values):
        floats, ints = vec(_f32, BLOCK), vec(i32, BLOCK)

        def turn(number: ir.Value, none: list[ir.Value]) -> list[ir.Value]:
            step = b.mul(number, const(i64, 4 * BLOCK))
            x, y, whole, scale, more = (at(b, v, step) for v in values[:5])
            sums = b.add(load(b, ints, x), load(b, ints, whole))
            real = b.fmul(b.sitofp(sums, floats), load(b, floats, scale))
            store(b, b.fadd(real, load(b, floats, more)), y)
            return []

        repeat(b, values[5], [], turn, maybe_none=True)
        return context.get_dummy_value()

    return types.void(*[types.voidptr] * 5, types.int64), codegen


@routine(PASS)
def scaled_rows(args, first, end, worker):
    """int32 sums of rows to float32: ``float(sum + ints[c]) * scales[c] + floats[c]``, rounded after the
    product too; `dst` may be `src`.

    Arguments: src, dst, ints, scales, floats, rows, columns. Pieces are rows.
    """
    columns = load_i64(args, 6)
    x, y = pointer_at(args, 0), pointer_at(args, 1)
    whole, scale, more = pointer_at(args, 2), pointer_at(args, 3), pointer_at(args, 4)
    vectors = columns // BLOCK
    for r in range(first, end):
        begin = 4 * r * columns
        _scaled_vectors(offset(x, begin), offset(y, begin), whole, scale, more, vectors)
        for c in range(BLOCK * vectors, columns):
            t = np.float32(np.int32(load_i32(x, r * columns + c) + load_i32(whole, c))) * load_f32(scale, c)
            store_f32(y, r * columns + c, t + load_f32(more, c))


def run_scaled_rows(
    sums: Any,
    ints: Any,
    scales: Any,
    floats: Any,
    sizes: tuple[int, int],
    num_threads: int | None,
    run: Any = run,
) -> None:
    """`scaled_rows` of (rows, columns) in place; the others are addresses, and what runs the pass."""
    rows, columns = sizes
    time = 0.2 * rows * columns
    args = sums, sums, ints, scales, floats, rows, columns
    run(scaled_rows, args, rows, workers_for(time, rows, num_threads), time)


#: By number of axes: the second comes last, the last comes second. `np.moveaxis` takes 3 us to find that out.
_ORDERS = [((0, *range(2, n), 1), (0, n - 1, *range(1, n - 1))) if n > 1 else ((), ()) for n in range(33)]


def sizes(x: np.ndarray) -> tuple[int, int, int] | None:
    """(images, channels, pixels) of an array with its channels second and last in memory, or None if it is
    not so.
    """
    axes = x.ndim
    if axes < 3 or x.flags.c_contiguous or not x.size or not x.transpose(_ORDERS[axes][0]).flags.c_contiguous:
        return None
    images, channels = x.shape[:2]
    return images, channels, x.size // (images * channels)


def empty_last(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array with its channels second, and last in memory."""
    first, last = _ORDERS[len(shape)]
    return np.empty([shape[i] for i in first], dtype).transpose(last)


_KINDS = {1: BYTES, 4: WORDS}


def _turned(
    x: np.ndarray, y: np.ndarray, sizes: tuple[int, int, int], num_threads: int | None, recorder: Any = None
) -> np.ndarray:
    if recorder is None:
        run_turn(_KINDS[x.itemsize], address(x), address(y), 0, 0, sizes, num_threads)
    else:
        recorder.keep(y)
        at = recorder.at(x), recorder.at(y)
        run_turn(_KINDS[x.itemsize], *at, 0, 0, sizes, num_threads, recorder.run)
    return y


def last(x: np.ndarray, num_threads: int | None = 1, recorder: Any = None) -> np.ndarray:
    """Images as (images, ..., channels), contiguous; with a `tape.Recorder` this is taken down."""
    y = x.transpose(_ORDERS[x.ndim][0])
    fits = x.flags.c_contiguous and x.size and x.itemsize in _KINDS and not numba.config.DISABLE_JIT
    if y.flags.c_contiguous or not fits:
        return np.ascontiguousarray(y)
    sizes = x.shape[0], x.shape[1], x.size // (x.shape[0] * x.shape[1])
    return _turned(x, np.empty(y.shape, x.dtype), sizes, num_threads, recorder)


def brought_last(x: np.ndarray, num_threads: int | None = 1, recorder: Any = None) -> np.ndarray:
    """The same array with the channels last in memory."""
    return last(x, num_threads, recorder).transpose(_ORDERS[x.ndim][1])


def second(x: np.ndarray, num_threads: int | None = 1) -> np.ndarray:
    """Images in C order, the channels second in memory as well."""
    y = np.empty(x.shape, x.dtype)
    fill(y, x, num_threads)
    return y


def fill(y: np.ndarray, x: np.ndarray, num_threads: int | None = 1, recorder: Any = None) -> None:
    """Copy an array to one of the same shape in C order. With a recorder this is taken down; the channels of
    `x` have to be last in memory then.
    """
    found = sizes(x) if x.itemsize in _KINDS and not numba.config.DISABLE_JIT else None
    if found is None:
        np.copyto(y, x)
    else:
        images, channels, pixels = found
        _turned(x, y, (images, pixels, channels), num_threads, recorder)


def concatenated(parts: list[np.ndarray], axis: int, num_threads: int | None = 1) -> np.ndarray:
    """Bytes one after the other; channels stay last in memory if they are in one part."""
    if parts[0].ndim > 2 and any(sizes(p) is not None for p in parts):
        axis = axis % parts[0].ndim
        where = axis if axis == 0 else parts[0].ndim - 1 if axis == 1 else axis - 1
        return np.moveaxis(np.concatenate([last(p, num_threads) for p in parts], axis=where), -1, 1)
    return np.concatenate(parts, axis=axis)
