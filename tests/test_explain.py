"""`explain` tells what `gemm` does."""

from __future__ import annotations

import numpy as np

import lowgemm


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
