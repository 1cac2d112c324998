"""Memory for packed weights, on large pages where the system has them.

A product of few rows reads each weight once and waits for nothing but memory. On pages of 4 KiB it waits for
their addresses too: a CPU finds those of some 2,000 pages, 8 MiB, without asking memory, and on a virtual
machine asking means up to 24 reads. Reading 9 MB that no cache held took 0.61 ms on pages of 4 KiB and 0.49
on pages of 2 MiB (2 cores of an Intel Xeon with AMX, a virtual machine); NumPy's own arrays, whose first and
last page are small ones, took 0.59.

Weights that are read one after another, as a model's are, lie on large pages together (`together`). The
encoder of a T5 with 56 weights of 0.2 to 0.5 MB took 4.62 ms so, and 5.00 with each in memory of its own. And
of a weight of 1.2 MB that has a large page of its own the rest of the page is lost: 14 of 82 MiB in a model
with many.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from lowgemm.jit import host, scratch

#: Bytes of a large page: 2 MiB on x86-64, and on aarch64 with small pages of 4 KiB.
LARGE = 2 << 20
#: A last page is a large one only if this much of it is used: the rest is taken from the system all the same.
LEAST = LARGE // 2

_local = threading.local()


@contextlib.contextmanager
def together(nbytes: int) -> Iterator[None]:
    """Within it, arrays of this thread's `weights_empty` lie one after another in memory of `nbytes`, as many
    as fit. That is given back with the last of them.
    """
    before = getattr(_local, "left", None)
    _local.left = None
    _local.left = weights_empty(nbytes) if nbytes >= LEAST else None
    try:
        yield
    finally:
        _local.left = before


def weights_empty(nbytes: int) -> np.ndarray:
    """Uninitialised uint8 array, aligned to 64 bytes, for what lives long and is often read."""
    left = getattr(_local, "left", None)
    whole = -(-nbytes // scratch.ALIGNMENT) * scratch.ALIGNMENT
    if left is not None and whole <= left.size:
        _local.left = left[whole:]
        return left[:nbytes]
    if nbytes >= LEAST:
        ends_large = nbytes % LARGE >= LEAST
        memory = host.large_pages(-(-nbytes // LARGE) * LARGE if ends_large else nbytes, LARGE)
        if memory is not None:
            return np.frombuffer(memory, np.uint8)[:nbytes]
    return scratch.aligned_empty(nbytes)
