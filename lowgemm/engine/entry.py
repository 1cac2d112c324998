"""Python's way into compiled code: built-in functions that read addresses out of their arguments.

`enter` goes on into `drivers.single`; `fill` makes the state of a call on several threads.

A 32-cubed product computes for 0.2 us. NumPy takes 0.6 us to tell the address of an array, Numba's dispatcher 1 us for
the arguments of one call, and the wrapper behind the dispatcher 0.5 us; this function takes 0.05 us. It is compiled
by Numba like everything else, but has the C signature of a Python built-in (``METH_FASTCALL``). It checks little: `ready.py` says
who has.

It relies on where CPython keeps what an array is: address, number of dimensions, pointers to shape and strides, base and dtype,
behind the object header (``PyArrayObject_fields`` of NumPy's ``ndarraytypes.h``, the same in all NumPy versions). `usable` verifies
that on a living array; where it does not hold, calls go through `Plan.run`, which asks NumPy for addresses.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import sysconfig
from typing import Any

import numba
import numpy as np
from numba import types

from lowgemm.engine.array_objects import ALIGNED, HEAD, WRITEABLE, alike, apart, data_of, has
from lowgemm.engine.records import plan_at, state_at
from lowgemm.engine.tiles import slot_space
from lowgemm.engine.zero_points import (
    COUNT,
    LHS_AT,
    OUT_AT,
    RHS_AT,
    SUMS_AT,
    Zeros,
    product_at,
    read_zeros,
    zeros_of,
)
from lowgemm.jit.memory import as_address, load_i64, pointer_at
from lowgemm.jit.routine import Routine, call_address, call_for_address, routine

#: Fields of the record of a plan, its first argument; `zero_points.py` describes ZEROS, and `pattern_of` PATTERN (0: compare nothing).
SINGLE, PLAN, PACKED, RELEASE, ZEROS, PATTERN, OUT_BYTES, NONE, INCREF, SAVE, RESTORE, RECORD_SIZE = range(12)
#: Multiply-accumulates from which other Python threads may run meanwhile (about 2 us; letting go of the interpreter
#: and taking it back costs 0.05 us, and another thread that takes it keeps it for 5 ms).
RELEASE_MACS = 1 << 19


@numba.njit(nogil=True)
def _fit(record, zeros, args, space):
    """Whether arguments 1 to 7 of `enter` and `fill` are such as may be computed with; the zero points are read."""
    if not alike(pointer_at(record, PATTERN), args):
        return False
    out, out_bytes = pointer_at(args, 4), load_i64(record, OUT_BYTES)
    if not has(out, ALIGNED | WRITEABLE) or not apart(out, out_bytes, pointer_at(args, 1), 1):
        return False
    if load_i64(record, PACKED) == 0 and not apart(out, out_bytes, pointer_at(args, 2), 1):
        return False
    return read_zeros(zeros, pointer_at(args, 6), pointer_at(args, 7), space)


@numba.njit(nogil=True)
def given(record, args, field):
    """Argument number `field`, or what the record holds there if that is negative; as a new reference."""
    given = pointer_at(args, field) if field >= 0 else pointer_at(record, NONE)
    call_address(load_i64(record, INCREF), (as_address(given),))
    return given


BUILT_IN = types.voidptr(types.voidptr, types.voidptr, types.intp)


@routine(BUILT_IN)
def _enter(_self, args, _count):
    record = pointer_at(pointer_at(args, 0), HEAD)
    zeros, space = pointer_at(record, ZEROS), pointer_at(pointer_at(args, 5), HEAD)
    if not _fit(record, zeros, args, space):
        return given(record, args, -1)
    lhs, rhs, out, at = (
        data_of(pointer_at(args, 1)),
        data_of(pointer_at(args, 2)),
        data_of(pointer_at(args, 4)),
        as_address(space),
    )
    sums = data_of(pointer_at(args, 3)) if load_i64(record, PACKED) != 0 else 0
    single, plan, release = load_i64(record, SINGLE), load_i64(record, PLAN), load_i64(record, RELEASE)
    state = 0
    if release != 0:
        state = call_for_address(load_i64(record, SAVE), ())
    for i in range(load_i64(zeros, COUNT)):
        product = product_at(zeros, i)
        lhs_zero, rhs_zero, lhs_zeros, rhs_zeros = zeros_of(zeros, space, i)
        call_address(
            single,
            (
                plan, lhs + load_i64(product, LHS_AT), rhs + load_i64(product, RHS_AT), sums + load_i64(product, SUMS_AT),
                out + load_i64(product, OUT_AT), at, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros,
            ),
        )  # fmt: skip
    if release != 0:
        call_address(load_i64(record, RESTORE), (state,))
    return given(record, args, 4)


@routine(BUILT_IN)
def _fill(_self, args, _count):
    record = pointer_at(pointer_at(args, 0), HEAD)
    zeros, space = pointer_at(record, ZEROS), pointer_at(pointer_at(args, 5), HEAD)
    if not _fit(record, zeros, args, space):
        return given(record, args, -1)
    p, s = plan_at(pointer_at(record, PLAN)), state_at(pointer_at(pointer_at(args, 8), HEAD))
    s.lhs = data_of(pointer_at(args, 1))
    s.rhs = data_of(pointer_at(args, 2))
    s.out = data_of(pointer_at(args, 4))
    s.rhs_sums = data_of(pointer_at(args, 3)) if load_i64(record, PACKED) != 0 else 0
    s.for_slots = as_address(space)
    s.for_workers = slot_space(p, s, p.slots)
    s.for_parts = s.for_workers + p.workers * p.worker_bytes
    lhs_zero, rhs_zero, lhs_zeros, rhs_zeros = zeros_of(zeros, space, 0)
    s.lhs_zero = lhs_zero - p.lhs_shift
    s.rhs_zero = rhs_zero - p.rhs_shift
    s.lhs_zeros = lhs_zeros
    s.rhs_zeros = rhs_zeros
    return given(record, args, 8)


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)
    ]  # fmt: skip


_METH_FASTCALL = 0x80
_kept: list[Any] = []


def usable() -> bool:
    """Whether this interpreter keeps arrays as CPython with a global lock does."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    if object.__basicsize__ != 8 * HEAD or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    a = np.arange(6)[::2].reshape(3, 1)
    words = (ctypes.c_int64 * 9).from_address(id(a))
    sizes = [(ctypes.c_int64 * 2).from_address(words[i]) for i in (4, 5)]
    found = words[1], words[2], words[3] & 0xFFFFFFFF, *map(tuple, sizes), words[7], words[8] & 0xFFFFFFFF
    return found == (id(np.ndarray), a.ctypes.data, 2, a.shape, a.strides, id(a.dtype), a.flags.num)


