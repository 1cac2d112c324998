"""Importing compiles nothing; a cold and a warm start are as short as promised (printed, not asserted)."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import numba
from patience import PATIENCE

import lowgemm

CODE = """
import time
start = time.perf_counter()
import lowgemm, lowgemm.fixedpoint, lowgemm.__main__, numba
from numba.core import event
imported = time.perf_counter() - start
compiles = []
class Watch(event.Listener):
    def on_start(self, e): compiles.append(e)
    def on_end(self, e): pass
event.register("numba:compile", Watch())
import numpy as np
x = np.ones((8, 8), np.uint8)
start = time.perf_counter()
assert (lowgemm.gemm(x, x) == 8).all()
print(f"import {imported:.2f} s, first gemm {time.perf_counter() - start:.2f} s")
"""

NOTHING = """
import numba.core.compiler as compiler
def refuse(*args, **kwargs): raise AssertionError("compiled at import")
compiler.compile_extra = refuse
import lowgemm, lowgemm.fixedpoint, lowgemm.kernels.tools.peak, lowgemm.explain
import lowgemm.cli.bench, lowgemm.cli.demo
print("nothing compiled")
"""


def run(code, *flags, cwd=None, **env):
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_compiles_nothing():
    assert "nothing compiled" in run(NOTHING)


def test_cold_and_warm_start(tmp_path, capsys):
    env = {"NUMBA_CACHE_DIR": str(tmp_path)}
    cold, warm = run(CODE, **env), run(CODE, **env)
    made = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nb?")}
    run(CODE, **env)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nb?")} == made, (
        "a warm start wrote to the cache"
    )
    with capsys.disabled():
        print(f"\n  cold: {cold.strip()}; warm: {warm.strip()}")


def test_a_changed_source_is_never_served_from_the_cache(tmp_path):
    """The stamp that all cached functions capture follows every source file."""
    code = "from lowgemm.jit.stamp import source_stamp; print(source_stamp())"
    shutil.copytree(pathlib.Path(lowgemm.__file__).parent, tmp_path / "lowgemm")
    # -S: no site-packages, so no editable finder; numba comes by path
    path = f"{tmp_path}{os.pathsep}{pathlib.Path(numba.__file__).parents[1]}"
    run_here = {"PYTHONPATH": path}
    first = run(code, "-S", cwd=tmp_path, **run_here)
    for name in ("kernels/portable.py", "output/stages/scale.py", "jit/memory.py", "fixedpoint/scalar.py"):
        target = tmp_path / "lowgemm" / name
        target.write_text(target.read_text() + "\n# changed\n")
        second = run(code, "-S", cwd=tmp_path, **run_here)
        assert second != first, name
        first = second
