"""Print the oldest versions that pyproject.toml allows, as requirements for pip: ``name==lowest`` for each
``name>=lowest``.

python .ci/oldest.py dask onnx  # the dependencies, and these extras
"""

from __future__ import annotations

import pathlib
import re
import sys

import tomllib


def oldest(project: dict, extras: list[str]) -> list[str]:
    """The requirements of the project and of some of its extras, those without a bound as they are."""
    found: dict[str, str] = {}
    todo = [
        *project["dependencies"],
        *(r for extra in extras for r in project["optional-dependencies"][extra]),
    ]
    while todo:
        requirement = todo.pop(0)
        own = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
        if own:
            todo += [r for extra in own[1].split(",") for r in project["optional-dependencies"][extra]]
            continue
        name, version, marker = re.fullmatch(r"([\w.\[\]-]+)(?:>=([\w.]+))?(;.*)?", requirement).groups()
        found[name] = name + (f"=={version}" if version else "") + (marker or "")
    return list(found.values())


if __name__ == "__main__":
    text = pathlib.Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
    print("\n".join(oldest(tomllib.loads(text)["project"], sys.argv[1:])))
