"""Forks of every kind after threads have run: the child works.

It has threads of its own where there is a team (`jit/team.py`); in regions of Numba it runs serially and says
so once.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
from patience import PATIENCE

from . import child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this platform")
SYSTEMS = child.systems()

START = """
import os, sys, warnings, numpy as np, numba
a = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
expected = a.astype(np.int64) @ a.astype(np.int64)
def use():
    import lowgemm
    from lowgemm.engine import threads
    threads.MACS_PER_THREAD = 1000
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        same = all((lowgemm.gemm(a, a, num_threads=2) == expected).all() for _ in range(3))
        same &= bool((lowgemm.gemm(a[:9], lowgemm.pack_rhs(a)) == expected[:9]).all())
    return bool(same), len([w for w in seen if "forked" in str(w.message)])
"""

OS_FORK = """
assert use() == (True, 0)
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if use() == (True, TOLD) and THREADS() else 1)
    assert os.waitpid(pid, 0)[1] == 0
assert use() == (True, 0)
print("fine")
"""

#: The caller's own parallel function started Numba's threads, lowgemm did nothing yet, or is not even
#: imported.
FOREIGN = """
@numba.njit(parallel=True)
def own(n):
    total = 0
    for i in numba.prange(n):
        total += i
    return total
if IMPORTED:
    import lowgemm
assert own(100) == 4950
pid = os.fork()
if pid == 0:
    os._exit(0 if use() == (True, TOLD) else 1)
assert os.waitpid(pid, 0)[1] == 0
print("fine")
"""

POOL = """
import multiprocessing
def task(i):
    return use()
if __name__ == "__main__":
    assert use() == (True, 0)
    with multiprocessing.get_context("METHOD").Pool(4) as pool:
        got = pool.map(task, range(8), chunksize=1)
    assert all(same for same, _ in got), got
    assert sum(told for _, told in got) == TOLD(len(set(got)))
    assert use() == (True, 0)
    print("fine")
"""

LOKY = """
import joblib
assert use() == (True, 0)
got = joblib.Parallel(n_jobs=4)(joblib.delayed(use)() for _ in range(8))
assert got == [(True, 0)] * 8, got
pool, once = joblib.Parallel(n_jobs=4, backend="threading"), joblib.delayed(lambda: use()[0])
threaded = pool(once() for _ in range(40))
assert all(threaded)
print("fine")
"""


def forking(system: str) -> str:
    """`OS_FORK`; a child with a team has threads again after its products."""
    team = system == child.TEAM
    has_threads = "(lambda: len(os.listdir('/proc/self/task')) > 1)" if team else "(lambda: True)"
    return OS_FORK.replace("TOLD", str(int(not team))).replace("THREADS", has_threads)


@pytest.mark.parametrize("system", SYSTEMS)
def test_os_fork(system):
    code = child.use(system) + START + forking(system)
    assert "fine" in child.run(code, NUMBA_THREADING_LAYER=child.numbas(system), NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("imported", [0, 1])
@pytest.mark.parametrize("system", [SYSTEMS[0], "omp"])
def test_fork_after_a_parallel_function_of_the_caller(system, imported):
    told = str(int(system != child.TEAM))
    code = START + FOREIGN.replace("IMPORTED", str(imported)).replace("TOLD", told)
    if system != child.TEAM:  # only in the child, so that lowgemm may be imported there for the first time
        code = code.replace(
            "    import lowgemm\n    from", f"    import lowgemm\n    {child.use(system)}    from"
        )
    assert "fine" in child.run(code, NUMBA_THREADING_LAYER="omp", NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method, tmp_path):
    serial = method == "fork" and child.TEAM not in SYSTEMS
    told = (
        "lambda kinds: len([t for _, t in got if t]) and sum(t for _, t in got)"
        if serial
        else "lambda kinds: 0"
    )
    script = tmp_path / "pool.py"
    script.write_text(START + POOL.replace("METHOD", method).replace("TOLD", f"({told})"))
    name = str(script)
    code = f"import runpy, sys; sys.argv = [{name!r}]; runpy.run_path({name!r}, run_name='__main__')"
    if method == "spawn":  # the children import the script by its path
        import subprocess

        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, timeout=PATIENCE, cwd=child.ROOT
        )
        assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-1500:]
        return
    assert "fine" in child.run(code, NUMBA_NUM_THREADS="2")


@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="joblib is not installed")
def test_joblib():
    assert "fine" in child.run(START + LOKY, NUMBA_NUM_THREADS=None)


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_xdist(tmp_path):
    lines = (
        START
        + "def test_use(): assert use() == (True, 0)\ndef test_fork():\n"
        + "".join(
            f"    {line}\n" for line in forking(SYSTEMS[0]).replace("print", "str").strip().splitlines()
        )
    )
    (tmp_path / "test_it.py").write_text(lines)
    arguments = ["-q", "-n", "2", "-p", "no:cacheprovider", str(tmp_path)]
    code = f"import pytest; raise SystemExit(pytest.main({arguments!r}))"
    child.run(code, cwd=tmp_path)
