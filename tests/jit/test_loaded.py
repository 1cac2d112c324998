"""Code from disk holds no LLVM code until a caller that is compiled later links it, and is right then too.

Each step is a process of its own: what a process has compiled it never loads.
"""

from __future__ import annotations

import os
import pathlib
import runpy
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba.core import codegen, compiler
from patience import PATIENCE

from lowgemm.jit import loaded

if numba.config.DISABLE_JIT:
    pytest.skip("compiled code only", allow_module_level=True)

ROOT = pathlib.Path(__file__).parents[2]

#: The functions that all processes share, in a file, since their code depends on where it is.
FUNCTIONS = """
import numpy as np
from lowgemm.jit import disk_cache
from lowgemm.jit.memory import store_64
from lowgemm.jit.routine import routine

@disk_cache.njit()
def callee(x):
    if x < 0:
        raise ValueError("x: expected no negative number")
    return 3 * x

@disk_cache.njit()
def caller(x):
    return callee(x) + 1

@disk_cache.vectorize
def half(x):
    return x / 2

@routine("pn")
def put(to, number):
    store_64(to, 0, number)
"""

#: Counts what is compiled and what LLVM parses.
BEGIN = """
import numba, numpy as np
from llvmlite import binding
from lowgemm.jit import disk_cache
made, parsed = [], []
load, parse = disk_cache.CheckedFile.load, binding.parse_bitcode
def spy(self, key):
    data = load(self, key)
    made.append(data is None)
    return data
disk_cache.CheckedFile.load = spy
def counted(*args):
    parsed.append(1)
    return parse(*args)
binding.parse_bitcode = counted
import functions as f

def of(function):
    (overload,) = function.overloads.values()
    return overload.library
def number(function):
    to = np.zeros(1, np.int64)
    function.ctypes(to.ctypes.data, 9)
    return to[0]
def refused(function):
    try:
        function(-1)
    except ValueError as error:
        return "negative" in str(error)
"""
#: Compiles all but the caller.
CALLEE = "assert f.callee(5) == 15 and number(f.put) == 9\n"
#: What is there after loading.
BARE = """
from lowgemm.jit.loaded import LoadedLibrary
for library in (of(f.callee), f.put.compiled._library):
    assert type(library) is LoadedLibrary and library._shared_module is None, library
    assert not list(library.get_defined_functions()) and library._compiled_object is None
assert not any(made) and not parsed, (made, parsed)
"""
#: A caller that is compiled now, and one that is never saved.
CALLER = """
assert f.caller(5) == 16 and refused(f.caller)
@numba.njit
def other(x):
    return f.callee(x) + f.callee(x + 1)
assert other(5) == 33 and other(1) == 9 and refused(other)
assert f.callee(6) == 18 and refused(f.callee)
"""


