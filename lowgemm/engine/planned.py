"""Calls of a kind that was seen before: everything is checked and planned already.

A 32-cubed product computes for half a microsecond; checking its arguments takes twenty. So `gemm` looks its
arguments up by shape, strides and dtype first, and a hit runs a `PlannedGemm`, which `plan` also gives to the
user directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm import kernels
from lowgemm.checks.arguments import as_operand, check_out
from lowgemm.checks.values import INT32_MAX as _INT32_MAX
from lowgemm.checks.values import INT32_MIN as _INT32_MIN
from lowgemm.checks.values import integer
from lowgemm.engine import entry
from lowgemm.engine.call import PatternCall
from lowgemm.engine.packed import PackedRhs, repacked
from lowgemm.engine.plan import Plan
from lowgemm.engine.threads import run
from lowgemm.jit.scratch import borrow, borrowed, give_back

_empty, _zeros, _share, _int64 = np.empty, np.zeros, np.may_share_memory, np.dtype(np.int64)


class Pattern(NamedTuple):
    """What a plan knows of an operand.

    Attributes
    ----------
    shape : tuple of int
    strides : tuple of int or None
        In bytes; None for a `PackedRhs`, which has none.
    dtype : dtype
        uint8 or int8.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @classmethod
    def of(cls, a: np.ndarray | PackedRhs) -> Pattern:
        """That of an 8-bit operand."""
        return cls(a.shape, a.strides, np.dtype(a.dtype.str))

    def misfit(self, a: np.ndarray, name: str) -> Exception | None:
        """What to raise for an array that is not as planned; the stride along an axis of length 1 does not matter."""
        if a.dtype != self.dtype:
            return TypeError(f"{name}: expected dtype {self.dtype}, as planned, got {a.dtype}")
        if a.shape != self.shape:
            return ValueError(f"{name}: expected shape {self.shape}, as planned, got {a.shape}")
        if a.strides != self.strides and any(
            size > 1 and own != planned
            for size, own, planned in zip(a.shape, a.strides, self.strides or (), strict=True)
        ):
            return ValueError(
                f"{name}: expected strides {self.strides}, as planned, got {a.strides}; plan with such an array, or call gemm"
            )
        return None


