"""Random graphs equal onnxruntime's run of the graph as written. `random_graphs.py` draws thousands."""

from __future__ import annotations

import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import random_graphs

from lowgemm.engine import parts


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_graphs_equal_onnxruntime(first, monkeypatch):
    peers.need("onnxruntime")
    # whatever has two pieces is shared by two threads, however short it is
    monkeypatch.setattr(parts, "NANOSECONDS", 1e-9)
    wrong = [line for seed in range(first, first + 10) for line in random_graphs.differences(seed)]
    assert not wrong, "\n".join(wrong)
