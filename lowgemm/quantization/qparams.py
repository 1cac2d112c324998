"""What turns real numbers into integers and back: `QParams`, and how to choose it from a range.

``real = scale * (q - zero_point)``, with q in [qmin, qmax]. Sources of the formulas: Jacob et al. 2017
(arXiv:1712.05877, section 2), Krishnamoorthi 2018 (arXiv:1806.08342, section 2), gemmlowp's
``doc/quantization.md``.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.checks.shown import fields_shown
from lowgemm.checks.values import MAX_DIMS, as_array, flag, integer, number, renamed
from lowgemm.output.stages.requantize import quantize_multiplier as _quantize_one

DTYPES = tuple(np.dtype(t) for t in (np.int8, np.uint8, np.int16, np.int32))
#: Scales are kept in float32's normal range: the files and runtimes that take them hold them in float32.
SCALE_MIN, REAL_MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def as_dtype(value: Any, name: str = "dtype") -> np.dtype:
    """`value` as one of the integer dtypes that stand for real numbers."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"{name}: expected int8, uint8, int16 or int32, got {value!r}") from None
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected int8, uint8, int16 or int32, got {dtype}")
    return dtype


def reals(value: Any, name: str) -> np.ndarray:
    """`value` as a float64 scalar array or vector of finite numbers that float32 can hold."""
    a = as_array(value, name, "a number or a vector")
    if a.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected a number or a vector of numbers, got {a.dtype}")
    if a.ndim > 1:
        raise ValueError(f"{name}: expected a number or a vector, got shape {a.shape}")
    a = a.astype(np.float64)
    if not np.isfinite(a).all():
        raise ValueError(f"{name}: expected finite numbers")
    if a.size and np.abs(a).max() > REAL_MAX:
        raise ValueError(f"{name}: expected numbers that float32 can hold, got {np.abs(a).max():g}")
    return a


@dataclass(frozen=True, eq=False)
class QParams:
    """How integers stand for real numbers: ``real = scale * (q - zero_point)`` for q in [qmin, qmax].

    Parameters
    ----------
    scale : float64 ndarray, shape () or (channels,)
        Size of one step; finite and positive.
    zero_point : int64 ndarray of the same shape
        The integer that stands for 0.0, in [qmin, qmax].
    dtype : dtype
        int8, uint8, int16 or int32.
    axis : int or None
        The axis that `scale` runs along; None for one scale per tensor.
    qmin, qmax : int, optional
        Integers in use; those of `dtype` where left out.

    Raises
    ------
    TypeError, ValueError
        If a field does not fit; the message names it.

    Examples
    --------
    >>> p = QParams(0.5, 3, "uint8")
    >>> float(p.low), float(p.high), p.qmax
    (-1.5, 126.0, 255)
    """

    scale: ArrayLike
    zero_point: ArrayLike = 0
    dtype: DTypeLike = "int8"
    axis: int | None = None
    qmin: int | None = None
    qmax: int | None = None

    def __repr__(self) -> str:
        return fields_shown(self)

    def __post_init__(self) -> None:
        dtype = as_dtype(self.dtype)
        info = np.iinfo(dtype)
        qmin = int(info.min) if self.qmin is None else integer(self.qmin, "qmin", info.min, info.max)
        qmax = int(info.max) if self.qmax is None else integer(self.qmax, "qmax", info.min, info.max)
        if qmin >= qmax:
            raise ValueError(f"qmax: expected more than qmin ({qmin}), got {qmax}")
        scale = reals(self.scale, "scale")
        if (scale <= 0).any():
            raise ValueError("scale: expected positive numbers")
        zero_point = as_array(self.zero_point, "zero_point", "an integer or a vector")
        if zero_point.dtype.kind not in "iu":
            raise TypeError(f"zero_point: expected integers, got {zero_point.dtype}")
        if zero_point.ndim == 0:
            zero_point = np.full(scale.shape, zero_point[()])
        if zero_point.shape != scale.shape:
            raise ValueError(f"zero_point: expected shape {scale.shape} like scale, got {zero_point.shape}")
        if ((zero_point < qmin) | (zero_point > qmax)).any():
            raise ValueError(f"zero_point: expected {qmin} to {qmax} (qmin to qmax)")
        zero_point = zero_point.astype(np.int64)
        axis = self.axis
        if scale.ndim and axis is None:
            raise ValueError("axis: expected an integer, because scale is a vector")
        if not scale.ndim and axis is not None:
            raise ValueError("axis: expected None, because scale is one number")
        if axis is not None:
            axis = integer(axis, "axis", -MAX_DIMS, MAX_DIMS - 1)
        for a in (scale, zero_point):
            a.flags.writeable = False
        fields = {"scale": scale, "zero_point": zero_point, "dtype": dtype, "axis": axis}
        for name, value in (fields | {"qmin": qmin, "qmax": qmax}).items():
            object.__setattr__(self, name, value)

    @property
    def low(self) -> np.ndarray:
        """Smallest real number that has an integer, float64 of scale's shape."""
        return self.scale * (self.qmin - self.zero_point)

    @property
    def high(self) -> np.ndarray:
        """Largest real number that has an integer, float64 of scale's shape."""
        return self.scale * (self.qmax - self.zero_point)

    @property
    def per_channel(self) -> bool:
        """Whether each channel has its own scale."""
        return self.axis is not None

    def along(self, ndim: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point shaped to broadcast with an array of `ndim` dimensions."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * ndim
        shape[self.axis] = self.scale.size
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    def _key(self) -> tuple[Any, ...]:
        scale, zero_point = self.scale.tobytes(), self.zero_point.tobytes()
        return (scale, zero_point, self.scale.shape, self.dtype, self.axis, self.qmin, self.qmax)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, QParams) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


