"""A machine on which small products take the ways of large ones: threads, split and shared depth, an rhs
block by block.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from lowgemm.engine import blocking, planner, threads
from lowgemm.jit.caches import CacheSizes

#: Caches at which a depth of 50 is split and an rhs of 2 KB is packed on the fly.
CACHES = CacheSizes(1 << 10, 1 << 12, 1 << 15)
#: Multiply-accumulates for which a second thread is used.
MACS_PER_THREAD = 1000


def caches(small: bool) -> None:
    """Pretend to have small caches, or stop it; what `gemm` remembers is for others, so it is dropped."""
    planner.cache_sizes = (lambda: CACHES) if small else _REAL
    blocking.SPLIT_DEPTH = 16 if small else _SPLIT_DEPTH
    planner.OWN_RHS_ROWS = 4 if small else _OWN_RHS_ROWS
    planner.NEAR_L3, planner.STREAM_L2 = (0, 0) if small else _STREAM  # no cache keeps a result
    for seen in (sys.modules["lowgemm.engine.call"]._plans, sys.modules["lowgemm.gemm"]._calls):
        seen._entries.clear()


_REAL, _SPLIT_DEPTH, _OWN_RHS_ROWS = planner.cache_sizes, blocking.SPLIT_DEPTH, planner.OWN_RHS_ROWS
_STREAM = planner.NEAR_L3, planner.STREAM_L2


@contextlib.contextmanager
def small_machine(small_caches: bool = True) -> Iterator[None]:
    """All of that, until the end of the block."""
    before = threads.MACS_PER_THREAD
    threads.MACS_PER_THREAD = MACS_PER_THREAD
    caches(small_caches)
    try:
        yield
    finally:
        threads.MACS_PER_THREAD = before
        caches(False)
