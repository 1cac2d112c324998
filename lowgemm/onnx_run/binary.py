"""Sums and products of two tensors of bytes, compiled; what they compute is in `elementwise.py` as NumPy
operations.

Bytes are read as ``(byte ^ flip) - flip``, as everywhere in passes over bytes (`passes.py`).
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from lowgemm.compat.onnx_quotient import fused
from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import load_u8, offset, pointer_at, stack, store_8, store_f32
from lowgemm.jit.routine import inner, routine
from lowgemm.onnx_run.binary_vectors import TURN, add_vectors, mul_vectors
from lowgemm.onnx_run.passes import NANOSECONDS, byte_of
from lowgemm.onnx_run.tape import Recorder, ways
from lowgemm.onnx_run.turned import brought_last, sizes

_u64 = np.uint64
#: Axes of a pass over two operands, after those that can be are counted as one.
AXES = 4
#: Shapes of operands whose plans are kept.
SHAPES = 64
#: Elements of a segment of a long line.
SEGMENT = 4096


@inner
def _repeated(byte, to):
    """Fill `TURN` bytes."""
    for i in range(TURN):
        store_8(to, i, byte)
    return to


@inner
def _given(to, first, second, third, fourth, low, high):
    """Write to `to` what the loops of `binary_vectors.py` take: the `first`, `second`, `third` and `fourth`
    number of an operation's own, and the limits.
    """
    store_f32(to, 0, first)
    store_f32(to, 1, second)
    store_f32(to, 2, third)
    store_f32(to, 3, fourth)
    store_f32(to, 4, low)
    store_f32(to, 5, high)
    return to


@inner
def _add_line(a, step_a, b, step_b, out, count, flip, ra, rb, fixed, low, high):
    """`count` sums ``a * ra + b * rb + fixed``; the numbers are fields of `ADD`, the operands pointers.
    `step_a` and `step_b` are 1, or 0 for an operand that is one byte.
    """
    turns, zero = count // TURN, np.float32(0)
    if turns:
        p = a if step_a else _repeated(load_u8(a, 0), stack(64))
        q = b if step_b else _repeated(load_u8(b, 0), stack(64))
        given = _given(stack(64), ra, rb, fixed, zero, low, high)
        add_vectors((p, q, out, TURN * step_a, TURN * step_b, TURN, given, flip, turns))
    x, y = numba.carray(a, (count,), np.uint8), numba.carray(b, (count,), np.uint8)
    z, done = numba.carray(out, (count,), np.uint8), _u64(turns * TURN)
    if step_a and step_b:
        for i in range(done, _u64(count)):
            u, v = (np.int32(x[i]) ^ flip) - flip, (np.int32(y[i]) ^ flip) - flip
            z[i] = byte_of(fused(np.float32(u), ra, fused(np.float32(v), rb, fixed)), low, high)
    elif step_a:
        part = fused(np.float32((np.int32(y[0]) ^ flip) - flip), rb, fixed)
        for i in range(done, _u64(count)):
            z[i] = byte_of(fused(np.float32((np.int32(x[i]) ^ flip) - flip), ra, part), low, high)
    else:
        first = np.float32((np.int32(x[0]) ^ flip) - flip)
        for i in range(done, _u64(count)):
            v = np.float32((np.int32(y[i]) ^ flip) - flip)
            z[i] = byte_of(fused(first, ra, fused(v, rb, fixed)), low, high)


@inner
def _mul_line(a, b, step, out, count, flip, za, zb, ratio, zero, low, high):
    """`count` products ``(a - za) * (b - zb) * ratio + zero``; the numbers are fields of `MUL`, the operands
    pointers. With a `step` of 0, not 1, `b` is one byte.
    """
    turns = count // TURN
    if turns:
        q = b if step else _repeated(load_u8(b, 0), stack(64))
        given = _given(stack(64), ratio, zero, np.float32(za), np.float32(zb), low, high)
        mul_vectors((a, q, out, TURN, TURN * step, TURN, given, flip, turns))
    x, y = numba.carray(a, (count,), np.uint8), numba.carray(b, (count,), np.uint8)
    z, done = numba.carray(out, (count,), np.uint8), _u64(turns * TURN)
    if step:
        for i in range(done, _u64(count)):
            u, v = (np.int32(x[i]) ^ flip) - flip - za, (np.int32(y[i]) ^ flip) - flip - zb
            z[i] = byte_of(np.float32(u * v) * ratio + zero, low, high)
    else:
        v = (np.int32(y[0]) ^ flip) - flip - zb
        for i in range(done, _u64(count)):
            u = (np.int32(x[i]) ^ flip) - flip - za
            z[i] = byte_of(np.float32(u * v) * ratio + zero, low, high)


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
    a, b, out = pointer_at(args, 1), pointer_at(args, 2), pointer_at(args, 3)
    line, i, j, k, skip = _segment(p, first)
    for _ in range(first, end):
        at_a = i * sa[0] + j * sa[1] + k * sa[2] + skip
        at_b, at = i * sb[0] + j * sb[1] + k * sb[2], line * count + skip
        size = min(p.segment, count - skip)
        x, y, to = offset(a, at_a), offset(b, at_b + skip * step), offset(out, at)
        if p.turned:
            _add_line(y, step, x, 1, to, size, flip, ra, rb, fixed, low, high)
        else:
            _add_line(x, 1, y, step, to, size, flip, ra, rb, fixed, low, high)
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
    a, b, out = pointer_at(args, 1), pointer_at(args, 2), pointer_at(args, 3)
    line, i, j, k, skip = _segment(p, first)
    for _ in range(first, end):
        at_a = i * sa[0] + j * sa[1] + k * sa[2] + skip
        at_b, at = i * sb[0] + j * sb[1] + k * sb[2], line * count + skip
        size = min(p.segment, count - skip)
        x, y, to = offset(a, at_a), offset(b, at_b + skip * step), offset(out, at)
        _mul_line(x, y, step, to, size, flip, za, zb, ratio, zero, low, high)
        line, i, j, k, skip = _following(p, line, i, j, k, skip)


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
        pieces = math.prod(found[0][:-1]) * -(-line // SEGMENT)
        return record, memory, back, turned, pieces

    def _in_one_order(self, a: np.ndarray, b: np.ndarray, recorder: Recorder) -> Any:
        """The result of operands that lie in two orders, of which one is brought to the other's."""
        pair = a, b
        last = [sizes(x) is not None for x in pair]
        ordered = all(x.flags.c_contiguous or there for x, there in zip(pair, last, strict=True))
        if a.shape != b.shape or not ordered or last[0] == last[1]:
            return NotImplemented
        first, second = (brought_last(x, self.num_threads, recorder) for x in pair)
        return self(first, second, recorder)

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
                return self._in_one_order(a, b, recorder)
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
