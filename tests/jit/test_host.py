"""What is asked of each operating system, with systems that are pretended, and with the one that is here."""

from __future__ import annotations

import ctypes
import errno
import os
import pathlib
import platform
import re
import struct
import sys
import threading

import pytest

import lowgemm
from lowgemm.jit import host


class MacOS:
    """A libc that knows some numbers by name, as 4 or 8 bytes, and how many threads run."""

    def __init__(self, threads: int = 1, **numbers: tuple[int, int]) -> None:
        self.numbers, self.threads = {k.replace("__", "."): v for k, v in numbers.items()}, threads

    def sysctlbyname(self, name, value, size, new, new_size):
        """As in <sys/sysctl.h>: 0 and the number, or -1."""
        assert new is None and new_size.value == 0 and size._obj.value == 8
        if name.decode() not in self.numbers:
            ctypes.set_errno(errno.ENOENT)
            return -1
        number, nbytes = self.numbers[name.decode()]
        ctypes.memmove(ctypes.addressof(value._obj), number.to_bytes(nbytes, "little"), nbytes)
        size._obj.value = nbytes
        return 0

    def proc_pidinfo(self, pid, flavor, arg, buffer, nbytes):
        """As in <libproc.h>: bytes written."""
        assert pid == os.getpid() and flavor == 4 and arg.value == 0 and nbytes == ctypes.sizeof(buffer)
        # proc_taskinfo: six 64-bit numbers, then policy, faults, pageins, cow_faults, messages (2), syscalls
        # (2), csw, threadnum, numrunning, priority
        buffer.raw = struct.pack("<6Q12i", *range(100, 106), *range(200, 209), self.threads, 300, 301)
        return nbytes


M1 = MacOS(
    hw__perflevel0__l1dcachesize=(128 << 10, 8), hw__l1dcachesize=(64 << 10, 8),
    hw__perflevel0__l2cachesize=(12 << 20, 4), hw__l2cachesize=(4 << 20, 8), hw__perflevel0__cpusperl2=(4, 4),
    hw__optional__arm__FEAT_DotProd=(1, 4), hw__optional__arm__FEAT_I8MM=(0, 4),
)  # fmt: skip
M2 = MacOS(hw__optional__arm__FEAT_DotProd=(1, 4), hw__optional__arm__FEAT_I8MM=(1, 4))
INTEL_MAC = MacOS(
    hw__l1dcachesize=(32 << 10, 8), hw__l2cachesize=(256 << 10, 8), hw__l3cachesize=(8 << 20, 8)
)


class Windows:
    """A kernel32 that lists caches as (level, bytes, kind): 0 unified, 1 instructions, 2 data."""

    def __init__(self, *caches: tuple[int, int, int], works: bool = True) -> None:
        # head, cache, 18 reserved bytes, group count, one group mask: 56 bytes, of which the system may make
        # more
        self.content = b"".join(
            struct.pack("<IIBBHII18sH16s8s", 2, 64, level, 8, 64, nbytes, kind, b"", 1, b"", b"")
            for level, nbytes, kind in caches
        )
        self.works = works

    def GetLogicalProcessorInformationEx(self, relation, buffer, size):
        """As in <sysinfoapi.h>: the size wanted if the buffer is too small."""
        assert relation == 2
        if not self.works:
            return 0
        if buffer is None or size._obj.value < len(self.content):
            size._obj.value = len(self.content)
            return 0
        buffer.raw = self.content
        return 1


@pytest.fixture
def pretend(monkeypatch):
    """Another operating system, with its own library."""

    def change(name: str, library: object = None) -> None:
        monkeypatch.setattr(sys, "platform", name)
        monkeypatch.setattr(host, "_libc", lambda: library)
        monkeypatch.setattr(host, "_kernel32", lambda: library)

    return change


def test_caches_of_macos(pretend):
    pretend("darwin", M1)
    assert host.caches() == {1: 128 << 10, 2: 3 << 20, 3: 12 << 20}  # the fast cores; four share level 2
    pretend("darwin", INTEL_MAC)
    assert host.caches() == {1: 32 << 10, 2: 256 << 10, 3: 8 << 20}
    pretend("darwin", MacOS())
    assert host.caches() == {}


def test_caches_of_windows(pretend):
    first = (1, 32 << 10, 1), (1, 48 << 10, 2), (2, 2 << 20, 0)
    second = (1, 32 << 10, 2), (1, 64 << 10, 1), (2, 4 << 20, 0)
    pretend("win32", Windows(*first, *second, (3, 30 << 20, 0)))
    assert host.caches() == {1: 48 << 10, 2: 2 << 20, 3: 30 << 20}
    pretend("win32", Windows((1, 48 << 10, 2), works=False))
    assert host.caches() == {}


