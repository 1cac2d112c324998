"""The product with coded weights as a job: rows are copied group by group (and coded, if they are floats),
then multiplied by chunks.

A thread that has its first task helps to copy before it. A task of the product is a block of rows by a chunk
of columns. It goes through the chunk's codes from front to end, once; `rowtile.py` emits what is done with
them.
"""

from __future__ import annotations

import ctypes
import functools

import numba
import numpy as np
from numba import types

from lowgemm.blockwise import job as jobs
from lowgemm.blockwise.job import ELEMENTS_PER_TASK, Job
from lowgemm.blockwise.levels import STEP_BYTES
from lowgemm.blockwise.packed4 import PackedRhsLowbit
from lowgemm.blockwise.records import Number, Pointer, dtype_of
from lowgemm.blockwise.rowstore import store_rows
from lowgemm.blockwise.rowtile import RAISED, covered, multiply_codes, raises
from lowgemm.engine import threads
from lowgemm.fixedpoint.rows import INFINITY_BITS, TINY, largest_magnitude
from lowgemm.jit import host
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import (
    arrive_field,
    as_address,
    load_field,
    load_s8,
    offset,
    pause,
    pointer_field,
    take_field,
)
from lowgemm.jit.routine import Routine, call_address, inner, routine
from lowgemm.jit.scratch import ALIGNMENT, aligned_empty
from lowgemm.kernels import Kernel, by_name, id_of, stamp_of

#: Looks at a thread that still copies before a waiting one gives way: about 10 us.
LOOKS = 300
#: Rows of a block, a multiple of every tile's height: their float32 sums of 48 columns are 12 KB, their codes
#: of a group of 128 are 8.
BLOCK_ROWS = 64


class RowsProductJob(Job):
    """A product by way of decoded registers; first its lhs is copied."""

    __slots__ = ()
    _fields_ = (
        # rows of the lhs, columns of the rhs, depth, depth steps of a group, groups
        ("rows", Number), ("cols", Number), ("depth", Number), ("group", Number), ("groups", Number),
        # the lhs as it came; whether it is float32 rows one after another; or strides of its rows and of its
        # depth, and what its bytes are changed by (exclusive or)
        ("source", Pointer), ("floats", Number), ("row_stride", Number), ("depth_stride", Number),
        ("flip", Number),
        # the copy: bytes of all rows of a group, bytes of a row of a group; int32 that is added to the sums
        # of each row and group, rows from one group to the next; rows that one task copies
        ("lhs", Pointer), ("lhs_group", Number), ("lhs_row", Number), ("row_terms", Pointer),
        ("held_rows", Number), ("chunk", Number),
        # chunks of columns; whether several threads work, of which those that take the last tasks first are
        # to go through the chunks of the second half from their first on
        ("chunks", Number), ("several", Number),
        # packed codes, bytes of a panel, the level of each code; int32 sums of levels and float32 scales by
        # group and column
        ("panels", Pointer), ("panel_bytes", Number), ("levels", Pointer), ("sums", Pointer),
        ("scales", Pointer),
        # zero point of the copy
        ("zero", Number),
        # int32 sums of each row and group, int8 zero points by group and column; or none
        ("row_sums", Pointer), ("zeros", Pointer),
        # float32 scales of each row and group as they came, and by group and row; or none
        ("group_scales", Pointer), ("factors", Pointer),
        # float32 result, a scale for each row or none, a bias for each column or none
        ("out", Pointer), ("row_scales", Pointer), ("bias", Pointer),
        # pieces of the copy, those that were taken, those that are done, and address of the routine that does
        # one; of one that lets another thread run, or 0
        ("copies", Number), ("copying", Number), ("copied", Number), ("copy", Number), ("give_way", Number),
    )  # fmt: skip


ROWS_PRODUCT = dtype_of(RowsProductJob)


