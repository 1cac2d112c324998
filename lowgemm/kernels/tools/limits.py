"""What the machine allows: the kernel's register-only peak, its microkernel in L1, and the read bandwidth."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from lowgemm import kernels
from lowgemm.engine import packing
from lowgemm.jit.caches import cache_sizes
from lowgemm.jit.pages import weights_empty
from lowgemm.jit.scratch import aligned_empty
from lowgemm.kernels import Kernel
from lowgemm.kernels.tools import peak


def panel_bytes() -> int:
    """What the panels of the microkernel measurement take: seven eighths of L1, which leaves room for the
    result.
    """
    return cache_sizes().l1 * 7 // 8


def register_call(kernel: Kernel) -> tuple[Any, int]:
    """Call of the register-only loop, and its multiply-accumulates."""
    steps = 200_000
    source, sink = aligned_empty(1024), aligned_empty(256)
    source[:] = np.arange(1024) % 100 + 1
    loop = peak.register_loop(kernel).ctypes
    addresses = source.ctypes.data, sink.ctypes.data
    keep = (source, sink)

    def call() -> None:
        loop(steps, *addresses)
        _ = keep

    return call, steps * peak.macs_per_step(kernel)


def microkernel_call(
    kernel: Kernel, depth: int | None = None, times: int = 200, m: int | None = None, nv: int | None = None
) -> tuple[Any, int]:
    """Call of the microkernel on one tile (the main one) in L1, and its multiply-accumulates."""
    m, nv = m or kernel.row_tiles[0], nv or kernel.max_nv
    nr = nv * kernel.lanes
    if depth is None:
        depth = panel_bytes() // ((kernel.mr + kernel.nr) * kernel.element_bytes) // 16 * 16
    if kernel.row_bytes:
        depth = max(depth // kernel.row_bytes, 1) * kernel.row_bytes
    row_bytes = packing.padded_depth_bytes(kernel, depth)
    lhs_stride = row_bytes if kernel.row_bytes else kernel.mr * row_bytes
    lhs, rhs = aligned_empty(kernel.mr * row_bytes), aligned_empty(nr * row_bytes)
    rng = np.random.default_rng(0)
    for a in (lhs, rhs):
        a[:] = rng.integers(0, 128, a.size, dtype=np.uint8)
    c = aligned_empty(4 * m * nr)
    compensation = np.zeros(max(m, nr), dtype=np.int32)
    args = (
        m, nv, packing.groups(kernel, depth), lhs.ctypes.data, lhs_stride,
        rhs.ctypes.data, kernel.lanes * row_bytes, c.ctypes.data, nr,
        compensation.ctypes.data, compensation.ctypes.data, 0, 0, 0,
    )  # fmt: skip
    address = kernels.microkernel(kernel).address
    keep = (lhs, rhs, c, compensation)

    def call() -> None:
        peak.repeat(address, times, args)
        _ = keep

    return call, times * m * nr * depth


@numba.njit(nogil=True, fastmath=True)
def _sum(a: np.ndarray) -> int:
    """Sum of an int64 vector."""
    total = np.int64(0)
    for i in range(a.size):
        total += a[i]
    return total


def read_call(megabytes: int = 256) -> tuple[Any, int]:
    """Call that reads a buffer much larger than L3 on one thread, and its bytes: memory as packed weights
    have it.
    """
    a = weights_empty(megabytes << 20).view(np.int64)
    a[:] = 1
    return (lambda: _sum(a)), a.nbytes
