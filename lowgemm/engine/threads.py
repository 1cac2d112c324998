"""Running a plan on one or several threads without the ways in which Numba aborts a process, or slows it down.

* Two Python threads inside a parallel region abort the process under Numba's workqueue layer: only one at a
  time enters there, another one that comes meanwhile runs its product serially.
* A fork after a parallel region kills a child that enters one under GNU OpenMP: the child runs serially, and
  says so once.
* A nested parallel region aborts under workqueue: a thread that Python did not start (a worker of the caller's own
  `prange`, calling back) runs serially.
* A region waits for its last thread, which others may keep from running: see `pace.py`.
* Python threads that all call at once (Dask, joblib) share Numba's threads: see `_fair_share`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from time import perf_counter

import numba
import numpy as np

from lowgemm import config
from lowgemm.checks.arguments import as_num_threads
from lowgemm.engine import drivers
from lowgemm.engine.pace import Pace
from lowgemm.engine.records import plan_of
from lowgemm.jit import host

#: Multiply-accumulates for each thread at least. A parallel region costs 3 us while the threads are awake, which they stay for 5 ms, and
#: about 30 when they sleep; one core of a Zen 5 does 24 million in 50.
MACS_PER_THREAD = 12_000_000
#: What reading a byte of the rhs counts for (500 GMAC/s, and 60 GB/s from L3).
MACS_PER_BYTE = 8

config.check_with("num_threads", as_num_threads)
#: Held while one call is in a parallel region, under a layer that bears only one.
_alone = threading.Lock()
#: Python thread -> threads that its call is using.
_running: dict[int, int] = {}
_forked = False


def _numba_started() -> bool:
    """Whether Numba has started its threads in this process or in the one it was forked from."""
    return bool(getattr(sys.modules.get("numba.np.ufunc.parallel"), "_is_initialized", False))


def _after_fork_in_child() -> None:
    global _forked, _alone
    _alone = threading.Lock()
    _running.clear()
    # whoever started them, lowgemm or the caller's own parallel function
    _forked = _forked or _numba_started()


def _imported_in_forked_child() -> bool:
    """Whether Numba believes its threads to run but there is only this one: they stayed in the parent."""
    if not _numba_started() or numba.config.NUMBA_NUM_THREADS == 1:
        return False
    return host.thread_count() == 1


if host.after_fork_in_child(_after_fork_in_child):
    _forked = _imported_in_forked_child()


def _inherited_limit() -> int | None:
    """``OMP_NUM_THREADS``, unless Numba is told otherwise: Dask's workers are started with that, and only that, set."""
    if "NUMBA_NUM_THREADS" in os.environ:
        return None
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


_inherited = _inherited_limit()


def settings() -> tuple[int | None, int]:
    """Thread settings that a plan depends on."""
    return config.num_threads, numba.get_num_threads()


def worth_threads(requested: int | None, macs: int) -> bool:
    """Whether the settings matter at all for a product of `macs` multiply-accumulates."""
    return requested != 1 and macs >= 2 * MACS_PER_THREAD


def default_threads() -> int:
    """Upper bound on the threads of a call that does not say ``num_threads=``."""
    configured, available = settings()
    limit = configured if configured is not None else _inherited
    return available if limit is None else max(1, min(limit, available))


def choose_threads(requested: int | None, macs: int) -> int:
    """Number of threads for a product of `macs` multiply-accumulates.

    Never more than asked for, than `config.num_threads` (or else ``OMP_NUM_THREADS``), than Numba's own setting, or
    than pays.
    """
    if not worth_threads(requested, macs):
        return 1
    return max(1, min(most_threads(requested), macs // MACS_PER_THREAD))


def most_threads(requested: int | None) -> int:
    """Threads of a call that asks for `requested`, if all of them pay."""
    return default_threads() if requested is None else min(requested, numba.get_num_threads())


def _fair_share(wanted: int) -> int:
    """Threads that a call may use now: what calls of other Python threads leave over, at least its own.

    With N threads and k Python threads calling at once at most N + k - 1 run; each taking N would make it k * N.
    """
    if threading.get_ident() not in threading._active:  # type: ignore[attr-defined]
        return 1
    if not _running:
        return wanted
    # list() is one step of the interpreter: other threads come and go meanwhile
    return max(1, min(wanted, numba.get_num_threads() - sum(list(_running.values()))))


@contextlib.contextmanager
def sharing(wanted: int) -> Iterator[int]:
    """Of threads that are not Numba's: how many a call may use now, counted in everyone's share until it ends."""
    me, workers = threading.get_ident(), _fair_share(wanted)
    before = _running.get(me, 0)  # of a call that a signal handler interrupted
    try:
        _running[me] = before + workers
        yield workers
    finally:
        if before:
            _running[me] = before
        else:
            _running.pop(me, None)


def _one_at_a_time() -> bool:
    try:
        return bool(numba.threading_layer() == "workqueue")
    except ValueError:  # not known yet
        return True


def run(plan: np.ndarray, state: np.ndarray, planned: int, pace: Pace) -> None:
    """Run a plan (an array that begins with it) on at most the `planned` threads that it is for.

    Any number of workers gives all blocks: they are handed out by a counter, not by worker number.
    """
    workers = planned
    if planned > 1:
        if _forked:
            _warn_forked()
            workers = 1
        else:
            start = perf_counter()
            workers = pace.team(_fair_share(planned), start)
    if workers == 1:
        drivers.run_serial.dispatcher(plan, state)
        if planned > 1 and not _forked:
            end = perf_counter()
            pace.took(1, end - start, end)
        return
    # The first starts Numba's threads. The second may be needed instead of it by the next call, or a signal handler.
    driver, serial = drivers.run_parallel.dispatcher, drivers.run_serial.dispatcher
    if workers < planned:
        plan = plan.copy()
        plan_of(plan).workers = workers
    me = threading.get_ident()
    try:
        # An interrupt can come between any two steps here. Nothing is lost by it: an entry that is left behind is
        # overwritten by the thread's next call, and `with` on a lock cannot be interrupted half-way.
        _running[me] = workers
        if not _one_at_a_time():
            driver(plan, state)
        elif not _alone.locked():
            with _alone:
                driver(plan, state)
        else:
            serial(plan, state)
        end = perf_counter()
        pace.took(workers, end - start, end)
    finally:
        _running.pop(me, None)


_warned = False


def _warn_forked() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "lowgemm: this process was forked after threads had been started; it runs serially from now on "
            "(use the 'spawn' or 'forkserver' start method to keep threads)",
            RuntimeWarning,
            stacklevel=6,
        )
