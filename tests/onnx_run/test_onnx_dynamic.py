"""Products that go back to float32 as one node: equal to onnxruntime's run of the model as written, and to
the operator's definition.
"""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h

from lowgemm.compat import onnx as ox
from lowgemm.onnx_run import Model, dynamic


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def model_of(nodes, constants, outputs=("y",), shape=(None,) * 4):
    info = onnx.helper.make_tensor_value_info
    graph = h.make_graph(
        nodes, "g", [info("x", 1, shape)], [info(o, 1, None) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def compared(model, *many, rewritten=1):
    """Ours, fused and as written, equals onnxruntime's of the model as written."""
    ours, plain = Model(model), Model(model, fuse=False)
    assert sum(n for k, n in ours.rewritten.items() if k.endswith("ToFloat")) == rewritten, ours.rewritten
    for x in many:
        want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")
        for m in (ours, plain):
            for t, got in zip(m.outputs, m.run(None, {"x": x}), strict=True):
                np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
    return ours


def convolution(g, filters, channels, group, kernel, bias, **attributes):
    constants = {
        "w": g.integers(0, 256, (filters, channels // group, *kernel), dtype=np.uint8),
        "wz": np.uint8(g.integers(256)), "ws": np.float32(0.01),
    }  # fmt: skip
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("ConvInteger", ["q", "w", "z", "wz"], ["sums"], group=group, **attributes),
        h.make_node("Mul", ["s", "ws"] if g.random() < 0.5 else ["ws", "s"], ["scale"]),
    ]
    real = "sums"
    if bias == "floored":
        constants |= {
            "b": g.standard_normal(filters).astype(np.float32),
            "sizes": np.array([1, -1, *(1,) * len(kernel)]),
        }
        nodes += [
            h.make_node("Mul", ["s", "ws"], ["scale2"]), h.make_node("Div", ["b", "scale2"], ["d"]),
            h.make_node("Floor", ["d"], ["f"]), h.make_node("Cast", ["f"], ["i"], to=6),
            h.make_node("Reshape", ["i", "sizes"], ["r"]), h.make_node("Add", ["sums", "r"], ["more"]),
        ]  # fmt: skip
        real = "more"
    nodes += [
        h.make_node("Cast", [real], ["real"], to=1),
        h.make_node("Mul", ["scale", "real"], ["y" if bias != "added" else "m"]),
    ]
    if bias == "added":
        constants |= {
            "b": g.standard_normal(filters).astype(np.float32),
            "sizes": np.array([1, filters, *(1,) * len(kernel)]),
        }
        nodes += [h.make_node("Reshape", ["b", "sizes"], ["r"]), h.make_node("Add", ["m", "r"], ["y"])]
    return nodes, constants


@pytest.mark.parametrize("bias", ["none", "added", "floored"])
@pytest.mark.parametrize("kernel", [(3,), (3, 2), (1, 1), (2, 2, 2)])
def test_convolutions(kernel, bias):
    """One to three axes, groups, every form of bias, images of several sizes, constant ones and zeros."""
    g = np.random.default_rng(len(kernel))
    for group, channels, filters in ((1, 3, 4), (4, 4, 8), (6, 6, 6), (1, 20, 33)):
        nodes, constants = convolution(
            g, filters, channels, group, kernel, bias, strides=[1 + int(g.integers(2))] * len(kernel)
        )
        sizes = [(2, channels, *(int(n) for n in g.integers(3, 12, len(kernel)))) for _ in range(2)]
        xs = [g.standard_normal(s).astype(np.float32) for s in sizes]
        compared(
            model_of(nodes, constants, shape=(None,) * (2 + len(kernel))),
            *xs,
            np.zeros_like(xs[0]),
            np.full_like(xs[1], 3),
        )


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_products(bias, columns):
    """One scale or one a column, zero points of both kinds, matrices and stacks."""
    g = np.random.default_rng(5)
    for dtype in (np.uint8, np.int8):
        size = (17,) if columns else ()
        constants = {
            "w": g.integers(0, 256, (33, 17), dtype=np.uint8).view(dtype),
            "wz": np.asarray(g.integers(0, 100, size)).astype(dtype),
            "ws": np.asarray(g.random(size), np.float32), "b": g.standard_normal(17).astype(np.float32),
        }  # fmt: skip
        nodes = [
            h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            h.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["i"]),
            h.make_node("Cast", ["i"], ["r"], to=1), h.make_node("Mul", ["s", "ws"], ["t"]),
            h.make_node("Mul", ["r", "t"], ["m" if bias else "y"]),
            *([h.make_node("Add", ["b", "m"], ["y"])] if bias else []),
        ]  # fmt: skip
        for axes in (2, 3):
            x = g.standard_normal((*(2,) * (axes - 2), 5, 33)).astype(np.float32)
            compared(model_of(nodes, constants, shape=(None,) * axes), x, np.zeros_like(x))


@pytest.mark.parametrize("way", ["product", "turned", "whole", "columns"])
def test_scales_that_are_constants(way):
    """Bytes that come with a constant scale: that and the weights' multiplied by a node, or a constant."""
    g = np.random.default_rng(12)
    columns = way in ("turned", "columns")
    constants = {
        "w": g.integers(0, 256, (33, 17), dtype=np.uint8), "wz": np.uint8(99), "z": np.uint8(120),
        "s": np.float32(0.03), "ws": np.asarray(g.random(17 if columns else ()), np.float32),
        "b": g.standard_normal(17).astype(np.float32),
    }  # fmt: skip
    scale = h.make_node("Mul", ["ws", "s"] if way == "turned" else ["s", "ws"], ["t"])
    if way in ("whole", "columns"):
        constants["t"] = constants["s"] * constants["ws"]
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        h.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["i"]),
        h.make_node("Cast", ["i"], ["r"], to=1), *([] if "t" in constants else [scale]),
        h.make_node("Mul", ["r", "t"], ["m"]), h.make_node("Add", ["m", "b"], ["y"]),
    ]  # fmt: skip
    x = g.standard_normal((5, 33)).astype(np.float32)
    compared(model_of(nodes, constants, shape=(None,) * 2), x, x[:1])
    data = [n if n.op_type != "Add" else h.make_node("Mul", ["m", "b"], ["y"]) for n in nodes]
    data[-2] = h.make_node("Mul", ["r", "x"], ["m"])  # what is multiplied by data is no scale
    data = [n for n in data if n is not scale]
    compared(
        model_of(data, constants | {"w": constants["w"][:17]}, shape=(None,) * 2), x[:, :17], rewritten=0
    )


