"""Plans of convolutions with a loop of their own: the same interface as `plan.Plan`, for the loops of
`depthwise.py` and `grouped.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lowgemm.engine import depthwise, drivers, grouped, line_loop, threads
from lowgemm.engine.blocking import Blocking, up
from lowgemm.engine.image import Windows
from lowgemm.engine.plan import Plan
from lowgemm.engine.records import MAX_STAGES, blank_plan, plan_numbers, plan_of
from lowgemm.jit import scratch
from lowgemm.jit.routine import Routine
from lowgemm.jit.scratch import ALIGNMENT
from lowgemm.jit.team import the_team
from lowgemm.kernels import Kernel
from lowgemm.output.pipeline import compile_pipeline

#: What a multiply-accumulate here counts for where threads are chosen: a product does so many in the same
#: time.
DEPTHWISE_MACS, GROUPED_MACS = 12, 3


def has_loop(filters: tuple[int, ...], groups: int) -> bool:
    """Whether there is a loop for filters of a shape (sizes ..., channels of a group, outputs)."""
    depth, outputs = filters[-2:]
    if depth == 1:
        return groups > 1 and outputs == groups
    return grouped.takes(depth, groups, outputs)


def arranged(weights: np.ndarray, groups: int, bits: int, dtype: Any) -> np.ndarray:
    """Numbers of the shape of filters (..., taps of a line, channels of a group, outputs) as a loop reads
    its weights, 0 in places that none has; `bits` are those of `vpdpbusd` (`line_loop.dot_bits`), or 0.
    """
    taps, depth, outputs = weights.shape[-3:]
    if depth == 1:
        return depthwise.arranged(weights.reshape(-1, taps, outputs), 1 if bits else 2, dtype)
    return grouped.arranged(weights.reshape(-1, depth, outputs), groups, bits, dtype)


class LoopShape(NamedTuple):
    """What a plan needs to know of the weights of a loop.

    Attributes
    ----------
    depth, outputs : int
        Channels of a group, and outputs of all groups.
    bits : int
        As in `arranged`; with 0, weights have 16 bits.
    """

    depth: int
    outputs: int
    bits: int


class LoopWeights:
    """Weights less their zero point, arranged for a kernel's CPU, with the sum of each output's: in place of
    a packed rhs.

    Parameters
    ----------
    filters : ndarray, shape (..., taps of a line, channels of a group, outputs)
        The filters, for which there is a loop (`has_loop`).
    groups : int
        Groups of channels.
    zero : int or ndarray of shape (outputs,)
        Their zero point.
    kernel : Kernel
        Whose CPU runs this.

    Raises
    ------
    ValueError
        If weights less their zero point have too many bits: see `fit`.
    """

    #: As of a packed rhs.
    strides = None

    def __init__(self, filters: np.ndarray, groups: int, zero: int | np.ndarray, kernel: Kernel) -> None:
        outputs = filters.shape[-1]
        weights = filters.astype(np.int64) - zero
        fits = weights.min() >= -128 and weights.max() <= 127
        if not self.fit(filters, zero):
            raise ValueError("zero: expected filters that have 16 bits less their zero point, or 8 in groups")
        self.kernel = kernel.name
        bits = line_loop.dot_bits(kernel) if fits else 0
        self.shape = LoopShape(filters.shape[-2], outputs, bits)
        made = arranged(weights, groups, bits, np.int8 if bits else np.int16)
        self.panels = scratch.aligned_empty(made.nbytes)
        self.panels[:] = made.reshape(-1).view(np.uint8)
        self.sums = weights.reshape(-1, outputs).sum(0).astype(np.int32)
        self.panels_address, self.sums_address = self.panels.ctypes.data, self.sums.ctypes.data

    @staticmethod
    def fit(filters: np.ndarray, zero: int | np.ndarray) -> bool:
        """Whether a loop can take the filters less their zero point.

        That of depthwise convolutions wants 16 bits, which filters of this type may have or not. That of
        groups wants these filters to have 8: with 16 it would be slower than the product of a CPU that
        multiplies bytes.
        """
        if filters.shape[-2] == 1:
            info, wanted = np.iinfo(filters.dtype), np.iinfo(np.int16)
            least, most = int(info.min), int(info.max)
        else:
            wanted = np.iinfo(np.int8)
            least, most = int(filters.min()), int(filters.max())
        return bool(least - int(np.max(zero)) >= wanted.min and most - int(np.min(zero)) <= wanted.max)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.panels.nbytes + self.sums.nbytes


class _Memory(NamedTuple):
    """What the plan of a loop needs to know of it.

    Attributes
    ----------
    routine : Routine
        For one block.
    together : int
        Lines of the result that are computed together.
    registers : int
        Bytes of the registers of the image's lines that they reach.
    tile : int
        Bytes of a tile of sums.
    blocks, outputs : int
        Blocks of channels, and outputs of a block.
    macs : int
        What a multiply-accumulate counts for.
    """

    routine: Routine
    together: int
    registers: int
    tile: int
    blocks: int
    outputs: int
    macs: int


def _of_depthwise(windows: Windows, weights: LoopShape) -> _Memory:
    taps = windows.taps
    registers = line_loop.CHANNELS // depthwise.LANES * depthwise.fours_of(taps[0] * taps[1])
    return _Memory(
        depthwise.block_routine(weights.bits),
        depthwise.lines_together(taps, windows.step),
        registers * line_loop.columns_at_most(taps[2], windows.step[2], windows.apart[2]) * line_loop.WIDE,
        4 * line_loop.WINDOWS * line_loop.CHANNELS,
        -(-windows.channels // line_loop.CHANNELS),
        line_loop.CHANNELS,
        DEPTHWISE_MACS,
    )


def _of_groups(windows: Windows, weights: LoopShape) -> _Memory:
    of_group = weights.depth * weights.outputs // windows.channels
    outputs = line_loop.CHANNELS // weights.depth * of_group
    at_once = grouped.outputs_at_once(of_group, weights.bits)
    together = grouped.lines_together(windows.taps, windows.step, windows.apart)
    columns = line_loop.columns_at_most(windows.taps[2], windows.step[2], windows.apart[2])
    return _Memory(
        grouped.block_routine(weights.bits, weights.depth, at_once),
        together,
        grouped.lines_held(windows.taps, windows.step, together) * columns * line_loop.WIDE,
        4 * line_loop.WINDOWS * outputs,
        -(-windows.channels // line_loop.CHANNELS),
        outputs,
        GROUPED_MACS,
    )


class LoopPlan(Plan):
    """Plan of one kind of convolution with a loop of its own.

    Parameters
    ----------
    kernel : Kernel
        Whose CPU runs this.
    weights : LoopShape
        Of the weights.
    windows, strides, kind, stages, result, out_row_stride, num_threads
        As in `filters.convolution_plan`.
    """

    def __init__(
        self,
        kernel: Kernel,
        weights: LoopShape,
        windows: Windows,
        strides: tuple[int, int, int, int],
        kind: str,
        stages: tuple[Any, ...],
        result: np.dtype,
        out_row_stride: int,
        num_threads: int | None,
    ) -> None:
        n, planes = weights.outputs, windows.images * windows.out[0]
        first, every, windows = windows.without_gaps()
        loop = (_of_depthwise if weights.depth == 1 else _of_groups)(windows, weights)
        lines = planes * line_loop.groups_of_lines(windows.out[1], loop.together, windows.apart[1])
        self.m, self.n, self.channels = planes * math.prod(windows.out[1:]), n, n
        self.depth = math.prod(windows.taps) * weights.depth
        self.runs = self.kernel = kernel
        self.packed, self.bilinear, self.fused = True, False, False
        self.output, self.num_threads, self.result = stages, num_threads, np.dtype(result)
        self.distinct_rhs = self.batch = 1
        self.macs = self.m * n * self.depth
        item = self.result.itemsize
        self.pipeline = pipeline = compile_pipeline(stages, result, size=(self.m, n), contiguous=True)
        steps = pipeline.addresses()
        if len(steps) > 2 * MAX_STAGES:
            raise ValueError(f"output: at most {MAX_STAGES} stages after merging, got {len(steps) // 2}")
        work = loop.macs * self.macs
        self.nanoseconds = work / threads.MACS_PER_NANOSECOND
        self.made_for = threads.settings() if threads.worth_threads(num_threads, work) else None
        steps_of = [every_one * stride for every_one, stride in zip(every, strides[1:], strict=True)]
        self.image = image = windows.record((strides[0], *steps_of), windows.channels)
        image["start"] = sum(pixel * stride for pixel, stride in zip(first, strides[1:], strict=True))
        image["room"] += image["start"]
        image["together"] = loop.together
        signed, bias, by_row = kind == "i", pipeline.col_bias, pipeline.row_bias
        plan = blank_plan(
            m=self.m, n=n, depth=self.depth, batch=1, distinct_rhs=1, packed=1, out_row_stride=out_row_stride,
            out_col_stride=item, col_bias=0 if bias is None else bias.ctypes.data,
            has_col_bias=bias is not None,
            row_bias=0 if by_row is None else by_row.ctypes.data, has_row_bias=by_row is not None,
            stages=len(steps) // 2, image=image.ctypes.data, row_blocks=lines, col_blocks=loop.blocks, splits=1,
            workers=min(threads.choose_threads(num_threads, work), lines * loop.blocks),
            lhs_flip=128 if signed else 0, lhs_shift=-128 if signed else 0,
            lanes=depthwise.LANES, kernel=loop.routine.address,
            compensation_routine=line_loop.loop_start.address, single=line_loop.loop_single.address,
        )  # fmt: skip
        # a thread's memory: columns of pixels in registers, a register of the zero point, one of the last
        # pixels, a tile, what the sums begin with
        plan.row_sums_at = loop.registers
        plan.row_compensation_at = plan.row_sums_at + line_loop.WIDE
        plan.tile_at = plan.row_compensation_at + line_loop.WIDE
        plan.on_the_fly_at = plan.tile_at + loop.tile
        plan.worker_bytes = up(plan.on_the_fly_at + 4 * max(n, depthwise.LANES), ALIGNMENT)
        plan.scratch_bytes = plan.workers * plan.worker_bytes
        self.threads, self.one_by_one = plan.workers, plan.workers == 1
        self.way = line_loop.loop_single
        if not self.one_by_one:
            team = the_team()
            self.way = drivers.several if team else None
            plan.team = team.address if team else 0
            plan.work = line_loop.loop_work.address
            plan.long = work >= threads.LONG_MACS
        self.numbers = plan_numbers(plan, steps, np.zeros(0, np.int64))
        self.p = plan_of(self.numbers)
        self.blocking = Blocking(1, loop.outputs, self.depth, lines, loop.blocks, 1, 1, 0)
        self.worker_bytes, self.all_rhs_bytes, self.scratch_bytes = plan.worker_bytes, 0, plan.scratch_bytes
        self.lhs_shift, self.rhs_shift = plan.lhs_shift, 0
        self.work = line_loop.loop_work
