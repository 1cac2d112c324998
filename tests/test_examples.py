"""Every script in examples/ runs to its end (with ``--quick`` where it has that)."""

from __future__ import annotations

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys

import numba
import pytest
from patience import PATIENCE

EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("*.py"))


def imports(path):
    """Packages that a script imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    needs = {name.split(".")[0] for name in found}
    if "lowgemm.dask" in found:
        needs.add("dask")
    if "dask" in needs and "distributed" in path.read_text():
        needs.add("distributed")
    return needs


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, tmp_path):
    if numba.config.DISABLE_JIT:
        pytest.skip("too slow without compiled code")
    # modules beside the script; zarr, which is asked for only by a flag; torch, whose place NumPy takes
    beside = {p.stem for p in path.parent.glob("*.py")} | {
        p.name for p in path.parent.iterdir() if p.is_dir()
    }
    missing = sorted(
        name for name in imports(path) - beside - {"zarr", "torch"} if importlib.util.find_spec(name) is None
    )
    if missing:
        pytest.skip(f"{path.name} needs {', '.join(missing)}")
    flags = ["--quick"] if "--quick" in path.read_text() else []
    done = subprocess.run(
        [sys.executable, str(path), *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
        # a second thread of BLAS doubles the work of small products, not their speed
        env={**os.environ, "MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
