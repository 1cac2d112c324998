"""A chain of integer layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import is_masked
from lowgemm.nn.layer import Layer
from lowgemm.nn.program import Runner
from lowgemm.quantization import dequantize, quantize


def check_chain(layers: Any, name: str) -> tuple[Layer, ...]:
    """`layers`, if each takes what the one before it gives."""
    if not isinstance(layers, Sequence) or isinstance(layers, (str, bytes)):
        raise TypeError(f"{name}: expected a sequence of layers, got {type(layers).__name__}")
    if not layers:
        raise ValueError(f"{name}: expected at least one layer")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(
                f"{name}[{i}]: expected a quantized layer, got {type(layer).__name__}; lowgemm.nn.convert "
                "makes a network of float layers"
            )
        if i and layer.input_qparams != layers[i - 1].output_qparams:
            raise ValueError(
                f"{name}[{i}]: expected input_qparams equal to the output_qparams of the layer before it"
            )
    return tuple(layers)


class QuantizedSequential:
    """Integer layers one after another.

    Parameters
    ----------
    layers : sequence of Layer
        The `input_qparams` of each are the `output_qparams` of the one before it.

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.nn import QuantizedLinear
    >>> from lowgemm.quantization import QParams
    >>> layer = QuantizedLinear(np.array([[1], [-2]], np.int8), None, QParams(0.5), QParams(0.25))
    >>> network = QuantizedSequential([layer])
    >>> network
    QuantizedSequential(
      0: QuantizedLinear(weight=int8 (2, 1), activation='none', rounding='gemmlowp', int8 -> float32)
    )
    >>> network.predict([[1.0, 0.5]])
    array([[0.]], dtype=float32)
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = check_chain(layers, "layers")
        self.input_qparams = self.layers[0].input_qparams
        self.output_qparams = self.layers[-1].output_qparams
        self._runner = Runner(self.layers)

    def __getstate__(self) -> dict[str, Any]:
        """The layers: the rest holds addresses."""
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["layers"])  # type: ignore[misc]

    def __repr__(self) -> str:
        lines = (f"  {i}: {layer!r}\n" for i, layer in enumerate(self.layers))
        return f"{type(self).__name__}(\n{''.join(lines)})"

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """Run on integers.

        Parameters
        ----------
        x : array_like of ``input_qparams.dtype``
            As the first layer takes it.

        Returns
        -------
        ndarray
            As the last layer gives it.

        Raises
        ------
        TypeError, ValueError
            If `x` does not fit.
        """
        return self._run(self.layers[0].checked(x))

    def _run(self, x: np.ndarray) -> np.ndarray:
        y = self._runner.run(x, False)
        if y is None:
            y = x
            for layer in self.layers:
                y = layer.forward(y)
        return y

    def predict(self, x: ArrayLike) -> np.ndarray:
        """Run on real numbers: quantize, run, dequantize.

        Parameters
        ----------
        x : array_like of float
            As the first layer takes it.

        Returns
        -------
        float32 ndarray

        Raises
        ------
        TypeError, ValueError
            If `x` does not fit.
        """
        y = None
        if isinstance(x, np.ndarray) and x.dtype == np.float32 and not is_masked(x):
            self.layers[0].output_shape(x.shape)
            y = self._runner.run(x, True)
        if y is None:
            y = self(quantize(x, self.input_qparams))
        return y if self.output_qparams is None else dequantize(y, self.output_qparams)

    def reference(self, x: ArrayLike) -> np.ndarray:
        """Run every layer by its definition; the bits are those of a call."""
        y = self.layers[0].checked(x)
        for layer in self.layers:
            y = layer.reference(y)
        return y

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the result for an input of this shape; ValueError if it does not fit."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape
