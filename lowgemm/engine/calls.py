"""Calls of a kind that was seen before: everything is checked and planned already.

A 32-cubed product computes for half a microsecond; checking its arguments takes twenty. So `gemm` looks its
arguments up by shape, strides and dtype first, and a hit runs a `PlannedGemm`, which `plan` also gives to the
user directly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.checks.arguments import check_out
from lowgemm.checks.values import INT32_MAX as _INT32_MAX
from lowgemm.checks.values import INT32_MIN as _INT32_MIN
from lowgemm.checks.values import integer
from lowgemm.engine import entry
from lowgemm.engine.packed import PackedRhs
from lowgemm.engine.plan import Plan
from lowgemm.engine.threads import run
from lowgemm.jit.scratch import borrow, borrowed, give_back

_empty, _zeros, _share, _int64 = np.empty, np.zeros, np.may_share_memory, np.dtype(np.int64)


class PlannedGemm:
    """A planned product of two matrices, made by `lowgemm.plan`.

    Call it with operands of the planned shapes, strides and dtypes.
    """

    __slots__ = (
        "_alike", "_dtypes", "_enter", "_fill", "_packed", "_pattern", "_record", "_result", "_scratch", "_shape", "_shapes", "_strides",
        "kernel", "made_for", "plan",
    )  # fmt: skip

    def __init__(
        self, plan: Plan, lhs: np.ndarray, rhs: np.ndarray | PackedRhs, shape: tuple[int, ...]
    ) -> None:
        self.plan = plan
        self._packed = isinstance(rhs, PackedRhs)
        self._shapes, self._dtypes = (lhs.shape, rhs.shape), (lhs.dtype, rhs.dtype)
        self._strides = (lhs.strides, None if self._packed else rhs.strides)
        self._shape, self._result = shape, plan.result
        self.kernel, self.made_for = plan.kernel.name, plan.made_for
        self._alike = self._pattern = None
        # what a call touches, without a look through the plan
        self._enter, self._fill, self._record, self._scratch = (
            plan.enter, plan.fill, plan.record, plan.scratch_bytes
        )  # fmt: skip

    def compare_compiled(self, lhs: np.ndarray, rhs: np.ndarray | PackedRhs) -> PlannedGemm:
        """Let calls compare their operands with these in compiled code; returns self.

        For `plan` only: `gemm` has compared already, and its first call should not compile this.
        """
        self._alike = entry.alike()
        self._pattern = entry.pattern_of(lhs) if self._packed else entry.pattern_of(lhs, rhs)
        return self

    def __repr__(self) -> str:
        p = self.plan
        return (
            f"PlannedGemm({p.m}x{p.depth}x{p.n} -> {p.result}, kernel={p.kernel.name!r}, threads={p.threads})"
        )

    def run(self, lhs, rhs, out, lhs_zero: int, rhs_zero: int) -> np.ndarray:
        """Multiply arguments that are known to fit."""
        if out is None:
            out = _empty(self._shape, self._result)
        enter = self._enter
        if enter is not None:
            space = borrowed(self._scratch)
            if self._packed:
                return enter(self._record, lhs, rhs.panels, rhs.sums, out, space, lhs_zero, rhs_zero)
            return enter(self._record, lhs, rhs, None, out, space, lhs_zero, rhs_zero)
        plan = self.plan
        if self._fill is not None:
            state, space = _zeros(plan.state_size, _int64), borrow(self._scratch)
            panels, sums = (rhs.panels, rhs.sums) if self._packed else (rhs, None)
            self._fill(self._record, lhs, panels, sums, out, space, lhs_zero, rhs_zero, state)
            run(plan.p, state, plan.pace)
            give_back(space)
            return out
        if self._packed:
            panels, sums = rhs.panels_address, rhs.sums_address
        else:
            panels, sums = rhs.ctypes.data, 0
        plan.run(lhs.ctypes.data, panels, sums, out.ctypes.data, lhs_zero, rhs_zero)
        return out

    def __call__(
        self,
        lhs: np.ndarray,
        rhs: np.ndarray | PackedRhs,
        out: np.ndarray | None = None,
        *,
        lhs_zero_point: int = 0,
        rhs_zero_point: int = 0,
    ) -> np.ndarray:
        """Multiply.

        Parameters
        ----------
        lhs, rhs : ndarray or PackedRhs
            Operands of the planned shapes, strides and dtypes.
        out : ndarray, optional
            C-contiguous result array.
        lhs_zero_point, rhs_zero_point : int
            As in `gemm`.

        Returns
        -------
        ndarray
            The result.

        Raises
        ------
        TypeError, ValueError
            If an argument is not what was planned.
        """
        alike = self._alike
        if (
            alike is None
            or not alike(self._pattern, lhs, rhs)
            or (
                self._packed
                and (
                    type(rhs) is not PackedRhs
                    or rhs.kernel != self.kernel
                    or rhs.shape != self._shapes[1]
                    or rhs.dtype is not self._dtypes[1]
                )
            )
        ):
            self._check(lhs, rhs)
        if type(lhs_zero_point) is not int or not (_INT32_MIN <= lhs_zero_point <= _INT32_MAX):
            lhs_zero_point = integer(lhs_zero_point, "lhs_zero_point")
        if type(rhs_zero_point) is not int or not (_INT32_MIN <= rhs_zero_point <= _INT32_MAX):
            rhs_zero_point = integer(rhs_zero_point, "rhs_zero_point")
        if out is not None:
            self._check_out(out, lhs, rhs)
        return self.run(lhs, rhs, out, lhs_zero_point, rhs_zero_point)

    def _check(self, lhs: Any, rhs: Any) -> None:
        """Raise unless the operands are as planned."""
        if type(lhs) is not np.ndarray or lhs.dtype is not self._dtypes[0] or lhs.shape != self._shapes[0]:
            raise TypeError(f"lhs: expected a {self._dtypes[0]} array of shape {self._shapes[0]}, as planned")
        if lhs.strides != self._strides[0]:
            raise ValueError(f"lhs: expected strides {self._strides[0]}, as planned, got {lhs.strides}")
        if self._packed:
            if type(rhs) is not PackedRhs or rhs.shape != self._shapes[1] or rhs.dtype != self._dtypes[1]:
                raise TypeError(f"rhs: expected a PackedRhs of shape {self._shapes[1]}, as planned")
            if rhs.kernel != self.plan.kernel.name:
                raise ValueError(f"rhs: expected panels of kernel {self.plan.kernel.name!r}, as planned")
        else:
            if (
                type(rhs) is not np.ndarray
                or rhs.dtype is not self._dtypes[1]
                or rhs.shape != self._shapes[1]
            ):
                raise TypeError(f"rhs: expected a {self._dtypes[1]} array of shape {self._shapes[1]}")
            if rhs.strides != self._strides[1]:
                raise ValueError(f"rhs: expected strides {self._strides[1]}, as planned, got {rhs.strides}")

    def _check_out(self, out: Any, lhs: np.ndarray, rhs: Any) -> None:
        if type(out) is np.ndarray and out.shape == self._shape and out.dtype == self._result:
            apart = not _share(out, lhs) and (self._packed or not _share(out, rhs))
            if out.flags.carray and apart:  # contiguous, aligned, writable
                return
        inputs = {"lhs": lhs} if self._packed else {"lhs": lhs, "rhs": rhs}
        check_out(out, self._shape, self.plan.result, inputs)
        if not out.flags.c_contiguous:
            raise ValueError("out: expected a C-contiguous array (plan with out= for other strides)")


class Seen:
    """Bounded memory of what was planned."""

    #: Kinds of call remembered; at about 4 KB each. A program with more shapes than this replans some.
    LIMIT = 512

    def __init__(self) -> None:
        self._entries: dict[Any, Any] = {}
        self.get = self._entries.get

    def add(self, key: Any, entry: Any) -> None:
        """Remember; forgets everything when full, which is simpler than order and as good for few shapes."""
        if len(self._entries) >= self.LIMIT:
            self._entries.clear()
        self._entries[key] = entry


_lists = Seen()


def stages_key(output: Any) -> Any:
    """Identity of a pipeline: stages are immutable, and a remembered plan keeps them alive."""
    if output is None:
        return None
    known = _lists.get(id(output))  # 0.08 us, against 0.2 for what follows
    if known is not None and known[0] == output:
        return known[1]
    if isinstance(output, (list, tuple)):
        return tuple(map(id, output))
    return id(output)  # one stage; anything else never becomes a plan


def remember_list(output: Any) -> None:
    """Let `stages_key` know this list again: what is compared is a copy, element by element, identity first."""
    if type(output) is list:
        _lists.add(id(output), (output.copy(), stages_key(output)))
