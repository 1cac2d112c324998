"""Means of rows: the bits of onnxruntime's ReduceMean over the last axis; normalizations that are written out
as nodes, as one recording.
"""

from __future__ import annotations

import numpy as np
import onnx_models as om
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h

from lowgemm.onnx_run import Model, row_means


def mean_model(opset):
    info = h.make_tensor_value_info
    old = opset < 18
    node = h.make_node("ReduceMean", ["x"] if old else ["x", "a"], ["y"], **({"axes": [-1]} if old else {}))
    constants = [] if old else [onnx.numpy_helper.from_array(np.array([-1]), "a")]
    graph = h.make_graph([node], "g", [info("x", 1, None)], [info("y", 1, None)], constants)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [13, 18])
def test_beside_onnxruntime(opset, threads):
    """Rows of all small lengths and some longer ones, whose vectors begin at four places; what is not finite."""
    peers.need("onnxruntime")
    g, model = np.random.default_rng(opset), mean_model(opset)
    for trial in range(120):
        count = trial + 1 if trial < 40 else int(g.integers(1, 1200))
        shape = (*(int(n) for n in g.integers(1, 9, trial % 4)), count)
        x = (g.standard_normal(shape) * 10.0 ** g.integers(-3, 4)).astype(np.float32)
        if trial % 7 == 0:
            x.reshape(-1)[g.integers(x.size)] = g.choice([-0.0, np.inf, np.nan, 3e38])
        if trial % 11 == 0:
            x[...] = -0.0
        want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")["y"]
        with np.errstate(over="ignore", invalid="ignore"):
            for y in (row_means.by_definition(x), row_means.compiled(x, threads)):
                assert y.shape == want.shape
                np.testing.assert_array_equal(y.view(np.uint32)[y == y], want.view(np.uint32)[want == want])
                np.testing.assert_array_equal(y, want)


def test_what_it_is_not_for():
    x = np.ones((3, 8), np.float32)
    for y in (x[:, ::2], x[:0], x.astype(np.float64)):
        assert row_means.compiled(y) is NotImplemented
    with np.errstate(invalid="ignore"):
        assert np.isnan(row_means.by_definition(x[:, :0])).all()


def test_which_nodes():
    """Over the last axis alone, which stays."""
    make = h.make_node
    held = {"last": np.array([-1]), "two": np.array([-1, -2]), "one": np.array(-1)}
    assert row_means.is_row_mean(make("ReduceMean", ["x"], ["y"], axes=[-1]), {})
    assert row_means.is_row_mean(make("ReduceMean", ["x", "last"], ["y"], keepdims=1), held)
    for node in (
        make("ReduceMean", ["x"], ["y"], axes=[-1], keepdims=0), make("ReduceMean", ["x"], ["y"], axes=[1]),
        make("ReduceMean", ["x", "two"], ["y"]), make("ReduceMean", ["x"], ["y"]),
        make("ReduceMean", ["x", "unknown"], ["y"]), make("ReduceSum", ["x", "last"], ["y"]),
        make("ReduceMean", ["x", "last"], ["y"], domain="other"),
    ):  # fmt: skip
        assert not row_means.is_row_mean(node, held)


def product(data, name, weights):
    """Nodes of a dynamically quantized product."""
    return [
        h.make_node("DynamicQuantizeLinear", [data], [f"{name}q", f"{name}s", f"{name}z"]),
        h.make_node("MatMulInteger", [f"{name}q", weights, f"{name}z", "wz"], [f"{name}i"]),
        h.make_node("Cast", [f"{name}i"], [f"{name}r"], to=1),
        h.make_node("Mul", [f"{name}s", "ws"], [f"{name}t"]),
        h.make_node("Mul", [f"{name}r", f"{name}t"], [name]),
    ]


def rms(data, name):
    return [
        h.make_node("Cast", [data], [f"{name}0"], to=1), h.make_node("Pow", [f"{name}0", "two"], [f"{name}1"]),
        h.make_node("ReduceMean", [f"{name}1"], [f"{name}2"], axes=[-1], keepdims=1),
        h.make_node("Add", [f"{name}2", "eps"], [f"{name}3"]), h.make_node("Sqrt", [f"{name}3"], [f"{name}4"]),
        h.make_node("Div", ["one", f"{name}4"], [f"{name}5"]),
        h.make_node("Mul", [data, f"{name}5"], [f"{name}6"]), h.make_node("Mul", ["gain", f"{name}6"], [name]),
    ]  # fmt: skip


def layer_norm(data, name):
    return [
        h.make_node("ReduceMean", [data], [f"{name}0"], axes=[-1], keepdims=1),
        h.make_node("Sub", [data, f"{name}0"], [f"{name}1"]), h.make_node("Pow", [f"{name}1", "two"], [f"{name}2"]),
        h.make_node("ReduceMean", [f"{name}2"], [f"{name}3"], axes=[-1], keepdims=1),
        h.make_node("Add", [f"{name}3", "eps"], [f"{name}4"]), h.make_node("Sqrt", [f"{name}4"], [f"{name}5"]),
        h.make_node("Div", [f"{name}1", f"{name}5"], [f"{name}6"]),
        h.make_node("Mul", [f"{name}6", "gain"], [f"{name}7"]), h.make_node("Add", [f"{name}7", "bias"], [name]),
    ]  # fmt: skip


@pytest.mark.parametrize("norm", [rms, layer_norm])
@pytest.mark.parametrize("width", [1, 7, 48, 512])
@pytest.mark.parametrize("view", [False, True])
def test_normalizations(norm, width, view, threads):
    """Between two products, with a residual sum before: no node is another engine's."""
    peers.need("onnxruntime")
    g = np.random.default_rng(width)
    made = {
        "w": g.integers(0, 256, (9, width), dtype=np.uint8), "v": g.integers(0, 256, (9, width), dtype=np.uint8),
        "u": g.integers(0, 256, (width, 5), dtype=np.uint8), "wz": np.uint8(120), "ws": np.float32(0.02),
        "gain": g.standard_normal(width).astype(np.float32), "bias": g.standard_normal(width).astype(np.float32),
        "two": np.float32(2), "one": np.float32(1), "eps": np.float32(1e-6), "shape": np.array([1, 0, -1, width]),
    }  # fmt: skip
    nodes = [*product("x", "a", "w"), *product("x", "b", "v"), h.make_node("Add", ["a", "b"], ["sum"])]
    if view:
        nodes.append(h.make_node("Reshape", ["sum", "shape"], ["hidden"]))
    hidden = "hidden" if view else "sum"
    nodes += [*norm(hidden, "n"), *product("n", "y", "u"), h.make_node("Mul", [hidden, "one"], ["last"])]
    info, outputs = h.make_tensor_value_info, ["y", "last"]
    graph = h.make_graph(
        nodes, "g", [info("x", 1, [None] * 3)], [info(o, 1, None) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in made.items()],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    ours = Model(model, num_threads=threads)
    for shape in ((2, 6, 9), (1, 1, 9), (3, 5, 9)):
        x = g.standard_normal(shape).astype(np.float32)
        want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")
        for _ in range(5):
            for got, name in zip(ours.run(None, {"x": x}), outputs, strict=True):
                np.testing.assert_array_equal(got, want[name], err_msg=name)
    assert not any(r.runs_on == "onnxruntime" for r in ours.profile), ours.profile
    assert not any(r.op == "Cast" for r in ours.profile)
