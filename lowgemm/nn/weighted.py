"""What linear and convolutional layers share: weights, an int32 bias, and the output pipeline."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import INT32_MAX, as_array, choice
from lowgemm.engine.packed_rhs import pack_rhs
from lowgemm.nn.layer import Layer, tensor_qparams
from lowgemm.output.stages import BiasAddition, Clamp, Dequantize, relu
from lowgemm.output.stages.requantize import ROUNDINGS, Requantize
from lowgemm.quantization import QParams, quantize, scale_for_bias

ACTIVATIONS = ("none", "relu", "relu6")


def packed(matrix: np.ndarray) -> Any:
    """The matrix packed, or as it is where nothing is compiled (NUMBA_DISABLE_JIT)."""
    return matrix if numba.config.DISABLE_JIT else pack_rhs(matrix)


def _floats(a: np.ndarray) -> str:
    return "; from_float makes a layer of real numbers" if a.dtype.kind == "f" else ""


class Weighted(Layer):
    """Layer with weights; the last axis of the weights runs along the outputs.

    Parameters
    ----------
    weight : array_like of int8 or uint8
        Shape as the class says.
    bias : array_like of int32, shape (outputs,), or None
        In units of ``input scale * weight scale``, with zero point 0.
    input_qparams, weight_qparams : QParams
        8 bits; the weights' may have a scale per output (axis -1).
    output_qparams : QParams, optional
        8 bits, one scale. None: the layer gives float32,
        ``float32(sum) * float32(input scale * weight scale)``.
    activation : {"none", "relu", "relu6"}
        Done by narrower bounds of the result.
    rounding : str
        As for `lowgemm.Requantize`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.
    """

    weight_ndim: int
    #: The factors by which `from_float` raised the scales of the weights, so that the sums hold the bias.
    #: None if the layer was made in another way.
    scale_raised: np.ndarray | None = None

    def __init__(
        self,
        weight: ArrayLike,
        bias: ArrayLike | None,
        input_qparams: QParams,
        weight_qparams: QParams,
        output_qparams: QParams | None = None,
        *,
        activation: str = "none",
        rounding: str = "gemmlowp",
    ) -> None:
        self.input_qparams = tensor_qparams(input_qparams, "input_qparams")
        if not isinstance(weight_qparams, QParams):
            raise TypeError(
                "weight_qparams: expected QParams(scale, zero_point, dtype), got "
                f"{type(weight_qparams).__name__}"
            )
        w = as_array(weight, "weight", "an array of integers", weight_qparams.dtype)
        if w.ndim != self.weight_ndim or 0 in w.shape:
            raise ValueError(f"weight: expected {self.weight_ndim} axes, none empty, got shape {w.shape}")
        if w.dtype != weight_qparams.dtype or w.dtype.itemsize != 1:
            raise TypeError(f"weight: expected int8 or uint8 as in weight_qparams, got {w.dtype}{_floats(w)}")
        outputs = w.shape[-1]
        if weight_qparams.per_channel and (
            weight_qparams.axis not in (-1, w.ndim - 1) or weight_qparams.scale.size != outputs
        ):
            raise ValueError(f"weight_qparams: expected {outputs} scales on axis -1")
        if output_qparams is not None:
            tensor_qparams(output_qparams, "output_qparams")
        if bias is not None:
            bias = as_array(bias, "bias", "a vector of int32", np.int32)
            if bias.dtype != np.int32:
                raise TypeError(f"bias: expected int32, got {bias.dtype}{_floats(bias)}")
            if bias.shape != (outputs,):
                raise ValueError(f"bias: expected shape ({outputs},), got {bias.shape}")
            bias = bias.copy()
            bias.flags.writeable = False
        activation = choice(activation, "activation", ACTIVATIONS)
        rounding = choice(rounding, "rounding", ROUNDINGS)
        if activation == "relu6" and output_qparams is None:
            raise ValueError("activation: expected 'none' or 'relu' for a float32 result, got 'relu6'")
        self.weight = np.array(w, order="C")
        self.weight.flags.writeable = False
        self.bias, self.weight_qparams, self.output_qparams = bias, weight_qparams, output_qparams
        self.activation, self.rounding = activation, rounding
        self.input_zero = int(self.input_qparams.zero_point)
        self.weight_zero = weight_qparams.zero_point if weight_qparams.zero_point.any() else 0
        if isinstance(self.weight_zero, np.ndarray) and self.weight_zero.ndim == 0:
            self.weight_zero = int(self.weight_zero)
        self.result_dtype = np.dtype(np.float32) if output_qparams is None else output_qparams.dtype
        self.stages = self.make_stages(slice(None))

    @staticmethod
    def _quantized(
        weight: ArrayLike, bias: ArrayLike | None, input_qparams: QParams, weight_qparams: QParams
    ) -> tuple[tuple[np.ndarray, np.ndarray | None, QParams, QParams], np.ndarray]:
        """The first four arguments of the class, of real weights and a real bias; and the factors by which
        the scales of the weights were raised.
        """
        tensor_qparams(input_qparams, "input_qparams")
        weight_qparams, raised = scale_for_bias(weight_qparams, weight, bias, input_qparams)
        layer_bias = None
        if bias is not None:
            scale = input_qparams.scale * weight_qparams.scale
            layer_bias = quantize(bias, QParams(scale, 0, "int32", -1 if scale.ndim else None))
        return (quantize(weight, weight_qparams), layer_bias, input_qparams, weight_qparams), raised

    @property
    def outputs(self) -> int:
        """Number of outputs (channels)."""
        return int(self.weight.shape[-1])

    @property
    def accumulator_scale(self) -> np.ndarray:
        """What one unit of a sum stands for: float64, of shape () or (outputs,)."""
        return self.input_qparams.scale * self.weight_qparams.scale

    @property
    def parameter_bytes(self) -> int:
        """Bytes of weights and biases."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def make_stages(self, part: slice) -> tuple[Any, ...]:
        """Output pipeline of a part of the outputs."""
        stages: list[Any] = [] if self.bias is None else [BiasAddition(self.bias[part])]
        unit = self.accumulator_scale
        unit = unit[part] if unit.ndim else float(unit)
        if self.output_qparams is None:
            if self.activation == "relu":
                stages.append(Clamp(0, INT32_MAX))
            return (*stages, Dequantize(unit))
        p = self.output_qparams
        low, high = p.qmin, p.qmax
        zero, scale = int(p.zero_point), float(p.scale)
        if self.activation != "none":
            low = max(low, relu(zero).min)
        if self.activation == "relu6":
            high = min(high, zero + round(6 / scale))
        return (*stages, Requantize(unit / scale, zero, p.dtype, self.rounding, min=low, max=high))

    def state(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = (
            "weight",
            "bias",
            "input_qparams",
            "weight_qparams",
            "output_qparams",
            "activation",
            "rounding",
        )
        return {name: getattr(self, name) for name in names}
