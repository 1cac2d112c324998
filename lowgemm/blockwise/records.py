"""Records that Python fills and compiled code reads: both sides know one description, the fields of a class.

Python's side is a `ctypes.Structure`: setting a field takes as long as setting an element of an integer
vector. In a record of NumPy it takes five to six times as long, and a job of fifteen fields as long as coding
some thousand elements. Compiled code sees the same bytes as a record of NumPy's, whose fields it reads by
name.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

#: Types of fields. An int64 is a number, or an address that compiled code calculates with and hands on.
#: `pointer_field` makes an address at which compiled code reads or writes. The last one is a float32.
Number, Pointer, Single = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float


class Record(ctypes.Structure):
    """Base of the records. A subclass adds fields, and ``__slots__ = ()``, which refuses other names.

    Examples
    --------
    >>> class Copy(Record):
    ...     __slots__ = ()
    ...     _fields_ = [("n", Number), ("source", Pointer)]
    >>> class Scaled(Copy):
    ...     __slots__ = ()
    ...     _fields_ = [("factor", Single)]
    >>> Scaled(n=3, factor=0.5).factor
    0.5
    >>> dtype_of(Scaled).names
    ('n', 'source', 'factor')
    """

    __slots__ = ()

    @property
    def address(self) -> int:
        """Where it lies, as long as it is kept."""
        return ctypes.addressof(self)


def dtype_of(kind: type[ctypes.Structure]) -> np.dtype:
    """The dtype of the same bytes, for `numba.carray` in compiled code.

    ``np.dtype(kind)`` leaves out what a class has from its base.
    """
    fields = [
        (name, _format(of), getattr(owner, name).offset)
        for owner in reversed(kind.__mro__)
        for name, of in owner.__dict__.get("_fields_", ())
    ]
    names, formats, offsets = zip(*fields, strict=True)
    form = {"names": names, "formats": formats, "offsets": offsets, "itemsize": ctypes.sizeof(kind)}
    return np.dtype(form, align=True)


def _format(of: Any) -> Any:
    if issubclass(of, ctypes.Array):
        return (_format(of._type_), (of._length_,))
    return dtype_of(of) if issubclass(of, ctypes.Structure) else np.dtype(of)
