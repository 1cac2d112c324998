"""Nodes that are prepared once: empty batches, parameters of every form, data that change their shape,
errors, warnings.
"""

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

MS = "com.microsoft"


def model_of(nodes, constants, kind, axes, more=()):
    info = onnx.helper.make_tensor_value_info
    graph = h.make_graph(
        nodes, "g", [info("x", onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [None] * axes), *more],
        [onnx.ValueInfoProto(name="y")],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)


G = np.random.default_rng(0)
CONSTANTS = {
    "s": np.float32(0.02), "z": np.uint8(7), "w": G.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8),
    "i": np.int8(0), "t": np.float32(1.5),
    "m": G.integers(-128, 128, (6, 5)).astype(np.int8), "v": G.random(5, np.float32) / 50,
    "iv": np.full(5, 3, np.int8),
    "b": G.integers(-500, 500, 5).astype(np.int32), "b4": G.integers(-500, 500, 4).astype(np.int32),
    "one": np.int32(77),
}  # fmt: skip
#: Name, node, dtype and shape of its data without the batch.
NODES = [
    ("conv", h.make_node("QLinearConv", ["x", "s", "z", "w", "s", "i", "t", "z", "b4"], ["y"]), np.uint8,
     (3, 6, 6)),
    ("matmul", h.make_node("QLinearMatMul", ["x", "s", "z", "m", "s", "i", "t", "z"], ["y"]), np.uint8, (6,)),
    ("matmul by columns", h.make_node("QLinearMatMul", ["x", "s", "z", "m", "v", "iv", "t", "z"], ["y"]),
     np.uint8, (6,)),
    ("gemm", h.make_node("QGemm", ["x", "s", "z", "m", "v", "iv", "b", "t", "z"], ["y"], domain=MS), np.uint8,
     (6,)),
    ("gemm to floats", h.make_node("QGemm", ["x", "s", "z", "m", "v", "iv", "b"], ["y"], domain=MS), np.uint8,
     (6,)),
    ("gemm without a bias", h.make_node("QGemm", ["x", "s", "z", "m", "s", "i", "", "t", "z"], ["y"],
                                        domain=MS), np.uint8, (6,)),
    ("gemm with alpha", h.make_node("QGemm", ["x", "s", "z", "m", "s", "i", "b", "t", "z"], ["y"], domain=MS,
                                    alpha=0.5), np.uint8, (6,)),
    ("quantize", h.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]), np.float32, (3, 6, 6)),
    ("dequantize", h.make_node("DequantizeLinear", ["x", "s", "z"], ["y"]), np.uint8, (3, 6, 6)),
    ("add", h.make_node("QLinearAdd", ["x", "s", "z", "x", "s", "z", "t", "z"], ["y"], domain=MS), np.uint8,
     (3, 6, 6)),
    ("softmax", h.make_node("QLinearSoftmax", ["x", "s", "z", "s", "z"], ["y"], domain=MS, opset=13, axis=1),
     np.uint8, (6,)),
    ("pool", h.make_node("QLinearAveragePool", ["x", "s", "z", "t", "z"], ["y"], domain=MS,
                         kernel_shape=[2, 2]), np.uint8, (3, 6, 6)),
]  # fmt: skip
IDS = [name for name, *_ in NODES]
#: More nodes, for what is asked of each parameter.
MORE = [
    ("mul", h.make_node("QLinearMul", ["x", "s", "z", "x", "s", "z", "t", "z"], ["y"], domain=MS), np.uint8,
     (3, 6, 6)),
    ("sums", h.make_node("MatMulInteger", ["x", "m", "z", "iv"], ["y"]), np.uint8, (6,)),
    ("sums of a convolution", h.make_node("ConvInteger", ["x", "w", "z", "i"], ["y"]), np.uint8, (3, 6, 6)),
    ("to floats", h.make_node("MatMulIntegerToFloat", ["x", "m", "s", "v", "z", "iv", "v"], ["y"], domain=MS),
     np.uint8, (6,)),
    ("from floats", h.make_node("DynamicQuantizeMatMul", ["x", "m", "v", "iv", "v"], ["y"], domain=MS),
     np.float32, (6,)),
    ("leaky relu", h.make_node("QLinearLeakyRelu", ["x", "s", "z", "t", "z"], ["y"], domain=MS), np.uint8,
     (6,)),
    ("concat", h.make_node("QLinearConcat", ["s", "z", "x", "t", "z", "x", "s", "z"], ["y"], domain=MS,
                           axis=1), np.uint8, (6,)),
]  # fmt: skip


def drawn(kind, shape):
    return (
        G.standard_normal(shape).astype(kind)
        if kind == np.float32
        else G.integers(0, 256, shape).astype(kind)
    )