def _make_copy(element: types.Integer, raised: int) -> Routine:
    element_bytes = element.bitwidth // 8

    @routine("ppn")
    def copy(job_address, scratch, task):
        """Some rows of the lhs, group by group; floats are coded as by `vectorwise.code_task`."""
        job = numba.carray(job_address, (1,), ROWS_PRODUCT)[0]
        depth, group, groups = job.depth, job.group, job.groups
        row_elements = job.lhs_row // element_bytes
        terms = numba.carray(pointer_field(job, "row_terms"), (groups * job.held_rows,), np.int32)
        for r in range(task * job.chunk, min((task + 1) * job.chunk, job.rows)):
            inverse = np.float32(0)
            if job.floats != 0:
                at = offset(pointer_field(job, "source"), 4 * r * depth)
                scales = numba.carray(pointer_field(job, "row_scales"), (job.rows,), np.float32)
                bits = numba.carray(at, (depth,), np.int32)
                largest = largest_magnitude(bits)
                if largest >= INFINITY_BITS:
                    job.bad = 1
                    continue
                as_bits = numba.carray(pointer_field(job, "row_scales"), (job.rows,), np.int32)
                as_bits[r] = largest
                scale = scales[r]
                if scale >= TINY:
                    inverse = (np.float32(1) / scale) * np.float32(127)
                else:
                    scale = np.float32(0)
                scales[r] = scale / np.float32(127)
            for g in range(groups):
                first = g * group
                size = min(group, depth - first)
                where = g * job.lhs_group + r * job.lhs_row
                to = numba.carray(offset(pointer_field(job, "lhs"), where), (row_elements,), element)
                total = np.int32(0)
                if job.floats != 0:
                    at = offset(pointer_field(job, "source"), 4 * (r * depth + first))
                    x = numba.carray(at, (size,), np.float32)
                    for k in range(size):
                        code = np.int32(np.rint(x[k] * inverse))
                        to[k] = code
                        total += code
                else:
                    at = offset(pointer_field(job, "source"), r * job.row_stride + first * job.depth_stride)
                    flip = np.int8(job.flip)
                    if job.depth_stride == 1:
                        near = numba.carray(at, (size,), np.int8)
                        for k in range(size):
                            value = np.int32(np.int8(near[k] ^ flip))
                            to[k] = value
                            total += value
                    else:
                        for k in range(size):
                            value = np.int32(np.int8(load_s8(at, k * job.depth_stride) ^ flip))
                            to[k] = value
                            total += value
                for k in range(size, row_elements):
                    to[k] = np.int32(0)
                terms[g * job.held_rows + r] = np.int32(-raised * total)
                if job.row_sums != 0:
                    sums = numba.carray(pointer_field(job, "row_sums"), (groups * job.held_rows,), np.int32)
                    sums[g * job.held_rows + r] = total
                if job.group_scales != 0:
                    given = numba.carray(pointer_field(job, "group_scales"), (job.rows * groups,), np.float32)
                    factors = numba.carray(
                        pointer_field(job, "factors"), (groups * job.held_rows,), np.float32
                    )
                    factors[g * job.held_rows + r] = given[r * groups + g]

    return copy


@inner
def _finish_copies(job, at, scratch):
    """Copy rows that no thread copies yet, and wait for those that others copy; `at` is the job's address."""
    while load_field(job, "copied") < job.copies:
        number = take_field(job, "copying", 1)
        if number >= job.copies:
            break
        call_address(job.copy, (at, scratch, number))
        arrive_field(job, "copied", 1)
    looks = 0
    while load_field(job, "copied") < job.copies:
        looks += 1
        if looks % LOOKS != 0:
            pause()
        elif job.give_way != 0:
            call_address(job.give_way, ())


