"""The slow, obvious definition of the product and of every output stage, in NumPy, for reading and for tests.

Everything fast in lowgemm is compared with this, bit for bit. All integers are int64; products of zero points
wrap modulo 2**64, which leaves them right modulo 2**32.

It takes nothing from the fast code that could be wrong in both: of the stages only their classes and fields,
and constants are worked out here anew, each from its definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm import reference_fixedpoint as fp
from lowgemm.output import stages
from lowgemm.output.base import Stage
from lowgemm.output.check import check_pipeline
from lowgemm.output.stages import requantize


def wrap32(x: ArrayLike) -> np.ndarray:
    """Reduce int64 values to int32 modulo 2**32 (still in an int64 array)."""
    return fp.wrap(x, 32)


def along(value: int | float | np.ndarray, axis: int) -> Any:
    """A per-channel value shaped to broadcast over an (m, n) matrix: one for each row (0) or column (1)."""
    return value[:, None] if isinstance(value, np.ndarray) and axis == 0 else value


def gemm(
    lhs: ArrayLike,
    rhs: ArrayLike,
    *,
    lhs_zero_point: ArrayLike = 0,
    rhs_zero_point: ArrayLike = 0,
    output: Stage | Sequence[Stage] | None = None,
    out: np.ndarray | None = None,
    accumulate: bool = False,
) -> np.ndarray:
    """Definition of `lowgemm.gemm`.

    Parameters
    ----------
    lhs, rhs : array_like of uint8 or int8
        As in `lowgemm.gemm`.
    lhs_zero_point, rhs_zero_point : int or array_like
        Scalar, or one per row of the lhs, column of the rhs; of two dimensions or more, what broadcasts with
        the operand.
    output : stage or list of stages, optional
        Output pipeline.
    out : ndarray, optional
        Array to write to.
    accumulate : bool
        Add to `out`.

    Returns
    -------
    ndarray
        The exact result; a NumPy scalar of two vectors.

    Examples
    --------
    >>> import numpy as np
    >>> gemm(np.array([[1, 2]], np.uint8), np.array([[3], [-4]], np.int8), lhs_zero_point=1)
    array([[-4]], dtype=int32)
    """
    lhs, rhs = np.asarray(lhs), np.asarray(rhs)
    lhs_vector, rhs_vector = lhs.ndim == 1, rhs.ndim == 1
    a = np.atleast_2d(lhs).astype(np.int64)
    b = (rhs[:, None] if rhs_vector else rhs).astype(np.int64)
    zero = np.asarray(lhs_zero_point, dtype=np.int64)
    a = a - (zero if zero.ndim != 1 else along(zero + np.zeros(a.shape[-2], np.int64), 0))
    b = b - np.asarray(rhs_zero_point, dtype=np.int64)
    acc = wrap32(np.matmul(a, b))
    if accumulate:
        assert out is not None
        acc = wrap32(acc + out.reshape(acc.shape))
    checked, dtype = check_pipeline(output, *acc.shape[-2:])
    result = apply_pipeline(acc, checked).astype(dtype)
    if rhs_vector:
        result = result[..., 0]
    if lhs_vector:
        result = result[..., 0] if rhs_vector else result[..., 0, :]
    if out is None:
        return np.asarray(result, dtype=dtype)[()]  # of two vectors a scalar
    out[...] = result
    return out


def conv(
    image: ArrayLike,
    filters: ArrayLike,
    *,
    image_zero_point: int = 0,
    filter_zero_point: Any = 0,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int = 1,
    output: Any = None,
) -> np.ndarray:
    """Definition of `lowgemm.conv`: channels last, one number of `stride` and `dilation` and one pair of
    `padding` for each axis.

    Parameters
    ----------
    image, filters : array_like of uint8 or int8
        Of shapes (images, ..., channels) and (..., channels of a group, outputs).
    image_zero_point, filter_zero_point : int, int or array_like
        What is subtracted; the second may have one for each output.
    stride, padding, dilation, groups, output
        As in `lowgemm.conv`.

    Returns
    -------
    ndarray
        int32, or what the pipeline gives.
    """
    x, w = np.asarray(image, np.int64) - int(image_zero_point), np.asarray(filters, np.int64)
    w = w - np.asarray(filter_zero_point, np.int64)
    x = np.pad(x, [(0, 0), *padding, (0, 0)])  # 0 after the zero point is subtracted
    *taps, depth, outputs = w.shape
    sizes = zip(x.shape[1:-1], taps, stride, dilation, strict=True)
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes]
    sums = np.zeros((x.shape[0], *out, outputs), np.int64)
    for o in range(outputs):
        first = o // (outputs // groups) * depth
        for tap in np.ndindex(*taps):
            pixels = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilation, out, stride, strict=True)
            )
            sums[..., o] += (
                x[(slice(None), *pixels, slice(first, first + depth))] * w[(*tap, slice(None), o)]
            ).sum(-1)
    rows = wrap32(sums.reshape(-1, outputs))
    checked, result = check_pipeline(output, *rows.shape)
    return apply_pipeline(rows, checked).astype(result).reshape(sums.shape)


def apply_pipeline(acc: ArrayLike, output: tuple[stages.Stage, ...]) -> np.ndarray:
    """Put int32 accumulators through stages; the last axis is the column, the one before it the row."""
    x: np.ndarray = np.asarray(acc).astype(np.int64)
    for stage in output:
        x = apply_stage(x, stage)
    return x


def apply_stage(x: np.ndarray, stage: stages.Stage) -> np.ndarray:
    """One stage's equation."""
    return _EQUATIONS[type(stage)](x, stage)


