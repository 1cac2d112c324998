"""ONNX's quantized operators on NumPy arrays, with ONNX's signatures: the products run on `lowgemm.gemm`.

No onnx package is needed. Element types are NumPy's: uint8, int8, uint16, int16 and, to dequantize, int32;
the float8 and sub-byte types of newer operator sets are not covered. Source: the ONNX operator
specifications.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.checks.arguments import as_operand
from lowgemm.checks.onnx import float_argument, result_zero_point, scale_argument
from lowgemm.checks.values import as_array, choice, integer, renamed
from lowgemm.compat import onnx_passes as passes
from lowgemm.engine.parts import run
from lowgemm.gemm import gemm
from lowgemm.output.base import cast_dtype
from lowgemm.output.check import check_pipeline
from lowgemm.output.stages.requantize import Requantize
from lowgemm.requantize import requantize

_SMALLEST = passes.SMALLEST


def _of_stack(a: np.ndarray, name: str, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """A parameter of one operand, reshaped to broadcast with the operand, with at least the operand's rank.

    One value, one along `axis` (-2: a row of the left operand, -1: a column of the right one) as a vector, or
    one for each row or column of each matrix of a stack, with a size of 1 for the depth.
    """
    if a.size == 1:
        return a.reshape(1, 1)
    size = shape[axis] if len(shape) > 1 else 1
    across = (size, 1) if axis == -2 else (1, size)
    if a.size == size and max(a.shape) == size and max(a.shape[:-2], default=1) == 1:
        return a.reshape(across)
    fits = a.ndim == len(shape) > 2 and all(
        n in (1, m) for n, m in zip(a.shape[:-2], shape[:-2], strict=True)
    )
    if not fits or a.shape[-2:] not in (across, (1, 1)):
        stacked = f", or shape {(*shape[:-2], *across)}" if len(shape) > 2 else ""
        raise ValueError(f"{name}: expected a scalar or {size} values{stacked}, got shape {a.shape}")
    return a


def zero_points(
    a: ArrayLike, b: ArrayLike, a_zero_point: ArrayLike, b_zero_point: ArrayLike
) -> dict[str, Any]:
    """The zero points of a product's operands, checked, as arguments of `gemm`; `b` may be packed."""
    found = {}
    for argument, operand, value, name, axis in (
        ("lhs_zero_point", a, a_zero_point, "a_zero_point", -2),
        ("rhs_zero_point", b, b_zero_point, "b_zero_point", -1),
    ):
        if value is None:
            continue
        point = as_array(value, name, "a number or a vector", operand.dtype)
        if point.dtype != operand.dtype:
            like = name.removesuffix("_zero_point")
            raise TypeError(f"{name}: expected dtype {operand.dtype} like {like}, got {point.dtype}")
        point = _of_stack(point, name, operand.shape, axis)
        found[argument] = point.reshape(-1) if point.ndim == 2 else point
    return found


