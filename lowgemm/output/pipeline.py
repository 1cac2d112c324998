"""From a list of stages to the routines that run on each tile.

Each stage says what runs (`Stage.step`). What may be left out or put together is decided here, by what the
stages say of themselves:

* a leading `addend` costs nothing: it is added to the row or column compensation that the kernel adds anyway
  (int32 addition wraps, so the order does not matter);
* adjacent `bounds` are one clamp, and those before the store are the store's;
* a scale that can go in `one_pass` with the store does, if it is the last before it.

Next file to open: `elementwise.py`, the loop of the routines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from lowgemm.checks.values import INT32_MAX, INT32_MIN
from lowgemm.jit.addresses import NotCopied
from lowgemm.output.base import Stage
from lowgemm.output.bilinear import bilinear as bilinear_routine
from lowgemm.output.elementwise import STOPPED
from lowgemm.output.scale_and_store import FUSED
from lowgemm.output.stages.clamp import clamp
from lowgemm.output.store import store8, store16, store32
from lowgemm.output.tile_routine import Step

_STORES = {8: store8, 16: store16, 32: store32}
_ALL = (INT32_MIN, INT32_MAX)
#: A step that may fail, and its parameters as int64 numbers, the count of failures among them.
Watch: TypeAlias = tuple[memoryview, Step]


@dataclass
class CompiledPipeline(NotCopied):
    """Compiled form of a pipeline for one problem size.

    Attributes
    ----------
    steps : list of Step
        Routines in order, with their parameters; the last stores.
    col_bias, row_bias : ndarray of int32 or None
        Bias folded into the column or row compensation.
    direct : bool
        Nothing but the int32 store is left: the kernel may write to the result itself.
    """

    instead: ClassVar[str] = "compile the output stages again"

    steps: list[Step] = field(default_factory=list)
    col_bias: np.ndarray | None = None
    row_bias: np.ndarray | None = None
    direct: bool = False

    @property
    def fusable(self) -> int | None:
        """Number of the scale, if nothing but a scale with the store of bytes is left, which some kernels do
        themselves.
        """
        return FUSED.get(self.steps[0].name) if len(self.steps) == 1 else None

    @property
    def customs(self) -> list[int]:
        """Numbers of the steps that may fail: functions of the user's."""
        return [i for i, step in enumerate(self.steps) if step.may_fail is not None]

    def addresses(self, called: bool = True) -> list[int]:
        """Flat list of routine address, parameter address, ..., as `engine/tiles.py` reads it; where no
        routine is ever `called`, none is compiled and its address is 0.
        """
        return [
            n for step in self.steps for n in (step.routine.address if called else 0, step.record.ctypes.data)
        ]

    def watched(self, numbers: np.ndarray, at: int) -> tuple[np.ndarray, list[Watch]]:
        """`numbers`, which hold the addresses from `at` on, for one call that shares no noted failures with
        another.

        Also returns what to give to `raise_failures` after the call.
        """
        watches = []
        customs = self.customs
        if customs:
            numbers = numbers.copy()
        for i in customs:
            step = dataclasses.replace(self.steps[i], record=self.steps[i].record.copy())
            numbers[at + 2 * i + 1] = step.record.ctypes.data
            # of a structured array the same number takes ten times as long to read
            watches.append((step.record.view(np.uint8).data.cast("q"), step))
        return numbers, watches


def counters_of(watches: Iterable[Watch]) -> list[int]:
    """Addresses of the counts of failures, for compiled code that looks whether any is not 0."""
    return [step.record.ctypes.data + words.itemsize * STOPPED for words, step in watches]


def raise_failures(watches: Iterable[Watch]) -> None:
    """Raise what the first of the user's functions to fail raised.

    Later ones may have had the half-done work of the first as their input.
    """
    for words, step in watches:
        if words[STOPPED]:
            step.routine.raise_failure(step.may_fail, step.record)


def compile_pipeline(
    output: tuple[Any, ...],
    result: np.dtype,
    *,
    accumulate: bool = False,
    bilinear: bool = False,
    fold_bias: bool = True,
    size: tuple[int, int] = (1, 1),
    contiguous: bool = False,
) -> CompiledPipeline:
    """Choose the routines for checked `output` stages.

    Parameters
    ----------
    output : tuple of stages
        As returned by `check_pipeline`.
    result : dtype
        Element type that is stored.
    accumulate : bool
        Add to what `out` holds (int32 without stages only).
    bilinear : bool
        Zero points differ by row or column, which the kernel's compensation cannot express.
    fold_bias : bool
        Let the kernel add a leading bias.
    size : tuple of int
        Rows and columns of the result.
    contiguous : bool
        Whether the result's rows are contiguous.
    """
    compiled = CompiledPipeline()
    todo = [simple for stage in output for simple in stage.lower()]
    if fold_bias:
        todo = _fold_bias(compiled, todo)
    steps = compiled.steps
    if bilinear:
        steps.append(bilinear_routine.step())
    bounds, truncates = _ALL, False
    one_pass, scale = None, None  # the last scale that can go together with the store, and its step
    for stage in todo:
        if stage.bounds is not None:  # min(max(x, low), high) after another: again of that form
            low, high = stage.bounds
            bounds = (min(max(bounds[0], low), high), min(max(bounds[1], low), high))
            continue
        bounds = _flush(steps, bounds)
        truncates = stage.truncates
        step = stage.step()
        if step is not None:
            steps.append(step)
            one_pass, scale = stage.one_pass(), step
    if result == np.float32:
        return compiled
    bits = result.itemsize * 8
    compiled.direct = not steps and bits == 32 and bounds == _ALL
    if bits == 32:
        bounds = _flush(steps, bounds)
    elif truncates:
        bounds = _ALL
    elif contiguous and one_pass is not None and steps[-1] is scale:
        steps[-1] = one_pass.step(bits, *bounds, size)
        return compiled
    steps.append(_STORES[bits].step(low=bounds[0], high=bounds[1], accumulate=accumulate))
    return compiled


def _fold_bias(compiled: CompiledPipeline, todo: list[Stage]) -> list[Stage]:
    """Give leading addends to the kernel, one for rows and one for columns; returns the other stages."""
    while todo and todo[0].addend is not None:
        side = "row_bias" if todo[0].axis == 0 else "col_bias"
        if getattr(compiled, side) is not None:
            break
        setattr(compiled, side, np.ascontiguousarray(todo[0].addend, dtype=np.int32))
        todo = todo[1:]
    return todo


def _flush(steps: list[Step], bounds: tuple[int, int]) -> tuple[int, int]:
    """Clamp here, unless the bounds are no bounds; returns those that are left then."""
    if bounds != _ALL:
        steps.append(clamp.step(low=bounds[0], high=bounds[1]))
    return _ALL
