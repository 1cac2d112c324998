"""An lhs that a kernel of panels reads where it lies, beside the definition; and which ones are read so."""

from __future__ import annotations

import numpy as np
import pytest

import lowgemm
from lowgemm import kernels, reference
from lowgemm.engine import listed
from lowgemm.engine.plan import Operand, Plan
from lowgemm.engine.records import LISTED

#: Kernels that read panels, or where they are told to, and that run here.
READS = [k.name for k in kernels.all_kernels() if k.scatters and not k.row_bytes and not kernels.why_not(k)]
pytestmark = pytest.mark.skipif(not READS, reason="this CPU has no kernel that reads a list")


def plan(m, n, depth, kernel=None, row=None, kind="u", rhs="i", packed=True):
    lhs = Operand((m, depth), (row or depth, 1), kind)
    return Plan(
        kernels.by_name(kernel or READS[0]), lhs, Operand((depth, n), (0, 0) if packed else (n, 1), rhs),
        result=np.dtype(np.int32), out_strides=(4 * n, 4), packed=packed, num_threads=1,
    )  # fmt: skip


@pytest.mark.parametrize("kernel", READS)
def test_equals_its_definition(kernel, monkeypatch):
    """Any number of rows and columns, rows with gaps, zero points of every kind, stages, threads."""
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    monkeypatch.setattr(listed, "ROWS", 1)
    monkeypatch.setattr(listed, "COLUMNS", 100)
    for seed in range(80):
        g = np.random.default_rng(seed)
        m, n, depth = int(g.integers(1, 600)), int(g.integers(1, 101)), 4 * int(g.integers(1, 60))
        gap = int(g.choice([0, 0, 4, 7, 64]))
        x = g.integers(0, 256, (m, depth + gap), dtype=np.uint8)[:, gap // 2 :][:, :depth]
        w = g.integers(-128, 128, (depth, n), dtype=np.int8)
        zeros = [
            {}, {"lhs_zero_point": 77}, {"lhs_zero_point": 3, "rhs_zero_point": -5},
            {"lhs_zero_point": g.integers(0, 256, m), "rhs_zero_point": g.integers(-128, 128, n)},
        ][seed % 4]  # fmt: skip
        stages = [
            None,
            [lowgemm.Requantize(2.0 ** -g.uniform(6, 12, n), 3, np.uint8, rounding="onnx")],
            [lowgemm.Dequantize(2.0 ** -g.uniform(6, 12, n))],
        ][int(g.integers(3))]
        expected = reference.gemm(x, w, output=stages, **zeros)
        rhs = lowgemm.pack_rhs(w)
        for threads in (1, 2):
            got = lowgemm.gemm(x, rhs, output=stages, num_threads=threads, **zeros)
            np.testing.assert_array_equal(got, expected, strict=True)
        assert plan(m, n, depth, kernel, depth + gap).p.lhs_in_place == LISTED


def test_which_are_read_so():
    """Many rows, few columns, unsigned, whole steps of the depth; not in parts of a depth."""
    assert plan(256, 32, 64).p.lhs_in_place == LISTED
    assert plan(256, 32, 64, row=67).p.lhs_in_place == LISTED
    assert plan(256, 32, 64, packed=False).p.lhs_in_place in (LISTED, 0)
    for other in (
        plan(255, 32, 64), plan(256, 33, 64), plan(256, 32, 66), plan(256, 32, 64, kind="i"),
        plan(256, 32, 1 << 20),
    ):  # fmt: skip
        assert other.p.lhs_in_place != LISTED


def test_explain_says_so(monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", READS[0])
    x, w = np.zeros((300, 64), np.uint8), lowgemm.pack_rhs(np.ones((64, 20), np.int8))
    assert "lhs u8 in place" in str(lowgemm.explain(x, w))


def test_the_list():
    to, places = np.zeros(9, np.int64), listed.places_of(7)
    assert places.tolist() == list(range(7)) and listed.places_of(7) is places
    assert places.dtype == np.int64  # the kernel reads words of 64 bits
    listed.list_rows.ctypes(to.ctypes.data, 4096, 7, places.ctypes.data, 4, 5)
    assert to.tolist() == [4096, 7, places.ctypes.data, 4, 0, 4, 8, 12, 16]
