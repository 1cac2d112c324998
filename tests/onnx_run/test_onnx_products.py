"""Products of bytes of which both operands may come with the data: as written, one by one and recorded, beside
onnxruntime without its optimizer, bit for bit.
"""

from __future__ import annotations

import itertools

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h
from onnx_models import one_by_one

from lowgemm.onnx_run import Model

MS = "com.microsoft"
BYTES = (np.uint8, np.int8)


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def same(nodes, constants, feeds, threads=1, outputs=("y",), recorded=True):
    """All of lowgemm's ways to run a model beside onnxruntime's; `recorded`: as one call."""
    info = h.make_tensor_value_info
    kinds = {n: h.np_dtype_to_tensor_dtype(x.dtype) for n, x in feeds.items()}
    graph = h.make_graph(
        nodes, "g", [info(n, kinds[n], [None] * x.ndim) for n, x in feeds.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 21), h.make_opsetid(MS, 1)], ir_version=10)
    of_name = om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")
    want = [of_name[o] for o in outputs]
    model = Model(proto, num_threads=threads)
    found = [*(model.run(None, feeds) for _ in range(4)), one_by_one(model, None, feeds)]
    found.append(Model(proto, fuse=False, num_threads=threads).run(None, feeds))
    for i, got in enumerate(found):
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape, (i, a.dtype, b.dtype, a.shape, b.shape)
            np.testing.assert_array_equal(a, b, err_msg=f"way {i}")
    if recorded:
        groups = [t.group for t in model._program._turns if hasattr(t, "group")]
        assert groups and all(
            r.tape is not None and r.end == len(g._records) for g in groups for r in g.found[0].values()
        )
    return model


def coded(g, dtype, *shape):
    """Bytes, all of them, or only the ends of their range."""
    info = np.iinfo(dtype)
    if g.random() < 0.3:
        return g.choice([info.min, info.max], shape).astype(dtype)
    return g.integers(info.min, info.max + 1, shape).astype(dtype)


def sizes(g):
    """Shapes of two operands that fit, the leading axes equal or repeated in any way that both know."""
    m, k, n = (int(v) for v in g.integers(1, 40, 3))
    lead = tuple(int(v) for v in g.integers(1, 4, g.integers(0, 3)))
    return (*lead, m, k), (*lead, k, n)


def zero(g, dtype, *shape):
    info = np.iinfo(dtype)
    return np.asarray(g.integers(info.min, info.max + 1, shape)).astype(dtype)


@pytest.mark.parametrize("seed", range(24))
def test_both_operands_come_with_the_data(seed, threads):
    g = np.random.default_rng(seed)
    da, db = BYTES[seed % 2], BYTES[seed // 2 % 2]
    if (da, db) == (np.int8, np.uint8):  # onnxruntime has no such QLinearMatMul
        db = np.int8
    a, b = sizes(g)
    x, w = coded(g, da, *a), coded(g, db, *b)
    turned_a, turned_b = g.random(2) < 0.5
    feeds = {"x": x, "w": w}
    nodes, names = [], {"x": "x", "w": "w"}
    for name, turned in (("x", turned_a), ("w", turned_b)):
        if turned:
            order = [*range(feeds[name].ndim - 2), feeds[name].ndim - 1, feeds[name].ndim - 2]
            feeds[name] = np.ascontiguousarray(feeds[name].transpose(order))
            nodes.append(h.make_node("Transpose", [name], [f"{name} turned"], perm=order))
            names[name] = f"{name} turned"
    constants = {
        "as": np.float32(g.random() / 20 + 1e-3), "az": zero(g, da), "bs": np.float32(g.random() / 20 + 1e-3),
        "bz": zero(g, db), "ys": np.float32(g.random() / 4 + 1e-3), "yz": zero(g, da),
    }  # fmt: skip
    many = nodes + [
        h.make_node("QLinearMatMul", [names["x"], "as", "az", names["w"], "bs", "bz", "ys", "yz"], ["y"]),
        h.make_node("MatMulInteger", [names["x"], names["w"], "az", "bz"], ["sums"]),
    ]
    same(many, constants, feeds, threads, ("y", "sums"))


@pytest.mark.parametrize("seed", range(12))
def test_scales_and_zero_points_of_columns(seed, threads):
    """Of constants and of data; differing zero points need vectors for both operands."""
    g = np.random.default_rng(100 + seed)
    da, db = (np.uint8, BYTES[seed % 2]) if seed % 3 else (np.int8, np.int8)
    m, k, n = (int(v) for v in g.integers(1, 70, 3))
    shape = (2, 3, m, k) if seed % 4 == 0 else (m, k)
    feeds = {"x": coded(g, da, *shape), "w": coded(g, db, k, n)}
    constants = {
        "as": np.float32(0.02), "az": zero(g, da), "bs": (g.random(n) / 20 + 1e-3).astype(np.float32),
        "bz": zero(g, db, n), "ys": np.float32(0.3), "yz": zero(g, da),
    }  # fmt: skip
    if seed % 4 == 1:
        constants["bz"][...] = constants["bz"][0]
    if seed % 2:
        constants["w"] = feeds.pop("w")
    many = [
        h.make_node("QLinearMatMul", ["x", "as", "az", "w", "bs", "bz", "ys", "yz"], ["y"]),
        h.make_node("MatMulInteger", ["x", "w", "az", "bz"], ["sums"]),
    ]
    same(many, constants, feeds, threads, ("y", "sums"))


GEMMS = list(itertools.product((0, 1), (0, 1), (False, True)))


@pytest.mark.parametrize(("trans_a", "trans_b", "floats"), GEMMS)
def test_gemm_of_data(trans_a, trans_b, floats):
    g = np.random.default_rng(8 * trans_a + 4 * trans_b + floats)
    m, k, n = 13, 21, 17
    feeds = {
        "x": coded(g, np.uint8, *((k, m) if trans_a else (m, k))),
        "w": coded(g, np.int8, *((n, k) if trans_b else (k, n))),
    }
    constants = {
        "as": np.float32(0.02), "az": np.uint8(113), "bs": np.float32(0.03), "bz": np.int8(-7),
        "b": g.integers(-9000, 9000, n).astype(np.int32), "ys": np.float32(0.11), "yz": np.uint8(99),
    }  # fmt: skip
    names = ["x", "as", "az", "w", "bs", "bz", "b", *([] if floats else ["ys", "yz"])]
    node = h.make_node("QGemm", names, ["y"], domain=MS, transA=trans_a, transB=trans_b, alpha=0.5)
    same([node], constants, feeds)


@pytest.mark.parametrize("seed", range(16))
def test_products_of_two_quantized_tensors(seed, threads):
    """As a dynamic model has attention: scales and zero points of both come with the data."""
    g = np.random.default_rng(200 + seed)
    a, b = sizes(g)
    feeds = {"x": g.standard_normal(a).astype(np.float32), "w": (g.standard_normal(b) + 1).astype(np.float32)}
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["qx", "sx", "zx"]),
        h.make_node("DynamicQuantizeLinear", ["w"], ["qw", "sw", "zw"]),
        h.make_node("MatMulInteger", ["qx", "qw", "zx", "zw"], ["sums"]),
        h.make_node("Cast", ["sums"], ["real"], to=1),
        h.make_node("Mul", ["sx", "sw"], ["scale"]),
        h.make_node("Mul", ["real", "scale"], ["y"]),
    ]
    outputs = ("y", "sums") if seed % 4 == 3 else ("y",)
    same(nodes, {}, feeds, threads, outputs, recorded=len(outputs) == 1)


