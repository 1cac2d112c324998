"""Output pipelines of quantized products, made once: a model asks for the same few in every run.

Making one checks every scale of a vector and brings it into the form that the compiled code wants, which
takes longer than a small product does.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lowgemm.output.stages import BiasAddition, Dequantize, Stage
from lowgemm.output.stages.requantize import Requantize

#: Pipelines kept: more than the layers of common networks, and scales that change with each run drop out
#: again.
KEPT = 1024


def pipeline(
    scale: np.ndarray,
    zero_point: int,
    dtype: np.dtype | None,
    rounding: str,
    axis: int = 1,
    bias: np.ndarray | None = None,
) -> tuple[Stage, ...]:
    """Bias, then scale: to 8 bits, or to float32 without a `dtype`.

    Parameters
    ----------
    scale : ndarray of float32
        Scalar, or one value along `axis`.
    zero_point, dtype, rounding
        Of the result.
    axis : int
        1: one scale a column, 0: one a row.
    bias : ndarray of int32, optional
        One value a column.

    Returns
    -------
    tuple of stages
    """
    scale = np.asarray(scale, np.float32)
    held = None if bias is None else np.ascontiguousarray(bias, np.int32).tobytes()
    name = None if dtype is None else dtype.str
    return _pipeline(scale.tobytes(), scale.shape, zero_point, name, rounding, axis, held)


@functools.lru_cache(maxsize=KEPT)
def _pipeline(
    scales: bytes,
    shape: Any,
    zero_point: int,
    dtype: str | None,
    rounding: str,
    axis: int,
    bias: bytes | None,
) -> tuple[Stage, ...]:
    scale = np.frombuffer(scales, np.float32).reshape(shape)
    stages: list[Stage] = [] if bias is None else [BiasAddition(np.frombuffer(bias, np.int32))]
    if dtype is None:
        return (*stages, Dequantize(scale, axis=axis))
    return (*stages, Requantize(scale, zero_point, np.dtype(dtype), rounding=rounding, axis=axis))
