"""Means of whole images of bytes, compiled (those of windows: `average_pool.py`).

Bytes are read as ``(byte ^ flip) - flip``, as everywhere in passes over bytes (`passes.py`).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from lowgemm.compat.onnx_passes import quantize_one
from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_i32, load_i64, offset, pointer_at, store_32
from lowgemm.jit.routine import inner_dividing, routine
from lowgemm.onnx_run import turned
from lowgemm.onnx_run.byte_sums import sum_columns, sum_run
from lowgemm.onnx_run.tape import Recorder, ways

#: Nanoseconds of one thread for a byte, about.
NANOSECONDS = 0.04
#: Lanes whose sums are made together.
SUMMED = 256


@routine(PASS)
def sums(args, first, end, worker):
    """int32 sums over the middle axis of (rows, count, lanes) bytes.

    Arguments: src, dst, rows, count, lanes, flip. Pieces are `SUMMED` lanes of a row.
    """
    count, lanes, flip = load_i64(args, 3), load_i64(args, 4), load_i64(args, 5)
    parts = (lanes + SUMMED - 1) // SUMMED
    for piece in range(first, end):
        r, low = piece // parts, piece % parts * SUMMED
        src = offset(pointer_at(args, 0), r * count * lanes + low)
        dst = offset(pointer_at(args, 1), 4 * (r * lanes + low))
        size = min(SUMMED, lanes - low)
        if lanes == 1:
            store_32(dst, 0, sum_run(src, count, flip) - flip * count)
        else:
            sum_columns(src, size, lanes, count, flip, dst)
            for c in range(size):
                store_32(dst, c, load_i32(dst, c) - flip * count)


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
