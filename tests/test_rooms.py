"""Which folder may import from which, read from the code: downwards only, in no circle, and no private names.

Imports inside functions and under ``TYPE_CHECKING`` count like any other.
"""

from __future__ import annotations

import ast

import pytest
from rooms import circles, room_of, sources, uses

#: From the ground up. A room is a folder, or one file of the package's root; it imports from floors below its
#: own only.
FLOORS = [
    {"_version", "config", "data", "reference_fixedpoint"},
    {"checks", "jit"},
    {"kernels/framework", "fixedpoint"},
    {"kernels"},
    {"output"},
    {"reference"},
    {"engine"},
    {"kernels/tools", "gemm", "conv", "requantize", "npz"},
    {"kernels/__main__", "compat", "quantization", "in_numba"},
    {"nn", "blockwise"},
    {"onnx_run", "explain"},
    {"__init__"},
    {"dask", "cli"},
    {"__main__"},
]


def upward(text: dict[str, str]) -> list[str]:
    """Imports that do not go down."""
    height = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    return [
        f"{u.module}:{u.line} takes {u.of}"
        for m in sorted(text)
        for u in uses(text, m)
        if room_of(u.of) != room_of(m) and height[room_of(u.of)] >= height[room_of(m)]
    ]


def is_private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.endswith("__")


def own_private_names(tree: ast.AST) -> set[str]:
    """Private functions, classes, variables and attributes that a module makes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # __slots__, and fields of types made for Numba
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return {n for n in names if is_private(n)}


def private(text: dict[str, str]) -> list[str]:
    """Private names that a module takes from another room: imported, or as attributes."""
    trees = {m: ast.parse(t) for m, t in text.items()}
    own: dict[str, set[str]] = {}
    for m, tree in trees.items():
        own.setdefault(room_of(m), set()).update(own_private_names(tree))
    wrong = []
    for m, tree in trees.items():
        wrong += [
            f"{m}:{u.line} takes {u.name} of {u.of}"
            for u in uses(text, m)
            if is_private(u.name) and room_of(u.of) != room_of(m)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own[room_of(m)]:
                owners = [room for room, names in own.items() if node.attr in names]
                wrong += [f"{m}:{node.lineno} takes .{node.attr} of {' or '.join(owners)}"] if owners else []
    return sorted(wrong)


def test_every_room_has_its_floor():
    assert {room_of(m) for m in sources()} == set().union(*FLOORS)
    assert len(set().union(*FLOORS)) == sum(map(len, FLOORS))


def test_imports_go_down():
    assert upward(sources()) == []


def test_no_circles():
    assert circles(sources()) == []


def test_private_names_stay_at_home():
    assert private(sources()) == []


MADE_UP = {
    "__init__": "",
    "config": "kernel = None",
    "jit/__init__": "",
    "jit/target": "from lowgemm import config\n_seen = 1",
    "engine/__init__": "",
    "engine/plan": "from lowgemm.jit import target\nfrom lowgemm.engine import packing",
    "engine/packing": "_LINE = 64",
}


@pytest.mark.parametrize(
    ("module", "line", "finder", "says"),
    [
        ("engine/packing", "def f():\n    from lowgemm.engine.plan import Plan", circles, "engine/plan"),
        ("engine/packing", "if TYPE_CHECKING:\n    import lowgemm.engine.plan", circles, "engine/packing"),
        ("jit/target", "def f():\n    from lowgemm.engine import packing", upward,
         "jit/target:2 takes engine/packing"),
        ("config", "import lowgemm", upward, "config:1 takes __init__"),
        ("engine/plan", "from lowgemm.jit.target import _seen", private,
         "engine/plan:1 takes _seen of jit/target"),
        ("engine/plan", "from lowgemm.jit import target\ntarget._seen", private,
         "engine/plan:2 takes ._seen of jit"),
    ],
)  # fmt: skip
def test_faults_are_found(module, line, finder, says):
    assert finder(MADE_UP) == []
    assert says in str(finder({**MADE_UP, module: line}))
