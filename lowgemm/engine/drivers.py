"""Ways to run a plan: in turn on one thread, and on several. Next file to open: `jit/team.py`, the threads.

`single` and `several` have the same arguments, so those who call them need not know which it is. Where there
is no team of threads, `begin` fills in the state of a call and `in_region` runs it in a parallel region of
Numba.
"""

from __future__ import annotations

import numpy as np
from numba import prange, types

from lowgemm.engine.records import ITEM_RHS, ITEM_SIZE, STATE, plan_at, state_at
from lowgemm.engine.tiles import (
    compute_blocks,
    item_addresses,
    prepare,
    prepare_columns,
    rhs_addresses,
    whole_block,
)
from lowgemm.jit import disk_cache
from lowgemm.jit.both_ends import COUNTERS
from lowgemm.jit.memory import as_address, field_address, load_behind, pointer_field, stack, store_64
from lowgemm.jit.routine import call_address, inner, routine
from lowgemm.jit.team import share

_STATE_BYTES = STATE.itemsize


@inner
def begin_state(p, s, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
    """Fill in the state `s` of a call of the plan `p`; the other arguments are those of `single`."""
    columns, blocks = field_address(s, "columns"), field_address(s, "blocks")
    for counter in range(COUNTERS):
        store_64(columns, counter, 0)
        store_64(blocks, counter, 0)
    s.columns_done = 0
    s.lhs = lhs
    s.rhs = rhs
    s.rhs_sums = rhs_sums
    s.out = out
    s.lhs_zero = lhs_zero - p.lhs_shift
    s.rhs_zero = rhs_zero - p.rhs_shift
    s.lhs_zeros = lhs_zeros
    s.rhs_zeros = rhs_zeros
    s.scratch_of_rhs = space
    s.scratch_of_workers = space + p.all_rhs_bytes
    s.scratch_of_splits = s.scratch_of_workers + p.workers * p.worker_bytes
    s.splits_done = s.scratch_of_splits + p.splits_bytes


@inner
def _no_splits_done(p, s):
    if p.splits > 1:
        for number in range(p.batch * p.row_blocks * p.col_blocks):
            store_64(pointer_field(s, "splits_done"), number, 0)


@routine("ppnnnnnnnnn")
def begin(plan, state, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
    """Fill in the state at `state`; the other arguments are those of `single`."""
    p, s = plan_at(plan), state_at(state)
    begin_state(p, s, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros)
    _no_splits_done(p, s)


@routine("ppn")
def work(plan, state, worker):
    """What each worker of a product does: a job for `jit/team.py`, of the addresses of a plan and of
    a state.
    """
    p, s = plan_at(plan), state_at(state)
    prepare(p, s, worker)
    compute_blocks(p, s, worker)


@routine("pnnnnnnnnn")
def several(plan, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
    """All batch items on as many threads as the plan says and the team has left, in any order.

    The arguments are those of `single`; `space` is scratch memory for every rhs, thread and split.
    """
    state = stack(_STATE_BYTES)
    p, s = plan_at(plan), state_at(state)
    begin_state(p, s, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros)
    _no_splits_done(p, s)
    share(pointer_field(p, "team"), p.work, as_address(plan), as_address(state), p.workers, p.long)


@routine("nnn")
def alone(job, a, b):
    """Run a job on this thread: the address of a routine, called with `a`, `b` and a worker's number, 0."""
    call_address(job, (a, b, 0))


@disk_cache.njit([types.void(types.int64, types.int64, types.int64, types.int64)], nogil=True, parallel=True)
def in_region(job, a, b, workers):
    """Run a job, as `jit/team.py` has them, in a parallel region of Numba: a routine's address, which each of
    `workers` calls with `a`, `b` and its number.
    """
    for worker in prange(workers):
        call_address(job, (a, b, worker))


@routine("pnnnnnnnnn")
def single(plan, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
    """All batch items on one thread, one after the other.

    An rhs is packed when it differs from that of the item before, so it is still in cache.

    `plan` is the address of a plan; `lhs`, `rhs`, `rhs_sums` and `out` are as in `records.STATE`; `space` is
    that of scratch memory for one rhs and one thread. `lhs_zero` and `rhs_zero` are the zero points as the
    caller gave them. A plan that is bilinear reads `lhs_zeros` and `rhs_zeros` instead: addresses of int32,
    one for each row or column, with the plan's shifts subtracted.
    """
    p, s = plan_at(plan), state_at(stack(_STATE_BYTES))
    begin_state(p, s, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros)
    own = s.scratch_of_workers
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
                whole_block(p, s, a, row, col, own, np.int64(col > 0))
