"""Ways to run a plan: in turn on one thread, and on several. Next file to open: `threads.py`, who may use how many.

Plan and state are records (`records.py`) with numbers behind them. The drivers for `threads.py` take them as the int64 arrays that they
lie in: Numba's dispatcher tells the type of such an array fastest, and a `prange` cannot capture a record.
"""

from __future__ import annotations

from numba import prange, types

from lowgemm.engine.records import ITEM_RHS, ITEM_SIZE, STATE, plan_at, state_at
from lowgemm.engine.tiles import (
    compute_blocks,
    item_addresses,
    prepare,
    prepare_columns,
    rhs_addresses,
    rhs_scratch,
    whole_block,
)
from lowgemm.jit import disk_cache
from lowgemm.jit.memory import address, load_behind, stack
from lowgemm.jit.routine import inner, routine

_DRIVER = [types.void(types.int64[::1], types.int64[::1])]
_STATE_BYTES = STATE.itemsize


@inner
def _prepare(plan, state):
    """`prepare` for the int64 arrays in which the records lie."""
    prepare(plan_at(address(plan)), state_at(address(state)))


@inner
def _compute_blocks(plan, state, worker):
    """`compute_blocks` for the int64 arrays in which the records lie."""
    compute_blocks(plan_at(address(plan)), state_at(address(state)), worker)


@inner
def _team(plan):
    """Whether the rhs is packed, whether it is packed on the fly, and for how many threads the plan is."""
    p = plan_at(address(plan))
    return p.packed != 0, p.on_the_fly_at != 0, p.workers


@disk_cache.njit(_DRIVER, nogil=True)
def run_serial(plan, state):
    """Run a plan on one thread."""
    _prepare(plan, state)
    _compute_blocks(plan, state, 0)


@disk_cache.njit(_DRIVER, nogil=True, parallel=True)
def run_parallel(plan, state):
    """Run a plan on as many threads as it says."""
    packed, on_the_fly, workers = _team(plan)
    # With a packed rhs phase 0 is a few thousand additions: not worth waking the threads for.
    if packed:
        _prepare(plan, state)
    for phase in range(1 if packed or on_the_fly else 0, 2):
        for worker in prange(workers):
            if phase == 0:
                _prepare(plan, state)
            else:
                _compute_blocks(plan, state, worker)


@routine("pnnnnnnnnn")
def single(plan, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
    """All batch items on one thread, one after the other.

    An rhs is packed when it differs from that of the item before, so it is still in cache.

    `plan` is the address of a plan; `lhs`, `rhs`, `rhs_sums` and `out` are as in `records.STATE`; `space` is that of scratch memory for one
    rhs and one thread. `lhs_zero` and `rhs_zero` are the zero points as the caller gave them. A plan that is bilinear reads `lhs_zeros` and
    `rhs_zeros` instead: addresses of int32, one for each row or column, with the plan's shifts subtracted.
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
    s.scratch_of_rhs = space
    work = rhs_scratch(p, s, 1)
    last = -1
    for b in range(p.batch):
        number = load_behind(p, ITEM_SIZE * b + ITEM_RHS)
        r = rhs_addresses(p, s, number, space)
        if number != last and p.on_the_fly_at == 0:
            prepare_columns(p, s, r, 0, p.n)
            last = number
        a = item_addresses(p, s, b, r)
        for row in range(p.row_blocks):
            for col in range(p.col_blocks):
                whole_block(p, s, a, row, col, work)
