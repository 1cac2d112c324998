"""What is rewritten to integers, and what is not: float sums do not wrap, so no sum of the integers may."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx_models as om
import peers
from onnx import helper

from lowgemm.onnx_run import Model
from lowgemm.onnx_run.rewrite import Rewriter

DEPTH = 64


def coded(op, bias, weight, zero, known=True):
    """Quantize-dequantize graph of one product of (n, DEPTH) uint8 with scale 1 everywhere but for the
    result's.
    """
    outputs = 2
    shape = {"Conv": (outputs, DEPTH, 1, 1), "Gemm": (DEPTH, outputs), "MatMul": (DEPTH, outputs)}[op]
    each = outputs if known else ()  # a scale per channel is only taken with constant weights
    w = np.full(shape, weight, np.int8)
    constants = {
        "one": np.float32(1), "ws": np.ones(each, np.float32), "wz": np.full(each, zero, np.int8),
        "xz": np.uint8(0), "ys": np.float32(2**26), "yz": np.uint8(0), "bz": np.zeros(each, np.int32),
    }  # fmt: skip
    inputs = [om.value("x", [None, DEPTH, *([1, 1] if op == "Conv" else [])], om.TensorProto.UINT8)]
    if known:
        constants["w"] = w
    else:
        inputs.append(om.value("w", list(shape), om.TensorProto.INT8))
    axis = 0 if op == "Conv" else 1
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=axis),
    ]
    operands = ["xf", "wf"]
    if bias is not None:
        constants["b"] = np.array([0, bias], np.int32)
        nodes.append(helper.make_node("DequantizeLinear", ["b", "ws", "bz"], ["bf"], axis=0))
        operands.append("bf")
    nodes += [
        helper.make_node(op, operands, ["f"]),
        helper.make_node("QuantizeLinear", ["f", "ys", "yz"], ["y"]),
    ]
    rank = 4 if op == "Conv" else 2
    model = om.model_of(nodes, inputs, [om.value("y", [None] * rank, om.TensorProto.UINT8)], constants)
    x = np.full((3, DEPTH, *([1, 1] if op == "Conv" else [])), 255, np.uint8)
    feeds = {"x": x} if known else {"x": x, "w": w}
    real = 255 * DEPTH * (weight - zero) + np.array([0, bias or 0], np.float64)
    expected = np.clip(np.rint(real / 2**26), 0, 255)
    return model, feeds, expected


def fused(model):
    """Whether nothing of float arithmetic is left."""
    return not any(r.op in ("Conv", "Gemm", "MatMul") for r in model.profile)


PRODUCTS = 255 * DEPTH * 127


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
@pytest.mark.parametrize(
    ("bias", "weight", "zero", "expected"),
    [
        (1000, 127, 0, True),
        (2**31 - 1 - PRODUCTS, 127, 0, True),
        (2**31 - PRODUCTS, 127, 0, False),
        (2**31 - 1, 127, 0, False),
        (-(2**31), -127, 0, False),
        (2**31 - 1, 5, 5, True),
        (2**31 - 1, 5, 4, False),
        (None, 127, -128, True),
    ],
)
def test_a_bias_without_room_keeps_the_float_operator(op, bias, weight, zero, expected):
    proto, feeds, result = coded(op, bias, weight, zero)
    model = Model(proto)
    y = model.run(feeds)[0]
    assert fused(model) == expected
    np.testing.assert_array_equal(y.reshape(3, 2), np.broadcast_to(result, (3, 2)))


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
@pytest.mark.parametrize(("bias", "expected"), [(2**30, True), (2**30 + 1, False), (-(2**31), False)])
def test_beside_weights_that_are_not_known_a_bias_is_small(op, bias, expected):
    proto, feeds, result = coded(op, bias, 127, 0, known=False)
    model = Model(proto)
    y = model.run(feeds)[0]
    assert fused(model) == expected
    np.testing.assert_array_equal(y.reshape(3, 2), np.broadcast_to(result, (3, 2)))


def test_a_product_deep_enough_to_wrap_stays_float(monkeypatch):
    monkeypatch.setattr("test_onnx_rewrite.DEPTH", 33_100)
    for weight, expected in ((127, True), (-128, False)):
        proto, feeds, result = coded("MatMul", None, weight, 127 if weight < 0 else 0)
        model = Model(proto)
        y = model.run(feeds)[0]
        assert fused(model) == expected
        np.testing.assert_array_equal(y.reshape(3, 2), np.broadcast_to(result, (3, 2)))


def between(op, parts, opset=13, same=None, constants=None, **attributes):
    """DequantizeLinear of each part, an operator, QuantizeLinear: the model, and uint8 feeds."""
    g = np.random.default_rng(len(parts))
    names = [f"x{i}" for i in range(len(parts))]
    held, nodes = dict(constants or {}), []
    for i, name in enumerate([*names, "y"]):
        held[f"s{i}"] = np.float32(0.02 + 0.013 * (0 if same in ("both", "scale") else i))
        held[f"z{i}"] = np.uint8(3 + 17 * (0 if same in ("both", "zero") else i))
        if name != "y":
            nodes.append(helper.make_node("DequantizeLinear", [name, f"s{i}", f"z{i}"], [f"f{i}"]))
    n = len(parts)
    nodes.append(
        helper.make_node(op, [f"f{i}" for i in range(n)] + list(constants or {}), ["g"], **attributes)
    )
    nodes.append(helper.make_node("QuantizeLinear", ["g", f"s{n}", f"z{n}"], ["y"]))
    inputs = [om.value(k, list(p), om.TensorProto.UINT8) for k, p in zip(names, parts, strict=True)]
    model = om.model_of(
        nodes, inputs, [om.value("y", None, om.TensorProto.UINT8)], held, opset, checked=False
    )
    return model, {k: g.integers(0, 256, p, dtype=np.uint8) for k, p in zip(names, parts, strict=True)}


IMAGE = (2, 6, 8, 8)
FUSED = [
    ("Add", [IMAGE, IMAGE], {}), ("Add", [IMAGE, (6, 1, 1)], {}), ("Add", [(1,), IMAGE], {}),
    ("Add", [(2, 6, 1, 1), IMAGE], {}), ("Add", [(8, 1), IMAGE], {}), ("Add", [(8, 8), IMAGE], {}),
    ("Add", [IMAGE, (8,)], {}),
    ("Add", [(6, 8, 1), (2, 1, 1, 8)], {}), ("Add", [(2, 6, 8, 1), (6, 8, 1)], {}),
    ("Add", [(6, 1, 1), (2, 6, 8, 1)], {}), ("Mul", [IMAGE, IMAGE], {}),
    ("Mul", [(2, 6, 1, 1), IMAGE], {}), ("Sigmoid", [IMAGE], {}), ("LeakyRelu", [IMAGE], {"alpha": 0.1}),
    ("GlobalAveragePool", [IMAGE], {}), ("Concat", [IMAGE, IMAGE, (2, 1, 8, 8)], {"axis": 1}),
]  # fmt: skip
RESIZE = {"roi": np.array([], np.float32)}
DOWN = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
MOVED = [
    ("Reshape", [IMAGE], {"constants": {"shape": np.array([2, -1])}}),
    ("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}),
    ("Flatten", [IMAGE], {"axis": 2}), ("Gather", [IMAGE], {"constants": {"i": np.array([3, 1])}, "axis": 1}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "dilations": [1, 2], "ceil_mode": 1}),
    ("Slice", [IMAGE], {"constants": {"from": np.array([1]), "to": np.array([5]), "axes": np.array([2])}}),
    ("Expand", [(6, 1, 8)], {"constants": {"shape": np.array([2, 1, 4, 1])}}),
    ("Tile", [IMAGE], {"constants": {"repeats": np.array([1, 2, 1, 1])}}),
    ("Pad", [IMAGE], {"constants": {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 4])}}),
    ("Pad", [IMAGE], {"constants": {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 4]), "v": np.float32(1.234)}}),
    ("Pad", [IMAGE], {"constants": {"pads": np.array([0, 1, 0, 0]), "v": np.float32(-9e9), "a": np.array([1, 3])}, "opset": 18}),
    ("Pad", [IMAGE], {"constants": {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 4])}, "mode": "reflect"}),
    ("Pad", [IMAGE], {"constants": {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 4])}, "mode": "edge"}),
    ("Resize", [IMAGE], {"constants": RESIZE | {"scales": np.array([1, 1, 2, 3], np.float32)}, **DOWN}),
    ("Resize", [IMAGE], {"constants": RESIZE | {"scales": np.array([1, 1, 1.5, 0.7], np.float32)}}),
    ("Resize", [IMAGE], {"constants": RESIZE | {"scales": np.array([], np.float32), "sizes": np.array([2, 6, 5, 19])}, "nearest_mode": "ceil"}),
    ("Resize", [IMAGE], {"constants": {"scales": np.array([1, 1, 2, 2], np.float32)}, "opset": 10}),
]  # fmt: skip


@pytest.mark.parametrize("case", FUSED, ids=lambda c: c[0])
def test_operators_between_quantizers(case):
    """One node of integers; equal to onnxruntime's optimized run, and to the floats but for rounding."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `test`)")
    op, parts, attributes = case
    proto, feeds = between(op, parts, **attributes)
    model = Model(proto)
    assert model.rewritten == {f"{op} -> QLinear{op}": 1} and [r.op for r in model.profile] == [
        f"com.microsoft::QLinear{op}"
    ]
    got, plain = model.run(feeds)[0], Model(proto, fuse=False).run(feeds)[0]
    np.testing.assert_array_equal(plain, om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")["y"])
    np.testing.assert_array_equal(got, om.onnxruntime_run(proto, feeds)["y"])
    steps = np.abs(got.astype(int) - plain)
    assert steps.max() <= 1 and np.count_nonzero(steps) <= got.size // 20


@pytest.mark.parametrize("case", MOVED, ids=lambda c: c[0])
def test_operators_that_move_elements(case):
    """On integers where scale and zero point stay; with others they stay float, but for MaxPool, which comes
    behind the quantizer.
    """
    op, parts, attributes = case
    for same in ("both", "scale", "zero", None):
        proto, feeds = between(op, parts, same=same, **attributes)
        model = Model(proto)
        assert bool(model.rewritten) == (same == "both" or op == "MaxPool")
        np.testing.assert_array_equal(model.run(feeds)[0], Model(proto, fuse=False).run(feeds)[0])


@pytest.mark.parametrize(
    ("attributes", "box"),
    [
        ({"mode": "linear"}, []),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, [0, 0, -0.2, 0, 1, 1, 1.3, 1]),
    ],
)
def test_a_resize_that_makes_new_numbers_stays_float(attributes, box):
    """Those between its elements, or one from beyond the edge."""
    constants = {"roi": np.array(box, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    proto, feeds = between("Resize", [IMAGE], same="both", constants=constants, **attributes)
    model = Model(proto)
    assert not model.rewritten
    np.testing.assert_array_equal(model.run(feeds)[0], Model(proto, fuse=False).run(feeds)[0])


@pytest.mark.parametrize("kind", ["dequantized", "fed", "old"])
def test_what_a_pad_puts_around(kind):
    """onnxruntime's tool quantizes it as well; one that is fed may be anything, and sizes that are an
    attribute are those of an old operator set.
    """
    constants = {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 4]), "v": np.float32(0.7)}
    proto, feeds = between("Pad", [IMAGE], same="both", constants=constants)
    graph = proto.graph
    if kind == "dequantized":
        graph.node.insert(0, helper.make_node("DequantizeLinear", ["b", "s0", "z0"], ["w"]))
        graph.initializer.append(om.numpy_helper.from_array(np.uint8(77), "b"))
        next(n for n in graph.node if n.op_type == "Pad").input[2] = "w"
    elif kind == "fed":
        graph.input.append(om.value("v", []))
        del graph.initializer[[t.name for t in graph.initializer].index("v")]
        feeds["v"] = np.array(0.7, np.float32)
    else:
        (pad,) = (n for n in graph.node if n.op_type == "Pad")
        del pad.input[1:]
        pad.attribute.append(helper.make_attribute("pads", constants["pads"].tolist()))
        proto.opset_import[0].version = 10
    model = Model(proto)
    assert bool(model.rewritten) == (kind == "dequantized")
    for _ in range(3):
        np.testing.assert_array_equal(model.run(feeds)[0], Model(proto, fuse=False).run(feeds)[0])


