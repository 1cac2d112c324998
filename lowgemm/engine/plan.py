"""The plan of one kind of call: kernel, blocking, threads, output routines, as a record for `tiles.py`.

A plan knows shapes, strides and stages but no addresses and no zero points, so it serves every later call of
the same kind, from any Python thread.

Next files to open: `planner.py`, which decides; `packing.py`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from lowgemm.engine import drivers, entry, threads
from lowgemm.engine.batch import Batch
from lowgemm.engine.blocking import Blocking
from lowgemm.engine.deep_block import deep_block
from lowgemm.engine.image import Windows, pack_image, patch_bytes, patch_rows
from lowgemm.engine.in_place import rows_in_place
from lowgemm.engine.listed import list_rows, places_of
from lowgemm.engine.packing import sums_routine
from lowgemm.engine.packing_ir import CHUNK_BYTES
from lowgemm.engine.pixels import grid_fields, pack_pixels
from lowgemm.engine.planner import fill_plan, has_deep_blocks, reads_in_place, stores_past_caches, template_of
from lowgemm.engine.records import (
    LISTED,
    MAX_STAGES,
    STAGES_AT,
    STATE_SIZE,
    blank_plan,
    plan_numbers,
    plan_of,
)
from lowgemm.jit import host, scratch
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.team import the_team
from lowgemm.kernels import Kernel, microkernel, suited
from lowgemm.kernels.framework.kernel import EITHER
from lowgemm.output.pipeline import compile_pipeline, raise_failures


class Operand(NamedTuple):
    """What a plan needs to know of a matrix operand: shape, byte strides, signedness ("u" or "i")."""

    shape: tuple[int, int]
    strides: tuple[int, int]
    kind: str


class Plan(NotCopied):
    """All that can be decided before addresses and zero points are known.

    Parameters
    ----------
    kernel : Kernel
        The microkernel.
    lhs, rhs : Operand
        Operands of shapes (m, depth) and (depth, n); the strides of a packed rhs do not matter.
    result : dtype
        Element type of the result.
    out_strides : tuple of int
        Byte strides (row, column) of the result.
    batch : Batch
        Leading dimensions; the default is a single product.
    packed : bool
        The rhs is packed already.
    bilinear : bool
        Zero points come as vectors, one for each row and column.
    output : tuple of stages
        Checked pipeline.
    accumulate : bool
        Add to the result.
    num_threads : int or None
        As in `gemm`.
    held : bool
        The team of threads will be held meanwhile (`jit/team.py`), so short products are shared too.
    image : ndarray of one `image.IMAGE`, optional
        The lhs is gathered from an image: its rows are the patches that this describes. What depends on the
        kernel is filled in.
    windows : Windows, optional
        The windows of that image.
    own_channels : bool
        Each distinct rhs has its own columns of the bias, the zero points and the stages' parameters, one
        behind the other.

    Attributes
    ----------
    p : record
        What was asked for and decided (`records.PLAN`).
    numbers : ndarray of int64
        The memory of `p`, with the layout of the batch behind it.
    blocking : Blocking
        Block sizes and counts.
    threads : int
        Threads that a call uses.
    pipeline : CompiledPipeline
        Output routines.
    scratch_bytes : int
        Scratch memory of a call; it does not grow with m.
    """

    instead = "copy the PlannedGemm that lowgemm.plan gave, which plans anew"

    def __init__(
        self,
        kernel: Kernel,
        lhs: Operand,
        rhs: Operand,
        *,
        result: np.dtype,
        out_strides: tuple[int, int],
        batch: Batch = Batch(),  # noqa: B008 (immutable)
        packed: bool = False,
        bilinear: bool = False,
        output: tuple[Any, ...] = (),
        accumulate: bool = False,
        given_out: bool = False,
        num_threads: int | None = None,
        held: bool = False,
        image: np.ndarray | None = None,
        windows: Windows | None = None,
        own_channels: bool = False,
    ) -> None:
        (m, depth), n = lhs.shape, rhs.shape[1]
        #: What multiplies: the kernel, or where that would not pay its fallback, which reads the same packed
        #: rhs.
        self.runs = runs = suited(kernel, m, n, depth)
        items, distinct_rhs = batch.count, batch.distinct_rhs
        self.kernel, self.packed, self.distinct_rhs, self.batch = kernel, packed, distinct_rhs, items
        self.m, self.n, self.depth, self.result = m, n, depth, np.dtype(result)
        self.bilinear, self.output, self.num_threads = bilinear, output, num_threads
        self.image, self.windows = image, windows
        #: Columns of the bias, the zero points and the stages' parameters.
        self.channels = n * distinct_rhs if own_channels else n
        self.pipeline = pipeline = compile_pipeline(
            output,
            result,
            accumulate=accumulate,
            bilinear=bilinear,
            size=(m, self.channels),
            contiguous=out_strides[1] == self.result.itemsize,
        )
        if len(pipeline.steps) > MAX_STAGES:
            raise ValueError(f"output: at most {MAX_STAGES} stages after merging, got {len(pipeline.steps)}")
        #: The kernel scales and stores bytes itself: the only step left is a scale that it can fuse.
        self.fused = runs.fuses_requantize and pipeline.fusable is not None

        macs = items * m * n * depth
        # with few rows it takes longer to read the rhs than to multiply
        read, slowest = threads.MACS_PER_BYTE * distinct_rhs * depth * n, threads.LONG_MACS
        work = max(macs, read)
        # short work counts as that of a kernel without a `long_macs`
        shared = max(macs * slowest // (runs.long_macs or slowest), read) if held else work
        #: What it takes one thread, about.
        self.nanoseconds = shared / threads.MACS_PER_NANOSECOND
        #: Numba's and lowgemm's thread settings that this plan was made for; None: they play no part.
        self.made_for = threads.settings() if threads.worth_threads(num_threads, shared, held) else None
        layout, in_order = batch.layout()
        plan = self._asked(lhs, rhs, out_strides, accumulate, own_channels)
        workers = threads.choose_threads(num_threads, shared, held)
        self._decide(plan, lhs, rhs, given_out, workers, in_order)
        self.threads, self.one_by_one = plan.workers, plan.workers == 1 and in_order
        #: What each worker does.
        self.work = drivers.work
        #: The routine that runs this plan; None: there is no team, so Numba's parallel regions do.
        self.way = drivers.single
        if not self.one_by_one:
            team = the_team()
            self.way = drivers.several if team else None
            plan.team = team.address if team else 0
            plan.work, plan.give_way = self.work.address, host.give_way()
            plan.long = work >= (runs.long_macs or threads.LONG_MACS)
        # the kernel stores all panels but a last one that is not whole
        stored = plan.direct and not plan.deep_block and n % runs.lanes == 0
        self.numbers = plan_numbers(plan, pipeline.addresses(called=not stored), layout)
        self.p = plan_of(self.numbers)
        self.blocking = Blocking(
            plan.mc, plan.nc, plan.kc, plan.row_blocks, plan.col_blocks, plan.depth_blocks, plan.splits,
            int(plan.on_the_fly_at != 0),
        )  # fmt: skip
        self.worker_bytes, self.all_rhs_bytes, self.scratch_bytes = (
            plan.worker_bytes,
            plan.all_rhs_bytes,
            plan.scratch_bytes,
        )
        self.lhs_shift, self.rhs_shift = plan.lhs_shift, plan.rhs_shift
        self.macs = macs

    def _asked(
        self, lhs: Operand, rhs: Operand, out_strides: tuple[int, int], accumulate: bool, own_channels: bool
    ) -> np.record:
        """A plan with what is asked for, before anything is decided."""
        pipeline, image = self.pipeline, self.image
        col_bias, row_bias = pipeline.col_bias, pipeline.row_bias
        return blank_plan(
            m=self.m, n=self.n, depth=self.depth, batch=self.batch, distinct_rhs=self.distinct_rhs,
            packed=self.packed, bilinear=self.bilinear, accumulate=accumulate,
            lhs_row_stride=lhs.strides[0], lhs_k_stride=lhs.strides[1],
            rhs_k_stride=rhs.strides[0], rhs_n_stride=rhs.strides[1],
            out_row_stride=out_strides[0], out_col_stride=out_strides[1],
            fused=pipeline.steps[0].record.ctypes.data if self.fused else 0,
            col_bias=0 if col_bias is None else col_bias.ctypes.data, has_col_bias=col_bias is not None,
            row_bias=0 if row_bias is None else row_bias.ctypes.data, has_row_bias=row_bias is not None,
            stages=len(pipeline.steps), channels_apart=self.n if own_channels else 0,
            image=0 if image is None else image.ctypes.data, **self._grids(),
        )  # fmt: skip

    def _grids(self) -> dict[str, int]:
        """Of what is asked, what grids of pixels the lhs may be read from."""
        image, windows = self.image, self.windows
        if image is None or windows is None:
            return {}
        of_plan, of_image = grid_fields(self.runs, windows, int(image["run"][0]))
        for name, value in of_image.items():
            image[name] = value
        return of_plan

    def _decide(
        self, plan: np.record, lhs: Operand, rhs: Operand, given_out: bool, workers: int, in_order: bool
    ) -> None:
        """Have the planner fill in all else, for at most so many workers."""
        runs, pipeline, image = self.runs, self.pipeline, self.image
        in_place = (
            (bool(plan.rhs_k_stride == 1),) if reads_in_place(plan, rows_in_place(runs), runs.lanes) else ()
        )
        # which of two kernels reads an image depends on what is planned
        late = runs.scatters and (image is not None or runs.row_bytes == 0)
        template = template_of(
            runs,
            in_place,
            given_out and stores_past_caches(plan, runs, pipeline.direct),
            () if late else (lhs.kind == "i",),
            pipeline.fusable or 0,
            lhs_by_depth=(image is not None or lhs.strides[1] == 1,),
            rhs_by_depth=() if self.packed else (rhs.strides[0] == 1,),
            listed=True,
        )
        fill_plan(
            plan, template, int(lhs.kind == "i"), int(rhs.kind == "i"), pipeline.direct, workers, in_order
        )
        grids = plan.steps_at != 0
        listed = grids or plan.lhs_in_place == LISTED
        if late:
            plan.kernel = microkernel(runs, lhs.kind == "i", pipeline.fusable or 0, listed).address
        if image is not None:
            plan.pack_image = (pack_pixels if grids else pack_image).address
            image["mr"], image["row_bytes"] = runs.mr, runs.row_bytes
            image["panel_rows"], image["panel_bytes"] = patch_rows(runs.mr, plan.kc), patch_bytes(plan.kc)
            image["panel_chunk"] = CHUNK_BYTES // runs.element_bytes
            image["stored_flipped"] = runs.lhs_type != EITHER
        if plan.lhs_in_place == LISTED:
            plan.list_lhs, plan.in_order = list_rows.address, places_of(int(plan.mc)).ctypes.data
        if listed:
            plan.pack_lhs = sums_routine(runs).address
        if has_deep_blocks(plan):
            plan.deep_block = deep_block.address

    @functools.cached_property
    def enter(self) -> Any:
        """Python's way in (`entry.py`), or None. It is compiled when it is first asked for."""
        return entry.enter() if self.way else None

    def serves(self) -> bool:
        """Whether the thread settings are still those that the plan was made for."""
        return self.made_for is None or self.made_for == threads.settings()

    def watched(self) -> tuple[np.ndarray, list[Any]]:
        """The plan's numbers for one call, and what to give to `raise_failures` after it; see
        `CompiledPipeline.watched`.
        """
        return self.pipeline.watched(self.numbers, STAGES_AT)

    def zero_vectors(self, lhs_zero: int | np.ndarray, rhs_zero: int | np.ndarray) -> list[np.ndarray]:
        """Zero points as a bilinear plan wants them: one for each row and column, less what packing adds."""
        found = []
        for zero, shift, size in (
            (lhs_zero, self.lhs_shift, self.m),
            (rhs_zero, self.rhs_shift, self.channels),
        ):
            wide = np.broadcast_to(np.asarray(zero, dtype=np.int64), (size,)) - shift
            found.append(wide.astype(np.int32))  # wraps, as all of this arithmetic does
        return found

    def run(
        self,
        lhs: int,
        rhs: int,
        rhs_sums: int,
        out: int,
        lhs_zero: int | np.ndarray,
        rhs_zero: int | np.ndarray,
    ) -> None:
        """Multiply.

        Parameters
        ----------
        lhs, out : int
            Address of the first element of the operand and of the result.
        rhs : int
            Likewise, or of a packed rhs's panels.
        rhs_sums : int
            Address of the packed rhs's column sums.
        lhs_zero, rhs_zero : int or ndarray of int32
            Zero points; vectors where the plan is bilinear.

        Raises
        ------
        Exception
            What a function of the user's raised. The result is written in part then.
        """
        vectors = [0, 0]
        if self.bilinear:
            keep = self.zero_vectors(lhs_zero, rhs_zero)
            vectors = [v.ctypes.data for v in keep]
            lhs_zero = rhs_zero = 0
        numbers, watches = self.watched()
        space = scratch.borrow(self.scratch_bytes)
        at = space.ctypes.data
        arguments = lhs, rhs, rhs_sums, out, at, int(lhs_zero), int(rhs_zero), *vectors
        if self.way:
            self.way.ctypes(numbers.ctypes.data, *arguments)
        else:
            state = np.zeros(STATE_SIZE, dtype=np.int64)
            drivers.begin.ctypes(numbers.ctypes.data, state.ctypes.data, *arguments)
            threads.run(self.work, numbers.ctypes.data, state.ctypes.data, self.threads)
        scratch.give_back(space)
        raise_failures(watches)
