"""Compiled passes over 8-bit tensors: sums and products of two, tables of 256, maxima and sums of windows.

Bytes are read as ``(byte ^ flip) - flip``, which is the number for uint8 (`flip` 0) and for int8 (128). What
the passes compute is in `elementwise.py` as NumPy operations; tests compare the two.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from lowgemm.compat.onnx_passes import PIECE, empty_like, quantize_one
from lowgemm.compat.onnx_quotient import fused
from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import load_i32, load_i64, offset, pointer_at, round_even
from lowgemm.jit.routine import inner, inner_dividing, routine, unpack_words
from lowgemm.jit.target import target
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i8, i64, load, store, vec
from lowgemm.onnx_run import turned
from lowgemm.onnx_run.addresses import address
from lowgemm.onnx_run.tape import Recorder, ways

_u64 = np.uint64
#: Axes of a pass over two operands, after those that can be are counted as one.
AXES = 4
#: Shapes of operands whose plans are kept.
SHAPES = 64
#: Elements of a segment of a long line, and lanes whose sums are made together.
SEGMENT, SUMMED = 4096, 256
#: Nanoseconds of an element of the passes with one operation for each byte, about.
NANOSECONDS = 0.1


@inner
def _byte(t, low, high):
    """The byte of a float32 `t`, rounded and held between `low` and `high`."""
    t = round_even(t)
    t = t if t > low else low  # a NaN too
    t = t if t < high else high
    return np.uint8(np.int32(t) & np.int32(255))


@inner
def _add_line(a, at_a, b, at_b, out, at, count, flip, ra, rb, fixed, low, high):
    """`count` sums ``a * ra + b * rb + fixed``; the numbers are fields of `ADD`. The others below are like
    it.
    """
    p, q, r = _u64(at_a), _u64(at_b), _u64(at)
    for i in range(_u64(count)):
        u, v = (np.int32(a[p + i]) ^ flip) - flip, (np.int32(b[q + i]) ^ flip) - flip
        out[r + i] = _byte(fused(np.float32(u), ra, fused(np.float32(v), rb, fixed)), low, high)


@inner
def _add_one(a, at_a, part, out, at, count, flip, ra, low, high):
    """As `_add_line` where `b` is one number: `part` is ``b * rb + fixed``."""
    p, r = _u64(at_a), _u64(at)
    for i in range(_u64(count)):
        out[r + i] = _byte(fused(np.float32((np.int32(a[p + i]) ^ flip) - flip), ra, part), low, high)


@inner
def _one_add(b, at_b, first, out, at, count, flip, ra, rb, fixed, low, high):
    """As `_add_line` where `a` is the one number `first`."""
    q, r = _u64(at_b), _u64(at)
    for i in range(_u64(count)):
        v = (np.int32(b[q + i]) ^ flip) - flip
        out[r + i] = _byte(fused(first, ra, fused(np.float32(v), rb, fixed)), low, high)


@inner
def _mul_line(a, at_a, b, at_b, out, at, count, flip, za, zb, ratio, zero, low, high):
    """`count` products ``(a - za) * (b - zb) * ratio + zero``; the numbers are fields of `MUL`."""
    p, q, r = _u64(at_a), _u64(at_b), _u64(at)
    for i in range(_u64(count)):
        u, v = (np.int32(a[p + i]) ^ flip) - flip - za, (np.int32(b[q + i]) ^ flip) - flip - zb
        out[r + i] = _byte(np.float32(u * v) * ratio + zero, low, high)


@inner
def _mul_one(a, at_a, v, out, at, count, flip, za, ratio, zero, low, high):
    """As `_mul_line` where ``b - zb`` is the one number `v`."""
    p, r = _u64(at_a), _u64(at)
    for i in range(_u64(count)):
        u = (np.int32(a[p + i]) ^ flip) - flip - za
        out[r + i] = _byte(np.float32(u * v) * ratio + zero, low, high)


#: Where two operands lie: sizes of the axes, bytes from one element to the next along each, for `a` and for
#: `b` (0 where it is repeated). The last axis steps by 1 in `a`, and by 1 or 0 in `b`. `turned`: `a` is the
#: operator's second operand, since its first is the repeated one. Lines of the last axis are cut into
#: `segments` of `segment` elements.
_NEST = [
    ("n", np.int64, AXES),
    ("segments", np.int64),
    ("segment", np.int64),
    ("a", np.int64, AXES),
    ("b", np.int64, AXES),
    ("reach_a", np.int64),
    ("reach_b", np.int64),
    ("turned", np.int64),
]
_REALS = [("low", np.float32), ("high", np.float32)]
ADD = np.dtype(
    [*_NEST, ("flip", np.int64), ("ra", np.float32), ("rb", np.float32), ("fixed", np.float32), *_REALS],
    align=True,
)
MUL = np.dtype(
    [
        *_NEST,
        ("flip", np.int64),
        ("za", np.int64),
        ("zb", np.int64),
        ("ratio", np.float32),
        ("zero", np.float32),
        *_REALS,
    ],
    align=True,
)


@inner
def _segment(p, number):
    """Of segment `number` of the nest `p`: its line, that line's place along the first three axes, and where
    in it the segment begins.
    """
    n, line = p.n, number // p.segments
    return line, line // n[2] // n[1], line // n[2] % n[1], line % n[2], number % p.segments * p.segment


@inner
def _following(p, line, i, j, k, skip):
    """`_segment` of the next one; `line`, its place `i`, `j`, `k` and `skip` are those of the one before."""
    n, skip = p.n, skip + p.segment
    if skip >= n[3]:
        line, k, skip = line + 1, k + 1, 0
        if k == n[2]:
            j, k = j + 1, 0
            if j == n[1]:
                i, j = i + 1, 0
    return line, i, j, k, skip


@routine(PASS)
def add(args, first, end, worker):
    """QLinearAdd.

    Arguments: the record, both operands, dst. Pieces are segments of lines.
    """
    p = numba.carray(pointer_at(args, 0), (1,), ADD)[0]
    n, sa, sb = p.n, p.a, p.b
    count, step = n[3], sb[3]
    flip, ra, rb, fixed, low, high = np.int32(p.flip), p.ra, p.rb, p.fixed, p.low, p.high
    a = numba.carray(pointer_at(args, 1), (p.reach_a,), np.uint8)
    b = numba.carray(pointer_at(args, 2), (p.reach_b,), np.uint8)
    out = numba.carray(pointer_at(args, 3), (n[0] * n[1] * n[2] * count,), np.uint8)
    line, i, j, k, skip = _segment(p, first)
    for _ in range(first, end):
        at_a = i * sa[0] + j * sa[1] + k * sa[2] + skip
        at_b, at = i * sb[0] + j * sb[1] + k * sb[2], line * count + skip
        size = min(p.segment, count - skip)
        if step:
            _add_line(a, at_a, b, at_b + skip, out, at, size, flip, ra, rb, fixed, low, high)
        else:
            v = np.float32((np.int32(b[at_b]) ^ flip) - flip)
            if p.turned:
                _one_add(a, at_a, v, out, at, size, flip, ra, rb, fixed, low, high)
            else:
                _add_one(a, at_a, fused(v, rb, fixed), out, at, size, flip, ra, low, high)
        line, i, j, k, skip = _following(p, line, i, j, k, skip)


@routine(PASS)
def mul(args, first, end, worker):
    """QLinearMul; the arguments are those of `add`."""
    p = numba.carray(pointer_at(args, 0), (1,), MUL)[0]
    n, sa, sb = p.n, p.a, p.b
    count, step = n[3], sb[3]
    flip, za, zb = np.int32(p.flip), np.int32(p.za), np.int32(p.zb)
    if p.turned:
        za, zb = zb, za
    ratio, zero, low, high = p.ratio, p.zero, p.low, p.high
    a = numba.carray(pointer_at(args, 1), (p.reach_a,), np.uint8)
    b = numba.carray(pointer_at(args, 2), (p.reach_b,), np.uint8)
    out = numba.carray(pointer_at(args, 3), (n[0] * n[1] * n[2] * count,), np.uint8)
    line, i, j, k, skip = _segment(p, first)
    for _ in range(first, end):
        at_a = i * sa[0] + j * sa[1] + k * sa[2] + skip
        at_b, at = i * sb[0] + j * sb[1] + k * sb[2], line * count + skip
        size = min(p.segment, count - skip)
        if step:
            _mul_line(a, at_a, b, at_b + skip, out, at, size, flip, za, zb, ratio, zero, low, high)
        else:
            v = (np.int32(b[at_b]) ^ flip) - flip - zb
            _mul_one(a, at_a, v, out, at, size, flip, za, ratio, zero, low, high)
        line, i, j, k, skip = _following(p, line, i, j, k, skip)


@intrinsic
def _look_up_64(typingctx, args):
    """64 bytes by a table of 256: (table, source, destination).

    AVX512-VBMI looks up 64 bytes in 128 by one instruction; elsewhere each is loaded.
    """

    def codegen(context, b, signature, values):
        table, src, dst = unpack_words(context, b, signature.args[0], values[0])
        ty = vec(i8, 64)
        if "avx512vbmi" not in target()[1]:
            for i in range(64):
                place = b.zext(b.load(at(b, src, i)), i64)
                b.store(b.load(at(b, table, place)), at(b, dst, i))
            return context.get_dummy_value()
        places, parts = load(b, ty, src), [load(b, ty, at(b, table, 64 * i)) for i in range(4)]
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        low, high = (call_intrinsic(b, name, ty, [parts[i], places, parts[i + 1]]) for i in (0, 2))
        store(b, b.select(b.icmp_signed("<", places, const(ty, 0)), high, low), dst)
        return context.get_dummy_value()

    return types.void(args), codegen


@routine(PASS)
def look_up(args, first, end, worker):
    """Bytes by a table of 256.

    Arguments: table, src, dst, count. Pieces are `PIECE` bytes.
    """
    table, src, dst = pointer_at(args, 0), pointer_at(args, 1), pointer_at(args, 2)
    begin, stop = PIECE * first, min(PIECE * end, load_i64(args, 3))
    t, x = numba.carray(table, (256,), np.uint8), numba.carray(src, (stop,), np.uint8)
    out = numba.carray(dst, (stop,), np.uint8)
    whole = (stop - begin) // 64
    for i in range(whole):
        _look_up_64((table, offset(src, begin + 64 * i), offset(dst, begin + 64 * i)))
    for i in range(begin + 64 * whole, stop):
        out[i] = t[x[i]]


@routine(PASS)
def softmax(args, first, end, worker):
    """QLinearSoftmax of rows of `count` bytes.

    Arguments: src, dst, table, params, rows, count, flip, high. `params` is float64: the number of steps of
    1, and the zero point. `table` has the power of each distance from the largest, from -255 to 0. A row's
    powers are added one after the other. Pieces are rows.
    """
    src, dst, table, params = (
        pointer_at(args, 0),
        pointer_at(args, 1),
        pointer_at(args, 2),
        pointer_at(args, 3),
    )
    rows, count, flip, high = load_i64(args, 4), load_i64(args, 5), load_i64(args, 6), load_i64(args, 7)
    x, out = numba.carray(src, (rows * count,), np.uint8), numba.carray(dst, (rows * count,), np.uint8)
    t, p, f = numba.carray(table, (256,), np.float32), numba.carray(params, (2,), np.float64), np.int32(flip)
    whole, zero, limit = p[0], p[1], np.float64(high)
    for r in range(first, end):
        begin, largest = _u64(r * count), np.int32(-128)
        for i in range(_u64(count)):
            largest = max(largest, (np.int32(x[begin + i]) ^ f) - f)
        place, total = 255 - largest, np.float32(0)
        for i in range(_u64(count)):
            total += t[place + (np.int32(x[begin + i]) ^ f) - f]
        for i in range(_u64(count)):
            power = t[place + (np.int32(x[begin + i]) ^ f) - f]
            steps = min(round_even(_quotient(np.float64(power), np.float64(total)) * whole) + zero, limit)
            out[begin + i] = np.uint8(np.int32(steps) & np.int32(255))


@inner_dividing
def _quotient(a, b):
    """Of two float32 numbers."""
    return a / b


@routine(PASS)
def average_pool(args, first, end, worker):
    """QLinearAveragePool of images with their channels last.

    Arguments: src, dst, places, params, images, height, width, channels, out_height, out_width, kh, kw, flip.
    `places` is int64: where windows begin, the step between them, and whether all places count, one each for
    rows and columns. `params` is float32: zero point and scale before, zero point and scale after, and
    limits. Pieces are lines of the result.
    """
    src, dst, places, params = (
        pointer_at(args, 0),
        pointer_at(args, 1),
        pointer_at(args, 2),
        pointer_at(args, 3),
    )
    images, height, width, channels = (
        load_i64(args, 4),
        load_i64(args, 5),
        load_i64(args, 6),
        load_i64(args, 7),
    )
    out_height, out_width, kh, kw = (
        load_i64(args, 8),
        load_i64(args, 9),
        load_i64(args, 10),
        load_i64(args, 11),
    )
    p, at = numba.carray(params, (6,), np.float32), numba.carray(places, (6,), np.int64)
    x = numba.carray(src, (images * height * width * channels,), np.uint8)
    out = numba.carray(dst, (images * out_height * out_width * channels,), np.uint8)
    top, left, down, across, everywhere = at[0], at[1], at[2], at[3], at[4]
    f = np.int32(load_i64(args, 12))
    total = np.empty(channels, np.float32)
    for line in range(first, end):
        n, i = line // out_height, line % out_height
        for j in range(out_width):
            for c in range(channels):
                total[c] = np.float32(0)
            count = 0
            for u in range(kh):
                row = i * down - top + u
                if row < 0 or row >= height:
                    continue
                for v in range(kw):
                    column = j * across - left + v
                    if column >= 0 and column < width:
                        begin = ((n * height + row) * width + column) * channels
                        _add_real(x, begin, total, channels, f, p[0], p[1])
                        count += 1
            divisor = np.float32(kh * kw if everywhere else count)
            place = (line * out_width + j) * channels
            _mean(total, out, place, channels, divisor, p[2], p[3], p[4], p[5])


@inner
def _add_real(x, begin, total, count, f, zero, scale):
    """Add `count` bytes as real numbers to as many sums; `f` is the byte to flip by, 128 or 0."""
    b = _u64(begin)
    for c in range(_u64(count)):
        total[c] += (np.float32((np.int32(x[b + c]) ^ f) - f) - zero) * scale


@inner_dividing
def _mean(total, out, begin, channels, count, zero, scale, low, high):
    """`channels` sums of `count` numbers to quantized means, from index `begin` on."""
    b = _u64(begin)
    for c in range(_u64(channels)):
        # the zero point is added before rounding
        out[b + c] = _byte(total[c] / count / scale + zero, low, high)


@routine(PASS)
def sums(args, first, end, worker):
    """int32 sums over the middle axis of (rows, count, lanes) bytes.

    Arguments: src, dst, rows, count, lanes, flip. Pieces are `SUMMED` lanes of a row.
    """
    rows, count, lanes = load_i64(args, 2), load_i64(args, 3), load_i64(args, 4)
    x = numba.carray(pointer_at(args, 0), (rows * count * lanes,), np.uint8)
    out = numba.carray(pointer_at(args, 1), (rows * lanes,), np.int32)
    f, parts = np.int32(load_i64(args, 5)), (lanes + SUMMED - 1) // SUMMED
    for piece in range(first, end):
        r, low = piece // parts, piece % parts * SUMMED
        size = _u64(min(SUMMED, lanes - low))
        if lanes == 1:
            total, begin = np.int32(0), _u64(r * count)
            for i in range(_u64(count)):
                total += (np.int32(x[begin + i]) ^ f) - f
            out[r] = total
        else:
            to = _u64(r * lanes + low)
            for c in range(size):
                out[to + c] = 0
            for i in range(count):
                begin = _u64((r * count + i) * lanes + low)
                for c in range(size):
                    out[to + c] += (np.int32(x[begin + c]) ^ f) - f


def layout(
    a: np.ndarray, b: np.ndarray
) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray, np.ndarray] | None:
    """How a pass goes over two operands that are broadcast, and over the result.

    Returns
    -------
    shape, order, a, b
        The result's shape; its axes in the order in which they lie in memory, that of the larger operand; and
        both operands as views with these axes, of one shape.
    """
    shape = np.broadcast_shapes(a.shape, b.shape)
    larger = a if a.size >= b.size else b
    lead = len(shape) - larger.ndim
    strides = [0] * lead + [s if n > 1 else 0 for s, n in zip(larger.strides, larger.shape, strict=True)]
    if larger.flags.c_contiguous:
        order = tuple(range(len(shape)))
    else:
        order = tuple(
            sorted(range(len(shape)), key=lambda i: (-abs(strides[i]) if strides[i] else -(1 << 62), i))
        )
    return (
        shape,
        order,
        np.broadcast_to(a, shape).transpose(order),
        np.broadcast_to(b, shape).transpose(order),
    )


def nest(a: np.ndarray, b: np.ndarray) -> tuple[list[int], list[int], list[int]] | None:
    """Sizes and strides of two byte arrays of one shape with axes that can be counted as one joined, or None
    if too many.
    """
    n, sa, sb = [1], [0], [0]
    for size, p, q in zip(a.shape, a.strides, b.strides, strict=True):
        if size == 1:
            continue
        if n[-1] == 1:
            n[-1], sa[-1], sb[-1] = size, p, q
        elif sa[-1] == p * size and sb[-1] == q * size:
            n[-1], sa[-1], sb[-1] = n[-1] * size, p, q
        else:
            n.append(size), sa.append(p), sb.append(q)
    if n == [1]:
        sa, sb = [1], [1]
    if len(n) > AXES or min(*sa, *sb) < 0:
        return None
    more = AXES - len(n)
    return [1] * more + n, [0] * more + sa, [0] * more + sb


class Binary(NotCopied):
    """`add` or `mul` of given scales and zero points; where operands of a shape lie is found out once.

    Parameters
    ----------
    function, dtype
        The routine and its record.
    values : dict
        Fields of the record.
    num_threads : int or None
        As in `lowgemm.gemm`.
    """

    instead = "make another from the same values"

    def __init__(
        self, function: Any, dtype: np.dtype, values: dict[str, Any], num_threads: int | None = 1
    ) -> None:
        self.function, self.record, self.num_threads = function, np.zeros(1, dtype), num_threads
        for name, value in values.items():
            self.record[name] = value
        self._plans: dict[Any, tuple[Any, ...]] = {}

    def _plan(self, a: np.ndarray, b: np.ndarray) -> tuple[Any, ...]:
        """Record, shape in memory, axes of the result from it (None: as they are), whether operands change
        places, and pieces.

        Without a record the operands have to be copied first.
        """
        shape, order, p, q = layout(a, b)
        memory = tuple(shape[i] for i in order)
        back = None if order == tuple(range(len(shape))) else tuple(int(i) for i in np.argsort(order))
        if 0 in shape:
            return self.record, memory, back, False, 0
        found, turned = nest(p, q), False
        if found is not None and found[1][-1] == 0 and found[2][-1] == 1:
            found, turned = (found[0], found[2], found[1]), True
        if found is None or found[1][-1] != 1 or found[2][-1] not in (0, 1):
            return None, memory, back, False, 0
        record = self.record.copy()
        record["n"], record["a"], record["b"] = found
        record["turned"] = turned
        line = found[0][-1]
        record["segments"], record["segment"] = -(-line // SEGMENT), SEGMENT
        for name, strides in zip(("reach_a", "reach_b"), found[1:], strict=True):
            record[name] = 1 + sum((n - 1) * s for n, s in zip(found[0], strides, strict=True))
        pieces = math.prod(found[0][:-1]) * -(-line // SEGMENT)
        return record, memory, back, turned, pieces

    def __call__(self, a: np.ndarray, b: np.ndarray, recorder: Recorder | None = None) -> np.ndarray:
        """The result, in the memory order of the larger operand; NotImplemented if a recorder cannot take it
        down.
        """
        key = a.shape, a.strides, b.shape, b.strides
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= SHAPES:
                self._plans = {}
            plan = self._plans[key] = self._plan(a, b)
        record, memory, back, turned, pieces = plan
        if record is None:
            if recorder is not None:
                return NotImplemented
            shape = np.broadcast_shapes(a.shape, b.shape)
            return self(*(np.ascontiguousarray(np.broadcast_to(x, shape)) for x in (a, b)))
        y = np.empty(memory, a.dtype)
        if y.size:
            first, second = (b, a) if turned else (a, b)
            at, held, run = ways(recorder)
            args = held(record), at(first), at(second), at(y)
            time = NANOSECONDS * y.size
            run_shared(self.function, args, pieces, time, self.num_threads, run)
        return y if back is None else y.transpose(back)


def by_table(
    table: np.ndarray, x: np.ndarray, num_threads: int | None = 1, recorder: Recorder | None = None
) -> np.ndarray:
    """Every byte of `x` replaced by the table's; `table` is indexed by the byte's bits. NotImplemented if a
    recorder cannot take it down.
    """
    if numba.config.DISABLE_JIT:
        return table[x.view(np.uint8)]
    y = empty_like(x, table.dtype)
    if y is None:
        if recorder is not None:
            return NotImplemented
        x = np.ascontiguousarray(x)
        y = np.empty(x.shape, table.dtype)
    pieces, time = -(-x.size // PIECE), NANOSECONDS * x.size
    at, held, run = ways(recorder)
    run_shared(look_up, (held(table), at(x), at(y), x.size), pieces, time, num_threads, run)
    return y


def _sums_of(x: np.ndarray, num_threads: int | None, recorder: Recorder | None = None) -> np.ndarray:
    """int32 sums of (images, channels, ...) bytes over all axes from the third on; NotImplemented if a
    recorder cannot take it down.
    """
    images, channels, area = *x.shape[:2], math.prod(x.shape[2:])
    total = np.empty((images, channels), np.int32)
    flip = 128 if x.dtype == np.int8 else 0
    rows, lanes = images, channels
    if x.flags.c_contiguous or turned.sizes(x) is None:
        if not x.flags.c_contiguous and recorder is not None:
            return NotImplemented
        x, rows, lanes = np.ascontiguousarray(x), images * channels, 1
    pieces, time = rows * -(-lanes // SUMMED), NANOSECONDS * x.size
    at, _, run = ways(recorder)
    run_shared(sums, (at(x), at(total), rows, area, lanes, flip), pieces, time, num_threads, run)
    return total


def sum_spatial(x: np.ndarray, num_threads: int | None = 1) -> np.ndarray:
    """Sums of (images, channels, ...) bytes over all axes from the third on, as int64 with those axes
    kept.
    """
    if not sums_fit(x):
        return x.astype(np.int64).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    return _sums_of(x, num_threads).astype(np.int64).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


def sums_fit(x: np.ndarray) -> bool:
    """Whether int32 sums do."""
    return not numba.config.DISABLE_JIT and x.size > 0 and math.prod(x.shape[2:]) <= 1 << 23


@routine(PASS)
def coded_means(args, first, end, worker):
    """QLinearGlobalAveragePool of sums.

    Arguments: sums, dst, params, how many a sum is of, zero points before and after, limits. `params` is
    float32: the scales before and after. Pieces are sums.
    """
    src, p = pointer_at(args, 0), numba.carray(pointer_at(args, 2), (2,), np.float32)
    count, zero, point = load_i64(args, 3), load_i64(args, 4), load_i64(args, 5)
    out = numba.carray(pointer_at(args, 1), (end,), np.uint8)
    below, above = np.float32(load_i64(args, 6) - point), np.float32(load_i64(args, 7) - point)
    for i in range(first, end):
        real = _mean_of(np.float32(load_i32(src, i) - zero * count), np.float32(count)) * p[0]
        out[i] = np.uint8(quantize_one(real, p[1], point, below, above) & np.int32(255))


@inner_dividing
def _mean_of(total, count):
    """A sum divided by a count, both float32."""
    return total / count


def global_average(
    x: np.ndarray, params: np.ndarray, zeros: tuple[int, int], dtype: np.dtype, num_threads: int | None,
    recorder: Recorder | None = None,
) -> np.ndarray:  # fmt: skip
    """QLinearGlobalAveragePool, with both scales, float32, and zero points; NotImplemented if it is not for
    this.
    """
    total = _sums_of(x, num_threads, recorder) if sums_fit(x) else NotImplemented
    if total is NotImplemented:
        return NotImplemented
    y, info = np.empty((*x.shape[:2], *(1,) * (x.ndim - 2)), dtype), np.iinfo(dtype)
    at, held, run = ways(recorder)
    limits = int(info.min), int(info.max)
    args = at(total), at(y), held(params), math.prod(x.shape[2:]), *zeros, *limits
    run(coded_means, args, y.size)
    return y


def averages(
    x: np.ndarray, scales: tuple[Any, Any], zeros: tuple[Any, Any], g: Any, out: Any, everywhere: bool,
    num_threads: int | None = 1,
) -> np.ndarray:  # fmt: skip
    """QLinearAveragePool of bytes with the channels second and two spatial axes; channels are last in the
    result's memory.

    Parameters
    ----------
    x : ndarray
        Images.
    scales, zeros : tuple
        Before and after.
    g : Geometry
        Of the windows.
    out : sequence of int
        Windows along both axes.
    everywhere : bool
        Whether places outside of the image count.
    num_threads : int or None
        As in `lowgemm.gemm`.
    """
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    y, info = np.empty((x.shape[0], *out, x.shape[1]), zeros[1].dtype), np.iinfo(zeros[1].dtype)
    places = np.array((*g.begin, *g.strides, everywhere, 0), np.int64)
    (a, b), (p, q) = (v.reshape(()) for v in scales), (v.reshape(()) for v in zeros)
    params = np.array((p, a, q, b, info.min, info.max), np.float32)
    at = [address(v) for v in (last, y, places, params)]
    pieces, time = x.shape[0] * int(out[0]), 0.2 * y.size * math.prod(g.kernel)
    args = (*at, *last.shape, *map(int, out), *map(int, g.kernel), 128 if x.dtype == np.int8 else 0)
    run_shared(average_pool, args, pieces, time, num_threads)
    return y.transpose(0, 3, 1, 2)
