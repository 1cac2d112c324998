"""Python threads, Numba threading layers and forks: right answers, no abort."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import lowgemm
from lowgemm import threads

#: Eight Python threads make mixed calls, large ones in parallel, and compare every result.
CONCURRENT = """
import threading, numpy as np, lowgemm
from lowgemm import threads
threads.MACS_PER_THREAD = 1000
rng = np.random.default_rng(0)
problems = []
for m, k, n in ((3, 5, 7), (64, 64, 64), (150, 90, 200), (33, 300, 65), (1, 500, 300)):
    a, b = rng.integers(0, 256, (m, k), dtype=np.uint8), rng.integers(-128, 128, (k, n), dtype=np.int8)
    problems.append((a, b, lowgemm.pack_rhs(b), a.astype(np.int64) @ b.astype(np.int64)))
wrong = []
def work(seed):
    r = np.random.default_rng(seed)
    for i in range(CALLS):
        a, b, w, expected = problems[r.integers(len(problems))]
        got = lowgemm.gemm(a, w if i % 2 else b, num_threads=int(r.integers(1, 3)))
        if not (got == expected).all():
            wrong.append((seed, i))
workers = [threading.Thread(target=work, args=(s,)) for s in range(8)]
[t.start() for t in workers]
[t.join() for t in workers]
import numba
print(numba.threading_layer(), "wrong", len(wrong))
"""

FORKED = """
import os, sys, warnings, numpy as np, lowgemm
from lowgemm import threads
threads.MACS_PER_THREAD = 1000
a = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
expected = lowgemm.gemm(a, a, num_threads=2)
for child in range(4):
    pid = os.fork()
    if pid == 0:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            same = all((lowgemm.gemm(a, a, num_threads=2) == expected).all() for _ in range(3))
        told = [str(w.message) for w in seen if "forked" in str(w.message)]
        os._exit(0 if same and len(told) == 1 else 1)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
assert (lowgemm.gemm(a, a, num_threads=2) == expected).all()
print("children fine")
"""


def run(code: str, layer: str) -> str:
    env = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-800:]}"
    return done.stdout


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_eight_python_threads(layer):
    assert f"{layer} wrong 0" in run(CONCURRENT.replace("CALLS", "200"), layer)


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this platform")
def test_calls_in_forked_children(layer):
    assert "children fine" in run(FORKED, layer)


def test_small_products_stay_serial():
    assert threads.choose_threads(None, 1000) == 1
    assert threads.choose_threads(1, 10**12) == 1


def test_limits_are_kept(monkeypatch):
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 6)
    big = 10**12
    assert threads.choose_threads(None, big) == 6
    assert threads.choose_threads(4, big) == 4
    assert threads.choose_threads(99, big) == 6
    monkeypatch.setattr(lowgemm.config, "num_threads", 3)
    assert threads.choose_threads(None, big) == 3
    assert threads.choose_threads(5, big) == 5
    assert threads.choose_threads(None, 3 * threads.MACS_PER_THREAD) == 3


def test_plans_follow_the_settings(monkeypatch):
    import numpy as np

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
