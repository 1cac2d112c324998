"""A number that changes with lowgemm's sources, for the key of every piece of compiled code on disk."""

from __future__ import annotations

import functools
import hashlib
import pathlib

import llvmlite
import numba

#: Rooms that stand on the engine, and that no compiled code of the engine calls or captures
#: (`tests/test_rooms.py` holds that). Their code asks for their own files too, by name, so that a change in
#: one room does not recompile the others.
ABOVE = frozenset({"blockwise", "cli", "compat", "data", "in_numba", "nn", "onnx_run", "quantization"})
#: Which of them a room of them imports from: its compiled code may hold code of theirs, and asks for their
#: files too.
BENEATH = {
    "cli": ("blockwise", "compat", "data", "onnx_run"),
    "nn": ("quantization",),
    "onnx_run": ("blockwise", "compat"),
}


def rooms() -> dict[str, pathlib.Path]:
    """Folders of the package by name."""
    return {p.name: p for p in pathlib.Path(__file__).parents[1].iterdir() if (p / "__init__.py").exists()}


@functools.cache
def source_stamp(*more: str) -> int:
    """Number that changes with any source file of the engine, with Numba and with llvmlite.

    Every folder of the package counts, with what lies in it, except the rooms in `ABOVE`; `more` names those
    of them ("blockwise") whose files count too.

    Numba's disk cache notices a change in the file of the cached function only, not in what that function
    calls or in an intrinsic's emitter. Each cached function captures this number, which makes it part of the
    cache key: an upgraded lowgemm can never be served yesterday's machine code.
    """
    folders = rooms()
    unknown = [name for name in more if name not in folders]
    if unknown:
        raise ValueError(f"more: expected folders of the package, got {', '.join(unknown)}")
    root = pathlib.Path(__file__).parents[1]
    files = [(path.name, path) for path in root.glob("*.py")]
    for room, folder in folders.items():
        if room not in ABOVE or room in more:
            files += [
                (f"{room}/{path.relative_to(folder).as_posix()}", path) for path in folder.rglob("*.py")
            ]
    digest = hashlib.sha256()
    for name, path in sorted(files):
        digest.update(name.encode())
        digest.update(path.read_bytes())
    digest.update(f"{numba.__version__} {llvmlite.__version__}".encode())
    return int.from_bytes(digest.digest()[:7], "little")


def stamp_for(module: str) -> int:
    """`source_stamp` for the code of a module: the engine's, and where its room stands on the engine, that
    room's and those of what is beneath it.
    """
    room = module.split(".")[1] if module.startswith("lowgemm.") else ""
    return source_stamp(room, *BENEATH.get(room, ())) if room in ABOVE else source_stamp()
