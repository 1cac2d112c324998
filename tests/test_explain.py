"""`explain` tells what `gemm` does."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import lowgemm
from lowgemm.jit.caches import CacheSizes

#: `lowgemm.explain` is the function.
module = importlib.import_module("lowgemm.explain")


def test_names_kernel_tile_blocking_and_threads(kernel):
    x = np.ones((1000, 300), np.uint8)
    told = lowgemm.explain(x, x.T, num_threads=1)
    text = str(told)
    assert told.kernel == kernel and told.threads == 1 and 0 < told.share_of_peak <= 1
    for word in (kernel, "forced", "tile", "blocking", "mc", "threads   1", "scratch", "estimate"):
        assert word in text
    assert "store32" not in text and "kernel stores int32 sums itself" in text


def test_tells_of_stages_and_packing(kernel):
    x = np.zeros((40, 30), np.uint8)
    w = lowgemm.pack_rhs(x.T)
    stages = [lowgemm.BiasAddition(np.zeros(40, int)), lowgemm.Tanh(0, 9), lowgemm.SaturatingCast(np.int8)]
    text = str(lowgemm.explain(x, w, output=stages))
    assert "tanh -> store8" in text and "col_bias" in text and "packed before" in text


def test_never_a_silent_slow_path(monkeypatch):
    x = np.zeros((4, 3), np.uint8)
    monkeypatch.setattr(lowgemm.config, "kernel", "portable")
    w = lowgemm.pack_rhs(x.T)
    monkeypatch.setattr(lowgemm.config, "kernel", "test_3x5x2")
    assert "REPACKED" in str(lowgemm.explain(x, w))


def test_empty_result():
    x = np.zeros((0, 3), np.uint8)
    assert "empty" in str(lowgemm.explain(x, np.zeros((3, 2), np.uint8)))


def test_the_cycles_of_tiles_are_predicted(monkeypatch):
    """By hand, for 1024 cubed: 16,384 steps of four products of 16 cycles; 2 KiB of rhs each from L2; 1 MiB
    packed; 4 MiB stored.
    """
    monkeypatch.setattr(lowgemm.config, "kernel", "test_x86_amx_int8_software")
    monkeypatch.setattr(module, "cache_sizes", lambda: CacheSizes(48 << 10, 2 << 20, 32 << 20))
    x = np.zeros((1024, 1024), np.uint8)
    told = lowgemm.explain(x, lowgemm.pack_rhs(x))
    cycles = module.predicted(told.plan)
    assert cycles == (16384 * 64, 16384 * 2048 // 24, 2**20 // 7, 2**22 // 8)
    assert cycles.total == sum(cycles[1:]) and told.share_of_peak == pytest.approx(16384 * 64 / cycles.total)
    assert f"predicted {cycles.total:,} cycles" in told.text and "columns a call (predicted)" in told.text
    deeper = np.zeros((64, 4096), np.uint8)  # 32 rows of it outgrow L1
    assert module.predicted(lowgemm.explain(deeper, deeper.T).plan).from_l2 == 2 * 2 * 64 * 4096 // 24
    monkeypatch.setattr(lowgemm.config, "kernel", "portable")
    assert "predicted" not in lowgemm.explain(x, x).text
