"""Sub-interpreters: NumPy or Numba refuses to load there, with an ImportError, and the main one goes on."""

from __future__ import annotations

import importlib.util

import pytest

from . import child

NAMES = [n for n in ("_interpreters", "_xxsubinterpreters") if importlib.util.find_spec(n)]

SUB = (
    child.SMALL
    + """
import importlib, sys
interpreters = importlib.import_module(sys.argv[1])
assert (lowgemm.gemm(a, b) == exact).all()
other = interpreters.create()
try:
    found = interpreters.run_string(other, "import lowgemm")  # 3.13: the exception comes back as a value
    said = "" if found is None else found.formatted
except Exception as error:
    said = str(error)
interpreters.destroy(other)
assert (lowgemm.gemm(a, b) == exact).all()
print("said", said)
"""
)


@pytest.mark.skipif(not NAMES, reason="this Python has no module for sub-interpreters")
def test_import_in_a_sub_interpreter_is_refused():
    out = child.run(f"import sys; sys.argv = ['', {NAMES[0]!r}]\n" + SUB)
    assert "ImportError" in out
