"""The compiled step of an optimizer. It decodes a span of states, applies the rule, and codes them again.

The states exist as float32 only in the worker's scratch memory, which stays in its L1 cache. So main memory
sees one read of the gradient, one read and one write of the parameters, and the codes.
"""

from __future__ import annotations

import numba
import numpy as np

from lowgemm.blockwise.emit import STEP, compress, prefetch
from lowgemm.blockwise.job import BlocksJob
from lowgemm.blockwise.records import Number, Pointer, Record, dtype_of
from lowgemm.blockwise.routines import block_count
from lowgemm.blockwise.rules import OPERANDS, of_bits
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
from lowgemm.jit.routine import call_for_address, inner, routine

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
        # blocks of a span; bytes from one state of a span to the next in scratch memory, and where the rest
        # begins there
        ("group", Number), ("stride", Number), ("largest_at", Number), ("before_at", Number),
    )  # fmt: skip


STEP_JOB = dtype_of(StepJob)
OPERANDS_BYTES = OPERANDS.itemsize
#: Bytes of the float32 values of a turn of part 1 and coding; unsigned like addresses, since Numba makes a
#: float of an unsigned and a signed number.
MOVE = np.uint64(4 * STEP)


def lay_out(job: StepJob) -> int:
    """Enter the size of a span and where things lie in a worker's scratch memory; returns its bytes.

    First the states of a span, then the new ones, the largest absolute value of each state's blocks, and what
    a block's parameters were before, to put back if one becomes NaN or infinite. Each begins with a cache
    line.
    """
    job.group = max(1, SPAN // job.blocksize)
    job.stride = -(-4 * job.group * job.blocksize // 64) * 64
    job.largest_at = 2 * MAX_STATES * job.stride
    job.before_at = job.largest_at + -(-4 * MAX_STATES * job.group // 64) * 64
    return job.before_at + 4 * job.blocksize


@routine("ppn")
def step(job_address, scratch, task):
    """One step of the blocks of a task. A block whose new values are not all finite is left as it is."""
    jobs = numba.carray(job_address, (1,), STEP_JOB)
    job = jobs[0]
    n, blocksize, chunk, group = job.n, job.blocksize, job.chunk, job.group
    states, wide, blocks = job.states, job.wide != 0, block_count(job)
    p, g = pointer_field(job, "parameters"), pointer_field(job, "gradient")
    largest = numba.carray(offset(scratch, job.largest_at), (MAX_STATES * group,), np.int32)
    space = stack(OPERANDS_BYTES)
    operands = numba.carray(space, (1,), OPERANDS)[0]
    operands.constants = as_address(pointer_field(job, "constants"))
    operands.largest = as_address(offset(scratch, job.largest_at))
    last = min((task + 1) * chunk, blocks)
    for block in range(task * chunk, last, group):
        count = min(group, last - block)
        first = block * blocksize
        size = min(count * blocksize, n - first)
        ahead = first + PREFETCH * group * blocksize
        if ahead + size <= n:
            prefetch(offset(p, 4 * ahead), 4 * size, 1)
            prefetch(offset(g, 4 * ahead), 4 * size, 0)
        if not wide:
            for k in range(states):
                decode_state(job, k, block, count, offset(scratch, k * job.stride))
        point_at_states(operands, job, scratch, first)
        point_at(operands, job, scratch, first, 0)
        certain = call_for_address(job.rule, (0, size, as_address(space))) != 0
        finite = True
        for k in range(states):
            for i in range(count):
                if group > 1:  # else the rule did it
                    values = offset(scratch, (MAX_STATES + k) * job.stride + 4 * i * blocksize)
                    largest[k * group + i] = largest_bits(values, min(blocksize, size - i * blocksize))
                finite = finite and largest[k * group + i] < INFINITY_BITS
        for i in range(count):
            good = True
            if not finite:  # rare
                for k in range(states):
                    good = good and largest[k * group + i] < INFINITY_BITS
            if good:
                at = i * blocksize
                length = min(blocksize, size - at)
                point_at(operands, job, scratch, first, at)
                together = False
                if certain and not wide and job.divides != 0:
                    together = finish_together(job, operands, space, scratch, block, i, length, largest)
                if not together:
                    good = update(job, space, scratch, first + at, length, certain)
                    if good:
                        store_states(job, scratch, block, i, length, largest)
            if not good:
                take_field(jobs, "bad", 1)


@inner
def point_at(operands, job, scratch, first, at):
    """Point all but the old states at element `at` of the span that begins with element `first`."""
    operands.parameters = as_address(offset(pointer_field(job, "parameters"), 4 * (first + at)))
    operands.gradient = as_address(offset(pointer_field(job, "gradient"), 4 * (first + at)))
    new = as_address(offset(scratch, MAX_STATES * job.stride + 4 * at))
    operands.new1, operands.new2, operands.new3 = new, new + job.stride, new + 2 * job.stride


@inner
def point_at_states(operands, job, scratch, first):
    """Point the old states of a span to where they are: of float32 in the tensor, else decoded in
    `scratch`.
    """
    if job.wide != 0:
        operands.old1 = as_address(offset(pointer_field(job.state[0], "values"), 4 * first))
        operands.old2 = as_address(offset(pointer_field(job.state[1], "values"), 4 * first))
        operands.old3 = as_address(offset(pointer_field(job.state[2], "values"), 4 * first))
    else:
        old = as_address(scratch)
        operands.old1, operands.old2, operands.old3 = old, old + job.stride, old + 2 * job.stride


@inner
def update(job, operands, scratch, start, length, certain):
    """Part 1 of a block that begins with element `start`; whether its parameters are finite now. Those of
    before are put back if not. `certain`: part 0 has proved that they will be.
    """
    p, before = offset(pointer_field(job, "parameters"), 4 * start), offset(scratch, job.before_at)
    if not certain:
        copy_span(p, length, before)
    call_for_address(job.rule, (1, length, as_address(operands)))
    if certain or largest_bits(p, length) < INFINITY_BITS:
        return True
    copy_span(before, length, p)
    return False


@inner
def store_states(job, scratch, first_block, i, length, largest):
    """The new states of block number `i` of a span, as float32 or as codes."""
    block = first_block + i
    start = block * job.blocksize
    for k in range(job.states):
        new = offset(scratch, (MAX_STATES + k) * job.stride + 4 * i * job.blocksize)
        values = pointer_field(job.state[k], "values")
        if job.wide != 0:
            copy_span(new, length, offset(values, 4 * start))
        else:
            scale = of_bits(largest[k * job.group + i])
            scales_of(job, k)[block] = scale
            quantize_span(new, length, scale, pointer_field(job.state[k], "book"), offset(values, start))


@inner
def finish_together(job, operands, operands_at, scratch, first_block, i, length, largest):
    """Part 1 of block number `i` of a span and the codes of its states by turns; whether that could be."""
    states, steps = job.states, length // STEP
    inverses = numba.carray(stack(16), (MAX_STATES,), np.float32)
    possible = length % STEP == 0 and steps <= STEPS
    for k in range(states):
        inverses[k] = inverse_if_fast(
            of_bits(largest[k * job.group + i]), pointer_field(job.state[k], "book")
        )
        possible = possible and inverses[k] != 0
    if not possible:
        return False
    block = first_block + i
    start = block * job.blocksize
    new = offset(scratch, MAX_STATES * job.stride + 4 * i * job.blocksize)
    masks = stack(1536)  # of MAX_STATES * STEPS int64
    # Part 1 waits for divisions and roots, coding for shuffles: `STEP` elements of each in turn overlap in
    # the processor, and Adam's step takes 12 % less. Twice as many in a turn take 4 % (Adam) to 9 % (RMSprop)
    # more.
    for s in range(steps):
        call_for_address(job.rule, (1, STEP, as_address(operands_at)))
        for k in range(states):
            compress(
                offset(new, k * job.stride + 4 * s * STEP),
                inverses[k],
                pointer_field(job.state[k], "book"),
                offset(pointer_field(job.state[k], "values"), start + s * STEP),
                1,
                offset(masks, 8 * (k * STEPS + s)),
            )
        operands.parameters += MOVE
        operands.gradient += MOVE
        operands.new1 += MOVE
        operands.new2 += MOVE
        operands.new3 += MOVE
    for k in range(states):
        scale, book = of_bits(largest[k * job.group + i]), pointer_field(job.state[k], "book")
        scales_of(job, k)[block] = scale
        codes = offset(pointer_field(job.state[k], "values"), start)
        decide(offset(new, k * job.stride), steps, scale, book, offset(masks, 8 * k * STEPS), codes)
    return True


@inner
def copy_span(source, n, target):
    """Copy n float32 values; a plain loop, which is four times as fast as assigning a slice."""
    a, b = numba.carray(source, (n,), np.float32), numba.carray(target, (n,), np.float32)
    for i in range(n):
        b[i] = a[i]


@inner
def decode_state(job, k, block, count, out):
    """Float32 values of `count` blocks of state number `k`."""
    blocksize, first, scales = job.blocksize, block * job.blocksize, scales_of(job, k)
    codes, book = pointer_field(job.state[k], "values"), pointer_field(job.state[k], "book")
    for i in range(count):
        start = first + i * blocksize
        size = min(blocksize, job.n - start)
        dequantize_span(offset(codes, start), size, scales[block + i], book, offset(out, 4 * i * blocksize))


@inner
def scales_of(job, k):
    """Scales of the blocks of state number `k`."""
    return numba.carray(pointer_field(job.state[k], "scales"), (block_count(job),), np.float32)
