"""Functions that capture others find their code in a second process, and never another's."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba import types
from patience import PATIENCE

from lowgemm.jit.captured import captured
from lowgemm.jit.memory import load_i32, load_s8, load_u8, store_32

#: A routine that captures a compiled function which captures a number, an intrinsic, and numbers of its own.
PROGRAM = """
import ctypes, os, sys
import numba
from lowgemm.fixedpoint import scalar
from lowgemm.jit.memory import store_32
from lowgemm.jit.routine import routine

def make(by, put, function):
    @routine("pn")
    def apply(to, x):
        put(to, 0, function(x, by))
    return apply

number = ctypes.c_int32()
for by in map(int, sys.argv[1:]):
    make(by, store_32, scalar.{name}).compiled.ctypes(ctypes.addressof(number), 1000)
    print(number.value)
"""


def test_what_is_captured_is_described():
    def make(a, b):
        return lambda: (a, b)

    values = (
        3,
        3.0,
        "3",
        True,
        1,
        None,
        (3,),
        np.int8(3),
        np.uint8(3),
        types.int8,
        load_i32,
        load_u8,
        load_s8,
        store_32,
    )
    assert len({captured(make(value, 0)) for value in values}) == len(values)


def test_what_cannot_be_described_is_refused():
    for value in ([3], {}, object(), np.zeros(3), numba.njit(lambda x: x)):
        with pytest.raises(TypeError, match=r"^captured: "):
            captured((lambda v: lambda: v)(value))


def run(path: pathlib.Path, cache: pathlib.Path, name: str, *numbers: int) -> list[int]:
    path.write_text(PROGRAM.format(name=name))
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, path, *map(str, numbers)], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_closures_over_compiled_functions_are_found_on_disk(tmp_path):
    program, cache = tmp_path / "program.py", tmp_path / "cache"
    assert run(program, cache, "divide_by_pot", 1, 3) == [500, 125]
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")}
    assert len(files) == 2
    assert run(program, cache, "divide_by_pot", 3, 1) == [125, 500]
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")} == files


def test_another_captured_function_is_another_routine(tmp_path):
    program, cache = tmp_path / "program.py", tmp_path / "cache"
    program.write_text(PROGRAM.format(name="divide_by_pot"))
    time = program.stat()
    assert run(program, cache, "divide_by_pot", 3) == [125]
    program.write_text(PROGRAM.format(name="half_sum"))
    os.utime(program, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert run(program, cache, "half_sum", 3) == [502]
