"""Nodes that constants alone decide: computed when a model is loaded, and what is left alone."""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx_models as om
from onnx import TensorProto as T
from onnx import helper

from lowgemm.onnx_run import Model, folded

node = helper.make_node


def half(form, channels):
    """A convolution of half-precision weights behind a Cast, as onnxruntime's tool quantizes it."""
    g = np.random.default_rng(0)
    weights = g.standard_normal((6, 4, 3, 3)).astype(np.float16)
    constants = {
        "half": weights, "xs": np.float32(0.03), "xz": np.uint8(120), "ys": np.float32(0.1),
        "yz": np.uint8(100), "bias": g.standard_normal((6, 1, 1)).astype(np.float16),
    }  # fmt: skip
    constants["ws"] = np.full(6, 0.02, np.float32) * g.uniform(0.5, 1, 6).astype(np.float32)
    constants["wz"] = np.zeros(6, np.int8)
    if not channels:
        constants |= {"ws": np.float32(0.02), "wz": np.int8(0)}
    nodes = [node("Cast", ["half"], ["w"], to=1), node("Cast", ["bias"], ["b"], to=1)]
    if form == "dynamic":
        nodes += [
            node("DynamicQuantizeLinear", ["w"], ["wq", "ws", "wz"]),
            *om.dynamic_convolution("x", "wq"),
            node("Add", ["c", "b"], ["y"]),
        ]
        constants = {n: constants[n] for n in ("half", "bias")}
    else:
        nodes += [
            node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            node("DequantizeLinear", ["xq", "xs", "xz"], ["xr"]),
            node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
            node("DequantizeLinear", ["wq", "ws", "wz"], ["wr"], axis=0),
            node("Conv", ["xr", "wr"], ["c"]),
            node("QuantizeLinear", ["c", "ys", "yz"], ["y"]),
        ]
        del constants["bias"]
        nodes.pop(1)
    kind = T.UINT8 if form == "qdq" else T.FLOAT
    shapes = [None, 4, None, None], [None, None, None, None]
    return om.model_of(nodes, [om.value("x", shapes[0])], [om.value("y", shapes[1], kind)], constants)


@pytest.mark.parametrize(("form", "channels"), [("dynamic", False), ("qdq", False), ("qdq", True)])
@pytest.mark.parametrize("engine", ["onnxruntime", "onnx.reference"])
def test_weights_in_half_precision(form, channels, engine):
    """They are constants, packed once; the results are those of the model as written, but for float sums
    that round.
    """
    peers.need("onnxruntime")
    proto = half(form, channels)
    model = Model(proto, num_threads=1, float_nodes=engine)
    g = np.random.default_rng(1)
    for size in (5, 9, 5):
        x = g.standard_normal((2, 4, size, size)).astype(np.float32)
        want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")["y"]
        off = model.run(None, {"x": x})[0].astype(np.float64) - want
        assert not off.any() or (form == "qdq" and abs(off).max() == 1 and np.count_nonzero(off) < 4)
    assert model.packed_bytes
    left = [n.op_type for s in model._program.steps for n in s.nodes]
    assert "Cast" not in left
    assert left.count("QuantizeLinear") == (form == "qdq")
    assert left.count("DynamicQuantizeLinear") == (form == "dynamic")
    as_written = Model(proto, fuse=False)
    assert "w" not in {i.name for i in as_written._proto.graph.initializer}


def kept(nodes, constants, inputs=(), outputs=("y",)):
    """Operators that are left when a model is loaded."""
    proto = om.model_of(
        nodes, list(inputs), [om.value(o, None) for o in outputs], constants, checked=False
    )  # fmt: skip
    model = Model(proto)
    return [n.op_type for n in model._proto.graph.node], model


def test_what_stays():
    """What chance decides, what a caller may change, outputs, and results that are much larger than what
    they are made from.
    """
    x, w = om.value("x", [None]), np.array([1.5, -2], np.float16)
    sums = [node("Cast", ["w"], ["c"], to=1), node("Add", ["x", "c"], ["y"])]
    assert kept(sums, {"w": w}, [x])[0] == ["Add"]
    assert kept(sums, {"w": w}, [x, om.value("w", [2], T.FLOAT16)])[0] == ["Cast", "Add"]
    assert kept(sums, {"w": w}, [x], ["y", "c"])[0] == ["Cast", "Add"]
    chance = [node("RandomNormalLike", ["w"], ["r"], dtype=1), node("Add", ["x", "r"], ["y"])]
    assert kept(chance, {"w": w}, [x])[0] == ["RandomNormalLike", "Add"]
    for size, left in ((2, ["Add"]), (folded.FREE, ["Expand", "Add"])):
        large = [node("Expand", ["one", "n"], ["e"]), node("Add", ["x", "e"], ["y"])]
        found, model = kept(large, {"one": np.ones(1, np.float32), "n": np.array([size])}, [x])
        assert found == left
        given = np.arange(size, dtype=np.float32)
        np.testing.assert_array_equal(model.run(None, {"x": given})[0], given + 1)


def test_nodes_with_several_results():
    """Those that are too large stay with the others of their node."""
    n, f = folded.FREE // 4 + 1, np.float32
    nodes = [
        node("Expand", ["one", "n"], ["e"]),
        node("Split", ["e", "sizes"], ["small", "rest"], axis=0),
        node("Add", ["x", "small"], ["y"]),
        node("ReduceSum", ["rest"], ["z"]),
    ]
    constants = {"one": np.ones(1, f), "n": np.array([n + 3]), "sizes": np.array([3, n])}
    found, model = kept(nodes, constants, [om.value("x", [None])], ["y", "z"])
    assert found == ["Expand", "Split", "Add", "ReduceSum"]
    assert "small" not in {i.name for i in model._proto.graph.initializer}
    y, z = model.run(None, {"x": np.zeros(3, f)})
    np.testing.assert_array_equal(y, [1, 1, 1])
    np.testing.assert_array_equal(z, [n])


def test_constants_of_all_forms():
    """Numbers and lists in an attribute; a node that fails is left to say so when it runs."""
    x = om.value("x", [None])
    nodes = [node("Constant", [], ["c"], value_float=2.5), node("Mul", ["x", "c"], ["y"])]
    found, model = kept(nodes, {}, [x])
    assert found == ["Mul"]
    np.testing.assert_array_equal(model.run(None, {"x": np.ones(2, np.float32)})[0], [2.5, 2.5])
    bad = [node("Reshape", ["w", "shape"], ["c"]), node("Add", ["x", "c"], ["y"])]
    found, model = kept(bad, {"w": np.ones(2, np.float32), "shape": np.array([3])}, [x])
    assert found == ["Reshape", "Add"]
    with pytest.raises(ValueError, match="Reshape"):
        model.run(None, {"x": np.ones(2, np.float32)})
