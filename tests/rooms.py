"""Which module imports which, read from the code, and how large each room is.

    python tests/rooms.py                  the table of docs/rooms.md
    python tests/rooms.py OTHER_CHECKOUT   the same with another checkout's figures in front

A checkout of another commit is made by ``git worktree add FOLDER COMMIT``.
"""

from __future__ import annotations

import ast
import collections
import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Use(NamedTuple):
    """One module takes another, or a name of it."""

    module: str
    of: str
    name: str | None
    line: int


def sources(checkout: pathlib.Path = ROOT) -> dict[str, str]:
    """Text of every module, by its file: "engine/plan", "kernels/__init__".

    Old commits had the kernels beside the package, where there is a link now.
    """
    package = checkout / "lowgemm"
    apart = [] if (package / "kernels").exists() else [checkout / "kernels"]
    return {
        path.relative_to(folder.parent if folder in apart else folder)
        .with_suffix("")
        .as_posix(): path.read_text()
        for folder in [package, *apart]
        for path in folder.rglob("*.py")
    }


def room_of(module: str) -> str:
    """Room of a module; the kernels' command line is one of its own, for it uses their tools.

    The stages belong to the pipeline: its other files are what a stage is made of, and what puts stages
    together.
    """
    folder = module.rpartition("/")[0]
    if folder == "output/stages":
        return "output"
    return folder if folder and module != "kernels/__main__" else module


def uses(text: dict[str, str], module: str) -> list[Use]:
    """Everything that a module imports from the package."""

    def find(dotted: str) -> str | None:
        inner = dotted.split(".")[1:]
        return next((m for m in ("/".join(inner), "/".join([*inner, "__init__"])) if m in text), None)

    found = []
    for node in ast.walk(ast.parse(text[module])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "lowgemm":
                    found.append((alias.name, None, node.lineno))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: write the whole path"
            if node.module.split(".")[0] == "lowgemm":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found.append(
                        (inner, None, node.lineno) if find(inner) else (node.module, alias.name, node.lineno)
                    )
    made = []
    for dotted, name, line in found:
        of = find(dotted)
        assert of is not None, f"{module}:{line}: there is no {dotted}"
        made.append(Use(module, of, name, line))
    return made


def circles(text: dict[str, str]) -> list[list[str]]:
    """Modules that import each other, however long the way round."""
    after = {m: {u.of for u in uses(text, m)} for m in text}
    left = dict(after)
    while True:  # take away what imports nothing that is left, and what nothing left imports
        wanted = set().union(*left.values()) if left else set()
        idle = {m for m, of in left.items() if not of & left.keys() or m not in wanted}
        if not idle:
            return [sorted(left)] if left else []
        left = {m: of - idle for m, of in left.items() if m not in idle}


class Size(NamedTuple):
    """Modules of a room, their lines, and those lines that belong to import statements."""

    modules: int
    lines: int
    imports: int


def sizes(text: dict[str, str]) -> dict[str, Size]:
    """Size of each room, and of all under the name "all". The files of the package's root are one room."""
    found: dict[str, list[Size]] = collections.defaultdict(list)
    for module, source in text.items():
        statements = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Import, ast.ImportFrom))]
        imports = sum(n.end_lineno - n.lineno + 1 for n in statements)
        for room in (module.rpartition("/")[0] or "lowgemm", "all"):
            found[room].append(Size(1, source.count("\n"), imports))
    return {room: Size(*map(sum, zip(*parts, strict=True))) for room, parts in sorted(found.items())}


def table(*trees: dict[str, str]) -> str:
    """Sizes of the rooms of one tree or several, as a table of a page."""
    measured = [sizes(tree) for tree in trees]
    rooms = sorted(set().union(*measured), key=lambda room: (room == "all", room))
    lines = ["| room | modules | lines | import lines |", "|---|---|---|---|"]
    for room in rooms:
        columns = zip(*(m.get(room, ("-",) * 3) for m in measured), strict=True)
        cells = (" → ".join(f"{x:,}" if isinstance(x, int) else x for x in column) for column in columns)
        lines.append(f"| `{room}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(other: list[str]) -> None:
    trees = [*(sources(pathlib.Path(folder)) for folder in other), sources()]
    print(table(*trees))
    print("\nmodules that import each other:", " → ".join(str(sum(map(len, circles(t)))) for t in trees))


if __name__ == "__main__":
    main(sys.argv[1:])
