"""The product with coded weights as a job: rows are copied group by group (and coded, if they are floats), then multiplied by chunks.

A task of the product is a block of rows by a chunk of columns. It goes through the chunk's codes from front to end, once; `rowtile.py`
emits what is done with them.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numba
import numpy as np
from numba import types

from lowgemm.blockwise import job as jobs
from lowgemm.blockwise.job import ELEMENTS_PER_TASK, Job
from lowgemm.blockwise.levels import STEP_BYTES
from lowgemm.blockwise.packed4 import PackedRhsLowbit
from lowgemm.blockwise.records import Number, Pointer, dtype_of
from lowgemm.blockwise.rowtile import RAISED, covered, multiply_codes, raises
from lowgemm.fixedpoint.rows import INFINITY_BITS, TINY, largest_magnitude
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import as_address, load_s8, offset, pointer_field
from lowgemm.jit.routine import Routine, call_address, routine
from lowgemm.jit.scratch import aligned_empty
from lowgemm.kernels import Kernel, by_name, id_of, stamp_of

#: Rows of a block, a multiple of every tile's height: their float32 sums of 48 columns are 12 KB, their codes of a group of 128 are 8.
BLOCK_ROWS = 64


class RowsProductJob(Job):
    """A product by way of decoded registers; first its lhs is copied."""

    __slots__ = ()
    _fields_ = (
        # rows of the lhs, columns of the rhs, depth, depth steps of a group, groups
        ("rows", Number), ("cols", Number), ("depth", Number), ("group", Number), ("groups", Number),
        # the lhs as it came; whether it is float32 rows one after another; or strides of its rows and of its depth, and what its
        # bytes are changed by (exclusive or)
        ("source", Pointer), ("floats", Number), ("row_stride", Number), ("depth_stride", Number), ("flip", Number),
        # the copy: bytes of all rows of a group, bytes of a row of a group; int32 that is added to the sums of each row and group,
        # rows from one group to the next; rows that one task copies
        ("lhs", Pointer), ("lhs_group", Number), ("lhs_row", Number), ("row_terms", Pointer), ("held_rows", Number),
        ("chunk", Number),
        # packed codes, bytes of a panel, the level of each code; int32 sums of levels and float32 scales by group and column
        ("panels", Pointer), ("panel_bytes", Number), ("levels", Pointer), ("sums", Pointer), ("scales", Pointer),
        # zero point of the copy
        ("zero", Number),
        # float32 result, a scale for each row or none, a bias for each column or none
        ("out", Pointer), ("row_scales", Pointer), ("bias", Pointer),
        # tasks of the copy and address of the routine that does one
        ("copies", Number), ("copy", Number),
    )  # fmt: skip


ROWS_PRODUCT = dtype_of(RowsProductJob)


@routine("p")
def serial(job_address):
    """All of a job on one thread: the copies, and then the product, unless a row is not finite."""
    job = numba.carray(job_address, (1,), ROWS_PRODUCT)[0]
    at, memory = as_address(job_address), as_address(pointer_field(job, "scratch"))
    for task in range(job.copies):
        call_address(job.copy, (at, memory, task))
    if job.bad == 0:
        for task in range(job.tasks):
            call_address(job.task, (at, memory, task))


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
                    job.bad = r + 1
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

    return copy


def _make_multiply(kernel_id: int, key: int, bits: int, lanes: int, wide: int) -> tuple[Routine, int]:
    nr = lanes * wide
    cols_at = 4 * BLOCK_ROWS * nr

    @routine("ppn", key)
    def multiply(job_address, scratch, task):
        """A block of rows by a chunk of columns."""
        job = numba.carray(job_address, (1,), ROWS_PRODUCT)[0]
        m, groups = job.rows, job.groups
        blocks = (m + BLOCK_ROWS - 1) // BLOCK_ROWS
        chunk, row = task // blocks, task % blocks * BLOCK_ROWS
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
            for v in range(nv):
                multiply_codes(
                    kernel_id, bits,
                    (
                        rows, offset(pointer_field(job, "panels"), (at * wide + v) * job.panel_bytes),
                        job.panel_bytes // STEP_BYTES, pointer_field(job, "levels"),
                        offset(lhs, g * job.lhs_group + row * job.lhs_row), job.lhs_row,
                        offset(row_terms, 4 * (g * job.held_rows + row)),
                        offset(scratch, cols_at + 4 * lanes * v),
                        offset(pointer_field(job, "scales"), 4 * (at * nr + v * lanes)),
                        offset(scratch, 4 * lanes * v), 4 * nr,
                    ),
                )  # fmt: skip
        for r in range(rows):
            place = 4 * ((row + r) * job.cols + chunk * nr)
            out = numba.carray(offset(pointer_field(job, "out"), place), (cols,), np.float32)
            factor = np.float32(1)
            if job.row_scales != 0:
                factor = numba.carray(pointer_field(job, "row_scales"), (m,), np.float32)[row + r]
            for c in range(cols):
                out[c] = total[r * nr + c] * factor
            if job.bias != 0:
                bias = numba.carray(offset(pointer_field(job, "bias"), 4 * chunk * nr), (cols,), np.float32)
                for c in range(cols):
                    out[c] += bias[c]

    return multiply, cols_at + 4 * nr


@functools.cache
def routines(kernel: Kernel, bits: int) -> tuple[Routine, Routine, int]:
    """Tasks that copy the lhs and multiply, and the bytes of a worker's memory."""
    element = types.int16 if kernel.element_bytes == 2 else types.int8
    copy = _make_copy(element, RAISED if raises(kernel) else 0)
    multiply, scratch = _make_multiply(id_of(kernel), stamp_of(kernel), bits, kernel.lanes, kernel.max_nv)
    return copy, multiply, scratch


