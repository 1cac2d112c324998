"""Parts of routines: they do what they would do as functions of their own, and are never machine code of
their own.
"""

from __future__ import annotations

import gc

import numba
import numpy as np
import pytest
from numba import types

from lowgemm.in_numba.linked import PLAN_ADDRESS, linked
from lowgemm.jit import disk_cache
from lowgemm.jit.lowering import PartLibrary, RoutineLibrary
from lowgemm.jit.memory import load_i64, store_64
from lowgemm.jit.part import inner
from lowgemm.jit.routine import Routine, signature

if numba.config.DISABLE_JIT:
    pytest.skip("compiled code only", allow_module_level=True)


@inner
def twice(x):
    return 2 * x


@inner
def quotient(x, y):
    if y == 0:
        raise ValueError("y: expected another number than 0")
    return twice(x) // y


@inner
def rides(x):
    return x + linked(PLAN_ADDRESS)


def store_quotient(at, x, y):
    """What a routine does with parts that call parts."""
    store_64(at, 0, quotient(x, y) + load_i64(at, 0))


def libraries_of(function) -> list:
    return [compiled.library for compiled in function.overloads.values()]


def test_a_routine_of_parts():
    made = Routine(store_quotient, signature("pnn"), on_disk=False)
    numbers = np.array([100], np.int64)
    made.ctypes(numbers.ctypes.data, 21, 4)
    assert numbers.tolist() == [110]
    assert type(made.compiled._library) is RoutineLibrary


def test_parts_of_a_users_function():
    """Exceptions come through, and every type is a function of its own."""

    @numba.njit
    def caller(x, y):
        return quotient(x, y)

    assert caller(21, 4) == 10 and caller(21.0, 4.0) == 10.0
    with pytest.raises(ValueError, match="y: expected another number than 0"):
        caller(1, 0)
    types_of = {s[0] for s in quotient.signatures}
    assert {types.int64, types.float64} <= types_of


def test_parts_have_no_machine_code():
    libraries = libraries_of(twice) + libraries_of(quotient)
    assert libraries and all(type(library) is PartLibrary for library in libraries)
    for library in libraries:
        with pytest.raises(RuntimeError, match="no compiled object yet"):
            library._get_compiled_object()


def test_a_part_with_python_objects_is_refused():
    """They ride in a function's environment, which a part has none of."""

    @numba.njit
    def caller(x):
        return rides(x)

    with pytest.raises(Exception, match="a part of a routine has no Python objects"):
        caller(1)


@pytest.mark.parametrize("collects", [True, False])
def test_collector_of_garbage_rests_while_something_is_compiled(collects):
    """And is then as it was, whatever happened."""
    seen = []
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(KeyError), disk_cache._compilation():
            seen.append(gc.isenabled())
            raise KeyError
        assert seen == [False] and gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
