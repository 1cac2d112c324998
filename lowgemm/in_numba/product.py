"""`lowgemm.gemm` as Numba compiles it into a user's function: check, plan, run.

Next file to open: `planning.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import errors
from numba.extending import intrinsic, overload

from lowgemm.engine.records import plan_at
from lowgemm.gemm import gemm
from lowgemm.in_numba.arguments import (
    check_operand,
    check_zero,
    is_default,
    result_array,
    value_type,
    zero_number,
    zero_vector,
)
from lowgemm.in_numba.linked import KERNEL_ADDRESS, PLAN_ADDRESS, SINGLE_ADDRESS, fill_linked, init, linked
from lowgemm.in_numba.packed_type import PackedRhsType
from lowgemm.in_numba.planning import PLAN_BYTES
from lowgemm.jit.memory import address, as_address, stack
from lowgemm.jit.routine import call_address


@intrinsic
def _keep(typingctx, array):
    """Do nothing with an array, but later than its address is used: Numba frees it after its last use."""
    return types.void(array), lambda context, builder, sig, values: context.get_dummy_value()


def _rhs_numbers(rhs: Any) -> Any:
    """Rhs as numbers: record of its kernel, address, sums (0: not packed), byte strides."""


@overload(_rhs_numbers)
def _rhs_numbers_overload(rhs):
    if isinstance(rhs, PackedRhsType):
        return lambda rhs: (rhs._kernel, rhs._panels, rhs._sums, 0, 0)
    return lambda rhs: (
        linked(KERNEL_ADDRESS), as_address(address(rhs)), 0, rhs.strides[0], rhs.strides[1]
    )  # fmt: skip


def _check_operands(left: types.Type, right: types.Type) -> None:
    """Refuse operands of other types than matrices of bytes, or a packed rhs."""
    check_operand(left, "lhs")
    if not isinstance(right, PackedRhsType):
        check_operand(right, "rhs")


def _check_options(output: Any, out: Any, accumulate: Any, num_threads: Any, overflow: Any) -> None:
    """Refuse types of other arguments that compiled code does not take."""
    for ty, default, name, hint in (
        (output, None, "output", "; put the int32 sums through lowgemm.requantize outside"),
        (num_threads, None, "num_threads", "; a product in compiled code is serial, use prange around it"),
        (overflow, "wrap", "overflow", ""),
    ):
        if not is_default(ty, default):
            raise errors.NumbaValueError(f"{name}: not supported in compiled code{hint}")
    to = value_type(out)
    given = isinstance(to, types.Array)
    if not isinstance(to, types.NoneType) and not (
        given and to.dtype == types.int32 and to.ndim == 2 and to.mutable and to.aligned
    ):
        raise errors.NumbaTypeError(f"out: expected a writable int32 array of two dimensions, got {to}")
    if not isinstance(value_type(accumulate), types.Boolean):
        raise errors.NumbaTypeError(f"accumulate: expected a bool, got {accumulate}")
    if not given and not is_default(accumulate, False):
        raise errors.NumbaValueError("accumulate: expected out= to add to")


# Not strict: Numba would want the same signature of the implementation, whose arguments it binds by position.
# Here, as in Python, all but the operands come by keyword.
@overload(gemm, jit_options={"nogil": True}, strict=False)
def _gemm_overload(
    lhs,
    rhs,
    *positional,
    lhs_zero_point=0,
    rhs_zero_point=0,
    output=None,
    out=None,
    accumulate=False,
    num_threads=None,
    overflow="wrap",
):
    if positional:
        raise errors.NumbaTypeError(
            "lhs_zero_point: expected by keyword; gemm takes two arguments by position, in compiled code as "
            "outside"
        )
    left, right = value_type(lhs), value_type(rhs)
    _check_operands(left, right)
    vectors = [
        check_zero(value_type(lhs_zero_point), "lhs_zero_point"),
        check_zero(value_type(rhs_zero_point), "rhs_zero_point"),
    ]
    bilinear = int(any(vectors))
    _check_options(output, out, accumulate, num_threads, overflow)
    lhs_signed, rhs_signed = int(left.dtype.signed), int(right.dtype.signed)
    init()
    fill_linked()

    def impl(
        lhs,
        rhs,
        lhs_zero_point=0,
        rhs_zero_point=0,
        output=None,
        out=None,
        accumulate=False,
        num_threads=None,
        overflow="wrap",
    ):
        (m, depth), (rhs_depth, n) = lhs.shape, rhs.shape
        if depth != rhs_depth:
            raise ValueError("rhs: expected its depth to match lhs")
        lhs_zero, rhs_zero = zero_number(lhs_zero_point, True), zero_number(rhs_zero_point, False)
        result = result_array(out, lhs, rhs)
        if m == 0 or n == 0:
            return result
        if linked(PLAN_ADDRESS) == 0:
            raise RuntimeError("lowgemm: its code is not loaded in this process; import lowgemm.in_numba")
        kernel, rhs_at, sums, rhs_k_stride, rhs_n_stride = _rhs_numbers(rhs)
        plan = stack(PLAN_BYTES)
        call_address(
            linked(PLAN_ADDRESS),
            (
                kernel, as_address(plan), m, n, depth, lhs.strides[0], lhs.strides[1], lhs_signed,
                rhs_k_stride, rhs_n_stride,
                rhs_signed, 1 if sums != 0 else 0, bilinear, 1 if accumulate else 0,
                result.strides[0], result.strides[1],
            ),
        )  # fmt: skip
        # 64 more: the routines want the scratch memory aligned to a cache line
        space = np.empty(plan_at(plan).scratch_bytes + 64, np.uint8)
        space_at = (as_address(address(space)) + 63) // 64 * 64
        if bilinear:
            rows = zero_vector(lhs_zero_point, m, plan_at(plan).lhs_shift, True)
            cols = zero_vector(rhs_zero_point, n, plan_at(plan).rhs_shift, False)
            call_address(
                linked(SINGLE_ADDRESS),
                (
                    as_address(plan), as_address(address(lhs)), rhs_at, sums, as_address(address(result)),
                    space_at, 0, 0, as_address(address(rows)), as_address(address(cols)),
                ),
            )  # fmt: skip
            _keep(rows)
            _keep(cols)
        else:
            call_address(
                linked(SINGLE_ADDRESS),
                (
                    as_address(plan), as_address(address(lhs)), rhs_at, sums, as_address(address(result)),
                    space_at, lhs_zero, rhs_zero, 0, 0,
                ),
            )  # fmt: skip
        _keep(space)
        _keep(rhs)
        return result

    return impl
