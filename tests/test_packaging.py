"""The sdist and the wheel made from it: complete, pure Python, and they work in a fresh environment."""

from __future__ import annotations

import email
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest
from patience import PATIENCE
from programs import need

ROOT = pathlib.Path(__file__).parents[1]


def run(*command: object, **more) -> str:
    call = [str(part) for part in command]
    done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    need("what belongs to the source is not known", ["git", "--version"], packages="git")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so what belongs to the source is not known")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
    """Folder with the sdist of a clean copy, and the wheel built from that sdist (this environment's
    setuptools).
    """
    pytest.importorskip("build", reason="the package `build` is not installed (extra `test`)")
    pytest.importorskip("wheel", reason="the package `wheel` is not installed (extra `test`)")
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "lowgemm"
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (ROOT / name).is_symlink():  # `kernels`, which no build needs
            target.write_bytes((ROOT / name).read_bytes())
    # without --sdist or --wheel: the wheel is made from the unpacked sdist
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    return out


@pytest.fixture(scope="module")
def wheel(built) -> pathlib.Path:
    (path,) = built.glob("*.whl")
    return path


def test_sdist_is_complete(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as t:
        names = {name.partition("/")[2] for name in t.getnames()}
    top = {"lowgemm", "tests", "docs", "examples", "asv_bench", "LICENSE", "README.md"}
    top |= {"CHANGELOG.md", "pyproject.toml", "mkdocs.yml"}
    lost = [
        n
        for n in tracked()
        if n.split("/")[0] in top and pathlib.Path(n).name != ".gitignore" and n not in names
    ]
    assert not lost, lost
    assert {"LICENSE", "lowgemm/kernels/framework/kernel.py", "lowgemm/py.typed"} <= names
    assert [n for n in names if n.startswith("tests/data/")]


def test_is_pure_python(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_holds_no_package_called_kernels(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    assert not [n for n in names if n.startswith("kernels/")]
    for needed in (
        "lowgemm/kernels/framework/kernel.py",
        "lowgemm/data/recorded_network.npz",
        "lowgemm/py.typed",
    ):
        assert needed in names
    for package in {p.parent for p in (ROOT / "lowgemm").rglob("*.py")}:
        assert str(package.relative_to(ROOT)) + "/__init__.py" in names, (
            f"{package} is missing from pyproject.toml"
        )


def test_a_clone_beside_a_script_does_not_hide_the_package(tmp_path):
    """An editable install, used from the folder that holds the clone: the clone is called `lowgemm` too, and
    is no package.

    Installed from the clone as the README says, on a copy without the link `kernels`, which not every system
    has.
    """
    pytest.importorskip("wheel", reason="the package `wheel` is not installed (extra `test`)")
    import numba
    import numpy
    import setuptools

    clone = tmp_path / "lowgemm"
    for name in tracked():
        if name.split("/")[0] in ("lowgemm", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    lent = {str(pathlib.Path(m.__file__).parents[1]) for m in (numba, numpy, setuptools)}
    pathlib.Path(site, "lent.pth").write_text("\n".join(sorted(lent)))
    install = (
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "-e",
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LOWGEMM_"))}
    environment["NUMBA_DISABLE_JIT"] = (
        "1"  # which code is found is the question, and nothing needs to be compiled for that
    )
    # what pip builds with comes by the same path, which it does not read from the `.pth`
    run(python, *install, clone, env={**environment, "PYTHONPATH": os.pathsep.join(sorted(lent))})
    pathlib.Path(site, "lent.pth").write_text(
        "\n".join(sorted(str(pathlib.Path(m.__file__).parents[1]) for m in (numba, numpy)))
    )
    script = tmp_path / "mine.py"
    script.write_text(
        "import lowgemm, lowgemm.kernels\nprint(lowgemm.gemm([[2]], [[3]])[0, 0], lowgemm.__file__)\n"
    )
    for command in ([python, script], [python, "-c", script.read_text()], [python, "-m", "mine"]):
        said = run(*command, cwd=tmp_path, env=environment)
        assert said.split() == ["6", str(clone / "lowgemm" / "__init__.py")]


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        (name,) = [n for n in z.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_string(z.read(name).decode())
        assert [n for n in z.namelist() if ".dist-info/" in n and n.endswith("LICENSE")]
    for field in ("Name", "Version", "Summary", "Requires-Python", "Keywords"):
        assert metadata[field], field
    assert metadata["Description-Content-Type"] == "text/markdown" and "lowgemm" in metadata.get_payload()
    needs = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert sorted(r.split(">")[0].strip() for r in needs) == ["numba", "numpy"]
    pythons = [
        c for c in metadata.get_all("Classifier") if c.startswith("Programming Language :: Python :: 3.")
    ]
    assert f"Programming Language :: Python :: 3.{sys.version_info.minor}" in pythons


CHECK = """
import importlib.metadata, pathlib, sys
import numba, numpy as np
import lowgemm, lowgemm.kernels
place = pathlib.Path(sys.prefix)
for package in (lowgemm, lowgemm.kernels):
    assert place in pathlib.Path(package.__file__).parents
assert importlib.metadata.version("lowgemm") == lowgemm.__version__
(entry,) = [e for e in importlib.metadata.entry_points(group="numba_extensions") if e.dist.name == "lowgemm"]
entry.load()
x = np.arange(12, dtype=np.uint8).reshape(3, 4)
assert (lowgemm.gemm(x, x.T) == x.astype(int) @ x.T.astype(int)).all()

@numba.njit
def inside(a, b):
    return lowgemm.gemm(a, b)

assert (inside(x, x.T.copy()) == x.astype(int) @ x.T.astype(int)).all()
print("works", lowgemm.__version__)
"""


def test_works_in_a_fresh_environment(wheel, tmp_path):
    """The wheel is installed by pip; numba and NumPy are lent by a path, so that nothing is downloaded."""
    import numba
    import numpy

    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    lent = {str(pathlib.Path(m.__file__).parents[1]) for m in (numba, numpy)}
    pathlib.Path(site, "lent.pth").write_text("\n".join(sorted(lent)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LOWGEMM_"))}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    options = {"cwd": tmp_path, "env": environment}
    assert "works" in run(python, "-c", CHECK, **options)
    assert "kernel" in run(python, "-m", "lowgemm", "info", **options)
    assert "numba" in run(python.with_name("lowgemm"), "info", **options)