def _bias(x: np.ndarray, s: stages.BiasAddition) -> np.ndarray:
    return wrap32(x + along(s.bias, s.axis))


def _fixed_point(x: np.ndarray, s: stages.QuantizeDownInt32ByFixedPoint) -> np.ndarray:
    y = fp.saturating_rounding_doubling_high_mul(x, s.multiplier, 32)
    return wrap32(fp.rounding_divide_by_pot(y, s.shift) + s.offset_after_shift)


def fixed_point_and_exponent(x: np.ndarray, multiplier: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """x * multiplier * 2**(exponent - 31) with gemmlowp's double rounding."""
    y = fp.shift_left(x, np.maximum(exponent, 0), 32)
    y = fp.saturating_rounding_doubling_high_mul(y, multiplier, 32)
    return fp.rounding_divide_by_pot(y, np.maximum(np.negative(exponent), 0))


def _scale(x: np.ndarray, s: stages.ScaleInt32ByFixedPointAndExponent) -> np.ndarray:
    y = fixed_point_and_exponent(x, along(s.multiplier, s.axis), along(s.exponent, s.axis))
    return wrap32(y + s.offset_after_shift)


def _legacy(x: np.ndarray, s: stages.QuantizeDownInt32ToUint8Scale) -> np.ndarray:
    product = wrap32(wrap32(x + along(s.offset, s.axis)) * along(s.mult_int, s.axis))
    return fp.rounding_divide_by_pot(product, s.shift)


def _clamp(x: np.ndarray, s: stages.Clamp) -> np.ndarray:
    return np.minimum(np.maximum(x, s.min), s.max)


def tanh_constants(real_amplitude: int) -> tuple[int, int, int, int]:
    """Constants of the tanh stage: 1/amplitude as (Q0.31, doublings) and amplitude as (Q0.31, halvings)."""

    def q31(x: float) -> int:
        return min(int(np.floor(x * 2.0**31 + 0.5)), 2**31 - 1)

    inverse, doublings = 1.0 / real_amplitude, 0
    while inverse < 0.5:
        inverse *= 2
        doublings += 1
    amplitude, halvings = float(real_amplitude), 0
    while amplitude >= 1.0:
        amplitude /= 2
        halvings += 1
    return q31(inverse), doublings, q31(amplitude), halvings


def _tanh(x: np.ndarray, s: stages.Tanh) -> np.ndarray:
    zero, amplitude = s.real_zero, s.real_amplitude
    inverse, doublings, factor, halvings = tanh_constants(amplitude)
    # raw value with 3 integer bits: (x - zero) / amplitude * 2**28
    t = fp.saturating_rounding_doubling_high_mul(wrap32(x - zero), inverse, 32)
    t = fp.saturating_rounding_multiply_by_pot(t, 28 - doublings, 32)
    u = fp.tanh(t, 3, 32)
    y = fp.saturating_rounding_doubling_high_mul(u, factor, 32) >> (31 - halvings)
    y = wrap32(zero + y)
    low, high = zero - 8 * amplitude, zero + 8 * amplitude
    return np.where(x <= low, wrap32(zero - amplitude), np.where(x >= high, wrap32(zero + amplitude), y))


def _saturate(x: np.ndarray, s: stages.SaturatingCast) -> np.ndarray:
    info = np.iinfo(s.dtype)
    return np.clip(x, info.min, info.max)


def _truncate(x: np.ndarray, s: stages.TruncatingCast) -> np.ndarray:
    return x % 256


def multiplier_and_exponent(scale: float) -> tuple[int, int]:
    """A scale as f * 2**exponent with f in [1/2, 1) rounded to Q0.31, ties up; (0, 0) below 2**-32."""
    f, exponent = Fraction(scale), 0
    while f >= 1:
        f, exponent = f / 2, exponent + 1
    while f < Fraction(1, 2):
        if exponent < -40:
            return 0, 0
        f, exponent = f * 2, exponent - 1
    multiplier = floor(f * 2**31 + Fraction(1, 2))
    if multiplier == 2**31:  # rounded up to 1, which is 1/2 * 2
        multiplier, exponent = 2**30, exponent + 1
    return (0, 0) if exponent < -31 else (multiplier, exponent)


def _requantize(x: np.ndarray, s: requantize.Requantize) -> np.ndarray:
    scale = along(s.scale, s.axis)
    if s.rounding in ("gemmlowp", "tflite", "tflite_single"):
        pairs = np.array([multiplier_and_exponent(float(v)) for v in np.atleast_1d(s.scale)]).reshape(-1, 2)
        multiplier, exponent = (along(v if np.ndim(s.scale) else v[0], s.axis) for v in pairs.T)
        if s.rounding == "tflite_single":
            total = 31 - np.asarray(exponent, dtype=np.int64)
            y = fp.saturate((x * np.int64(multiplier) + 2 ** (total - 1)) // 2**total, 32)
        else:
            y = fixed_point_and_exponent(x, multiplier, exponent)
        y = y + s.zero_point
    elif s.rounding == "onnx_reference":
        y = np.rint(np.clip(x * np.float64(scale) + s.zero_point, -(2.0**40), 2.0**40))
    else:  # "onnx", "torch"
        y = np.rint((x.astype(np.float32) * np.float32(scale)).astype(np.float64)) + s.zero_point
    return np.clip(y, s.min, s.max)


def _dequantize(x: np.ndarray, s: stages.Dequantize) -> np.ndarray:
    y = x.astype(np.float32) * np.asarray(along(s.scale, s.axis), dtype=np.float32)
    if s.row_scale is not None:
        y = y * np.asarray(along(s.row_scale, 0), dtype=np.float32)
    if s.bias is not None:
        y = y + np.asarray(s.bias, dtype=np.float32)
    return y


def _logistic(x: np.ndarray, s: stages.Logistic) -> np.ndarray:
    return fp.logistic(x, s.integer_bits, 32)


def _lut(x: np.ndarray, s: stages.Lut) -> np.ndarray:
    info = np.iinfo(s.input_dtype)
    return s.table[np.clip(x, info.min, info.max) - info.min]


def _custom(x: np.ndarray, s: stages.Custom) -> np.ndarray:
    function = getattr(s.function, "py_func", s.function)  # as Python, if it is compiled
    y = np.empty(x.shape, dtype=np.int64)
    for index in np.ndindex(x.shape):
        y[index] = int(function(int(x[index]), index[-2], index[-1], *s.arrays)) % 2**32
    return wrap32(y)


_EQUATIONS: dict[type, Callable[[np.ndarray, Any], np.ndarray]] = {
    stages.BiasAddition: _bias,
    stages.QuantizeDownInt32ByFixedPoint: _fixed_point,
    stages.ScaleInt32ByFixedPointAndExponent: _scale,
    stages.QuantizeDownInt32ToUint8Scale: _legacy,
    stages.Clamp: _clamp,
    stages.Tanh: _tanh,
    stages.SaturatingCast: _saturate,
    stages.TruncatingCast: _truncate,
    requantize.Requantize: _requantize,
    stages.Dequantize: _dequantize,
    stages.Logistic: _logistic,
    stages.Lut: _lut,
    stages.Custom: _custom,
}
