"""One call with its arguments checked: what is multiplied, with which plan, and where the result goes.

Next file to open: `plan.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numba
import numpy as np

from lowgemm import kernels, reference
from lowgemm.checks.arguments import as_num_threads, as_operand, as_zero_points, check_out
from lowgemm.checks.shapes import broadcast
from lowgemm.checks.values import choice
from lowgemm.engine import overflow_check
from lowgemm.engine.batch import Batch
from lowgemm.engine.packed_rhs import PackedRhs, repacked
from lowgemm.engine.plan import Operand, Plan
from lowgemm.engine.seen import Seen, stages_key
from lowgemm.output.check import check_pipeline

_plans = Seen()


class Call:
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
        self.lhs = self._operand(lhs, "lhs")
        self.rhs = rhs if isinstance(rhs, PackedRhs) else self._operand(rhs, "rhs")
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
            self.batch_shape = broadcast(self.lhs.shape[:-2], self.rhs.shape[:-2])
        except ValueError:
            raise ValueError(
                f"rhs: batch dimensions {self.rhs.shape[:-2]} do not broadcast with lhs {self.lhs.shape[:-2]}"
            ) from None
        stack = self.batch_shape
        self.lhs_zero = as_zero_points(lhs_zero_point, "lhs_zero_point", self.m, "lhs row", stack, -2)
        self.rhs_zero = as_zero_points(rhs_zero_point, "rhs_zero_point", self.n, "rhs column", stack, -1)
        #: Whether the matrices of the stack have zero points of their own, so that each is a call of a plan.
        self.own_zeros = np.ndim(self.lhs_zero) > 1 or np.ndim(self.rhs_zero) > 1
        self.stages, self.result = check_pipeline(output, self.m, self.n)
        self.num_threads = as_num_threads(num_threads)
        if not isinstance(accumulate, (bool, np.bool_)):
            raise TypeError(f"accumulate: expected a bool, got {type(accumulate).__name__}")
        self.accumulate = bool(accumulate)
        if self.accumulate and out is None:
            raise ValueError("accumulate: expected out= to add to")
        if self.accumulate and self.stages:
            raise ValueError("accumulate: expected no output stages (it adds int32 products)")
        self.overflow = overflow = choice(overflow, "overflow", ("wrap", "raise"))
        matrix = (() if lhs_vector else (self.m,)) + (() if rhs_vector else (self.n,))
        shape = self.batch_shape + matrix
        #: Whether the result goes to memory of the caller's, which was there before.
        self.given_out = out is not None
        if out is not None:
            inputs = {"lhs": self.lhs}
            if not isinstance(self.rhs, PackedRhs):
                inputs["rhs"] = self.rhs
            self.out = check_out(out, shape, self.result, inputs)
        else:
            self.out = np.empty(shape, dtype=self.result)
        # The result as a stack of matrices: the dropped axes of vectors come back with length 1.
        full = np.asarray(self.out)  # a subclass may have an indexing of its own
        if lhs_vector:
            full = full[..., None, :] if not rhs_vector else full[..., None]
        if rhs_vector:
            full = full[..., None]
        self.matrices = full
        if overflow == "raise" and full.size:
            added = full if self.accumulate else overflow_check.leading_bias(self.stages)
            overflow_check.require_no_wrap(self.lhs, self.rhs, self.lhs_zero, self.rhs_zero, added)

    _operand = staticmethod(as_operand)

    @property
    def batch(self) -> int:
        """Number of batch items."""
        return int(np.prod(self.batch_shape, dtype=np.int64))

    def stack(self) -> Batch:
        """Where the matrices of the operands and of the result begin."""
        rhs = self.rhs
        if isinstance(rhs, PackedRhs):
            panels, sums = rhs.batch_strides()
        else:
            panels, sums = rhs.strides[:-2], 0
        lhs = self.lhs.shape[:-2], self.lhs.strides[:-2]
        return Batch(self.batch_shape, lhs, (rhs.shape[:-2], panels), self.matrices.strides[:-2], sums)

    def plan(self, kernel: kernels.Kernel, held: bool = False) -> Plan:
        """Plan for a kernel, the one of an earlier call of the same kind if there was one; `held` is as in
        `Plan`.
        """
        packed = isinstance(self.rhs, PackedRhs)
        lhs = Operand((self.m, self.depth), self.lhs.strides[-2:], self.lhs.dtype.kind)
        rhs = Operand((self.depth, self.n), (0, 0) if packed else self.rhs.strides[-2:], self.rhs.dtype.kind)
        zeros = self.lhs_zero, self.rhs_zero
        options = {
            "result": self.result,
            "out_strides": self.matrices.strides[-2:],
            "batch": Batch() if self.own_zeros else self.stack(),
            "packed": packed,
            "bilinear": any(isinstance(z, np.ndarray) and max(z.shape[-2:]) > 1 for z in zeros),
            "accumulate": self.accumulate,
            "given_out": self.given_out,
            "num_threads": self.num_threads,
            "held": held,
        }
        key = (kernel.name, lhs, rhs, *options.values(), stages_key(self.stages))
        plan = _plans.get(key)
        if plan is None or not plan.serves():
            plan = Plan(kernel, lhs, rhs, output=self.stages, **options)
            _plans.add(key, plan)
        return plan

    def run(self) -> Plan | None:
        """Compute into `out`; returns the plan that did it."""
        if self.out.size == 0:
            return None
        if numba.config.DISABLE_JIT:
            self._run_reference()
            return None
        kernel = kernels.selected()
        if isinstance(self.rhs, PackedRhs):
            self.rhs = repacked(self.rhs, kernel)
            rhs, sums = self.rhs.panels_address, self.rhs.sums_address
        else:
            rhs, sums = self.rhs.ctypes.data, 0
        plan = self.plan(kernel)
        places = self.lhs.ctypes.data, rhs, sums, self.matrices.ctypes.data
        if self.own_zeros:
            self._run_each(plan, *places)
        else:
            plan.run(*places, self.lhs_zero, self.rhs_zero)
        return plan

    def _run_each(self, plan: Plan, lhs: int, rhs: int, sums: int, out: int) -> None:
        """The items of a batch that have zero points of their own, one after the other."""
        items, distinct_rhs = self.stack().tables()
        zeros = zip(self._zero_of_each(self.lhs_zero), self._zero_of_each(self.rhs_zero), strict=False)
        for (lhs_at, out_at, number), pair in zip(items.tolist(), zeros, strict=False):
            rhs_at, sums_at = distinct_rhs[number].tolist()
            plan.run(lhs + lhs_at, rhs + rhs_at, sums + sums_at, out + out_at, *pair)

    def _zero_of_each(self, zero: int | np.ndarray) -> Iterable[int | np.ndarray]:
        """One operand's zero points, matrix by matrix."""
        if np.ndim(zero) < 2:
            return itertools.repeat(zero)
        zero = np.asarray(zero)
        each = np.broadcast_to(zero, self.batch_shape + zero.shape[-2:]).reshape(self.batch, -1)
        return each[:, 0].tolist() if each.shape[1] == 1 else each

    def _run_reference(self) -> None:
        """NUMBA_DISABLE_JIT=1: intrinsics cannot run, the definition can."""
        self.matrices[...] = reference.gemm(
            self.lhs,
            self.rhs.to_array() if isinstance(self.rhs, PackedRhs) else self.rhs,
            lhs_zero_point=self.lhs_zero,  # in the definition, too, two dimensions mean a stack
            rhs_zero_point=self.rhs_zero,
            output=list(self.stages) or None,
            out=self.matrices.copy() if self.accumulate else None,
            accumulate=self.accumulate,
        )


class PatternCall(Call):
    """A call whose operands are described by `planned.Pattern`: it can be planned, not run."""

    _operand = staticmethod(lambda pattern, name: pattern)
