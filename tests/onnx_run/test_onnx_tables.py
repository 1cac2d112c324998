"""Chains of operators on one tensor of bytes as tables: every byte, equal to onnxruntime's run of the model
as written.
"""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h

from lowgemm.onnx_run import Model, look_up, tables

MS = "com.microsoft"


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def model_of(nodes, constants, outputs=("y",), kind=onnx.TensorProto.UINT8):
    info = onnx.helper.make_tensor_value_info
    graph = h.make_graph(
        nodes, "g", [info("x", kind, [None] * 4)], [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)


def every(dtype, size=(2, 3, 16, 17)):
    """Each byte several times, channels last in memory."""
    g = np.random.default_rng(0)
    x = np.resize(np.arange(256, dtype=np.uint8), size)
    g.shuffle(x.reshape(-1))
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1).view(dtype)


def compared(model, x, count):
    ours, want = Model(model), om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")
    for _ in range(2):
        for t, got in zip(ours.outputs, ours.run(None, {"x": x}), strict=True):
            np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
    assert sum(s.label.startswith("table") for s in ours._program.steps) == count
    return ours


def constants(dtype, g):
    info = np.iinfo(dtype)
    found = {}
    for i in range(4):
        found[f"s{i}"] = np.float32(g.random() / 30 + 0.001)
        found[f"z{i}"] = np.asarray(g.integers(info.min, info.max, endpoint=True)).astype(dtype)
    return found


