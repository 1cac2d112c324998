"""Layers with the names and habits of other libraries: `gemmlowp` and `onnx`, loaded when they are first
asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors, which do not run `__getattr__`
    from lowgemm.compat import gemmlowp, onnx  # noqa: F401

_LAZY = ("gemmlowp", "onnx")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"lowgemm.compat.{name}")
    raise AttributeError(f"module 'lowgemm.compat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_LAZY]
