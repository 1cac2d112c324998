"""Sigmoid and tanh in integers: which input range to use, tables of 256 entries, and the gain, measured.

An output with 8 bits cannot tell ``sigmoid(6) = 0.9975`` from 1 by more than 0.64 of its steps of 1/256, nor
``tanh(3) = 0.9951`` by more than 0.63 of its steps of 1/128. So inputs are clipped there, and all integers go
to the range in which the output moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm import fixedpoint
from lowgemm.checks.values import choice, number, renamed
from lowgemm.output.stages import Lut, Stage
from lowgemm.output.stages.requantize import Requantize
from lowgemm.quantization.affine import dequantize, quantize, real_array
from lowgemm.quantization.qparams import QParams, as_dtype, choose_qparams, quantize_multiplier, reals

#: Where an 8-bit output is within about 0.64 of a step of its limit.
CLIP = {"sigmoid": 6.0, "tanh": 3.0}
#: Integer bits of the fixed-point argument: |x| < 16, and sigmoid(16) is 1 - 1.1e-7.
INTEGER_BITS = 4


def _kind(kind: Any) -> str:
    return choice(kind, "kind", CLIP)


def _bound(kind: str, clip: Any) -> float:
    """Largest magnitude to represent."""
    bound = CLIP[kind] if clip is None else number(clip, "clip")
    if not bound > 0:  # not NaN either
        raise ValueError(f"clip: expected a positive number, got {clip}")
    return bound


def _real(kind: str, x: np.ndarray) -> np.ndarray:
    """The function itself, in float64; written with tanh, which never overflows."""
    x = x.astype(np.float64)
    return np.tanh(x) if kind == "tanh" else (np.tanh(x / 2) + 1) / 2


def s_shaped_input(
    kind: str,
    low: float,
    high: float,
    dtype: DTypeLike = "int8",
    *,
    clip: float | None = None,
    bits: int | None = None,
    symmetric: bool = False,
    narrow_range: bool = False,
    axis: int | None = None,
    power_of_two: bool = False,
) -> QParams:
    """Scale and zero point for the input of a sigmoid or tanh, clipped to where the output still moves.

    Parameters
    ----------
    kind : str
        "sigmoid" or "tanh".
    low, high : float
        The range that was observed.
    dtype : dtype
        int8 or uint8.
    clip : float, optional
        Largest magnitude to represent: by default 6 for sigmoid and 3 for tanh; ``math.inf`` keeps the range.
    bits, symmetric, narrow_range, axis, power_of_two :
        As for `choose_qparams`.

    Returns
    -------
    QParams
        For ``[max(low, -clip), min(high, clip)]``. A range that lies wholly beyond `clip` ends at `clip`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> p = s_shaped_input("tanh", -20.0, 15.0)
    >>> round(float(p.low), 2), round(float(p.high), 2)
    (-2.99, 3.01)
    """
    bound = _bound(_kind(kind), clip)
    low, high = number(low, "low"), number(high, "high")
    if not low <= high:
        raise ValueError(f"high: expected at least low ({low}), got {high}")
    return choose_qparams(
        max(min(low, bound), -bound),
        min(max(high, -bound), bound),
        dtype,
        bits=bits,
        symmetric=symmetric,
        narrow_range=narrow_range,
        axis=axis,
        power_of_two=power_of_two,
    )


def s_shaped_output(kind: str, dtype: DTypeLike = "int8") -> QParams:
    """Scale and zero point for the output of a sigmoid (0 to 1) or tanh (-1 to 1).

    Parameters
    ----------
    kind : str
        "sigmoid" or "tanh".
    dtype : dtype
        int8 or uint8.

    Returns
    -------
    QParams
        The scales 1/256 and 1/128 that TensorFlow Lite prescribes; 1.0 saturates to 255/256 or 127/128.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> p = s_shaped_output("sigmoid")
    >>> float(p.low), float(p.high)
    (0.0, 0.99609375)
    """
    dtype = as_dtype(dtype)
    if dtype not in (np.int8, np.uint8):
        raise TypeError(f"dtype: expected int8 or uint8, got {dtype}")
    lowest = int(np.iinfo(dtype).min)
    if _kind(kind) == "sigmoid":
        return QParams(1 / 256, lowest, dtype)
    return QParams(1 / 128, lowest + 128, dtype)


def s_shaped_table(
    kind: str,
    input_qparams: QParams,
    output_qparams: QParams | None = None,
    *,
    method: str = "fixedpoint",
) -> np.ndarray:
    """All 256 results of an integer sigmoid or tanh, as `lowgemm.Lut` takes them.

    Parameters
    ----------
    kind : str
        "sigmoid" or "tanh".
    input_qparams : QParams
        Per tensor, int8 or uint8; see `s_shaped_input`.
    output_qparams : QParams, optional
        Default: ``s_shaped_output(kind, input_qparams.dtype)``.
    method : str
        "fixedpoint": the integer functions of `lowgemm.fixedpoint` on int32, the same on every machine.
        "float": the nearest integer to the real result. They differ by one step at most.

    Returns
    -------
    ndarray, shape (256,)
        Of the output's dtype. Entry i is the result for the integer ``i + (-128 if int8 else 0)``.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> table = s_shaped_table("tanh", s_shaped_input("tanh", -9, 9))
    >>> table[[0, 64, 128, 192, 255]].tolist()
    [-127, -115, 3, 117, 127]
    """
    kind, method = _kind(kind), choice(method, "method", ("fixedpoint", "float"))
    out = s_shaped_output(kind, _eight_bit(input_qparams, "input_qparams").dtype)
    out = out if output_qparams is None else _eight_bit(output_qparams, "output_qparams")
    lowest = int(np.iinfo(input_qparams.dtype).min)
    q = np.clip(np.arange(lowest, lowest + 256), input_qparams.qmin, input_qparams.qmax)
    if method == "float":
        return quantize(_real(kind, dequantize(q, input_qparams)), out)
    raw = _multiply(
        q - int(input_qparams.zero_point), float(input_qparams.scale) * 2.0 ** (31 - INTEGER_BITS)
    )
    function = fixedpoint.tanh if kind == "tanh" else fixedpoint.logistic
    y = _multiply(function(raw, INTEGER_BITS), 2.0**-31 / float(out.scale))
    return np.clip(y.astype(np.int64) + int(out.zero_point), out.qmin, out.qmax).astype(out.dtype)


def _multiply(x: np.ndarray, real: float) -> np.ndarray:
    """int32 times a real number in integers, saturating: shift left, SRDHM, shift right with rounding.

    What saturates is at least 2**30 as an argument. With 4 integer bits this is |x| >= 8, where every 8-bit
    output is at its limit.
    """
    multiplier, exponent = quantize_multiplier(min(real, 2.0**30 - 1))
    x = fixedpoint.shift_left(x.astype(np.int32), max(exponent, 0))
    x = fixedpoint.saturating_rounding_doubling_high_mul(x, np.int32(multiplier))
    return fixedpoint.rounding_divide_by_pot(x, max(-exponent, 0))


def _eight_bit(qparams: Any, name: str) -> QParams:
    if not isinstance(qparams, QParams):
        raise TypeError(f"{name}: expected QParams, got {type(qparams).__name__}")
    if qparams.dtype not in (np.int8, np.uint8):
        raise TypeError(f"{name}: expected dtype int8 or uint8, got {qparams.dtype}")
    if qparams.axis is not None:
        raise ValueError(f"{name}: expected one scale per tensor, got one per channel")
    return qparams


def s_shaped_stages(
    kind: str,
    accumulator_scale: ArrayLike,
    input_qparams: QParams,
    output_qparams: QParams | None = None,
    *,
    method: str = "fixedpoint",
    rounding: str = "gemmlowp",
) -> list[Stage]:
    """Output pipeline for `lowgemm.gemm`: accumulators to the 8-bit sigmoid or tanh of what they stand for.

    Parameters
    ----------
    kind : str
        "sigmoid" or "tanh".
    accumulator_scale : float or array_like of float
        What one unit of the accumulator stands for: ``lhs_scale * rhs_scale``, for all or one per column.
    input_qparams, output_qparams, method :
        As for `s_shaped_table`.
    rounding : str
        As for `lowgemm.Requantize`.

    Returns
    -------
    list of Stage
        Scale and clamp to the clipped 8-bit input, then a `Lut`. Put a `BiasAddition` before them as needed.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> stages = s_shaped_stages("sigmoid", 0.001, s_shaped_input("sigmoid", -8, 8))
    >>> y = lowgemm.requantize(np.array([[-9000, 0, 1000]], np.int32), stages)
    >>> dequantize(y, s_shaped_output("sigmoid")).round(3)
    array([[0.004, 0.5  , 0.73 ]], dtype=float32)
    """
    table = s_shaped_table(kind, input_qparams, output_qparams, method=method)
    scale = reals(accumulator_scale, "accumulator_scale") / float(input_qparams.scale)
    try:
        to_input = Requantize(
            scale if scale.ndim else float(scale),
            int(input_qparams.zero_point),
            input_qparams.dtype,
            rounding=rounding,
            min=input_qparams.qmin,
            max=input_qparams.qmax,
        )
    except (TypeError, ValueError) as error:
        raise renamed(error, scale="accumulator_scale") from None
    # A `Requantize` must come last in a pipeline, so its parts are used: scale and bounds, without the cast.
    return [*to_input.lower()[:-1], Lut(table, input_qparams.dtype)]


@dataclass(frozen=True)
class SShapedGain:
    """Errors of an integer sigmoid or tanh with the whole input range, and with the clipped one.

    Parameters
    ----------
    kind : str
        "sigmoid" or "tanh".
    step, step_clipped : float
        Step of the input.
    rms_error, rms_error_clipped : float
        Root of the mean square of (integer result - real result) for inputs within the clip; beyond it the
        output saturates either way.
    max_error, max_error_clipped : float
        Largest magnitude of it, for all inputs.
    """

    kind: str
    step: float
    step_clipped: float
    rms_error: float
    rms_error_clipped: float
    max_error: float
    max_error_clipped: float

    @property
    def resolution_gain(self) -> float:
        """How many times finer the input's steps are."""
        return self.step / self.step_clipped

    def __str__(self) -> str:
        return (
            f"{self.kind}: steps {self.resolution_gain:.2f} times finer, "
            f"rms error {self.rms_error:.5f} -> {self.rms_error_clipped:.5f}, "
            f"largest error {self.max_error:.5f} -> {self.max_error_clipped:.5f}"
        )


