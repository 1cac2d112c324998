"""The fully connected layer."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.gemm import gemm
from lowgemm.nn import reference
from lowgemm.nn.program import Place, Program
from lowgemm.nn.weighted import Weighted, packed
from lowgemm.quantization import QParams


class QuantizedLinear(Weighted):
    """``(x - input zero) @ (weight - weight zero) + bias``, rescaled.

    The input is (..., inputs), the result (..., outputs).

    Parameters
    ----------
    weight : array_like of int8 or uint8, shape (inputs, outputs)
        Packed once, here.
    bias, input_qparams, weight_qparams, output_qparams
        As in `lowgemm.nn.weighted.Weighted`.
    activation, rounding
        As in `lowgemm.nn.weighted.Weighted`.

    Notes
    -----
    Jacob et al. 2017 (arXiv:1712.05877), section 2.4.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.quantization import QParams
    >>> weight, bias = np.array([[1], [-2]], np.int8), np.array([4], np.int32)
    >>> layer = QuantizedLinear(weight, bias, QParams(0.5, 3, "uint8"), QParams(0.25), QParams(0.125))
    >>> layer(np.array([[5, 3], [3, 5]], np.uint8))
    array([[6],
           [0]], dtype=int8)
    """

    kind = "linear"
    weight_ndim = 2

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
        super().__init__(
            weight,
            bias,
            input_qparams,
            weight_qparams,
            output_qparams,
            activation=activation,
            rounding=rounding,
        )
        self.packed = packed(self.weight)

    @classmethod
    def from_float(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None,
        input_qparams: QParams,
        weight_qparams: QParams,
        output_qparams: QParams | None = None,
        *,
        activation: str = "none",
        rounding: str = "gemmlowp",
    ) -> QuantizedLinear:
        """Layer of real weights and a real bias.

        Parameters
        ----------
        weight : array_like of float, shape (inputs, outputs)
            PyTorch keeps it the other way round: give ``weight.T``.
        bias : array_like of float, shape (outputs,), or None
            In real units.
        input_qparams, weight_qparams : QParams
            How to quantize. Where int32 sums could not hold the bias and the products (weights that are
            nearly 0), the scale of the weights is raised until they can:
            `lowgemm.quantization.scale_for_bias`.
        output_qparams, activation, rounding
            As for the class.

        Returns
        -------
        QuantizedLinear
            Its `scale_raised` says what each scale was multiplied by.
        """
        quantized, raised = cls._quantized(weight, bias, input_qparams, weight_qparams)
        made = cls(*quantized, output_qparams, activation=activation, rounding=rounding)
        made.scale_raised = raised
        return made

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As for every layer."""
        if not shape or shape[-1] != self.weight.shape[0]:
            raise ValueError(f"x: expected shape (..., {self.weight.shape[0]}), got {shape}")
        return (*shape[:-1], self.outputs)

    def maccs(self, shape: tuple[int, ...]) -> int:
        """As for every layer."""
        return math.prod(self.output_shape(shape)) * self.weight.shape[0]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """As for every layer."""
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        y = gemm(
            flat,
            self.packed,
            lhs_zero_point=self.input_zero,
            rhs_zero_point=self.weight_zero,
            output=self.stages,
        )
        return y if x.ndim == 2 else y.reshape(self.output_shape(x.shape))

    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """As for every layer."""
        rows, stride = math.prod(shape[:-1]), self.outputs * self.result_dtype.itemsize
        to = program.result(rows * stride, program.take_last())
        kind, depth = self.input_qparams.dtype.kind, shape[-1]
        zeros = (self.input_zero, self.weight_zero)
        program.product(x, kind, (rows, depth), depth, self.packed, zeros, self.stages, to, stride)
        return to

    def reference(self, x: np.ndarray) -> np.ndarray:
        """As for every layer."""
        y = reference.linear(x, self.weight, self.input_zero, self.weight_zero, self.stages)
        return y.astype(self.result_dtype)
