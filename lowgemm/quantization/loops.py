"""The loops of `affine.py` and `histogram.py` compiled by Numba: the same arithmetic in one pass.

NumPy makes six passes through float64 temporaries; `docs/quantization.md` has the times. Compiled at the
first call with an array of `WORTHWHILE` elements, once per pair of dtypes, and cached on disk.

Arguments: `x` is what is read and `out` what is written; `scale` and `zero_point` are arrays, one of each for
a channel or for a trial; `qmin` and `qmax` are the least and the largest integer of the type.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numpy.typing import DTypeLike

from lowgemm.jit import disk_cache

#: Below this many elements NumPy takes less than about a tenth of a millisecond, so nothing is compiled for
#: them.
WORTHWHILE = 1 << 15

#: Smaller magnitudes count as zeros in a histogram. (The smallest normal float32 is 2**-126.) No bin is
#: narrower than this, so that an index never underflows.
EXPONENT_MIN = -160
TINY = 2.0**EXPONENT_MIN

QUANTIZE, FAKE, DEQUANTIZE = 0, 1, 2


@functools.cache
def _loop(mode: int, last: bool) -> Any:
    """A loop over (outer, channels, inner) elements; `last`: the scales run along the inner axis instead."""

    @disk_cache.njit(nogil=True, error_model="numpy")
    def loop(x, scale, zero_point, qmin, qmax, out):
        """Quantize, do it there and back, or dequantize; the number of NaNs."""
        outer, channels, inner = x.shape
        low, high = float(qmin), float(qmax)
        nans = 0
        for o in range(outer):
            for c in range(channels):
                for i in range(inner):
                    k = i if last else c
                    s, z = scale[k], zero_point[k]
                    if mode == DEQUANTIZE:
                        out[o, c, i] = s * (np.float64(x[o, c, i]) - z)
                        continue
                    v = np.float64(x[o, c, i])
                    t = np.rint(v / s) + z
                    t = (
                        t if t < high else high
                    )  # a NaN becomes `high`: the conversion below is always defined
                    t = t if t > low else low
                    nans += v != v
                    if mode == FAKE:
                        out[o, c, i] = s * (t - z)
                    else:
                        out[o, c, i] = np.int32(t)
        return nans

    return loop


@disk_cache.njit(nogil=True, error_model="numpy")
def _count(x, per_unit, first, counts):
    """Count values in bins of width ``1 / per_unit`` from bin `first` on; returns the zeros."""
    zeros = 0
    for i in range(x.size):
        v = np.float64(x[i])
        if abs(v) < TINY:
            zeros += 1
        else:
            counts[int(np.floor(v * per_unit)) - first] += 1
    return zeros


def run_count(x: np.ndarray, exponent: int, first: int, counts: np.ndarray) -> int:
    """Add finite values, all inside the bins of width ``2**exponent``, to `counts`; returns the zeros."""
    return int(_count(np.ascontiguousarray(x), float(np.ldexp(1.0, -exponent)), first, counts))


def worthwhile(x: np.ndarray) -> bool:
    """Whether to leave the array to compiled code."""
    return x.size >= WORTHWHILE and x.dtype.itemsize <= 8 and not numba.config.DISABLE_JIT


def run_loop(mode: int, x: np.ndarray, qparams: Any, dtype: DTypeLike) -> tuple[np.ndarray, int]:
    """Result of dtype `dtype`, and how many NaNs there were."""
    x = np.ascontiguousarray(x)
    out = np.empty(x.shape, dtype)
    axis = 0 if qparams.axis is None else qparams.axis % x.ndim
    channels = qparams.scale.size
    outer = int(np.prod(x.shape[:axis], dtype=np.int64))
    last = qparams.axis is not None and axis == x.ndim - 1
    shape = (outer, 1, channels) if last else (outer, channels, -1)
    if qparams.axis is None:
        shape = (1, 1, -1)
    nans = _loop(mode, last)(
        x.reshape(shape),
        np.atleast_1d(qparams.scale),
        np.atleast_1d(qparams.zero_point).astype(np.float64),
        qparams.qmin,
        qparams.qmax,
        out.reshape(shape),
    )
    return out, nans
