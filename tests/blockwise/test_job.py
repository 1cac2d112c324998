"""Threads of the block-wise routines: counts, Python threads at once, forks, import."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from lowgemm import config
from lowgemm.blockwise import dequantize_blockwise, quantize_blockwise
from lowgemm.blockwise import job as jobs
from lowgemm.blockwise.records import Pointer, dtype_of
from lowgemm.jit.memory import as_address, pointer_field
from lowgemm.jit.routine import signature


@pytest.fixture
def small_tasks(monkeypatch):
    """Several threads for little work."""
    monkeypatch.setattr(jobs, "ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(jobs, "ELEMENTS_PER_TASK", 300)


def test_how_many_threads(monkeypatch):
    most, many = numba.get_num_threads(), 1 << 30
    assert jobs.choose_threads(1, many) == 1
    assert jobs.choose_threads(10**6, many) == most
    assert jobs.choose_threads(None, 1000) == 1
    monkeypatch.setattr(config, "num_threads", 1)
    assert jobs.choose_threads(None, many) == 1


def test_tasks_of_packed_codes_begin_at_whole_bytes():
    for blocksize in (1, 3, 7, 64, 999, 32767, 32768, 10**6):
        assert jobs.blocks_per_task(blocksize, even=True) * blocksize % 2 == 0


class Tally(jobs.Job):
    """For each task, how often it was done, and in which memory."""

    __slots__ = ()
    _fields_ = (("done", Pointer), ("memory", Pointer))


TALLY = dtype_of(Tally)


def count(job_address, scratch, task):
    job = numba.carray(job_address, (1,), TALLY)[0]
    numba.carray(pointer_field(job, "done"), (job.tasks,), np.int64)[task] += 1
    numba.carray(pointer_field(job, "memory"), (job.tasks,), np.int64)[task] = as_address(scratch)


@pytest.fixture(scope="module")
def counting():
    return numba.cfunc(signature("ppn"), nopython=True)(count)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="compiled code only")
@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 10_000])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_task_is_done_once_in_memory_of_its_worker(counting, tasks, workers):
    done, memory = np.zeros(tasks, np.int64), np.zeros(tasks, np.int64)
    job = Tally(tasks=tasks, done=done.ctypes.data, memory=memory.ctypes.data)
    for again in (1, 2):
        jobs.run(counting, job, workers, 100)
        assert (done == again).all()
        places = np.unique(memory)
        assert places.size <= workers and (places % 64 == 0).all() and (np.diff(places) % 128 == 0).all()


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="compiled code only")
def test_each_worker_has_memory_of_its_own(counting):
    """The workers come one after the other here; the addresses are only looked at."""
    done, memory = np.zeros(3, np.int64), np.zeros(3, np.int64)
    job = Tally(tasks=3, done=done.ctypes.data, memory=memory.ctypes.data, task=counting.address)
    job.scratch, job.scratch_bytes = 4096, 128
    for worker in (2, 0, 1):
        job.given = job.from_front = job.from_back = 0
        jobs.work.ctypes(job.address, 0, worker)
        assert memory.tolist() == [4096 + 128 * worker] * 3


def work(seed):
    x = np.random.default_rng(seed).standard_normal(5000).astype(np.float32)
    one, two = (quantize_blockwise(x, num_threads=threads) for threads in (1, 2))
    same = np.array_equal(one.codes, two.codes)
    return same and np.array_equal(dequantize_blockwise(one), dequantize_blockwise(two, num_threads=2))


def test_python_threads_at_once(small_tasks):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system with fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_after_threads(small_tasks):
    assert work(1)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work(2) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert work(3)


def test_import_compiles_nothing():
    code = (
        "import numba.core.compiler as compiler\n"
        "def refuse(*args, **kwargs): raise AssertionError('compiled at import')\n"
        "compiler.compile_extra = refuse\n"
        "import lowgemm.blockwise; print('nothing compiled')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "nothing compiled" in done.stdout, done.stderr
