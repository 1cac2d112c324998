"""A model on several threads: the same bits as on one, and the team is let go of in any case."""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h
from onnx_models import dynamic_convolution

from lowgemm.jit import team
from lowgemm.onnx_run import Model

#: Two threads that share every pass (`conftest.py`).
shared = pytest.mark.parametrize("threads", [2], indirect=True)


def model_of():
    """A dynamically quantized convolution with a curve behind it, then another one, then a float node."""
    g, info = np.random.default_rng(0), onnx.helper.make_tensor_value_info
    made = {
        "w": g.integers(0, 256, (20, 3, 3, 3), dtype=np.uint8),
        "w2": g.integers(0, 256, (7, 20, 1, 1), dtype=np.uint8),
        "wz": np.uint8(120), "ws": np.float32(0.02),
    }  # fmt: skip
    nodes, last = [], "x"
    for i, w in enumerate(("w", "w2")):
        nodes += dynamic_convolution(last, w, i)
        nodes.append(h.make_node("Sigmoid", [f"c{i}"], [f"y{i}"]))
        last = f"y{i}"
    nodes.append(h.make_node("GlobalMaxPool", ["y1"], ["y"]))
    graph = h.make_graph(
        nodes, "g", [info("x", 1, [None, 3, None, None])], [info("y", 1, None), info("y1", 1, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in made.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


@shared
def test_the_same_bits(threads):
    """Images of several sizes, each a few times, since a model holds the team from its second run on."""
    peers.need("onnxruntime")
    one, two = Model(model_of(), num_threads=1), Model(model_of(), num_threads=2)
    g = np.random.default_rng(1)
    for size in ((9, 9), (64, 70), (130, 120)):
        x = g.standard_normal((2, 3, *size)).astype(np.float32)
        want = one.run(None, {"x": x})
        for _ in range(5):
            for got, expected in zip(two.run(None, {"x": x}), want, strict=True):
                np.testing.assert_array_equal(got, expected)


@shared
def test_the_team_is_let_go_of(threads):
    """After a run, and after one that failed."""
    peers.need("onnxruntime")
    standing = team.the_team()
    if standing is None:
        pytest.skip("no team of threads on this system")
    model = Model(model_of(), num_threads=2)
    x = np.ones((1, 3, 40, 40), np.float32)
    for _ in range(3):
        model.run(None, {"x": x})
        assert standing.numbers[team.HELD] == 0
    assert model._program._shared
    with pytest.raises(ValueError, match="within the padded input"):
        model.run(None, {"x": x[:, :, :1, :1]})
    assert standing.numbers[team.HELD] == 0
