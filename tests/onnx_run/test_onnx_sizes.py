"""Sizes that are computed between products: constants of a recording, for whatever shapes come, and parts of
columns that are views. Equal to onnxruntime's run of the model as written.
"""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from functools import partial

import onnx
import onnx_models as om
from onnx import helper as h
from onnx_models import one_by_one

from lowgemm.onnx_run import Model, frame, sizes
from lowgemm.onnx_run.state import State

HIDDEN = 16


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def product(x, n, w):
    """Nodes of a dynamically quantized product."""
    return [
        h.make_node("DynamicQuantizeLinear", [x], [f"q{n}", f"s{n}", f"z{n}"]),
        h.make_node("MatMulInteger", [f"q{n}", w, f"z{n}", "wz"], [f"i{n}"]),
        h.make_node("Cast", [f"i{n}"], [f"r{n}"], to=1), h.make_node("Mul", [f"s{n}", "ws"], [f"t{n}"]),
        h.make_node("Mul", [f"r{n}", f"t{n}"], [f"p{n}"]),
    ]  # fmt: skip


def thirds(n):
    """A product's columns in three, whose bounds are computed of its shape."""
    nodes = [
        h.make_node("Shape", [f"p{n}"], [f"shape{n}"]),
        h.make_node("Gather", [f"shape{n}", "last"], [f"wide{n}"]),
        h.make_node("Add", [f"wide{n}", "zero"], [f"same{n}"]),
        h.make_node("Div", [f"same{n}", "three"], [f"size{n}"]),
    ]
    for i in range(3):
        nodes += [
            h.make_node("Mul", [f"size{n}", f"number{i}"], [f"from{n}{i}"]),
            h.make_node("Mul", [f"size{n}", f"number{i + 1}"], [f"to{n}{i}"]),
            h.make_node("Slice", [f"p{n}", f"from{n}{i}", f"to{n}{i}", "last"], [f"part{n}{i}"]),
        ]
    return nodes


def cell(more=(), outputs=("y",)):
    """A gated cell as exporters write it out, and a product behind it."""
    g = np.random.default_rng(0)
    constants = {
        "w": g.integers(-128, 128, (24, 3 * HIDDEN)).astype(np.int8), "wz": np.int8(0), "ws": np.float32(0.01),
        "u": g.integers(-128, 128, (HIDDEN, 3 * HIDDEN)).astype(np.int8), "one": np.float32(1),
        "v": g.integers(-128, 128, (HIDDEN, 5)).astype(np.int8), "last": np.array([1]), "zero": np.array([0]),
        "three": np.array([3]), **{f"number{i}": np.array([i]) for i in range(4)},
    }  # fmt: skip
    nodes = [
        *product("x", 0, "w"), *product("h", 1, "u"), *thirds(0), *thirds(1),
        h.make_node("Add", ["part00", "part10"], ["a"]), h.make_node("Sigmoid", ["a"], ["reset"]),
        h.make_node("Add", ["part01", "part11"], ["b"]), h.make_node("Sigmoid", ["b"], ["update"]),
        h.make_node("Mul", ["reset", "part12"], ["c"]), h.make_node("Add", ["part02", "c"], ["d"]),
        h.make_node("Tanh", ["d"], ["new"]), h.make_node("Sub", ["one", "update"], ["rest"]),
        h.make_node("Mul", ["rest", "new"], ["e"]), h.make_node("Mul", ["update", "h"], ["f"]),
        h.make_node("Add", ["e", "f"], ["state"]), *product("state", 2, "v"),
        *more, *([] if more else [h.make_node("Identity", ["p2"], ["y"])]),
    ]  # fmt: skip
    info = h.make_tensor_value_info
    graph = h.make_graph(
        nodes, "g", [info("x", 1, [None, 24]), info("h", 1, [None, HIDDEN])],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def feeds_of(rows, seed=1):
    g = np.random.default_rng(seed)
    return {n: g.standard_normal((rows, k)).astype(np.float32) for n, k in (("x", 24), ("h", HIDDEN))}


def compared(model, ours, many, runs=4):
    """Every run, recorded, in a frame and one by one, as onnxruntime's of the model as written."""
    for feeds in many:
        want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
        for run in (*[ours.run] * runs, partial(one_by_one, ours)):
            for t, got in zip(ours.outputs, run(None, feeds), strict=True):
                np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)


