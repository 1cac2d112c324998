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
def _overlap(a, ars, acs, am, an, b, brs, bcs, bm, bn, size):
    """Whether the bytes from first to last of an array a (elements of `size`) meet those of a byte array b."""
    a0, a1 = (
        a + min(0, ars * (am - 1)) + min(0, acs * (an - 1)),
        a + max(0, ars * (am - 1)) + max(0, acs * (an - 1)),
    )
    b0, b1 = (
        b + min(0, brs * (bm - 1)) + min(0, bcs * (bn - 1)),
        b + max(0, brs * (bm - 1)) + max(0, bcs * (bn - 1)),
    )
    return a0 <= b1 and b0 < a1 + size


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
        rs, cs = out.strides
        at = as_address(address(out))
        if at % 4 != 0 or rs % 4 != 0 or cs % 4 != 0:
            raise ValueError("out: expected an aligned array")
        ar, ac = abs(rs) if m > 1 else 0, abs(cs) if n > 1 else 0
        # rows apart by less than a row's extent, or columns by less than a column's, or elements on each other
        if (n > 1 and ac < 4) or (m > 1 and ar < 4):
            raise ValueError("out: expected distinct elements, but some overlap each other in memory")
        if m > 1 and n > 1 and ar < ac * (n - 1) + 4 and ac < ar * (m - 1) + 4:
            raise ValueError("out: expected distinct elements, but some overlap each other in memory")
        depth = lhs.shape[1]
        if depth > 0:
            if _overlap(
                at, rs, cs, m, n, as_address(address(lhs)), lhs.strides[0], lhs.strides[1], m, depth, 4
            ):
                raise ValueError("out: expected no overlap with lhs")
            if _rhs_overlap(at, rs, cs, m, n, rhs):
                raise ValueError("out: expected no overlap with rhs")
        return out

    return impl


def _rhs_overlap(at: Any, rs: Any, cs: Any, m: Any, n: Any, rhs: Any) -> Any:
    """Whether the result's bytes meet those of the rhs."""


@overload(_rhs_overlap)
def _rhs_overlap_overload(at, rs, cs, m, n, rhs):
    if isinstance(rhs, PackedRhsType):
        return lambda at, rs, cs, m, n, rhs: False

    def impl(at, rs, cs, m, n, rhs):
        k, kn = rhs.shape
        return _overlap(at, rs, cs, m, n, as_address(address(rhs)), rhs.strides[0], rhs.strides[1], k, kn, 4)

    return impl
