"""Running a plan on one or several threads without the ways in which Numba aborts a process.

* Two Python threads inside a parallel region abort the process under Numba's workqueue layer: only one at a
  time enters there, another one that comes meanwhile runs its product serially.
* A fork after a parallel region kills a child that enters one under GNU OpenMP: the child runs serially, and
  says so once.
"""

from __future__ import annotations

import os
import threading
import warnings

import numba
import numpy as np

from lowgemm import compute, config

#: Multiply-accumulates below which a second thread costs more than it saves: waking the pool takes 5 to 20 us,
#: in which one core does about 2 million.
MACS_PER_THREAD = 4_000_000

_busy = threading.Lock()
_launched = False
_forked = False


def _after_fork_in_child() -> None:
    global _forked, _busy
    _busy = threading.Lock()
    if _launched:
        _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def settings() -> tuple[int | None, int]:
    """Thread settings that a plan depends on."""
    return config.num_threads, numba.get_num_threads()


def worth_threads(requested: int | None, macs: int) -> bool:
    """Whether the settings matter at all for a product of `macs` multiply-accumulates."""
    return requested != 1 and macs >= 2 * MACS_PER_THREAD


def choose_threads(requested: int | None, macs: int) -> int:
    """Number of threads for a product of `macs` multiply-accumulates.

    Never more than asked for, than `config.num_threads`, than Numba's own setting, or than pays.
    """
    if not worth_threads(requested, macs):
        return 1
    configured, available = settings()
    limit = requested if requested is not None else configured
    wanted = available if limit is None else min(limit, available)
    return max(1, min(wanted, macs // MACS_PER_THREAD))


def run(p: np.ndarray, s: np.ndarray, jobs: np.ndarray, batch: np.ndarray) -> None:
    """Run a plan on ``p[WORKERS]`` threads."""
    global _launched
    serial = compute.serial_driver()
    if p[compute.WORKERS] == 1:
        serial(p, s, jobs, batch)
        return
    if _forked:
        _warn_forked()
        # One worker does all blocks: they are handed out by a counter, not by worker number.
        serial(p, s, jobs, batch)
        return
    driver = compute.parallel_driver()
    if _launched and numba.threading_layer() != "workqueue":
        driver(p, s, jobs, batch)
        return
    # The layer's name is known only once it runs; until then treat it as the one that cannot be shared.
    if _busy.acquire(blocking=False):
        try:
            _launched = True
            driver(p, s, jobs, batch)
        finally:
            _busy.release()
    else:
        serial(p, s, jobs, batch)


_warned = False


def _warn_forked() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "lowgemm: this process was forked after lowgemm had started threads; it runs serially from now on "
            "(use the 'spawn' or 'forkserver' start method to keep threads)",
            RuntimeWarning,
            stacklevel=4,
        )
