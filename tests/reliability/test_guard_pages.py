"""Nothing outside of the arrays is read or written: every kernel, both ends, odd shapes and strides."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import numpy as np
import pytest

import lowgemm
from lowgemm import reference

from . import child
from .arrays import integers, spaced

OUTSIDE = """
from tests.reliability import guard
a = guard.region(5, at_end=END)
assert a[0] == a[4] == 0
import ctypes
ctypes.c_uint8.from_address(a.ctypes.data + AT).value  # no call, which Windows' ctypes would guard
"""


@pytest.mark.parametrize(
    ("end", "at", "dies"), [(True, 4, False), (True, 5, True), (False, 0, False), (False, -1, True)]
)
def test_guard_pages_do_guard(end, at, dies):
    code = OUTSIDE.replace("END", str(end)).replace("AT", str(at))
    done = subprocess.run([sys.executable, "-c", code], cwd=child.ROOT, capture_output=True)
    # by a signal; Windows has a number for it, of which a process's exit status is the unsigned 32 bits
    ended = done.returncode in (-signal.SIGSEGV, -getattr(signal, "SIGBUS", signal.SIGSEGV), 0xC0000005)
    assert ended == dies and (dies or done.returncode == 0), done.stderr


def test_every_kernel_between_guard_pages():
    out = child.module("guard_pages", "--rounds", "2")
    assert "0 wrong" in out and int(out.split()[2]) >= 80


def test_canaries_around_out(any_kernel, threads):
    """`out` as a view with gaps, any axis order and sign of strides: the gaps keep their bytes."""
    r, g = random.Random(any_kernel), np.random.default_rng(1)
    for _ in range(12):
        m, k, n = r.randrange(1, 70), r.randrange(0, 70), r.randrange(1, 70)
        a, b = integers(r, g, np.uint8, (m, k)), integers(r, g, np.int8, (k, n))
        stages = r.choice((None, lowgemm.Requantize(0.01, 3, np.uint8), lowgemm.Dequantize(0.5)))
        expected = reference.gemm(a, b, output=stages)
        out, buffer = spaced(r, np.zeros_like(expected))
        untouched = buffer.copy()
        lowgemm.gemm(a, b, output=stages, out=out, num_threads=threads)
        assert (out == expected).all()
        out[...] = 0
        assert buffer.tobytes() == untouched.tobytes()