def _make_multiply(
    kernel_id: int, key: int, bits: int, zero_points: int, with_factors: int, lanes: int, wide: int
) -> tuple[Routine, int]:
    nr = lanes * wide
    cols_at = 4 * BLOCK_ROWS * nr

    @routine("ppn", key)
    def multiply(job_address, scratch, task):
        """A block of rows by a chunk of columns, once all rows are copied."""
        job = numba.carray(job_address, (1,), ROWS_PRODUCT)[0]
        _finish_copies(job, as_address(job_address), as_address(scratch))
        if job.bad != 0:
            return
        m, groups = job.rows, job.groups
        blocks = (m + BLOCK_ROWS - 1) // BLOCK_ROWS
        chunk, row = task // blocks, task % blocks * BLOCK_ROWS
        if job.several != 0 and chunk >= job.chunks // 2:
            chunk = job.chunks // 2 + job.chunks - 1 - chunk
        rows, cols = min(BLOCK_ROWS, m - row), min(nr, job.cols - chunk * nr)
        nv = (cols + lanes - 1) // lanes
        total = numba.carray(scratch, (BLOCK_ROWS * nr,), np.float32)
        col_terms = numba.carray(offset(scratch, cols_at), (nr,), np.int32)
        for i in range(rows * nr):
            total[i] = np.float32(-0.0)  # which changes nothing that is added to it
        for c in range(nr):
            col_terms[c] = np.int32(0)
        lhs, row_terms = pointer_field(job, "lhs"), pointer_field(job, "row_terms")
        for g in range(groups):
            at = chunk * groups + g
            if job.zero != 0:
                sums = numba.carray(offset(pointer_field(job, "sums"), 4 * at * nr), (nr,), np.int32)
                for c in range(nr):
                    col_terms[c] = np.int32(-job.zero * sums[c])
            multiply_codes(
                kernel_id, bits, zero_points, with_factors,
                (
                    rows, nv, offset(pointer_field(job, "panels"), at * wide * job.panel_bytes),
                    job.panel_bytes, job.panel_bytes // STEP_BYTES, pointer_field(job, "levels"),
                    offset(lhs, g * job.lhs_group + row * job.lhs_row), job.lhs_row,
                    offset(row_terms, 4 * (g * job.held_rows + row)), offset(scratch, cols_at),
                    offset(pointer_field(job, "scales"), 4 * at * nr), scratch, 4 * nr,
                    offset(pointer_field(job, "row_sums"), 4 * (g * job.held_rows + row)),
                    offset(pointer_field(job, "zeros"), at * nr),
                    offset(pointer_field(job, "factors"), 4 * (g * job.held_rows + row)),
                ),
            )  # fmt: skip
        store_rows(job, total, nr, row, rows, chunk * nr, cols)

    return multiply, cols_at + 4 * nr


@functools.cache
def routines(
    kernel: Kernel, bits: int, zero_points: bool = False, factors: bool = False
) -> tuple[Routine, Routine, int]:
    """Tasks that copy the lhs and multiply, and the bytes of a worker's memory; `factors`: the lhs has scales
    of groups.
    """
    element = types.int16 if kernel.element_bytes == 2 else types.int8
    copy = _make_copy(element, RAISED if raises(kernel) else 0)
    multiply, scratch = _make_multiply(
        id_of(kernel), stamp_of(kernel), bits, int(zero_points), int(factors), kernel.lanes, kernel.max_nv
    )
    return copy, multiply, scratch


#: Fields of a job that say where its own memory is.
PLACES = "lhs", "row_terms", "row_sums", "factors", "scratch"


class LaidOut(NotCopied):
    """A job whose memory is not there yet: `PLACES` count bytes from the beginning of `nbytes` bytes, 64-byte
    aligned, behind which the workers' memory begins. `levels` is what it reads that is not the weight's.
    """

    instead = "lay it out again"

    __slots__ = ("job", "levels", "nbytes")

    def __init__(self, job: RowsProductJob, nbytes: int, levels: np.ndarray) -> None:
        self.job, self.nbytes, self.levels = job, nbytes, levels


