"""The compiled step of an optimizer. It decodes a span of states, applies the rule, and codes them again.

The states exist as float32 only in the worker's scratch memory, which stays in its L1 cache. So main memory
sees one read of the gradient, one read and one write of the parameters, and the codes.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit

from lowgemm.blockwise.emit import STEP, compress, prefetch
from lowgemm.blockwise.job import BlocksJob
from lowgemm.blockwise.records import Number, Pointer, Record, dtype_of
from lowgemm.blockwise.routines import block_count
from lowgemm.blockwise.spans import (
    STEPS,
    decide,
    dequantize_span,
    inverse_if_fast,
    largest_bits,
    quantize_span,
)
from lowgemm.fixedpoint.rows import INFINITY_BITS
from lowgemm.jit.memory import as_address, offset, pointer_field, stack, take_field
from lowgemm.jit.routine import call_address, routine

#: Elements that are worked on at once, in whole blocks. To call a rule for each 256 costs little. 64 elements
#: of Adam take 89 ns with 256, and 93 ns with 1024, whose states hardly fit in L1 (one core of a Zen 4, data
#: in L2).
SPAN = 256
#: Spans between the one worked on and the one that is prefetched from memory. With 4 million parameters, 64
#: elements of Adam took 125 ns without prefetching and 106 ns with a distance of 1. With 32 million (and an
#: overlapped rule) they took 95 to 99 ns with 1, 93 ns with 2, and 96 ns with 6.
PREFETCH = 2
#: States that an optimizer may have.
MAX_STATES = 3


class OneState(Record):
    """One state of all elements."""

    __slots__ = ()
    _fields_ = (
        # codes, or float32 values of wide states; scales and book of codes
        ("values", Pointer), ("scales", Pointer), ("book", Pointer),
    )  # fmt: skip


class StepJob(BlocksJob):
    """One step over a tensor. `bad` counts the blocks that were left as they were."""

    __slots__ = ()
    _fields_ = (
        # float32 each; and the `rules.Constants`
        ("parameters", Pointer), ("gradient", Pointer), ("constants", Pointer),
        # address of the rule; whether it divides
        ("rule", Number), ("divides", Number),
        # how many states there are, whether they are float32, and each of them
        ("states", Number), ("wide", Number), ("state", OneState * MAX_STATES),
        # blocks of a span
        ("group", Number),
    )  # fmt: skip


STEP_JOB = dtype_of(StepJob)


def blocks_at_once(blocksize: int) -> int:
    """Blocks of a span."""
    return max(1, SPAN // blocksize)


def _stride(group: int, blocksize: int) -> int:
    return -(-4 * group * blocksize // 64) * 64


def scratch_bytes(blocksize: int) -> int:
    """Bytes that a worker needs.

    The states of a span, the largest absolute value of each of their blocks, and what a block had before:
    parameters and codes, to put back if a parameter becomes NaN or infinite.
    """
    group = blocks_at_once(blocksize)
    return MAX_STATES * (_stride(group, blocksize) + 4 * group) + (4 + MAX_STATES) * blocksize


@routine("ppn")
def step(job_address, scratch, task):
    """One step of the blocks of a task. A block whose new values are not all finite is left as it is."""
    jobs = numba.carray(job_address, (1,), STEP_JOB)
    job = jobs[0]
    n, blocksize, chunk, group = job.n, job.blocksize, job.chunk, job.group
    blocks = block_count(job)
    p, g, h = (
        pointer_field(job, "parameters"),
        pointer_field(job, "gradient"),
        pointer_field(job, "constants"),
    )
    stride = (4 * group * blocksize + 63) // 64 * 64
    largest = numba.carray(offset(scratch, MAX_STATES * stride), (MAX_STATES * group,), np.int32)
    before_p = offset(scratch, MAX_STATES * (stride + 4 * group))
    before_codes = offset(before_p, 4 * blocksize)
    inverses = numba.carray(stack(16), (MAX_STATES,), np.float32)
    new_scales = stack(16)
    scales = numba.carray(new_scales, (MAX_STATES,), np.float32)
    scale_bits = numba.carray(new_scales, (MAX_STATES,), np.int32)
    masks = stack(1536)  # of MAX_STATES * STEPS int64
    s1, s2 = as_address(scratch), as_address(offset(scratch, stride))
    s3 = as_address(offset(scratch, 2 * stride))
    states, wide, rule = job.states, job.wide != 0, job.rule
    last = min((task + 1) * chunk, blocks)
    for block in range(task * chunk, last, group):
        count = min(group, last - block)
        first = block * blocksize
        size = min(count * blocksize, n - first)
        ahead = first + PREFETCH * group * blocksize
        if ahead + size <= n:
            prefetch(offset(p, 4 * ahead), 4 * size, 1)
            prefetch(offset(g, 4 * ahead), 4 * size, 0)
        span_p, span_g = offset(p, 4 * first), offset(g, 4 * first)
        for k in range(states):
            load_state(job, k, wide, block, count, blocksize, blocks, n, offset(scratch, k * stride))
        call_address(rule, (0, size, as_address(span_p), as_address(span_g), s1, s2, s3, as_address(h)))
        finite = True
        for k in range(states):
            for i in range(count):
                block_values = offset(scratch, k * stride + 4 * i * blocksize)
                bits = largest_bits(block_values, min(blocksize, size - i * blocksize))
                largest[k * group + i] = bits
                finite = finite and bits < INFINITY_BITS
        for i in range(count):
            at, length = i * blocksize, min(blocksize, size - i * blocksize)
            if not finite:  # rare
                good = True
                for k in range(states):
                    good = good and largest[k * group + i] < INFINITY_BITS
                if not good:
                    take_field(jobs, "bad", 1)
                    continue
            block_p, block_g = offset(span_p, 4 * at), offset(span_g, 4 * at)
            steps = length // STEP
            together = job.divides != 0 and not wide and length % STEP == 0 and steps <= STEPS
            for k in range(states):
                if not wide:
                    scale_bits[k] = largest[k * group + i]
                    inverses[k] = inverse_if_fast(scales[k], pointer_field(job.state[k], "book"))
                    together = together and inverses[k] != 0
            copy_span(block_p, length, before_p)
            if together:
                for k in range(states):
                    codes = offset(pointer_field(job.state[k], "values"), first + at)
                    copy_bytes(codes, length, offset(before_codes, k * blocksize))
                # Part 1 waits for divisions and roots, coding for shuffles: 64 elements of each in turn
                # overlap in the processor, and Adam's step takes 12 % less.
                for s in range(steps):
                    here_at = 4 * (at + s * STEP)
                    call_address(
                        rule,
                        (
                            1, STEP, as_address(offset(block_p, 4 * s * STEP)),
                            as_address(offset(block_g, 4 * s * STEP)),
                            s1 + here_at, s2 + here_at, s3 + here_at, as_address(h),
                        ),
                    )  # fmt: skip
                    for k in range(states):
                        compress(
                            offset(scratch, k * stride + here_at),
                            inverses[k],
                            pointer_field(job.state[k], "book"),
                            offset(pointer_field(job.state[k], "values"), first + at + s * STEP),
                            1,
                            offset(masks, 8 * (k * STEPS + s)),
                        )
                if largest_bits(block_p, length) >= INFINITY_BITS:
                    copy_span(before_p, length, block_p)
                    for k in range(states):
                        codes = offset(pointer_field(job.state[k], "values"), first + at)
                        copy_bytes(offset(before_codes, k * blocksize), length, codes)
                    take_field(jobs, "bad", 1)
                    continue
                for k in range(states):
                    put_scale(job, k, block + i, blocks, scales[k])
                    decide(
                        offset(scratch, k * stride + 4 * at),
                        steps,
                        scales[k],
                        pointer_field(job.state[k], "book"),
                        offset(masks, 8 * k * STEPS),
                        offset(pointer_field(job.state[k], "values"), first + at),
                    )
                continue
            call_address(
                rule,
                (
                    1, length, as_address(block_p), as_address(block_g),
                    s1 + 4 * at, s2 + 4 * at, s3 + 4 * at, as_address(h),
                ),
            )  # fmt: skip
            if largest_bits(block_p, length) >= INFINITY_BITS:
                copy_span(before_p, length, block_p)
                take_field(jobs, "bad", 1)
                continue
            for k in range(states):
                if not wide:
                    put_scale(job, k, block + i, blocks, scales[k])
                values = offset(scratch, k * stride + 4 * at)
                store_state(job, k, wide, block + i, length, blocksize, scales[k], values)


@njit(nogil=True, error_model="numpy")
def copy_span(source, n, target):
    """Copy n float32 values; a plain loop, which is four times as fast as assigning a slice."""
    a, b = numba.carray(source, (n,), np.float32), numba.carray(target, (n,), np.float32)
    for i in range(n):
        b[i] = a[i]


@njit(nogil=True, error_model="numpy")
def copy_bytes(source, n, target):
    """Copy n bytes."""
    a, b = numba.carray(source, (n,), np.uint8), numba.carray(target, (n,), np.uint8)
    for i in range(n):
        b[i] = a[i]


@njit(nogil=True, error_model="numpy")
def load_state(job, k, wide, block, count, blocksize, blocks, n, out):
    """Float32 values of `count` blocks of state number `k`."""
    source = pointer_field(job.state[k], "values")
    first = block * blocksize
    if wide:
        size = min(count * blocksize, n - first)
        copy_span(offset(source, 4 * first), size, out)
        return
    scales = numba.carray(pointer_field(job.state[k], "scales"), (blocks,), np.float32)
    book = pointer_field(job.state[k], "book")
    for i in range(count):
        start = first + i * blocksize
        size = min(blocksize, n - start)
        dequantize_span(offset(source, start), size, scales[block + i], book, offset(out, 4 * i * blocksize))


@njit(nogil=True, error_model="numpy")
def put_scale(job, k, block, blocks, scale):
    """Write the scale of a block of state number `k`."""
    numba.carray(pointer_field(job.state[k], "scales"), (blocks,), np.float32)[block] = scale


@njit(nogil=True, error_model="numpy")
def store_state(job, k, wide, block, size, blocksize, scale, values):
    """Write one block of state number `k` back: as it is, or as codes with this scale."""
    target = pointer_field(job.state[k], "values")
    first = block * blocksize
    if wide:
        copy_span(values, size, offset(target, 4 * first))
        return
    quantize_span(values, size, scale, pointer_field(job.state[k], "book"), offset(target, first))
