"""What `lowgemm.plan` gives: a product that is planned once, for operands that are still to be compared with
the planned ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm import kernels
from lowgemm.checks.arguments import as_operand, check_out
from lowgemm.checks.values import integer
from lowgemm.engine import entry
from lowgemm.engine.call import Call, PatternCall
from lowgemm.engine.packed_rhs import PackedRhs, repacked
from lowgemm.engine.plan import Plan
from lowgemm.engine.ready import made_ready
from lowgemm.engine.zero_points import one_for_all


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
        """What to raise for an array that is not as planned; the stride along an axis of length 1 does not
        matter.
        """
        if a.dtype != self.dtype:
            return TypeError(f"{name}: expected dtype {self.dtype}, as planned, got {a.dtype}")
        if a.shape != self.shape:
            return ValueError(f"{name}: expected shape {self.shape}, as planned, got {a.shape}")
        if (
            a.size
            and a.strides != self.strides
            and any(
                size > 1 and own != planned
                for size, own, planned in zip(a.shape, a.strides, self.strides or (), strict=True)
            )
        ):
            return ValueError(
                f"{name}: expected strides {self.strides}, as planned, got {a.strides}; plan with such an "
                "array, or call gemm"
            )
        return None


class PlannedGemm:
    """A planned product of two matrices, made by `lowgemm.plan`.

    Call it with operands of the planned shapes, strides and dtypes.

    A copy or a pickle is what it was planned from: the shapes, strides and dtypes, the output stages and
    `num_threads`. The copy is planned anew, for the kernel and the settings of the process it is made in. A
    plan holds no operands and no result.
    """

    __slots__ = (
        "_compares",
        "_lhs",
        "_packed",
        "_pattern",
        "_ready",
        "_result",
        "_rhs",
        "_shape",
        "kernel",
        "plan",
    )

    def __init__(self, call: Call, plan: Plan, lhs: Pattern, rhs: Pattern) -> None:
        self.plan, self.kernel = plan, plan.kernel.name
        self._lhs, self._rhs, self._packed = lhs, rhs, plan.packed
        self._shape, self._result = call.out.shape, plan.result
        self._pattern = entry.pattern_of(lhs) if self._packed else entry.pattern_of(lhs, rhs)
        self._ready = made_ready(call, plan, 0, 0, self._pattern)
        #: Whether compiled code compares the operands with the planned ones.
        self._compares = bool(plan.enter)

    def __reduce__(self) -> tuple[Any, ...]:
        return planned, (self._lhs, self._rhs, self.plan.output, self.plan.num_threads)

    def __repr__(self) -> str:
        p = self.plan
        return (
            f"PlannedGemm({p.m}x{p.depth}x{p.n} -> {p.result}, kernel={p.runs.name!r}, threads={p.threads})"
        )

    def __call__(
        self,
        lhs: np.ndarray,
        rhs: np.ndarray | PackedRhs,
        out: np.ndarray | None = None,
        *,
        lhs_zero_point: int | np.ndarray = 0,
        rhs_zero_point: int | np.ndarray = 0,
    ) -> np.ndarray:
        """Multiply.

        Parameters
        ----------
        lhs, rhs : ndarray or PackedRhs
            Operands of the planned shapes, strides and dtypes.
        out : ndarray, optional
            C-contiguous result array.
        lhs_zero_point, rhs_zero_point : int, or ndarray of one value
            As in `gemm`; vectors, one for each row or column, only of values that are all equal, as most
            models have them.

        Returns
        -------
        ndarray
            The result.

        Raises
        ------
        TypeError, ValueError
            If an argument is not what was planned; the message names it.
        """
        plain = type(lhs_zero_point) is int and type(rhs_zero_point) is int
        if not plain:
            lhs_zero_point = self._one_zero_point(lhs_zero_point, self._lhs, -2)
            rhs_zero_point = self._one_zero_point(rhs_zero_point, self._rhs, -1)
            plain = type(lhs_zero_point) is int and type(rhs_zero_point) is int
        if (
            plain
            and self._compares
            and (
                not self._packed
                or (
                    type(rhs) is PackedRhs
                    and rhs.kernel == self.kernel
                    and rhs.shape == self._rhs.shape
                    and rhs.dtype == self._rhs.dtype
                )
            )
            and (out is None or self._simple(out))
        ):
            result = self._ready.run(lhs, rhs, out, lhs_zero_point, rhs_zero_point)
            if result is not None:
                return result
        # something is not as planned, or not as plain: a closer look raises, or finds that it does not matter
        lhs, rhs = self._fitting(lhs, rhs)
        lhs_zero = integer(lhs_zero_point, "lhs_zero_point")
        rhs_zero = integer(rhs_zero_point, "rhs_zero_point")
        if out is not None:
            self._check_out(out, lhs, rhs)
        return self._ready.by_addresses(lhs, rhs, out, lhs_zero, rhs_zero)

    @staticmethod
    def _one_zero_point(value: Any, pattern: Pattern, axis: int) -> Any:
        """The value of a vector whose values are all equal; anything else as it is."""
        return one_for_all(value, pattern.shape, axis) if type(value) is np.ndarray else value

    def _simple(self, out: Any) -> bool:
        """Whether the result's array is plain, as planned and contiguous; compiled code looks whether it may
        be written.
        """
        return (
            type(out) is np.ndarray
            and out.shape == self._shape
            and out.dtype == self._result
            and out.flags.c_contiguous
        )

    def _fitting(self, lhs: Any, rhs: Any) -> tuple[np.ndarray, np.ndarray | PackedRhs]:
        """The operands as plain arrays over the same memory (as `gemm` takes them); raises unless they are as
        planned.
        """
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
        inputs = {"lhs": lhs} if self._packed else {"lhs": lhs, "rhs": rhs}
        check_out(out, self._shape, self.plan.result, inputs)
        if not out.flags.c_contiguous:
            raise ValueError("out: expected a C-contiguous array; gemm takes other strides")


def planned(
    lhs: Pattern, rhs: Pattern, output: Sequence[Any] | Any | None, num_threads: int | None
) -> PlannedGemm:
    """Plan a product of operands that are as described; what `lowgemm.plan` and the copies of
    a plan come to.
    """
    kernel = kernels.selected()
    # A packed rhs has no values yet; a plan needs none.
    right = PackedRhs(rhs.shape, rhs.dtype, kernel) if rhs.strides is None else rhs
    call = PatternCall(lhs, right, 0, 0, output, None, False, num_threads, "wrap")
    if call.out.size == 0:
        raise ValueError(f"lhs, rhs: expected a result with elements, got shape {call.out.shape}")
    return PlannedGemm(call, call.plan(kernel), lhs, rhs)
