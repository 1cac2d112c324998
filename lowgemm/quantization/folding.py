"""Batch normalisation folded into the weights and bias of the layer before it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import integer, number
from lowgemm.quantization.affine import real_array


def finite_array(x: ArrayLike, name: str) -> np.ndarray:
    """`x` as a float64 array of finite numbers."""
    a = real_array(x, name).astype(np.float64)
    if not np.isfinite(a).all():
        raise ValueError(f"{name}: expected finite numbers")
    return a


def axis_in(axis: Any, ndim: int, name: str, of: str = "weight") -> int:
    """`axis` of the argument `of`, counted from 0."""
    if ndim == 0:
        raise ValueError(f"{of}: expected at least one dimension, got a number")
    return integer(axis, name, -ndim, ndim - 1) % ndim


def per_channel(value: Any, name: str, channels: int, of: str = "weight") -> np.ndarray:
    """`value` as a finite float64 vector with one number per channel of the argument `of`."""
    a = finite_array(value, name)
    if a.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), one per channel of {of}, got {a.shape}")
    return a


def spread(vector: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """The vector shaped to run along one axis of an array."""
    shape = [1] * ndim
    shape[axis] = vector.size
    return vector.reshape(shape)


def fold_batch_norm(
    weight: ArrayLike,
    bias: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    *,
    epsilon: float = 1e-5,
    axis: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of one layer that does the work of a layer and the batch normalisation after it.

    Parameters
    ----------
    weight : array_like, any shape
        Of a linear, convolutional or depthwise layer.
    bias : array_like, shape (channels,), or None
        None stands for zeros.
    gamma, beta, mean, variance : array_like, shape (channels,)
        Scale, shift, and the running mean and variance of the normalisation. `gamma` or `beta` may be None
        where the layer has none.
    epsilon : float
        What the normalisation adds to the variance.
    axis : int
        The axis of `weight` that runs along the outputs.

    Returns
    -------
    (float32 ndarray, float32 ndarray)
        Weights of the shape of `weight`, and a bias of shape (channels,).

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    ``gamma * (x @ w + b - mean) / sqrt(variance + epsilon) + beta`` is linear in x. Fold first and choose the
    ranges of the weights afterwards: folding can multiply channels by very different numbers. Source: Jacob
    et al. 2017, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> weight, bias = fold_batch_norm([[2.0, 1.0]], [1.0, 0.0], [1, 1], [0, 5], [3, 0], [4, 1], epsilon=0.0)
    >>> weight, bias
    (array([[1., 1.]], dtype=float32), array([-1.,  5.], dtype=float32))
    """
    w = finite_array(weight, "weight")
    axis = axis_in(axis, w.ndim, "axis")
    channels = w.shape[axis]
    default = {"bias": 0.0, "gamma": 1.0, "beta": 0.0}
    given = {"bias": bias, "gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    b, g, shift, m, v = (
        np.full(channels, default[name])
        if value is None and name in default
        else per_channel(value, name, channels)
        for name, value in given.items()
    )
    if (v < 0).any():
        raise ValueError("variance: expected numbers from 0 up")
    epsilon = number(epsilon, "epsilon")
    if not np.isfinite(epsilon) or epsilon < 0:
        raise ValueError(f"epsilon: expected a number from 0 up, got {epsilon}")
    if (v + epsilon == 0).any():
        raise ValueError("variance: expected variance + epsilon above 0")
    factor = g / np.sqrt(v + epsilon)
    folded = w * spread(factor, axis, w.ndim)
    return folded.astype(np.float32), ((b - m) * factor + shift).astype(np.float32)