FLOAT = [
    [h.make_node("HardSigmoid", ["a"], ["b"]), h.make_node("Mul", ["a", "b"], ["c"])],
    [h.make_node("Sigmoid", ["a"], ["b"]), h.make_node("Mul", ["b", "a"], ["c"])],
    [h.make_node("Div", ["a", "k"], ["b"]), h.make_node("Erf", ["b"], ["c"])],
    [h.make_node("Add", ["a", "k"], ["b"]), h.make_node("Clip", ["b", "low", "high"], ["c"])],
    [h.make_node("Tanh", ["a"], ["c"])],
]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("which", range(len(FLOAT)))
def test_float_operators(which, dtype):
    """With quantizers between them or not; the engine's own numbers."""
    g = np.random.default_rng(which)
    more = {"k": np.float32(1.7).reshape(1, 1, 1, 1), "low": np.float32(-1), "high": np.float32(2)}
    nodes = [
        h.make_node("DequantizeLinear", ["x", "s0", "z0"], ["a"]),
        *FLOAT[which],
        h.make_node("QuantizeLinear", ["c", "s1", "z1"], ["y"]),
    ]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for _ in range(5):
        compared(model_of(nodes, constants(dtype, g) | more, kind=kind), every(dtype), 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_coded_operators(dtype):
    """A sigmoid, its product with the same tensor, and sums with one number."""
    g = np.random.default_rng(1)
    nodes = [
        h.make_node("QLinearSigmoid", ["x", "s0", "z0", "s1", "z1"], ["a"], domain=MS),
        h.make_node("QLinearMul", ["x", "s0", "z0", "a", "s1", "z1", "s2", "z2"], ["b"], domain=MS),
        h.make_node("QLinearAdd", ["b", "s2", "z2", "n", "s3", "z3", "s0", "z0"], ["y"], domain=MS),
    ]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for _ in range(10):
        numbers = constants(dtype, g) | {"n": np.asarray(g.integers(0, 100)).astype(dtype)}
        compared(model_of(nodes, numbers, kind=kind), every(dtype), 1)
        compared(model_of(nodes, numbers, ("y", "a", "b"), kind=kind), every(dtype), 3)


def moved_within(nodes, more=()):
    """A table whose nodes stand before and behind those that only say anew where elements lie."""
    nodes = [
        h.make_node("DequantizeLinear", ["x", "s0", "z0"], ["a"]), h.make_node("Abs", ["a"], ["b"]),
        h.make_node("Unsqueeze", ["b", "first"], ["c"]), h.make_node("Reshape", ["c", "flat"], ["d"]), *nodes,
        h.make_node("QuantizeLinear", ["e", "s1", "z1"], ["y"]), *more,
    ]  # fmt: skip
    held = {"first": np.array([0]), "flat": np.array([0, 0, -1]), "k": np.float32(3)}
    return nodes, constants(np.uint8, np.random.default_rng(5)) | held


def test_what_only_moves_elements_stands_behind_a_table():
    nodes, held = moved_within([h.make_node("Add", ["d", "k"], ["e"])])
    ours = compared(model_of(nodes, held), every(np.uint8), 1)
    assert [s.nodes[0].op_type for s in ours._program.steps] == ["DequantizeLinear", "Unsqueeze", "Reshape"]
    # what stands between them may be read, too
    nodes, held = moved_within([h.make_node("Sqrt", ["d"], ["e"])])
    compared(model_of(nodes, held, ("y", "c", "d")), every(np.uint8), 1)
    # of the moved bytes another table is made
    again = [h.make_node("DequantizeLinear", ["y", "s2", "z2"], ["f"]), h.make_node("Sigmoid", ["f"], ["g"]),
             h.make_node("Mul", ["f", "g"], ["i"]), h.make_node("QuantizeLinear", ["i", "s3", "z3"], ["j"])]  # fmt: skip
    nodes, held = moved_within([h.make_node("Sqrt", ["d"], ["e"])], again)
    compared(model_of(nodes, held, ("y", "j")), every(np.uint8), 2)


def test_a_number_with_axes_or_two_readers_behind_what_moves_elements():
    """The first makes the axes more, the second needs both in one place: no table."""
    nodes, held = moved_within([h.make_node("Add", ["d", "wide"], ["e"])])
    compared(model_of(nodes, held | {"wide": np.full((1,) * 5, 3, np.float32)}), every(np.uint8), 0)
    nodes, held = moved_within([h.make_node("Sqrt", ["d"], ["r"]), h.make_node("Mul", ["d", "r"], ["e"])])
    compared(model_of(nodes, held), every(np.uint8), 0)
    # bytes that were moved may begin a table of several readers
    nodes, held = moved_within([h.make_node("Sqrt", ["d"], ["e"])])
    more = [
        h.make_node("Reshape", ["y", "last"], ["y2"]),
        h.make_node("QLinearSigmoid", ["y2", "s1", "z1", "s2", "z2"], ["p"], domain=MS),
        h.make_node("QLinearMul", ["y2", "s1", "z1", "p", "s2", "z2", "s3", "z3"], ["v"], domain=MS),
    ]
    compared(model_of([*nodes, *more], held | {"last": np.array([-1])}, ("v",)), every(np.uint8), 2)


def test_two_tensors_are_no_table():
    """A sum of two tensors begins a new table, which follows it."""
    nodes = [
        h.make_node("DequantizeLinear", ["x", "s0", "z0"], ["a"]),
        h.make_node("Transpose", ["a"], ["t"], perm=[0, 1, 2, 3]),
        h.make_node("QuantizeLinear", ["t", "s1", "z1"], ["q"]),
        h.make_node("QLinearAdd", ["x", "s0", "z0", "q", "s1", "z1", "s2", "z2"], ["b"], domain=MS),
        h.make_node("DequantizeLinear", ["b", "s2", "z2"], ["c"]), h.make_node("Relu", ["c"], ["d"]),
        h.make_node("QuantizeLinear", ["d", "s3", "z3"], ["y"]),
    ]  # fmt: skip
    compared(model_of(nodes, constants(np.uint8, np.random.default_rng(2))), every(np.uint8), 1)


@pytest.mark.parametrize(
    "number",
    [np.ones((1, 3, 1, 1), np.float32) * 2, np.float32(2).reshape(1, 1, 1, 1, 1)],
    ids=["a channel", "more axes"],
)
def test_other_constants(number):
    """One number a channel is no table; one with more axes than the data makes the result larger, and the
    nodes run as they are.
    """
    nodes = [
        h.make_node("DequantizeLinear", ["x", "s0", "z0"], ["a"]), h.make_node("Mul", ["a", "k"], ["b"]),
        h.make_node("QuantizeLinear", ["b", "s1", "z1"], ["y"]),
    ]  # fmt: skip
    numbers = constants(np.uint8, np.random.default_rng(3)) | {"k": number}
    compared(model_of(nodes, numbers), every(np.uint8), int(number.size == 1))


def test_find_leaves_out_what_nothing_reads():
    nodes = [
        h.make_node("DequantizeLinear", ["x", "s0", "z0"], ["a"]), h.make_node("Relu", ["a"], ["b"]),
        h.make_node("QuantizeLinear", ["b", "s1", "z1"], ["y"]), h.make_node("Relu", ["a"], ["unread"]),
    ]  # fmt: skip
    kept, found = tables.find(nodes, constants(np.uint8, np.random.default_rng(4)), ["y"])
    assert kept == found and [n.op_type for n in found[0].nodes] == [
        "DequantizeLinear",
        "Relu",
        "QuantizeLinear",
    ]
    assert (found[0].source, found[0].output) == ("x", "y")


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200, 1000])
def test_look_up(size):
    """Sizes around the vectors'."""
    g = np.random.default_rng(size)
    table, x = (g.integers(0, 256, n, dtype=np.uint8) for n in (256, size))
    np.testing.assert_array_equal(look_up.by_table(table, x), table[x])
