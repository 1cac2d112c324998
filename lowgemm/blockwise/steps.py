"""The compiled step of an optimizer: for each block decode the states, apply the rule, code the states again.

The block's states exist as float32 only in the worker's scratch memory, which stays in its first-level cache: main
memory sees one read of the gradient, one read and write of the parameters, and the codes.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from lowgemm._jit import call_address, compile_c, signature, source_stamp
from lowgemm.blockwise.emit import prefetch
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
from lowgemm.blockwise.routines import INFINITY_BITS
from lowgemm.blockwise.spans import dequantize_span, largest_bits, quantize_span
from lowgemm.memory import as_address, fetch_add, offset, pointer_at, stack

#: Entries of the job: parameters, gradient, constants, the rule's address, number of states, whether they are float32.
PARAMETERS, GRADIENT, CONSTANTS_AT, RULE, STATES, WIDE = range(OWN, OWN + 6)
#: Blocks between the one worked on and the one asked for from memory. A block takes 0.4 us, longer than memory does;
#: without, the processor's own prefetching starts anew on each page and a step takes a third longer.
PREFETCH = 4
#: From here on, for each of at most `MAX_STATES` states: codes (or float32 values), scales, book.
STATE_AT = OWN + 6
MAX_STATES = 3


def scratch_bytes(blocksize: int) -> int:
    """Bytes that a worker needs."""
    return MAX_STATES * (-(-4 * blocksize // 64) * 64)


def _make_step(stamp: int):
    @compile_c(signature("p"))
    def step(job_address):
        """One step. A block whose new states are not finite is left as it is; job[BAD] counts them."""
        _ = stamp
        job = numba.carray(job_address, (JOB_SIZE,), np.int64)
        n, blocksize, chunk = job[N], job[BLOCKSIZE], job[CHUNK]
        blocks = (n + blocksize - 1) // blocksize
        p, g, h = (
            pointer_at(job_address, PARAMETERS), pointer_at(job_address, GRADIENT), pointer_at(job_address, CONSTANTS_AT)
        )  # fmt: skip
        scratch = offset(pointer_at(job_address, SCRATCH), fetch_add(job, SLOT, 1) * job[SCRATCH_BYTES])
        stride = (4 * blocksize + 63) // 64 * 64
        states, wide, rule = job[STATES], job[WIDE] != 0, job[RULE]
        largest = numba.carray(stack(16), (MAX_STATES,), np.int32)
        while True:
            task = fetch_add(job, COUNTER, 1)
            if task >= job[TASKS]:
                break
            for block in range(task * chunk, min((task + 1) * chunk, blocks)):
                first = block * blocksize
                size = min(blocksize, n - first)
                ahead = first + PREFETCH * blocksize
                if ahead + blocksize <= n:
                    prefetch(offset(p, 4 * ahead), 4 * blocksize, 1)
                    prefetch(offset(g, 4 * ahead), 4 * blocksize, 0)
                for k in range(states):
                    codes, values = pointer_at(job_address, STATE_AT + 3 * k), offset(scratch, k * stride)
                    if wide:
                        source = numba.carray(offset(codes, 4 * first), (size,), np.float32)
                        target = numba.carray(values, (size,), np.float32)
                        for i in range(size):
                            target[i] = source[i]
                    else:
                        scales = numba.carray(
                            pointer_at(job_address, STATE_AT + 3 * k + 1), (blocks,), np.float32
                        )
                        book = pointer_at(job_address, STATE_AT + 3 * k + 2)
                        dequantize_span(offset(codes, first), size, scales[block], book, values)
                block_p, block_g = as_address(offset(p, 4 * first)), as_address(offset(g, 4 * first))
                s1, s2 = as_address(scratch), as_address(offset(scratch, stride))
                s3 = as_address(offset(scratch, 2 * stride))
                call_address(rule, (0, size, block_p, block_g, s1, s2, s3, as_address(h)))
                finite = True
                for k in range(states):
                    largest[k] = largest_bits(offset(scratch, k * stride), size)
                    finite = finite and largest[k] < INFINITY_BITS
                if not finite:
                    fetch_add(job, BAD, 1)
                    continue
                call_address(rule, (1, size, block_p, block_g, s1, s2, s3, as_address(h)))
                for k in range(states):
                    codes, values = pointer_at(job_address, STATE_AT + 3 * k), offset(scratch, k * stride)
                    if wide:
                        target = numba.carray(offset(codes, 4 * first), (size,), np.float32)
                        source = numba.carray(values, (size,), np.float32)
                        for i in range(size):
                            target[i] = source[i]
                    else:
                        at = pointer_at(job_address, STATE_AT + 3 * k + 1)
                        scales = numba.carray(at, (blocks,), np.float32)
                        scale_bits = numba.carray(at, (blocks,), np.int32)
                        scale_bits[block] = largest[k]
                        book = pointer_at(job_address, STATE_AT + 3 * k + 2)
                        quantize_span(values, size, scales[block], book, offset(codes, first))

    return step


@functools.cache
def step_routine() -> Any:
    """C function of one optimizer step over a tensor."""
    return _make_step(source_stamp("blockwise"))