def units(ours):
    found = [f for made in ours._program._frames._known.values() if type(made) is list for f in made]
    return [u for f in found for u in f.units]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_cell_is_one_recording(threads):
    """One row and several, whose parts of columns do not follow one another in memory."""
    model = cell()
    ours = Model(model, num_threads=threads)
    compared(model, ours, [feeds_of(1), feeds_of(7), feeds_of(1, 2), feeds_of(3)])
    assert not any(s.part for s in ours._program.steps), [s.label for s in ours._program.steps]
    assert all(type(u) is frame._Taped for u in units(ours))
    assert len(units(ours)) == 3  # a frame for each number of rows


def test_sizes_that_others_read():
    """A size and a shape that are outputs, and a part of onnxruntime's that reads one: the caller's own, and
    those of the shapes that came.
    """
    more = [
        h.make_node("Concat", ["size0", "size1"], ["both"], axis=0),
        h.make_node("Cast", ["both"], ["z"], to=6),
        h.make_node("ConstantOfShape", ["both"], ["square"]),
        h.make_node("CumSum", ["p2", "last_axis"], ["sums"]),
        h.make_node("Slice", ["p2", "zero", "three", "last"], ["left"]),
        h.make_node("Identity", ["left"], ["y"]),
    ]
    more.insert(0, h.make_node("Constant", [], ["last_axis"], value=h.make_tensor("t", 7, [], [1])))
    model = cell(more, ("y", "z", "shape0", "square", "sums"))
    ours = Model(model, num_threads=1)
    compared(model, ours, [feeds_of(2), feeds_of(5)])
    first = ours.run(None, feeds_of(5))
    for a in first:
        a[...] = 77  # theirs to write to
    compared(model, ours, [feeds_of(5), feeds_of(2)], 2)


def test_a_shape_of_what_has_no_place():
    """What a step of its own makes may come in another shape: a frame notices, although no pass reads it."""

    def branch(name, *nodes):
        nodes = [
            *nodes,
            h.make_node("DynamicQuantizeLinear", [name], [f"{name}_q", f"{name}_s", f"{name}_z"]),
        ]
        return h.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=f"{name}_q")])

    more = [
        h.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        h.make_node("Greater", ["sum", "ws"], ["condition"]),
        h.make_node(
            "If", ["condition"], ["q"],
            then_branch=branch("copy", h.make_node("Abs", ["x"], ["copy"])),
            else_branch=branch("row", h.make_node("Slice", ["x", "zero", "last", "zero"], ["row"])),
        ),
        h.make_node("Shape", ["q"], ["count"]), h.make_node("Gather", ["count", "zero"], ["many"]),
        *product("x", 5, "w"), h.make_node("Slice", ["p5", "zero", "many", "zero"], ["some"]),
        h.make_node("Relu", ["some"], ["y"]),
    ]  # fmt: skip
    model = cell(more)
    ours = Model(model, num_threads=1)
    whole, one = feeds_of(4), feeds_of(4)
    whole["x"][0, 0], one["x"][0, 0] = 1e3, -1e3
    compared(model, ours, [whole, one, whole])


def test_sizes_are_left_to_the_recording_behind():
    """What computes with the shape of a part's result, where nothing in the part reads it."""
    more = [
        h.make_node("Softsign", ["p2"], ["soft"]), h.make_node("Shape", ["soft"], ["form"]),
        h.make_node("Gather", ["form", "zero"], ["count"]),
        h.make_node("Concat", ["count", "last", "minus"], ["three_axes"], axis=0),
        h.make_node("Concat", ["last", "count", "minus"], ["others"], axis=0),
        *product("soft", 3, "square"), h.make_node("Reshape", ["p3", "three_axes"], ["turned"]),
        h.make_node("Softsign", ["turned"], ["soft2"]), h.make_node("Reshape", ["soft2", "others"], ["y"]),
    ]  # fmt: skip
    for name, value in (("minus", np.array([-1])), ("square", np.ones((5, 5), np.int8))):
        tensor = onnx.numpy_helper.from_array(value)
        more.insert(0, h.make_node("Constant", [], [name], value=tensor))
    model = cell(more)
    ours = Model(model, num_threads=1)
    compared(model, ours, [feeds_of(1), feeds_of(4)])
    parts = [[n.op_type for n in s.nodes] for s in ours._program.steps if s.part]
    assert parts == [["Softsign"], ["Softsign", "Reshape"]]
    seen = cell(more, ("y", "form", "others"))  # outputs stay where they are
    compared(seen, Model(seen, num_threads=1), [feeds_of(1), feeds_of(4)])


