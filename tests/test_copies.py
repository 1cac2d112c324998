"""Copies and pickles of everything public compute what the original computed, after it is gone, and in
another process; or refuse.
"""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
import inspect
import itertools
import pathlib
import pickle
import pkgutil
import subprocess
import sys

import copied
import numpy as np
import pytest

import lowgemm
from lowgemm import kernels
from lowgemm.jit import team

HERE = pathlib.Path(__file__).parent
WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {p}": lambda x, p=p: pickle.loads(pickle.dumps(x, p))
        for p in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}
NEEDS = {"lowgemm.dask": "dask", "lowgemm.onnx_run": "onnx"}


def public_classes() -> set[type]:
    """Every class without an underscore that a module of lowgemm defines."""
    found = set()
    walks = [pkgutil.walk_packages(lowgemm.__path__, "lowgemm.")]
    # in an editable install the kernels lie in another folder
    walks.append(pkgutil.walk_packages(kernels.__path__, "lowgemm.kernels."))
    for info in itertools.chain(*walks):
        if "__main__" in info.name or info.name.startswith("lowgemm.cli."):
            continue
        needs = next((n for start, n in NEEDS.items() if info.name.startswith(start)), None)
        if needs and importlib.util.find_spec(needs) is None:
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == info.name and not name.startswith("_"):
                found.add(value)
    return found


@pytest.fixture(scope="module", autouse=True)
def only_what_is_made_here_is_collected():
    """A collection looks at every object of the process: 2 s at the end of the whole suite, 160 times."""
    gc.freeze()
    yield
    gc.unfreeze()


def churn() -> None:
    """Let go of what is unused (the plans that `gemm` remembers too), and write over it."""
    for seen in (sys.modules["lowgemm.engine.call"]._plans, sys.modules["lowgemm.gemm"]._calls):
        seen._entries.clear()
    gc.collect()
    # NumPy hands out small pieces again by their exact size
    sizes = [*range(8, 2048, 8), *(2**k + 2 ** (k - 1) * half for k in range(11, 17) for half in (0, 1))]
    junk = [np.full(size, 0x5A, np.uint8) for size in sizes for _ in range(10)]
    del junk


def test_no_public_class_is_forgotten():
    known = {cls for cls, _, _ in copied.OBJECTS.values()} | set(copied.REFUSED) | copied.BASES
    found = public_classes()
    assert len(found) > 80, "the walk found next to nothing"
    missing = sorted(f"{c.__module__}.{c.__qualname__}" for c in found - known)
    assert not missing, f"say in tests/copied.py what a copy of these is: {', '.join(missing)}"


def test_names_of_the_public_namespaces_are_in_the_walk():
    """A class that a public namespace only imports is one that the walk found where it is defined."""
    found = public_classes()
    for name in (
        "lowgemm",
        "lowgemm.nn",
        "lowgemm.blockwise",
        "lowgemm.quantization",
        "lowgemm.compat.gemmlowp",
        "lowgemm.kernels",
    ):
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", dir(module)):
            value = getattr(module, public)
            if (
                inspect.isclass(value)
                and value.__module__.startswith("lowgemm")
                and not public.startswith("_")
            ):
                assert value in found, value


@pytest.mark.parametrize("name", copied.OBJECTS)
def test_copies_outlive_the_original(name):
    cls, make, use = copied.OBJECTS[name]
    assert type(make()) is cls
    expected = copied.plain(use(make()))
    for way, copied_by in WAYS.items():
        original = make()
        twin = copied_by(original)
        del original
        churn()
        assert type(twin) is cls
        assert copied.plain(use(twin)) == expected, way


@pytest.mark.parametrize(
    "name", [n for n, (c, _, _) in copied.OBJECTS.items() if issubclass(c, lowgemm.Stage)]
)
def test_a_copied_stage_is_equal_and_read_only(name):
    """But a lambda, which is another function in a pickle."""
    _, make, _ = copied.OBJECTS[name]
    for way, copied_by in WAYS.items():
        twin = copied_by(make())
        assert (name == "lambda" and way.startswith("pickle")) or twin == make(), way
        for field in twin.channel_fields:
            vector = getattr(twin, field)
            assert not isinstance(vector, np.ndarray) or not vector.flags.writeable


def test_copies_are_apart():
    """What one does to a deep copy, the original does not see; what it does to memory of its own, the copy
    does not.
    """
    _, make, use = copied.OBJECTS["Adam"]
    for way in ("deepcopy", "pickle 5"):
        original = make()
        before = copied.plain((original.params, original.state_dict()))
        use(WAYS[way](original))
        assert copied.plain((original.params, original.state_dict())) == before
    original = copied.OBJECTS["map"][1]()
    twin = copy.deepcopy(original)
    twin.view()[...] = -1
    assert not (original.data == -1).any() and (copy.copy(original).view() == original.view()).all()
    assert np.shares_memory(copy.copy(original).view(), original.data)


@pytest.mark.parametrize("cls", copied.REFUSED, ids=lambda c: f"{c.__module__}.{c.__qualname__}")
def test_refusals_say_what_to_do(cls):
    if cls is team.Team and not team.available():
        pytest.skip("no team of threads on this system")
    thing = copied.REFUSED[cls]()
    assert type(thing) is cls
    for way, copied_by in WAYS.items():
        with pytest.raises(TypeError, match=rf"^{cls.__name__}: holds addresses of this process, .*; \w+"):
            copied_by(thing)
        with pytest.raises(TypeError, match=rf"^{cls.__name__}: holds addresses"):
            copied_by([thing])[0] if way != "copy" else copied_by(thing)


def test_pickles_in_another_process(tmp_path):
    todo, expected = {}, {}
    for name, (_, make, use) in copied.OBJECTS.items():
        todo[name] = pickle.dumps(make())
        expected[name] = copied.plain(use(make()))
    (tmp_path / "in").write_bytes(pickle.dumps(todo))
    done = subprocess.run(
        [sys.executable, str(HERE / "test_copies.py"), str(tmp_path / "in"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    got = pickle.loads((tmp_path / "out").read_bytes())
    assert [name for name in expected if got[name] != expected[name]] == []


def main(source: str, to: str) -> None:
    """Load the pickles of a file, use each, and write what they gave."""
    results = {}
    for name, data in pickle.loads(pathlib.Path(source).read_bytes()).items():
        twin = pickle.loads(data)
        churn()
        results[name] = copied.plain(copied.OBJECTS[name][2](twin))
    pathlib.Path(to).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
