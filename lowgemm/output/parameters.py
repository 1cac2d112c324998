"""The parameters of a routine, described once. Python fills in a record; compiled code reads it the same way.

A description is a NumPy dtype whose fields are of three kinds: a `NUMBER`, the `ADDRESS` of a table, or
`per_channel` values, which are the address of a vector (or of one value for all) and what its elements are.

    SCALE = described(multiplier=per_channel(np.int32), offset=NUMBER)
    record, keep = Filler(SCALE)({"multiplier": [3, 4], "offset": 5})  # Python
    multiplier, offset = read(params)  # compiled, with read = reader(SCALE)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

#: The same everywhere: compiled code gets an int64.
NUMBER = np.dtype(np.int64)
#: A table: compiled code gets a pointer to its first element. Python gives an array.
ADDRESS = np.dtype([("address", np.uint64)])

_POINTER = ir.IntType(8).as_pointer()
_ELEMENTS = {
    "int32": (ir.IntType(32), types.int64),
    "float32": (ir.FloatType(), types.float32),
    "float64": (ir.DoubleType(), types.float64),
}


def per_channel(element: Any) -> np.dtype:
    """One value for all, or one for each row or column: compiled code gets that of its channel.

    Parameters
    ----------
    element : dtype
        int32, float32 or float64.

    Examples
    --------
    >>> per_channel(np.int32)
    dtype([('int32', '<u8')])
    """
    return np.dtype([(np.dtype(element).name, np.uint64)])


def described(**fields: np.dtype) -> np.dtype:
    """Description of parameters: their names, in order, and their kinds.

    Examples
    --------
    >>> described(low=NUMBER, high=NUMBER).names
    ('low', 'high')
    """
    return np.dtype(list(fields.items()))


def kinds_of(description: np.dtype) -> dict[str, str | None]:
    """What each field holds: None for a number, "address" for a table, and what the elements are for values
    per channel.

    Examples
    --------
    >>> kinds_of(described(low=NUMBER, bias=per_channel(np.int32)))
    {'low': None, 'bias': 'int32'}
    """
    inner = {name: description[name].names for name in description.names or ()}
    return {name: None if names is None else names[0] for name, names in inner.items()}


def channel_fields(description: np.dtype) -> list[str]:
    """Names of the fields that hold values per channel."""
    return [name for name, kind in kinds_of(description).items() if kind in _ELEMENTS]


class Filler:
    """Makes records of a description.

    Parameters
    ----------
    description : dtype
        See `described`.

    Examples
    --------
    >>> record, _ = Filler(described(low=NUMBER, high=NUMBER))({"low": -1, "high": 7})
    >>> record.tolist()
    [(-1, 7)]
    """

    def __init__(self, description: np.dtype) -> None:
        self.description, self._kinds = description, kinds_of(description)

    def __call__(self, values: Mapping[str, Any]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """The record of some values, and the arrays whose addresses it holds.

        Parameters
        ----------
        values : mapping
            A value for each field: an integer, or an array whose address is written down.

        Returns
        -------
        record : ndarray
            One element.
        keep : tuple of ndarray
            What must live as long as the record is used.

        Raises
        ------
        TypeError
            If a field has no value, or a value no field.
        """
        if values.keys() != self._kinds.keys():
            raise TypeError(f"values: expected {', '.join(self._kinds)}, got {', '.join(values)}")
        words, keep = [], []
        for name, kind in self._kinds.items():
            if kind is None:
                words.append(int(values[name]))
            else:
                array = np.ascontiguousarray(values[name], dtype=None if kind == "address" else kind)
                keep.append(array)
                words.append(array.ctypes.data)
        if not words:
            return np.zeros(1, self.description), ()
        return np.array(words, dtype=np.int64).view(self.description), tuple(keep)  # every field is 8 bytes


def _kinds(record: types.Record) -> list[tuple[int, str | None]]:
    """Offset of each field, and the name inside it: that of an element or "address", and None
    for a number.
    """
    kinds = []
    for name, ty in record.members:
        inner = ty.members[0][0] if isinstance(ty, types.Record) else None
        kinds.append((record.offset(name), inner))
    return kinds


def reader(description: np.dtype, first: int = 0) -> Any:
    """Compiled function ``read(params)``: a tuple of the fields from number `first` on, int64 or pointers."""
    record = numba.from_dtype(description)

    @intrinsic
    def read(typingctx, params):
        """`params` is a pointer to a record."""
        kinds = _kinds(record)[first:]
        result = types.BaseTuple.from_types([types.int64 if k is None else types.voidptr for _, k in kinds])

        def codegen(context, builder, signature, values):
            words = []
            for at, kind in kinds:
                place = builder.gep(values[0], [ir.Constant(ir.IntType(64), at)])
                ty = ir.IntType(64) if kind is None else _POINTER
                words.append(builder.load(builder.bitcast(place, ty.as_pointer()), align=8))
            return context.make_tuple(builder, signature.return_type, words)

        return result(types.voidptr), codegen

    return read


def picker(description: np.dtype, first: int = 0) -> Any:
    """Compiled function ``pick(given, i)``: what `reader` gave, with each channel's vector replaced by its
    element `i`.
    """
    record = numba.from_dtype(description)

    @intrinsic
    def pick(typingctx, given, i):
        """`given` is a tuple, `i` the number of a channel."""
        kinds = [kind for _, kind in _kinds(record)[first:]]
        result = types.BaseTuple.from_types(
            [_ELEMENTS[kind][1] if kind in _ELEMENTS else ty for kind, ty in zip(kinds, given, strict=True)]
        )

        def codegen(context, builder, signature, values):
            picked = []
            for kind, word in zip(kinds, cgutils.unpack_tuple(builder, values[0]), strict=True):
                if kind in _ELEMENTS:
                    element, wide = _ELEMENTS[kind]
                    place = builder.gep(builder.bitcast(word, element.as_pointer()), [values[1]])
                    word = builder.load(place, align=4 if kind != "float64" else 8)
                    word = builder.sext(word, ir.IntType(64)) if wide is types.int64 else word
                picked.append(word)
            return context.make_tuple(builder, signature.return_type, picked)

        return result(given, types.intp), codegen

    return pick
