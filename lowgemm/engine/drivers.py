"""Ways to run a plan: in turn on one thread, and on several. Next file to open: `threads.py`, who may use how many.

Plan and state are records (`records.py`) with numbers behind them. The drivers for `threads.py` take them as the int64 arrays that they
lie in: Numba's dispatcher tells the type of such an array fastest, and a `prange` cannot capture a record.
"""

from __future__ import annotations

import numba
from numba import prange, types

from lowgemm.engine.records import PRODUCT, STATE, plan_at, state_at
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
from lowgemm.jit.memory import address, load_behind, stack
from lowgemm.jit.routine import routine

_DRIVER = [types.void(types.int64[::1], types.int64[::1])]
_STATE_BYTES = STATE.itemsize


@numba.njit(nogil=True)
def _prepare(plan, state):
    prepare(plan_at(address(plan)), state_at(address(state)))


@numba.njit(nogil=True)
def _compute_blocks(plan, state, worker):
    compute_blocks(plan_at(address(plan)), state_at(address(state)), worker)


@numba.njit(nogil=True)
def _team(plan):
    """Whether the rhs is packed, whether it is packed block by block, and for how many threads the plan is."""
    p = plan_at(address(plan))
    return p.packed != 0, p.stream_at != 0, p.workers


@disk_cache.njit(_DRIVER, nogil=True)
def run_serial(plan, state):
    """Run a plan on one thread."""
    _prepare(plan, state)
    _compute_blocks(plan, state, 0)


@disk_cache.njit(_DRIVER, nogil=True, parallel=True)
def run_parallel(plan, state):
    """Run a plan on as many threads as it says."""
    packed, streamed, workers = _team(plan)
    # With a packed rhs phase 0 is a few thousand additions: not worth waking the threads for.
    if packed:
        _prepare(plan, state)
    for phase in range(1 if packed or streamed else 0, 2):
        for worker in prange(workers):
            if phase == 0:
                _prepare(plan, state)
            else:
                _compute_blocks(plan, state, worker)


@routine("pnnnnnnnnn")
def single(plan, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
    """All products on one thread, one after the other. `space` is the scratch memory, of one rhs and one thread.

    An rhs is packed when it differs from that of the product before, so it is still in cache.
    """
    p, s = plan_at(plan), state_at(stack(_STATE_BYTES))
    s.lhs = lhs
    s.rhs = rhs
    s.rhs_sums = rhs_sums
    s.out = out
    s.lhs_zero = lhs_zero - p.lhs_shift
    s.rhs_zero = rhs_zero - p.rhs_shift
    s.lhs_zeros = lhs_zeros
    s.rhs_zeros = rhs_zeros
    s.for_slots = space
    work = slot_space(p, s, 1)
    last = -1
    for b in range(p.batch):
        j = load_behind(p, PRODUCT * b + 2)
        slot = slot_addresses(p, s, j, space)
        if j != last and p.stream_at == 0:
            prepare_columns(p, s, slot, 0, p.n)
            last = j
        a = product_addresses(p, s, b, slot)
        for row in range(p.row_blocks):
            for col in range(p.col_blocks):
                whole_block(p, s, a, row, col, work)