def integer_range(dtype: DTypeLike, bits: int | None = None, narrow_range: bool = False) -> tuple[int, int]:
    """Smallest and largest integer in use.

    Parameters
    ----------
    dtype : dtype
        int8, uint8, int16 or int32.
    bits : int, optional
        2 up to the dtype's width: fewer bits are simulated in the same dtype.
    narrow_range : bool
        Leave out the smallest integer, so that a signed range is symmetric (-127 to 127).

    Examples
    --------
    >>> integer_range("int8"), integer_range("uint8", bits=4), integer_range("int8", narrow_range=True)
    ((-128, 127), (0, 15), (-127, 127))
    """
    dtype = as_dtype(dtype)
    width = dtype.itemsize * 8
    bits = width if bits is None else integer(bits, "bits", 2, width)
    low = 0 if dtype.kind == "u" else -(1 << (bits - 1))
    return low + bool(narrow_range), low + (1 << bits) - 1


def round_scale_up(scale: np.ndarray, power_of_two: bool = False) -> np.ndarray:
    """The next float32 (or power of two) not below each scale, as float64."""
    scale = np.maximum(scale, SCALE_MIN)
    if power_of_two:
        fraction, exponent = np.frexp(scale)
        return np.ldexp(1.0, exponent - (fraction == 0.5))
    single = scale.astype(np.float32)
    return np.where(single < scale, np.nextafter(single, np.float32(np.inf)), single).astype(np.float64)


