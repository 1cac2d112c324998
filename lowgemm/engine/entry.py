"""Python's way into compiled code: built-in functions that read addresses out of their arguments.

`enter` goes on into `drivers.single` or `drivers.several`.

A 32-cubed product computes for 0.2 us. NumPy takes 0.6 us to tell the address of an array, Numba's dispatcher
1 us for the arguments of one call, and the wrapper behind the dispatcher 0.5 us; this function takes 0.05 us.
It is compiled by Numba like everything else, but has the C signature of a Python built-in
(``METH_FASTCALL``). It checks little: `ready.py` says who has.

It relies on where CPython keeps what an array is: address, number of dimensions, pointers to shape and
strides, base and dtype, behind the object header (``PyArrayObject_fields`` of NumPy's ``ndarraytypes.h``, the
same in all NumPy versions). `usable` verifies that on a living array; where it does not hold, calls go
through `Plan.run`, which asks NumPy for addresses.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types

from lowgemm.engine.array_objects import (
    ALIGNED,
    DATA,
    DTYPE,
    FLAGS,
    HEAD,
    NDIM,
    SHAPE,
    STRIDES,
    TYPE,
    WRITEABLE,
    alike,
    apart,
    data_of,
    has,
)
from lowgemm.engine.records import record_type
from lowgemm.engine.zero_points import Zeros, item_at, read_zeros, zeros_at, zeros_of
from lowgemm.jit.memory import as_address, load_i64, pointer_at, pointer_field, record_at
from lowgemm.jit.routine import Routine, call_address, call_for_address, inner, routine

#: What every built-in function is told of a kind of call, in its first argument. The unsigned ones are
#: pointers that it follows.
EVERY_CALL = record_type(
    "release",  # whether other Python threads may run meanwhile
    "out_bytes",  # of an element of the result
    ("none", np.uint64),  # Python's None
    "incref save_thread restore_thread",  # addresses of functions of Python
)
#: The same and what only products need.
PRODUCT_CALL = record_type(
    *EVERY_CALL.descr,
    "way",  # address of `drivers.single` or `drivers.several`
    ("plan", np.uint64),
    "packed",  # whether the rhs is packed
    ("zeros", np.uint64),  # a record of `zero_points.ZEROS`
    ("pattern", np.uint64),  # what `pattern_of` says of the operands; 0: they are not compared
    ("watches", np.uint64),  # what `watch_list` says of the functions of the user's; 0: there are none
)
product_call_at = record_at(PRODUCT_CALL)
#: Numbers of the arguments of `enter`.
_CALL, _LHS, _RHS, _SUMS, _OUT, _SPACE, _LHS_ZERO, _RHS_ZERO = range(8)
#: No argument.
NONE = -1
#: Bytes of an operand's element. No plain 1: for a literal Numba would compile `apart` once more.
_OPERAND_BYTES = np.int64(1)
#: Multiply-accumulates from which other Python threads may run meanwhile (about 2 us; letting go of the
#: interpreter and taking it back costs 0.05 us, and another thread that takes it keeps it for 5 ms).
RELEASE_MACS = 1 << 19


# The built-in functions have the arguments of ``METH_FASTCALL``: `args` is a pointer to an array of pointers
# to Python objects, the first of which is an array that holds a record of `EVERY_CALL` or `PRODUCT_CALL`. The
# others are as `enter` says. Here `call` is that record, `z` the record of its zero points, and
# `space` a pointer to scratch memory.
@inner
def _fit(call, z, args, space):
    """Whether the arguments of `enter` are such as may be computed with; the zero points are read."""
    if not alike(pointer_field(call, "pattern"), args):
        return False
    out, out_bytes = pointer_at(args, _OUT), call.out_bytes
    if not has(out, ALIGNED | WRITEABLE) or not apart(out, out_bytes, pointer_at(args, _LHS), _OPERAND_BYTES):
        return False
    if call.packed == 0 and not apart(out, out_bytes, pointer_at(args, _RHS), _OPERAND_BYTES):
        return False
    return read_zeros(z, pointer_at(args, _LHS_ZERO), pointer_at(args, _RHS_ZERO), space)


@inner
def new_reference(call, args, number):
    """Argument number `number`, or Python's None where that is `NONE`; as a new reference."""
    result = pointer_at(args, number) if number != NONE else pointer_field(call, "none")
    call_address(call.incref, (as_address(result),))
    return result


@inner
def _one_failed(watches):
    """Whether a function of the user's failed; `watches` is what `watch_list` gives, or a null pointer."""
    failures = 0
    if as_address(watches) != 0:
        for i in range(load_i64(watches, 0)):
            failures += load_i64(pointer_at(watches, 1 + i), 0)
    return failures != 0


BUILT_IN = types.voidptr(types.voidptr, types.voidptr, types.intp)


