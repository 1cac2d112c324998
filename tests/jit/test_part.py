"""Where Numba lacks what `lowering.py` needs, everything is compiled Numba's usual way, and right."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import pytest
from patience import PATIENCE

if numba.config.DISABLE_JIT:
    pytest.skip("compiled code only", allow_module_level=True)


def run(code, cache) -> str:
    """What a Python of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout.strip()


#: A Numba without one of the parts that lowgemm reaches into.
WITHOUT = """
import sys, numba, numpy as np
from numba.core import codegen
LOSE
import lowgemm
from lowgemm.jit import part
assert part.lowering is None and part.RoutineCompiler is numba.core.compiler.Compiler
print("usual way")
"""

#: One of each kind of compiled function: routines and their parts, and parts inside a caller's function.
COMPUTE = """
g = np.random.default_rng(0)
a, b = g.integers(0, 256, (40, 70), dtype=np.uint8), g.integers(-128, 128, (70, 30), dtype=np.int8)
exact = a.astype(np.int64) @ b
@numba.njit
def inside(x, y):
    return lowgemm.gemm(x, y)
assert (lowgemm.gemm(a, b) == exact).all() and (inside(a, b) == exact).all()
print("right")
"""
NO_METHOD = "codegen.JITCodeLibrary = type('JITCodeLibrary', (), {})"
NO_MODULE = "del numba._dynfunc; sys.modules['numba._dynfunc'] = None"


@pytest.mark.parametrize("lose", [NO_METHOD, NO_MODULE], ids=["no method", "no module"])
def test_the_usual_way_is_taken(lose, tmp_path):
    assert run(WITHOUT.replace("LOSE", lose), tmp_path) == "usual way"


def test_products_compiled_the_usual_way(tmp_path):
    assert run(WITHOUT.replace("LOSE", NO_METHOD) + COMPUTE, tmp_path).endswith("right")
