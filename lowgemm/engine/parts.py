"""Passes over arrays, cut into parts that the threads of a call share.

A pass is a routine with `PASS` as its signature, ``work(args, first, end, worker)``. `args` points to its
arguments, 64-bit integers. It does pieces `first` to `end` (without the last) of some number of pieces, such
as rows. No piece reads what another writes, so the result has the same bits on any number of threads. What
a pass gathers, such as a largest number, it keeps apart for each `worker`, and the caller puts it together.

`run` hands out the pieces to the standing team of threads (`jit/team.py`), as a product does its blocks.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from lowgemm.engine import threads
from lowgemm.jit.both_ends import COUNTERS, next_number
from lowgemm.jit.memory import as_address, load_i64, offset, stack, store_64
from lowgemm.jit.routine import Routine, call_address, inner, routine
from lowgemm.jit.team import share

#: Signature of a pass.
PASS = "pnnn"
#: Nanoseconds of one thread that each thread has to save. Who runs passes holds the team (`jit/team.py`), so
#: two threads find each other within 1 us.
NANOSECONDS = 5_000
#: Nanoseconds from which on it pays to wake a thread; see `threads.LONG_MACS`.
LONG = 100_000
#: Parts for each thread, so that one that is late leaves the others most of the work.
PARTS = 6
#: Numbers of a job: the pass, its arguments, how many pieces, how many of them a part has, and counters.
WORK, ARGS, PIECES, STEP, GIVEN, JOB = 0, 1, 2, 3, 4, 4 + COUNTERS
_JOB_BYTES = 8 * JOB


@routine("ppn")
def work_on_parts(job, counters, worker):
    """What each worker does: parts of a pass until none is left."""
    pieces, step = load_i64(job, PIECES), load_i64(job, STEP)
    parts = (pieces + step - 1) // step
    while True:
        part = next_number(counters, worker, parts)
        if part < 0:
            break
        first = part * step
        call_address(load_i64(job, WORK), (load_i64(job, ARGS), first, min(pieces, first + step), worker))


@inner
def share_inside(team, on_parts, work, args, pieces, step, workers, long):
    """`run` on several threads in compiled code: a `team`, and the addresses `on_parts` of `work_on_parts`,
    `work` of a pass and `args` of its arguments. `step` of the `pieces` are a part; `workers` and `long` are
    as in `jit/team.py`.
    """
    job = stack(_JOB_BYTES)
    store_64(job, WORK, work)
    store_64(job, ARGS, args)
    store_64(job, PIECES, pieces)
    store_64(job, STEP, step)
    for i in range(GIVEN, JOB):
        store_64(job, i, 0)
    share(team, on_parts, as_address(job), as_address(offset(job, 8 * GIVEN)), workers, long)


def workers_for(nanoseconds: float, pieces: int, num_threads: int | None) -> int:
    """Threads for a pass that takes one thread so long: never more than asked for, than there are, or than
    pays.
    """
    if num_threads == 1 or pieces < 2 or nanoseconds < 2 * NANOSECONDS:
        return 1
    return max(1, min(threads.most_threads(num_threads), pieces, int(nanoseconds / NANOSECONDS)))


def step_of(pieces: int, workers: int) -> int:
    """Pieces of a part."""
    return max(1, -(-pieces // (PARTS * workers)))


@functools.cache
def words(count: int) -> Any:
    """The type of so many 64-bit integers."""
    return ctypes.c_int64 * count


def run(work: Routine, args: Sequence[int], pieces: int, workers: int = 1, nanoseconds: float = 0) -> None:
    """Run a pass.

    Parameters
    ----------
    work : Routine
        The pass.
    args : sequence of int
        Its arguments.
    pieces : int
        How many pieces there are.
    workers : int
        Threads at most, of `workers_for`.
    nanoseconds : float
        What it takes one thread, about.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.jit.memory import load_i64, pointer_at, store_64
    >>> @routine(PASS)
    ... def double(args, first, end, worker):
    ...     numbers = pointer_at(args, 0)
    ...     for i in range(first, end):
    ...         store_64(numbers, i, 2 * load_i64(numbers, i))
    >>> x = np.arange(4)
    >>> run(double, [x.ctypes.data], x.size, workers=2)
    >>> x
    array([0, 2, 4, 6])
    """
    given = words(len(args))(*args)
    if workers == 1:
        work.ctypes(given, 0, pieces, 0)
        return
    job = words(JOB)(work.address, ctypes.addressof(given), pieces, step_of(pieces, workers))
    at = ctypes.addressof(job)
    threads.run(work_on_parts, at, at + 8 * GIVEN, workers, nanoseconds >= LONG)


def run_shared(
    work: Routine,
    args: Sequence[Any],
    pieces: int,
    nanoseconds: float,
    num_threads: int | None,
    by: Any = run,
) -> None:
    """`run` a pass on as many threads as pay, at most `num_threads`; `by` may be something else that takes
    it.
    """
    by(work, args, pieces, workers_for(nanoseconds, pieces, num_threads), nanoseconds)
