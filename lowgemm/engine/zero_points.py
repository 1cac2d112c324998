"""Zero points as compiled code finds them in a call: Python's integers, or arrays of integers of any type and stride.

A call brings them in many forms: one number, one for each row or column, one for each row or column of each matrix of a stack.
What forms a kind of call has is known before (`Zeros`). `read_zeros` takes their values, refuses what is no int32, and leaves plain
int32 values in scratch memory: one for each row and column where the plan is bilinear, else a single one.

The values of all matrices are read before anything is computed. So zero points may lie in the memory of the result, and a value that
does not fit leaves the result untouched.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numba
import numpy as np

from lowgemm.checks.values import INT32_MAX, INT32_MIN
from lowgemm.engine.array_objects import DATA
from lowgemm.engine.batch import Batch, offsets
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
    store_32,
)
from lowgemm.jit.routine import call_for_address

#: Fields of the description: whether there are vectors, how many products, functions of Python; then one side after the other.
BILINEAR, COUNT, AS_INDEX, OCCURRED, CLEAR, LHS, RHS = 0, 1, 2, 3, 4, 5, 10
#: Fields of a side: how it is read, bytes from one value to the next, values of a product, what to subtract, place in scratch memory.
KIND, STEP, SIZE, SHIFT, AT = range(5)
#: Behind that, for each product: byte offsets of its operands, result and zero points.
PRODUCTS = 15
LHS_AT, RHS_AT, SUMS_AT, OUT_AT, LHS_ZERO_AT, RHS_ZERO_AT, EACH = range(7)
#: How a zero point is read: an integer of Python or of NumPy, or elements of an array.
NUMBER, U8, S8, U16, S16, U32, S32, U64, S64 = range(9)
_ARRAYS = {
    ("u", 1): U8, ("i", 1): S8, ("u", 2): U16, ("i", 2): S16, ("u", 4): U32, ("i", 4): S32, ("u", 8): U64, ("i", 8): S64,
}  # fmt: skip
_NUMBERS = {int, *(np.dtype(code).type for code in "bBhHiIlLqQ")}


def zero_key(value: Any) -> Any:
    """All of a zero point's form that matters: an array's memory layout, or the type of anything else."""
    return (value.shape, value.strides, value.dtype) if type(value) is np.ndarray else type(value)


def kind_of(value: Any) -> int | None:
    """How compiled code reads a zero point that was found to be right; None: it does not."""
    if type(value) in _NUMBERS:
        return NUMBER
    if type(value) is not np.ndarray or not value.dtype.isnative:
        return None
    if any(step % value.itemsize for step in value.strides):
        return None
    return _ARRAYS.get((value.dtype.kind, value.itemsize))


# ---- compiled ---------------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def _element(kind, at):
    """The element at a pointer; an unsigned one that an int64 cannot hold comes out negative."""
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


@numba.njit(nogil=True)
def _number(zeros, value):
    """An integer's value; far too small where it is none or out of an int64's range."""
    number = call_for_address(load_i64(zeros, AS_INDEX), (as_address(value), 0))
    if number == -1 and call_for_address(load_i64(zeros, OCCURRED), ()) != 0:
        call_for_address(load_i64(zeros, CLEAR), ())
        return -(1 << 62)
    return number


@numba.njit(nogil=True)
def _read_side(zeros, side, value, at_field, space):
    """Values of one operand's zero points, into scratch memory; whether they all are int32."""
    own = offset(zeros, 8 * side)
    kind, step, size, shift = (
        load_i64(own, KIND),
        load_i64(own, STEP),
        load_i64(own, SIZE),
        load_i64(own, SHIFT),
    )
    to = offset(space, load_i64(own, AT))
    if kind == NUMBER:
        number = _number(zeros, value)
        for i in range(load_i64(zeros, COUNT) * size):
            store_32(to, i, number - shift)
        return INT32_MIN <= number <= INT32_MAX
    first = pointer_at(value, DATA)
    bytes_of_one = 1 << ((kind - 1) >> 1)
    if as_address(first) & (bytes_of_one - 1) != 0:
        return False
    low, high = INT32_MAX, INT32_MIN
    for product in range(load_i64(zeros, COUNT)):
        source = offset(first, load_i64(product_at(zeros, product), at_field))
        line = offset(to, 4 * product * size)
        for i in range(size):
            number = _element(kind, offset(source, i * step))
            low, high = min(low, number), max(high, number)
            store_32(line, i, number - shift)
    return low >= (0 if kind == U64 else INT32_MIN) and high <= INT32_MAX


@numba.njit(nogil=True)
def product_at(zeros, i):
    """Pointer to the byte offsets of product `i`."""
    return offset(zeros, 8 * (PRODUCTS + EACH * i))


@numba.njit(nogil=True)
def read_zeros(zeros, lhs_zero, rhs_zero, space):
    """Read both zero points, given as Python objects; whether all values are int32. It needs the interpreter."""
    fits = _read_side(zeros, LHS, lhs_zero, LHS_ZERO_AT, space)
    return _read_side(zeros, RHS, rhs_zero, RHS_ZERO_AT, space) and fits


@numba.njit(nogil=True)
def zeros_of(zeros, space, i):
    """Zero points of product `i`, after `read_zeros`: two numbers and two addresses, of which the plan needs one kind."""
    lhs, rhs = offset(zeros, 8 * LHS), offset(zeros, 8 * RHS)
    left = offset(space, load_i64(lhs, AT) + 4 * i * load_i64(lhs, SIZE))
    right = offset(space, load_i64(rhs, AT) + 4 * i * load_i64(rhs, SIZE))
    if load_i64(zeros, BILINEAR) != 0:
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
        What `checks.arguments.as_zero_points` made of them: a number, a vector, or values of each matrix of a stack.
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
        count = batch.count
        table, _ = batch.table()
        products = table[: 3 * count].reshape(-1, 3)
        rhs = table[3 * count :].reshape(-1, 2)[products[:, 2]]
        columns = [products[:, 0], rhs[:, 0], rhs[:, 1], products[:, 1]]
        head = [int(bilinear), count, *_functions()]
        for size, shift, value, as_checked in zip(sizes, shifts, given, checked, strict=True):
            step, starts = _steps(value, as_checked, size, batch.shape)
            own = size if bilinear else 1
            head += [kind_of(value) or NUMBER, step, own, shift if bilinear else 0, at]
            columns.append(starts)
            at += 4 * own * count
        self.numbers = np.concatenate([np.array(head, dtype=np.int64), np.stack(columns, axis=1).ravel()])
        self.end = at


def _steps(value: Any, checked: Any, size: int, stack: tuple[int, ...]) -> tuple[int, np.ndarray]:
    """Bytes from one value to the next, and byte offset of the first for each matrix of a stack."""
    count = int(np.prod(stack, dtype=np.int64))
    if np.ndim(checked) == 0 or type(value) is not np.ndarray:
        return 0, np.zeros(count, dtype=np.int64)
    if np.ndim(checked) == 1:  # the same for all: whatever its shape, one axis has all values
        return value.strides[value.shape.index(size)], np.zeros(count, dtype=np.int64)
    lead, own = slice(None, -2), value.shape[-2:]
    step = value.strides[own.index(size) - 2] if size > 1 and size in own else 0
    return step, offsets(stack, value.shape[lead], value.strides[lead])
