"""Checks of what compiled code passes to `gemm`, at compile time by type and at run time by value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import errors
from numba.extending import overload, register_jitable

from lowgemm.in_numba.packed_type import PackedRhsType
from lowgemm.jit.memory import address, as_address


def is_default(ty: Any, default: Any) -> bool:
    """Whether an argument was left out or has its default."""
    if isinstance(ty, types.Omitted):
        return bool(ty.value is default or ty.value == default)
    return ty is default or (isinstance(ty, types.NoneType) and default is None)


def value_type(ty: Any) -> Any:
    """Type of an argument, seen through a default value and an optional."""
    if isinstance(ty, types.Omitted):
        return types.none if ty.value is None else types.literal(ty.value)
    return ty if isinstance(ty, types.Type) else (types.none if ty is None else types.literal(ty))


def check_operand(ty: Any, name: str) -> None:
    """Raise an error of the compiler unless it is an 8-bit matrix."""
    if not isinstance(ty, types.Array) or ty.dtype not in (types.uint8, types.int8) or ty.ndim != 2:
        what = " or a PackedRhs of two dimensions" if name == "rhs" else ""
        raise errors.NumbaTypeError(
            f"{name}: expected a uint8 or int8 array of two dimensions{what} in compiled code, got {ty}"
        )


def check_zero(ty: Any, name: str) -> bool:
    """Whether a zero point is a vector."""
    vector = isinstance(ty, types.Array) and ty.ndim == 1 and isinstance(ty.dtype, types.Integer)
    if not vector and not isinstance(ty, types.Integer):
        raise errors.NumbaTypeError(f"{name}: expected an integer or a vector of integers, got {ty}")
    return vector


def _range_error(name: str) -> str:
    return f"{name}: expected -2147483648 to 2147483647"


_LHS_RANGE, _RHS_RANGE = _range_error("lhs_zero_point"), _range_error("rhs_zero_point")


def zero_number(zero: Any, is_lhs: Any) -> Any:
    """Scalar zero point as int64; 0 stands for a vector."""


@overload(zero_number)
def _zero_number_overload(zero, is_lhs):
    if isinstance(zero, types.Array):
        return lambda zero, is_lhs: 0

    def impl(zero, is_lhs):
        if zero < -2147483648 or zero > 2147483647:
            if is_lhs:
                raise ValueError(_LHS_RANGE)
            raise ValueError(_RHS_RANGE)
        return np.int64(zero)

    return impl


def zero_vector(zero: Any, size: Any, shift: Any, is_lhs: Any) -> Any:
    """Zero points less `shift` as an int32 vector."""


@overload(zero_vector)
def _zero_vector_overload(zero, size, shift, is_lhs):
    if isinstance(zero, types.Array):

        def impl(zero, size, shift, is_lhs):
            if zero.size != size and zero.size != 1:
                if is_lhs:
                    raise ValueError("lhs_zero_point: expected a scalar or one value per lhs row")
                raise ValueError("rhs_zero_point: expected a scalar or one value per rhs column")
            v = np.empty(size, np.int32)
            for i in range(zero.size):
                if zero[i] < -2147483648 or zero[i] > 2147483647:
                    if is_lhs:
                        raise ValueError(_LHS_RANGE)
                    raise ValueError(_RHS_RANGE)
            for i in range(size):
                v[i] = np.int32(np.int64(zero[i if zero.size > 1 else 0]) - shift)
            return v

        return impl

    def impl(zero, size, shift, is_lhs):
        v = np.empty(size, np.int32)
        v[:] = np.int32(zero_number(zero, is_lhs) - shift)
        return v

    return impl


@register_jitable
def _reach(address, shape, strides):
    """Lowest and highest address of an element of a matrix, from that of its first; `shape` and
    `strides`, in bytes, are tuples of two.
    """
    rows, cols = strides[0] * (shape[0] - 1), strides[1] * (shape[1] - 1)
    return address + min(0, rows) + min(0, cols), address + max(0, rows) + max(0, cols)


@register_jitable
def _overlap(a, a_shape, a_strides, size, b, b_shape, b_strides):
    """Whether the bytes from first to last of a matrix at address `a` (elements of `size` bytes) meet those
    of a byte matrix at `b`. `a_shape`, `a_strides`, `b_shape`, `b_strides` are their shapes and strides in
    bytes.
    """
    a_low, a_high = _reach(a, a_shape, a_strides)
    b_low, b_high = _reach(b, b_shape, b_strides)
    return a_low <= b_high and b_low < a_high + size


def result_array(out: Any, lhs: Any, rhs: Any) -> Any:
    """`out` if it fits, or a new array."""


@overload(result_array)
def _result_overload(out, lhs, rhs):
    if not isinstance(out, types.Array):
        return lambda out, lhs, rhs: np.empty((lhs.shape[0], rhs.shape[1]), np.int32)

    def impl(out, lhs, rhs):
        m, n = lhs.shape[0], rhs.shape[1]
        if out.shape[0] != m or out.shape[1] != n:
            raise ValueError("out: expected the shape of the product")
        if m == 0 or n == 0:
            return out
        row_stride, col_stride = out.strides
        at = as_address(address(out))
        if at % 4 != 0 or row_stride % 4 != 0 or col_stride % 4 != 0:
            raise ValueError("out: expected an aligned array")
        row_step, col_step = abs(row_stride) if m > 1 else 0, abs(col_stride) if n > 1 else 0
        # rows apart by less than a row's extent, or columns by less than a column's, or elements on each
        # other
        if (n > 1 and col_step < 4) or (m > 1 and row_step < 4):
            raise ValueError("out: expected distinct elements, but some overlap each other in memory")
        if m > 1 and n > 1 and row_step < col_step * (n - 1) + 4 and col_step < row_step * (m - 1) + 4:
            raise ValueError("out: expected distinct elements, but some overlap each other in memory")
        if lhs.shape[1] > 0:
            if _overlap(at, out.shape, out.strides, 4, as_address(address(lhs)), lhs.shape, lhs.strides):
                raise ValueError("out: expected no overlap with lhs")
            if _rhs_overlap(at, out, rhs):
                raise ValueError("out: expected no overlap with rhs")
        return out

    return impl


def _rhs_overlap(at: Any, out: Any, rhs: Any) -> Any:
    """Whether the bytes of the result, which begins at address `at`, meet those of the rhs."""


@overload(_rhs_overlap)
def _rhs_overlap_overload(at, out, rhs):
    if isinstance(rhs, PackedRhsType):
        return lambda at, out, rhs: False
    return lambda at, out, rhs: _overlap(
        at, out.shape, out.strides, 4, as_address(address(rhs)), rhs.shape, rhs.strides
    )
