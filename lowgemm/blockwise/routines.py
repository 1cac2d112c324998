"""Compiled routines that code and decode blocks; see `job.py` for how they are run."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from lowgemm.blockwise.job import (
    BAD,
    BLOCKSIZE,
    CHUNK,
    COUNTER,
    JOB_SIZE,
    OWN,
    SCRATCH,
    SCRATCH_BYTES,
    SLOT,
    TASKS,
    N,
)
from lowgemm.blockwise.spans import dequantize4_span, dequantize_span, largest_bits, pack_span, quantize_span
from lowgemm.jit.memory import offset, pointer_at, take
from lowgemm.jit.routine import compile_c, signature
from lowgemm.jit.stamp import source_stamp

#: Entries of the job: float32 data, codes, one float32 for each block, the book's blob, whether codes are packed.
DATA, CODES, SCALES, BOOK, PACKED, FILLER = range(OWN, OWN + 6)
#: Bits of infinity: what is not below is not finite.
INFINITY_BITS = 0x7F800000


def _make_quantize(stamp: int):
    @compile_c(signature("p"))
    def quantize(job_address):
        """Scales and codes of all blocks; a block that is not finite is left, and its number + 1 put in job[BAD]."""
        _ = stamp
        job = numba.carray(job_address, (JOB_SIZE,), np.int64)
        n, blocksize, chunk = job[N], job[BLOCKSIZE], job[CHUNK]
        x, codes, book = (
            pointer_at(job_address, DATA),
            pointer_at(job_address, CODES),
            pointer_at(job_address, BOOK),
        )
        scales = numba.carray(
            pointer_at(job_address, SCALES), ((n + blocksize - 1) // blocksize,), np.float32
        )
        scale_bits = numba.carray(
            pointer_at(job_address, SCALES), ((n + blocksize - 1) // blocksize,), np.int32
        )
        packed = job[PACKED] != 0
        scratch = offset(pointer_at(job_address, SCRATCH), take(job, SLOT, 1) * job[SCRATCH_BYTES])
        while True:
            task = take(job, COUNTER, 1)
            if task >= job[TASKS]:
                break
            start = task * chunk * blocksize
            end = min(start + chunk * blocksize, n)
            for first in range(start, end, blocksize):
                size = min(blocksize, end - first)
                block = first // blocksize
                largest = largest_bits(offset(x, 4 * first), size)
                scale_bits[block] = largest
                if largest >= INFINITY_BITS:
                    job[BAD] = block + 1  # whichever thread comes last: any bad block will do
                    continue
                out = offset(scratch, first - start) if packed else offset(codes, first)
                quantize_span(offset(x, 4 * first), size, scales[block], book, out)
            if packed:
                if end & 1:
                    numba.carray(scratch, (end - start + 1,), np.uint8)[end - start] = job[FILLER]
                pack_span(scratch, (end - start + 1) >> 1, offset(codes, start >> 1))

    return quantize


def _make_dequantize(stamp: int):
    @compile_c(signature("p"))
    def dequantize(job_address):
        """Values of all blocks."""
        _ = stamp
        job = numba.carray(job_address, (JOB_SIZE,), np.int64)
        n, blocksize, chunk = job[N], job[BLOCKSIZE], job[CHUNK]
        out, codes, book = (
            pointer_at(job_address, DATA), pointer_at(job_address, CODES), pointer_at(job_address, BOOK)
        )  # fmt: skip
        scales = numba.carray(
            pointer_at(job_address, SCALES), ((n + blocksize - 1) // blocksize,), np.float32
        )
        packed = job[PACKED] != 0
        while True:
            task = take(job, COUNTER, 1)
            if task >= job[TASKS]:
                break
            start = task * chunk * blocksize
            end = min(start + chunk * blocksize, n)
            for first in range(start, end, blocksize):
                size = min(blocksize, end - first)
                scale = scales[first // blocksize]
                if packed:
                    dequantize4_span(codes, first, size, scale, book, offset(out, 4 * first))
                else:
                    dequantize_span(offset(codes, first), size, scale, book, offset(out, 4 * first))

    return dequantize


def _make_largest(stamp: int):
    @compile_c(signature("p"))
    def largest(job_address):
        """Largest absolute value of each block as bits, into the scales."""
        _ = stamp
        job = numba.carray(job_address, (JOB_SIZE,), np.int64)
        n, blocksize, chunk = job[N], job[BLOCKSIZE], job[CHUNK]
        x = pointer_at(job_address, DATA)
        bits = numba.carray(pointer_at(job_address, SCALES), ((n + blocksize - 1) // blocksize,), np.int32)
        while True:
            task = take(job, COUNTER, 1)
            if task >= job[TASKS]:
                break
            start = task * chunk * blocksize
            end = min(start + chunk * blocksize, n)
            for first in range(start, end, blocksize):
                bits[first // blocksize] = largest_bits(offset(x, 4 * first), min(blocksize, end - first))

    return largest


@functools.cache
def quantize_routine() -> Any:
    """C function that codes the blocks of a job."""
    return _make_quantize(source_stamp("blockwise"))


@functools.cache
def dequantize_routine() -> Any:
    """C function that decodes the blocks of a job."""
    return _make_dequantize(source_stamp("blockwise"))


@functools.cache
def largest_routine() -> Any:
    """C function that finds the largest absolute value of each block."""
    return _make_largest(source_stamp("blockwise"))
