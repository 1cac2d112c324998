"""Pooling and flattening: layers that keep the scale of their input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.nn import reference, routines
from lowgemm.nn.layer import Layer, four, pair, tensor_qparams, window_shape
from lowgemm.nn.program import Place, Program
from lowgemm.nn.windows import Windows
from lowgemm.quantization import QParams


class _Pool(Layer):
    """Pooling of (n, height, width, channels).

    Parameters
    ----------
    input_qparams : QParams
        8 bits, one scale; also of the result.
    size : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Default: `size`.
    padding : int, (int, int) or (top, bottom, left, right)
        Less than the window. Padding is never the largest, and does not count in a mean.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.
    """

    average: bool

    def __init__(
        self,
        input_qparams: QParams,
        size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        self.input_qparams = self.output_qparams = tensor_qparams(input_qparams, "input_qparams")
        self.size = pair(size, "size", 1)
        self.stride = self.size if stride is None else pair(stride, "stride", 1)
        self.padding = four(padding, "padding")
        if max(self.padding[:2]) >= self.size[0] or max(self.padding[2:]) >= self.size[1]:
            raise ValueError(f"padding: expected less than the window {self.size}, got {self.padding}")

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As for every layer."""
        oh, ow = window_shape(shape, self.size, self.stride, self.padding)
        if 0 in shape[1:3]:
            raise ValueError(f"x: expected pixels, got shape {shape}")
        return (shape[0], oh, ow, shape[3])

    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """As for every layer."""
        n, oh, ow, channels = self.output_shape(shape)
        to = program.result(n * oh * ow * channels, program.take_last())
        flip = 128 if self.input_qparams.dtype == np.int8 else 0
        windows = Windows(shape, (oh, ow), self.size, self.stride, self.padding)
        params = routines.pool.record(**windows.fields(), flip=flip, average=self.average)
        program.op(routines.pool, params, x, to, space=4 * channels)
        return to

    def reference(self, x: np.ndarray) -> np.ndarray:
        """As for every layer."""
        return reference.pool(x, self.size, self.stride, self.padding, self.average)

    def state(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {name: getattr(self, name) for name in ("input_qparams", "size", "stride", "padding")}


class QuantizedMaxPool2d(_Pool):
    """Largest integer of each window.

    Parameters
    ----------
    input_qparams : QParams
        8 bits, one scale; also of the result.
    size, stride : int or (int, int)
        Height and width of the window, and its steps (default: `size`).
    padding : int, (int, int) or (top, bottom, left, right)
        Less than the window; never the largest.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.quantization import QParams
    >>> pool = QuantizedMaxPool2d(QParams(0.5), 2)
    >>> pool(np.array([[-5, 3], [1, 0]], np.int8).reshape(1, 2, 2, 1)).ravel()
    array([3], dtype=int8)
    """

    kind = "max_pool2d"
    average = False


class QuantizedAveragePool2d(_Pool):
    """Mean of each window: the integer nearest to the mean of the integers, ties away from zero.

    Parameters
    ----------
    input_qparams : QParams
        8 bits, one scale; also of the result.
    size, stride : int or (int, int)
        Height and width of the window, and its steps (default: `size`).
    padding : int, (int, int) or (top, bottom, left, right)
        Less than the window; left out of sum and count.

    Notes
    -----
    The rounding is that of TensorFlow Lite's integer pooling. The zero point plays no part: the mean of
    ``q - zero_point`` is the mean of q less the zero point.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.quantization import QParams
    >>> pool = QuantizedAveragePool2d(QParams(0.5), 2)
    >>> pool(np.array([[-5, 3], [1, -1]], np.int8).reshape(1, 2, 2, 1)).ravel()  # -0.5
    array([-1], dtype=int8)
    """

    kind = "average_pool2d"
    average = True


class QuantizedFlatten(Layer):
    """(n, height, width, channels) to (n, height * width * channels), without a copy.

    Parameters
    ----------
    input_qparams : QParams
        8 bits, one scale; also of the result.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.quantization import QParams
    >>> QuantizedFlatten(QParams(1.0))(np.zeros((2, 3, 4, 5), np.int8)).shape
    (2, 60)
    """

    kind = "flatten"

    def __init__(self, input_qparams: QParams) -> None:
        self.input_qparams = self.output_qparams = tensor_qparams(input_qparams, "input_qparams")

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As for every layer."""
        if not shape:
            raise ValueError("x: expected at least one axis, got a scalar")
        return (shape[0], math.prod(shape[1:]))

    def forward(self, x: np.ndarray) -> np.ndarray:
        """As for every layer."""
        return x.reshape(self.output_shape(x.shape))

    reference = forward

    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """As for every layer."""
        return x

    def state(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"input_qparams": self.input_qparams}
