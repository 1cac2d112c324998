"""Tensors and filters without elements, against onnxruntime where it has a number for them."""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h

from lowgemm.onnx_run import Model

CONSTANTS = {
    "x_scale": np.float32(0.1), "x_zero": np.uint8(3), "w_scale": np.float32(0.01), "w_zero": np.int8(0),
    "y_scale": np.float32(0.02), "y_zero": np.uint8(7),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def model_of(nodes, x, constants):
    info = h.make_tensor_value_info("x", h.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
    outputs = [onnx.ValueInfoProto(name=o) for n in nodes for o in n.output]
    made = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (CONSTANTS | constants).items()]
    graph = h.make_graph(nodes, "g", [info], outputs, made)
    sets = [h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)]
    return h.make_model(graph, opset_imports=sets, ir_version=8)


def results(model, x):
    """Ours by name, fused; not fused they are the same."""
    found = []
    for fuse in (False, True):
        ours = Model(model, fuse=fuse)
        found.append(dict(zip([t.name for t in ours.outputs], ours.run(None, {"x": x}), strict=True)))
    for name, got in found[0].items():
        np.testing.assert_array_equal(got, found[1][name])
    return found[1]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 3, 0, 4), (0, 3, 4, 4)])
def test_quantizers(shape):
    x = np.ones(shape, np.float32)
    model = model_of(
        [h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
         h.make_node("QuantizeLinear", ["x", "y_scale", "y_zero"], ["y"])],
        x, {},
    )  # fmt: skip
    want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")
    for name, got in results(model, x).items():
        # onnxruntime makes a vector of the scale here, and a number of the zero point
        np.testing.assert_array_equal(got, want[name].reshape(got.shape), err_msg=name)


@pytest.mark.parametrize(
    ("shape", "filters"),
    [((0, 3, 4, 4), (2, 3, 2, 2)), ((1, 3, 4, 4), (0, 3, 2, 2)), ((1, 3, 0, 4), (2, 3, 2, 2))],
)
def test_convolutions(shape, filters):
    """No images, no filters, no rows but for the padding."""
    w = np.random.default_rng(0).integers(-128, 128, filters).astype(np.int8)
    q = [
        h.make_node(
            "QLinearConv",
            ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"],
            ["y"],
            pads=[1] * 4,
        )
    ]
    x = np.ones(shape, np.uint8)
    model = model_of(q, x, {"w": w})
    np.testing.assert_array_equal(
        results(model, x)["y"], om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")["y"]
    )
    nodes = om.dynamic_convolution("x", "w", pads=[1] * 4)
    x = np.ones(shape, np.float32)
    model = model_of(nodes, x, {"w": w, "wz": np.int8(0), "ws": np.float32(0.01)})
    want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")
    for name, got in results(model, x).items():
        np.testing.assert_array_equal(got, want[name].reshape(got.shape), err_msg=name)


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_filters_without_channels(axes):
    """Their sums are 0. onnxruntime takes them too, and gives memory that nothing was written to."""
    g = np.random.default_rng(axes)
    x, w = np.empty((2, 0, *(5,) * axes), np.uint8), np.empty((3, 0, *(2,) * axes), np.int8)
    bias, w_scale = g.integers(-30, 30, 3).astype(np.int32), np.float32(0.2)  # a sum of 1 would be a step
    inputs = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "bias"]
    nodes = [h.make_node("QLinearConv", inputs, ["y"]), h.make_node("ConvInteger", ["x", "w"], ["sums"])]
    found = results(model_of(nodes, x, {"w": w, "bias": bias, "w_scale": w_scale}), x)
    shape = 2, 3, *(4,) * axes
    np.testing.assert_array_equal(found["sums"], np.zeros(shape, np.int32))
    scale = np.float32(0.1) * w_scale / np.float32(0.02)
    want = np.clip(np.rint(bias.astype(np.float32) * scale) + 7, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(found["y"], np.broadcast_to(want.reshape(-1, *(1,) * axes), shape))


@pytest.mark.parametrize(
    "sizes", [((0, 4), (4, 5)), ((2, 0, 4), (4, 5)), ((3, 4), (4, 0)), ((0, 2, 4), (0, 4, 5))]
)
def test_products(sizes):
    x, w = np.ones(sizes[0], np.float32), np.ones(sizes[1], np.int8)
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("MatMulInteger", ["q", "w", "z", "w_zero"], ["i"]),
        h.make_node("DynamicQuantizeMatMul", ["x", "w", "w_scale", "w_zero"], ["y"], domain="com.microsoft"),
        h.make_node("QLinearMatMul", ["q", "x_scale", "z", "w", "w_scale", "w_zero", "y_scale", "y_zero"],
                    ["p"]),
    ]  # fmt: skip
    model = model_of(nodes, x, {"w": w})
    want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")
    for name, got in results(model, x).items():
        np.testing.assert_array_equal(got, want[name].reshape(got.shape), err_msg=name)


def test_a_depth_of_nothing():
    """Sums of nothing are 0. onnxruntime gives memory that nothing was written to."""
    x, w = np.ones((3, 0), np.float32), np.ones((0, 5), np.int8)
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        h.make_node("DynamicQuantizeMatMul", ["x", "w", "w_scale", "w_zero"], ["y"], domain="com.microsoft"),
    ]  # fmt: skip
    found = results(model_of(nodes, x, {"w": w}), x)
    for name in "iy":
        np.testing.assert_array_equal(found[name], np.zeros((3, 5)))