def s_shaped_gain(
    kind: str, x: ArrayLike, dtype: DTypeLike = "int8", *, clip: float | None = None, bits: int | None = None
) -> SShapedGain:
    """Measure on data what clipping the input's range gains.

    Parameters
    ----------
    kind : str
        "sigmoid" or "tanh".
    x : array_like of real numbers
        Inputs of the activation; their range is the whole range.
    dtype : dtype
        int8 or uint8.
    clip : float, optional
        As for `s_shaped_input`.
    bits : int, optional
        Fewer bits for the input, simulated.

    Returns
    -------
    SShapedGain
        Figures; printing it gives one line.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> print(s_shaped_gain("sigmoid", np.linspace(-20, 20, 10_001)))
    sigmoid: steps 3.33 times finer, rms error 0.00543 -> 0.00193, largest error 0.01946 -> 0.00702
    """
    x = real_array(x)
    if not x.size or not np.isfinite(x).all():
        raise ValueError("x: expected at least one number, all of them finite")
    kind = _kind(kind)
    real, low, high = _real(kind, x), float(x.min()), float(x.max())
    out = s_shaped_output(kind, dtype)
    inside = np.abs(x) <= _bound(kind, clip)
    if not inside.any():
        raise ValueError("x: expected a number within the clip")
    figures = []
    for bound in (math.inf, clip):
        p = s_shaped_input(kind, low, high, dtype, clip=bound, bits=bits)
        table = s_shaped_table(kind, p, out)
        got = dequantize(table[quantize(x, p).astype(np.int64) - np.iinfo(p.dtype).min], out)
        error = got.astype(np.float64) - real
        figures.append(
            (float(p.scale), float(np.sqrt((error[inside] ** 2).mean())), float(np.abs(error).max()))
        )
    pairs = [value for pair in zip(*figures, strict=True) for value in pair]
    return SShapedGain(kind, *pairs)
