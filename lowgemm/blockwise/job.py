"""Running compiled code over many blocks on several threads.

A job is a record of sizes and addresses, cut into tasks. The C function that does one of them is called by `work`, the loop of a worker:
it asks for one task after another by an atomic counter in the job until none is left, so that any number of threads may run it at once
and a late one costs nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
from typing import Any

import numba
import numpy as np

from lowgemm.blockwise.records import Number, Pointer, Record, dtype_of
from lowgemm.engine import threads
from lowgemm.jit import host
from lowgemm.jit.memory import as_address, offset, pointer_field, take_field
from lowgemm.jit.routine import Routine, call_address, routine

#: Elements below which a second thread costs more than it saves: handing work over takes about 30 us, in which one
#: core codes some 60,000 elements.
ELEMENTS_PER_THREAD = 65536
#: Elements of a task: few enough that threads finish together, so many that asking for a task is nothing.
ELEMENTS_PER_TASK = 32768


class Job(Record):
    """What every job begins with; each kind of job has its own fields after these."""

    __slots__ = ()
    _fields_ = (
        # the C function of one task, and how many tasks there are: it is called with the job, memory of the worker's own, and a number
        ("task", Number), ("tasks", Number),
        # tasks handed out and workers that have come, so far
        ("taken", Number), ("came", Number),
        # 0, or what the task found to be wrong
        ("bad", Number),
        # memory of the first worker, and bytes from one worker's to the next one's
        ("scratch", Pointer), ("scratch_bytes", Number),
    )  # fmt: skip


class BlocksJob(Job):
    """A job over the elements of a vector, in blocks; a task is some blocks one after the other."""

    __slots__ = ()
    _fields_ = (
        # elements, elements of a block, blocks of a task; the last block and the last task may be short
        ("n", Number), ("blocksize", Number), ("chunk", Number),
    )  # fmt: skip


JOB = dtype_of(Job)


@routine("p")
def work(job_address):
    """Do tasks of a job until none is left: what each of its workers runs, and the only loop over tasks."""
    jobs = numba.carray(job_address, (1,), JOB)
    job = jobs[0]
    own = offset(pointer_field(job, "scratch"), take_field(jobs, "came", 1) * job.scratch_bytes)
    task, tasks, at, memory = job.task, job.tasks, as_address(job_address), as_address(own)
    while True:
        number = take_field(jobs, "taken", 1)
        if number >= tasks:
            break
        call_address(task, (at, memory, number))


@functools.cache
def _entry() -> Any:
    """`work` for `ctypes`, which lets go of the interpreter's lock during the call."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work.address)


# ---- threads ------------------------------------------------------------------------------------------------
# How many threads a call may use is decided by `engine/threads.py`, for products and for jobs together. Products then run in a parallel
# region of Numba; jobs are handed to threads of Python, and stay there for two reasons. A forked child gets new threads here; after a
# region it is serial for good, which a training loop that forks to load its data would pay for with every step. And a region has to be
# compiled and Numba's threads started before the first job ends.
_pool: concurrent.futures.ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads stayed in the parent


host.after_fork_in_child(_forget_pool)


def _helpers() -> concurrent.futures.ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = concurrent.futures.ThreadPoolExecutor(
            max(1, numba.config.NUMBA_NUM_THREADS - 1), thread_name_prefix="lowgemm"
        )
    return _pool


def choose_threads(requested: int | None, elements: int) -> int:
    """Number of threads for so many elements: at most as many as asked for, as configured, and as pay."""
    if requested == 1 or elements < 2 * ELEMENTS_PER_THREAD:
        return 1
    return max(1, min(threads.most_threads(requested), elements // ELEMENTS_PER_THREAD))


def blocks_per_task(blocksize: int, even: bool = False) -> int:
    """Blocks in a task; with `even` an even number, so that tasks begin at whole bytes of 4-bit codes."""
    blocks = max(1, ELEMENTS_PER_TASK // blocksize)
    return blocks + blocks % 2 if even else blocks


def divide(job: BlocksJob, n: int, blocksize: int, even: bool = False) -> None:
    """Cut n elements into blocks and tasks; `even` as for `blocks_per_task`."""
    blocksize = min(blocksize, n)
    chunk = blocks_per_task(blocksize, even)
    job.n, job.blocksize, job.chunk = n, blocksize, chunk
    job.tasks = -(-n // (blocksize * chunk))


def run(task: Routine, job: Job, workers: int, scratch_bytes: int = 0) -> None:
    """Do all tasks by so many threads, this one among them; each has `scratch_bytes` of memory, 64-byte aligned."""
    job.task, job.taken, job.came = task.address, 0, 0
    workers = min(workers, job.tasks)
    if workers > 1:
        with threads.sharing(workers) as workers:
            _run(job, workers, scratch_bytes)
    else:
        _run(job, 1, scratch_bytes)


def _run(job: Job, workers: int, scratch_bytes: int) -> None:
    run_tasks, address = _entry(), job.address
    if scratch_bytes:
        each = -(-scratch_bytes // 64) * 64
        memory = np.empty(workers * each + 64, dtype=np.uint8)  # kept alive until the end
        job.scratch, job.scratch_bytes = -(-memory.ctypes.data // 64) * 64, each
    others = []
    if workers > 1:
        with contextlib.suppress(RuntimeError):  # no threads any more: the interpreter is shutting down
            for _ in range(workers - 1):
                others.append(_helpers().submit(run_tasks, address))
    try:
        run_tasks(address)
    finally:
        for other in others:
            if not other.cancel():  # one that has not begun has nothing left to do
                other.result()
