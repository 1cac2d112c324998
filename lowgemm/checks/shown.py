"""Values in one short line, for the `repr` of what holds them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

#: Arrays of at most this many elements are written out.
_FEW = 6


def shown(value: Any) -> str:
    """A value in few words: of a long array its dtype and shape.

    Examples
    --------
    >>> shown(np.arange(3)), shown(np.zeros((2, 8), np.uint8)), shown(np.dtype("int8")), shown("rows")
    ('[0, 1, 2]', 'uint8 (2, 8)', 'int8', "'rows'")
    """
    if isinstance(value, np.ndarray):
        return str(value.tolist()) if value.size <= _FEW else f"{value.dtype} {value.shape}"
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))}{',' * (len(value) == 1)})"
    return f"list of {len(value)}" if isinstance(value, list) else repr(value)


def fields_shown(record: Any) -> str:
    """The `repr` of a dataclass, with short fields; what is None is left out."""
    fields = ((f.name, getattr(record, f.name)) for f in dataclasses.fields(record) if f.repr)
    return f"{type(record).__name__}({', '.join(f'{n}={shown(v)}' for n, v in fields if v is not None)})"
