"""Processes of their own, for tests of what would end the process or needs a fresh one."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import pathlib
import subprocess
import sys
from typing import Any

from patience import PATIENCE

ROOT = pathlib.Path(__file__).parents[2]


def _environment() -> dict[str, str]:
    """Ours, with the folder where `pip install tbb` puts its library, which the loader does not search by
    itself.
    """
    found = dict(os.environ)
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "libtbb.so.12":
            folder = str(pathlib.Path(str(file.locate())).resolve().parent)
            found["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [folder, found.get("LD_LIBRARY_PATH")]))
    return found


ENVIRONMENT = _environment()

#: A small exact product by the shortest way, and a large one through the threads.
SMALL = """
import numpy as np, lowgemm
a = np.random.default_rng(0).integers(0, 256, (9, 300), dtype=np.uint8)
b = np.random.default_rng(1).integers(-128, 128, (300, 40), dtype=np.int8)
exact = a.astype(np.int64) @ b.astype(np.int64)
"""


def run(code: str, *, cwd: Any = None, flags: tuple[str, ...] = (), **env: str | None) -> str:
    """Standard output of Python `code`; an environment variable of None is taken away."""
    variables = {**ENVIRONMENT, **{k: v for k, v in env.items() if v is not None}}
    for name in (k for k, v in env.items() if v is None):
        variables.pop(name, None)
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        env=variables, capture_output=True, text=True, timeout=PATIENCE, cwd=cwd or ROOT,
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-800:]}\n{done.stderr[-1500:]}"
    return done.stdout


def module(name: str, *arguments: str, **env: str) -> str:
    """Standard output of ``python -m tests.reliability.NAME ARGUMENTS``."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.reliability.{name}", *arguments],
        env={**ENVIRONMENT, **env}, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"exit status {done.returncode}: {done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    )
    return done.stdout


#: The thread system that lowgemm has of its own, beside Numba's.
TEAM = "team"


def use(system: str) -> str:
    """Code that makes a process use one of `systems`, before its first product."""
    return "" if system == TEAM else "from lowgemm.jit import team; team.available = lambda: False\n"


def numbas(system: str) -> str | None:
    """The threading layer of Numba that a process should have."""
    return None if system == TEAM else system


def systems() -> list[str]:
    """Ways to run on several threads here: the team, if there is one, and Numba's threading layers."""
    from lowgemm.jit import team

    return [TEAM] * team.available() + layers()


@functools.cache
def layers() -> list[str]:
    """Numba's threading layers that can be loaded here."""
    found = []
    for name, file in (("omp", "omppool"), ("workqueue", "workqueue"), ("tbb", "tbbpool")):
        code = (
            "from numba.np.ufunc import parallel; "
            f"parallel._check_tbb_version_compatible() if {name!r} == 'tbb' else 0; "
            f"from numba.np.ufunc import {file}"
        )
        if subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True).returncode == 0:
            found.append(name)
    return found
