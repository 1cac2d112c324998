"""Compiled code on disk: damaged, foreign, contested, unwritable, outdated. Always the right answer."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import shutil
import warnings

import numba
import pytest

import lowgemm
from lowgemm import kernels
from lowgemm.jit import disk_cache

from . import child

#: A product; prints how many pieces were compiled, which is 0 when all come from disk.
SPY = """
from lowgemm.jit import disk_cache
made = []
load = disk_cache.CheckedFile.load
def spy(self, key):
    data = load(self, key)
    made.append(data is None)
    return data
disk_cache.CheckedFile.load = spy
"""
SAY = """
print("compiled", sum(made), "of", len(made))
"""
USE = child.SMALL + SPY + "assert (lowgemm.gemm(a, b) == exact).all()" + SAY

#: What the rooms above the engine compile: the loops of layers, of quantization and of fixed-point
#: arithmetic.
ROOMS = (
    SPY
    + """
import numpy as np
from lowgemm import fixedpoint, nn
from lowgemm.onnx_run import qlinear_conv
from lowgemm.quantization import QParams, quantize, scores
one, x = np.float32(1), np.zeros((1, 4, 5, 5), np.uint8)
for group in (1, 4):
    w = np.ones((4, 4 // group, 2, 2), np.int8)
    qlinear_conv(x, one, np.uint8(0), w, one, np.int8(0), one, np.uint8(0), group=group, pads=[1, 1, 1, 1])
p = QParams(1.0)
layers = [
    nn.QuantizedConv2d(np.ones((2, 2, 1, 2), np.int8), None, p, p, p, padding=1), nn.QuantizedMaxPool2d(p, 2),
    nn.QuantizedConv2d(np.ones((2, 2, 1, 2), np.int8), None, p, p, p, groups=2),
]
nn.QuantizedSequential(layers).predict(np.zeros((1, 4, 4, 1), np.float32))
nn.dynamic_linear(np.ones((2, 3), np.float32), np.ones((3, 2), np.int8), 1.0)
quantize(np.zeros(1 << 15, np.float32), p)
for name in ("squared_error", "divergence"):
    scores.scores(name, np.arange(9.0), np.ones(9), 1.0, QParams([1.0, 2.0], 0, "int8", 0))
fixedpoint.saturating_rounding_doubling_high_mul(np.int32(3), np.int32(4))
fixedpoint.exp_on_interval_between_negative_one_quarter_and_0_excl(np.int32(-4))
"""
    + SAY
)


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> pathlib.Path:
    """A cache that has all that `USE` needs: a copy of the session's own, completed."""
    folder = tmp_path_factory.mktemp("warm")
    own = os.environ.get("NUMBA_CACHE_DIR")
    if own and pathlib.Path(own).is_dir():
        package = pathlib.Path(lowgemm.__file__).parent
        for source in (package, pathlib.Path(kernels.__file__).parent):
            name = numba.core.caching.UserProvidedCacheLocator.get_suitable_cache_subpath(
                str(source / "x.py")
            )
            if (pathlib.Path(own) / name).is_dir():
                shutil.copytree(
                    pathlib.Path(own) / name, folder / name, ignore=shutil.ignore_patterns("*.tmp")
                )
    child.run(USE, NUMBA_CACHE_DIR=str(folder))
    return folder


@pytest.fixture
def cache(warm, tmp_path) -> pathlib.Path:
    """A copy of the warm cache, to be spoilt."""
    shutil.copytree(warm, tmp_path / "cache")
    return tmp_path / "cache"


def test_warm_cache_compiles_nothing(cache):
    assert "compiled 0 of" in child.run(USE, NUMBA_CACHE_DIR=str(cache))


def test_other_rooms_find_their_code_again(cache):
    """Each piece in its own file, by a name that is the same in the next process."""
    child.run(ROOMS, NUMBA_CACHE_DIR=str(cache))
    again = child.run(ROOMS, NUMBA_CACHE_DIR=str(cache))
    assert "compiled 0 of" in again
    assert int(again.split()[-1]) > 15, "the pieces are not cached at all"


def test_damaged_files(cache):
    """Cut, emptied, overwritten, one bit flipped in the machine code, another file's content:
    compiled again.
    """
    files = sorted(cache.rglob("*.nbc"))
    whole = files[0].read_bytes()
    for i, path in enumerate(files):
        content = path.read_bytes()
        middle = len(content) * 2 // 3
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(
            (content[:middle], b"", b"\x00" * len(content), flipped, whole, disk_cache._MAGIC)[(i + 1) % 6]
        )
    assert "compiled 0 of" not in child.run(USE, NUMBA_CACHE_DIR=str(cache))
    assert "compiled 0 of" in child.run(USE, NUMBA_CACHE_DIR=str(cache)), "the damage was not repaired"


def test_two_processes_at_once(tmp_path):
    """From an empty cache, one of them for an older CPU: each right, and a third finds everything."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(child.run, USE, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME=cpu)
            for cpu in (None, "nehalem")
        ]
        assert all("compiled" in job.result() for job in jobs)
    assert "compiled 0 of" in child.run(USE, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME=None)
    assert "compiled 0 of" in child.run(USE, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="nehalem")
    assert not list(tmp_path.rglob("*.tmp"))


NOWHERE = {"NUMBA_CACHE_DIR": None, "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/x"}


def copy_of_package(folder: pathlib.Path) -> dict[str, str]:
    """The installed layout in a folder of its own, and the environment that imports it and not the
    other one.
    """
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(pathlib.Path(lowgemm.__file__).parent, folder / "lowgemm", ignore=skip)
    return {
        "PYTHONPATH": f"{folder}{os.pathsep}{pathlib.Path(numba.__file__).parents[1]}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def test_read_only_installation(tmp_path):
    """A cache filled when the package was installed is read by those who may not write; without one, one
    warning.
    """
    env = {**copy_of_package(tmp_path), **NOWHERE}
    # writable for now: the folders beside the sources fill up
    child.run(USE, flags=("-S",), cwd=tmp_path, **env)
    refuse = """
import tempfile
def no(*a, **k): raise PermissionError("read-only")
tempfile.TemporaryFile = no
import warnings
seen = []
warnings.showwarning = lambda message, *rest: seen.append(str(message))
"""
    tail = "print('warnings', len(seen), seen[:1])"
    out = child.run(refuse + USE + tail, flags=("-S",), cwd=tmp_path, **env)
    assert "compiled 0 of" in out and "warnings 0" in out
    for folder in tmp_path.rglob("__pycache__"):
        shutil.rmtree(folder)
    out = child.run(refuse + USE + tail, flags=("-S",), cwd=tmp_path, **env)
    assert "compiled 0 of" not in out and "warnings 1" in out and "NUMBA_CACHE_DIR" in out


def test_a_changed_kernel_is_never_served_from_the_cache(tmp_path):
    """Its source is edited, the cache stays: the next process behaves as the new source says."""
    code = """
from lowgemm.kernels import by_name
from lowgemm.kernels.tools import verify
print("wrong", verify.verify_native(by_name("portable"), count=20))
"""
    env = {**copy_of_package(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert child.run(code, flags=("-S",), cwd=tmp_path, **env).strip() == "wrong 0"
    source = tmp_path / "lowgemm" / "kernels" / "portable.py"
    old = "store_32(c, r * ldc + i, value)"
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, "store_32(c, r * ldc + i, value + 1)"))
    assert child.run(code, flags=("-S",), cwd=tmp_path, **env).strip() != "wrong 0"


KERNEL = """
from lowgemm import kernels
from lowgemm.kernels.portable import Portable
kernels.register(Portable("mine", (), 3, 5, NV, 2, LHS, RHS, row_tiles=(1,)))
lowgemm.config.kernel = "mine"
assert (lowgemm.gemm(a, b) == exact).all()
"""


def test_two_programs_with_kernels_of_their_own(tmp_path):
    """Both are number 10 of the registry; the cache must tell them apart."""
    for nv, lhs, rhs in (("2", "'u8'", "'s8'"), ("3", "'s8'", "'u8'")):
        code = child.SMALL + KERNEL.replace("NV", nv).replace("LHS", lhs).replace("RHS", rhs)
        child.run(code, NUMBA_CACHE_DIR=str(tmp_path))


def test_upgrades_change_the_file_name(tmp_path, monkeypatch):
    saved = disk_cache.CheckedFile(str(tmp_path), "f", "stamp", str(tmp_path))
    saved.save("key", [1, 2])
    assert saved.load("key") == [1, 2] and saved.load("other") is None
    assert disk_cache.CheckedFile(str(tmp_path), "f", "new stamp", str(tmp_path)).load("key") is None
    for module in (numba, disk_cache.llvmlite):
        with monkeypatch.context() as patch:
            patch.setattr(module, "__version__", "99.0")
            assert disk_cache.CheckedFile(str(tmp_path), "f", "stamp", str(tmp_path)).load("key") is None
    (entry,) = tmp_path.glob("*.nbc")
    (tmp_path / saved._name("other")[0]).write_bytes(entry.read_bytes())
    assert saved.load("other") is None, "a sound file under another key's name was taken"
    saved.flush()
    assert saved.load("key") is None


def test_full_disk(tmp_path, monkeypatch):
    def full(self, key, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_cache.CheckedFile, "save", full)
    monkeypatch.setattr(disk_cache, "_warned", False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in (1, 2):

            @disk_cache.njit([numba.int64(numba.int64)])
            def add(x):
                return x + step

            assert add(4) == 4 + step
    assert [w.category for w in seen if "NUMBA_CACHE_DIR" in str(w.message)] == [RuntimeWarning]


def test_an_interrupted_callback_of_llvm_loses_only_the_file(monkeypatch):
    """Ctrl-C inside the callback that notes the object code: the function works, nothing is saved, nothing is
    said.
    """

    def interrupted(self, cres):
        raise RuntimeError("no compiled object yet for <Library 'add'>")

    monkeypatch.setattr(disk_cache._Impl, "reduce", interrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (3, 4):

            @disk_cache.njit([numba.int64(numba.int64)])
            def add(x):
                return x + step

            assert add(4) == 4 + step


#: Stages of the user's; prints for each its result, and how many tile loops were saved for it.
CUSTOM = """
import math
import numba, numpy as np, lowgemm
from lowgemm.jit import disk_cache
saved = []
save = disk_cache.CheckedFile.save
def spy(self, key, data):
    saved.append(self.base)
    save(self, key, data)
disk_cache.CheckedFile.save = spy
helper = numba.njit(lambda x: x + {more})
"""
STAGE = """
BY = {by}
def function(acc, row, col{table}):
    return {value}
before = sum("loop" in s for s in saved)
result = lowgemm.requantize(np.array([[3, -4, 9]], np.int32), lowgemm.Custom(function, {arrays}))
print(result.tolist(), "saved", sum("loop" in s for s in saved) - before)
"""


def custom(folder, *stages, more="1"):
    """Result of each stage, of its code, value of BY and arrays, in one process; and how many tile loops were
    saved.
    """
    code = CUSTOM.format(more=more)
    for value, by, arrays in stages:
        table = ", table" if "table" in value else ""
        code += STAGE.format(value=value, by=by, arrays=arrays, table=table)
    return child.run(code, NUMBA_CACHE_DIR=str(folder)).split("\n")[: len(stages)]


def test_custom_stages_are_found_on_disk(tmp_path):
    """By all that they compute: byte code, globals by value, and kinds of the arrays, not their contents."""
    plain, from_array = "max(acc * BY, 0) + math.floor(np.float32(1.5))", "acc * table[col]"
    first, table = (plain, "2", "()"), (from_array, "2", "(np.array([1, 2, 3]),)")
    assert custom(tmp_path, first, table) == ["[[7, 1, 19]] saved 1", "[[3, -8, 27]] saved 1"]
    others = {
        first: "[[7, 1, 19]] saved 0",
        (plain, "3", "()"): "[[10, 1, 28]] saved 1",
        (plain, "2.5", "()"): "[[8, 1, 23]] saved 1",
        (plain.replace("max", "min"), "2", "()"): "[[1, -7, 1]] saved 1",
        (from_array, "2", "(np.array([4, 5, 6]),)"): "[[12, -20, 54]] saved 0",
        (from_array, "2", "(np.array([.5, 1, 2]),)"): "[[1, -4, 18]] saved 1",
    }
    assert custom(tmp_path, *others) == list(others.values())
    assert [said[-1] for said in custom(tmp_path, *others)] == ["0"] * len(others)


def test_custom_stages_that_cannot_be_told_apart_stay_in_memory(tmp_path):
    """Another compiled function, and an array that is a constant of the code."""
    for more, result in (("1", "[[4, -3, 10]] saved 0"), ("2", "[[5, -2, 11]] saved 0")):
        stages = ("helper(acc)", "0", "()"), ("acc + BY[col]", f"np.array([{more}] * 3)", "()")
        assert custom(tmp_path, *stages, more=more) == [result] * 2