@pytest.mark.parametrize("case", NODES, ids=IDS)
def test_batches(case):
    """One, many, none, and one again; equal to onnxruntime, and nothing is said on the terminal."""
    peers.need("onnxruntime")
    _, node, kind, shape = case
    proto = model_of([node], CONSTANTS, kind, 1 + len(shape))
    model = Model(proto)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (1, 5, 0, 1):
            x = drawn(kind, (count, *shape))
            got = model.run(None, {"x": x})[0]
            assert got.shape[0] == count
            if count:
                want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")["y"]
                np.testing.assert_array_equal(got, want)


#: Those whose operands have to be of the zero points' type; the others take any bytes, or run elsewhere.
TYPED = [c for c in NODES if c[0] not in ("quantize", "softmax", "pool")]


@pytest.mark.parametrize("case", TYPED, ids=[name for name, *_ in TYPED])
def test_errors_name_the_node(case):
    """Data that do not fit: the operator, its name, and what was expected."""
    _, node, _, shape = case
    named = onnx.NodeProto()
    named.CopyFrom(node)
    named.name = "the node"
    proto = model_of([named], CONSTANTS, np.int8, 1 + len(shape))
    with pytest.raises((TypeError, ValueError), match=rf"{node.op_type} 'the node'"):
        Model(proto).run(None, {"x": np.ones((2, *shape), np.int8)})


def test_a_bias_of_one_number():
    peers.need("onnxruntime")
    node = h.make_node("QGemm", ["x", "s", "z", "m", "s", "i", "one", "t", "z"], ["y"], domain=MS)
    x = drawn(np.uint8, (3, 6))
    want = (
        np.rint(
            (((x.astype(int) - 7) @ CONSTANTS["m"].astype(int)) + 77)
            * np.float64(np.float32(0.02) ** 2 / np.float32(1.5))
        )
        + 7
    )
    got = Model(model_of([node], CONSTANTS, np.uint8, 2)).run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, np.clip(want, 0, 255))


@pytest.mark.parametrize(
    "change", [{"s": np.float32(-0.02)}, {"v": -CONSTANTS["v"]}, {"t": np.float32(-1.5)}]
)
def test_negative_scales(change):
    """Prepared or not, the numbers of the definition."""
    node = h.make_node("QLinearMatMul", ["x", "s", "z", "m", "v", "iv", "t", "z"], ["y"])
    numbers = CONSTANTS | change
    x = drawn(np.uint8, (3, 6))
    scale = (numbers["s"] * numbers["v"] / numbers["t"]).astype(np.float32)
    sums = (x.astype(int) - 7) @ (numbers["m"].astype(int) - 3)
    want = np.clip(np.rint(sums.astype(np.float32) * scale) + 7, 0, 255)
    np.testing.assert_array_equal(Model(model_of([node], numbers, np.uint8, 2)).run(None, {"x": x})[0], want)


def test_parameters_that_come_with_the_data():
    """A bias or a zero point that is an input is not taken for one that is left out."""
    peers.need("onnxruntime")
    info = onnx.helper.make_tensor_value_info
    node = h.make_node("QGemm", ["x", "s", "z", "m", "s", "i", "later", "t", "z"], ["y"], domain=MS)
    proto = model_of([node], CONSTANTS, np.uint8, 2, [info("later", onnx.TensorProto.INT32, [5])])
    model = Model(proto)
    for _ in range(2):
        feeds = {"x": drawn(np.uint8, (3, 6)), "later": G.integers(-900, 900, 5).astype(np.int32)}
        np.testing.assert_array_equal(
            model.run(None, feeds)[0], om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")["y"]
        )


@pytest.mark.parametrize("case", NODES + MORE, ids=[name for name, *_ in NODES + MORE])
def test_constants_that_may_be_overridden(case):
    """An initializer that is an input too is no constant, but it is not left out either: with the model's
    value and with another one, the result is onnxruntime's.
    """
    peers.need("onnxruntime")
    _, node, kind, shape = case
    x = drawn(kind, (2, *shape))
    for name in dict.fromkeys(n for n in node.input if n in CONSTANTS):
        value = np.asarray(CONSTANTS[name])
        info = onnx.helper.make_tensor_value_info(name, h.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        proto = model_of([node], CONSTANTS, kind, 1 + len(shape), [info])
        model = Model(proto)
        for feeds in ({}, {name: np.asarray(value + value.dtype.type(1))}, {}):
            want = om.onnxruntime_run(proto, {"x": x, **feeds}, "ORT_DISABLE_ALL")["y"]
            np.testing.assert_array_equal(model.run(None, {"x": x, **feeds})[0], want, err_msg=name)


@pytest.mark.parametrize("shape", [(8, 0), (2, 3, 0)])
def test_products_without_depth(shape):
    """Sums of nothing are 0; onnxruntime gives what its memory held."""
    node = h.make_node("MatMulIntegerToFloat", ["x", "n", "s", "s"], ["y"], domain=MS)
    proto = model_of([node], {"n": np.empty((0, 4), np.int8), "s": np.float32(1)}, np.uint8, len(shape))
    got = Model(proto).run(None, {"x": np.empty(shape, np.uint8)})[0]
    assert got.shape == (*shape[:-1], 4) and not got.any()