class PlannedGemm:
    """A planned product of two matrices, made by `lowgemm.plan`.

    Call it with operands of the planned shapes, strides and dtypes.

    A copy or a pickle is what it was planned from: the shapes, strides and dtypes, the output stages and `num_threads`. The copy is
    planned anew, for the kernel and the settings of the process it is made in. A plan holds no operands and no result.
    """

    __slots__ = (
        "_alike", "_enter", "_fill", "_lhs", "_packed", "_pattern", "_record", "_result", "_rhs", "_scratch", "_shape", "kernel",
        "made_for", "plan",
    )  # fmt: skip

    def __init__(
        self,
        plan: Plan,
        lhs: np.ndarray | Pattern,
        rhs: np.ndarray | PackedRhs | Pattern,
        shape: tuple[int, ...],
    ) -> None:
        self.plan = plan
        self._lhs = lhs if isinstance(lhs, Pattern) else Pattern.of(lhs)
        self._rhs = rhs if isinstance(rhs, Pattern) else Pattern.of(rhs)
        self._packed = self._rhs.strides is None
        self._shape, self._result = shape, plan.result
        self.kernel, self.made_for = plan.kernel.name, plan.made_for
        self._alike = self._pattern = None
        # what a call touches, without a look through the plan
        self._enter, self._fill, self._record, self._scratch = (
            plan.enter, plan.fill, plan.record, plan.scratch_bytes
        )  # fmt: skip

    def compare_compiled(self) -> PlannedGemm:
        """Let calls compare their operands with the planned ones in compiled code; returns self.

        For `plan` only: `gemm` has compared already, and its first call should not compile this.
        """
        self._alike = entry.alike()
        self._pattern = (
            entry.pattern_of(self._lhs) if self._packed else entry.pattern_of(self._lhs, self._rhs)
        )
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return planned, (self._lhs, self._rhs, self.plan.output, self.plan.num_threads)

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
            run(plan.numbers, state, plan.threads, plan.pace)
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
            If an argument is not what was planned; the message names it.
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
                    or rhs.shape != self._rhs.shape
                    or rhs.dtype != self._rhs.dtype
                )
            )
        ):
            lhs, rhs = self._fitting(lhs, rhs)
        if type(lhs_zero_point) is not int or not (_INT32_MIN <= lhs_zero_point <= _INT32_MAX):
            lhs_zero_point = integer(lhs_zero_point, "lhs_zero_point")
        if type(rhs_zero_point) is not int or not (_INT32_MIN <= rhs_zero_point <= _INT32_MAX):
            rhs_zero_point = integer(rhs_zero_point, "rhs_zero_point")
        if out is not None:
            self._check_out(out, lhs, rhs)
        return self.run(lhs, rhs, out, lhs_zero_point, rhs_zero_point)

    def _fitting(self, lhs: Any, rhs: Any) -> tuple[np.ndarray, np.ndarray | PackedRhs]:
        """The operands as plain arrays over the same memory (as `gemm` takes them); raises unless they are as planned."""
        lhs = as_operand(lhs, "lhs")
        misfit = self._lhs.misfit(lhs, "lhs")
        if misfit is None and not self._packed:
            if isinstance(rhs, PackedRhs):
                raise TypeError("rhs: expected an array, as planned, got a PackedRhs; plan with that")
            rhs = as_operand(rhs, "rhs")
            misfit = self._rhs.misfit(rhs, "rhs")
        if misfit is not None:
            raise misfit
        return lhs, self._fitting_packed(rhs) if self._packed else rhs

    def _fitting_packed(self, rhs: Any) -> PackedRhs:
        if not isinstance(rhs, PackedRhs):
            raise TypeError(
                f"rhs: expected a PackedRhs, as planned, got {type(rhs).__name__}; plan with that"
            )
        if rhs.dtype != self._rhs.dtype:
            raise TypeError(f"rhs: expected dtype {self._rhs.dtype}, as planned, got {rhs.dtype}")
        if rhs.shape != self._rhs.shape:
            raise ValueError(f"rhs: expected shape {self._rhs.shape}, as planned, got {rhs.shape}")
        return repacked(rhs, self.plan.kernel)

    def _check_out(self, out: Any, lhs: np.ndarray, rhs: Any) -> None:
        if type(out) is np.ndarray and out.shape == self._shape and out.dtype == self._result:
            apart = not _share(out, lhs) and (self._packed or not _share(out, rhs))
            if out.flags.carray and apart:  # contiguous, aligned, writable
                return
        inputs = {"lhs": lhs} if self._packed else {"lhs": lhs, "rhs": rhs}
        check_out(out, self._shape, self.plan.result, inputs)
        if not out.flags.c_contiguous:
            raise ValueError("out: expected a C-contiguous array; gemm takes other strides")


def planned(
    lhs: Pattern, rhs: Pattern, output: Sequence[Any] | Any | None, num_threads: int | None
) -> PlannedGemm:
    """Plan a product of operands that are as described; what `lowgemm.plan` and the copies of a plan come to."""
    kernel = kernels.selected()
    right = (
        PackedRhs(rhs.shape, rhs.dtype, kernel) if rhs.strides is None else rhs
    )  # packed, but for its values
    call = PatternCall(lhs, right, 0, 0, output, None, False, num_threads, "wrap")
    if call.out.size == 0:
        raise ValueError(f"lhs, rhs: expected a result with elements, got shape {call.out.shape}")
    return PlannedGemm(call.plan(kernel), lhs, rhs, call.out.shape).compare_compiled()
