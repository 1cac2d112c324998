"""The wheel: pure Python, no global package `kernels`, and it works where it is installed."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Build the wheel in a copy, with this environment's setuptools."""
    pytest.importorskip("build", reason="the package `build` is not installed (extra `test`)")
    pytest.importorskip("wheel", reason="the package `wheel` is not installed (extra `test`)")
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "lowgemm"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout, so what belongs to the source is not known")
    for name in tracked.stdout.splitlines():
        if (
            name.split("/")[0] in {"lowgemm", "kernels", "pyproject.toml", "README.md", "LICENSE"}
            and (ROOT / name).exists()
        ):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    call = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_is_pure_python(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_holds_no_package_called_kernels(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    assert not [n for n in names if n.startswith("kernels/")]
    for needed in ("lowgemm/kernels/emit.py", "lowgemm/data/recorded_network.npz", "lowgemm/py.typed"):
        assert needed in names
    for package in {p.parent for p in (ROOT / "lowgemm").rglob("*.py")}:
        assert str(package.relative_to(ROOT)) + "/__init__.py" in names, (
            f"{package} is missing from pyproject.toml"
        )


def test_works_where_it_is_installed(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(tmp_path / "site")
    import numba

    code = (
        "import lowgemm, lowgemm.kernels, numpy as np; x = np.ones((3, 3), np.uint8);"
        "print(lowgemm.__file__, lowgemm.kernels.__file__, lowgemm.gemm(x, x).sum())"
    )
    env = {"PYTHONPATH": f"{tmp_path / 'site'}:{pathlib.Path(numba.__file__).parents[1]}", "PATH": "/usr/bin:/bin",
           "NUMBA_CACHE_DIR": str(tmp_path / "cache")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(tmp_path)) == 2 and done.stdout.strip().endswith("27")