def test_caches_of_linux(tmp_path):
    assert host.linux_caches(str(tmp_path)) == {}
    for i, (kind, level, size) in enumerate(
        [("Data", "1", "48K"), ("Instruction", "1", "32K"), ("Unified", "2", "2M"), ("Unified", "x", "2M")]
    ):
        (tmp_path / f"index{i}").mkdir()
        for name, text in {"type": kind, "level": level, "size": size}.items():
            (tmp_path / f"index{i}" / name).write_text(text + "\n")
    assert host.linux_caches(str(tmp_path)) == {1: 48 << 10, 2: 2 << 20}


@pytest.mark.parametrize("name", ["freebsd14", "sunos5", "linux", "darwin", "win32"])
def test_a_system_without_answers(pretend, monkeypatch, name):
    """Neither the functions nor the folders are there."""
    pretend(name, object())
    monkeypatch.setattr(host, "CPU0", "/nowhere")
    assert host.caches() == {} and host.arm_features() is None


def test_instructions_of_an_arm_mac(pretend):
    pretend("darwin", M1)
    assert host.arm_features() == {"dotprod"}
    pretend("darwin", M2)
    assert host.arm_features() == {"dotprod", "i8mm"}
    pretend("darwin", MacOS())  # macOS 11
    assert host.arm_features() is None


@pytest.mark.parametrize(
    ("hwcap", "hwcap2", "expected"),
    [
        (0, 0, set()),
        (1 << 20, 0, {"dotprod"}),
        (1 << 20, 1 << 13, {"dotprod", "i8mm"}),
        (1 << 13, 1 << 20, set()),
    ],
)
def test_instructions_of_arm_linux(pretend, hwcap, hwcap2, expected):
    class Libc:
        @staticmethod
        def getauxval(entry):
            return {16: hwcap, 26: hwcap2}[entry]

    pretend("linux", Libc)
    assert host.arm_features() == expected


def test_threads_of_macos(pretend):
    pretend("darwin", MacOS(threads=7))
    assert host.thread_count() == 7


@pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"), reason="only Linux and macOS say how many threads there are"
)
def test_threads_of_this_system():
    before, stop = host.thread_count(), threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    during = host.thread_count()
    stop.set()
    thread.join()
    assert during == before + 1


@pytest.mark.skipif(sys.platform not in ("linux", "darwin", "win32"), reason="no other system is asked")
def test_caches_of_this_system():
    """In a virtual machine a level may be missing, but what there is makes sense."""
    found = host.caches()
    sizes = [found[level] for level in sorted(found)]
    assert sizes == sorted(sizes) and all(4 << 10 <= size < 1 << 34 for size in sizes)


@pytest.mark.skipif(platform.machine() not in ("aarch64", "arm64"), reason="no Arm CPU")
@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no other system is asked")
def test_instructions_of_this_arm_cpu():
    assert host.arm_features() is not None


def test_hook_where_nothing_forks(monkeypatch):
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    assert host.after_fork_in_child(lambda: None) is False


def test_who_lets_another_thread_run(pretend):
    """Each system's function; none where there is none, which only makes waiting threads slower."""
    library = ctypes.CDLL(None) if sys.platform != "win32" else None

    class Named:
        SwitchToThread = sched_yield = library and library.getpid

    asked = host.give_way.__wrapped__
    for name in ("win32", "darwin", "linux") if library else ():
        pretend(name, Named)
        assert asked() == ctypes.cast(library.getpid, ctypes.c_void_p).value
    pretend("sunos5", object())
    assert asked() == 0


#: Questions whose answers differ from system to system, and what some systems lack.
OF_ONE_SYSTEM = re.compile(
    r"""sys\.platform|os\.name\b|platform\.(?:system|machine)\(|["']/(?:proc|sys|dev)/"""
    r"""|os\.(?:fork|sched_|symlink|getuid|mkfifo)"""
    r"""|\b(?:mprotect|fcntl|resource|msvcrt|winreg|pwd)\b *(?:\.|$)"""
    r"""|register_at_fork|WinDLL|CDLL\(|signal\.(?:SIG|setitimer|pthread)"""
)
#: Where they may stand, and why.
WRITTEN_FOR_SYSTEMS = {
    "jit/host.py": "the one place",
    "jit/team.py": "threads of Linux; elsewhere Numba's parallel regions",
    "kernels/framework/tile_permission.py": "Linux's permission for tile registers; other systems get no AMX",
    "kernels/tools/timing.py": "a tool that counts the cores it may use where the system says",
    "cli/bench.py": "notes the machine's name beside figures",
}


def test_what_is_written_for_one_system_stands_in_named_places():
    package = pathlib.Path(lowgemm.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(OF_ONE_SYSTEM.search(line.split("#")[0]) for line in path.read_text("utf-8").splitlines())
    }
    assert found == set(WRITTEN_FOR_SYSTEMS)
