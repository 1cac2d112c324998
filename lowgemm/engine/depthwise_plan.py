"""Plans of depthwise convolutions: the same interface as `plan.Plan`, for the loop of `depthwise.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowgemm.engine import depthwise, drivers, threads
from lowgemm.engine.blocking import Blocking, up
from lowgemm.engine.image import Windows
from lowgemm.engine.plan import Plan
from lowgemm.engine.records import MAX_STAGES, blank_plan, plan_numbers, plan_of
from lowgemm.jit import scratch
from lowgemm.jit.scratch import ALIGNMENT
from lowgemm.jit.team import the_team
from lowgemm.kernels import Kernel
from lowgemm.output.pipeline import compile_pipeline

#: What a multiply-accumulate here counts for where threads are chosen: a product does some twelve in the same
#: time.
MACS_OF_ONE = 12


class DepthwiseWeights:
    """Weights less their zero point, arranged for a kernel's CPU, with the sum of each channel's: in place of
    a packed rhs.

    Parameters
    ----------
    filters : ndarray, shape (..., taps of a line, 1, channels)
        The filters.
    zero : int or ndarray of shape (channels,)
        Their zero point.
    kernel : Kernel
        Whose CPU runs this.

    Raises
    ------
    ValueError
        If weights less their zero point have no 16 bits: see `fit`.
    """

    #: As of a packed rhs.
    strides = None

    def __init__(self, filters: np.ndarray, zero: int | np.ndarray, kernel: Kernel) -> None:
        taps, channels = filters.shape[-3], filters.shape[-1]
        weights = filters.reshape(-1, taps, channels).astype(np.int64) - zero
        fits = weights.min() >= -128 and weights.max() <= 127
        if not self.fit(filters, zero):
            raise ValueError("zero: expected filters that have 16 bits less their zero point")
        self.kernel = kernel.name
        self.bits = depthwise.dot_bits(kernel) if fits else 0
        made = depthwise.arranged(weights, 1 if self.bits else 2)
        self.panels = scratch.aligned_empty(made.nbytes)
        self.panels[:] = made.reshape(-1).view(np.uint8)
        self.sums = weights.sum((0, 1)).astype(np.int32)
        self.panels_address, self.sums_address = self.panels.ctypes.data, self.sums.ctypes.data

    @staticmethod
    def fit(filters: np.ndarray, zero: int | np.ndarray) -> bool:
        """Whether any filters of this type have 16 bits when their zero point is subtracted, as the loop
        wants.
        """
        info, widest = np.iinfo(filters.dtype), np.iinfo(np.int16)
        return bool(info.min - int(np.max(zero)) >= widest.min and info.max - int(np.min(zero)) <= widest.max)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.panels.nbytes + self.sums.nbytes


class DepthwisePlan(Plan):
    """Plan of one kind of depthwise convolution.

    Parameters
    ----------
    kernel : Kernel
        Whose CPU runs this.
    weights : DepthwiseWeights
        Those of the convolution, or others like them.
    windows, strides, kind, stages, result, out_row_stride, num_threads
        As in `filters.convolution_plan`.
    """

    def __init__(
        self,
        kernel: Kernel,
        weights: DepthwiseWeights,
        windows: Windows,
        strides: tuple[int, int, int, int],
        kind: str,
        stages: tuple[Any, ...],
        result: np.dtype,
        out_row_stride: int,
        num_threads: int | None,
    ) -> None:
        n, planes = windows.channels, windows.images * windows.out[0]
        together = depthwise.lines_together(windows.taps, windows.step, windows.apart)
        lines = planes * -(-windows.out[1] // together)
        self.m, self.n, self.channels, self.depth = (
            planes * math.prod(windows.out[1:]),
            n,
            n,
            math.prod(windows.taps),
        )
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
        work = MACS_OF_ONE * self.macs
        self.made_for = threads.settings() if threads.worth_threads(num_threads, work) else None
        self.image = image = windows.record(strides, n)
        image["together"] = together
        signed, bias, by_row = kind == "i", pipeline.col_bias, pipeline.row_bias
        columns = (depthwise.WINDOWS - 1) * windows.step[2] + (windows.taps[2] - 1) * windows.apart[2] + 1
        fours = depthwise.fours_of(windows.taps[0] * windows.taps[1])
        blocks = -(-n // depthwise.CHANNELS)
        plan = blank_plan(
            m=self.m, n=n, depth=self.depth, batch=1, distinct_rhs=1, packed=1, out_row_stride=out_row_stride,
            out_col_stride=item, col_bias=0 if bias is None else bias.ctypes.data,
            has_col_bias=bias is not None,
            row_bias=0 if by_row is None else by_row.ctypes.data, has_row_bias=by_row is not None,
            stages=len(steps) // 2, image=image.ctypes.data, row_blocks=lines, col_blocks=blocks, splits=1,
            workers=min(threads.choose_threads(num_threads, work), lines * blocks),
            lhs_flip=128 if signed else 0, lhs_shift=-128 if signed else 0,
            kernel=depthwise.block_routine(weights.bits).address,
            compensation_routine=depthwise.depthwise_start.address, single=depthwise.depthwise_single.address,
        )  # fmt: skip
        # a thread's memory: interleaved columns, a register of the zero point, one of the last pixels, a
        # tile, what the sums begin with
        plan.row_sums_at = depthwise.CHANNELS // depthwise.LANES * fours * columns * depthwise.WIDE
        plan.row_compensation_at = plan.row_sums_at + depthwise.WIDE
        plan.tile_at = plan.row_compensation_at + depthwise.WIDE
        plan.on_the_fly_at = plan.tile_at + 4 * depthwise.WINDOWS * depthwise.CHANNELS
        plan.worker_bytes = up(plan.on_the_fly_at + 4 * max(n, depthwise.LANES), ALIGNMENT)
        plan.scratch_bytes = plan.workers * plan.worker_bytes
        self.threads, self.one_by_one = plan.workers, plan.workers == 1
        self.way = depthwise.depthwise_single
        if not self.one_by_one:
            team = the_team()
            self.way = drivers.several if team else None
            plan.team = team.address if team else 0
            plan.work = depthwise.depthwise_work.address
            plan.long = work >= threads.LONG_MACS
        self.numbers = plan_numbers(plan, steps, np.zeros(0, np.int64))
        self.p = plan_of(self.numbers)
        self.blocking = Blocking(1, depthwise.CHANNELS, self.depth, lines, blocks, 1, 1, 0)
        self.worker_bytes, self.all_rhs_bytes, self.scratch_bytes = plan.worker_bytes, 0, plan.scratch_bytes
        self.lhs_shift, self.rhs_shift = plan.lhs_shift, 0
        self.work = depthwise.depthwise_work