@pytest.mark.parametrize("index", [0, -1])
def test_one_row_is_a_view(index):
    """Gather at one index behind a product and a chain; one that does not exist is refused."""
    more = [
        h.make_node("Tanh", ["p2"], ["curve"]),
        h.make_node("Gather", ["curve", "index"], ["row"], axis=0),
        h.make_node("Unsqueeze", ["row", "zero"], ["rows"]), h.make_node("Relu", ["rows"], ["y"]),
    ]  # fmt: skip
    more.insert(0, h.make_node("Constant", [], ["index"], value=h.make_tensor("t", 7, [], [index])))
    model = cell(more)
    ours = Model(model, num_threads=1)
    compared(model, ours, [feeds_of(1), feeds_of(4)])
    assert not any(s.part for s in ours._program.steps)
    more[0] = h.make_node("Constant", [], ["index"], value=h.make_tensor("t", 7, [], [4]))
    with pytest.raises(ValueError, match="Gather"):
        Model(cell(more)).run(None, feeds_of(4))


@pytest.mark.parametrize("op, number", [("Less", 60), ("Greater", 60), ("Equal", 64)])
def test_conditions(op, number):
    """What an If asks of sizes is a constant of the recording before it."""

    def branch(name):
        return h.make_graph([h.make_node(name, ["p2"], ["r"])], name, [], [onnx.ValueInfoProto(name="r")])

    more = [
        h.make_node("Constant", [], ["number"], value=h.make_tensor("t", 7, [], [number])),
        h.make_node("Size", ["a"], ["size"]), h.make_node(op, ["size", "number"], ["is"]),
        h.make_node("Not", ["is"], ["not"]), h.make_node("Cast", ["not"], ["as_number"], to=7),
        h.make_node("Cast", ["as_number"], ["cond"], to=9),
        h.make_node("If", ["cond"], ["y"], then_branch=branch("Exp"), else_branch=branch("Softsign")),
    ]  # fmt: skip
    model = cell(more)
    ours = Model(model, num_threads=1)
    compared(model, ours, [feeds_of(rows) for rows in (1, 3, 4, 5, 6)])
    assert [[n.op_type for n in s.nodes] for s in ours._program.steps if s.part] == [["If"]]
    assert all(type(u) in (frame._Taped, frame._Bound) for u in units(ours))


def test_operators():
    """Division towards zero, bounds beyond the ends, negative steps; what is refused."""
    state = State()
    a, b = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    np.testing.assert_array_equal(sizes.div(state, a, b), [3, -3, -3, 3])
    smallest = np.array([-(2**63)])
    np.testing.assert_array_equal(sizes.div(state, smallest, np.array([5])), [-1844674407370955161])
    with pytest.raises(ValueError, match="divisors"):
        sizes.div(state, a, np.array([0]))
    x = np.arange(10)
    one = [np.array([v]) for v in (0, 3, -1, 100, -100)]
    np.testing.assert_array_equal(sizes.slice_(state, x, one[1], one[3]), x[3:])
    np.testing.assert_array_equal(sizes.slice_(state, x, one[4], one[2], one[0]), x[:-1])
    np.testing.assert_array_equal(sizes.slice_(state, x, one[2], one[4], one[0], one[2]), x[::-1])
    np.testing.assert_array_equal(sizes.slice_(state, x, one[4], smallest, one[0], one[2]), x[:1])
    np.testing.assert_array_equal(sizes.slice_(state, x[:0], one[4], smallest, one[0], one[2]), x[:0])
    with pytest.raises(ValueError, match="axes"):
        sizes.slice_(state, x, one[0], one[1], one[1])
    with pytest.raises(ValueError, match="step of 0"):
        sizes.slice_(state, x, one[0], one[1], one[0], one[0])
    np.testing.assert_array_equal(sizes.shape(state, np.zeros((2, 3, 4)), start=1), [3, 4])


