"""QLinearSoftmax in onnxruntime's arithmetic: which values are float32, which float64, and in which order
they are added.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.checks.values import integer
from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_i64, pointer_at, round_even
from lowgemm.jit.routine import inner_dividing, routine
from lowgemm.onnx_run import strided
from lowgemm.onnx_run.operators import need_bytes
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways

_u64 = np.uint64
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


@functools.lru_cache(maxsize=64)
def _powers(scale: float, length: int) -> np.ndarray:
    """``exp(scale * d)`` for d from -255 to 0, as onnxruntime's table has it.

    All are multiplied by so much that a sum of `length` of them stays finite in float32. The room is rounded
    to float32, which shows in the last bits of the table, and those decide ties.
    """
    largest = np.finfo(np.float32).max
    room = max(0.0, float(np.float32(math.log(largest / np.float32(length)))) - 5)
    table = np.array([math.exp((d + room / scale) * scale) for d in range(-255, 1)]).astype(np.float32)
    table.flags.writeable = False
    return table


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


def _of_rows(
    x: np.ndarray,
    scale: float,
    step: np.float32,
    zero: int,
    num_threads: int | None,
    recorder: Recorder | None = None,
) -> np.ndarray:
    """The softmax of the rows of bytes in C order, compiled."""
    y, count = np.empty_like(x), x.shape[-1]
    params = np.array((np.floor(np.float32(1) / step), zero), np.float64)
    powers = _powers(scale, count)
    at, held, run = ways(recorder)
    flip, high = 128 if x.dtype == np.int8 else 0, int(np.iinfo(x.dtype).max)
    rows = x.size // count
    args = at(x), at(y), held(powers), held(params), rows, count, flip, high
    run_shared(softmax, args, rows, 3 * x.size, num_threads, run)
    return y


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """QLinearSoftmax with constant scales, for a recorder too."""
    _, x_scale, _, y_scale, y_zero = [*constants, *[None] * 5][:5]
    given_later = y_zero is None and len(constants) > 4
    if given_later or any(v is None or v.size != 1 or v.dtype != np.float32 for v in (x_scale, y_scale)):
        return None
    scale, step = x_scale.item(), y_scale.reshape(())
    if not (0 < scale < np.inf and step > 0 and np.floor(np.float32(1) / step) < 2**30):
        return None
    zero, axis = 0 if y_zero is None else int(y_zero.reshape(())), attributes.get("axis", -1)
    one_axis = attributes.get("opset", 13) >= 13

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> Any:
        if x.dtype not in _BYTES or not x.size or not -x.ndim <= axis < x.ndim:
            return NotImplemented
        at, shape = axis % x.ndim, x.shape
        rows = np.moveaxis(x, at, -1) if one_axis else x
        if recorder is None:
            rows = np.ascontiguousarray(rows)
        elif not rows.flags.c_contiguous:
            if not strided.takes(rows, rows):
                return NotImplemented
            rows = recorder.copied(rows)
        if one_axis:
            return np.moveaxis(_of_rows(rows, scale, step, zero, state.num_threads, recorder), -1, at)
        rows = rows.reshape(*shape[:at], -1)  # the axes from `axis` on count as one
        return _of_rows(rows, scale, step, zero, state.num_threads, recorder).reshape(shape)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


@inner_dividing
def _quotient(a, b):
    """Of two float32 numbers."""
    return a / b


def qlinear_softmax(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, axis: int = -1, opset: int = 13
) -> np.ndarray:
    """QLinearSoftmax; before operator set 13 the axes from `axis` on count as one.

    As onnxruntime computes it: powers from a float32 table, summed one after the other in float32, divided in
    float64, and scaled by ``floor(1 / y_scale)``, a whole number.
    """
    need_bytes(x)
    axis = integer(axis, "axis", -x.ndim, x.ndim - 1) % x.ndim if x.ndim else 0
    if any(v.size != 1 or v.dtype != np.float32 for v in (x_scale, y_scale)):
        raise ValueError("x_scale, y_scale: expected one float32 each")
    scale, step = x_scale.item(), y_scale.reshape(())
    if not (scale > 0 and step > 0):
        raise ValueError(f"x_scale, y_scale: expected positive numbers, got {scale} and {step}")
    if x.size == 0:
        return x.copy()
    if scale == np.inf:  # a float model with masks of minus infinity; sums of powers are NaN then
        return np.zeros_like(x)
    whole = x.reshape(*x.shape[:axis], -1) if opset < 13 else np.moveaxis(np.atleast_1d(x), axis, -1)
    info = np.iinfo(x.dtype)
    zero = 0 if y_zero is None else int(y_zero.reshape(()))
    if not numba.config.DISABLE_JIT and np.floor(np.float32(1) / step) < 2**30:
        y = _of_rows(np.ascontiguousarray(whole), scale, step, zero, state.num_threads)
        return (y if opset < 13 else np.moveaxis(y, -1, axis)).reshape(x.shape)
    below = whole.astype(np.int64) - whole.max(axis=-1, keepdims=True)
    powers = _powers(scale, whole.shape[-1])[255 + below]
    sums = np.add.accumulate(powers, axis=-1)[..., -1:]
    steps = np.rint(powers.astype(np.float64) / sums * np.floor(np.float32(1) / step))
    y = np.minimum(steps + zero, info.max).astype(x.dtype)
    return (y if opset < 13 else np.moveaxis(y, -1, axis)).reshape(x.shape)
