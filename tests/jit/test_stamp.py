"""Whatever folder a source lies in, a change in it changes the stamp of the code that is made from it."""

from __future__ import annotations

import ast
import os
import pathlib
import shutil
import subprocess
import sys

import numba
import pytest
from patience import PATIENCE
from rooms import room_of, sources, uses

import lowgemm
from lowgemm.jit import stamp

ROOT = pathlib.Path(lowgemm.__file__).parent

#: Run beside a copy of the package: change one file of each folder in turn, and say which stamps that
#: changed.
LOOK = """
import pathlib
from lowgemm.jit import stamp
root = pathlib.Path(stamp.__file__).parents[1]
names = [(), *((name,) for name in sorted(stamp.ABOVE))]
def stamps():
    stamp.source_stamp.cache_clear()
    return [stamp.source_stamp(*more) for more in names]
before = stamps()
for folder in sorted({p.parent for p in root.rglob("*.py")}):
    file = sorted(folder.glob("*.py"))[-1]
    file.write_text(file.read_text() + "# changed")
    after = stamps()
    changed = [more[0] if more else "engine" for more, a, b in zip(names, before, after) if a != b]
    print(folder.relative_to(root).as_posix(), *changed)
    before = after
"""


def test_every_folder_counts(tmp_path):
    """Also one that nobody has heard of, and one inside another; a room above the engine counts for itself
    alone.
    """
    skip = shutil.ignore_patterns("__pycache__")
    copy = tmp_path / "lowgemm"
    shutil.copytree(ROOT, copy, ignore=skip)
    for new in ("brand_new", "brand_new/inside", "nn/inside"):
        (copy / new).mkdir()
        (copy / new / "__init__.py").write_text("")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{pathlib.Path(numba.__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", LOOK],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    seen = {folder: set(changed) for folder, *changed in map(str.split, done.stdout.splitlines())}
    everyone = {"engine", *stamp.ABOVE}
    assert {
        "engine",
        "jit",
        "checks",
        "output",
        "output/stages",
        "fixedpoint",
        "kernels/framework",
        "brand_new/inside",
    } <= set(seen)
    for folder, changed in seen.items():
        room = folder.split("/")[0]
        assert changed == ({room} if room in stamp.ABOVE else everyone), folder
    assert "nn/inside" in seen


def test_the_code_of_a_module_has_the_stamp_of_its_room_and_of_those_beneath():
    """A change in a function of `compat` that is compiled into one of `onnx_run` found old code before."""
    text = sources()
    for room in stamp.ABOVE:
        beneath, left = set(), [room]
        while left:
            one = left.pop()
            found = {room_of(u.of) for m in text if room_of(m) == one for u in uses(text, m)} & stamp.ABOVE
            left += found - beneath - {one}
            beneath |= found
        assert beneath - {room} == set(stamp.BENEATH.get(room, ())), room
        wanted = stamp.source_stamp(room, *stamp.BENEATH.get(room, ()))
        assert stamp.stamp_for(f"lowgemm.{room}.module") == wanted != stamp.source_stamp()
    for module in ("lowgemm.engine.tiles", "lowgemm.kernels.framework.unroll", "lowgemm.gemm", "elsewhere"):
        assert stamp.stamp_for(module) == stamp.source_stamp()
    # who asks by hand asks for its own room
    for room in sorted(stamp.ABOVE):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("source_stamp"):
                    assert room in {ast.literal_eval(a) for a in node.args}, f"{path}:{node.lineno}"


def test_a_room_that_is_not_there():
    with pytest.raises(ValueError, match=r"^more: .*blokwise"):
        stamp.source_stamp("blokwise")
