"""A planned product with all that a call of its kind needs to run.

A 32-cubed product computes for 0.2 us; checking its arguments takes twenty. So `gemm` looks a call up by all
that can be seen of it without its values: types, shapes, strides, dtypes, options, stages. What was found
right once for such a key is right again. Only this is left to look at, every time:

* the values of the zero points (`zero_points.py`, in compiled code);
* whether `out` may be written and lies apart from the operands (`array_objects.py`, likewise; `fits` where
  that cannot be);
* whether the thread settings are those of the plan, and a packed rhs is packed for its kernel (`gemm` does
  that).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.checks.values import INT32_MAX, INT32_MIN
from lowgemm.engine import entry
from lowgemm.engine.batch import Batch
from lowgemm.engine.call import Call
from lowgemm.engine.plan import Plan
from lowgemm.engine.zero_points import NUMBER, Zeros, kind_of
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.scratch import aligned_empty, borrow, borrowed, give_back
from lowgemm.output.pipeline import counters_of, raise_failures

_empty, _share = np.empty, np.may_share_memory
#: Bytes of scratch memory up to which calls with functions of the user's keep their own between calls: to
#: borrow the thread's takes a tenth of a product of 32 cubed.
OWN_SCRATCH = 1 << 15


def fits(out: np.ndarray, *inputs: np.ndarray) -> bool:
    """The checks of `out` that do not follow from its shape, strides and dtype."""
    flags = out.flags
    if not (flags.writeable and flags.aligned):
        return False
    return not any(_share(out, a) for a in inputs)


class Ready(NotCopied):
    """A planned product that runs on arguments known to fit.

    Parameters
    ----------
    call : Call
        A checked call of this kind. It is not kept.
    plan : Plan
        Its plan.
    lhs_zero, rhs_zero
        Zero points as they were given.
    pattern : ndarray, optional
        What `entry.pattern_of` says of the operands, if they are still to be compared.

    Attributes
    ----------
    plan : Plan
    kernel : str
        Name of the kernel that a packed rhs must be packed for.
    made_for : tuple or None
        Thread settings that the plan was made for; None: they play no part.
    """

    instead = "copy the PlannedGemm, which plans anew"

    __slots__ = (
        "_enter", "_number", "_packed", "_pattern", "_record", "_result", "_scratch", "_shape", "_special",
        "_zeros", "kernel", "made_for", "plan",
    )  # fmt: skip

    def __init__(
        self, call: Call, plan: Plan, lhs_zero: Any, rhs_zero: Any, pattern: np.ndarray | None = None
    ) -> None:
        self.plan, self.kernel, self.made_for = plan, plan.kernel.name, plan.made_for
        self._shape, self._result = call.out.shape, plan.result
        self._number = not self._shape  # of two vectors: a number, not an array
        self._packed = plan.packed
        self._enter, self._pattern = plan.enter, pattern
        self._zeros = Zeros(
            (plan.m, plan.channels),
            (plan.lhs_shift, plan.rhs_shift),
            plan.bilinear,
            (lhs_zero, rhs_zero),
            (call.lhs_zero, call.rhs_zero),
            call.stack() if call.own_zeros else Batch(),
            plan.scratch_bytes,
        )
        self._scratch = self._zeros.end
        #: Whether `run` has more to do than the usual call: one test in place of two.
        self._special = self._enter is None or self._number
        #: First argument of the built-in functions; None where they do not work.
        self._record = self._call_record(plan.numbers) if plan.enter else None

    def _call_record(self, numbers: np.ndarray, watches: np.ndarray | None = None) -> np.ndarray:
        plan = self.plan
        # Helpers of the team may need the interpreter, for functions of the user's: a caller that waits for
        # them lets go of it.
        release = not plan.one_by_one or plan.macs >= entry.RELEASE_MACS
        return entry.product_call(
            numbers,
            plan.way.address,
            plan.packed,
            release,
            plan.result.itemsize,
            self._zeros,
            self._pattern,
            watches,
        )

    def run(self, lhs: Any, rhs: Any, out: Any, lhs_zero: Any, rhs_zero: Any) -> Any:
        """Multiply; None, and nothing written, if something is not as it must be, the pattern included."""
        if self._special:
            return self._run(lhs, rhs, out, lhs_zero, rhs_zero)
        if out is None:
            out = _empty(self._shape, self._result)
        if self._packed:
            panels, sums = rhs.panels, rhs.sums
            return self._enter(
                self._record, lhs, panels, sums, out, borrowed(self._scratch), lhs_zero, rhs_zero
            )
        return self._enter(self._record, lhs, rhs, None, out, borrowed(self._scratch), lhs_zero, rhs_zero)

    def _run(self, lhs: Any, rhs: Any, out: Any, lhs_zero: Any, rhs_zero: Any) -> Any:
        """The same for an interpreter of any kind, and for a number as the result."""
        if self._record is None:
            inputs = (lhs,) if self._packed else (lhs, rhs)
            zeros_fit = all(INT32_MIN <= zero <= INT32_MAX for zero in (lhs_zero, rhs_zero))
            if not zeros_fit or not (out is None or fits(out, *inputs)):
                return None
            return self.by_addresses(lhs, rhs, out, int(lhs_zero), int(rhs_zero))
        to = _empty(self._shape, self._result) if out is None else out
        panels, sums = (rhs.panels, rhs.sums) if self._packed else (rhs, None)
        space = borrow(self._scratch)
        done = self._enter(self._record, lhs, panels, sums, to, space, lhs_zero, rhs_zero)
        give_back(space)
        if done is None:
            return None
        return to[()] if self._number and out is None else to

    def by_addresses(self, lhs: Any, rhs: Any, out: Any, lhs_zero: int, rhs_zero: int) -> Any:
        """The same for arrays of any kind and an interpreter of any kind: NumPy is asked where they lie, in 3
        us.
        """
        to = _empty(self._shape, self._result) if out is None else out
        packed = self._packed
        right = (rhs.panels_address, rhs.sums_address) if packed else (rhs.ctypes.data, 0)
        self.plan.run(lhs.ctypes.data, *right, to.ctypes.data, lhs_zero, rhs_zero)
        return to[()] if self._number and out is None else to


class ReadyWithFunctions(Ready):
    """The same with functions of the user's. They note failures in numbers that no other call writes to, and
    may multiply themselves, so that each call has memory of its own.
    """

    __slots__ = ("_lent",)

    def __init__(
        self, call: Call, plan: Plan, lhs_zero: Any, rhs_zero: Any, pattern: np.ndarray | None = None
    ) -> None:
        super().__init__(call, plan, lhs_zero, rhs_zero, pattern)
        #: What calls that are over left: see `_lend`.
        self._lent: list[Any] = []

    def _lend(self) -> tuple[np.ndarray, Any, np.ndarray | None, tuple[np.ndarray, np.ndarray]]:
        """What a call needs for itself: a record, what to give to `raise_failures`, scratch memory (None:
        that of the thread), and the arrays that the record points to.
        """
        numbers, watches = self.plan.watched()
        counters = entry.watch_list(counters_of(watches))
        space = aligned_empty(self._scratch) if self._scratch <= OWN_SCRATCH else None
        return self._call_record(numbers, counters), watches, space, (numbers, counters)

    def run(self, lhs: Any, rhs: Any, out: Any, lhs_zero: Any, rhs_zero: Any) -> Any:
        """As `Ready.run`; raises what a function raised."""
        if self._record is None:
            return self._run(lhs, rhs, out, lhs_zero, rhs_zero)
        to = _empty(self._shape, self._result) if out is None else out
        panels, sums = (rhs.panels, rhs.sums) if self._packed else (rhs, None)
        try:
            lent = self._lent.pop()  # of a call that is over
        except IndexError:
            lent = self._lend()
        record, watches, own, _ = lent
        space = borrow(self._scratch) if own is None else own
        done = self._enter(record, lhs, panels, sums, to, space, lhs_zero, rhs_zero)
        if own is None:
            give_back(space)
        if done is record:
            raise_failures(watches)
        self._lent.append(lent)
        if done is None:
            return None
        return to[()] if self._number and out is None else to


def made_ready(
    call: Call, plan: Plan, lhs_zero: Any, rhs_zero: Any, pattern: np.ndarray | None = None
) -> Ready:
    """A planned product, ready for arguments that are known to be of the kinds of this call."""
    kind = ReadyWithFunctions if plan.pipeline.customs else Ready
    return kind(call, plan, lhs_zero, rhs_zero, pattern)


def ready(
    call: Call, plan: Plan, lhs_zero: Any, rhs_zero: Any, pattern: np.ndarray | None = None
) -> Ready | None:
    """A checked call made ready for more of its kind; None where such calls must be checked one by one.

    That is where a zero point is of a type that compiled code does not read, and where zero points are arrays
    but the interpreter keeps arrays in a way that compiled code does not know, or there is no team of
    threads.
    """
    kinds = {kind_of(lhs_zero), kind_of(rhs_zero)}
    if None in kinds or (call.own_zeros and plan.enter is None):
        return None
    if plan.enter is None and kinds != {NUMBER}:
        return None
    return made_ready(call, plan, lhs_zero, rhs_zero, pattern)
