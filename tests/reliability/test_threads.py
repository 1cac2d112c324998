"""Python threads, Numba's threading layers, nesting: right answers, no abort."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import lowgemm
import lowgemm.blockwise
from lowgemm.blockwise import job
from lowgemm.engine import plan, region, threads
from lowgemm.jit import team

from . import child

SYSTEMS = child.systems()

#: Eight Python threads make mixed calls, large ones in parallel, and compare every result.
CONCURRENT = """
import sys, threading, numpy as np, lowgemm, numba
from lowgemm.engine import threads
threads.MACS_PER_THREAD = 1000
sys.setswitchinterval(1e-4)
rng = np.random.default_rng(0)
stages = [lowgemm.BiasAddition(np.arange(200)), lowgemm.Requantize(1e-3, 5, np.uint8)]
problems = []
for m, k, n in ((3, 5, 7), (64, 64, 64), (150, 90, 200), (33, 300, 65), (1, 500, 300)):
    a, b = rng.integers(0, 256, (m, k), dtype=np.uint8), rng.integers(-128, 128, (k, n), dtype=np.int8)
    stage = stages if n == 200 else None
    exact = a.astype(np.int64) @ b.astype(np.int64)
    problems.append((a, b, lowgemm.pack_rhs(b), stage, exact, lowgemm.reference.gemm(a, b, output=stage)))
wrong, done = [], []
def work(seed):
    r = np.random.default_rng(seed)
    for i in range(CALLS):
        a, b, w, stage, exact, finished = problems[r.integers(len(problems))]
        kind = i % 4
        limit = int(r.integers(1, 5))
        if kind == 0:
            ok = (lowgemm.gemm(a, b, num_threads=limit) == exact).all()
        elif kind == 1:
            ok = (lowgemm.gemm(a, w, output=stage, num_threads=limit) == finished).all()
        elif kind == 2:
            ok = (lowgemm.gemm(a[::-1], b, output=stage) == finished[::-1]).all()
        else:
            ok = (lowgemm.requantize(exact.astype(np.int32), lowgemm.Clamp(0, 9)) == exact.clip(0, 9)).all()
        done.append(1)
        if not ok:
            wrong.append((seed, i))
workers = [threading.Thread(target=work, args=(s,)) for s in range(8)]
[t.start() for t in workers]
[t.join() for t in workers]
print(numba.threading_layer() if SYSTEM != "team" else SYSTEM, len(done), "calls, wrong", len(wrong))
"""

#: A product inside the caller's own parallel loop: its threads call back into Python.
NESTED = """
import numba, numpy as np, lowgemm
from lowgemm.engine import threads
threads.MACS_PER_THREAD = 1000
a = np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)
exact = a.astype(np.int64) @ a.astype(np.int64)
if WARM:
    assert (lowgemm.gemm(a, a, num_threads=4) == exact).all()
def product(i):
    return int((lowgemm.gemm(a, a, num_threads=4) == exact).all())
@numba.njit(parallel=True)
def loop(n):
    right = 0
    for i in numba.prange(n):
        with numba.objmode(same="int64"):
            same = product(i)
        right += same
    return right
print(loop(40), "right")
assert (lowgemm.gemm(a, a, num_threads=4) == exact).all()
"""


@pytest.mark.parametrize("system", SYSTEMS)
def test_eight_python_threads(system):
    code = child.use(system) + CONCURRENT.replace("CALLS", "200").replace("SYSTEM", repr(system))
    out = child.run(code, NUMBA_THREADING_LAYER=child.numbas(system), NUMBA_NUM_THREADS="4")
    assert f"{system} 1600 calls, wrong 0" in out


@pytest.mark.parametrize("layer", child.layers())
@pytest.mark.parametrize("way", ["team", "region"])
def test_inside_a_parallel_loop_of_the_caller(layer, way):
    """Cold: the first parallel call of the process is the one inside the loop. The next process starts with
    one before.
    """
    for warm in (0, 1):
        code = child.use(way) + NESTED.replace("WARM", str(warm))
        out = child.run(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="4")
        assert "40 right" in out


def test_small_products_stay_serial():
    assert threads.choose_threads(None, 1000) == 1
    assert threads.choose_threads(1, 10**12) == 1


def test_limits_are_kept(monkeypatch):
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 6)
    monkeypatch.setattr(threads, "_inherited", None)
    big = 10**12
    assert threads.choose_threads(None, big) == 6
    assert threads.choose_threads(4, big) == 4
    assert threads.choose_threads(99, big) == 6
    monkeypatch.setattr(lowgemm.config, "num_threads", 3)
    assert threads.choose_threads(None, big) == 3
    assert threads.choose_threads(5, big) == 5
    assert threads.choose_threads(None, 3 * threads.MACS_PER_THREAD) == 3


def test_plans_follow_the_settings(monkeypatch):
    monkeypatch.setattr(threads, "MACS_PER_THREAD", 1000)
    a = np.ones((64, 64), np.uint8)
    monkeypatch.setattr(lowgemm.config, "num_threads", 1)
    for _ in range(2):
        assert (lowgemm.gemm(a, a) == 64).all()
    assert lowgemm.explain(a, a).threads == 1
    monkeypatch.setattr(lowgemm.config, "num_threads", None)
    for _ in range(2):
        assert (lowgemm.gemm(a, a) == 64).all()
    import numba

    assert lowgemm.explain(a, a).threads == min(2, numba.get_num_threads()) or numba.get_num_threads() > 2


def test_python_threads_share_a_region(monkeypatch):
    """k callers on N threads run on N + k - 1 at most, and each on at least its own; for the team see
    `test_team.py`.
    """
    monkeypatch.setattr(region.numba, "get_num_threads", lambda: 8)
    monkeypatch.setattr(region, "_running", {})
    used = []
    for caller in range(5):
        used.append(region._fair_share(6))
        region._running[-caller] = used[-1]
    assert used == [6, 2, 1, 1, 1]


def test_no_region_in_threads_of_others():
    """A thread that Python did not start, as a worker of a C library that calls back."""
    assert region._fair_share(2) == min(2, region.numba.get_num_threads())
    seen = []

    def foreign() -> None:
        me = threading.get_ident()
        entry = threading._active.pop(me)
        seen.append(region._fair_share(2))
        threading._active[me] = entry

    worker = threading.Thread(target=foreign)
    worker.start()
    worker.join()
    assert seen == [1]


def test_products_and_blockwise_jobs_have_the_same_threads(monkeypatch):
    """With and without a team, whatever the system: the same bits, and every piece of work done."""
    monkeypatch.setattr(threads, "MACS_PER_THREAD", 1000)
    monkeypatch.setattr(job, "ELEMENTS_PER_THREAD", 1)
    rng = np.random.default_rng(0)
    a, x = rng.integers(0, 256, (90, 90), dtype=np.uint8), rng.standard_normal(99_999).astype(np.float32)
    exact, expected = (
        a.astype(np.int64) @ a.astype(np.int64),
        lowgemm.blockwise.quantize_blockwise(x, num_threads=1),
    )
    for way in (team.the_team, lambda: None):
        monkeypatch.setattr(team, "the_team", way)
        monkeypatch.setattr(plan, "the_team", way)
        for _ in range(20):
            planned = lowgemm.plan(a, a, num_threads=2)
            assert planned.plan.threads == min(2, threads.numba.get_num_threads())
            assert (planned(a, a) == exact).all()
            found = lowgemm.blockwise.quantize_blockwise(x, num_threads=2)
            assert np.array_equal(found.codes, expected.codes)
