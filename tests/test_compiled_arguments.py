"""Every argument of a compiled function is said somewhere: what it is, in words.

An address, a count and a flag are all 64-bit integers to the compiler, so a reader has nothing but the words.
They stand in the function's docstring, elsewhere in the prose of its file, or, if they mean the same in a
whole room, once in the file that `COMMON` names for the room.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest
from rooms import room_of, sources

#: Files that say what arguments with the same names mean everywhere in a room.
COMMON = {
    "engine": ["engine/__init__", "kernels/framework/kernel", "engine/parts"],
    "onnx_run": ["onnx_run/__init__", "engine/parts"],
    "blockwise": ["blockwise/__init__", "engine/parts"],
    "kernels": ["kernels/framework/kernel"],
    "output": ["output/tile_routine"],
    "in_numba": ["engine/__init__"],
    "compat": ["engine/parts"],
    "quantization": ["quantization/loops"],
}
#: What Numba passes to an intrinsic by itself, and a C function that Python calls gets (`engine/entry.py`).
USUAL = {"typingctx", "_self", "args", "_count", "_"}
DECORATORS = re.compile("routine|inner|njit|intrinsic|register_jitable|elementwise")


def prose(source: str) -> str:
    """Docstrings and comments."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return " ".join([*docs, *(t.string for t in tokens if t.type == tokenize.COMMENT)])


def name_of(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def unsaid(text: dict[str, str], module: str) -> list[str]:
    """Arguments of the compiled functions of a module that no words say."""
    common = [text[m] for m in COMMON.get(room_of(module), []) if m in text]
    said = set(re.findall(r"\w+", " ".join(map(prose, [text[module], *common]))))
    compiled = [
        node
        for node in ast.walk(ast.parse(text[module]))
        if isinstance(node, ast.FunctionDef)
        and any(DECORATORS.search(name_of(d)) for d in node.decorator_list)
    ]
    return [
        f"{module}:{function.lineno} {function.name}: {argument.arg}"
        for function in compiled
        for argument in function.args.args
        if argument.arg not in said | USUAL
    ]


@pytest.mark.parametrize("module", sorted(sources()))
def test_every_argument_is_said(module):
    assert unsaid(sources(), module) == []


def test_a_fault_is_found():
    text = {"jit/made_up": '@inner\ndef f(a, kept):\n    """What `a` is."""'}
    assert unsaid(text, "jit/made_up") == ["jit/made_up:2 f: kept"]
