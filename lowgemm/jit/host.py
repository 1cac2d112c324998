"""What only the operating system knows, each system's way.

| | Linux | macOS | Windows |
| --- | --- | --- | --- |
| sizes of caches | ``/sys/devices/system/cpu`` | ``sysctlbyname`` | ``GetLogicalProcessorInformationEx`` |
| instructions of an Arm CPU | auxiliary vector | ``sysctlbyname`` | not asked: LLVM's name decides |
| threads of this process | ``/proc/self/task`` | ``proc_pidinfo`` | not asked: there is no fork |
| a hook in a forked child | ``os.register_at_fork`` | the same | no fork |
| let another thread have the core | ``sched_yield`` | ``sched_yield`` | ``SwitchToThread`` |
| memory on large pages | ``madvise`` | not asked for | not asked for |

Each question has an answer that says "not known": a system that is none of these, or one that hides it (a
container without ``/proc``), costs speed or a diagnosis, never a right result.

Two more files are written for one system, Linux, and step aside elsewhere: `team.py`, whose threads sleep on
Linux's futexes (elsewhere Numba's parallel regions serve), and `kernels/framework/tile_permission.py`, which
asks Linux for tile registers. There is no fourth (`tests/jit/test_host.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import pathlib
import struct
import sys
from collections.abc import Callable
from typing import Any

CPU0 = "/sys/devices/system/cpu/cpu0/cache"
# Linux: getauxval's AT_HWCAP and AT_HWCAP2, and HWCAP_ASIMDDP and HWCAP2_I8MM of arm64's <asm/hwcap.h>.
_LINUX_ARM = {"dotprod": (16, 1 << 20), "i8mm": (26, 1 << 13)}
_MACOS_ARM = {"dotprod": "hw.optional.arm.FEAT_DotProd", "i8mm": "hw.optional.arm.FEAT_I8MM"}
# Windows: RelationCache, CacheInstruction, and where the fields lie in a
# SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX.
_RELATION_CACHE, _INSTRUCTIONS = 2, 1
_HEAD, _CACHE = struct.Struct("<II"), struct.Struct("<BBHII")
# macOS: PROC_PIDTASKINFO, and pti_threadnum within the proc_taskinfo of <sys/proc_info.h>.
_TASK_INFO, _TASK_INFO_BYTES, _THREADS_AT = 4, 96, 84


def _libc() -> Any:
    return ctypes.CDLL(None)


def _kernel32() -> Any:
    return ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]


def _sysctl(name: str) -> int | None:
    """A number that macOS knows by name."""
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    # A 32-bit answer leaves the upper half as it is: 0.
    if _libc().sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    return int(value.value)


# ---- caches ------------------------------------------------------------------------------------------------
def caches() -> dict[int, int]:
    """Bytes of the data caches that the first core uses, by level; without the levels that are not known."""
    with contextlib.suppress(OSError, AttributeError, ValueError, struct.error):
        if sys.platform == "linux":
            found = linux_caches(CPU0)
        elif sys.platform == "darwin":
            found = _macos_caches()
        elif sys.platform == "win32":
            found = _windows_caches()
        else:
            found = {}
        return {level: size for level, size in found.items() if size > 0}
    return {}


def linux_caches(root: str) -> dict[int, int]:
    """`caches` by Linux's folder of one core."""
    found = {}
    for index in sorted(pathlib.Path(root).glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            text = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        if kind != "Instruction" and text.rstrip("KMG").isdigit():
            found[level] = int(text.rstrip("KMG")) * unit
    return found


def _macos_caches() -> dict[int, int]:
    # Apple's chips have fast cores ("perflevel0") and slow ones. Several cores share one level 2 and there is
    # no level 3, so a core's share of level 2 is taken for its own, and all of it for what is shared.
    fast = "hw.perflevel0.l2cachesize"
    l1 = _sysctl("hw.perflevel0.l1dcachesize") or _sysctl("hw.l1dcachesize") or 0
    l2, l3 = _sysctl(fast) or _sysctl("hw.l2cachesize") or 0, _sysctl("hw.l3cachesize") or 0
    cores = _sysctl("hw.perflevel0.cpusperl2") or 1
    return {1: l1, 2: l2 // cores, 3: l3 or (l2 if cores > 1 else 0)}


def _windows_caches() -> dict[int, int]:
    ask, size = _kernel32().GetLogicalProcessorInformationEx, ctypes.c_uint32(0)
    ask(_RELATION_CACHE, None, ctypes.byref(size))  # says how much room it wants
    buffer = ctypes.create_string_buffer(size.value)
    if not ask(_RELATION_CACHE, buffer, ctypes.byref(size)):
        return {}
    found: dict[int, int] = {}
    at = 0
    while at + _HEAD.size + _CACHE.size <= size.value:
        _, step = _HEAD.unpack_from(buffer, at)
        level, _, _, nbytes, kind = _CACHE.unpack_from(buffer, at + _HEAD.size)
        if kind != _INSTRUCTIONS:
            found.setdefault(level, nbytes)  # the first core's come first
        if step == 0:
            break
        at += step
    return found


# ---- instructions ------------------------------------------------------------------------------------------
def arm_features() -> frozenset[str] | None:
    """Which of ``dotprod`` and ``i8mm`` the Arm CPU has on which this runs; None where the system does not
    say.
    """
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform == "linux":
            ask = _libc().getauxval
            ask.argtypes, ask.restype = [ctypes.c_ulong], ctypes.c_ulong
            return frozenset(name for name, (entry, bit) in _LINUX_ARM.items() if ask(entry) & bit)
        if sys.platform == "darwin":
            said = {name: _sysctl(asked) for name, asked in _MACOS_ARM.items()}
            if any(answer is not None for answer in said.values()):  # macOS 11 knows none of these names
                return frozenset(name for name, answer in said.items() if answer)
    return None


# ---- processes ---------------------------------------------------------------------------------------------
def thread_count() -> int | None:
    """Threads of this process; None where the system does not say."""
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform == "darwin":
            info = ctypes.create_string_buffer(_TASK_INFO_BYTES)
            zero = ctypes.c_uint64(0)
            got = _libc().proc_pidinfo(os.getpid(), _TASK_INFO, zero, info, _TASK_INFO_BYTES)
            return struct.unpack_from("<i", info, _THREADS_AT)[0] if got == _TASK_INFO_BYTES else None
        return len(os.listdir("/proc/self/task"))
    return None


def after_fork_in_child(function: Callable[[], None]) -> bool:
    """Have `function` called in every forked child; False where processes cannot fork."""
    if not hasattr(os, "register_at_fork"):
        return False
    os.register_at_fork(after_in_child=function)
    return True


@functools.cache
def give_way() -> int:
    """Address of a C function without arguments that lets another thread have this one's core; 0 if there is
    none.
    """
    try:
        function = _kernel32().SwitchToThread if sys.platform == "win32" else _libc().sched_yield
        return int(ctypes.cast(function, ctypes.c_void_p).value or 0)
    except (OSError, AttributeError):
        return 0


# ---- memory ------------------------------------------------------------------------------------------------
def large_pages(nbytes: int, page: int) -> memoryview | None:
    """Fresh memory that begins on a boundary of `page` bytes, whose whole pages of that size the system is
    asked to make large ones; None where there is no asking. It is given back with the last array over it.

    Linux's large pages are called transparent: what is asked for is given if there is a piece that large, and
    small pages serve otherwise. Memory from ``malloc`` may have small pages already, which stay.
    """
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    whole = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    with contextlib.suppress(OSError, OverflowError):  # no memory, or a Linux without large pages
        memory = mmap.mmap(-1, whole + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % page
        memory.madvise(mmap.MADV_HUGEPAGE, start, whole)
        return memoryview(memory)[start : start + nbytes]
    return None
