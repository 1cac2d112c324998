"""Memory with inaccessible pages on both sides: a read or write one byte outside ends the process."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np


def _shut(start: int, nbytes: int) -> None:
    """Make whole pages inaccessible."""
    at, size, before = ctypes.c_void_p(start), ctypes.c_size_t(nbytes), ctypes.c_uint32()
    if sys.platform == "win32":
        done = ctypes.windll.kernel32.VirtualProtect(at, size, 1, ctypes.byref(before))  # PAGE_NOACCESS
    else:
        done = ctypes.CDLL(None).mprotect(at, size, 0) == 0  # PROT_NONE
    if not done:
        raise OSError("pages cannot be made inaccessible")


_regions: list[Any] = []


def region(nbytes: int, *, at_end: bool, align: int = 1) -> np.ndarray:
    """Bytes between two guard pages, flush with the second one (`at_end`) or the first.

    With `align` the first byte is aligned and what is left before the guard page is less than `align` bytes.
    """
    page = mmap.PAGESIZE
    inside = -(-max(nbytes, 1) // page) * page
    whole = mmap.mmap(-1, inside + 2 * page)
    base = np.frombuffer(whole, np.uint8).ctypes.data
    for start in (base, base + page + inside):
        _shut(start, page)
    _regions.append(whole)
    offset = page + ((inside - nbytes) // align * align if at_end else 0)
    return np.frombuffer(whole, np.uint8)[offset : offset + nbytes]


def release() -> None:
    """Forget the regions (each stays mapped until its arrays are gone)."""
    _regions.clear()


def guarded(a: np.ndarray, layout: str, *, at_end: bool) -> np.ndarray:
    """A copy of `a` between guard pages, its outermost element at the very edge.

    Layouts: "c", "f", "reversed" (both strides negative), "rows" (every row followed by a gap, the last by
    none), "steps" (every third element of every second row).
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
