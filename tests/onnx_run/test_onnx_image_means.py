"""ReduceMean over the last axes: the bits of onnxruntime, in any layout, and inside of a model."""

from __future__ import annotations

import numpy as np
import onnx_models as om
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from onnx import helper as h

from lowgemm.onnx_run import Model, image_means
from lowgemm.onnx_run.state import NotOurs, State


def last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def test_beside_onnxruntime(threads):
    peers.need("onnxruntime")
    g = np.random.default_rng(0)
    models = {}
    for trial in range(80):
        axes = trial % 3 + 1
        size = [int(n) for n in g.integers(1, (200, 40, 9)[axes - 1], axes)]
        if trial % 4 == 0:
            size[0] *= 4
        x = g.standard_normal((int(g.integers(1, 4)), int(g.integers(1, 200)), *size)).astype(np.float32)
        if trial % 5 == 0:
            x[0, 0] = g.choice([-0.0, np.inf, np.nan, 3e38])
        keep = trial % 7 > 0
        if (axes, keep) not in models:
            info = h.make_tensor_value_info
            node = h.make_node("ReduceMean", ["x"], ["y"], axes=list(range(2, 2 + axes)), keepdims=int(keep))
            models[axes, keep] = om.model_of(
                [node], [info("x", 1, [None] * x.ndim)], [info("y", 1, None)], {}, checked=False
            )
        want = om.onnxruntime_run(models[axes, keep], {"x": x}, "ORT_DISABLE_ALL")["y"]
        which = g.permutation(range(-axes, 0)) if trial % 2 else np.arange(2, 2 + axes)
        for y in (x, last(x)):
            got = image_means.compiled(y, which, keep, threads)
            assert got.tobytes() == want.tobytes() or np.isnan(want).any()
            np.testing.assert_array_equal(got, want)


def network(axes, opset, dims, keepdims, outputs=("y",)):
    """Two convolutions, with a gate of the first one's means between them."""
    g = np.random.default_rng(1)
    w = {
        f"w{i}": g.integers(0, 256, shape, dtype=np.uint8)
        for i, shape in enumerate([(9, 3, *(3,) * dims), (9, 9, *(1,) * dims)])
    }
    given = {"axes": axes} if opset < 18 else {}
    one = (-1, 9, *(1,) * dims)
    nodes = [
        *om.dynamic_convolution("x", "w0", "0"), h.make_node("Relu", ["c0"], ["r"]),
        h.make_node("ReduceMean", ["r"] if given else ["r", "axes"], ["m"], keepdims=keepdims, **given),
        h.make_node("Reshape", ["m", "shape"], ["gate"]),
        h.make_node("Mul", ["r", "gate"], ["b"]), *om.dynamic_convolution("b", "w1", "1"),
        h.make_node("Identity", ["c1"], ["y"]),
    ]  # fmt: skip
    constants = w | {"wz": np.uint8(120), "ws": np.float32(0.02), "shape": np.array(one)}
    if not given:
        constants["axes"] = np.array(axes)
    info = h.make_tensor_value_info
    return om.model_of(
        nodes, [info("x", 1, [None, 3, *(None,) * dims])], [info(o, 1, None) for o in outputs], constants,
        opset, False,
    )  # fmt: skip


@pytest.mark.parametrize(("axes", "opset", "dims"), [([2, 3], 17, 2), ([-1, -2], 18, 2), ([2], 13, 1)])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_between_chains(axes, opset, dims, keepdims, threads):
    peers.need("onnxruntime")
    model = network(axes, opset, dims, keepdims, ("y", "m"))
    ours, g = Model(model, num_threads=threads), np.random.default_rng(2)
    for size in (9, 12, 40):
        x = g.standard_normal((2, 3, *(size,) * dims)).astype(np.float32)
        want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")
        for _ in range(4):
            for name, got in zip(("y", "m"), ours.run(None, {"x": x}), strict=True):
                np.testing.assert_array_equal(got, want[name])
    assert {r.runs_on for r in ours.profile} == {"lowgemm"}, ours.profile
    empty = np.zeros((0, 3, *(9,) * dims), np.float32)
    assert ours.run(None, {"x": empty})[0].shape[0] == 0


def test_axes_that_are_not_the_last():
    """The model's own node runs in the engine then."""
    peers.need("onnxruntime")
    model = network([2, 3], 17, 3, 1, ("m",))
    del model.graph.node[-8:]
    assert model.graph.node[-1].op_type == "ReduceMean"
    x = np.random.default_rng(3).standard_normal((2, 3, 5, 6, 7)).astype(np.float32)
    want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")["m"]
    for _ in range(3):
        np.testing.assert_array_equal(Model(model).run(None, {"x": x})[0], want)
    with pytest.raises(NotOurs):
        image_means.reduce_mean(State(num_threads=1), np.ones((2, 3, 4, 5, 6), np.float32), [2, 3])