def scaled_product(
    a: np.ndarray,
    b: ArrayLike,
    scales: tuple[Any, Any, Any],
    points: dict[str, Any],
    make: Callable[[np.ndarray, int], Any],
    *,
    factor: float = 1.0,
    start: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """``a @ b`` put through the output stages of its scale.

    Parameters
    ----------
    a, b : ndarray, ndarray or PackedRhs
        Operands.
    scales : tuple
        Of `a`, of `b` and of the result (None: nothing is divided).
    points : dict
        What `zero_points` gave.
    make : callable
        ``make(scale, axis)`` gives the stages for a scale, which is one for all or one along `axis`.
    factor : float
        Further factor of the scale.
    start : ndarray of int32, optional
        Added to the sums before they are scaled; it broadcasts with the result.
    num_threads : int, optional
        As in `gemm`.

    Returns
    -------
    ndarray
    """
    if a.ndim == 1:
        result = scaled_product(
            a[None], b, scales, points, make, factor=factor, start=start, num_threads=num_threads
        )
        return result[..., 0, :] if len(b.shape) > 1 else result[..., 0]
    if len(b.shape) == 1:
        b = b[:, None]
        result = scaled_product(
            a, b, scales, points, make, factor=factor, start=start, num_threads=num_threads
        )
        return result[..., 0]
    left = _of_stack(float_argument(scales[0], "a_scale"), "a_scale", a.shape, -2)
    scale = (
        np.float32(factor) * left * _of_stack(float_argument(scales[1], "b_scale"), "b_scale", b.shape, -1)
    )
    if scales[2] is not None:
        scale = scale / scale_argument(scales[2], "y_scale", 1)
    matrix = scale.shape[-2:]
    if min(matrix) > 1:
        raise ValueError("a_scale, b_scale: expected at most one of them per row or column")

    def stages(one_scale: np.ndarray) -> Any:
        if one_scale.size == 0:  # for a result without rows or columns
            return make(np.ones((), np.float32), 1)
        return make(
            one_scale.reshape(-1) if one_scale.size > 1 else one_scale.reshape(()),
            0 if one_scale.shape[0] > 1 else 1,
        )

    negative = scales[2] is not None and bool((scale < 0).any())
    if scale.size == max(matrix) and start is None and not negative:
        return gemm(a, b, output=stages(scale.reshape(matrix)), num_threads=num_threads, **points)
    # A pipeline serves all matrices of a stack, so scales of each matrix are applied to sums that exist.
    sums = gemm(a, b, num_threads=num_threads, **points)
    if start is not None:
        sums += start
    # stages want positive scales, and rounding is symmetric; -(2**31) has no opposite, but rounds like its
    # neighbour
    if negative:
        sums, scale = np.where(scale < 0, -np.maximum(sums, -(2**31) + 1), sums), np.abs(scale)
    y = np.empty(sums.shape, check_pipeline(make(np.ones((), np.float32), 1), 1, 1)[1])
    each = np.broadcast_to(scale, (*sums.shape[:-2], *matrix))
    for at in np.ndindex(sums.shape[:-2]):
        requantize(sums[at], stages(each[at]), out=y[at])
    return y


def matmul_integer(
    A: ArrayLike, B: ArrayLike, a_zero_point: ArrayLike | None = None, b_zero_point: ArrayLike | None = None
) -> np.ndarray:
    """MatMulInteger: exact int32 product of 8-bit tensors.

    Parameters
    ----------
    A, B : array_like of uint8 or int8
        Operands, as in `numpy.matmul`.
    a_zero_point : array_like of A's dtype, optional
        Scalar, one per row of A, or one per row of each matrix of a stack: shape (..., m, 1).
    b_zero_point : array_like of B's dtype, optional
        Scalar, one per column of B, or one per column of each matrix of a stack: shape (..., 1, n).

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
    points = zero_points(A, B, a_zero_point, b_zero_point)
    try:
        y = gemm(A, B, **points)
    except ValueError as error:
        raise renamed(error, lhs="A", rhs="B") from None
    return np.asarray(y)  # of two vectors a tensor too, without dimensions


def qlinear_matmul(
    a: ArrayLike,
    a_scale: ArrayLike,
    a_zero_point: ArrayLike,
    b: ArrayLike,
    b_scale: ArrayLike,
    b_zero_point: ArrayLike,
    y_scale: ArrayLike,
    y_zero_point: ArrayLike,
    *,
    rounding: str = "onnx",
) -> np.ndarray:
    """QLinearMatMul: 8-bit product of 8-bit tensors.

    Parameters
    ----------
    a, b : array_like of uint8 or int8
        Operands, as in `numpy.matmul`.
    a_scale, a_zero_point : array_like
        Of `a`: scalars, one per row, or one per row of each matrix of a stack: shape (..., m, 1).
    b_scale, b_zero_point : array_like
        Of `b`: scalars, one per column, or one per column of each matrix of a stack: shape (..., 1, n).
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
    zero, dtype = result_zero_point(y_zero_point)

    def make(scale: np.ndarray, axis: int) -> list[Requantize]:
        return [Requantize(scale, zero, dtype, rounding=rounding, axis=axis)]

    points = zero_points(a, b, a_zero_point, b_zero_point)
    try:
        return scaled_product(a, b, (a_scale, b_scale, y_scale), points, make)
    except ValueError as error:
        raise renamed(error, lhs="a", rhs="b") from None


_QUANTIZED = tuple(np.dtype(t) for t in (np.uint8, np.int8, np.uint16, np.int16))


def _check_along(value: np.ndarray, name: str, x: np.ndarray, axis: int, block_size: int) -> None:
    """Check a per-tensor, per-axis or blocked parameter."""
    axis, block_size = integer(axis, "axis"), integer(block_size, "block_size", 0)
    if value.size == 1 and block_size == 0:
        return
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
    elif value.shape != (x.shape[axis],):
        raise ValueError(f"{name}: expected a scalar or {x.shape[axis]} values, got shape {value.shape}")


def _along_axis(value: np.ndarray, x: np.ndarray, axis: int, block_size: int) -> np.ndarray:
    """A parameter that `_check_along` lets pass, shaped to broadcast with `x`."""
    if value.size == 1 and block_size == 0:
        return value.reshape(())
    axis %= x.ndim
    if block_size:
        return np.repeat(value, block_size, axis=axis).take(np.arange(x.shape[axis]), axis=axis)
    return value.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def _compiled(
    work: Any, x: np.ndarray, dtype: DTypeLike, scale: np.ndarray, zero: np.ndarray, axis: int,
    block_size: int, *more: int,
) -> np.ndarray | None:  # fmt: skip
    """A pass of `onnx_passes` over an array; None if it is not for that."""
    if numba.config.DISABLE_JIT or zero.size != scale.size or not x.size:
        return None
    y = passes.empty_like(x, dtype)
    if y is None or not (x.flags.c_contiguous or (scale.size == 1 and not block_size)):
        return None
    scale, zero = np.ascontiguousarray(scale, np.float32), np.ascontiguousarray(zero, np.int32)
    outer, *rows = passes.layout(x.shape, scale.size, int(axis) % max(x.ndim, 1), int(block_size))
    at = x.ctypes.data, y.ctypes.data, scale.ctypes.data, zero.ctypes.data
    run(work, (*at, *rows, *more), outer * rows[0])
    return y


def quantize_linear(
    x: ArrayLike,
    y_scale: ArrayLike,
    y_zero_point: ArrayLike | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: DTypeLike | None = None,
    rounding: str = "onnx",
) -> np.ndarray:
    """QuantizeLinear: ``saturate(round(x / y_scale) + y_zero_point)``, ties to even.

    Infinities saturate, and NaN becomes the smallest value of the result's dtype: what onnxruntime gives on
    x86.

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
    rounding : str
        "onnx" (onnxruntime's arithmetic) or "onnx_reference" (the onnx package's). They differ for float16,
        which onnxruntime divides in float32.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.

    Notes
    -----
    ONNX leaves NaN undefined. `lowgemm.quantization.quantize` refuses it, since no integer stands for it; an
    operator of ONNX gives onnxruntime's numbers instead.

    Examples
    --------
    >>> import numpy as np
    >>> quantize_linear(np.array([0, 2, 3, 1000], np.float32), np.float32(2), np.uint8(128))
    array([128, 129, 130, 255], dtype=uint8)
    """
    x, scale = as_array(x, "x", "an array"), as_array(y_scale, "y_scale", "a scale")
    rounding = choice(rounding, "rounding", ("onnx", "onnx_reference"))
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
    for value, name in ((scale, "y_scale"), (zero, "y_zero_point")):
        _check_along(value, name, x, axis, block_size)
    info = np.iinfo(dtype)
    if x.dtype == np.float16 and rounding == "onnx":
        x = x.astype(np.float32)
    if x.dtype == np.float32:
        more = int(info.min), int(info.max), np.dtype(dtype).itemsize
        y = _compiled(passes.quantize, x, dtype, scale, zero, axis, block_size, *more)
        if y is not None:
            return y
    along, zeros = (_along_axis(v, x, axis, block_size) for v in (scale, zero))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        quotient = np.rint(x / along.astype(x.dtype if x.dtype.kind == "f" else along.dtype))
    # fmax before the cast: a cast of NaN to an integer is undefined, and differs between CPUs and between
    # loops
    return np.minimum(
        np.fmax(quotient.astype(np.float64) + zeros.astype(np.float64), info.min), info.max
    ).astype(dtype)


def dequantize_linear(
    x: ArrayLike,
    x_scale: ArrayLike,
    x_zero_point: ArrayLike | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
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
        else as_array(x_zero_point, "x_zero_point", "a zero point", x.dtype)
    )
    if zero.dtype != x.dtype:
        raise TypeError(f"x_zero_point: expected dtype {x.dtype} like x, got {zero.dtype}")
    for value, name in ((scale, "x_scale"), (zero, "x_zero_point")):
        _check_along(value, name, x, axis, block_size)
    if scale.dtype == np.float32:
        kind = passes.KINDS.index(x.dtype)
        y = _compiled(passes.dequantize, x, np.float32, scale, zero, axis, block_size, kind)
        if y is not None:
            return y
    factors, zeros = (_along_axis(v, x, axis, block_size) for v in (scale, zero))
    return ((x.astype(np.float32) - zeros.astype(np.float32)) * factors).astype(scale.dtype)


def _range(x: np.ndarray) -> tuple[np.float32, np.float32]:
    """Largest and smallest value, 0 included and NaN left out; NaN if there is nothing else."""
    if x.size and not numba.config.DISABLE_JIT:
        if passes.empty_like(x, np.float32) is None:
            x = np.ascontiguousarray(x)
        keys = np.empty(2, np.int32)
        passes.extremes.ctypes(x.ctypes.data, keys.ctypes.data, x.size)
        keys ^= (keys >> 31) & 0x7FFFFFFF
        low, high = keys.view(np.float32)
        if np.isfinite(low) and np.isfinite(high):
            return high, low
    numbers = x[~np.isnan(x)]
    if x.size and not numbers.size:
        return np.float32(np.nan), np.float32(np.nan)
    return numbers.max(initial=0), numbers.min(initial=0)


def _without_end(
    x: np.ndarray, high: np.float32, low: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DynamicQuantizeLinear of a range that is infinite, or none: steps of infinity, or NaN."""
    zero = np.uint8(0 if low > -np.inf else 255)
    y = np.where(np.isfinite(x), zero, np.uint8(0))
    return y, np.array(high - low if np.isnan(low) else np.inf, np.float32), np.array(zero)


def dynamic_quantize_linear(x: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DynamicQuantizeLinear: uint8 with the scale and zero point of the data's own range, 0 included.

    Parameters
    ----------
    x : array_like of float32
        Values.

    Returns
    -------
    y, y_scale, y_zero_point : ndarray
        uint8 values, float32 scale, uint8 zero point.

    Raises
    ------
    TypeError
        If `x` is not float32.

    Notes
    -----
    Zeros alone, or nothing, have the scale 1, as in onnxruntime; the onnx package gives 1 / 255 for zeros.
    The values are the same.

    With an infinity among them, the scale is infinite. The zero point is 255 if minus infinity is there, else
    0. Finite numbers become the zero point, infinities 0. NaN is left out of the range and becomes 0. NaN
    alone has the scale NaN and the zero point 255. ONNX defines none of this; onnxruntime does so on x86.

    Examples
    --------
    >>> import numpy as np
    >>> y, scale, zero = dynamic_quantize_linear(np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32))
    >>> y, zero
    (array([153, 255,   0,  26, 221, 179], dtype=uint8), array(153, dtype=uint8))
    """
    x = as_array(x, "x", "an array", np.float32)
    if x.dtype != np.float32:
        raise TypeError(f"x: expected float32, got {x.dtype}")
    high, low = _range(x)
    if not (np.isfinite(high) and np.isfinite(low)):
        return _without_end(x, high, low)
    with np.errstate(over="ignore"):
        scale = np.float32((high - low) / np.float32(255)) if high != low else np.float32(1)
    if (
        not np.isfinite(scale) or scale < _SMALLEST
    ):  # a range that float32 cannot hold, or steps too small for it
        scale = np.float32(max((float(high) - float(low)) / 255, _SMALLEST))
    zero = np.uint8(np.rint(min(max(np.float32(0) - low / scale, np.float32(0)), np.float32(255))))
    result = np.array(scale), np.array(zero)
    return quantize_linear(x, scale, zero), *result
