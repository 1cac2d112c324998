"""Each number once, to whichever workers come, and the same ones to each where both keep pace."""

from __future__ import annotations

import threading

import numba
import numpy as np
import pytest

from lowgemm.jit.both_ends import COUNTERS, next_number
from lowgemm.jit.memory import store_64
from lowgemm.jit.routine import signature

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="compiled code only")


@numba.cfunc(signature("ppnnn"), nopython=True)
def take(counters, taken, worker, total, most):
    """Note the numbers that `worker` is given in the order of coming, `most` at most, then -1 where there is
    none left.
    """
    for i in range(most):
        number = next_number(counters, worker, total)
        store_64(taken, i, number)
        if number < 0:
            break


def given(counters: np.ndarray, worker: int, total: int, most: int) -> list[int]:
    taken = np.full(most, -2, np.int64)
    take.ctypes(counters.ctypes.data, taken.ctypes.data, worker, total, most)
    return [int(x) for x in taken if x != -2]


def test_two_workers_meet_in_the_middle():
    counters = np.zeros(COUNTERS, np.int64)
    assert given(counters, 0, 7, 2) == [0, 1]
    assert given(counters, 1, 7, 3) == [6, 5, 4]
    assert given(counters, 2, 7, 1) == [2]  # a third one comes from the front too
    assert given(counters, 3, 7, 9) == [3, -1]
    assert given(counters, 0, 7, 9) == given(counters, 1, 7, 9) == [-1]


@pytest.mark.parametrize("total", [0, 1, 2, 9])
@pytest.mark.parametrize("worker", [0, 1])
def test_one_worker_is_given_everything(worker, total):
    numbers = given(np.zeros(COUNTERS, np.int64), worker, total, total + 5)
    assert sorted(numbers) == list(range(-1, total))


def test_each_number_once_whoever_comes():
    """Four Python threads at a time; compiled code holds no lock, so they really meet."""
    for total in (0, 1, 3, 1000):
        counters, found = np.zeros(COUNTERS, np.int64), [[] for _ in range(4)]
        start = threading.Barrier(4)

        def work(worker, counters=counters, found=found, start=start, total=total):
            start.wait()
            while -1 not in found[worker]:
                found[worker] += given(counters, worker, total, 20)

        workers = [threading.Thread(target=work, args=(w,)) for w in range(4)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
        assert sorted(number for numbers in found for number in numbers) == [-1] * 4 + list(range(total))
