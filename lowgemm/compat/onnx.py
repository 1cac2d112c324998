"""ONNX's quantized operators on NumPy arrays, with ONNX's signatures: the products run on `lowgemm.gemm`.

No onnx package is needed. Element types are NumPy's: uint8, int8, uint16, int16 and, to dequantize, int32; the float8 and
sub-byte types of newer operator sets are not covered. Source: the ONNX operator specifications.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.checks.arguments import as_operand
from lowgemm.checks.onnx import scale_argument, zero_point_argument
from lowgemm.checks.values import as_array, integer
from lowgemm.gemm import gemm
from lowgemm.output.requantize import Requantize
from lowgemm.output.stages import cast_dtype


def _rows_and_columns(A: np.ndarray, B: np.ndarray) -> tuple[int, int]:
    return (A.shape[-2] if A.ndim > 1 else 1), (B.shape[-1] if B.ndim > 1 else 1)


def matmul_integer(A: Any, B: Any, a_zero_point: Any = None, b_zero_point: Any = None) -> np.ndarray:
    """MatMulInteger: exact int32 product of 8-bit tensors.

    Parameters
    ----------
    A, B : array_like of uint8 or int8
        Operands, as in `numpy.matmul`.
    a_zero_point : array_like of A's dtype, optional
        Scalar or one per row of A.
    b_zero_point : array_like of B's dtype, optional
        Scalar or one per column of B.

    Returns
    -------
    ndarray of int32

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> matmul_integer(np.array([[11, 7]], np.uint8), np.array([[1], [2]], np.uint8), np.uint8(12))
    array([[-11]], dtype=int32)
    """
    A, B = as_operand(A, "A"), as_operand(B, "B")
    m, n = _rows_and_columns(A, B)
    return gemm(
        A,
        B,
        lhs_zero_point=zero_point_argument(a_zero_point, "a_zero_point", A, m),
        rhs_zero_point=zero_point_argument(b_zero_point, "b_zero_point", B, n),
    )


def qlinear_matmul(
    a: Any,
    a_scale: Any,
    a_zero_point: Any,
    b: Any,
    b_scale: Any,
    b_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    *,
    rounding: str = "onnx",
) -> np.ndarray:
    """QLinearMatMul: 8-bit product of 8-bit tensors.

    Parameters
    ----------
    a, b : array_like of uint8 or int8
        Operands, as in `numpy.matmul`.
    a_scale, a_zero_point : array_like
        Of `a`: scalars, or one per row.
    b_scale, b_zero_point : array_like
        Of `b`: scalars, or one per column.
    y_scale, y_zero_point : array_like
        Of the result, scalars; the zero point's dtype is the result's.
    rounding : str
        "onnx" (onnxruntime's arithmetic) or "onnx_reference" (the onnx package's); see `lowgemm.Requantize`.

    Returns
    -------
    ndarray of uint8 or int8

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.

    Notes
    -----
    The scale is ``a_scale * b_scale / y_scale`` in float32, in this order.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.float32(1)
    >>> a, b = np.array([[10, 20]], np.uint8), np.array([[1], [3]], np.int8)
    >>> qlinear_matmul(a, one, np.uint8(0), b, one, np.int8(0), np.float32(2), np.uint8(5))
    array([[40]], dtype=uint8)
    """
    a, b = as_operand(a, "a"), as_operand(b, "b")
    m, n = _rows_and_columns(a, b)
    zero = as_array(y_zero_point, "y_zero_point", "one value")
    if zero.dtype not in (np.uint8, np.int8) or zero.size != 1:
        raise TypeError(
            f"y_zero_point: expected one uint8 or int8 value, got {zero.dtype}, shape {zero.shape}"
        )
    scales = (
        scale_argument(a_scale, "a_scale", m),
        scale_argument(b_scale, "b_scale", n),
        scale_argument(y_scale, "y_scale", 1),
    )
    if scales[0].ndim and scales[1].ndim:
        raise ValueError("a_scale, b_scale: expected at most one of them per row or column")
    scale = scales[0] * scales[1] / scales[2]
    stage = Requantize(
        scale, int(zero.reshape(())), zero.dtype, rounding=rounding, axis=0 if scales[0].ndim else 1
    )
    return gemm(
        a,
        b,
        lhs_zero_point=zero_point_argument(a_zero_point, "a_zero_point", a, m),
        rhs_zero_point=zero_point_argument(b_zero_point, "b_zero_point", b, n),
        output=[stage],
    )


_QUANTIZED = tuple(np.dtype(t) for t in (np.uint8, np.int8, np.uint16, np.int16))


def _along_axis(value: np.ndarray, name: str, x: np.ndarray, axis: int, block_size: int) -> np.ndarray:
    """A per-tensor, per-axis or blocked parameter, shaped to broadcast with `x`."""
    axis, block_size = integer(axis, "axis"), integer(block_size, "block_size", 0)
    if value.size == 1 and block_size == 0:
        return value.reshape(())
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected {-x.ndim} to {x.ndim - 1}, got {axis}")
    axis %= x.ndim
    if block_size:
        blocks = -(-x.shape[axis] // block_size)
        expected = (*x.shape[:axis], blocks, *x.shape[axis + 1 :])
        if value.shape != expected:
            raise ValueError(
                f"{name}: expected shape {expected} for blocks of {block_size}, got {value.shape}"
            )
        repeated = np.repeat(value, block_size, axis=axis)
        return np.take(repeated, np.arange(x.shape[axis]), axis=axis)
    if value.shape != (x.shape[axis],):
        raise ValueError(f"{name}: expected a scalar or {x.shape[axis]} values, got shape {value.shape}")
    return value.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def quantize_linear(
    x: Any,
    y_scale: Any,
    y_zero_point: Any = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: Any = None,
) -> np.ndarray:
    """QuantizeLinear: ``saturate(round(x / y_scale) + y_zero_point)``, ties to even.

    Parameters
    ----------
    x : array_like of float32, float16 or int32
        Values.
    y_scale : array_like of float
        Scalar, one per index of `axis`, or blocked.
    y_zero_point : array_like, optional
        Same shape; its dtype (uint8, int8, uint16, int16) is the result's. Zero of uint8 if left out.
    axis, block_size
        As in ONNX.
    output_dtype : dtype, optional
        The result's dtype where there is no zero point.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> quantize_linear(np.array([0, 2, 3, 1000], np.float32), np.float32(2), np.uint8(128))
    array([128, 129, 130, 255], dtype=uint8)
    """
    x, scale = as_array(x, "x", "an array"), as_array(y_scale, "y_scale", "a scale")
    if x.dtype.kind not in "fi":
        raise TypeError(f"x: expected floats or int32, got {x.dtype}")
    if scale.dtype.kind != "f":
        raise TypeError(f"y_scale: expected a float scale, got {scale.dtype}")
    if y_zero_point is None:
        dtype = cast_dtype(np.uint8 if output_dtype is None else output_dtype, _QUANTIZED, "output_dtype")
        zero = np.zeros(scale.shape, dtype)
    else:
        zero = as_array(y_zero_point, "y_zero_point", "a zero point")
        dtype = zero.dtype
        if dtype not in _QUANTIZED:
            raise TypeError(f"y_zero_point: expected uint8, int8, uint16 or int16, got {dtype}")
    scale = _along_axis(scale, "y_scale", x, axis, block_size)
    zero = _along_axis(zero, "y_zero_point", x, axis, block_size).astype(np.float64)
    info = np.iinfo(dtype)
    quotient = np.rint(x / scale.astype(x.dtype if x.dtype.kind == "f" else scale.dtype)).astype(np.float64)
    return np.clip(quotient + zero, info.min, info.max).astype(dtype)


def dequantize_linear(
    x: Any, x_scale: Any, x_zero_point: Any = None, *, axis: int = 1, block_size: int = 0
) -> np.ndarray:
    """DequantizeLinear: ``(x - x_zero_point) * x_scale``.

    Parameters
    ----------
    x : array_like of uint8, int8, uint16, int16 or int32
        Quantized values.
    x_scale : array_like of float
        Scalar, one per index of `axis`, or blocked; its dtype is the result's.
    x_zero_point : array_like of x's dtype, optional
        Same shape.
    axis, block_size
        As in ONNX.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> dequantize_linear(np.array([0, 3, 255], np.uint8), np.float32(2), np.uint8(128))
    array([-256., -250.,  254.], dtype=float32)
    """
    x, scale = as_array(x, "x", "an array"), as_array(x_scale, "x_scale", "a scale")
    if x.dtype not in (*_QUANTIZED, np.dtype(np.int32)):
        raise TypeError(f"x: expected uint8, int8, uint16, int16 or int32, got {x.dtype}")
    if scale.dtype.kind != "f":
        raise TypeError(f"x_scale: expected a float scale, got {scale.dtype}")
    zero = (
        np.zeros(scale.shape, x.dtype)
        if x_zero_point is None
        else as_array(x_zero_point, "x_zero_point", "a zero point")
    )
    if zero.dtype != x.dtype:
        raise TypeError(f"x_zero_point: expected dtype {x.dtype} like x, got {zero.dtype}")
    difference = x.astype(np.float32) - _along_axis(zero, "x_zero_point", x, axis, block_size).astype(
        np.float32
    )
    return (difference * _along_axis(scale, "x_scale", x, axis, block_size)).astype(scale.dtype)


def dynamic_quantize_linear(x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DynamicQuantizeLinear: uint8 with the scale and zero point of the data's own range, 0 included.

    Parameters
    ----------
    x : array_like of float32
        Values, not empty.

    Returns
    -------
    y, y_scale, y_zero_point : ndarray
        uint8 values, float32 scale, uint8 zero point.

    Raises
    ------
    TypeError, ValueError
        If `x` is not float32, empty, or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> y, scale, zero = dynamic_quantize_linear(np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32))
    >>> y, zero
    (array([153, 255,   0,  26, 221, 179], dtype=uint8), array(153, dtype=uint8))
    """
    x = as_array(x, "x", "an array")
    if x.dtype != np.float32:
        raise TypeError(f"x: expected float32, got {x.dtype}")
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError("x: expected at least one value, all finite")
    high, low = max(np.float32(0), x.max()), min(np.float32(0), x.min())
    scale = np.float32((high - low) / np.float32(255)) if high != low else np.float32(1 / 255)
    zero = np.rint(np.clip(np.float32(0) - low / scale, 0, 255)).astype(np.uint8)
    y = quantize_linear(x, scale, zero)
    return y, np.asarray(scale), np.asarray(zero)