def test_identities_go():
    """Each value has one name, but where two results of the graph are one value, or a result is no node's."""
    node = helper.make_node
    branch = helper.make_graph(
        [node("Add", ["b", "c"], ["s"])], "b", [], [helper.make_empty_tensor_value_info("s")]
    )
    nodes = [
        node("Identity", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Identity", ["b"], ["c"]),
        node("Identity", ["c"], ["y"]), node("Identity", ["c"], ["z"]), node("Identity", ["k"], ["m"]),
        node("Identity", ["x"], ["same"]), node("Add", ["c", "m"], ["t"]), node("Identity", ["t"], ["u"]),
        node("If", ["q"], ["v"], then_branch=branch, else_branch=branch), node("Mul", ["u", "a"], ["w"]),
    ]  # fmt: skip
    names = ("y", "z", "same", "u", "v", "w")
    outputs = [om.value(n, [2, 2]) for n in names]
    inputs = [om.value("x", [2, 2]), om.value("q", [], om.TensorProto.BOOL)]
    model = om.model_of(nodes, inputs, outputs, {"k": np.float32([[3, -1]])}, checked=False)
    x = np.float32([[1, -2], [0, 3]])
    feeds = {"x": x, "q": np.array(True)}
    want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
    rewriter = Rewriter(model)
    rewriter.drop_identities()
    left = [(n.op_type, *n.input, *n.output) for n in model.graph.node]
    assert left == [
        ("Relu", "x", "y"), ("Identity", "y", "z"), ("Identity", "x", "same"), ("Add", "y", "k", "u"),
        ("If", "q", "v"), ("Mul", "u", "x", "w"),
    ]  # fmt: skip
    assert list(model.graph.node[4].attribute[0].g.node[0].input) == ["y", "y"]
    got = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
    ours = Model(model)
    for _ in range(4):
        for name, value in zip(names, ours.run(None, feeds), strict=True):
            np.testing.assert_array_equal(got[name], want[name])
            np.testing.assert_array_equal(value, want[name])
            value[...] = 77
    np.testing.assert_array_equal(x, [[1, -2], [0, 3]])


@pytest.mark.parametrize("channels", [(), (6,)], ids=["one scale", "scales"])
@pytest.mark.parametrize("half", [False, True])
def test_a_bias_that_is_not_quantized_is_rounded_as_in_onnxruntime(channels, half):
    """The quantizer leaves one of half precision behind a Cast as it is."""
    peers.need("onnxruntime")
    g, made = np.random.default_rng(6), helper.make_node
    b = g.standard_normal(6).astype(np.float16 if half else np.float32)
    constants = {
        "w": g.integers(-128, 128, (6, 3, 3, 3)).astype(np.int8), "b16" if half else "b": b,
        "ws": (g.random(channels) / 50 + 0.01).astype(np.float32), "wz": np.zeros(channels, np.int8),
        "s": np.float32(0.03), "z": np.uint8(120), "ys": np.float32(0.2), "yz": np.uint8(100),
    }  # fmt: skip
    nodes = [
        *([made("Cast", ["b16"], ["b"], to=1)] if half else []),
        made("QuantizeLinear", ["x", "s", "z"], ["q"]), made("DequantizeLinear", ["q", "s", "z"], ["r"]),
        made("DequantizeLinear", ["w", "ws", "wz"], ["real"], axis=0), made("Conv", ["r", "real", "b"], ["c"]),
        made("QuantizeLinear", ["c", "ys", "yz"], ["d"]), made("DequantizeLinear", ["d", "ys", "yz"], ["y"]),
    ]  # fmt: skip
    proto = om.model_of(
        nodes, [om.value("x", [None, 3, None, None])], [om.value("y", None)], constants, 17, False
    )
    feeds = {"x": g.standard_normal((2, 3, 9, 8)).astype(np.float32)}
    ours = Model(proto)
    assert ours.rewritten, "it is a QLinearConv"
    np.testing.assert_array_equal(ours.run(None, feeds)[0], om.onnxruntime_run(proto, feeds)["y"])
    steps = om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")["y"] - ours.run(None, feeds)[0]
    assert np.abs(steps).max() < 0.21  # one step at most
    exact = Model(proto, fuse=False).run(None, feeds)[0]
    np.testing.assert_array_equal(exact, om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")["y"])
    constants["b16" if half else "b"] = np.full(6, 6e4, b.dtype)  # 2**31 units and more
    constants["s"] = np.float32(1e-6)
    large = om.model_of(
        nodes, [om.value("x", [None, 3, None, None])], [om.value("y", None)], constants, 17, False
    )
    assert not any("Conv" in n for n in Model(large).rewritten)