@routine(BUILT_IN)
def _enter(_self, args, _count):
    """What `enter` gives."""
    call = product_call_at(pointer_at(pointer_at(args, _CALL), DATA))
    z, space = zeros_at(pointer_field(call, "zeros")), pointer_at(pointer_at(args, _SPACE), DATA)
    if not _fit(call, z, args, space):
        return new_reference(call, args, NONE)
    lhs, rhs, out = (
        data_of(pointer_at(args, _LHS)),
        data_of(pointer_at(args, _RHS)),
        data_of(pointer_at(args, _OUT)),
    )
    sums = data_of(pointer_at(args, _SUMS)) if call.packed != 0 else 0
    way, plan, release, scratch = call.way, call.plan, call.release, as_address(space)
    state = 0
    if release != 0:
        state = call_for_address(call.save_thread, ())
    for i in range(z.items):
        item = item_at(z, i)
        lhs_zero, rhs_zero, lhs_zeros, rhs_zeros = zeros_of(z, space, i)
        call_address(
            way,
            (
                plan, lhs + item.lhs_at, rhs + item.rhs_at, sums + item.sums_at, out + item.out_at, scratch,
                lhs_zero, rhs_zero, lhs_zeros, rhs_zeros,
            ),
        )  # fmt: skip
    if release != 0:
        call_address(call.restore_thread, (state,))
    return new_reference(call, args, _CALL if _one_failed(pointer_field(call, "watches")) else _OUT)


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p)
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
    words = (ctypes.c_int64 * (FLAGS + 1)).from_address(id(a))
    sizes = [(ctypes.c_int64 * 2).from_address(words[i]) for i in (SHAPE, STRIDES)]
    low_half = 0xFFFFFFFF
    found = (
        words[TYPE],
        words[DATA],
        words[NDIM] & low_half,
        *map(tuple, sizes),
        words[DTYPE],
        words[FLAGS] & low_half,
    )
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
    """``enter(call, lhs, rhs, sums, out, space, lhs_zero, rhs_zero) -> out``, or None where it is not
    `usable`.

    All are arrays but the zero points, which are what the record in `call` says; `rhs` and `sums` of a packed
    rhs are its panels and column sums, and `sums` is not looked at otherwise. It is for callers that know all
    that to fit. What it looks at itself are the operands, if the record has a pattern of them, whether `out`
    can be written and lies apart from them, and the values of the zero points: if those do not fit, it
    returns None and has written nothing but scratch memory. After a product in which a function of the user's
    failed, it returns `call`.
    """
    return built_in(b"enter", _enter)


def is_made() -> bool:
    """Whether `enter` was asked for before, so that asking again takes no time."""
    return enter.cache_info().currsize > 0


def pattern_of(*arrays: Any) -> np.ndarray:
    """What `alike` compares with: plain arrays of the shapes and strides of these, and of their dtypes as
    NumPy makes them.

    An equal dtype may be another object (an array out of a pickle has one), so a no of `alike` is no verdict:
    the caller looks closer. NumPy's own dtypes live for ever, others would have to be kept alive with the
    pattern.
    """
    numbers = [len(arrays)]
    for a in arrays:
        numbers += [id(np.ndarray), id(np.dtype(a.dtype.str)), len(a.shape), *a.shape, *a.strides]
    return np.array(numbers, dtype=np.int64)


def watch_list(counters: Sequence[int]) -> np.ndarray:
    """What `enter` looks at after a product: where the failures of each stage are counted."""
    return np.array([len(counters), *counters], dtype=np.int64)


@functools.cache
def every_call() -> dict[str, int]:
    """What the records of all kinds of call have in common: Python's None, and addresses of functions of
    Python.
    """

    def address_of(name: str) -> int:
        return int(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0)

    return {
        "none": id(None),
        "incref": address_of("Py_IncRef"),
        "save_thread": address_of("PyEval_SaveThread"),
        "restore_thread": address_of("PyEval_RestoreThread"),
    }


def filled(dtype: np.dtype, **fields: int) -> np.ndarray:
    """A record of a kind of call, as an array of one element; `every_call` is filled in."""
    record = np.zeros(1, dtype=dtype)
    for name, value in {**every_call(), **fields}.items():
        record[name] = value
    return record


def product_call(
    plan: np.ndarray,
    way: int,
    packed: bool,
    release: bool,
    out_bytes: int,
    zeros: Zeros,
    pattern: np.ndarray | None = None,
    watches: np.ndarray | None = None,
) -> np.ndarray:
    """First argument of `enter` for a plan's numbers, zero points, pattern and watches; they must outlive it.

    Parameters
    ----------
    plan : ndarray
        The numbers of a plan.
    way : int
        Address of `drivers.single` or `drivers.several`.
    packed : bool
        Whether the rhs is packed.
    release : bool
        Whether other Python threads may run meanwhile.
    out_bytes : int
        Bytes of an element of the result.
    zeros : Zeros
        The zero points.
    pattern : ndarray, optional
        What `pattern_of` says of the operands, if they are still to be compared.
    watches : ndarray, optional
        What `watch_list` says of the functions of the user's, if there are any.
    """
    return filled(
        PRODUCT_CALL,
        way=way,
        plan=plan.ctypes.data,
        packed=packed,
        release=release,
        zeros=zeros.numbers.ctypes.data,
        pattern=0 if pattern is None else pattern.ctypes.data,
        watches=0 if watches is None else watches.ctypes.data,
        out_bytes=out_bytes,
    )
