"""Operands and timing that the subjects share."""

import numpy as np

import lowgemm
from lowgemm.cli.timing import blas_threads, interleave

CUBES = [64, 256, 512, 1024]


def operands(m, k, n, lhs="uint8", rhs="int8"):
    """Random operands with touched pages, and the rhs packed."""
    rng = np.random.default_rng(m + k + n)
    pair = []
    for dtype, shape in ((lhs, (m, k)), (rhs, (k, n))):
        info = np.iinfo(dtype)
        pair.append(rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True))
    return (*pair, lowgemm.pack_rhs(pair[1]))


def pipeline(n):
    """Bias, scale, clamp and cast to uint8."""
    return [
        lowgemm.BiasAddition(np.arange(n)),
        lowgemm.ScaleInt32ByFixedPointAndExponent(1518500250, -11, 128),
        lowgemm.Clamp(0, 255),
        lowgemm.SaturatingCast(np.uint8),
    ]


def ratio_to_float32(lhs, rhs, call, seconds=0.5):
    """Time of `call` over the time of float32 NumPy, interleaved, BLAS on one thread: lower is better."""
    left, right = lhs.astype(np.float32), rhs.astype(np.float32)
    with blas_threads(1):
        times = interleave({"float32": lambda: left @ right, "int8": call}, seconds=seconds)
    return times["int8"] / times["float32"], times["int8"]
