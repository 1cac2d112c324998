"""What a function computes, as a key: functions with equal keys compile to the same code.

Numba takes what a function names outside of itself (variables of the enclosing function, globals, attributes
of modules) as constants of the moment when it compiles. So the key holds the byte code and the values of
these: numbers, text, arrays and functions by what they are, everything else by which object it is.
"""

from __future__ import annotations

import builtins
import hashlib
import math
import types
from collections.abc import Hashable
from typing import Any

import numpy as np


class _Same:
    """An object that is told from others by identity, and kept alive so that no other takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def code_key(function: Any) -> Hashable:
    """Key of a plain Python function; anything else that can be called is told apart by identity.

    Examples
    --------
    >>> def times(k):
    ...     return lambda x: k * x
    >>> code_key(times(2)) == code_key(times(2)), code_key(times(2)) == code_key(times(2.0))
    (True, False)
    """
    return _value(function, frozenset(), ())


def _code(code: types.CodeType) -> Hashable:
    """Byte code and its constants; not its name, file and lines."""
    constants = tuple(
        _code(c) if isinstance(c, types.CodeType) else _value(c, frozenset(), ()) for c in code.co_consts
    )
    exception_table = getattr(code, "co_exceptiontable", b"")
    return (
        code.co_code, exception_table, constants, code.co_names, code.co_varnames, code.co_freevars,
        code.co_cellvars, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags,
    )  # fmt: skip


def _names(code: types.CodeType) -> frozenset[str]:
    """Names of globals and attributes, those of functions inside too."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def _function(function: types.FunctionType, above: tuple[Any, ...]) -> Hashable:
    if any(function is f for f in above):  # calls itself
        return ("above", [function is f for f in above].index(True))
    above = (*above, function)
    names = _names(function.__code__)
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(_value(cell.cell_contents, names, above))
        except ValueError:  # not assigned yet
            cells.append(_Same(cell))
    reach = {**vars(builtins), **function.__globals__}
    outside = tuple((name, _value(reach[name], names, above)) for name in sorted(names) if name in reach)
    defaults = _value(function.__defaults__, names, above)
    return ("function", _code(function.__code__), tuple(cells), outside, defaults)


def _value(value: Any, names: frozenset[str], above: tuple[Any, ...]) -> Hashable:
    """Key of a value; `names` are the attributes that may be asked of a module."""
    if value is None or value is Ellipsis or type(value) in (bool, int, str, bytes):
        return (type(value), value)
    if type(value) in (float, complex):
        return (type(value), repr(value))  # 0.0 is not -0.0
    if type(value) in (tuple, list):
        return (type(value), *(_value(v, names, above) for v in value))
    if type(value) is frozenset:
        return (frozenset, frozenset(_value(v, names, above) for v in value))
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return (type(value), repr(value.dtype), value.tobytes())
    if type(value) is np.ndarray and not value.dtype.hasobject:
        flags = value.flags
        layout = flags.c_contiguous, flags.f_contiguous, flags.aligned
        content = hashlib.sha256(value.tobytes()).digest()  # which may be large
        return ("array", repr(value.dtype), value.shape, layout, content)
    if type(value) is types.FunctionType:
        return _function(value, above)
    if type(value) is types.ModuleType:
        if any(value is v for v in above):
            return _Same(value)
        known = vars(value)
        asked = ((name, known[name]) for name in sorted(names) if name in known)
        return (_Same(value), tuple((name, _value(v, names, (*above, value))) for name, v in asked))
    return _Same(value)


#: Builtin functions that are arithmetic.
_ARITHMETIC = frozenset(
    ["abs", "bool", "divmod", "float", "int", "len", "max", "min", "pow", "range", "round", "sum"]
)


def disk_key(code: Any, *also: Any) -> str | None:
    """What `code_key` gave, and `also`, as text that is the same in every process; None if there is none.

    Only plain values count: numbers, text, tuples of them, and functions of `math`, NumPy and Python's
    arithmetic, by their names and NumPy's version. An array or another function is not plain: it would be a
    constant of the compiled code, which may hold an address, or be compiled from sources that nobody watches.

    Examples
    --------
    >>> by = 3
    >>> disk_key(code_key(lambda x: max(by * x, 0))) == disk_key(code_key(lambda x: max(by * x, 0)))
    True
    >>> table = np.arange(3)
    >>> disk_key(code_key(lambda x: table[x])) is None
    True
    """
    try:
        text = f"{np.__version__} {_text(code[1:])} {_text(also)}" if type(code) is tuple else _text(code)
        return hashlib.sha256(text.encode()).hexdigest()
    except _NotPlainError:
        return None


class _NotPlainError(Exception):
    """A key holds something that is told apart by identity."""


def _text(key: Any) -> str:
    if isinstance(key, _Same):
        return _name(key.value)
    if type(key) is tuple and key and key[0] in ("array", "function", "above"):
        raise _NotPlainError
    if type(key) is tuple:
        return f"({','.join(map(_text, key))})"
    if type(key) is frozenset:
        return f"{{{','.join(sorted(map(_text, key)))}}}"
    if key is None or key is Ellipsis or type(key) in (bool, int, float, str, bytes):
        return f"{type(key).__name__}:{key!r}"
    if isinstance(key, type) and key.__module__ in ("builtins", "numpy", "types"):
        return f"type:{key.__module__}.{key.__qualname__}"
    raise _NotPlainError


def _name(value: Any) -> str:
    """Name of a module or function that every process finds the same."""
    if value is np or value is math:
        return f"module:{value.__name__}"
    name = getattr(value, "__name__", "")
    if name in _ARITHMETIC and vars(builtins)[name] is value:
        return f"builtins.{name}"
    if vars(math).get(name) is value:
        return f"math.{name}"
    if callable(value) and vars(np).get(name) is value:
        return f"numpy.{name}"
    raise _NotPlainError
