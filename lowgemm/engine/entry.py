"""Python's way into compiled code: built-in functions that read addresses out of their arguments.

`enter` goes on into `drivers.single_routine`; `fill` makes the state of a call on several threads; `alike` compares arrays with
those of a plan.

A 32-cubed product computes for 0.2 us. NumPy takes 0.6 us to tell the address of an array, Numba's dispatcher 1 us for
the arguments of one call, and the wrapper behind the dispatcher 0.5 us; this function takes 0.05 us. It is compiled
by Numba like everything else, but has the C signature of a Python built-in (``METH_FASTCALL``), and it checks nothing:
`calls.PlannedGemm` has.

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

from lowgemm.engine import layout as c
from lowgemm.engine.tiles import slot_space
from lowgemm.jit.memory import as_address, load_i32, load_i64, pointer_at
from lowgemm.jit.routine import call_address, call_for_address, routine
from lowgemm.jit.stamp import source_stamp

#: Fields of the record of a plan, its first argument.
SINGLE, PLAN, PACKED, RELEASE, AS_LONG, INCREF, SAVE, RESTORE = range(8)
#: Multiply-accumulates from which other Python threads may run meanwhile (about 2 us; letting go of the interpreter
#: and taking it back costs 0.05 us, and another thread that takes it keeps it for 5 ms).
RELEASE_MACS = 1 << 19


@numba.njit(nogil=True)
def _product_addresses(args, head, record):
    """Addresses that arguments 1 to 5 of `enter` and `fill` stand for: lhs, rhs, sums, out, scratch memory."""
    lhs = as_address(pointer_at(pointer_at(args, 1), head))
    rhs = as_address(pointer_at(pointer_at(args, 2), head))
    sums = 0
    if load_i64(record, PACKED) != 0:
        sums = as_address(pointer_at(pointer_at(args, 3), head))
    return (
        lhs,
        rhs,
        sums,
        as_address(pointer_at(pointer_at(args, 4), head)),
        as_address(pointer_at(pointer_at(args, 5), head)),
    )


def _make_enter(head: int, stamp: int) -> Any:
    @routine(types.voidptr(types.voidptr, types.voidptr, types.intp))
    def enter(_self, args, _count):
        _ = stamp
        record = pointer_at(pointer_at(args, 0), head)
        lhs, rhs, sums, to, space = _product_addresses(args, head, record)
        out = pointer_at(args, 4)
        lhs_zero = call_for_address(load_i64(record, AS_LONG), (as_address(pointer_at(args, 6)),))
        rhs_zero = call_for_address(load_i64(record, AS_LONG), (as_address(pointer_at(args, 7)),))
        single, plan = load_i64(record, SINGLE), load_i64(record, PLAN)
        if load_i64(record, RELEASE) != 0:
            restore = load_i64(record, RESTORE)
            state = call_for_address(load_i64(record, SAVE), ())
            call_address(single, (plan, lhs, rhs, sums, to, space, lhs_zero, rhs_zero, 0, 0))
            call_address(restore, (state,))
        else:
            call_address(single, (plan, lhs, rhs, sums, to, space, lhs_zero, rhs_zero, 0, 0))
        call_address(load_i64(record, INCREF), (as_address(out),))
        return out

    return enter


def _make_fill(head: int, stamp: int) -> Any:
    @routine(types.voidptr(types.voidptr, types.voidptr, types.intp))
    def fill(_self, args, _count):
        _ = stamp
        record = pointer_at(pointer_at(args, 0), head)
        p = numba.carray(pointer_at(record, PLAN), (c.PLAN_SIZE,), np.int64)
        state = pointer_at(args, 8)
        s = numba.carray(pointer_at(state, head), (c.STATE_SIZE,), np.int64)
        lhs, rhs, sums, to, space = _product_addresses(args, head, record)
        s[c.LHS], s[c.RHS], s[c.RHS_SUMS], s[c.OUT] = lhs, rhs, sums, to
        s[c.FOR_SLOTS] = space
        s[c.FOR_WORKERS] = slot_space(p, s, p[c.SLOTS])
        s[c.FOR_PARTS] = s[c.FOR_WORKERS] + p[c.WORKERS] * p[c.WORKER_BYTES]
        as_long = load_i64(record, AS_LONG)
        s[c.LHS_ZERO] = call_for_address(as_long, (as_address(pointer_at(args, 6)),)) - p[c.LHS_SHIFT]
        s[c.RHS_ZERO] = call_for_address(as_long, (as_address(pointer_at(args, 7)),)) - p[c.RHS_SHIFT]
        call_address(load_i64(record, INCREF), (as_address(state),))
        return state

    return fill


#: Numbers of an array in the pattern that `alike` compares with: type, dtype, dimensions; then shape and strides.
_ALIKE_HEAD = 3
_TRUE, _FALSE, _ALIKE_INCREF, _COUNT, _FIRST = range(5)


def _make_alike(head: int, stamp: int) -> Any:
    @routine(types.voidptr(types.voidptr, types.voidptr, types.intp))
    def alike(_self, args, _count):
        _ = stamp
        pattern = pointer_at(pointer_at(args, 0), head)
        at, result = _FIRST, _TRUE
        for i in range(load_i64(pattern, _COUNT)):
            array = pointer_at(args, 1 + i)
            ndim = load_i64(pattern, at + 2)
            if (
                as_address(pointer_at(array, 1)) != load_i64(pattern, at)
                or as_address(pointer_at(array, head + 5)) != load_i64(pattern, at + 1)
                or load_i32(array, 2 * head + 2) != ndim
            ):
                result = _FALSE
                break
            at += _ALIKE_HEAD
            shape, strides = pointer_at(array, head + 2), pointer_at(array, head + 3)
            for axis in range(ndim):
                if load_i64(shape, axis) != load_i64(pattern, at + axis):
                    result = _FALSE
                if load_i64(strides, axis) != load_i64(pattern, at + ndim + axis):
                    result = _FALSE
            at += 2 * ndim
        answer = pointer_at(pattern, result)
        call_address(load_i64(pattern, _ALIKE_INCREF), (as_address(answer),))
        return answer

    return alike


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
    head = object.__basicsize__
    if head != 16 or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    a = np.arange(6)[::2].reshape(3, 1)
    words = (ctypes.c_int64 * 8).from_address(id(a))
    sizes = [(ctypes.c_int64 * 2).from_address(words[i]) for i in (4, 5)]
    found = words[1], words[2], words[3] & 0xFFFFFFFF, *map(tuple, sizes), words[7]
    return found == (id(np.ndarray), a.ctypes.data, 2, a.shape, a.strides, id(a.dtype))


def _built_in(name: bytes, make: Any) -> Any:
    """A compiled function as a Python function; None where arrays are not laid out as expected."""
    if not usable():
        return None
    compiled = make(object.__basicsize__ // 8, source_stamp())
    definition = _MethodDef(name, compiled.address, _METH_FASTCALL, None)
    _kept.extend((compiled, definition))
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return new(ctypes.addressof(definition), None, None)


@functools.cache
def enter() -> Any:
    """``enter(record, lhs, rhs, sums, out, space, lhs_zero, rhs_zero) -> out``, or None where it is not `usable`.

    All are arrays but the zero points, which are ints; `rhs` and `sums` of a packed rhs are its panels and column
    sums, and `sums` is not looked at otherwise. It is for callers that know all that to fit.
    """
    return _built_in(b"enter", _make_enter)


@functools.cache
def fill() -> Any:
    """``fill(record, lhs, rhs, sums, out, space, lhs_zero, rhs_zero, state) -> state``, likewise; `state` holds zeros."""
    return _built_in(b"fill", _make_fill)


@functools.cache
def alike() -> Any:
    """``alike(pattern, *arrays) -> bool``: whether they are plain arrays as `pattern_of` describes, in 0.06 us."""
    return _built_in(b"alike", _make_alike)


def pattern_of(*arrays: Any) -> np.ndarray:
    """First argument of `alike`: plain arrays of the shapes and strides of these, and of their dtypes as NumPy makes them.

    An equal dtype may be another object (an array out of a pickle has one), so a no of `alike` is no verdict: the caller looks closer.
    NumPy's own dtypes live for ever, others would have to be kept alive with the pattern.
    """
    numbers = [id(True), id(False), _functions()[INCREF], len(arrays)]
    for a in arrays:
        numbers += [id(np.ndarray), id(np.dtype(a.dtype.str)), len(a.shape), *a.shape, *a.strides]
    return np.array(numbers, dtype=np.int64)


@functools.cache
def _functions() -> dict[int, int]:
    def at(name: str) -> int:
        return int(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0)

    return {
        AS_LONG: at("PyLong_AsSsize_t"),
        INCREF: at("Py_IncRef"),
        SAVE: at("PyEval_SaveThread"),
        RESTORE: at("PyEval_RestoreThread"),
    }


def record_of(plan: np.ndarray, single: int, packed: bool, macs: int) -> np.ndarray:
    """First argument of `enter` for a plan's numbers, which must outlive it."""
    record = np.zeros(8, dtype=np.int64)
    record[[SINGLE, PLAN, PACKED, RELEASE]] = single, plan.ctypes.data, packed, macs >= RELEASE_MACS
    for field, address in _functions().items():
        record[field] = address
    return record
