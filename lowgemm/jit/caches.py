"""Sizes of this machine's data caches, read from Linux; conservative guesses elsewhere."""

from __future__ import annotations

import functools
import pathlib
from typing import NamedTuple


class CacheSizes(NamedTuple):
    """Bytes of level 1 data, level 2 and level 3 cache (level 3 is shared by all cores listed with it)."""

    l1: int
    l2: int
    l3: int


#: Smallest sizes seen on CPUs of the last ten years; a block that fits these fits everywhere.
FALLBACK = CacheSizes(32 << 10, 256 << 10, 4 << 20)


@functools.cache
def cache_sizes(root: str = "/sys/devices/system/cpu/cpu0/cache") -> CacheSizes:
    """Read the cache sizes.

    Examples
    --------
    >>> sizes = cache_sizes()
    >>> 0 < sizes.l1 <= sizes.l2
    True
    """
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
    return CacheSizes(*(found.get(level, guess) for level, guess in zip((1, 2, 3), FALLBACK, strict=True)))
