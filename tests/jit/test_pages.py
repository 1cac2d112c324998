"""Memory for packed weights: where it begins, how large it is, that it is given back, and what serves without
it.
"""

from __future__ import annotations

import mmap
import pathlib
import sys

import numpy as np
import pytest

import lowgemm
from lowgemm.jit import host
from lowgemm.jit.pages import LARGE, LEAST, together, weights_empty

ON_LINUX = sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE")
SIZES = (0, 1, LEAST - 1, LEAST, LARGE - 1, LARGE, LARGE + 1, LARGE + LEAST - 1, LARGE + LEAST, 3 * LARGE + 7)


@pytest.mark.parametrize("nbytes", SIZES)
def test_size_and_place(nbytes):
    a = weights_empty(nbytes)
    assert a.shape == (nbytes,) and a.dtype == np.uint8 and a.flags.writeable
    assert nbytes == 0 or a.ctypes.data % (LARGE if ON_LINUX and nbytes >= LEAST else 64) == 0
    a[:] = np.arange(nbytes) % 251
    b = weights_empty(nbytes)
    b[:] = 1
    assert np.array_equal(a, np.arange(nbytes) % 251)


@pytest.mark.skipif(not ON_LINUX, reason="memory on large pages is asked of Linux only")
@pytest.mark.parametrize(
    ("nbytes", "asked"),
    [
        (LEAST, LARGE),
        (LARGE + 1, LARGE + 1),
        (LARGE + LEAST - 1, LARGE + LEAST - 1),
        (LARGE + LEAST, 2 * LARGE),
    ],
)
def test_a_last_page_is_large_if_half_of_it_is_used(nbytes, asked, monkeypatch):
    found = []

    def noted(size, page):
        found.append((size, page))

    monkeypatch.setattr(host, "large_pages", noted)
    assert weights_empty(nbytes).size == nbytes
    assert found == [(asked, LARGE)]


@pytest.mark.skipif(not ON_LINUX, reason="memory on large pages is asked of Linux only")
def test_it_is_asked_for_and_given_back():
    def of_address(address):
        """The system's lines about the memory at an address."""
        lines = pathlib.Path("/proc/self/smaps").read_text().splitlines()
        inside = []
        for line in lines:
            span = line.split()[0]
            if "-" in span and not span.endswith(":"):
                low, high = (int(x, 16) for x in span.split("-"))
                inside.append((low <= address < high, []))
            inside[-1][1].append(line)
        return next((text for there, text in inside if there), [])

    a = weights_empty(4 * LARGE)
    address = a.ctypes.data
    flags = next(line for line in of_address(address) if line.startswith("VmFlags:")).split()
    assert "hg" in flags  # as madvise(MADV_HUGEPAGE) sets it
    part = a[LARGE : LARGE + 1000].view(np.float32)
    del a
    part[:] = 3
    assert (part == 3).all()
    del part
    assert not any("hg" in line.split() for line in of_address(address) if line.startswith("VmFlags:"))


def test_other_memory_serves(monkeypatch):
    """A system that is not asked, and one that has none."""

    def none(*args, **named):
        raise OSError("no memory (test)")

    with monkeypatch.context() as patch:
        patch.setattr(host.sys, "platform", "win32")
        assert host.large_pages(LARGE, LARGE) is None
        assert weights_empty(LARGE + 5).size == LARGE + 5
    with monkeypatch.context() as patch:
        patch.setattr(host.mmap, "mmap", none)
        assert host.large_pages(LARGE, LARGE) is None
        assert weights_empty(LARGE + 5).size == LARGE + 5


def test_together():
    """One after another, of any size, up to the end of their memory; those that do not fit and those outside
    have memory of their own.
    """
    outside = weights_empty(100)
    with together(5 * LARGE):
        found = [weights_empty(n) for n in (100, 64, LEAST - 1, 1, LARGE + 1)]
        with together(LEAST - 1):  # too little to ask for
            alone = weights_empty(200)
        too_large = weights_empty(4 * LARGE)
        last = [weights_empty(LEAST - 64) for _ in range(8)]
    after = weights_empty(100)
    begin = found[0].ctypes.data
    assert [a.ctypes.data - begin for a in found] == [0, 128, 192, 192 + LEAST, 256 + LEAST]
    inside = [begin <= a.ctypes.data < begin + 5 * LARGE for a in (outside, alone, too_large, after, *last)]
    assert inside == [False] * 4 + [True] * 7 + [False]
    if ON_LINUX:
        assert begin % LARGE == 0
    for i, a in enumerate((*found, alone, too_large, *last)):
        a[:] = i
    assert all((a == i).all() for i, a in enumerate((*found, alone, too_large, *last)))


def test_packed_weights_lie_there(monkeypatch):
    asked = []

    def noted(nbytes):
        asked.append(nbytes)
        return weights_empty(nbytes)

    monkeypatch.setattr("lowgemm.engine.packed_rhs.weights_empty", noted)
    monkeypatch.setattr("lowgemm.blockwise.packed4.weights_empty", noted)
    w = lowgemm.pack_rhs(np.ones((64, 48), np.int8))
    assert asked and asked[-1] >= w.panels.nbytes
    coded = lowgemm.blockwise.pack_rhs_lowbit(np.ones((64, 48), np.float32), "int4")
    assert 0 <= asked[-1] - coded.panels.nbytes - coded.scales.nbytes < 64
    assert coded.panels.ctypes.data % 64 == 0
