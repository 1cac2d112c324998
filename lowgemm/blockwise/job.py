"""Running a compiled routine over many blocks on several threads.

A routine is a C function of one argument: the address of its job, a vector of int64 with sizes and addresses. It asks
for one task after another by an atomic counter in the job until none is left, so that any number of threads may run
it at once and a late one costs nothing. `ctypes` releases the interpreter's lock during the call; the threads are
Python's. So there is no parallel code to compile and none of its traps (threading layers, forks) to guard against.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import os
from typing import Any

import numba
import numpy as np

from lowgemm.engine import threads

#: First entries of every job; the others are the routine's own.
COUNTER, SLOT, BAD, TASKS, N, BLOCKSIZE, CHUNK, SCRATCH, SCRATCH_BYTES = range(9)
OWN = 9
JOB_SIZE = 32
#: Elements below which a second thread costs more than it saves: handing work over takes about 30 us, in which one
#: core codes some 60,000 elements.
ELEMENTS_PER_THREAD = 65536
#: Elements of a task: few enough that threads finish together, so many that asking for a task is nothing.
ELEMENTS_PER_TASK = 32768

_pool: concurrent.futures.ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads stayed in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _helpers() -> concurrent.futures.ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = concurrent.futures.ThreadPoolExecutor(
            max(1, numba.config.NUMBA_NUM_THREADS - 1), thread_name_prefix="lowgemm"
        )
    return _pool


@functools.lru_cache(maxsize=256)
def _entry(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


def choose_threads(requested: int | None, elements: int) -> int:
    """Number of threads for so many elements: at most as many as asked for, as configured, and as pay."""
    if requested == 1 or elements < 2 * ELEMENTS_PER_THREAD:
        return 1
    available = threads.default_threads()
    wanted = available if requested is None else min(requested, numba.get_num_threads())
    return max(1, min(wanted, elements // ELEMENTS_PER_THREAD))


def blocks_per_task(blocksize: int, even: bool = False) -> int:
    """Blocks in a task; with `even` an even number, so that tasks begin at whole bytes of 4-bit codes."""
    blocks = max(1, ELEMENTS_PER_TASK // blocksize)
    return blocks + blocks % 2 if even else blocks


def run(routine: Any, job: np.ndarray, workers: int) -> None:
    """Run the routine on its job by so many threads, this one among them."""
    job[COUNTER] = job[SLOT] = 0
    address = job.ctypes.data
    entry = _entry(routine.address)
    workers = min(workers, int(job[TASKS]))
    if workers <= 1:
        entry(address)
        return
    others = []
    with contextlib.suppress(RuntimeError):  # no threads any more: the interpreter is shutting down
        for _ in range(workers - 1):
            others.append(_helpers().submit(entry, address))
    try:
        entry(address)
    finally:
        for other in others:
            if not other.cancel():  # one that has not begun has nothing left to do
                other.result()


def scratch(job: np.ndarray, workers: int, each: int) -> np.ndarray:
    """Working memory of `each` bytes for each worker, entered in the job; 64-byte aligned."""
    each = -(-each // 64) * 64
    raw = np.empty(workers * each + 64, dtype=np.uint8)
    job[SCRATCH] = -(-raw.ctypes.data // 64) * 64
    job[SCRATCH_BYTES] = each
    return raw
