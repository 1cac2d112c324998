"""Zero points as compiled code finds them in a call: Python's integers, or arrays of integers of any type and
stride.

A call brings them in many forms: one number, one for each row or column, one for each row or column of each
matrix of a stack. What forms a kind of call has is known before (`Zeros`). `read_zeros` takes their values,
refuses what is no int32, and leaves plain int32 values in scratch memory: one for each row and column where
the plan is bilinear, else a single one.

The values of all matrices are read before anything is computed. So zero points may lie in the memory of the
result, and a value that does not fit leaves the result untouched.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from lowgemm.checks.values import INT32_MAX, INT32_MIN
from lowgemm.engine.array_objects import DATA
from lowgemm.engine.batch import Batch, offsets
from lowgemm.engine.records import ITEM_LHS_AT, ITEM_OUT_AT, ITEM_RHS, RHS_AT, RHS_SUMS_AT, record_type
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import (
    as_address,
    load_i32,
    load_i64,
    load_s8,
    load_s16,
    load_u8,
    load_u16,
    load_u32,
    offset,
    pointer_at,
    record_at,
    record_behind,
    store_32,
)
from lowgemm.jit.routine import call_for_address, inner

#: One operand's zero points: how they are read (`NUMBER` and so on), bytes from one value to the next, values
#: of a batch item, what to subtract, and byte offset of the int32 values in scratch memory.
SIDE = np.dtype([(name, np.int64) for name in ("kind", "stride", "count", "shift", "scratch_at")])
#: The zero points of a kind of call, as compiled code reads them.
ZEROS = record_type(
    "bilinear",  # whether the plan wants vectors
    "items",  # batch items that have zero points of their own: 1, or all
    "as_index error_occurred clear_error",  # addresses of functions of Python
    ("sides", SIDE, (2,)),  # of the lhs and of the rhs
)
#: Behind it, for each of the items: byte offsets of its operands, column sums, result, and of both zero
#: points' first values.
ITEM = record_type("lhs_at rhs_at sums_at out_at", ("zeros_at", np.int64, (2,)))
LHS, RHS = range(2)
zeros_at, item_at = record_at(ZEROS), record_behind(ITEM)
#: How a zero point is read: an integer of Python or of NumPy, or elements of an array.
NUMBER, U8, S8, U16, S16, U32, S32, U64, S64 = range(9)
_ARRAYS = {
    ("u", 1): U8, ("i", 1): S8, ("u", 2): U16, ("i", 2): S16, ("u", 4): U32, ("i", 4): S32, ("u", 8): U64,
    ("i", 8): S64,
}  # fmt: skip
_NUMBERS = {int, *(np.dtype(code).type for code in "bBhHiIlLqQ")}


def zero_key(value: Any) -> Any:
    """All of a zero point's form that matters: an array's memory layout, or the type of anything else."""
    return (value.shape, value.strides, value.dtype) if type(value) is np.ndarray else type(value)


def one_for_all(zero: np.ndarray, shape: Any, axis: int) -> Any:
    """The one value of a vector of zero points, one along that axis of an operand's shape, that are equal and
    fit; else the vector.
    """
    if (
        zero.ndim != 1
        or len(shape) < 2
        or zero.size != shape[axis]
        or not zero.size
        or zero.dtype.kind not in "iu"
    ):
        return zero
    first = zero.item(0)
    # most vectors that differ are known after two looks
    if first != zero.item(zero.size - 1) or first != zero.item(zero.size // 2) or (zero != first).any():
        return zero
    return first


def kind_of(value: Any) -> int | None:
    """How compiled code reads a zero point that was found to be right; None: it does not."""
    if type(value) in _NUMBERS:
        return NUMBER
    if type(value) is not np.ndarray or not value.dtype.isnative:
        return None
    if any(stride % value.itemsize for stride in value.strides):
        return None
    return _ARRAYS.get((value.dtype.kind, value.itemsize))


# ---- compiled ---------------------------------------------------------------------------------------------
# `z` is a record of `ZEROS`, `space` a pointer to scratch memory; `value`, `lhs_zero` and `rhs_zero` are
# pointers to Python objects.
@inner
def _element(kind, at):
    """The element of kind `kind` at a pointer, as int64; an unsigned one that an int64 cannot hold comes out
    negative.
    """
    if kind == S32:
        return load_i32(at, 0)
    if kind == U8:
        return load_u8(at, 0)
    if kind == S8:
        return load_s8(at, 0)
    if kind == U16:
        return load_u16(at, 0)
    if kind == S16:
        return load_s16(at, 0)
    if kind == U32:
        return load_u32(at, 0)
    return load_i64(at, 0)


@inner
def _number(z, value):
    """An integer's value, given as a Python object; far too small where it is none or out of an int64's
    range.
    """
    number = call_for_address(z.as_index, (as_address(value), 0))
    if number == -1 and call_for_address(z.error_occurred, ()) != 0:
        call_for_address(z.clear_error, ())
        return -(1 << 62)
    return number


@inner
def _read_side(z, side, value, space):
    """Values of one operand's zero points (`side` is LHS or RHS), into scratch memory; whether they all are
    int32.
    """
    own = z.sides[side]
    kind, stride, count, shift = own.kind, own.stride, own.count, own.shift
    to = offset(space, own.scratch_at)
    if kind == NUMBER:
        number = _number(z, value)
        for i in range(z.items * count):
            store_32(to, i, number - shift)
        return INT32_MIN <= number <= INT32_MAX
    first = pointer_at(value, DATA)
    bytes_of_one = 1 << ((kind - 1) >> 1)
    if as_address(first) & (bytes_of_one - 1) != 0:
        return False
    low, high = INT32_MAX, INT32_MIN
    for item in range(z.items):
        source = offset(first, item_at(z, item).zeros_at[side])
        target = offset(to, 4 * item * count)
        for i in range(count):
            number = _element(kind, offset(source, i * stride))
            low, high = min(low, number), max(high, number)
            store_32(target, i, number - shift)
    return low >= (0 if kind == U64 else INT32_MIN) and high <= INT32_MAX


@inner
def read_zeros(z, lhs_zero, rhs_zero, space):
    """Read both zero points, given as Python objects; whether all values are int32.

    It needs the interpreter.
    """
    fits = True
    for side in range(2):  # a loop: with constants in two calls Numba would compile the function twice
        fits = _read_side(z, side, lhs_zero if side == LHS else rhs_zero, space) and fits
    return fits


@inner
def zeros_of(z, space, i):
    """Zero points of batch item `i`, after `read_zeros`: two numbers and two addresses, of which the plan
    needs one kind.
    """
    lhs, rhs = z.sides[LHS], z.sides[RHS]
    left = offset(space, lhs.scratch_at + 4 * i * lhs.count)
    right = offset(space, rhs.scratch_at + 4 * i * rhs.count)
    if z.bilinear != 0:
        return 0, 0, as_address(left), as_address(right)
    return load_i32(left, 0), load_i32(right, 0), 0, 0


# ---- described --------------------------------------------------------------------------------------------
@functools.cache
def _functions() -> tuple[int, int, int]:
    names = "PyNumber_AsSsize_t", "PyErr_Occurred", "PyErr_Clear"
    found = (ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in names)
    return tuple(int(address or 0) for address in found)  # type: ignore[return-value]


class Zeros(NotCopied):
    """The zero points of one kind of call, described for compiled code.

    Parameters
    ----------
    sizes : pair of int
        Rows and columns of the result.
    shifts : pair of int
        What packing adds to the operands' zero points; see `packing.element_map`.
    bilinear : bool
        Whether the plan wants one value for each row and column.
    given : pair
        Zero points as the caller gave them, for each of which `kind_of` knows a kind.
    checked : pair of (int or ndarray)
        What `checks.arguments.as_zero_points` made of them: a number, a vector, or values of each matrix of a
        stack.
    batch : Batch
        The stack, if its matrices have zero points of their own; else the default.
    at : int
        Where scratch memory is free.

    Attributes
    ----------
    numbers : ndarray of int64
        What `read_zeros` reads.
    end : int
        Where scratch memory is free behind the values.
    """

    instead = "copy the zero points"

    def __init__(
        self,
        sizes: tuple[int, int],
        shifts: tuple[int, int],
        bilinear: bool,
        given: tuple[Any, Any],
        checked: tuple[Any, Any],
        batch: Batch,
        at: int,
    ) -> None:
        items, rhs = batch.tables()
        rhs = rhs[items[:, ITEM_RHS]]
        columns = [items[:, ITEM_LHS_AT], rhs[:, RHS_AT], rhs[:, RHS_SUMS_AT], items[:, ITEM_OUT_AT]]
        sides = []
        for size, shift, value, as_checked in zip(sizes, shifts, given, checked, strict=True):
            stride, starts = _stride_and_starts(value, as_checked, size, batch.shape)
            count = size if bilinear else 1
            sides.append((kind_of(value) or NUMBER, stride, count, shift if bilinear else 0, at))
            columns.append(starts)
            at += 4 * count * batch.count
        description = np.array([(bilinear, batch.count, *_functions(), sides)], dtype=ZEROS)
        #: A record of `ZEROS` and those of the items behind it.
        self.numbers = np.concatenate([description.view(np.int64), np.stack(columns, axis=1).ravel()])
        self.end = at


def _stride_and_starts(value: Any, checked: Any, size: int, stack: tuple[int, ...]) -> tuple[int, np.ndarray]:
    """Bytes from one value to the next, and byte offset of the first for each matrix of a stack."""
    count = int(np.prod(stack, dtype=np.int64))
    if np.ndim(checked) == 0 or type(value) is not np.ndarray:
        return 0, np.zeros(count, dtype=np.int64)
    if np.ndim(checked) == 1:  # the same for all: whatever its shape, one axis has all values
        return value.strides[value.shape.index(size)], np.zeros(count, dtype=np.int64)
    lead, own = slice(None, -2), value.shape[-2:]
    stride = value.strides[own.index(size) - 2] if size > 1 and size in own else 0
    return stride, offsets(stack, value.shape[lead], value.strides[lead])
