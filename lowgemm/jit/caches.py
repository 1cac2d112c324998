"""Sizes of this machine's data caches, as the operating system tells them; conservative guesses where it does
not.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from lowgemm.jit import host


class CacheSizes(NamedTuple):
    """Bytes of level 1 data, level 2 and level 3 cache (level 3 is shared by all cores listed with it)."""

    l1: int
    l2: int
    l3: int


#: Smallest sizes seen on CPUs of the last ten years; a block that fits these fits everywhere.
FALLBACK = CacheSizes(32 << 10, 256 << 10, 4 << 20)


@functools.cache
def cache_sizes() -> CacheSizes:
    """Ask for the cache sizes, once.

    Examples
    --------
    >>> sizes = cache_sizes()
    >>> 0 < sizes.l1 <= sizes.l2 <= sizes.l3
    True
    """
    return complete(host.caches())


def complete(found: dict[int, int]) -> CacheSizes:
    """Sizes by level, with a guess for each level that is missing: no level is smaller than the one before.

    Examples
    --------
    >>> complete({1: 131072, 2: 8 << 20})
    CacheSizes(l1=131072, l2=8388608, l3=8388608)
    """
    l1, l2, l3 = (found.get(level, guess) for level, guess in zip((1, 2, 3), FALLBACK, strict=True))
    l2 = max(l2, l1)
    return CacheSizes(l1, l2, max(l3, l2))
