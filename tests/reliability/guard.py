"""Memory with inaccessible pages on both sides: a read or write one byte outside ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_regions: list[Any] = []


def region(nbytes: int, *, at_end: bool, align: int = 1) -> np.ndarray:
    """Bytes between two guard pages, flush with the second one (`at_end`) or the first.

    With `align` the first byte is aligned and what is left before the guard page is less than `align` bytes.
    """
    page = mmap.PAGESIZE
    inside = -(-max(nbytes, 1) // page) * page
    whole = mmap.mmap(-1, inside + 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = np.frombuffer(whole, np.uint8).ctypes.data
    for start in (base, base + page + inside):
        if _libc.mprotect(start, page, 0) != 0:  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect")
    _regions.append(whole)
    offset = page + ((inside - nbytes) // align * align if at_end else 0)
    return np.frombuffer(whole, np.uint8)[offset : offset + nbytes]


def release() -> None:
    """Forget the regions (each stays mapped until its arrays are gone)."""
    _regions.clear()


def guarded(a: np.ndarray, layout: str, *, at_end: bool) -> np.ndarray:
    """A copy of `a` between guard pages, its outermost element at the very edge.

    Layouts: "c", "f", "reversed" (both strides negative), "rows" (every row followed by a gap, the last by none),
    "steps" (every third element of every second row).
    """
    m, n = a.shape
    if layout in ("c", "f", "reversed"):
        order = "F" if layout == "f" else "C"
        flat = region(a.nbytes, at_end=at_end).view(np.uint8)
        out = np.frombuffer(flat, np.uint8).view(a.dtype).reshape((m, n), order=order)
        out = out[::-1, ::-1] if layout == "reversed" else out
    else:
        row, step = (n + 5, 1) if layout == "rows" else (2 * (3 * n + 1), 3)
        span = ((m - 1) * row + (n - 1) * step + 1) * a.itemsize
        flat = region(span, at_end=at_end).view(a.dtype)
        out = np.lib.stride_tricks.as_strided(flat, (m, n), (row * a.itemsize, step * a.itemsize))
    out[...] = a
    return out


LAYOUTS = ("c", "f", "reversed", "rows", "steps")
