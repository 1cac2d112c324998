"""MatMulNBits beside float64, with a bound on the rounding, and beside onnxruntime; digits by the book."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import onnx_models as om
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h

from lowgemm.onnx_run import Model, nbits, nbits_rows, nbits_weights

MS = "com.microsoft"


class Case:
    """A node's constants, and its weights in float64.

    `zeros`: None, "bytes" or "floats".
    """

    def __init__(self, g, bits, block, depth, n, zeros=None):
        blocks = -(-depth // block)
        codes = g.integers(0, 2**bits, (n, blocks, block)).astype(np.uint8)
        scales = (g.random((n, blocks)) * 0.02 + 0.001).astype(np.float32)
        self.given = {"b": nbits_weights.packed(codes, bits), "s": scales}
        points = np.full((n, blocks), 2.0 ** (bits - 1))
        if zeros == "bytes":
            points = g.integers(0, 2**bits, (n, blocks)).astype(np.uint8)
            self.given["z"] = nbits_weights.packed(points, bits)
        elif zeros == "floats":
            points = (g.random((n, blocks)) * 2**bits).astype(np.float32)
            self.given["z"] = points
        self.attributes = {"K": depth, "N": n, "bits": bits, "block_size": block}
        whole = (codes - points[..., None].astype(np.float64)) * scales[..., None]
        self.weights = whole.reshape(n, -1)[:, :depth].T

    def model(self, level=None, bias=None, group=None, inputs=(), held=None, **more):
        given = self.given | (held or {})
        if bias is not None:
            given["c"] = bias
        if group is not None:
            given["g"] = group
        names = ["x", *(n if n in given else "" for n in "bszgc")]
        while not names[-1]:
            names.pop()
        attributes = self.attributes | ({} if level is None else {"accuracy_level": level}) | more
        info = h.make_tensor_value_info
        graph = h.make_graph(
            [h.make_node("MatMulNBits", names, ["y"], domain=MS, **attributes)], "g",
            [info("x", 1, None), *(info(n, h.np_dtype_to_tensor_dtype(given[n].dtype),
                                        given[n].shape) for n in inputs)],
            [onnx.ValueInfoProto(name="y")], [onnx.numpy_helper.from_array(v, n) for n, v in given.items()],
        )  # fmt: skip
        return h.make_model(
            graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8
        )


def coded(x, block):
    """What codes of blocks stand for."""
    codes, scales = nbits_rows.codes_by_definition(x, block)
    return codes * np.repeat(scales, block, axis=1)[:, : x.shape[1]].astype(np.float64)


def bound(x, weights, blocks):
    """How far float32 sums of blocks may be off: a rounding for each block and digit, and the last digit of
    the data.
    """
    x, weights = np.abs(x.astype(np.float64)), np.abs(weights)
    largest = x.max(axis=-1, keepdims=True, initial=0)
    return 2.0**-23 * ((blocks + 6) * (x @ weights) + largest * weights.sum(axis=0))


GRID = itertools.product((4, 8, 2), (16, 32, 64, 128, 256), (None, "bytes"), (None, 1, 4))


def test_close_to_the_exact_product_and_to_onnxruntime():
    """All bits, sizes of blocks and levels, with a bias or not, depths that end inside of a block;
    onnxruntime's own rounding has the same bound.
    """
    peers.need("onnxruntime")
    g = np.random.default_rng(0)
    for i, (bits, block, zeros, level) in enumerate(GRID):
        depth, n, rows = (256, 300, 33)[i % 3], int(g.integers(1, 40)), (1, 5, 2)[i % 3]
        case = Case(g, bits, block, depth, n, zeros)
        bias = g.standard_normal(n).astype(np.float32) if i % 2 else None
        x = (g.standard_normal((rows, depth)) * 10.0 ** g.integers(-3, 4)).astype(np.float32)
        proto = case.model(level, bias)
        model = Model(proto)
        got = model.run(None, {"x": x})[0]
        assert model.profile[0].runs_on == "lowgemm"
        data = coded(x, block) if nbits._is_coded(bits, block, level or 0) else x
        want = data.astype(np.float64) @ case.weights + (0 if bias is None else bias)
        limit = bound(data, case.weights, -(-depth // block)) + 2.0**-22 * np.abs(want)
        assert (np.abs(got - want) <= limit).all(), (bits, block, zeros, level)
        # onnxruntime adds the products of a block in float32 too where it does not code the data
        theirs = om.onnxruntime_run(proto, {"x": x})["y"]
        limit += 2.0**-23 * block * (np.abs(data.astype(np.float64)) @ np.abs(case.weights))
        assert (np.abs(got - theirs) <= limit).all(), (bits, block, zeros, level)


def test_digits_are_as_defined(monkeypatch):
    """Compiled and by NumPy, with rows of zeros, of one number, subnormal and large ones; they add up to the
    data.
    """
    g = np.random.default_rng(1)
    for depth in (1, 5, 16, 100):
        x = (g.standard_normal((6, depth)) * np.logspace(-30, 30, 6)[:, None]).astype(np.float32)
        x[2], x[3], x[4, 0], x[5] = 0, 1.5, -1e38, 1e-37
        digits, scales = found = nbits_rows.digits_of(x)
        more = [nbits_rows.codes_of(x, block) for block in (16, 64)]
        monkeypatch.setattr(nbits_rows.numba.config, "DISABLE_JIT", True)
        slow = nbits_rows.digits_of(x), *(nbits_rows.codes_of(x, block) for block in (16, 64))
        monkeypatch.undo()
        for a, b in zip((found, *more), slow, strict=True):
            for one, other in zip(a, b, strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
        data = (digits * scales[:, None].astype(np.float64)).reshape(3, *x.shape).sum(axis=0)
        assert (
            np.abs(data - x) <= 2.0**-22 * np.abs(x).max(axis=1, keepdims=True) + nbits_rows.SMALL_ROW
        ).all()


def near_ties():
    """Rows of 32 numbers whose codes depend on which inverse of the scale is taken, and some others."""
    x, f = np.random.default_rng(7).standard_normal((1 << 19, 32)).astype(np.float32), np.float32
    top = np.abs(x).max(axis=1, keepdims=True)
    near = (np.rint(x * (f(127) / top)) != np.rint(x * (f(1) / (top / f(127))))).any(axis=1)
    assert near.any()
    return np.concatenate([x[near], x[:50]])


def test_codes_are_as_defined_near_ties():
    x = near_ties()
    for one, other in zip(nbits_rows.codes_of(x, 32), nbits_rows.codes_by_definition(x, 32), strict=True):
        np.testing.assert_array_equal(one, other)


def test_codes_are_onnxruntimes():
    """Of level 4: weights of one column that pick out one number each."""
    peers.need("onnxruntime")
    case, x, f = Case(np.random.default_rng(7), 4, 32, 32, 32), near_ties(), np.float32
    case.given["b"] = nbits_weights.packed((8 + np.eye(32, dtype=np.uint8)).reshape(32, 1, 32), 4)
    case.given["s"] = np.ones((32, 1), f)
    for rows in (x, x[-1:]):
        want = om.onnxruntime_run(case.model(4), {"x": rows})["y"]
        got, step = (
            Model(case.model(4)).run(None, {"x": rows})[0],
            np.abs(rows).max(axis=1, keepdims=True) / 127,
        )
        assert (np.abs(got - want) <= step / 16).all()  # float32 sums; another code would be off by a step


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_packed_is_what_the_model_has(bits):
    """Codes behind the depth too: a pickle has the model's bytes, and runs to the same bits."""
    g = np.random.default_rng(bits)
    case = Case(g, bits, 16, 40, 7, "bytes")
    held = nbits_weights.PackedBlocks(case.given["b"], case.given["s"], case.given["z"], 40, bits, 16)
    np.testing.assert_array_equal(held.to_array(), case.given["b"])
    assert held.nbytes >= case.given["b"].nbytes
    model, x = Model(case.model()), g.standard_normal((2, 3, 40)).astype(np.float32)
    got = model.run(None, {"x": x})[0]
    assert got.shape == (2, 3, 7)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).run(None, {"x": x})[0], got)
    for threads in (1, 2):
        np.testing.assert_array_equal(Model(case.model(), num_threads=threads).run(None, {"x": x})[0], got)
    assert model.run(None, {"x": x[:0]})[0].shape == (0, 3, 7)


