"""Compiled code that comes from disk, and what it keeps in memory: machine code, and no LLVM code.

Numba parses the LLVM code of everything that it loads, so that a caller that is compiled later can have it
copied into itself. What it makes of it takes about 10 times the bytes on disk, and hardly any process
compiles a caller. So here those bytes wait, compressed, until a caller links them.

This reaches into Numba's own parts. Importing this file raises an ImportError where Numba has them no more,
and `disk_cache.py` then saves and loads what Numba does.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

from llvmlite import binding
from numba.core.codegen import CPUCodeLibrary, JITCodeLibrary, JitEngine
from numba.core.compiler import CompileResult

#: What is replaced or called below.
_NEEDED = {
    CompileResult: ("_reduce", "_rebuild"),
    CPUCodeLibrary: (
        "enable_object_caching",
        "serialize_using_object_code",
        "_set_compiled_object",
        "_finalize_final_module",
        "_get_module_for_linking",
    ),
    JitEngine: ("_load_defined_symbols",),
}
for _where, _names in _NEEDED.items():
    for _name in _names:
        if not hasattr(_where, _name):
            raise ImportError(f"this Numba has no {_where.__name__}.{_name}")


@dataclasses.dataclass
class _Symbol:
    """What Numba's engine asks of a function that is there."""

    name: str
    is_declaration: bool = False


@dataclasses.dataclass
class _Symbols:
    """What it asks of a module."""

    functions: list[_Symbol]
    global_variables: tuple[()] = ()


@dataclasses.dataclass
class Saved:
    """A library on disk."""

    name: str
    code: bytes
    symbols: list[str]  #: what the code defines
    llvm: bytes  #: bitcode for callers, compressed


def saved(library: Any) -> Saved | None:
    """What is to be saved of a library, or None if this Numba serializes otherwise."""
    name, kind, data = library.serialize_using_object_code()
    if kind != "object" or len(data) != 2:
        return None
    module = library._get_module_for_linking()
    symbols = [
        value.name
        for values in (module.functions, module.global_variables)
        for value in values
        if not value.is_declaration
    ]
    return Saved(name, data[0], symbols, zlib.compress(data[1]))


class LoadedLibrary(JITCodeLibrary):
    """Machine code from disk. Its LLVM code is parsed when a caller links it, each time, and not kept."""

    _llvm = b""

    def _get_module_for_linking(self) -> Any:
        return binding.parse_bitcode(zlib.decompress(self._llvm))


class LoadingContext:
    """Numba's target context, but for what it makes of a `Saved`."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def codegen(self) -> Any:
        """Numba asks it to unserialize."""
        return self

    def unserialize_library(self, state: Saved) -> LoadedLibrary:
        """A library that can be called."""
        codegen = self._real.codegen()
        library = LoadedLibrary(codegen, state.name)
        library.enable_object_caching()
        library._set_compiled_object(state.code)
        library._finalize_final_module()
        library._llvm = state.llvm
        vars(codegen)["_engine"]._load_defined_symbols(_Symbols([_Symbol(name) for name in state.symbols]))
        return library


def rebuild(context: Any, library: Saved, rest: list[Any]) -> Any:
    """A `CompileResult` of a library that was saved, and of what Numba saves beside it."""
    return CompileResult._rebuild(LoadingContext(context), library, *rest)._replace(target_context=context)
