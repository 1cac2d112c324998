"""What an editor shows of a public function: each parameter by its name, with a type."""

from __future__ import annotations

import enum
import importlib
import inspect
import types
import typing
from collections.abc import Iterator

import pytest

MODULES = [
    "lowgemm",
    "lowgemm.nn",
    "lowgemm.quantization",
    "lowgemm.blockwise",
    "lowgemm.onnx_run",
    "lowgemm.fixedpoint",
    "lowgemm.dask",
    "lowgemm.compat.gemmlowp",
    "lowgemm.compat.onnx",
]
#: Of extras: imported for editors only.
LATE = {"onnx": types.SimpleNamespace(ModelProto=bytes), "Figure": object}


def public(module: str) -> Iterator[tuple[str, typing.Any]]:
    """Functions and classes, and the public methods of those."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None)
    if names is None:
        names = [n for n, o in vars(found).items() if getattr(o, "__module__", "") == module and n[0] != "_"]
    for name in names:
        value = getattr(found, name)
        if inspect.isclass(value):
            if issubclass(value, (Exception, enum.Enum, tuple)):
                continue  # Python makes their constructors
            if value.__init__ is not object.__init__:
                yield f"{module}.{name}", value.__init__
            for method in vars(value):
                if method[0] != "_" and inspect.isfunction(inspect.unwrap(getattr(value, method))):
                    yield f"{module}.{name}.{method}", getattr(value, method)
        elif inspect.isroutine(value):
            yield f"{module}.{name}", value


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_name_and_type_their_parameters(module):
    if module in ("lowgemm.dask", "lowgemm.onnx_run"):
        pytest.importorskip(
            module.split(".")[1].split("_")[0], reason=f"{module}: its extra is not installed"
        )
    seen = 0
    for name, function in public(module):
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, localns=LATE)  # the names in the annotations exist
        for p in signature.parameters.values():
            if p.name == "self":
                continue
            assert p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL), f"{name}: {p}"
            assert p.annotation not in ("Any", p.empty), f"{name}: {p}"
            assert p.name in hints
        assert signature.return_annotation not in ("Any", inspect.Signature.empty), name
        seen += 1
    assert seen
