"""The loop of `soak.py`, shortened, and the places where memory could pile up."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from patience import PATIENCE

import lowgemm
from lowgemm.engine import seen as memory
from lowgemm.jit import scratch

from . import child


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_short_soak():
    # compiling takes tens of MiB, and is not what is measured: the first run fills the disk cache, whatever
    # it says
    first = [sys.executable, "-m", "tests.reliability.soak", "--calls", "12000"]
    subprocess.run(first, env=child.ENVIRONMENT, cwd=child.ROOT, capture_output=True, timeout=PATIENCE)
    result = json.loads(child.module("soak", "--calls", "12000"))
    assert result["wrong"] == 0 and result["growth MiB"] <= result["bound MiB"]


def test_plans_are_bounded():
    seen = memory.Seen()
    for i in range(3 * seen.LIMIT):
        seen.add(i, i)
        assert len(seen._entries) <= seen.LIMIT


def test_large_scratch_goes_back():
    assert scratch.KEEP_BYTES <= 64 << 20
    scratch.give_back(scratch.aligned_empty(1000))
    kept = scratch._local.buffer
    scratch.give_back(np.empty(scratch.KEEP_BYTES + 1, np.uint8))
    assert scratch._local.buffer is kept
    lowgemm.gemm(np.ones((3, 3), np.uint8), np.ones((3, 3), np.uint8))
