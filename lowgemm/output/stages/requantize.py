"""Real scales: `Requantize` to 8 or 16 bits with a framework's rounding. It consists of simpler stages.

Frameworks agree on ``round(acc * scale) + zero_point`` and differ in the arithmetic; `docs/output.md`
compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.checks.values import choice, integer
from lowgemm.output.base import Stage, axis_of, cast_dtype
from lowgemm.output.real_scale import real_scale
from lowgemm.output.stages.clamp import Clamp
from lowgemm.output.stages.float_scale import FloatScale
from lowgemm.output.stages.saturating_cast import SaturatingCast
from lowgemm.output.stages.scale import SaturatingScale
from lowgemm.output.stages.single_rounding import SingleRoundingScale

ROUNDINGS = ("gemmlowp", "tflite", "tflite_single", "onnx", "onnx_reference", "torch")


def quantize_multiplier(scale: float) -> tuple[int, int]:
    """A real scale as a multiplier in [2**30, 2**31) and an exponent: ``multiplier * 2**(exponent - 31)``.

    Parameters
    ----------
    scale : float
        Finite and at least 0, below 2**30.

    Returns
    -------
    (int, int)
        Multiplier and exponent; (0, 0) for scales too small to matter (exponent below -31).

    Raises
    ------
    ValueError
        If `scale` is negative, not finite, or too large.

    Notes
    -----
    As TensorFlow Lite's ``QuantizeMultiplier``: ties are rounded away from zero, and 2**31 becomes 2**30 with
    the next exponent.

    Examples
    --------
    >>> quantize_multiplier(0.75), quantize_multiplier(0.001)
    ((1610612736, 0), (1099511628, -9))
    """
    if not np.isfinite(scale) or scale < 0:
        raise ValueError(f"scale: expected a finite number from 0 up, got {scale}")
    fraction, exponent = np.frexp(np.float64(scale))
    multiplier, exponent = int(np.floor(float(fraction) * 2.0**31 + 0.5)), int(exponent)
    if multiplier == 2**31:
        multiplier, exponent = 2**30, exponent + 1
    if exponent < -31:
        return 0, 0
    if exponent > 30:
        raise ValueError(f"scale: expected less than 2**30, got {scale}")
    return multiplier, exponent


@dataclass(frozen=True, eq=False, repr=False)
class Requantize(Stage):
    """Scale by a real number, add a zero point, saturate to 8 or 16 bits: ``round(x * scale) + zero_point``.

    However large the product is, nothing wraps: the result is then the bound on its side.

    Parameters
    ----------
    scale : float or array_like of float
        For all, or one per channel; usually ``lhs_scale * rhs_scale / result_scale``. From 0 to 2**30.
    zero_point : int
        The result's zero point.
    dtype : dtype
        uint8, int8 or int16.
    rounding : str
        "gemmlowp" or "tflite": Q0.31 multiplier, SRDHM, then RDP (two roundings). "tflite_single": the same
        multiplier with one rounding, ties upwards. "onnx" and "torch": ``x * scale`` in float32, rounded half
        to even, then the zero point (what onnxruntime and fbgemm compute). "onnx_reference": float64, the
        zero point added before rounding half to even (the onnx package's reference).
    axis : int
        Which way a vector `scale` runs: 1, one value per column; 0, one per row.
    min, max : int, optional
        Narrower bounds of the result, for fused activations.

    Raises
    ------
    TypeError, ValueError
        If a field does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> acc = np.array([[5, -5, 7]], np.int32)
    >>> lowgemm.requantize(acc, lowgemm.Requantize(0.5, 0, np.int8, rounding="gemmlowp"))
    array([[ 3, -2,  4]], dtype=int8)
    >>> lowgemm.requantize(acc, lowgemm.Requantize(0.5, 0, np.int8, rounding="onnx"))
    array([[ 2, -2,  4]], dtype=int8)
    """

    scale: ArrayLike
    zero_point: int = 0
    dtype: DTypeLike = np.int8
    rounding: str = "gemmlowp"
    axis: int = 1
    min: int | None = None
    max: int | None = None
    channel_fields = ("scale",)

    def __post_init__(self) -> None:
        dtype = cast_dtype(self.dtype, (np.uint8, np.int8, np.int16))
        info = np.iinfo(dtype)
        rounding = choice(self.rounding, "rounding", ROUNDINGS)
        low = info.min if self.min is None else integer(self.min, "min", info.min, info.max)
        high = info.max if self.max is None else integer(self.max, "max", low, info.max)
        self._set(
            scale=real_scale(self.scale),
            zero_point=integer(self.zero_point, "zero_point", info.min, info.max),
            dtype=dtype,
            result_dtype=dtype,
            rounding=rounding,
            axis=axis_of(self.axis),
            min=low,
            max=high,
        )
        if self.rounding in ("gemmlowp", "tflite", "tflite_single"):
            self.fixed_point()  # so that a scale that is too large is an error here

    def fixed_point(self) -> tuple[Any, Any]:
        """Multiplier and exponent, scalars or vectors."""
        if isinstance(self.scale, float):
            return quantize_multiplier(self.scale)
        pairs = [quantize_multiplier(s) for s in self.scale]
        return np.array([p[0] for p in pairs], np.int32), np.array([p[1] for p in pairs], np.int32)

    def lower(self) -> list[Stage]:
        """The same as simpler stages."""
        low, high = self.min, self.max
        bounds: list[Stage] = [Clamp(low, high), SaturatingCast(self.dtype)]  # type: ignore[arg-type]
        if self.rounding in ("gemmlowp", "tflite"):
            return [
                SaturatingScale(*self.fixed_point(), self.zero_point, self.axis),
                *bounds,
            ]
        if self.rounding == "tflite_single":
            return [SingleRoundingScale(*self.fixed_point(), self.zero_point, self.axis), *bounds]
        double = self.rounding == "onnx_reference"
        return [
            FloatScale(self.scale, self.zero_point, low, high, double, self.axis),  # type: ignore[arg-type]
            *bounds,
        ]
