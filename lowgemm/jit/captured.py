"""What a function captures from around it, in words that are the same in every process.

Numba's own key of a cached function holds a pickle of the captured values. That of another compiled function
differs from process to process, so a function that captures one never finds its code again. Here a captured
function is described by its name and by what it captures in turn. Its code is not looked at: that cannot
change without lowgemm's sources changing, and those are in the key as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def captured(function: Any) -> tuple[str, ...]:
    """Each variable that a Python function captures, with its value.

    Raises
    ------
    TypeError
        If a value cannot be told from others in another process: such a function is not cached, or is given a
        key.

    Examples
    --------
    >>> def times(k):
    ...     return lambda x: k * x
    >>> captured(times(3))
    ('k=int 3',)
    """
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return tuple(f"{name}={_described(cell.cell_contents)}" for name, cell in cells)


def _described(value: Any) -> str:
    known = getattr(value, "disk_key", None)
    if known is not None:  # a function of the user's, which says itself what it depends on
        return f"function {known}"
    if isinstance(value, Dispatcher):
        value = value.py_func
    if isinstance(value, _Intrinsic):
        value = value._defn  # several are made by one function, and differ in what that captured
    if isinstance(value, (types.Type, ir.Type)):
        return f"type {value}"
    if type(value) in _PLAIN:
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, np.generic):
        return f"{value.dtype.str} {value.tobytes().hex()}"
    if type(value) is tuple:
        return f"({', '.join(map(_described, value))})"
    if getattr(value, "__module__", "").partition(".")[0] == "lowgemm" and hasattr(value, "__code__"):
        return f"function {value.__module__}.{value.__qualname__}{captured(value)}"
    raise TypeError(f"captured: a value of type {type(value).__name__} has no description")
