"""Ways to run a plan: in turn on one thread, and on several. Next file to open: `threads.py`, who may use how many."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import prange, types

from lowgemm.engine.layout import (
    BATCH,
    COL_BLOCKS,
    FOR_SLOTS,
    LHS,
    LHS_SHIFT,
    LHS_ZERO,
    LHS_ZEROS,
    OUT,
    PACKED,
    PLAN_SIZE,
    PRODUCT,
    RHS,
    RHS_SHIFT,
    RHS_SUMS,
    RHS_ZERO,
    RHS_ZEROS,
    ROW_BLOCKS,
    SLOT,
    SLOTS,
    STATE_SIZE,
    STREAM_AT,
    WORKERS,
    N,
)
from lowgemm.engine.tiles import (
    compute_blocks,
    prepare,
    prepare_columns,
    product_addresses,
    slot_addresses,
    slot_space,
    whole_block,
)
from lowgemm.jit import disk_cache
from lowgemm.jit.routine import compile_c, signature
from lowgemm.jit.stamp import source_stamp

_P = types.int64[::1]


def _make_serial(stamp: int):
    @disk_cache.njit([types.void(_P, _P)], nogil=True)
    def run_serial(p, s):
        _ = stamp
        prepare(p, s)
        compute_blocks(p, s, 0)

    return run_serial


def _make_parallel(stamp: int):
    @disk_cache.njit([types.void(_P, _P)], nogil=True, parallel=True)
    def run_parallel(p, s):
        _ = stamp
        # With a packed rhs phase 0 is a few thousand additions: not worth waking the threads for.
        if p[PACKED]:
            prepare(p, s)
        for phase in range(1 if p[PACKED] or p[STREAM_AT] else 0, 2):
            for worker in prange(p[WORKERS]):
                if phase == 0:
                    prepare(p, s)
                else:
                    compute_blocks(p, s, worker)

    return run_parallel


def _make_single(stamp: int):
    @compile_c(signature("pnnnnnnnnn"))
    def single(plan, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
        """All products on one thread, one after the other. `space` is the scratch memory, of one rhs and one thread.

        An rhs is packed when it differs from that of the product before, so it is still in cache.
        """
        _ = stamp
        p = numba.carray(plan, (PLAN_SIZE,), np.int64)
        p = numba.carray(plan, (PLAN_SIZE + PRODUCT * p[BATCH] + SLOT * p[SLOTS],), np.int64)
        s = np.empty(STATE_SIZE, np.int64)
        s[LHS], s[RHS], s[RHS_SUMS], s[OUT] = lhs, rhs, rhs_sums, out
        s[LHS_ZERO], s[RHS_ZERO] = lhs_zero - p[LHS_SHIFT], rhs_zero - p[RHS_SHIFT]
        s[LHS_ZEROS], s[RHS_ZEROS] = lhs_zeros, rhs_zeros
        s[FOR_SLOTS] = space
        work = slot_space(p, s, 1)
        last = -1
        for b in range(p[BATCH]):
            j = p[PLAN_SIZE + PRODUCT * b + 2]
            slot = slot_addresses(p, s, j, space)
            if j != last and p[STREAM_AT] == 0:
                prepare_columns(p, s, slot, 0, p[N])
                last = j
            a = product_addresses(p, s, b, slot)
            for row in range(p[ROW_BLOCKS]):
                for col in range(p[COL_BLOCKS]):
                    whole_block(p, s, a, row, col, work)

    return single


@functools.cache
def serial_driver() -> Any:
    """One-thread driver: ``run(p, s)``."""
    return _make_serial(source_stamp())


@functools.cache
def parallel_driver() -> Any:
    """Driver for several threads: the same arguments, ``p[WORKERS]`` iterations of a `prange`."""
    return _make_parallel(source_stamp())


@functools.cache
def single_routine() -> Any:
    """C function for products on one thread without Python objects; see `_make_single`."""
    return _make_single(source_stamp())