def test_both_operands_are_data():
    """Attention's products: the scales of both come with the data."""
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        h.make_node("DynamicQuantizeLinear", ["t"], ["q2", "s2", "z2"]),
        h.make_node("MatMulInteger", ["q", "q2", "z", "z2"], ["i"]),
        h.make_node("Cast", ["i"], ["r"], to=1), h.make_node("Mul", ["s", "s2"], ["u"]),
        h.make_node("Mul", ["r", "u"], ["y"]),
    ]  # fmt: skip
    x = np.random.default_rng(6).standard_normal((2, 5, 8)).astype(np.float32)
    compared(model_of(nodes, {}, shape=(None,) * 3), x)


@pytest.mark.parametrize("what", ["sums", "real", "m"])
def test_what_someone_else_reads_stays(what):
    """Sums, or numbers before the bias, that are outputs too."""
    nodes, constants = convolution(np.random.default_rng(8), 4, 3, 1, (3, 3), "added")
    outputs = ["y", *(["m"] if what == "m" else [])]
    if what in ("sums", "real"):
        nodes.append(h.make_node("Cast", [what], ["seen"], to=1))
        outputs.append("seen")
    x = np.random.default_rng(9).standard_normal((1, 3, 6, 6)).astype(np.float32)
    compared(model_of(nodes, constants, outputs), x, rewritten=int(what == "m"))


def test_a_bias_that_makes_the_result_larger_stays():
    nodes, constants = convolution(np.random.default_rng(8), 4, 3, 1, (3, 3), "added")
    constants["sizes"] = np.array([1, 1, 4, 1, 1])
    x = np.random.default_rng(9).standard_normal((1, 3, 6, 6)).astype(np.float32)
    ours = compared(model_of(nodes, constants), x)
    assert "Add" in {r.op for r in ours.profile}


def test_quantizer():
    """Channels last in memory or not, infinities and NaN among them or nothing else: the numbers of the
    definition.
    """
    g = np.random.default_rng(10)
    for i in range(90):
        shape = tuple(int(n) for n in g.integers(1, 40, g.integers(1, 5)))
        with np.errstate(over="ignore"):
            x = (g.standard_normal(shape) * 10 ** g.uniform(-44, 38)).astype(np.float32)
        if i % 3 == 0:
            bad = np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32)[: g.integers(1, 5)]
            x[g.random(shape) < g.choice([0.1, 0.9, 1])] = g.choice(bad)
        want = ox.dynamic_quantize_linear(x)
        for last in (False, True):
            got = dynamic.quantized(x, last)
            for a, b in zip(got, want, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                np.testing.assert_array_equal(a, b)
            if last and len(shape) > 2 and shape[1] > 1:
                assert np.moveaxis(got[0], 1, -1).flags.c_contiguous


def test_copies_keep_the_operator():
    """A pickle is the rewritten model, whose operators only lowgemm has."""
    import pickle

    nodes, constants = convolution(np.random.default_rng(11), 4, 3, 1, (3, 3), "added")
    model = Model(model_of(nodes, constants))
    x = np.random.default_rng(12).standard_normal((1, 3, 6, 6)).astype(np.float32)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.run(None, {"x": x})[0], model.run(None, {"x": x})[0])