@pytest.mark.parametrize("name", ["b", "s", "z", "c"])
def test_operands_that_come_with_the_data(name):
    """An initializer that is an input too: its own value, and another."""
    peers.need("onnxruntime")
    g = np.random.default_rng(3)
    case, other = (Case(g, 4, 32, 64, 9, "bytes") for _ in range(2))
    biases = [g.standard_normal(9).astype(np.float32) for _ in range(2)]
    model = Model(case.model(bias=biases[0], inputs=[name]))
    for feeds in ({}, {name: biases[1] if name == "c" else other.given[name]}, {}):
        x = g.standard_normal((3, 64)).astype(np.float32)
        held = feeds if name != "c" else {}
        fixed = case.model(bias=feeds.get("c", biases[0]), held=held)
        want = om.onnxruntime_run(fixed, {"x": x})["y"]
        np.testing.assert_allclose(model.run(None, {"x": x, **feeds})[0], want, rtol=1e-5, atol=1e-5)


def test_the_rest_is_onnxruntimes():
    """Float zero points, an order of blocks, float16; without onnxruntime an error says so."""
    peers.need("onnxruntime")
    g = np.random.default_rng(4)
    floats, order = Case(g, 4, 32, 64, 9, "floats"), Case(g, 4, 32, 64, 9)
    halves = Case(g, 4, 32, 64, 9)
    halves.given["s"] = halves.given["s"].astype(np.float16)
    group = (np.arange(64) // 32)[::-1].astype(np.int32)
    for proto, dtype in (
        (floats.model(), np.float32), (order.model(group=group.copy()), np.float32),
        (halves.model(), np.float16),
    ):  # fmt: skip
        proto.graph.input[0].type.tensor_type.elem_type = h.np_dtype_to_tensor_dtype(np.dtype(dtype))
        x = g.standard_normal((2, 64)).astype(dtype)
        model = Model(proto)
        np.testing.assert_array_equal(model.run(None, {"x": x})[0], om.onnxruntime_run(proto, {"x": x})["y"])
        assert model.profile[0].runs_on == "onnxruntime"
        with pytest.raises(TypeError, match="not supported without onnxruntime"):
            Model(proto, float_nodes="onnx.reference").run(None, {"x": x})
    proto = order.model()
    x = g.standard_normal((2, 64)).astype(np.float32)
    alone = Model(proto, float_nodes="onnx.reference").run(None, {"x": x})[0]
    np.testing.assert_array_equal(alone, Model(proto).run(None, {"x": x})[0])


def test_what_does_not_fit_is_said():
    g = np.random.default_rng(5)
    case, x = Case(g, 4, 32, 64, 9, "bytes"), np.ones((2, 64), np.float32)
    for held, more, message in (
        ({"b": case.given["b"][:, :1]}, {}, r"B: expected shape \(9, 2, 16\)"),
        ({"s": case.given["s"][:3]}, {}, "scales: expected 9 x 2 numbers"),
        ({"z": case.given["z"][:3]}, {}, "zero_points: expected 9 x 1 bytes"),
        ({}, {"N": 8}, r"B: expected uint8 of shape \(8, blocks, bytes\)"),
        ({}, {"block_size": 24}, "block_size: expected a power of 2, got 24"),
        ({"c": np.ones(3, np.float32)}, {}, r"bias: expected shape \(9,\)"),
    ):
        with pytest.raises(ValueError, match=f"MatMulNBits, output y: {message}"):
            Model(case.model(held=held, **more)).run(None, {"x": x})
    with pytest.raises(ValueError, match=r"A: expected float32 of shape \(..., 64\)"):
        Model(case.model()).run(None, {"x": x[:, :5]})


def test_infinities_and_nan_stay_in_their_rows():
    """As in float arithmetic: infinity times a weight of 0 is NaN, and so is the sum of two infinities of
    different signs. Other rows are as without them.
    """
    g = np.random.default_rng(8)
    for bits in (4, 8, 2):
        case, x = Case(g, bits, 16, 50, 7, "bytes"), g.standard_normal((6, 50)).astype(np.float32)
        proto, bad = case.model(4 if bits == 4 else None), x.copy()
        bad[1, 3], bad[2, 4], bad[3, [5, 6]] = np.nan, -np.inf, np.inf
        bad[4, [7, 40]] = np.inf, -np.inf
        with np.errstate(invalid="ignore"):
            want = (bad.astype(np.float64)[:, :, None] * case.weights).sum(axis=1).astype(np.float32)
        model = Model(proto)
        got, plain = model.run(None, {"x": bad})[0], model.run(None, {"x": x})[0]
        np.testing.assert_array_equal(got[1:5], want[1:5])
        np.testing.assert_array_equal(got[[0, 5]], plain[[0, 5]])
