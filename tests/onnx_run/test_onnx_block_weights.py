"""DequantizeLinear of 4-bit and 2-bit weights before a product, beside the model as written and float64."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import onnx_models as om
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import TensorProto
from onnx import helper as h
from onnx import numpy_helper as nh

from lowgemm.onnx_run import Model, block_weights

TYPES = [n for n in ("INT4", "UINT4", "INT2", "UINT2") if hasattr(TensorProto, n)]


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch):
    monkeypatch.setattr(block_weights, "LEAST", 1)


class Case:
    """A product with weights of a type; `scales`: "blocks", "columns" or "one".

    `turned`: None, "Transpose" or "transB" of a Gemm, for weights of shape (columns, depth).
    """

    def __init__(
        self, g, kind, depth, columns, scales="blocks", block=32, zeros=False, turned=None, bias=False
    ):
        bits, least = block_weights._TYPES[kind]
        kind = getattr(TensorProto, kind)
        codes = g.integers(least, least + 2**bits, (depth, columns))
        blocks = -(-depth // block) if scales == "blocks" else 1
        shape = {"blocks": (blocks, columns), "columns": (columns,), "one": ()}[scales]
        scale = (g.random(shape) * 0.02 + 0.001).astype(np.float32)
        zero = g.integers(least, least + 2**bits, shape) if zeros else np.zeros(shape, int)
        each = -(-depth // blocks) if scales != "blocks" else block
        wide = [np.repeat(np.broadcast_to(v, (blocks, columns)), each, axis=0)[:depth] for v in (scale, zero)]
        self.weights = (codes - wide[1]) * wide[0].astype(np.float64)
        axis = 1 if scales == "columns" else 0
        if turned:
            codes, axis = codes.T, 1 - axis
            scale, zero = (scale.T, zero.T) if scales == "blocks" else (scale, zero)
        made = [h.make_tensor("w", kind, codes.shape, codes.reshape(-1).tolist()), nh.from_array(scale, "s")]
        if zeros:
            made.append(h.make_tensor("z", kind, zero.shape, zero.reshape(-1).tolist()))
        self.bias = g.standard_normal(columns).astype(np.float32) if bias else np.float32(0)
        if bias:
            made.append(nh.from_array(self.bias, "c"))
        given = {"axis": axis, "block_size": block} if scales == "blocks" else {"axis": axis}
        nodes = [h.make_node("DequantizeLinear", ["w", "s", "z"][: 2 + zeros], ["d"], **given)]
        if turned == "Transpose":
            nodes.append(h.make_node("Transpose", ["d"], ["t"], perm=[1, 0]))
        right = "t" if turned == "Transpose" else "d"
        if turned == "transB" or bias:
            more = {"transB": 1} if turned == "transB" else {}
            nodes.append(h.make_node("Gemm", ["x", right, "c"][: 2 + bias], ["y"], **more))
        else:
            nodes.append(h.make_node("MatMul", ["x", right], ["y"]))
        opset = 25 if kind in [getattr(TensorProto, n, None) for n in ("INT2", "UINT2")] else 21
        self.proto = h.make_model(
            h.make_graph(
                nodes, "g", [h.make_tensor_value_info("x", 1, None)], [onnx.ValueInfoProto(name="y")], made
            ),
            opset_imports=[h.make_opsetid("", opset)], ir_version=10,
        )  # fmt: skip


def bound(x, weights):
    """Float sums in any order, and the last digit of the data."""
    x, weights = np.abs(x.astype(np.float64)), np.abs(weights)
    largest = x.max(axis=-1, keepdims=True, initial=0)
    return 2.0**-23 * ((len(weights) + 8) * (x @ weights) + largest * weights.sum(axis=0))


FORMS = itertools.product(TYPES, ("blocks", "columns", "one"), (False, True), (None, "Transpose", "transB"))


def test_close_to_the_exact_product():
    """Every form of the weights, depths that end inside of a block, with a bias or not; bits do not depend on
    threads; a pickle gives the same.
    """
    g = np.random.default_rng(0)
    for i, (kind, scales, zeros, turned) in enumerate(FORMS):
        depth, columns, bias = (64, 150, 33)[i % 3], (5, 40)[i % 2], bool(i // 2 % 2)
        case = Case(g, kind, depth, columns, scales, (16, 32, 64)[i % 3], zeros, turned, bias)
        model, x = Model(case.proto), (g.standard_normal((3, depth)) * 10).astype(np.float32)
        assert list(model.rewritten.values()) == [1], (kind, scales, zeros, turned)
        got = model.run(None, {"x": x})[0]
        want = x.astype(np.float64) @ case.weights + case.bias
        assert (np.abs(got - want) <= bound(x, case.weights) + 2.0**-23 * np.abs(want)).all()
        again = pickle.loads(pickle.dumps(Model(case.proto, num_threads=2)))
        np.testing.assert_array_equal(again.run(None, {"x": x})[0], got)


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_close_to_onnxruntime_without_its_optimizer(kind):
    peers.need("onnxruntime")
    g = np.random.default_rng(1)
    case = Case(g, kind, 96, 20, zeros=True)
    x = g.standard_normal((2, 7, 96)).astype(np.float32)
    theirs = om.onnxruntime_run(case.proto, {"x": x}, "ORT_DISABLE_ALL")["y"]
    model = Model(case.proto)
    assert model.rewritten["MatMul -> MatMulNBits"] == 1
    got = model.run(None, {"x": x})[0]
    assert got.shape == theirs.shape
    assert (np.abs(got - theirs) <= 2 * bound(x, case.weights)).all()


def test_what_stays_as_written(monkeypatch):
    """Small weights, blocks of the columns' axis or of no power of 2, factors of a Gemm, weights that others
    read as well keep their dequantizer; `fuse=False` rewrites nothing.
    """
    g = np.random.default_rng(2)
    case, x = Case(g, "INT4", 64, 32), np.ones((1, 64), np.float32)
    want = x.astype(np.float64) @ case.weights

    def check(proto, **more):
        model = Model(proto, **more)
        assert not model.rewritten
        assert np.allclose(model.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-5)

    check(case.proto, fuse=False)
    monkeypatch.setattr(block_weights, "LEAST", 64 * 32 + 1)
    check(case.proto)
    monkeypatch.setattr(block_weights, "LEAST", 1)
    case = Case(g, "INT4", 64, 32, block=24)
    want = x.astype(np.float64) @ case.weights
    check(case.proto)
    case = Case(g, "INT4", 64, 32, turned="transB")
    case.proto.graph.node[-1].attribute.append(h.make_attribute("alpha", 0.5))
    want = 0.5 * (x.astype(np.float64) @ case.weights)
    check(case.proto)
    square = Case(g, "INT4", 64, 64)  # of shape (depth, columns), with blocks of columns
    square.proto.graph.node[0].attribute[0].i = 1
    square.proto.graph.initializer[1].CopyFrom(nh.from_array(np.full((64, 2), 0.5, np.float32), "s"))
    codes = nh.to_array(square.proto.graph.initializer[0]).astype(np.float64)
    want = x.astype(np.float64) @ codes * 0.5
    check(square.proto)


def test_weights_are_held_once():
    """The model keeps neither the codes as they came nor floats."""
    g = np.random.default_rng(3)
    model = Model(Case(g, "UINT4", 256, 128, zeros=True).proto)
    assert model._proto.ByteSize() < 4000
    assert sum(v.nbytes for v in model._large.values()) < 256 * 128 // 2