def test_a_slice_whose_bounds_are_attributes():
    """As in operator sets below 10: of sizes, and of a product's columns."""
    product = {"domain": "com.microsoft"}
    nodes = [
        h.make_node("DynamicQuantizeMatMul", ["x", "w", "ws"], ["a"], **product),
        h.make_node("Shape", ["a"], ["shape"]),
        h.make_node("Slice", ["shape"], ["rows"], starts=[0], ends=[1], axes=[0]),
        h.make_node("Slice", ["a"], ["left"], starts=[0], ends=[6], axes=[1]),
        h.make_node("Concat", ["rows", "two", "three"], ["sizes"], axis=0),
        h.make_node("Reshape", ["left", "sizes"], ["b"]),
        h.make_node("DynamicQuantizeMatMul", ["b", "v", "ws"], ["y"], **product),
    ]
    g = np.random.default_rng(0)
    constants = {
        "w": g.integers(-128, 128, (24, 12)).astype(np.int8), "v": g.integers(-128, 128, (3, 4)).astype(np.int8),
        "ws": np.float32(0.01), "two": np.array([2]), "three": np.array([3]),
    }  # fmt: skip
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("x", 1, [None, 24])], [onnx.ValueInfoProto(name="y")],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    sets = [h.make_opsetid("", 9), h.make_opsetid("com.microsoft", 1)]
    model = h.make_model(graph, opset_imports=sets, ir_version=8)
    compared(model, Model(model, num_threads=1), [{"x": feeds_of(n)["x"]} for n in (1, 5)])


def test_sizes_that_meet_again_and_again():
    """Each of 60 sizes is read twice by the next: there are 2**60 ways through them, and each is not walked."""
    nodes = [
        h.make_node("Gather", ["table", "ids"], ["codes"]),
        h.make_node("DequantizeLinear", ["codes", "ws"], ["rows"]), h.make_node("Shape", ["rows"], ["n0"]),
        h.make_node("DynamicQuantizeMatMul", ["rows", "w", "ws"], ["y"], domain="com.microsoft"),
    ]  # fmt: skip
    for i in range(60):
        nodes.append(h.make_node("Cast", [f"n{i}"], [f"m{i}"], to=7))
        nodes.append(h.make_node("Add", [f"n{i}", f"m{i}"], [f"n{i + 1}"]))
    g = np.random.default_rng(0)
    constants = {
        "table": g.integers(-128, 128, (20, 24)).astype(np.int8), "ws": np.float32(0.01),
        "w": g.integers(-128, 128, (24, 12)).astype(np.int8),
    }  # fmt: skip
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("ids", 7, [None])],
        [onnx.ValueInfoProto(name=o) for o in ("y", "n60")],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    sets = [h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)]
    model = h.make_model(graph, opset_imports=sets, ir_version=8)
    compared(model, Model(model, num_threads=1), [{"ids": g.integers(0, 20, n)} for n in (1, 5)])


@pytest.mark.parametrize("perm", [[1, 0, 2], [2, 1, 0], [0, 1, 2]])
@pytest.mark.parametrize("copied", [True, False])
def test_views_of_what_came_before(perm, copied):
    """Attention on a product that an earlier recording made, by sizes that a later one knows: views of an
    input, which others read as copies.
    """
    g = np.random.default_rng(4)
    constants = {
        "w": g.integers(-128, 128, (24, 8)).astype(np.int8), "wz": np.int8(0), "ws": np.float32(0.01),
        "v": g.integers(-128, 128, (8, 5)).astype(np.int8), "first": np.array([0]), "rest": np.array([2, -1]),
    }  # fmt: skip
    seen = "turned" if copied else "y"
    nodes = [
        *product("x", 0, "w"), h.make_node("Exp", ["p0"], ["e"]), *product("e", 1, "v"),
        h.make_node("Shape", ["p1"], ["shape"]), h.make_node("Gather", ["shape", "first"], ["many"]),
        h.make_node("Concat", ["many", "rest"], ["sizes"], axis=0),
        h.make_node("Reshape", ["p0", "sizes"], ["parts"]), h.make_node("Transpose", ["parts"], [seen], perm=perm),
        *([h.make_node("Exp", ["turned"], ["y"])] if copied else []),
    ]  # fmt: skip
    info, outputs = h.make_tensor_value_info, ["y", "p1"]
    graph = h.make_graph(
        nodes, "g", [info("x", 1, [None, 24])], [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    ours = Model(model, num_threads=1)
    compared(model, ours, [{"x": g.standard_normal((n, 24)).astype(np.float32)} for n in (6, 1, 3)])
    groups = [t for t in ours._program._turns if hasattr(t, "group")]
    assert all(not any(t.group.found[1:]) for t in groups)
