"""Bias correction: take out the mean error that rounding the weights puts on a layer's outputs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import number
from lowgemm.quantization.folding import axis_in, finite_array, per_channel


def correct_bias(
    bias: ArrayLike,
    weight: ArrayLike,
    rounded_weight: ArrayLike,
    input_mean: ArrayLike,
    *,
    out_axis: int = -1,
    in_axis: int = 0,
) -> np.ndarray:
    """Bias that gives the outputs of rounded weights the mean that the real weights gave.

    Parameters
    ----------
    bias : array_like, shape (outputs,), or None
        None stands for zeros.
    weight, rounded_weight : array_like of one shape
        The real weights and what `fake_quantize` made of them.
    input_mean : array_like, shape (inputs,)
        Mean of each input channel over calibration data; or by `clipped_normal_mean`, without data.
    out_axis, in_axis : int
        The axes of the weights that run along outputs and inputs; the same for a depthwise layer. Other axes
        (a filter's height and width) are summed over.

    Returns
    -------
    float32 ndarray, shape (outputs,)
        ``bias - sum((rounded_weight - weight) * input_mean)``.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    Source: Nagel et al. 2019 (arXiv:1906.04721), section 4.2. For a padded convolution this is exact except
    near the edges, where some inputs are padding.

    Examples
    --------
    >>> import numpy as np
    >>> correct_bias([1.0], [[0.4], [0.4]], [[0.5], [0.5]], [2.0, 3.0])
    array([0.5], dtype=float32)
    """
    w, rounded = finite_array(weight, "weight"), finite_array(rounded_weight, "rounded_weight")
    if rounded.shape != w.shape:
        raise ValueError(f"rounded_weight: expected shape {w.shape} like weight, got {rounded.shape}")
    out_axis, in_axis = axis_in(out_axis, w.ndim, "out_axis"), axis_in(in_axis, w.ndim, "in_axis")
    mean = per_channel(input_mean, "input_mean", w.shape[in_axis])
    b = np.zeros(w.shape[out_axis]) if bias is None else per_channel(bias, "bias", w.shape[out_axis])
    error = rounded - w
    others = tuple(i for i in range(w.ndim) if i not in (out_axis, in_axis))
    summed = error.sum(others)
    if out_axis == in_axis:
        shift = summed * mean
    else:
        shift = mean @ summed if in_axis < out_axis else summed @ mean
    return (b - shift).astype(np.float32)


def correct_bias_from_outputs(
    bias: ArrayLike, expected: ArrayLike, got: ArrayLike, *, axis: int = -1
) -> np.ndarray:
    """Bias that makes the means of a layer's outputs on calibration data equal.

    Parameters
    ----------
    bias : array_like, shape (channels,), or None
        None stands for zeros.
    expected, got : array_like of one shape
        Outputs, before the activation, of the real layer and of the quantized one as real numbers.
    axis : int
        The axis of the outputs that runs along the channels.

    Returns
    -------
    float32 ndarray, shape (channels,)
        ``bias + mean(expected) - mean(got)``. It covers every source of the error, also rounded inputs.
        Correct the layers in order, each with the inputs that the corrected layers before it give.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> correct_bias_from_outputs(None, np.array([[1.0], [2.0]]), np.array([[1.0], [1.5]]))
    array([0.25], dtype=float32)
    """
    real, rounded = finite_array(expected, "expected"), finite_array(got, "got")
    if real.shape != rounded.shape:
        raise ValueError(f"got: expected shape {real.shape} like expected, got {rounded.shape}")
    axis = axis_in(axis, real.ndim, "axis", "expected")
    if not real.size:
        raise ValueError("expected: expected at least one value per channel")
    b = (
        np.zeros(real.shape[axis])
        if bias is None
        else per_channel(bias, "bias", real.shape[axis], "expected")
    )
    others = tuple(i for i in range(real.ndim) if i != axis)
    return (b + (real - rounded).mean(others)).astype(np.float32)


def clipped_normal_mean(
    mean: ArrayLike, std: ArrayLike, low: float = 0.0, high: float = math.inf
) -> np.ndarray:
    """Mean of ``clip(x, low, high)`` for normal x: what a ReLU (0, inf) or ReLU6 (0, 6) passes on.

    With the `beta` and ``abs(gamma)`` of a batch normalisation for mean and std, this gives `correct_bias`
    its input means without any data.

    Parameters
    ----------
    mean, std : array_like, shape (channels,)
        Of x; std from 0 up.
    low, high : float
        The bounds, low <= high.

    Returns
    -------
    float32 ndarray, shape (channels,)
        The means.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    With a = (low - m) / s, b = (high - m) / s, the standard normal density f and distribution F:
    ``low * F(a) + high * (1 - F(b)) + m * (F(b) - F(a)) + s * (f(a) - f(b))``. Nagel et al. 2019, appendix C.

    Examples
    --------
    >>> clipped_normal_mean([0.0, 3.0], [1.0, 0.0]).round(4)
    array([0.3989, 3.    ], dtype=float32)
    """
    m, s = finite_array(mean, "mean"), finite_array(std, "std")
    if m.ndim != 1:
        raise ValueError(f"mean: expected a vector, got shape {m.shape}")
    if m.shape != s.shape:
        raise ValueError(f"std: expected a vector like mean of shape {m.shape}, got {s.shape}")
    if (s < 0).any():
        raise ValueError("std: expected numbers from 0 up")
    low, high = number(low, "low"), number(high, "high")
    if not low <= high:
        raise ValueError(f"high: expected at least low ({low}), got {high}")
    return np.array([_clipped_mean(*pair, low, high) for pair in zip(m, s, strict=True)], np.float32)


def _clipped_mean(m: float, s: float, low: float, high: float) -> float:
    if s == 0:
        return min(max(m, low), high)

    def density(z: float) -> float:
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    def distribution(z: float) -> float:
        return (1 + math.erf(z / math.sqrt(2))) / 2

    a, b = (low - m) / s, (high - m) / s
    ends = (low * distribution(a) if a > -math.inf else 0) + (high * distribution(-b) if b < math.inf else 0)
    return ends + m * (distribution(b) - distribution(a)) + s * (density(a) - density(b))
