"""Compiled tasks that code and decode blocks; see `job.py` for how they are run."""

from __future__ import annotations

import numba
import numpy as np
from numba import njit

from lowgemm.blockwise.job import BlocksJob
from lowgemm.blockwise.records import Number, Pointer, dtype_of
from lowgemm.blockwise.spans import dequantize4_span, dequantize_span, largest_bits, pack_span, quantize_span
from lowgemm.fixedpoint.rows import INFINITY_BITS
from lowgemm.jit.memory import offset, pointer_field
from lowgemm.jit.routine import routine


class CodingJob(BlocksJob):
    """Values to codes, codes to values, or values to the largest of each block.

    If a block is not finite, `bad` is its number + 1.
    """

    __slots__ = ()
    _fields_ = (
        # float32 values, one float32 for each block, codes, the book's tables (`CodeBook.blob`)
        ("values", Pointer), ("scales", Pointer), ("codes", Pointer), ("book", Pointer),
        # whether codes are of 4 bits, two in a byte; the code that fills the last byte of an odd count
        ("packed", Number), ("filler", Number),
    )  # fmt: skip


CODING = dtype_of(CodingJob)


@njit(nogil=True, error_model="numpy")
def bounds(job, task):
    """First and last element (not included) of a task of a `BlocksJob`."""
    start = task * job.chunk * job.blocksize
    return start, min(start + job.chunk * job.blocksize, job.n)


@njit(nogil=True, error_model="numpy")
def block_count(job):
    """Blocks of a `BlocksJob`."""
    return (job.n + job.blocksize - 1) // job.blocksize


@routine("ppn")
def quantize(job_address, scratch, task):
    """Scales and codes of the blocks of a task; one that is not finite is left."""
    job = numba.carray(job_address, (1,), CODING)[0]
    blocksize, packed, blocks = job.blocksize, job.packed != 0, block_count(job)
    x, codes, book = pointer_field(job, "values"), pointer_field(job, "codes"), pointer_field(job, "book")
    scales = numba.carray(pointer_field(job, "scales"), (blocks,), np.float32)
    scale_bits = numba.carray(pointer_field(job, "scales"), (blocks,), np.int32)
    start, end = bounds(job, task)
    for first in range(start, end, blocksize):
        size = min(blocksize, end - first)
        block = first // blocksize
        largest = largest_bits(offset(x, 4 * first), size)
        scale_bits[block] = largest
        if largest >= INFINITY_BITS:
            job.bad = block + 1  # whichever thread comes last: any bad block will do
            continue
        out = offset(scratch, first - start) if packed else offset(codes, first)
        quantize_span(offset(x, 4 * first), size, scales[block], book, out)
    if packed:
        if end & 1:
            numba.carray(scratch, (end - start + 1,), np.uint8)[end - start] = job.filler
        pack_span(scratch, (end - start + 1) >> 1, offset(codes, start >> 1))


@routine("ppn")
def dequantize(job_address, scratch, task):
    """Values of the blocks of a task."""
    job = numba.carray(job_address, (1,), CODING)[0]
    blocksize, packed = job.blocksize, job.packed != 0
    out, codes, book = pointer_field(job, "values"), pointer_field(job, "codes"), pointer_field(job, "book")
    scales = numba.carray(pointer_field(job, "scales"), (block_count(job),), np.float32)
    start, end = bounds(job, task)
    for first in range(start, end, blocksize):
        size = min(blocksize, end - first)
        scale = scales[first // blocksize]
        if packed:
            dequantize4_span(codes, first, size, scale, book, offset(out, 4 * first))
        else:
            dequantize_span(offset(codes, first), size, scale, book, offset(out, 4 * first))


@routine("ppn")
def largest(job_address, scratch, task):
    """Largest absolute value of each block of a task as bits, into the scales."""
    job = numba.carray(job_address, (1,), CODING)[0]
    blocksize, x = job.blocksize, pointer_field(job, "values")
    bits = numba.carray(pointer_field(job, "scales"), (block_count(job),), np.int32)
    start, end = bounds(job, task)
    for first in range(start, end, blocksize):
        bits[first // blocksize] = largest_bits(offset(x, 4 * first), min(blocksize, end - first))