def built_in(name: bytes, compiled: Routine) -> Any:
    """A compiled function as a Python function; None where arrays are not laid out as expected."""
    if not usable():
        return None
    definition = _MethodDef(name, compiled.address, _METH_FASTCALL, None)
    _kept.extend((compiled, definition))
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return new(ctypes.addressof(definition), None, None)


@functools.cache
def enter() -> Any:
    """``enter(record, lhs, rhs, sums, out, space, lhs_zero, rhs_zero) -> out``, or None where it is not `usable`.

    All are arrays but the zero points, which are what the record says; `rhs` and `sums` of a packed rhs are its panels and
    column sums, and `sums` is not looked at otherwise. It is for callers that know all that to fit. What it looks at itself are
    the operands, if the record has a pattern of them, whether `out` can be written and lies apart from them, and the values of
    the zero points: if those do not fit, it returns None and has written nothing but scratch memory.
    """
    return built_in(b"enter", _enter)


@functools.cache
def fill() -> Any:
    """``fill(record, lhs, rhs, sums, out, space, lhs_zero, rhs_zero, state) -> state``, likewise; `state` holds zeros."""
    return built_in(b"fill", _fill)


def pattern_of(*arrays: Any) -> np.ndarray:
    """What `alike` compares with: plain arrays of the shapes and strides of these, and of their dtypes as NumPy makes them.

    An equal dtype may be another object (an array out of a pickle has one), so a no of `alike` is no verdict: the caller looks closer.
    NumPy's own dtypes live for ever, others would have to be kept alive with the pattern.
    """
    numbers = [len(arrays)]
    for a in arrays:
        numbers += [id(np.ndarray), id(np.dtype(a.dtype.str)), len(a.shape), *a.shape, *a.strides]
    return np.array(numbers, dtype=np.int64)


@functools.cache
def functions() -> dict[int, int]:
    """What every record has: Python's None, and addresses of functions of Python."""

    def at(name: str) -> int:
        return int(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0)

    return {
        NONE: id(None),
        INCREF: at("Py_IncRef"),
        SAVE: at("PyEval_SaveThread"),
        RESTORE: at("PyEval_RestoreThread"),
    }


def record_of(
    plan: np.ndarray,
    single: int,
    packed: bool,
    macs: int,
    out_bytes: int,
    zeros: Zeros,
    pattern: np.ndarray | None = None,
) -> np.ndarray:
    """First argument of `enter` for a plan's numbers, zero points and pattern, which must outlive it."""
    record = np.zeros(RECORD_SIZE, dtype=np.int64)
    record[[SINGLE, PLAN, PACKED, RELEASE]] = single, plan.ctypes.data, packed, macs >= RELEASE_MACS
    record[[ZEROS, PATTERN]] = zeros.numbers.ctypes.data, 0 if pattern is None else pattern.ctypes.data
    record[OUT_BYTES] = out_bytes
    for field, address in functions().items():
        record[field] = address
    return record
