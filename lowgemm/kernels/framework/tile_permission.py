"""Linux gives a process the state of AMX's tile registers (8 KiB a thread) when it asks, and not before.

The first tile instruction of a process that has not asked is an illegal instruction. The request is for the
whole process: for threads that run already and for those to come, and a forked child inherits it. It is made
when a kernel is first chosen, never at import.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import sys

#: `arch_prctl` on x86-64, its request for a state component, and the number of the tiles' data among them
#: (Linux's `asm/prctl.h`, and `Documentation/arch/x86/xstate.rst`).
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18
#: What the answers mean.
_MEANING = {
    errno.EINVAL: "this Linux knows no such request; it came with 5.16",
    errno.EOPNOTSUPP: "this Linux or this virtual machine does not offer the state",
    errno.ENOSPC: "a thread's alternative signal stack is too small for it",
    errno.EPERM: "it is not permitted",
}


@functools.cache
def refusal() -> str:
    """Ask once; "" if tiles may be used, or why not."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        here = f"{sys.platform} on {platform.machine()}"
        return f"tile registers are asked for on Linux for x86-64 only, and this is {here}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_REQUEST), ctypes.c_long(_TILE_DATA)) == 0:
        return ""
    code = ctypes.get_errno()
    return f"the request for tile registers was refused: {_MEANING.get(code, os.strerror(code))}"
