"""Infinite scales, and infinities in what is quantized, against onnxruntime: no element may differ."""

from __future__ import annotations

import warnings

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h

from lowgemm.onnx_run import Model

CONTRIB = "com.microsoft"
FINE = np.float32(0.1)
ENDLESS = [(np.inf, np.inf), (np.inf, FINE), (FINE, np.inf)]


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def compared(nodes, feeds, constants, outputs):
    """Ours is onnxruntime's, fused or not, without a warning."""
    infos = [
        h.make_tensor_value_info(n, h.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim)
        for n, v in feeds.items()
    ]
    graph = h.make_graph(
        nodes, "g", infos, [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    sets = [h.make_opsetid("", 17), h.make_opsetid(CONTRIB, 1)]
    model = h.make_model(graph, opset_imports=sets, ir_version=8)
    want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
    for fuse in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = Model(model, fuse=fuse)
            found = ours.run(None, feeds)
        for got, name in zip(found, outputs, strict=True):
            assert got.dtype == want[name].dtype
            np.testing.assert_array_equal(got, want[name], err_msg=f"{name}, fuse={fuse}")
    return want


def operands(dtype):
    """Rows with ties, both ends and the zero point in them; weights; constants but the scales."""
    info, g = np.iinfo(dtype), np.random.default_rng(1)
    x = np.array([[info.min, 1, 2, info.max], [5] * 4, [info.max, info.max, 0, info.min], [2] * 4], dtype)
    constants = {"x_zero": dtype(2), "y_zero": dtype(9), "w_zero": np.int8(0), "w_scale": np.float32(0.01)}
    return x, g.integers(-128, 128, (4, 5)).astype(np.int8), constants


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(("x_scale", "y_scale"), ENDLESS)
def test_products(dtype, x_scale, y_scale):
    x, w, constants = operands(dtype)
    constants |= {"x_scale": np.float32(x_scale), "y_scale": np.float32(y_scale), "w": w}
    a, b, y = (["x", "x_scale", "x_zero"], ["w", "w_scale", "w_zero"], ["y_scale", "y_zero"])
    images, filters = np.resize(x, (1, 2, 4, 4)), np.resize(w, (3, 2, 2, 2))
    for w_scale in (np.float32(0.01), np.float32([0.01, 0.02, 1, 0.1, 3])):
        own = constants | {"w_scale": w_scale, "w_zero": np.zeros(w_scale.shape, np.int8)}
        compared([h.make_node("QLinearMatMul", a + b + y, ["y"])], {"x": x}, own, ["y"])
        bias = np.array([-300, 2, 0, 5000, 7], np.int32)
        for c in ([""], ["c"]):
            node = h.make_node("QGemm", a + b + c + y, ["y"], domain=CONTRIB)
            compared([node], {"x": x}, own | {"c": bias}, ["y"])
        mixed = ["x", "w", "x_scale", "w_scale", "x_zero", "w_zero"]
        compared([h.make_node("MatMulIntegerToFloat", mixed, ["y"], domain=CONTRIB)], {"x": x}, own, ["y"])
        own = constants | {"w": filters, "w_scale": w_scale[:3],
                           "w_zero": np.zeros(w_scale[:3].shape, np.int8)} \
            if w_scale.ndim else constants | {"w": filters}  # fmt: skip
        for c in ([], ["c"]):
            node = h.make_node("QLinearConv", a + b + y + c, ["y"])
            compared([node], {"x": images}, own | {"c": bias[:3]}, ["y"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(("x_scale", "y_scale"), ENDLESS)
def test_quantizers_and_what_lies_between(dtype, x_scale, y_scale):
    x, w, constants = operands(dtype)
    constants |= {
        "x_scale": np.float32(x_scale),
        "y_scale": np.float32(y_scale),
        "w": w,
        "shape": np.array([2, -1]),
    }
    decoded = [
        h.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["a"]),
        h.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["b"]),
    ]
    coded = [h.make_node("QuantizeLinear", ["c", "y_scale", "y_zero"], ["y"])]
    for op, inputs, more in (
        ("MatMul", "ab", {}), ("Add", "aa", {}), ("Mul", "aa", {}), ("Concat", "aa", {"axis": 0}),
        ("Sigmoid", "a", {}),
        ("LeakyRelu", "a", {}), ("Softmax", "a", {"axis": -1}), ("Reshape", ["a", "shape"], {}),
        ("Transpose", "a", {}),
    ):  # fmt: skip
        compared([*decoded, h.make_node(op, list(inputs), ["c"], **more), *coded], {"x": x}, constants, ["y"])
    node = h.make_node(
        "QLinearSoftmax",
        ["x", "x_scale", "x_zero", "y_scale", "y_zero"],
        ["y"],
        domain=CONTRIB,
        axis=-1,
        opset=13,
    )
    compared([node], {"x": x}, constants, ["y"])


@pytest.mark.parametrize("shape", [(7,), (3, 40), (2, 3, 5, 6), (1, 16, 9, 9)])
def test_dynamic_ranges(shape):
    """Scale, zero point and bytes, and the products of them."""
    g = np.random.default_rng(len(shape))
    w = g.integers(0, 256, (shape[-1], 6), dtype=np.uint8)
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["i"]),
        h.make_node("Cast", ["i"], ["r"], to=1), h.make_node("Mul", ["s", "ws"], ["t"]),
        h.make_node("Mul", ["r", "t"], ["y"]),
    ]  # fmt: skip
    constants = {"w": w, "wz": np.uint8(3), "ws": np.float32(0.01)}
    for some in ([np.inf], [-np.inf], [np.inf, -np.inf], [-np.inf, np.nan], [np.inf, np.nan, np.nan]):
        x = g.standard_normal(shape).astype(np.float32)
        # a NaN first: behind another number, onnxruntime's range may forget that
        x.reshape(-1)[: len(some)] = some[::-1]
        want = compared(nodes, {"x": x}, constants, ["q", "s", "z", "y"])
        assert want["s"] == np.inf
    if np.prod(shape) >= 8:
        compared(nodes, {"x": np.full(shape, np.nan, np.float32)}, constants, ["q", "s", "z", "y"])
    fused = h.make_node("DynamicQuantizeMatMul", ["x", "w", "ws", "wz"], ["y"], domain=CONTRIB)
    if len(shape) > 1:
        x.reshape(-1)[:3] = 1, -np.inf, 2
        compared([fused], {"x": x}, constants, ["y"])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_convolutions(value):
    """A mask's infinity in an image, before one and two convolutions."""
    g = np.random.default_rng(4)
    constants = {
        "w": g.integers(0, 256, (4, 3, 3, 3), dtype=np.uint8),
        "w1": g.integers(0, 256, (5, 4, 1, 1), dtype=np.uint8),
        "wz": np.uint8(120), "ws": np.float32(0.02),
    }  # fmt: skip
    nodes = [
        *om.dynamic_convolution("x", "w", 0),
        h.make_node("Relu", ["c0"], ["y0"]),
        *om.dynamic_convolution("y0", "w1", 1),
    ]
    x = g.standard_normal((2, 3, 8, 8)).astype(np.float32)
    x[0, 0, 0, 0] = value
    compared(nodes[:5], {"x": x}, constants, ["c0", "q0", "s0", "z0"])
    if value != -np.inf:  # NaN among numbers then, whose range depends on their places in onnxruntime
        compared(nodes, {"x": x}, constants, ["c1"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("op", ["QLinearMul", "QLinearAveragePool"])
def test_an_infinite_scale_of_the_input_gives_the_ends(op, dtype):
    """onnxruntime has the smallest value for both infinities, which its conversion to integers makes of them."""
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    x, other = np.array([[[lowest, highest, 1, 8]]], dtype), "b b_scale zero" if op == "QLinearMul" else ""
    kernel = {} if other else {"kernel_shape": [1]}
    constants = {
        "inf": np.float32(np.inf),
        "zero": dtype(2),
        "b": dtype([3]),
        "b_scale": FINE,
        "y_scale": FINE,
    }
    inputs = f"x inf zero {other} y_scale zero".split()
    nodes = [h.make_node(op, inputs, ["y"], domain=CONTRIB, **kernel)]
    info = h.make_tensor_value_info("x", h.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    held = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = h.make_graph(nodes, "g", [info], [onnx.ValueInfoProto(name="y")], held)
    model = h.make_model(
        graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(CONTRIB, 1)], ir_version=8
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (y,) = Model(model).run(None, {"x": x})
    np.testing.assert_array_equal(y, [[[lowest, highest, lowest, highest]]])
