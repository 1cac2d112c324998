"""Running a job in a parallel region of Numba, where there is no team of threads (`jit/team.py`): on systems
other than Linux.

Some things in a region abort the process, and are not done:

* Two Python threads inside one, under Numba's workqueue layer: only one at a time enters, another one that
  comes meanwhile works alone.
* Entering one in a child that was forked after threads had been started, under GNU OpenMP: the child works
  alone, and says so once.
* A nested one, under workqueue: a thread that Python did not start (a worker of the caller's own `prange`,
  calling back) works alone.
"""

from __future__ import annotations

import sys
import threading
import warnings

import numba

from lowgemm.engine import drivers
from lowgemm.jit import host
from lowgemm.jit.routine import Routine

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


def _fair_share(wanted: int) -> int:
    """Threads that a call may use now: what calls of other Python threads leave over, at least its own.

    With N threads and k Python threads calling at once at most N + k - 1 run; each taking N would make it k *
    N.
    """
    if threading.get_ident() not in threading._active:  # type: ignore[attr-defined]
        return 1
    if not _running:
        return wanted
    # list() is one step of the interpreter: other threads come and go meanwhile
    return max(1, min(wanted, numba.get_num_threads() - sum(list(_running.values()))))


def _one_at_a_time() -> bool:
    try:
        return bool(numba.threading_layer() == "workqueue")
    except ValueError:  # not known yet
        return True


def run(job: Routine, a: int, b: int, wanted: int) -> None:
    """Run a job on at most `wanted` threads; any number of them does all its work."""
    if wanted > 1 and _forked:
        _warn_forked()
    workers = 1 if _forked else _fair_share(wanted)
    if workers == 1:
        drivers.alone.ctypes(job.address, a, b)
        return
    driver = drivers.in_region.dispatcher  # the first starts Numba's threads
    me = threading.get_ident()
    try:
        # An interrupt can come between any two steps here. Nothing is lost by it: an entry that is left
        # behind is overwritten by the thread's next call, and `with` on a lock cannot be interrupted
        # half-way.
        _running[me] = workers
        if not _one_at_a_time():
            driver(job.address, a, b, workers)
        elif not _alone.locked():
            with _alone:
                driver(job.address, a, b, workers)
        else:
            drivers.alone.ctypes(job.address, a, b)
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
            stacklevel=7,
        )