def laid_out(w: PackedRhsLowbit, rows: int, by_group: bool) -> LaidOut:
    """The job of one weight for one number of rows, with scales of groups (`by_group`) or without."""
    kernel, with_zeros = by_name(w.kernel), w.zeros is not None
    copy, multiply, scratch_bytes = routines(kernel, w.bits, with_zeros, by_group)
    depth, cols = w.shape
    held = held_rows(kernel, rows)
    row_bytes = w.panel_bytes * 8 // w.bits // kernel.lanes * kernel.element_bytes
    numbers = 4 * w.groups * held
    # a tape puts the job itself first; 0 says that a place is not used
    end, at = -(-ctypes.sizeof(RowsProductJob) // ALIGNMENT) * ALIGNMENT, {}
    for name, nbytes in (
        ("lhs", w.groups * held * row_bytes),
        ("row_terms", numbers),
        ("row_sums", numbers if with_zeros else 0),
        ("factors", numbers if by_group else 0),
    ):
        at[name] = end if nbytes else 0
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
    chunk = max(1, ELEMENTS_PER_TASK // depth)
    levels = w.levels.view(np.uint8) ^ np.uint8(0x80) if raises(kernel) else w.levels
    job = RowsProductJob(
        rows=rows, cols=cols, depth=depth, group=w.group, groups=w.groups, lhs_group=held * row_bytes,
        lhs_row=row_bytes,
        held_rows=held, chunk=chunk, panels=w.panels.ctypes.data, panel_bytes=w.panel_bytes,
        levels=levels.ctypes.data,
        sums=w.sums.ctypes.data, scales=w.scales.ctypes.data, copies=-(-rows // chunk), copy=copy.address,
        give_way=host.give_way(), task=multiply.address, chunks=w.chunks,
        tasks=w.chunks * -(-rows // BLOCK_ROWS), zeros=w.zeros.ctypes.data if with_zeros else 0, scratch=end,
        scratch_bytes=-(-scratch_bytes // 64) * 64, **at,
    )  # fmt: skip
    return LaidOut(job, end, levels)


class Ready(NotCopied):
    """A job of one weight for one number of rows, with scales of groups (`by_group`) or without, and with the
    memory that it needs; a call sets what is its own.

    Making one takes as long as reading a megabyte of weights, so a weight keeps those of few rows.
    """

    instead = "copy the weight that keeps it, which leaves it out"

    def __init__(self, w: PackedRhsLowbit, rows: int, by_group: bool = False) -> None:
        self._made = laid_out(w, rows, by_group)
        self.job, self.space, self.scratch = (
            self._made.job,
            aligned_empty(self._made.nbytes),
            aligned_empty(0),
        )
        for name in PLACES:
            if getattr(self.job, name):
                setattr(self.job, name, self.space.ctypes.data + getattr(self.job, name))
        self.scales = np.empty(rows, np.float32)

    def run(
        self, x: np.ndarray, zero: int, factors: np.ndarray | None, bias: np.ndarray | None, out: np.ndarray,
        workers: int,
    ) -> bool:  # fmt: skip
        """Multiply; whether all rows are finite."""
        job, kind = self.job, x.dtype.kind
        job.source, job.out = x.ctypes.data, out.ctypes.data
        job.row_stride, job.depth_stride = x.strides
        job.floats = kind == "f"
        if job.floats:
            factors = self.scales
        # an unsigned lhs is taken as 128 less, and so is its zero point
        job.flip, job.zero = (0x80, zero - 128) if kind == "u" else (0, zero)
        by_group = factors is not None and factors.ndim > 1
        job.group_scales = factors.ctypes.data if by_group else 0  # type: ignore[union-attr]
        job.row_scales = 0 if factors is None or by_group else factors.ctypes.data
        job.bias = 0 if bias is None else bias.ctypes.data
        job.bad = job.given = job.from_front = job.from_back = job.copying = job.copied = 0
        threads.run(jobs.work, job.address, 0, self.room_for(workers))
        return not job.bad

    def room_for(self, workers: int) -> int:
        """Get memory for so many threads, or for as many as there is work for; how many that are."""
        job = self.job
        workers = min(workers, job.tasks)
        job.several = workers > 1
        if self.scratch.size < workers * job.scratch_bytes:
            self.scratch = aligned_empty(workers * job.scratch_bytes)
            job.scratch = self.scratch.ctypes.data
        return workers


def held_rows(kernel: Kernel, rows: int) -> int:
    """Rows that the copy of the lhs has room for."""
    return rows // BLOCK_ROWS * BLOCK_ROWS + covered(rows % BLOCK_ROWS, kernel)
