"""Every integer layer's slow, obvious definition, in NumPy int64. The fast layers give the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.reference import apply_pipeline, conv, wrap32
from lowgemm.reference_fixedpoint import (
    rounding_divide_by_pot,
    saturating_rounding_doubling_high_mul,
    shift_left,
)

Stages = tuple[Any, ...]
#: Bits that residual addition gains before it rescales (TensorFlow Lite's choice for 8-bit addition).
ADD_SHIFT = 20


def linear(
    x: np.ndarray, weight: np.ndarray, input_zero: int, weight_zero: Any, stages: Stages
) -> np.ndarray:
    """``(x - input_zero) @ (weight - weight_zero)`` modulo 2**32 through the output pipeline."""
    lhs = x.reshape(-1, x.shape[-1]).astype(np.int64) - input_zero
    acc = lhs @ (weight.astype(np.int64) - weight_zero)
    return apply_pipeline(wrap32(acc), stages).reshape(*x.shape[:-1], weight.shape[-1])


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    input_zero: int,
    weight_zero: Any,
    stages: Stages,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> np.ndarray:
    """Convolution of (n, height, width, channels)."""
    top, bottom, left, right = padding
    around = ((top, bottom), (left, right))
    return conv(
        x, weight, image_zero_point=input_zero, filter_zero_point=weight_zero, stride=stride, padding=around,
        dilation=dilation, groups=groups, output=list(stages) or None,
    )  # fmt: skip


def pool(
    x: np.ndarray,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    average: bool,
) -> np.ndarray:
    """Largest or mean integer of each window, padding left out; the mean to nearest, ties away from zero."""
    n, height, width, channels = x.shape
    top, bottom, left, right = padding
    oh = (height + top + bottom - size[0]) // stride[0] + 1
    ow = (width + left + right - size[1]) // stride[1] + 1
    out = np.empty((n, oh, ow, channels), x.dtype)
    for oy in range(oh):
        for ox in range(ow):
            y0, x0 = oy * stride[0] - top, ox * stride[1] - left
            window = x[:, max(y0, 0) : y0 + size[0], max(x0, 0) : x0 + size[1]].astype(np.int64)
            if average:
                total, count = window.sum((1, 2)), window.shape[1] * window.shape[2]
                # twice the sum, because half of an odd count is no integer
                out[:, oy, ox] = np.sign(total) * ((2 * np.abs(total) + count) // (2 * count))
            else:
                out[:, oy, ox] = window.max((1, 2))
    return out


def rescale(x: ArrayLike, multiplier: int, exponent: int) -> np.ndarray:
    """``x * multiplier / 2**31 * 2**exponent`` with gemmlowp's two roundings."""
    shifted = shift_left(x, max(exponent, 0), 32)
    return rounding_divide_by_pot(
        saturating_rounding_doubling_high_mul(shifted, multiplier, 32), max(-exponent, 0)
    )


def add(
    a: np.ndarray,
    b: np.ndarray,
    zeros: tuple[int, int, int],
    factors: tuple[tuple[int, int], ...],
    low: int,
    high: int,
) -> np.ndarray:
    """Sum of two tensors of different scales: both rescaled to a common one, added, and rescaled.

    `zeros` are the zero points of a, b and the result; `factors` the three (multiplier, exponent) pairs.
    """
    left = rescale((a.astype(np.int64) - zeros[0]) * 2**ADD_SHIFT, *factors[0])
    right = rescale((b.astype(np.int64) - zeros[1]) * 2**ADD_SHIFT, *factors[1])
    return np.clip(rescale(left + right, *factors[2]) + zeros[2], low, high)


def dynamic_linear(
    x: np.ndarray, weight: np.ndarray, weight_scale: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    """Rows of x to int8 with a scale of their own, an integer product, and back; every step in float32."""
    f32 = np.float32
    largest = np.abs(x).max(axis=1, initial=f32(0))
    zero = largest < f32(2.0**-119)
    safe = np.where(zero, f32(1), largest)
    inverse = np.where(zero, f32(0), f32(127) / safe)
    row_scale = np.where(zero, f32(0), safe / f32(127))
    q = np.rint(x * inverse[:, None]).astype(np.int64)
    acc = (q @ weight.astype(np.int64)).astype(f32)  # exact: no sum wraps, whatever the depth
    y = (acc * weight_scale.astype(f32)) * row_scale[:, None]
    return y if bias is None else y + bias.astype(f32)
