"""What every integer layer is: integers in, integers out, shapes and work known beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.shown import shown
from lowgemm.checks.values import as_array, integer
from lowgemm.nn.program import Place, Program, Runner
from lowgemm.quantization import QParams


class Layer(ABC):
    """An integer layer; call it with an array of ``input_qparams.dtype``.

    Attributes
    ----------
    input_qparams : QParams
        What the integers it takes stand for.
    output_qparams : QParams or None
        What the integers it gives stand for; None if it gives float32.
    """

    kind: str
    input_qparams: QParams
    output_qparams: QParams | None

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """Run the layer.

        Parameters
        ----------
        x : array_like of ``input_qparams.dtype``
            Shape as the layer's class says.

        Returns
        -------
        ndarray

        Raises
        ------
        TypeError, ValueError
            If `x` does not fit.
        """
        return self.forward(self.checked(x))

    def checked(self, x: ArrayLike) -> np.ndarray:
        """`x` as an array that fits."""
        a = as_array(x, "x", "an array of integers", self.input_qparams.dtype)
        if a.dtype != self.input_qparams.dtype:
            advice = "; quantize(x, input_qparams) makes it of floats" if a.dtype.kind == "f" else ""
            raise TypeError(f"x: expected {self.input_qparams.dtype} (input_qparams), got {a.dtype}{advice}")
        self.output_shape(a.shape)
        return a

    @abstractmethod
    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the result for an input of this shape; ValueError if it does not fit."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Compute; `x` was checked."""
        runner = self.__dict__.get("_runner")
        if runner is None:
            runner = self._runner = Runner([self], serial=True)
        y = runner.run(x, False)
        return self.reference(x) if y is None else y  # NUMBA_DISABLE_JIT

    @abstractmethod
    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """Write down the routines for an input of this shape at `x`; where the result lies."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what holds addresses."""
        return {name: value for name, value in self.__dict__.items() if name != "_runner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it was. Arrays are read-only again, because programs keep what they have made of them."""
        self.__dict__.update(state)
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    @abstractmethod
    def reference(self, x: np.ndarray) -> np.ndarray:
        """Compute by the definition in `lowgemm.nn.reference`: slow, and the same bits."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Constructor arguments: arrays, `QParams`, numbers, text, None, or a list of layers for a branch."""

    def __repr__(self) -> str:
        """What it is made of, arrays by dtype and shape, and its dtypes from input to result."""
        parts = [
            f"{name}={shown(value) if not isinstance(value, np.ndarray) else f'{value.dtype} {value.shape}'}"
            for name, value in self.state().items()
            if value is not None and not isinstance(value, QParams)
        ]
        result = "float32" if self.output_qparams is None else self.output_qparams.dtype
        return f"{type(self).__name__}({', '.join([*parts, f'{self.input_qparams.dtype} -> {result}'])})"

    def maccs(self, shape: tuple[int, ...]) -> int:
        """Multiply-accumulates for an input of this shape."""
        self.output_shape(shape)
        return 0

    @property
    def parameter_bytes(self) -> int:
        """Bytes of weights and biases."""
        return 0


def tensor_qparams(value: Any, name: str) -> QParams:
    """`value`, if it is an 8-bit `QParams` with one scale."""
    if not isinstance(value, QParams):
        raise TypeError(f"{name}: expected QParams(scale, zero_point, dtype), got {type(value).__name__}")
    if value.dtype.itemsize != 1 or value.per_channel:
        raise ValueError(f"{name}: expected one scale and dtype int8 or uint8")
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def pair(value: Any, name: str, low: int, high: int = 1 << 20) -> tuple[int, int]:
    """Height and width: one integer for both, or two."""
    if _is_list(value):
        if len(value) != 2:
            raise ValueError(f"{name}: expected one integer or two, got {len(value)}")
        return integer(value[0], name, low, high), integer(value[1], name, low, high)
    one = integer(value, name, low, high)
    return one, one


def four(value: Any, name: str) -> tuple[int, int, int, int]:
    """Padding (top, bottom, left, right): one integer for all, two for height and width, or four."""
    if _is_list(value) and len(value) == 4:
        return tuple(integer(v, name, 0, 1 << 20) for v in value)  # type: ignore[return-value]
    y, x = pair(value, name, 0)
    return y, y, x, x


def window_shape(
    shape: tuple[int, ...],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Height and width of what windows over (n, height, width, channels) give."""
    if len(shape) != 4:
        raise ValueError(f"x: expected shape (n, height, width, channels), got {shape}")
    sizes = []
    for i in (0, 1):
        reach = dilation[i] * (size[i] - 1) + 1
        room = shape[1 + i] + padding[2 * i] + padding[2 * i + 1] - reach
        if room < 0:
            raise ValueError(f"x: expected at least a window of {reach} with padding, got shape {shape}")
        sizes.append(room // stride[i] + 1)
    return sizes[0], sizes[1]