@pytest.mark.parametrize("seed", range(12))
def test_products_to_floats_of_data(seed, threads):
    """MatMulIntegerToFloat and DynamicQuantizeMatMul, with scales and a bias that are data, or constants."""
    g = np.random.default_rng(300 + seed)
    a, b = sizes(g)
    dtype, n = BYTES[seed % 2], b[-1]
    count = n if len(b) == 2 else 1  # onnxruntime reads scales of columns of a stack behind their end
    values = {
        "w": coded(g, dtype, *b), "bs": (g.random(count) / 20).astype(np.float32),
        "bz": zero(g, dtype), "bias": g.standard_normal(n).astype(np.float32),
    }  # fmt: skip
    data = [name for name in values if g.random() < 0.5 and name != "bias"] or ["w"]
    feeds = {"x": g.standard_normal(a).astype(np.float32)} | {name: values.pop(name) for name in data}
    nodes = [
        h.make_node("DynamicQuantizeMatMul", ["x", "w", "bs", "bz", "bias"], ["y"], domain=MS),
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("MatMulIntegerToFloat", ["q", "w", "s", "bs", "z", "bz", "bias"], ["more"], domain=MS),
    ]
    same(nodes, values, feeds, threads, ("y", "more"))


def test_attention_of_bytes(threads):
    """Heads apart by views, scores, and values: one recorded call."""
    g, (rows, heads, size) = np.random.default_rng(7), (12, 3, 8)
    constants = {
        "s": np.float32(0.02), "z": np.uint8(121), "p": np.float32(0.3), "heads": np.array([0, 0, heads, size]),
        "flat": np.array([0, 0, heads * size]), "ws": (g.random(24) / 50 + 1e-3).astype(np.float32), "wz": np.zeros(24, np.int8),
        **{w: coded(g, np.int8, heads * size, heads * size) for w in "qkvo"},
    }  # fmt: skip
    nodes = []
    for w, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            h.make_node("QLinearMatMul", ["x", "s", "z", w, "ws", "wz", "s", "z"], [f"{w}1"]),
            h.make_node("Reshape", [f"{w}1", "heads"], [f"{w}2"]),
            h.make_node("Transpose", [f"{w}2"], [f"{w}3"], perm=order),
        ]
    nodes += [
        h.make_node("QLinearMatMul", ["q3", "s", "z", "k3", "s", "z", "p", "z"], ["scores"]),
        h.make_node("QLinearMatMul", ["scores", "p", "z", "v3", "s", "z", "s", "z"], ["mixed"]),
        h.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        h.make_node("Reshape", ["back", "flat"], ["rows"]),
        h.make_node("QLinearMatMul", ["rows", "s", "z", "o", "ws", "wz", "s", "z"], ["y"]),
        h.make_node("QLinearMatMul", ["back", "s", "z", "few", "s", "wz0", "s", "z"], ["more"]),
    ]
    constants |= {"few": coded(g, np.int8, size, 5), "wz0": np.int8(-3)}
    same(nodes, constants, {"x": coded(g, np.uint8, 2, rows, heads * size)}, threads, ("y", "more"))
