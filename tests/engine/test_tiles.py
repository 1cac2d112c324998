"""The last columns of a product: a whole panel and a part of one, apart and together, on every kernel."""

from __future__ import annotations

import numpy as np
import pytest

import lowgemm
from lowgemm import kernels, reference
from lowgemm.engine.tiles import DEEP_EDGE

RUNS = [k for k in kernels.all_kernels() if not kernels.why_not(k)]


@pytest.mark.parametrize("kernel", RUNS, ids=lambda k: k.name)
@pytest.mark.parametrize("depth", [DEEP_EDGE - 1, DEEP_EDGE, DEEP_EDGE + 70])
def test_a_panel_and_the_rest_of_one(kernel, depth, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel.name)
    g = np.random.default_rng(depth)
    for m, before in ((1, 0), (37, 0), (37, kernel.nr), (300, kernel.nr)):
        n = before + kernel.lanes + int(g.integers(1, kernel.lanes + 1))
        lhs = g.integers(0, 256, (m, depth), dtype=np.uint8)
        rhs = g.integers(-128, 128, (depth, n), dtype=np.int8)
        zeros = {"lhs_zero_point": 99, "rhs_zero_point": -3}
        expected = reference.gemm(lhs, rhs, **zeros)
        wide = g.integers(-9, 9, (m, n + 5), dtype=np.int32)
        old = wide.copy()
        lowgemm.gemm(lhs, lowgemm.pack_rhs(rhs), out=wide[:, 2 : n + 2], accumulate=True, **zeros)
        old[:, 2 : n + 2] += expected
        np.testing.assert_array_equal(wide, old)
        stages = [
            lowgemm.BiasAddition(g.integers(-999, 999, n)),
            lowgemm.Requantize(g.uniform(1e-4, 1e-3, n), 7, np.int8, rounding="onnx"),
        ]
        found = lowgemm.gemm(lhs, rhs, output=stages, **zeros)
        np.testing.assert_array_equal(found, reference.gemm(lhs, rhs, output=stages, **zeros), strict=True)