@pytest.fixture
def run(tmp_path):
    """Run steps in a process of their own; the cache and the functions are the same for all of a test."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])

    def run(*steps):
        done = subprocess.run(
            [sys.executable, "-c", "".join(steps)], capture_output=True, text=True, timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_caller_links_what_was_loaded(run):
    """In one process callee and routine are compiled, in the next the caller, in the third nothing."""
    run(BEGIN, CALLEE, "assert made == [True, True]")
    run(BEGIN, CALLEE, BARE, CALLER, "assert made.count(True) == 1 and parsed, (made, parsed)")
    run(BEGIN, CALLEE, "assert f.caller(5) == 16 and refused(f.caller)", BARE, "assert len(made) == 3")


def test_the_llvm_code_is_not_kept_after_linking(run):
    run(BEGIN, CALLEE)
    run(BEGIN, CALLEE, CALLER, "assert len(parsed) == 2 and of(f.callee)._shared_module is None, parsed")


def test_a_ufunc_links_what_was_loaded(run):
    """Numba compiles the loop over arrays anew in each process, around the function that was loaded."""
    step = "assert f.half(np.array([3.0, 5.0])).tolist() == [1.5, 2.5]\n"
    run(BEGIN, step, "assert made == [True]")
    run(BEGIN, step, "assert made == [False] and parsed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_caller_is_compiled_in_a_forked_process(run):
    """And in the parent afterwards."""
    run(BEGIN, CALLEE)
    wait = "\nassert child == 0 or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    run(BEGIN, CALLEE, BARE, "import os\nchild = os.fork()", wait, CALLER)


def test_it_is_called_when_its_bytes_are_gone(run):
    """Machine code belongs to LLVM's engine: neither Python's objects nor the file hold it."""
    run(BEGIN, CALLEE)
    drop = "import gc, pathlib, os\nof(f.callee)._llvm = b''\ngc.collect()\n"
    files = "[p.unlink() for p in pathlib.Path(os.environ['NUMBA_CACHE_DIR']).rglob('*.nbc')]\n"
    run(BEGIN, CALLEE, drop, files, "assert f.callee(7) == 21 and refused(f.callee) and number(f.put) == 9")


# ---- another Numba -----------------------------------------------------------------------------------------

#: A Numba without one of the parts that are needed.
USUAL = "import sys; sys.modules['lowgemm.jit.loaded'] = None\n"


def test_the_usual_way_saves_and_loads_too(run):
    """Its files are read where the parts are there, and the others' are compiled again where they are not."""
    run(USUAL, BEGIN, CALLEE, "assert disk_cache.loaded is None and made == [True, True]")
    run(USUAL, BEGIN, CALLEE, "assert made == [False, False] and parsed\n", CALLER)
    run(BEGIN, CALLEE, "assert disk_cache.loaded and made == [False, False] and parsed\n", CALLER)


def test_the_usual_way_compiles_again_what_it_cannot_read(run):
    run(BEGIN, CALLEE)
    run(USUAL, BEGIN, CALLEE, CALLER)
    run(USUAL, BEGIN, CALLEE, CALLER, "assert made[:2] == [False, False]")


def test_a_numba_that_serializes_otherwise(run):
    """What it saves is left as it is."""
    strange = """
from numba.core.codegen import CPUCodeLibrary
usual = CPUCodeLibrary.serialize_using_object_code
CPUCodeLibrary.serialize_using_object_code = lambda self: (usual(self)[0], "bitcode", usual(self)[2][1])
"""
    run(strange, BEGIN, CALLEE, "assert f.callee.stats.cache_misses and made == [True, True]")
    run(BEGIN, CALLEE, "assert not any(made) and type(of(f.callee)).__name__ == 'JITCodeLibrary'")


@pytest.mark.parametrize(
    ("where", "name"),
    [(codegen.JitEngine, "_load_defined_symbols"), (codegen.CPUCodeLibrary, "_set_compiled_object"),
     (compiler.CompileResult, "_rebuild")],
)  # fmt: skip
def test_what_is_missing_is_said_at_import(where, name, monkeypatch):
    """By an ImportError, whatever base class has it."""
    for kind in where.__mro__:
        if name in vars(kind):
            monkeypatch.delattr(kind, name)
    with pytest.raises(ImportError, match=f"this Numba has no {where.__name__}.{name}"):
        runpy.run_path(loaded.__file__)


def test_symbols_of_a_library_are_saved():
    """Those that Numba would find in its LLVM code, and no others; the LLVM code comes back whole."""

    @numba.njit(cache=False)
    def function(x):
        return np.sqrt(x)

    compiled = numba.njit(cache=False)(function.py_func)
    compiled._cache = type("Kept", (), {
        "load_overload": lambda *a: None, "save_overload": lambda self, sig, data: kept.append(data),
        "_index_key": None,
    })()  # fmt: skip
    kept = []
    assert compiled(4.0) == 2.0
    saved = loaded.saved(kept[0].library)
    assert kept[0].fndesc.llvm_cpython_wrapper_name in saved.symbols
    assert kept[0].fndesc.llvm_func_name in saved.symbols
