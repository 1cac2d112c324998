"""LayerNormalization over the last axis: onnxruntime's bits, and as part of a recording."""

from __future__ import annotations

import numpy as np
import onnx_models as om
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from functools import partial

import onnx
from onnx import helper as h
from onnx_models import one_by_one

from lowgemm.onnx_run import Model, layer_norm


def norm_model(bias, epsilon):
    info, names = h.make_tensor_value_info, ["x", "w", "b"][: 2 + bias]
    node = h.make_node("LayerNormalization", names, ["y"], epsilon=epsilon)
    graph = h.make_graph([node], "g", [info(n, 1, None) for n in names], [info("y", 1, None)])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-12, 0.1])
def test_beside_onnxruntime(bias, epsilon, threads):
    """Rows of all lengths modulo the vectors', whose sums cancel, whose numbers are equal, or not finite."""
    peers.need("onnxruntime")
    g, model = np.random.default_rng(7), norm_model(bias, epsilon)
    for trial in range(60):
        count = trial + layer_norm.SHORTEST if trial < 40 else int(g.integers(8, 1100))
        shape = (*(int(n) for n in g.integers(1, 9, trial % 4)), count) if trial % 2 else (200, count)
        x = (g.standard_normal(shape) * 10.0 ** g.integers(-3, 4) + g.standard_normal()).astype(np.float32)
        if trial % 5 == 0:
            x[..., count // 2 :] = -x[..., : count - count // 2][..., ::-1] * np.float32(1 + 1e-6)
        if trial % 7 == 0:
            x[...] = x.reshape(-1)[0]
        if trial % 6 == 0:
            x.reshape(-1)[g.integers(x.size)] = g.choice([np.inf, np.nan, 3e38])
        w, b = (g.standard_normal(count).astype(np.float32) for _ in range(2))
        feeds = {"x": x, "w": w, "b": b} if bias else {"x": x, "w": w}
        want, b = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")["y"], b if bias else None
        with np.errstate(all="ignore"):
            defined = layer_norm.by_definition(x, w, b, np.float32(epsilon))
            got = layer_norm.compiled(x, w, b, np.array(epsilon, np.float32), threads)
        np.testing.assert_array_equal(defined, got)
        np.testing.assert_array_equal(got, want)


def test_which_nodes():
    """Over the last axis, by constants of enough numbers, with one output."""
    eight, seven = np.ones(8, np.float32), np.ones(7, np.float32)
    held = {"w": eight, "b": eight, "s": seven, "d": eight.astype(np.float64), "m": eight.reshape(2, 4)}
    for names, outputs, kinds, fits in (
        (["x", "w", "b"], ["y"], {}, True), (["x", "w"], ["y"], {"axis": -1}, True),
        (["x", "w", ""], ["y", ""], {}, True), (["x", "w", "b"], ["y"], {"axis": 2}, False),
        (["x", "w", "b"], ["y", "mean"], {}, False), (["x", "s"], ["y"], {}, False),
        (["x", "w", "s"], ["y"], {}, False), (["x", "d"], ["y"], {}, False), (["x", "m"], ["y"], {}, False),
        (["x", "w", "given"], ["y"], {}, False), (["x", "w"], ["y"], {"domain": "other"}, False),
    ):  # fmt: skip
        assert (
            layer_norm.is_layer_norm(h.make_node("LayerNormalization", names, outputs, **kinds), held) == fits
        )


def product(data, name, weights):
    return [
        h.make_node("DynamicQuantizeLinear", [data], [f"{name}q", f"{name}s", f"{name}z"]),
        h.make_node("MatMulInteger", [f"{name}q", weights, f"{name}z", "wz"], [f"{name}i"]),
        h.make_node("Cast", [f"{name}i"], [f"{name}r"], to=1),
        h.make_node("Mul", [f"{name}s", "ws"], [f"{name}t"]),
        h.make_node("Mul", [f"{name}r", f"{name}t"], [name]),
    ]


@pytest.mark.parametrize("width", [8, 48, 70])
@pytest.mark.parametrize("turned", [False, True])
def test_between_products(width, turned, threads):
    """With residual sums: no node is another engine's, and all is one recording; also of a view that is not
    in C order.
    """
    peers.need("onnxruntime")
    g = np.random.default_rng(width)
    made = {
        "w": g.integers(0, 256, (9, width), dtype=np.uint8), "u": g.integers(0, 256, (width, width), dtype=np.uint8),
        "wz": np.uint8(120), "ws": np.float32(0.02), "gain": g.standard_normal(width).astype(np.float32),
        "bias": g.standard_normal(width).astype(np.float32), "half": np.float32(0.5),
    }  # fmt: skip
    nodes = product("x", "a", "w")
    if turned:
        nodes.append(h.make_node("Transpose", ["a"], ["a2"], perm=[1, 0, 2]))
    first = "a2" if turned else "a"
    nodes += [
        h.make_node("LayerNormalization", [first, "gain", "bias"], ["n"]), *product("n", "c", "u"),
        h.make_node("Add", ["n", "c"], ["d"]), h.make_node("LayerNormalization", ["d", "gain"], ["e1"], epsilon=1e-3),
        h.make_node("LayerNormalization", ["e1", "gain"], ["e"]), h.make_node("Mul", ["e", "half"], ["last"]), *product("last", "y", "u"),
    ]  # fmt: skip
    info, outputs = h.make_tensor_value_info, ["y", "last", "n"]
    graph = h.make_graph(
        nodes, "g", [info("x", 1, [None] * 3)], [info(o, 1, None) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in made.items()],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    ours = Model(model, num_threads=threads)
    for shape in ((2, 6, 9), (1, 1, 9), (3, 5, 9)):
        x = g.standard_normal(shape).astype(np.float32)
        want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")
        for run in (*[ours.run] * 4, partial(one_by_one, ours)):
            for got, name in zip(run(None, {"x": x}), outputs, strict=True):
                np.testing.assert_array_equal(got, want[name], err_msg=name)
    assert not any(r.runs_on == "onnxruntime" for r in ours.profile), ours.profile