class Ready(NotCopied):
    """A job of one weight for one number of rows, with the memory that it needs; a call sets what is its own.

    Making one takes as long as reading a megabyte of weights, so a weight keeps those of few rows.
    """

    instead = "copy the weight that keeps it, which leaves it out"

    def __init__(self, w: PackedRhsLowbit, rows: int) -> None:
        kernel = by_name(w.kernel)
        copy, self.multiply, self.scratch_bytes = routines(kernel, w.bits)
        depth, cols = w.shape
        held = held_rows(kernel, rows)
        row_bytes = w.panel_bytes * 8 // w.bits // kernel.lanes * kernel.element_bytes
        self.space = aligned_empty(w.groups * held * row_bytes)
        self.terms = np.empty(w.groups * held, np.int32)
        self.scratch = aligned_empty(self.scratch_bytes)
        self.scales = np.empty(rows, np.float32)
        self.levels = w.levels.view(np.uint8) ^ np.uint8(0x80) if raises(kernel) else w.levels
        self.copy = copy
        chunk = max(1, ELEMENTS_PER_TASK // depth)
        self.tasks = w.chunks * -(-rows // BLOCK_ROWS)
        self.job = RowsProductJob(
            rows=rows, cols=cols, depth=depth, group=w.group, groups=w.groups, lhs=self.space.ctypes.data,
            lhs_group=held * row_bytes, lhs_row=row_bytes, row_terms=self.terms.ctypes.data, held_rows=held, chunk=chunk,
            panels=w.panels.ctypes.data, panel_bytes=w.panel_bytes, levels=self.levels.ctypes.data, sums=w.sums.ctypes.data,
            scales=w.scales.ctypes.data, copies=-(-rows // chunk), copy=copy.address,
        )  # fmt: skip

    def run(
        self, x: np.ndarray, zero: int, factors: np.ndarray | None, bias: np.ndarray | None, out: np.ndarray,
        copiers: int, workers: int,
    ) -> int:  # fmt: skip
        """Multiply; gives 0, or the number of a row that is not finite, plus one."""
        job, kind = self.job, x.dtype.kind
        job.source, job.out = x.ctypes.data, out.ctypes.data
        job.row_stride, job.depth_stride = x.strides
        job.floats = kind == "f"
        if job.floats:
            factors = self.scales
        # an unsigned lhs is taken as 128 less, and so is its zero point
        job.flip, job.zero = (0x80, zero - 128) if kind == "u" else (0, zero)
        job.row_scales = 0 if factors is None else factors.ctypes.data
        job.bias = 0 if bias is None else bias.ctypes.data
        job.bad = 0
        if workers == 1:
            job.task, job.tasks, job.scratch = self.multiply.address, self.tasks, self.scratch.ctypes.data
            _serial()(job.address)
            return job.bad
        job.tasks = job.copies
        jobs.run(self.copy, job, copiers)
        if not job.bad:
            job.tasks = self.tasks
            jobs.run(self.multiply, job, workers, self.scratch_bytes)
        return job.bad


@functools.cache
def _serial() -> Any:
    """`serial` for `ctypes`, which lets go of the interpreter's lock during the call."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(serial.address)


def held_rows(kernel: Kernel, rows: int) -> int:
    """Rows that the copy of the lhs has room for."""
    return rows // BLOCK_ROWS * BLOCK_ROWS + covered(rows % BLOCK_ROWS, kernel)
