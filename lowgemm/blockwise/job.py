"""Running compiled code over many blocks on several threads.

A job is a record of sizes and addresses, cut into tasks. The C function that does one of them is called by
`work`, the loop of a worker: it asks for one task after another (`jit/both_ends.py`) until none is left, so
that any number of threads may run it at once and a late one costs nothing.

`engine/parts.py` has such a loop for passes of ONNX models. They are two, because a pass gets a range of
pieces, as long as the number of threads makes it, where a task gets one number of pieces that were cut
before, and memory of its worker's own. What they do alike is there once: `jit/both_ends.py` hands out
numbers, `engine/threads.py` runs a loop on several threads.
"""

from __future__ import annotations

import numba
import numpy as np

from lowgemm.blockwise.records import Number, Pointer, Record, dtype_of
from lowgemm.engine import threads
from lowgemm.jit.both_ends import next_number
from lowgemm.jit.memory import as_address, field_address, offset, pointer_field
from lowgemm.jit.routine import Routine, call_address, routine

#: Elements below which a second thread costs more than it saves: handing work over takes about 30 us, in
#: which one core codes some 60,000 elements.
ELEMENTS_PER_THREAD = 65536
#: Elements of a task: few enough that threads finish together, so many that asking for a task is nothing.
ELEMENTS_PER_TASK = 32768


class Job(Record):
    """What every job begins with; each kind of job has its own fields after these."""

    __slots__ = ()
    _fields_ = (
        # the C function of one task, and how many tasks there are: it is called with the job, memory of the
        # worker's own, and a number
        ("task", Number), ("tasks", Number),
        # counters of `jit/both_ends.py`, by which tasks are handed out
        ("given", Number), ("from_front", Number), ("from_back", Number),
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


@routine("pnn")
def work(job_address, _, worker):
    """Do tasks of a job until none is left: what each of its workers runs, and the only loop over tasks."""
    jobs = numba.carray(job_address, (1,), JOB)
    job = jobs[0]
    own = offset(pointer_field(job, "scratch"), worker * job.scratch_bytes)
    task, tasks, at, memory = job.task, job.tasks, as_address(job_address), as_address(own)
    counters = field_address(job, "given")
    while True:
        number = next_number(counters, worker, tasks)
        if number < 0:
            break
        call_address(task, (at, memory, number))


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
    """Do all tasks by so many threads, this one among them; each has `scratch_bytes` of memory, 64-byte
    aligned.
    """
    job.task, job.given, job.from_front, job.from_back = task.address, 0, 0, 0
    workers = max(1, min(workers, job.tasks))
    if scratch_bytes:
        each = -(-scratch_bytes // 64) * 64
        memory = np.empty(workers * each + 64, dtype=np.uint8)  # kept alive until the end
        job.scratch, job.scratch_bytes = -(-memory.ctypes.data // 64) * 64, each
    threads.run(work, job.address, 0, workers)