def choose_qparams(
    low: ArrayLike,
    high: ArrayLike,
    dtype: DTypeLike = "int8",
    *,
    bits: int | None = None,
    symmetric: bool = False,
    narrow_range: bool = False,
    axis: int | None = None,
    power_of_two: bool = False,
) -> QParams:
    """Scale and zero point for real numbers in [low, high].

    Parameters
    ----------
    low, high : float or array_like of float
        The range to cover; vectors have one per channel. It is widened to hold 0.0.
    dtype : dtype
        int8, uint8, int16 or int32.
    bits : int, optional
        Use only so many of the dtype's bits (2 up to its width), to simulate narrower integers.
    symmetric : bool
        Zero point in the middle: 0 for signed integers, ``2**(bits - 1)`` for unsigned.
    narrow_range : bool
        Leave out the smallest integer: -127 to 127.
    axis : int, optional
        The axis that vectors run along.
    power_of_two : bool
        Round the scale up to a power of two (dynamic fixed point): rescaling is then a shift.

    Returns
    -------
    QParams
        The scale is the smallest float32 that covers the range. A range of zero width gets scale 1. Without
        `symmetric`, the zero point is rounded to the nearest integer, so that 0.0 is exact. The range that
        is covered shifts by at most half a step. So no x in [low, high] is further than half a step from what
        its integer stands for.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    Asymmetric: ``scale = (high - low) / (qmax - qmin)`` and ``zero_point = round(qmin - low / scale)``,
    rounded as in gemmlowp's ``doc/quantization_example.cc``. Symmetric: the smallest scale for which both
    ``low >= scale * (qmin - zero_point)`` and ``high <= scale * (qmax - zero_point)``.

    Examples
    --------
    >>> p = choose_qparams(-1.0, 3.0, "uint8")
    >>> round(float(p.scale), 6), int(p.zero_point)
    (0.015686, 64)
    >>> choose_qparams([-1, -4], [1, 2], symmetric=True, narrow_range=True, axis=0).scale.round(6)
    array([0.007874, 0.031496])
    """
    symmetric, power_of_two = flag(symmetric, "symmetric"), flag(power_of_two, "power_of_two")
    narrow_range = flag(narrow_range, "narrow_range")
    low, high = reals(low, "low"), reals(high, "high")
    if low.shape != high.shape:
        if low.ndim and high.ndim:
            raise ValueError(f"high: expected shape {low.shape} like low, got {high.shape}")
        low, high = np.broadcast_arrays(low, high)
    if (low > high).any():
        raise ValueError("high: expected at least low")
    if low.ndim and axis is None:
        raise ValueError("axis: expected an integer, because low and high are vectors")
    if axis is not None and not low.ndim:
        raise ValueError("axis: expected None, because low and high are single numbers")
    qmin, qmax = integer_range(dtype, bits, narrow_range)
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if symmetric:
        middle = (qmin + qmax + 1) // 2
        scale = np.maximum(low / (qmin - middle), high / (qmax - middle))
    else:
        scale = (high - low) / (qmax - qmin)
    scale = np.where(low == high, 1.0, round_scale_up(scale, power_of_two))
    if symmetric:
        zero_point = np.full(scale.shape, middle)
    else:
        zero_point = np.clip(np.floor(qmin - low / scale + 0.5), qmin, qmax).astype(np.int64)
    return QParams(scale, zero_point, dtype, axis, qmin, qmax)


def _one_multiplier(real_scale: float) -> tuple[int, int]:
    try:
        return _quantize_one(real_scale)
    except ValueError as error:
        raise renamed(error, scale="real_scale") from None


def quantize_multiplier(real_scale: ArrayLike) -> tuple[Any, Any]:
    """A real scale as a Q0.31 multiplier and an exponent: ``multiplier / 2**31 * 2**exponent``.

    Parameters
    ----------
    real_scale : float or array_like of float
        From 0 up, below 2**30; usually ``lhs_scale * rhs_scale / result_scale``.

    Returns
    -------
    (int, int) or (int32 ndarray, int32 ndarray)
        The multiplier is in [2**30, 2**31), which stands for [0.5, 1). When rounding gives 2**31, it becomes
        2**30 and the exponent grows by one. Zero, and scales below 2**-32, give (0, 0).

    Raises
    ------
    TypeError, ValueError
        If `real_scale` is negative, not finite, or too large.

    Notes
    -----
    The arithmetic is that of `lowgemm.output.stages.requantize.quantize_multiplier`, here also for vectors.
    Source: Jacob et al. 2017, equation 6; TensorFlow Lite's ``QuantizeMultiplier``.

    Examples
    --------
    >>> quantize_multiplier(0.75)
    (1610612736, 0)
    >>> quantize_multiplier(1 - 2.0**-40)
    (1073741824, 1)
    """
    if isinstance(real_scale, numbers.Real) and not isinstance(real_scale, (bool, np.bool_)):
        return _one_multiplier(number(real_scale, "real_scale"))
    scale = reals(real_scale, "real_scale")
    if scale.ndim == 0:
        return _one_multiplier(float(scale))
    pairs = np.array([_one_multiplier(float(s)) for s in scale], dtype=np.int32).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()
