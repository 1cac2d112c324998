"""The front door: check the arguments, plan, run. Start reading here.

    gemm.py -> plan.py -> packing.py -> compute.py (-> kernels/) -> output/routines.py

`reference.py` says what the result is; everything else is about getting it fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from lowgemm import config, kernels, overflow_check, reference
from lowgemm.arguments import as_num_threads, as_operand, as_zero_point, check_out
from lowgemm.batching import Batch
from lowgemm.output.stages import check_pipeline
from lowgemm.packed import PackedRhs, holds_min, repacked
from lowgemm.plan import Operand, Plan
from lowgemm.repeat import PlannedGemm, Seen, remember_list, stages_key
from lowgemm.threads import settings as thread_settings

_plans, _calls = Seen(), Seen()
#: Rows below which `gemm` does not look through an rhs for a value that a faster kernel excludes.
MIN_ROWS_TO_LOOK = 32


class _Call:
    """One checked call: operands as stacks of matrices, zero points, stages, and where the result goes."""

    def __init__(
        self,
        lhs: Any,
        rhs: Any,
        lhs_zero_point: Any,
        rhs_zero_point: Any,
        output: Any,
        out: Any,
        accumulate: bool,
        num_threads: Any,
        overflow: str,
    ) -> None:
        self.lhs = as_operand(lhs, "lhs")
        self.rhs = rhs if isinstance(rhs, PackedRhs) else as_operand(rhs, "rhs")
        lhs_vector = self.lhs.ndim == 1
        rhs_vector = self.rhs.ndim == 1
        if lhs_vector:
            self.lhs = self.lhs[None, :]
        if rhs_vector:
            self.rhs = self.rhs[:, None]
        self.m, self.depth = self.lhs.shape[-2:]
        rhs_depth, self.n = self.rhs.shape[-2:]
        if self.depth != rhs_depth:
            raise ValueError(f"rhs: expected depth {self.depth} to match lhs, got {rhs_depth}")
        try:
            self.batch_shape = np.broadcast_shapes(self.lhs.shape[:-2], self.rhs.shape[:-2])
        except ValueError:
            raise ValueError(
                f"rhs: batch dimensions {self.rhs.shape[:-2]} do not broadcast with lhs {self.lhs.shape[:-2]}"
            ) from None
        self.lhs_zero = as_zero_point(lhs_zero_point, "lhs_zero_point", self.m, "lhs row")
        self.rhs_zero = as_zero_point(rhs_zero_point, "rhs_zero_point", self.n, "rhs column")
        self.stages, self.result = check_pipeline(output, self.m, self.n)
        self.num_threads = as_num_threads(num_threads)
        if not isinstance(accumulate, (bool, np.bool_)):
            raise TypeError(f"accumulate: expected a bool, got {type(accumulate).__name__}")
        self.accumulate = bool(accumulate)
        if self.accumulate and out is None:
            raise ValueError("accumulate: expected out= to add to")
        if self.accumulate and self.stages:
            raise ValueError("accumulate: expected no output stages (it adds int32 products)")
        if not isinstance(overflow, str) or overflow not in ("wrap", "raise"):
            raise ValueError(f"overflow: expected 'wrap' or 'raise', got {overflow!r}")
        matrix = (() if lhs_vector else (self.m,)) + (() if rhs_vector else (self.n,))
        shape = self.batch_shape + matrix
        if out is not None:
            inputs = {"lhs": self.lhs}
            if not isinstance(self.rhs, PackedRhs):
                inputs["rhs"] = self.rhs
            self.out = check_out(out, shape, self.result, inputs)
        if overflow == "raise":
            overflow_check.require_no_wrap(self.lhs, self.rhs, self.lhs_zero, self.rhs_zero)
        if out is None:
            self.out = np.empty(shape, dtype=self.result)
        # The result as a stack of matrices: the dropped axes of vectors come back with length 1.
        full = self.out
        if lhs_vector:
            full = full[..., None, :] if not rhs_vector else full[..., None]
        if rhs_vector:
            full = full[..., None]
        self.matrices = full

    @property
    def batch(self) -> int:
        """Number of products."""
        return int(np.prod(self.batch_shape, dtype=np.int64))

    def _batch(self) -> Batch:
        rhs = self.rhs
        if isinstance(rhs, PackedRhs):
            panels, sums = rhs.batch_strides()
        else:
            panels, sums = rhs.strides[:-2], 0
        lhs = self.lhs.shape[:-2], self.lhs.strides[:-2]
        return Batch(self.batch_shape, lhs, (rhs.shape[:-2], panels), self.matrices.strides[:-2], sums)

    def plan(self, kernel: kernels.Kernel) -> Plan:
        """Plan for a kernel, the one of an earlier call of the same kind if there was one."""
        packed = isinstance(self.rhs, PackedRhs)
        lhs = Operand((self.m, self.depth), self.lhs.strides[-2:], self.lhs.dtype.kind)
        rhs = Operand((self.depth, self.n), (0, 0) if packed else self.rhs.strides[-2:], self.rhs.dtype.kind)
        options = {
            "result": self.result,
            "out_strides": self.matrices.strides[-2:],
            "batch": self._batch(),
            "packed": packed,
            "bilinear": isinstance(self.lhs_zero, np.ndarray) or isinstance(self.rhs_zero, np.ndarray),
            "accumulate": self.accumulate,
            "num_threads": self.num_threads,
        }
        key = (kernel.name, lhs, rhs, *options.values(), stages_key(self.stages))
        plan = _plans.get(key)
        if plan is None or not plan.serves():
            plan = Plan(kernel, lhs, rhs, output=self.stages, **options)
            _plans.add(key, plan)
        return plan

    def kernel(self) -> kernels.Kernel:
        """Kernel for these operands."""
        rhs = self.rhs
        if isinstance(rhs, PackedRhs):
            return kernels.selected_for(lambda: rhs.holds_min)
        # looking through the rhs costs what packing it costs, so it has to be used for some rows
        few_rows = self.m < MIN_ROWS_TO_LOOK
        return kernels.selected_for(lambda: few_rows or holds_min(rhs))

    def run(self) -> Plan | None:
        """Compute into `out`; returns the plan that did it."""
        if self.out.size == 0:
            return None
        if numba.config.DISABLE_JIT:
            self._run_reference()
            return None
        kernel = self.kernel()
        if isinstance(self.rhs, PackedRhs):
            self.rhs = repacked(self.rhs, kernel)
            rhs, sums = self.rhs.panels_address, self.rhs.sums_address
        else:
            rhs, sums = self.rhs.ctypes.data, 0
        plan = self.plan(kernel)
        plan.run(self.lhs.ctypes.data, rhs, sums, self.matrices.ctypes.data, self.lhs_zero, self.rhs_zero)
        return plan

    def _run_reference(self) -> None:
        """NUMBA_DISABLE_JIT=1: intrinsics cannot run, the definition can."""
        self.matrices[...] = reference.gemm(
            self.lhs,
            self.rhs.to_array() if isinstance(self.rhs, PackedRhs) else self.rhs,
            lhs_zero_point=self.lhs_zero,
            rhs_zero_point=self.rhs_zero,
            output=list(self.stages) or None,
            out=self.matrices.copy() if self.accumulate else None,
            accumulate=self.accumulate,
        )


def gemm(
    lhs: Any,
    rhs: Any,
    *,
    lhs_zero_point: Any = 0,
    rhs_zero_point: Any = 0,
    output: Sequence[Any] | Any | None = None,
    out: np.ndarray | None = None,
    accumulate: bool = False,
    num_threads: int | None = None,
    overflow: str = "wrap",
) -> np.ndarray:
    """Multiply 8-bit integer matrices exactly.

    Computes ``sum_k (lhs[..., i, k] - lhs_zero_point[i]) * (rhs[..., k, j] - rhs_zero_point[j])`` in int32 modulo
    2**32 and puts it through the `output` stages.

    Parameters
    ----------
    lhs : array_like of uint8 or int8, shape (..., m, depth) or (depth,)
        Left operand, any strides.
    rhs : array_like of uint8 or int8, shape (..., depth, n) or (depth,), or PackedRhs
        Right operand, any strides, or the result of `pack_rhs`. Leading dimensions broadcast, and vectors are
        treated, as in `numpy.matmul`.
    lhs_zero_point : int or array_like of int, shape (m,)
        Subtracted from `lhs`, one for all or one for each row. Any int32.
    rhs_zero_point : int or array_like of int, shape (n,)
        Subtracted from `rhs`, one for all or one for each column. Any int32.
    output : stage or sequence of stages, optional
        Output pipeline (`lowgemm.BiasAddition`, ...), applied to each tile of the result while it is in cache.
        Without it, the int32 sums are the result.
    out : ndarray, optional
        Array to write the result to: the result's shape and dtype, any strides, no overlap with the inputs.
    accumulate : bool
        Add the int32 product to `out` instead of replacing it.
    num_threads : int, optional
        Upper bound on threads; the default is Numba's setting. Small products use one.
    overflow : {"wrap", "raise"}
        What happens when an int32 sum could pass 2**31 - 1. It cannot below a depth of 33,025 (uint8 by uint8),
        65,793 (uint8 by int8) or 131,071 (int8 by int8) without zero points. "raise" looks at the data only
        when dtypes, zero points and depth leave it open.

    Returns
    -------
    ndarray, shape (..., m, n)
        int32, or the dtype of the output pipeline. `out` if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it, and `out` is untouched.
    OverflowError
        With ``overflow="raise"``.

    Notes
    -----
    The equation and the name of each part are those of gemmlowp (its docs ``low-precision.md`` and
    ``output.md``), except that gemmlowp adds its offsets and lowgemm subtracts zero points.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lhs = np.array([[1, 2], [255, 0]], dtype=np.uint8)
    >>> rhs = np.array([[-1, 1], [100, -128]], dtype=np.int8)
    >>> lowgemm.gemm(lhs, rhs)
    array([[ 199, -255],
           [-255,  255]], dtype=int32)
    >>> lowgemm.gemm(lhs, rhs, lhs_zero_point=1, output=[lowgemm.SaturatingCast(np.uint8)])
    array([[100,   0],
           [  0, 255]], dtype=uint8)
    """
    # A call of a kind that was seen before, types and all, has only its values left to check. Equal keys must mean
    # equal treatment: 1 == 1.0 == True, so the types of scalars are part of the key.
    try:
        key = (
            type(lhs), lhs.shape, lhs.strides, lhs.dtype, type(rhs), rhs.shape, rhs.strides, rhs.dtype,
            type(lhs_zero_point), type(rhs_zero_point), type(num_threads), num_threads, overflow,
            None if out is None else (type(out), out.shape, out.strides, out.dtype),
            None if output is None else stages_key(output), config.kernel,
        )  # fmt: skip
        seen = _calls.get(key)
    except (AttributeError, TypeError):
        key = seen = None
    if (
        seen is not None
        and accumulate is False
        and (seen.made_for is None or seen.made_for == thread_settings())
        and -2147483648 <= lhs_zero_point <= 2147483647
        and -2147483648 <= rhs_zero_point <= 2147483647
        and (rhs.strides is not None or rhs.kernel == seen.kernel)
        and (out is None or _still_fits(out, lhs, rhs))
    ):
        return seen.run(lhs, rhs, out, lhs_zero_point, rhs_zero_point)
    call = _Call(lhs, rhs, lhs_zero_point, rhs_zero_point, output, out, accumulate, num_threads, overflow)
    plan = call.run()
    if key is not None and accumulate is False and plan is not None and _repeatable(key, plan):
        _calls.add(key, PlannedGemm(plan, lhs, rhs, call.out.shape))
        remember_list(output)
    return call.out


def _repeatable(key: tuple[Any, ...], plan: Plan) -> bool:
    """Whether a call of this kind can be repeated without a look at its arguments."""
    place = key[13]
    arrays = key[0] is np.ndarray and key[4] in (np.ndarray, PackedRhs)
    arrays = arrays and (place is None or place[0] is np.ndarray)
    arrays = arrays and key[3].kind in "ui" and key[7].kind in "ui"  # others were widened first
    scalars = key[8] is int and key[9] is int and key[12] == "wrap"
    # a kernel that was chosen by the values of an rhs array says nothing about the next array
    lasting = key[4] is PackedRhs or not plan.kernel.rhs_excludes_min
    return arrays and scalars and lasting and len(key[1]) >= 2 and len(key[5]) >= 2


def checked_call(
    lhs: Any,
    rhs: Any,
    *,
    lhs_zero_point: Any = 0,
    rhs_zero_point: Any = 0,
    output: Any = None,
    out: Any = None,
    accumulate: bool = False,
    num_threads: Any = None,
    overflow: str = "wrap",
) -> _Call:
    """The arguments of `gemm`, checked but not run (for `explain`)."""
    return _Call(lhs, rhs, lhs_zero_point, rhs_zero_point, output, out, accumulate, num_threads, overflow)


def _still_fits(out: np.ndarray, lhs: np.ndarray, rhs: np.ndarray | PackedRhs) -> bool:
    """The checks of `out` that do not follow from its shape, strides and dtype."""
    flags = out.flags
    if not (flags.writeable and flags.aligned) or np.may_share_memory(out, lhs):
        return False
    return type(rhs) is PackedRhs or not np.may_share_memory(out, rhs)


def plan(
    lhs: np.ndarray,
    rhs: np.ndarray | PackedRhs,
    *,
    output: Sequence[Any] | Any | None = None,
    num_threads: int | None = None,
) -> PlannedGemm:
    """Plan a product once, for calls at the least cost.

    Parameters
    ----------
    lhs : ndarray of uint8 or int8, shape (..., m, depth)
        An operand of the shape, strides and dtype of those to come (its values do not matter).
    rhs : ndarray of uint8 or int8, shape (..., depth, n), or PackedRhs
        Likewise. Leading dimensions broadcast.
    output, num_threads
        As in `gemm`.

    Returns
    -------
    PlannedGemm
        ``planned(lhs, rhs, out=None, *, lhs_zero_point=0, rhs_zero_point=0)``.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> x, w = np.ones((2, 3), np.uint8), np.full((3, 2), 5, np.int8)
    >>> planned = lowgemm.plan(x, w)
    >>> planned(x, w)
    array([[15, 15],
           [15, 15]], dtype=int32)
    """
    call = _Call(lhs, rhs, 0, 0, output, None, False, num_threads, "wrap")
    if call.lhs is not lhs or lhs.ndim < 2 or call.rhs is not rhs or len(rhs.shape) < 2:
        raise ValueError("lhs, rhs: expected matrices or stacks of them (NumPy arrays, or a PackedRhs)")
    if call.out.size == 0:
        raise ValueError(f"lhs, rhs: expected a result with elements, got shape {call.out.shape}")
    kernel = call.kernel() if isinstance(rhs, PackedRhs) else kernels.selected()
    if isinstance(rhs, PackedRhs) and rhs.kernel != kernel.name:
        raise ValueError(f"rhs: expected panels of kernel {kernel.name!r}, got {rhs.kernel!r}")
    return PlannedGemm(call.plan(kernel), lhs, rhs, call.out.shape).compare_compiled(lhs, rhs)
