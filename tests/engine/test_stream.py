"""Results that are stored past the caches: the routine on blocks of any place and stride, which products go
that way, and their numbers.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm import config, kernels, reference
from lowgemm.engine import planner, threads
from lowgemm.engine.stream import register_bytes, stream
from lowgemm.jit.caches import CacheSizes
from lowgemm.jit.scratch import aligned_empty

RUNNABLE = [k.name for k in kernels.all_kernels() if not kernels.why_not(k)]
pytestmark = pytest.mark.skipif(not register_bytes(), reason="this target has no non-temporal stores")


@given(
    st.integers(1, 5), st.integers(1, 150), st.integers(0, 20), st.integers(0, 20), st.integers(0, 40),
    st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_block(rows, cols, more, place, gap, contiguous, seed):
    """At every place of an int32, and nothing else is written."""
    rng = np.random.default_rng(seed)
    place, gap = 4 * place, 4 * gap
    ld, row_stride = (cols, 4 * cols) if contiguous else (cols + more, 4 * cols + gap)
    tile = rng.integers(-(2**31), 2**31, (rows, ld), dtype=np.int32)
    memory = aligned_empty(place + rows * row_stride + 100)
    memory[:] = rng.integers(0, 256, memory.size, dtype=np.uint8)
    expected = memory.copy()
    for r in range(rows):
        start = place + r * row_stride
        expected[start : start + 4 * cols] = tile[r, :cols].view(np.uint8)
    stream.ctypes(tile.ctypes.data, ld, rows, cols, memory.ctypes.data + place, row_stride)
    np.testing.assert_array_equal(memory, expected)


@pytest.fixture
def small(monkeypatch):
    """A machine whose caches keep nothing, with threads for small products."""
    remembered = [sys.modules["lowgemm.engine.call"]._plans, sys.modules["lowgemm.gemm"]._calls]
    monkeypatch.setattr(planner, "cache_sizes", lambda: CacheSizes(48 << 10, 1 << 20, 1 << 10))
    monkeypatch.setattr(threads, "MACS_PER_THREAD", 1000)
    for memory in remembered:
        memory._entries.clear()
    yield
    for memory in remembered:
        memory._entries.clear()


def product(rng, m, k, n):
    return rng.integers(0, 256, (m, k), dtype=np.uint8), rng.integers(-128, 128, (k, n), dtype=np.int8)


def passes_caches(a, b, given_out=True, **options) -> bool:
    out = np.empty((a.shape[0], b.shape[1]), np.int32) if given_out else None
    return "past the caches" in str(lowgemm.explain(a, b, out=out, **options))


@pytest.mark.parametrize("kernel", RUNNABLE)
def test_products(kernel, small, monkeypatch):
    monkeypatch.setattr(config, "kernel", kernel)
    rng = np.random.default_rng(0)
    for m, k, n in ((100, 16, 64), (65, 128, 145), (331, 7, 16), (70, 33, 500)):
        a, b = product(rng, m, k, n)
        n_lanes = n % kernels.by_name(kernel).lanes
        for options in ({}, {"lhs_zero_point": 131, "rhs_zero_point": -3}):
            expected = reference.gemm(a, b, **options)
            for count in (1, 2):
                assert passes_caches(a, b, num_threads=count) == (n >= planner.STREAM_COLUMNS or n_lanes == 0)
                for rhs in (b, lowgemm.pack_rhs(b), np.asfortranarray(b)):
                    out = np.full((m, n), 7, np.int32)
                    assert lowgemm.gemm(a, rhs, out=out, num_threads=count, **options) is out
                    np.testing.assert_array_equal(out, expected)


def test_results_of_the_caller(small):
    rng = np.random.default_rng(1)
    a, b = product(rng, 90, 20, 160)
    expected = reference.gemm(a, b)
    wide = np.zeros((90, 171), np.int32)
    lowgemm.gemm(a, b, out=wide[:, 3:163])
    np.testing.assert_array_equal(wide[:, 3:163], expected)
    assert not wide[:, :3].any() and not wide[:, 163:].any()
    backwards = np.zeros((90, 160), np.int32)[::-1]
    np.testing.assert_array_equal(lowgemm.gemm(a, b, out=backwards), expected)
    again = lowgemm.gemm(a, b, out=expected.copy(), accumulate=True)
    np.testing.assert_array_equal(again, 2 * expected)
    stack = np.stack([a, a[::-1]])
    out = np.empty((2, 90, 160), np.int32)
    np.testing.assert_array_equal(lowgemm.gemm(stack, b, out=out), reference.gemm(stack, b))
    bias = [lowgemm.BiasAddition(np.arange(160))]
    assert passes_caches(a, b, output=bias)
    np.testing.assert_array_equal(
        lowgemm.gemm(a, b, output=bias, out=out[0]), reference.gemm(a, b, output=bias)
    )


def test_which_results(small):
    rng = np.random.default_rng(2)
    a, b = product(rng, 200, 64, 256)
    assert passes_caches(a, b)
    assert not passes_caches(a, b, given_out=False)  # memory from the system is in the caches
    assert not passes_caches(a[:32], b)  # few rows
    assert not passes_caches(a, b, output=[lowgemm.Clamp(-9, 9)])
    assert not passes_caches(*product(rng, 200, planner.STREAM_DEPTH + 1, 256))
    planner.cache_sizes = lambda: CacheSizes(48 << 10, 2 << 20, 480 << 20)  # the fixture takes it back
    assert not passes_caches(*product(rng, 210, 64, 256))
    assert passes_caches(*product(rng, 32768, 8, 64))
    planner.cache_sizes = lambda: CacheSizes(48 << 10, 1 << 20, 32 << 20)
    assert not passes_caches(*product(rng, 32769, 8, 64))
    assert passes_caches(*product(rng, 131072, 8, 64))
