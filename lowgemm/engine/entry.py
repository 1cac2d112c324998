"""Python's way into compiled code: built-in functions that read addresses out of their arguments.

`enter` goes on into `drivers.single`; `fill` makes the state of a call on several threads; `alike` compares arrays with
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

from lowgemm.engine.records import plan_at, state_at
from lowgemm.engine.tiles import slot_space
from lowgemm.jit.memory import as_address, load_i32, load_i64, pointer_at, record_at
from lowgemm.jit.routine import Routine, call_address, call_for_address, routine
from lowgemm.jit.stamp import source_stamp

#: What `enter` and `fill` need of a plan, their first argument: addresses but for the flags.
ENTRY = np.dtype(
    [
        ("single", np.int64),  # `drivers.single`
        ("plan", np.int64),
        ("packed", np.int64),  # whether the plan is for a packed rhs
        ("release", np.int64),  # whether to let go of the interpreter meanwhile
        ("as_long", np.int64),  # functions of Python: the value of an int, one more reference to an object,
        ("incref", np.int64),
        ("save", np.int64),  # letting go of the interpreter, and taking it back
        ("restore", np.int64),
    ],
    align=True,
)
entry_at = record_at(ENTRY)
#: Where the plan's address is, in pointers: compiled code reads memory through pointers, not through numbers.
_PLAN = ENTRY.fields["plan"][1] // 8  # type: ignore[index]
#: Pointer-sized words of an object before what an array adds to them (`usable` checks it).
HEAD = 2
#: Multiply-accumulates from which other Python threads may run meanwhile (about 2 us; letting go of the interpreter
#: and taking it back costs 0.05 us, and another thread that takes it keeps it for 5 ms).
RELEASE_MACS = 1 << 19


@numba.njit(nogil=True)
def _data(args, index):
    """Address of the first element of argument `index`, an array."""
    return as_address(pointer_at(pointer_at(args, index), HEAD))


@numba.njit(nogil=True)
def _number(args, index, record):
    """Value of argument `index`, an int."""
    return call_for_address(record.as_long, (as_address(pointer_at(args, index)),))


_BUILT_IN = types.voidptr(types.voidptr, types.voidptr, types.intp)


@routine(_BUILT_IN)
def _enter(_self, args, _count):
    record = entry_at(pointer_at(pointer_at(args, 0), HEAD))
    sums = _data(args, 3) if record.packed else 0
    lhs_zero, rhs_zero = _number(args, 6, record), _number(args, 7, record)
    words = (
        record.plan, _data(args, 1), _data(args, 2), sums, _data(args, 4), _data(args, 5), lhs_zero, rhs_zero, 0, 0,
    )  # fmt: skip
    if record.release:
        state = call_for_address(record.save, ())
        call_address(record.single, words)
        call_address(record.restore, (state,))
    else:
        call_address(record.single, words)
    out = pointer_at(args, 4)
    call_address(record.incref, (as_address(out),))
    return out


@routine(_BUILT_IN)
def _fill(_self, args, _count):
    at = pointer_at(pointer_at(args, 0), HEAD)
    record, p = entry_at(at), plan_at(pointer_at(at, _PLAN))
    state = pointer_at(args, 8)
    s = state_at(pointer_at(state, HEAD))
    s.lhs = _data(args, 1)
    s.rhs = _data(args, 2)
    s.rhs_sums = _data(args, 3) if record.packed else 0
    s.out = _data(args, 4)
    s.for_slots = _data(args, 5)
    s.for_workers = slot_space(p, s, p.slots)
    s.for_parts = s.for_workers + p.workers * p.worker_bytes
    s.lhs_zero = _number(args, 6, record) - p.lhs_shift
    s.rhs_zero = _number(args, 7, record) - p.rhs_shift
    call_address(record.incref, (as_address(state),))
    return state


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
    if object.__basicsize__ != 8 * HEAD or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    a = np.arange(6)[::2].reshape(3, 1)
    words = (ctypes.c_int64 * 8).from_address(id(a))
    sizes = [(ctypes.c_int64 * 2).from_address(words[i]) for i in (4, 5)]
    found = words[1], words[2], words[3] & 0xFFFFFFFF, *map(tuple, sizes), words[7]
    return found == (id(np.ndarray), a.ctypes.data, 2, a.shape, a.strides, id(a.dtype))


def _built_in(name: bytes, compiled: Routine) -> Any:
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

    All are arrays but the zero points, which are ints; `rhs` and `sums` of a packed rhs are its panels and column
    sums, and `sums` is not looked at otherwise. It is for callers that know all that to fit.
    """
    return _built_in(b"enter", _enter)


@functools.cache
def fill() -> Any:
    """``fill(record, lhs, rhs, sums, out, space, lhs_zero, rhs_zero, state) -> state``, likewise; `state` holds zeros."""
    return _built_in(b"fill", _fill)


@functools.cache
def alike() -> Any:
    """``alike(pattern, *arrays) -> bool``: whether they are plain arrays as `pattern_of` describes, in 0.06 us."""
    return _built_in(b"alike", _make_alike(HEAD, source_stamp()))


def pattern_of(*arrays: Any) -> np.ndarray:
    """First argument of `alike`: plain arrays of the shapes and strides of these, and of their dtypes as NumPy makes them.

    An equal dtype may be another object (an array out of a pickle has one), so a no of `alike` is no verdict: the caller looks closer.
    NumPy's own dtypes live for ever, others would have to be kept alive with the pattern.
    """
    numbers = [id(True), id(False), _functions()["incref"], len(arrays)]
    for a in arrays:
        numbers += [id(np.ndarray), id(np.dtype(a.dtype.str)), len(a.shape), *a.shape, *a.strides]
    return np.array(numbers, dtype=np.int64)


@functools.cache
def _functions() -> dict[str, int]:
    def at(name: str) -> int:
        return int(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0)

    return {
        "as_long": at("PyLong_AsSsize_t"),
        "incref": at("Py_IncRef"),
        "save": at("PyEval_SaveThread"),
        "restore": at("PyEval_RestoreThread"),
    }


def entry_record(plan: np.ndarray, single: int, packed: bool, macs: int) -> np.ndarray:
    """First argument of `enter` for the numbers of a plan, which must outlive it."""
    values = {"single": single, "plan": plan.ctypes.data, "packed": packed, "release": macs >= RELEASE_MACS}
    record = np.zeros(1, dtype=ENTRY)
    for name, value in {**values, **_functions()}.items():
        record[name] = value
    return record
