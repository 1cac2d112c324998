"""Passes in parts: each piece once, on any number of threads, and how many threads there are."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from lowgemm.engine import parts, threads
from lowgemm.jit.memory import load_i64, pointer_at, store_64
from lowgemm.jit.routine import routine

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")


@routine(parts.PASS)
def counting(args, first, end, worker):
    """How often each piece was done, how much was added, and by whom."""
    numbers, workers, more = pointer_at(args, 0), pointer_at(args, 1), load_i64(args, 2)
    for i in range(first, end):
        store_64(numbers, i, load_i64(numbers, i) + more)
        store_64(workers, i, worker)


@pytest.mark.parametrize("pieces", [0, 1, 2, 3, 11, 12, 13, 1000])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_each_piece_is_done_once(pieces, workers):
    for _ in range(20):
        numbers, by = np.zeros(pieces + 1, np.int64), np.zeros(pieces + 1, np.int64)
        parts.run(counting, (numbers.ctypes.data, by.ctypes.data, 5), pieces, workers, parts.LONG)
        assert (numbers[:pieces] == 5).all() and numbers[pieces] == 0
        assert by.min() >= 0 and by.max() < workers


def test_threads_of_a_pass(monkeypatch):
    """As many as pay, and no more than there are pieces, than are asked for, and than there are."""
    monkeypatch.setattr(threads, "most_threads", lambda n: min(4, n or 4))
    time = parts.NANOSECONDS
    for asked, nanoseconds, pieces, expected in (
        (None, 100 * time, 100, 4), (3, 100 * time, 100, 3), (1, 100 * time, 100, 1),
        (None, 2 * time - 1, 100, 1),
        (None, 2 * time, 100, 2), (None, 3.5 * time, 100, 3), (None, 100 * time, 2, 2),
        (None, 100 * time, 1, 1), (None, 100 * time, 0, 1),
    ):  # fmt: skip
        assert parts.workers_for(nanoseconds, pieces, asked) == expected
