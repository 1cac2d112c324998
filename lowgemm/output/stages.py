"""gemmlowp's output stages, as descriptions.

Equations: gemmlowp's ``doc/output.md`` and ``public/output_stages.h``; `docs/output.md` repeats them with worked
ties. Two roundings occur: RDP(x, e), a division by 2**e to nearest with ties away from zero, and SRDHM(a, b),
``floor((a * b + 2**30) / 2**31)``, which saturates only for min * min.

Next file to open: `pipeline.py`, how a list of stages becomes what runs on a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowgemm.checks.values import integer, integers
from lowgemm.output.base import Stage, axis_of, same_length


@dataclass(frozen=True, eq=False)
class BiasAddition(Stage):
    """Add a vector: ``x + bias[column]`` (axis 1) or ``x + bias[row]`` (axis 0), modulo 2**32.

    Parameters
    ----------
    bias : array_like of int32, shape (n,) or (m,)
        One value for each column (axis 1) or row (axis 0).
    axis : int
        1 or 0.

    Raises
    ------
    TypeError, ValueError
        If `bias` is not an integer vector in int32 range.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.zeros((2, 2), np.int32), [lowgemm.BiasAddition([1, 2])])
    array([[1, 2],
           [1, 2]], dtype=int32)
    """

    bias: Any
    axis: int = 1
    channel_fields = ("bias",)

    def __post_init__(self) -> None:
        bias = integers(self.bias, "bias")
        if not isinstance(bias, np.ndarray):
            raise TypeError("bias: expected a vector of integers, got a scalar")
        self._set(bias=bias, axis=axis_of(self.axis))


@dataclass(frozen=True, eq=False)
class QuantizeDownInt32ByFixedPoint(Stage):
    """``RDP(SRDHM(x, multiplier), shift) + offset_after_shift``, the addition modulo 2**32.

    Parameters
    ----------
    multiplier : int
        Q0.31 fixed-point factor, any int32.
    shift : int
        0 to 31, to the right.
    offset_after_shift : int
        Usually the result's zero point.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> half = lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 1, 10)  # x * 0.5 / 2 + 10
    >>> lowgemm.requantize(np.array([[8, 100]], np.int32), [half])
    array([[12, 35]], dtype=int32)
    """

    multiplier: int
    shift: int
    offset_after_shift: int = 0

    def __post_init__(self) -> None:
        self._set(
            multiplier=integer(self.multiplier, "multiplier"),
            shift=integer(self.shift, "shift", 0, 31),
            offset_after_shift=integer(self.offset_after_shift, "offset_after_shift"),
        )


@dataclass(frozen=True, eq=False)
class ScaleInt32ByFixedPointAndExponent(Stage):
    """``RDP(SRDHM(saturate(x * 2**max(exponent, 0)), multiplier), max(-exponent, 0)) + offset_after_shift``.

    Parameters
    ----------
    multiplier : int or array_like of int
        Q0.31 fixed-point factor, for all or one per channel.
    exponent : int or array_like of int
        -31 to 30; positive is a saturating shift to the left before the product.
    offset_after_shift : int
        Added at the end, modulo 2**32.
    axis : int
        Which way vectors run: 1, one value per column; 0, one per row.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> s = lowgemm.ScaleInt32ByFixedPointAndExponent([2**30, 2**30], [0, -1])
    >>> lowgemm.requantize(np.array([[8, 8]], np.int32), [s])
    array([[4, 2]], dtype=int32)
    """

    multiplier: Any
    exponent: Any
    offset_after_shift: int = 0
    axis: int = 1
    channel_fields = ("multiplier", "exponent")

    def __post_init__(self) -> None:
        self._set(
            multiplier=integers(self.multiplier, "multiplier"),
            exponent=integers(self.exponent, "exponent", -31, 30),
            offset_after_shift=integer(self.offset_after_shift, "offset_after_shift"),
            axis=axis_of(self.axis),
        )
        same_length(multiplier=self.multiplier, exponent=self.exponent)


@dataclass(frozen=True, eq=False)
class QuantizeDownInt32ToUint8Scale(Stage):
    """gemmlowp's first scheme: ``RDP((x + offset) * mult_int, shift)``, sum and product modulo 2**32.

    The result is int32 and may be negative, in spite of the name.

    Parameters
    ----------
    offset, mult_int : int or array_like of int
        For all or one per channel.
    shift : int
        0 to 31, to the right.
    axis : int
        Which way vectors run: 1, one value per column; 0, one per row.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> s = lowgemm.QuantizeDownInt32ToUint8Scale(offset=1, mult_int=3, shift=1)
    >>> lowgemm.requantize(np.array([[0, -2]], np.int32), [s])  # 1.5 and -1.5, ties away from zero
    array([[ 2, -2]], dtype=int32)
    """

    offset: Any
    mult_int: Any
    shift: int
    axis: int = 1
    channel_fields = ("offset", "mult_int")

    def __post_init__(self) -> None:
        self._set(
            offset=integers(self.offset, "offset"),
            mult_int=integers(self.mult_int, "mult_int"),
            shift=integer(self.shift, "shift", 0, 31),
            axis=axis_of(self.axis),
        )
        same_length(offset=self.offset, mult_int=self.mult_int)


@dataclass(frozen=True, eq=False)
class Clamp(Stage):
    """``minimum(maximum(x, min), max)``; with min > max the answer is max, as in gemmlowp.

    Parameters
    ----------
    min, max : int
        Bounds, int32.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[-5, 5, 500]], np.int32), [lowgemm.Clamp(0, 255)])
    array([[  0,   5, 255]], dtype=int32)
    """

    min: int
    max: int

    def __post_init__(self) -> None:
        self._set(min=integer(self.min, "min"), max=integer(self.max, "max"))


@dataclass(frozen=True, eq=False)
class Tanh(Stage):
    """Integer hyperbolic tangent of ``(x - real_zero) / real_amplitude``, times the amplitude, plus the zero.

    Parameters
    ----------
    real_zero : int
        The int32 that stands for 0.0.
    real_amplitude : int
        The int32 distance that stands for 1.0, at least 1.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[-900, 0, 900]], np.int32), [lowgemm.Tanh(0, 100)])
    array([[-100,    0,  100]], dtype=int32)
    """

    real_zero: int
    real_amplitude: int

    def __post_init__(self) -> None:
        self._set(
            real_zero=integer(self.real_zero, "real_zero"),
            real_amplitude=integer(self.real_amplitude, "real_amplitude", 1),
        )


def cast_dtype(value: Any, allowed: Sequence[type], name: str = "dtype") -> np.dtype:
    """`value` as one of the `allowed` dtypes; None is none of them, though NumPy reads it as float64."""
    try:
        dtype = np.dtype(value)
    except Exception:  # NumPy raises several kinds, SyntaxError among them
        raise TypeError(f"{name}: expected a NumPy dtype, got {value!r:.80}") from None
    if dtype not in [np.dtype(t) for t in allowed]:
        raise ValueError(f"{name}: expected {' or '.join(np.dtype(t).name for t in allowed)}, got {dtype}")
    return dtype


@dataclass(frozen=True, eq=False)
class SaturatingCast(Stage):
    """Clip to the range of uint8, int8 or int16 and store as that.

    Parameters
    ----------
    dtype : dtype
        ``numpy.uint8``, ``numpy.int8`` or ``numpy.int16``.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[-5, 500]], np.int32), [lowgemm.SaturatingCast(np.int8)])
    array([[ -5, 127]], dtype=int8)
    """

    dtype: Any

    def __post_init__(self) -> None:
        dtype = cast_dtype(self.dtype, (np.uint8, np.int8, np.int16))
        self._set(dtype=dtype, result_dtype=dtype)


@dataclass(frozen=True, eq=False)
class TruncatingCast(Stage):
    """Keep the low 8 bits: ``x mod 256`` as uint8.

    Parameters
    ----------
    dtype : dtype
        ``numpy.uint8``.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[-1, 257]], np.int32), [lowgemm.TruncatingCast()])
    array([[255,   1]], dtype=uint8)
    """

    dtype: Any = np.uint8

    def __post_init__(self) -> None:
        dtype = cast_dtype(self.dtype, (np.uint8,))
        self._set(dtype=dtype, result_dtype=dtype)


def check_pipeline(output: Any, m: int, n: int) -> tuple[tuple[Stage, ...], np.dtype]:
    """Check a pipeline for an m x n result.

    Parameters
    ----------
    output : None, stage or sequence of stages
        As given to `gemm`.
    m, n : int
        Size of the result.

    Returns
    -------
    stages : tuple of Stage
        The stages.
    dtype : dtype
        Type of the result: that of the last stage's cast, or int32.

    Raises
    ------
    TypeError
        If something is not a stage.
    ValueError
        If a stage that decides the result's type is not last, or a vector's length does not fit.
    """
    if output is None:
        return (), np.dtype(np.int32)
    if isinstance(output, Stage):
        output = (output,)
    if not isinstance(output, (list, tuple)):
        raise TypeError(f"output: expected a stage or a list of stages, got {type(output).__name__}")
    stages = tuple(output)
    for i, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise TypeError(f"output[{i}]: expected an output stage, got {stage!r:.80}")
        if stage.result_dtype is not None and i + 1 < len(stages):
            raise ValueError(f"output[{i}]: {type(stage).__name__} gives the result's dtype and must be last")
        stage.check(m, n)
    result = stages[-1].result_dtype if stages else None
    return stages, np.dtype(np.int32) if result is None else result


__all__ = [
    "BiasAddition",
    "Clamp",
    "QuantizeDownInt32ByFixedPoint",
    "QuantizeDownInt32ToUint8Scale",
    "SaturatingCast",
    "ScaleInt32ByFixedPointAndExponent",
    "Stage",
    "Tanh",
    "TruncatingCast",
    "check_pipeline",
]
