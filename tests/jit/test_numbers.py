"""No two processes give functions the same name, so code from disk calls its own parts."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numba
import pytest
from numba.core.bytecode import FunctionIdentity
from patience import PATIENCE

from lowgemm.jit import disk_cache, numbers

if numba.config.DISABLE_JIT:
    pytest.skip("compiled code only", allow_module_level=True)

ROOT = pathlib.Path(__file__).parents[2]

#: Lines of code, so many that LLVM does not put a copy in the place of each call.
LINES = "\n".join(
    f"        y = y // {k} + load_i64(to, {k % 3}) * {k + 5} ^ y % {k + 2}" for k in range(2, 60)
)
#: Routines of one factory, each with a part.
FUNCTIONS = f"""
import sys
from lowgemm.jit.memory import load_i64, store_64
from lowgemm.jit.part import inner
from lowgemm.jit.routine import routine

sys.modules["lowgemm.functions"] = sys.modules[__name__]  # parts of lowgemm alone may be captured
__name__ = "lowgemm.functions"

def make(factor):
    @inner
    def part(to, at, y):
{LINES}
        store_64(to, 3, y)
        store_64(to, at, factor)

    @routine("pn", factor)
    def run(to, number):
        part(to, 0, number)
        part(to, 1, number + 1)
        part(to, 2, number + 2)

    return run
"""
#: What a process begins with: without lowgemm's numbers these would be the same in all.
BEGIN = """
import itertools, sys
from numba.core.bytecode import FunctionIdentity
FunctionIdentity._unique_ids = itertools.count(1000)
import numpy as np
import functions
for factor in map(int, sys.argv[1:]):
    to = np.zeros(4, np.int64)
    functions.make(factor).ctypes(to.ctypes.data, 9)
    print(*to[:3])
"""


@pytest.fixture
def results(tmp_path):
    """What the routines with some factors store, in a process of their own with the cache of the test."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    folder = tmp_path / "cache"
    folder.mkdir()

    def run(*factors):
        done = subprocess.run(
            [sys.executable, "-c", BEGIN, *map(str, factors)], capture_output=True, text=True,
            timeout=PATIENCE, env={**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines(), len(list(folder.rglob("*.nbc")))

    return run


def test_closures_of_two_processes_keep_their_own_parts(results):
    assert results(3) == (["3 3 3"], 1)
    assert results(5) == (["5 5 5"], 2)
    assert results(3, 5) == (["3 3 3", "5 5 5"], 2)
    assert results(5, 3) == (["5 5 5", "3 3 3"], 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_gives_other_names():
    code = """
import os, lowgemm.jit.disk_cache
from numba.core.bytecode import FunctionIdentity
reading, writing = os.pipe()
child = os.fork()
number = next(FunctionIdentity._unique_ids)
if not child:
    os.write(writing, str(number).encode())
    os._exit(0)
os.waitpid(child, 0)
print(int(os.read(reading, 100)) != number)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "True\n", done.stderr


def test_where_names_are_not_known_nothing_is_kept(monkeypatch):
    def function():
        pass

    assert numbers.KNOWN and hasattr(FunctionIdentity, "_unique_ids")
    assert isinstance(disk_cache._cache(function), disk_cache.CheckedCache)
    monkeypatch.setattr(numbers, "KNOWN", False)
    assert not isinstance(disk_cache._cache(function), disk_cache.CheckedCache)
