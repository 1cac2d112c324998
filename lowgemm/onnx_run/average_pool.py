"""QLinearAveragePool of bytes: a compiled pass.

As onnxruntime computes it, the elements of a window are added one after the other in float32, and the zero
point is added before rounding. Channels are last in the memory of the result, since convolutions want them
so. A window over the whole image is a global one (`average.py`), which rounds otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_i64, pointer_at
from lowgemm.jit.routine import inner, inner_dividing, routine
from lowgemm.onnx_run import average, turned
from lowgemm.onnx_run.passes import byte_of
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways
from lowgemm.onnx_run.windows import AXES, Windows, first_and_end, of_three_axes, windows

_u64 = np.uint64
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
#: Nanoseconds of one thread for a byte of a window, about.
NANOSECONDS = 0.2
#: Shapes of images whose windows are kept.
SHAPES = 64


@routine(PASS)
def average_pool(args, first, end, worker):
    """Means of windows; channels are last in the memory of both.

    Arguments: src, dst, numbers (`windows.of_three_axes`), params, channels, bytes of both, a byte to flip by,
    and whether places outside of the image count. `params` is float32: zero point and scale before, zero point
    and scale after, and limits. Pieces are lines of the result, along its last axis.
    """
    g, channels = numba.carray(pointer_at(args, 2), (6, 3), np.int64), load_i64(args, 4)
    p = numba.carray(pointer_at(args, 3), (6,), np.float32)
    x = numba.carray(pointer_at(args, 0), (load_i64(args, 5),), np.uint8)
    out = numba.carray(pointer_at(args, 1), (load_i64(args, 6),), np.uint8)
    f, everywhere = np.int32(load_i64(args, 7)), load_i64(args, 8)
    rows, places = g[5, 0] * g[5, 1], g[1, 0] * g[1, 1] * g[1, 2]
    total = np.empty(channels, np.float32)
    for line in range(first, end):
        n, i, j = line // rows, line % rows // g[5, 1], line % g[5, 1]
        top, middle = i * g[2, 0] - g[4, 0], j * g[2, 1] - g[4, 1]
        low0, high0 = first_and_end(top, g[3, 0], g[0, 0])
        low1, high1 = first_and_end(middle, g[3, 1], g[0, 1])
        for k in range(g[5, 2]):
            left = k * g[2, 2] - g[4, 2]
            low2, high2 = first_and_end(left, g[3, 2], g[0, 2])
            for c in range(channels):
                total[c] = np.float32(0)
            count = 0
            for u in range(low0, min(high0, g[1, 0])):
                row = (n * g[0, 0] + top + u * g[3, 0]) * g[0, 1]
                for v in range(low1, min(high1, g[1, 1])):
                    place = (row + middle + v * g[3, 1]) * g[0, 2]
                    for w in range(low2, min(high2, g[1, 2])):
                        _add_real(x, (place + left + w * g[3, 2]) * channels, total, channels, f, p[0], p[1])
                        count += 1
            divisor = np.float32(places if everywhere else count)
            _mean(total, out, (line * g[5, 2] + k) * channels, channels, divisor, p[2], p[3], p[4], p[5])


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
        out[b + c] = byte_of(total[c] / count / scale + zero, low, high)


def fits(x: np.ndarray) -> bool:
    """Whether the pass takes an image with the channels second."""
    return x.dtype in _BYTES and 2 < x.ndim <= AXES + 2 and bool(x.size) and not numba.config.DISABLE_JIT


def averages(
    x: np.ndarray, params: np.ndarray, dtype: np.dtype, w: Windows, numbers: np.ndarray, everywhere: bool,
    num_threads: int | None = 1, recorder: Recorder | None = None,
) -> Any:  # fmt: skip
    """QLinearAveragePool by the pass; NotImplemented if a recorder cannot take it down.

    Parameters
    ----------
    x : ndarray
        Images of bytes, the channels second, of an AXES number of spatial axes or fewer.
    params : ndarray of float32
        As `params_of` gives them.
    dtype : dtype
        Of the result.
    w : Windows
        Where the windows lie.
    numbers : ndarray of int64
        The same, from `of_three_axes`.
    everywhere : bool
        Whether places outside of the image count.
    num_threads : int or None
        As in `lowgemm.gemm`.
    recorder : Recorder, optional
        What takes the pass down in place of running it.
    """
    if recorder is not None:
        x = recorder.in_order(x)
        if not (x.flags.c_contiguous or turned.sizes(x)):
            return NotImplemented
    images, channels = x.shape[:2]
    y = turned.empty_last((images, channels, *w.out), dtype)
    if not y.size:
        return y if recorder is None else NotImplemented
    x = turned.last(x, num_threads, recorder)
    at, held, run = ways(recorder)
    lines, time = images * math.prod(w.out[:-1]), NANOSECONDS * y.size * math.prod(w.kernel)
    flip = 128 if x.dtype == np.int8 else 0
    args = (at(x), at(y), held(numbers), held(params), channels, x.size, y.size, flip, int(everywhere))
    run_shared(average_pool, args, lines, time, num_threads, run)
    return y


def params_of(scales: tuple[Any, Any], zeros: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """What the pass needs of scales and zero points before and after."""
    (a, b), (p, q) = (v.reshape(()) for v in scales), (v.reshape(()) for v in zeros)
    info = np.iinfo(zeros[1].dtype)
    return np.array((p, a, q, b, info.min, info.max), np.float32)


def is_global(size: Sequence[int], w: Windows) -> bool:
    """Whether onnxruntime takes a pool for a global one."""
    return w.kernel == tuple(size) and not any(w.begin) and set(w.out) == {1}


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """QLinearAveragePool; where the windows of a shape lie is found out once."""
    held = constants[1:5]
    if len(held) < 4 or any(v is None or v.size != 1 for v in held):
        return None
    x_scale, x_zero, y_scale, y_zero = held
    if x_zero.dtype not in _BYTES or y_zero.dtype not in _BYTES or not np.isfinite(y_scale).all():
        return None
    names = ("kernel_shape", "auto_pad", "ceil_mode", "pads", "strides")
    how = {n: attributes[n] for n in names if n in attributes}
    everywhere, channels_last = bool(attributes.get("count_include_pad")), attributes.get("channels_last")
    params = params_of((x_scale, y_scale), (x_zero, y_zero))
    both = np.array((x_scale.item(), y_scale.item()), np.float32)
    points = int(x_zero.item()), int(y_zero.item())
    plans: dict[tuple[int, ...], tuple[Windows, np.ndarray]] = {}

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> Any:
        if x.dtype != x_zero.dtype or x.ndim < 3:
            return NotImplemented
        x = np.moveaxis(x, -1, 1) if channels_last else x
        if not fits(x):
            return NotImplemented
        size = x.shape[2:]
        if size not in plans:
            if len(plans) >= SHAPES:
                plans.clear()
            w = windows(size, **how)
            plans[size] = w, of_three_axes(size, w)
        (w, numbers), threads, dtype = plans[size], state.num_threads, y_zero.dtype
        if is_global(size, w):
            y = average.global_average(x, both, points, dtype, threads, recorder)
        else:
            y = averages(x, params, dtype, w, numbers, everywhere, threads, recorder)
        return np.moveaxis(y, 1, -1) if channels_last and y is not NotImplemented else y

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run
