"""NumPy's arrays as compiled code finds them in the arguments of a call: the fields of
``PyArrayObject_fields``.

`entry.usable` verifies on a living array that they are where this file says. Pointers here are to Python
objects.
"""

from __future__ import annotations

from lowgemm.jit.memory import as_address, load_i32, load_i64, pointer_at
from lowgemm.jit.routine import inner

#: Pointer-sized words of an object before what an array adds to them.
HEAD = 2
#: The last of these: the object's type.
TYPE = 1
#: Words of an array: address of the first element, number of dimensions (32 bits), pointers to shape and
#: strides, dtype, flags (32 bits).
DATA, NDIM, SHAPE, STRIDES, DTYPE, FLAGS = HEAD, HEAD + 1, HEAD + 2, HEAD + 3, HEAD + 5, HEAD + 6
#: NumPy's flags.
ALIGNED, WRITEABLE = 0x100, 0x400
#: A pattern begins with how many arrays it describes. For each of them follow type, dtype and number of
#: dimensions, then shape and strides.
_COUNT, _FIRST = range(2)
_TYPE, _DTYPE, _NDIM, _SHAPE = range(4)


@inner
def data_of(array):
    """Address of an array's first element."""
    return as_address(pointer_at(array, DATA))


@inner
def alike(pattern, args):
    """Whether the arguments from number 1 on are the plain arrays that a pattern describes
    (`entry.pattern_of`); no pattern fits all.
    """
    if as_address(pattern) == 0:
        return True
    at = _FIRST
    for i in range(load_i64(pattern, _COUNT)):
        array = pointer_at(args, 1 + i)
        ndim = load_i64(pattern, at + _NDIM)
        if (
            as_address(pointer_at(array, TYPE)) != load_i64(pattern, at + _TYPE)
            or as_address(pointer_at(array, DTYPE)) != load_i64(pattern, at + _DTYPE)
            or load_i32(array, 2 * NDIM) != ndim
        ):
            return False
        at += _SHAPE
        shape, strides = pointer_at(array, SHAPE), pointer_at(array, STRIDES)
        for axis in range(ndim):
            if load_i64(shape, axis) != load_i64(pattern, at + axis):
                return False
            if load_i64(strides, axis) != load_i64(pattern, at + ndim + axis):
                return False
        at += 2 * ndim
    return True


@inner
def has(array, flags):
    """Whether an array has all of some flags."""
    return load_i32(array, 2 * FLAGS) & flags == flags


@inner
def _reach(array, itemsize):
    """First address of an array's elements, of `itemsize` bytes, and the one after the last."""
    low = data_of(array)
    high = low + itemsize
    shape, strides = pointer_at(array, SHAPE), pointer_at(array, STRIDES)
    for axis in range(load_i32(array, 2 * NDIM)):
        size, step = load_i64(shape, axis), load_i64(strides, axis)
        if size == 0:
            return low, low
        low += min(0, (size - 1) * step)
        high += max(0, (size - 1) * step)
    return low, high


@inner
def apart(a, a_itemsize, b, b_itemsize):
    """Whether no byte of array `a` can be one of array `b`: their reaches are apart, as for
    `numpy.may_share_memory`. `a_itemsize` and `b_itemsize` are the bytes of an element.
    """
    a_low, a_high = _reach(a, a_itemsize)
    b_low, b_high = _reach(b, b_itemsize)
    return a_high <= b_low or b_high <= a_low or a_low == a_high or b_low == b_high
