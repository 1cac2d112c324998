"""Float layers as descriptions in NumPy: what a network is converted from, and how it runs in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.shown import fields_shown
from lowgemm.checks.values import choice, integer
from lowgemm.nn.layer import four, pair, window_shape
from lowgemm.nn.weighted import ACTIVATIONS
from lowgemm.quantization.folding import finite_array, per_channel


def activate(x: np.ndarray, activation: str) -> np.ndarray:
    """The activation of real numbers."""
    if activation == "none":
        return x
    return np.clip(x, 0, 6 if activation == "relu6" else None)


def _prepare(layer: Any, ndim: int) -> None:
    """Check and convert the fields that layers with weights share."""
    weight = finite_array(layer.weight, "weight").astype(np.float32)
    if weight.ndim != ndim or 0 in weight.shape:
        raise ValueError(f"weight: expected {ndim} axes, none empty, got shape {weight.shape}")
    bias = (
        np.zeros(weight.shape[-1])
        if layer.bias is None
        else per_channel(layer.bias, "bias", weight.shape[-1])
    )
    layer.activation = choice(layer.activation, "activation", ACTIVATIONS)
    layer.weight, layer.bias = weight, bias.astype(np.float32)


class _Shown:
    def __repr__(self) -> str:
        return fields_shown(self)


@dataclass(eq=False, repr=False)
class Linear(_Shown):
    """``activation(x @ weight + bias)``.

    Parameters
    ----------
    weight : array_like of float, shape (inputs, outputs)
        The weights.
    bias : array_like of float, shape (outputs,), optional
        None stands for zeros.
    activation : {"none", "relu", "relu6"}
        What follows.
    """

    weight: ArrayLike
    bias: ArrayLike | None = None
    activation: str = "none"

    def __post_init__(self) -> None:
        _prepare(self, 2)

    def linear(self, x: np.ndarray) -> np.ndarray:
        """Without the activation."""
        if x.ndim == 0 or x.shape[-1] != self.weight.shape[0]:
            raise ValueError(f"x: expected shape (..., {self.weight.shape[0]}), got {x.shape}")
        return x @ self.weight + self.bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run on float32."""
        return activate(self.linear(x), self.activation)


@dataclass(eq=False, repr=False)
class Conv2d(_Shown):
    """Convolution of (n, height, width, channels).

    Parameters
    ----------
    weight : array_like of float, shape (filter height, filter width, channels / groups, outputs)
        The weights.
    bias : array_like of float, shape (outputs,), optional
        None stands for zeros.
    activation : {"none", "relu", "relu6"}
        What follows.
    stride, padding, dilation, groups
        As for `lowgemm.nn.QuantizedConv2d`.
    """

    weight: ArrayLike
    bias: ArrayLike | None = None
    activation: str = "none"
    stride: int | tuple[int, int] = 1
    padding: int | Sequence[int] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1

    def __post_init__(self) -> None:
        _prepare(self, 4)
        self.stride, self.dilation = pair(self.stride, "stride", 1), pair(self.dilation, "dilation", 1)
        self.padding, self.groups = four(self.padding, "padding"), integer(self.groups, "groups", 1)
        if self.weight.shape[-1] % self.groups:
            raise ValueError(f"groups: expected a divisor of {self.weight.shape[-1]}, got {self.groups}")

    @property
    def options(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups."""
        return {n: getattr(self, n) for n in ("stride", "padding", "dilation", "groups")}

    def linear(self, x: np.ndarray) -> np.ndarray:
        """Without the activation."""
        kh, kw, depth, outputs = self.weight.shape
        oh, ow = window_shape(x.shape, (kh, kw), self.stride, self.padding, self.dilation)
        if x.shape[3] != depth * self.groups:
            raise ValueError(f"x: expected {depth * self.groups} channels, got shape {x.shape}")
        top, bottom, left, right = self.padding
        padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))) if any(self.padding) else x
        taps = []
        for ky in range(kh):
            for kx in range(kw):
                y, c = ky * self.dilation[0], kx * self.dilation[1]
                taps.append(
                    padded[
                        :,
                        y : y + self.stride[0] * oh : self.stride[0],
                        c : c + self.stride[1] * ow : self.stride[1],
                    ]
                )
        taps = [t[:, :oh, :ow] for t in taps]
        w = self.weight.reshape(kh * kw, depth, outputs)
        if depth == 1 and self.groups == outputs > 1:
            y = taps[0] * w[0, 0]
            for tap, filt in zip(taps[1:], w[1:, 0], strict=True):
                y += tap * filt
            return y + self.bias
        per_group = outputs // self.groups
        parts = []
        for g in range(self.groups):
            channels, group_outputs = (
                slice(g * depth, (g + 1) * depth),
                slice(g * per_group, (g + 1) * per_group),
            )
            patches = np.concatenate([t[..., channels] for t in taps], axis=-1)
            parts.append(patches.reshape(-1, kh * kw * depth) @ w[..., group_outputs].reshape(-1, per_group))
        return np.concatenate(parts, axis=-1).reshape(x.shape[0], oh, ow, outputs) + self.bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run on float32."""
        return activate(self.linear(x), self.activation)


@dataclass(eq=False)
class MaxPool2d:
    """Largest value of each window.

    Parameters
    ----------
    size, stride, padding
        As for `lowgemm.nn.QuantizedMaxPool2d`.
    """

    size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None
    padding: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        self.size = pair(self.size, "size", 1)
        self.stride = self.size if self.stride is None else pair(self.stride, "stride", 1)
        self.padding = four(self.padding, "padding")

    def windows(self, x: np.ndarray, fill: float) -> np.ndarray:
        """Windows as the last two axes, with what padding holds."""
        window_shape(x.shape, self.size, self.stride, self.padding)
        top, bottom, left, right = self.padding
        padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
        view = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=(1, 2))
        return view[:, :: self.stride[0], :: self.stride[1]]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run on float32."""
        return self.windows(x, -np.inf).max((-2, -1))


class AveragePool2d(MaxPool2d):
    """Mean of each window; padding does not count.

    Parameters
    ----------
    size, stride, padding
        As for `lowgemm.nn.QuantizedAveragePool2d`.
    """

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run on float32."""
        if not any(self.padding):
            return self.windows(x, 0).mean((-2, -1))
        return np.nanmean(self.windows(x, np.nan), axis=(-2, -1))


@dataclass(eq=False)
class Flatten:
    """(n, height, width, channels) to (n, height * width * channels)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run on float32."""
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))


@dataclass(eq=False)
class Residual:
    """``activation(x + branch(x))``.

    Parameters
    ----------
    branch : sequence of layers
        Keeps the shape.
    activation : {"none", "relu"}
        After the sum.
    """

    branch: Sequence[Any] = field(default_factory=list)
    activation: str = "none"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run on float32."""
        return activate(x + run_float(self.branch, x), self.activation)


def run_float(layers: Sequence[Any], x: ArrayLike) -> np.ndarray:
    """Run float layers one after another.

    Parameters
    ----------
    layers : sequence of layers
        Of this module.
    x : array_like of float
        Taken as float32.

    Returns
    -------
    float32 ndarray

    Examples
    --------
    >>> import numpy as np
    >>> run_float([Linear([[1.0], [-2.0]], [0.5], "relu")], np.array([[3.0, 1.0], [0.0, 1.0]]))
    array([[1.5],
           [0. ]], dtype=float32)
    """
    y = np.asarray(x, np.float32)
    for layer in layers:
        y = layer(y)
    return y
