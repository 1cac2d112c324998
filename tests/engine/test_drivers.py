"""Several workers of one product: whoever comes, and whoever does not, the result is the same."""

from __future__ import annotations

import numba
import numpy as np
import pytest

import lowgemm
from lowgemm import reference
from lowgemm.engine import blocking, drivers, planner
from lowgemm.engine import threads as module
from lowgemm.engine.records import STATE_SIZE
from lowgemm.jit import scratch

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="compiled code only")


@pytest.fixture
def small_work_is_shared(monkeypatch):
    monkeypatch.setattr(module, "MACS_PER_THREAD", 1)
    monkeypatch.setattr(planner, "OWN_RHS_ROWS", 4)
    for name, small in (("BLOCK_MACS", 1), ("BLOCK_ROWS", 8), ("BLOCK_COLUMNS", 16)):
        monkeypatch.setattr(blocking, name, small)


def operands(seed: int, m: int, k: int, n: int, batch: tuple[int, ...] = ()):
    rng = np.random.default_rng(seed)
    lhs = rng.integers(0, 256, (*batch, m, k), dtype=np.uint8)
    return lhs, rng.integers(-128, 128, (*batch, k, n), dtype=np.int8)


@pytest.mark.parametrize("shape", [(40, 33, 70), (130, 64, 64), (64, 300, 5)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", [(0,), (1,), (1, 0), (0, 1)])
def test_any_worker_does_all_the_work(any_kernel, small_work_is_shared, shape, packed, order):
    """The workers come one after the other; the first does everything. Blocks beside one another share their
    rows.
    """
    lhs, rhs = operands(1, *shape)
    right = lowgemm.pack_rhs(rhs) if packed else rhs
    plan = lowgemm.plan(lhs, right, num_threads=2).plan
    assert plan.threads == min(2, numba.get_num_threads())
    if plan.threads == 1:
        pytest.skip("one core")
    out = np.zeros((shape[0], shape[2]), np.int32)
    space = scratch.borrow(plan.scratch_bytes)
    space[:] = 0x55
    state = np.full(STATE_SIZE, 77, np.int64)
    first = (right.panels_address, right.sums_address) if packed else (rhs.ctypes.data, 0)
    drivers.begin.ctypes(
        plan.numbers.ctypes.data, state.ctypes.data, lhs.ctypes.data, *first, out.ctypes.data,
        space.ctypes.data, 0, 0, 0, 0,
    )  # fmt: skip
    for worker in order:
        drivers.work.ctypes(plan.numbers.ctypes.data, state.ctypes.data, worker)
        np.testing.assert_array_equal(out, reference.gemm(lhs, rhs))
    scratch.give_back(space)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_each_thread_packs_an_rhs_for_itself(any_kernel, small_work_is_shared, batch):
    """With zero points of every kind and stages; not where there are several rhs, few rows, or a
    large rhs.
    """
    rng = np.random.default_rng(5)
    lhs, rhs = operands(2, 96, 50, 60, batch)
    own = lowgemm.plan(lhs, rhs, num_threads=2).plan.p.own_rhs
    assert own == (not batch and numba.get_num_threads() > 1)
    stages = [lowgemm.BiasAddition(rng.integers(-99, 99, 60)), lowgemm.Requantize(1e-3, 5, np.uint8)]
    for zeros in (
        {},
        {"lhs_zero_point": 7, "rhs_zero_point": -3},
        {"lhs_zero_point": rng.integers(0, 9, 96), "rhs_zero_point": rng.integers(-9, 9, 60)},
    ):
        for output in (None, stages):
            expected = reference.gemm(lhs, rhs, output=output, **zeros)
            for _ in range(30):
                got = lowgemm.gemm(lhs, rhs, output=output, num_threads=2, **zeros)
                np.testing.assert_array_equal(got, expected)


def test_who_packs_an_rhs_for_itself(small_work_is_shared):
    """Nobody with one thread, a packed rhs, few rows or an rhs that is large beside L2."""
    lhs, rhs = operands(3, 96, 50, 60)
    assert lowgemm.plan(lhs, rhs, num_threads=1).plan.p.own_rhs == 0
    assert lowgemm.plan(lhs, lowgemm.pack_rhs(rhs), num_threads=2).plan.p.own_rhs == 0
    assert lowgemm.plan(lhs[:7], rhs, num_threads=2).plan.p.own_rhs == 0
    wide = np.zeros((4096, 4096), np.int8)
    assert lowgemm.plan(np.zeros((96, 4096), np.uint8), wide, num_threads=2).plan.p.own_rhs == 0
