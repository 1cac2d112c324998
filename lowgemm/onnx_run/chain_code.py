"""What a chain of float operators is made of: instructions on blocks of numbers, and the compiled loop that
carries out a list of them.

Only operators that are defined to the last bit are here, so a result is the same on every CPU: sums,
products, quotients, square roots, smaller and larger of two, as IEEE 754 has them, and sigmoid, tanh and erf
(`activations.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.compat.onnx_passes import note_range, quantize_bytes
from lowgemm.engine.parts import PASS
from lowgemm.jit.memory import (
    copy_bytes,
    load_f32,
    load_i32,
    load_i64,
    load_u8,
    offset,
    pointer_at,
    store_64,
    store_f32,
)
from lowgemm.jit.routine import inner, inner_dividing, routine, unpack_words
from lowgemm.kernels.framework.irtools import at, load, store, vec
from lowgemm.onnx_run import activations
from lowgemm.onnx_run.activations import LANES

#: Numbers of a block, about: with eight registers, a third of a first level of 48 KiB.
BLOCK = 512
#: Registers at most.
REGISTERS = 24
#: Words between the memory of two workers, so that they share no cache line, nor two that are fetched
#: together.
APART = 32
#: Bytes of a vector, and vectors of a turn of a loop.
VECTOR = 4 * LANES
MANY = 4
(
    ADD, SUB, MUL, DIV, MAX, MIN, SLOPE, SIGMOID, TANH, ERF, SQRT, SCALE, RANGE, BYTE, SIGNED, TO_BYTE, TO_SIGNED,
    EACH_OF,
) = range(18)  # fmt: skip
#: Bytes of an element of an array, by the operation that reads or writes it.
WIDTHS = {BYTE: 1, SIGNED: 1, TO_BYTE: 1, TO_SIGNED: 1}


def _vectors(emit: Callable[..., ir.Value]) -> Any:
    """An instruction (where the result goes, operands ...) on `LANES` numbers, and one on `MANY` times as
    many: a loop's turn takes about as long as two of its vectors.
    """

    def of(count: int) -> Any:
        def make(typingctx, args):
            def codegen(context, b, signature, values):
                to, *from_ = unpack_words(context, b, signature.args[0], values[0])
                ty = vec(ir.FloatType(), LANES)
                places = [VECTOR * i for i in range(count)]
                made = [emit(b, *(load(b, ty, at(b, x, place)) for x in from_)) for place in places]
                for y, place in zip(made, places, strict=True):
                    store(b, y, at(b, to, place))
                return context.get_dummy_value()

            return types.void(args), codegen

        return intrinsic(make)

    return of(1), of(MANY)


# of a NaN and a number the first operand stays, as in C++'s std::max(a, b), which onnxruntime is built on
_add, _add_many = _vectors(lambda b, x, y: b.fadd(x, y))
_sub, _sub_many = _vectors(lambda b, x, y: b.fsub(x, y))
_mul, _mul_many = _vectors(lambda b, x, y: b.fmul(x, y))
_div, _div_many = _vectors(lambda b, x, y: b.fdiv(x, y))
_max, _max_many = _vectors(lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), y, x))
_min, _min_many = _vectors(lambda b, x, y: b.select(b.fcmp_ordered("<", y, x), y, x))
_slope, _slope_many = _vectors(
    lambda b, x, y: b.select(b.fcmp_ordered("<", x, ir.Constant(x.type, [0.0] * LANES)), b.fmul(x, y), x)
)
_scale, _scale_many = _vectors(
    lambda b, x, y, z: b.fadd(b.fmul(b.sitofp(b.bitcast(x, vec(ir.IntType(32), LANES)), x.type), y), z)
)


def _real(extend: Callable[[ir.IRBuilder, ir.Value, Any], ir.Value]) -> Any:
    """DequantizeLinear of `LANES` bytes: (where the result goes, bytes, zero points, scales)."""

    def make(typingctx, args):
        def codegen(context, b, signature, values):
            to, x, zero, scale = unpack_words(context, b, signature.args[0], values[0])
            floats = vec(ir.FloatType(), LANES)
            whole = extend(b, load(b, vec(ir.IntType(8), LANES), x), vec(ir.IntType(32), LANES))
            real = b.fsub(b.sitofp(whole, floats), load(b, floats, zero))
            store(b, b.fmul(real, load(b, floats, scale)), to)
            return context.get_dummy_value()

        return types.void(args), codegen

    return intrinsic(make)


_real_of_byte = _real(lambda b, x, to: b.zext(x, to))
_real_of_signed = _real(lambda b, x, to: b.sext(x, to))


@inner
def _dequantize(code, to, a, zero, scale, count):
    """`count` bytes at `a`, signed as the operation `code` says, to float32; `zero` and `scale` point to one
    of each for every byte.
    """
    whole, flip = count // LANES, np.int32(128) if code == SIGNED else np.int32(0)
    for i in range(whole):
        j = 4 * LANES * i
        args = (offset(to, j), offset(a, LANES * i), offset(zero, j), offset(scale, j))
        if code == SIGNED:
            _real_of_signed(args)
        else:
            _real_of_byte(args)
    for i in range(whole * LANES, count):
        v = (np.int32(load_u8(a, i)) ^ flip) - flip
        store_f32(to, i, (np.float32(v) - load_f32(zero, i)) * load_f32(scale, i))


@inner_dividing
def _one(code, x, y):
    """The operation `code` on two float32 numbers."""
    if code == ADD:
        return x + y
    if code == SUB:
        return x - y
    if code == MUL:
        return x * y
    if code == DIV:
        return x / y
    if code == MAX:
        return y if x < y else x
    if code == MIN:
        return y if y < x else x
    return x * y if x < np.float32(0) else x


def _make_of_two(add: Any, sub: Any, mul: Any, div: Any, most: Any, least: Any, slope: Any) -> Any:
    @inner
    def of_two(code, args):
        """The operation `code` on two operands, by the instruction for it; `args` are what that takes."""
        if code == ADD:
            add(args)
        elif code == SUB:
            sub(args)
        elif code == MUL:
            mul(args)
        elif code == DIV:
            div(args)
        elif code == MAX:
            most(args)
        elif code == MIN:
            least(args)
        else:
            slope(args)

    return of_two


_of_two = _make_of_two(_add, _sub, _mul, _div, _max, _min, _slope)
_of_two_many = _make_of_two(_add_many, _sub_many, _mul_many, _div_many, _max_many, _min_many, _slope_many)


@inner
def _apply(code, to, a, b, c, count):
    """The operation `code` on `count` numbers at `a`, and at `b` and `c` if it has as many operands."""
    if code == SIGMOID:
        activations.sigmoid(to, a, count)
        return
    if code == TANH:
        activations.tanh(to, a, count)
        return
    if code == ERF:
        activations.erf(to, a, count)
        return
    if code == SQRT:
        activations.sqrt(to, a, count)
        return
    if code == RANGE:
        note_range(to, a, count)
        return
    if code in (BYTE, SIGNED):
        _dequantize(code, to, a, b, c, count)
        return
    if code in (TO_BYTE, TO_SIGNED):
        low = np.int64(-128) if code == TO_SIGNED else np.int64(0)
        quantize_bytes(a, to, count, load_f32(b, 0), np.int32(load_f32(c, 0)), low, low + 255)
        return
    whole = count // LANES
    if code == SCALE:
        for i in range(whole // MANY):
            j = VECTOR * MANY * i
            _scale_many((offset(to, j), offset(a, j), offset(b, j), offset(c, j)))
        for i in range(whole // MANY * MANY, whole):
            j = VECTOR * i
            _scale((offset(to, j), offset(a, j), offset(b, j), offset(c, j)))
        for i in range(whole * LANES, count):
            t = np.float32(np.int32(load_i32(a, i))) * load_f32(b, i)
            store_f32(to, i, t + load_f32(c, i))
        return
    for i in range(whole // MANY):
        j = VECTOR * MANY * i
        _of_two_many(code, (offset(to, j), offset(a, j), offset(b, j)))
    for i in range(whole // MANY * MANY, whole):
        j = VECTOR * i
        _of_two(code, (offset(to, j), offset(a, j), offset(b, j)))
    for i in range(whole * LANES, count):
        store_f32(to, i, _one(code, load_f32(a, i), load_f32(b, i)))


@inner
def _fill(register, numbers, begin, period, count):
    """Fill a register of `count` numbers with `period` of `numbers`, from `begin` on, over and over."""
    if period == 1:
        number = load_f32(numbers, begin)
        for j in range(count):
            store_f32(register, j, number)
        return
    first = min(period, count)
    for j in range(first):
        store_f32(register, j, load_f32(numbers, begin + j))
    # whole vectors from so far back that all of them is there
    back = period * ((LANES + period - 1) // period)
    for j in range(first, min(back, count)):
        store_f32(register, j, load_f32(register, j - period))
    whole = max(count - back, 0) // LANES
    for i in range(whole):
        j = back + LANES * i
        copy_bytes(offset(register, 4 * j), offset(register, 4 * (j - back)), VECTOR)
    for j in range(back + LANES * whole, count):
        store_f32(register, j, load_f32(register, j - back))


@inner
def _each(to, numbers, times, count):
    """`count` numbers: each of `numbers` so many times."""
    for i in range(count // times):
        number = load_f32(numbers, i)
        for j in range(i * times, i * times + times):
            store_f32(to, j, number)


#: Numbers of the arguments of `run_chain`; the pointers are the last.
(
    FILLS, CODE, INSTRUCTIONS, FILLED, LENGTH, STEP, MEMORY, WORKER_BYTES, WALKS, WALKED, OUTER, BEGINS, POINTERS,
) = range(13)  # fmt: skip


@inner
def _place(args, memory, begins, number, width, passed, start):
    """Where operand `number` lies: `passed` elements of `width` bytes on; with a `width` of 0 in a worker's
    `memory`; with one below 0 `start` numbers behind where walk ``-1 - width`` is in this row, as `begins`
    says.
    """
    if width > 0:
        return offset(pointer_at(args, POINTERS + number), passed * width)
    if width < 0:
        begin = load_i64(begins, 2 * (-1 - width))
        return offset(pointer_at(args, POINTERS + number), 4 * (begin + start))
    return offset(memory, load_i64(args, POINTERS + number))


@inner
def _walk(walks, walked, outer, row, begins):
    """Where each of the `walked` walks is in a row: two numbers each to `begins`, of which the second says
    whether it was elsewhere before. `walks` are the sizes of the `outer` axes, then the steps of each walk
    along them.
    """
    w = numba.carray(walks, ((walked + 1) * outer,), np.int64)
    for i in range(walked):
        begin, left = np.int64(0), np.int64(row)
        for k in range(outer - 1, -1, -1):
            begin += left % w[k] * w[(i + 1) * outer + k]
            left //= w[k]
        store_64(begins, 2 * i + 1, np.int64(begin != load_i64(begins, 2 * i)))
        store_64(begins, 2 * i, begin)


@routine(PASS)
def run_chain(args, first, end, worker):
    """Carry out a chain on rows of `LENGTH` numbers that lie one after the other.

    `CODE` is int64, 9 an instruction: the operation, then for the result and three operands which pointer,
    and how it moves on from block to block (`_place`). `EACH_OF` repeats each number of its operand; how many
    times stands in place of the second. `FILLS` is int64, 4 a register that is filled before a row: which
    pointer, whose numbers, the walk that says from where on, and how many numbers are repeated in the
    register. A walk says for each row where an operand's numbers begin. `WALKS` is int64: the sizes of the
    `OUTER` axes whose indices a row is counted by, then for each of the `WALKED` walks by how many numbers it
    moves on along each.

    `MEMORY` has `WORKER_BYTES` for each worker; the pointers that do not move are offsets into that, and the
    walks' places lie `BEGINS` bytes behind. Pieces are blocks of `STEP` numbers, from the beginning of each
    row on.
    """
    instructions, filled = load_i64(args, INSTRUCTIONS), load_i64(args, FILLED)
    length, block = load_i64(args, LENGTH), load_i64(args, STEP)
    memory = offset(pointer_at(args, MEMORY), worker * load_i64(args, WORKER_BYTES))
    begins, walked = offset(memory, load_i64(args, BEGINS)), load_i64(args, WALKED)
    c = numba.carray(pointer_at(args, CODE), (instructions, 9), np.int64)
    f = numba.carray(pointer_at(args, FILLS), (filled, 4), np.int64)
    blocks, last = (length + block - 1) // block, -1
    for i in range(walked):
        store_64(begins, 2 * i, -1)
    for piece in range(first, end):
        row, start = piece // blocks, piece % blocks * block
        if row != last:
            _walk(pointer_at(args, WALKS), walked, load_i64(args, OUTER), row, begins)
            for i in range(filled):
                if load_i64(begins, 2 * f[i, 2] + 1) != 0:  # else it is there already
                    register = _place(args, memory, begins, f[i, 0], 0, 0, 0)
                    numbers, begin = pointer_at(args, POINTERS + f[i, 1]), load_i64(begins, 2 * f[i, 2])
                    _fill(register, numbers, begin, f[i, 3], min(block, length))
            last = row
        count, passed = min(block, length - start), row * length + start
        for i in range(instructions):
            if c[i, 0] == EACH_OF:
                _each(
                    _place(args, memory, begins, c[i, 1], c[i, 2], passed, start),
                    _place(args, memory, begins, c[i, 3], c[i, 4], passed, start // c[i, 5]),
                    c[i, 5],
                    count,
                )
                continue
            _apply(
                c[i, 0],
                _place(args, memory, begins, c[i, 1], c[i, 2], passed, start),
                _place(args, memory, begins, c[i, 3], c[i, 4], passed, start),
                _place(args, memory, begins, c[i, 5], c[i, 6], passed, start),
                _place(args, memory, begins, c[i, 7], c[i, 8], passed, start),
                count,
            )
