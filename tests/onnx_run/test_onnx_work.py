"""The estimate that a part's threads depend on: counts by hand, and which parts get threads."""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h

from lowgemm.onnx_run import Model, engines
from lowgemm.onnx_run.work import ELEMENT, STEPS, work_of


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def work(nodes, inputs, **constants):
    """Of nodes, or of one that is given as helper.make_node takes it."""
    nodes = [h.make_node(*nodes[:3], **nodes[3])] if isinstance(nodes, tuple) else nodes
    return work_of(nodes, inputs, constants, {"": 17, "com.microsoft": 1}, 8)


X = {"x": zeros(3, 4, 5)}
#: Node; inputs; constants; what is multiplied; numbers that count as made.
NODES = [
    (("Relu", ["x"], ["y"], {}), X, {}, 0, 60),
    (("ReduceMean", ["x"], ["y"], {"axes": [1]}), X, {}, 0, 60),
    (("Expand", ["x", "s"], ["y"], {}), {"x": zeros(1, 5), "s": np.array([7, 5])}, {}, 0, 35),
    (("MatMul", ["x", "w"], ["y"], {}), X, {"w": zeros(5, 7)}, 3 * 4 * 5 * 7, 3 * 4 * 7),
    (("MatMul", ["x", "z"], ["y"], {}), X | {"z": zeros(3, 5, 7)}, {}, 3 * 4 * 5 * 7, 3 * 4 * 7),
    (
        ("Gemm", ["x", "w"], ["y"], {"transB": 1}),
        {"x": zeros(4, 5)},
        {"w": zeros(7, 5)},
        4 * 5 * 7,
        4 * 7,
    ),
    (
        ("Conv", ["x", "w"], ["y"], {"group": 2, "pads": [1, 1, 1, 1]}),
        {"x": zeros(2, 4, 5, 6)}, {"w": zeros(8, 2, 3, 3)}, 2 * 8 * 5 * 6 * 2 * 9, 2 * 8 * 5 * 6,
    ),
    (
        ("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]}),
        {"x": zeros(1, 4, 5, 6)}, {"w": zeros(4, 3, 2, 2)}, 4 * 5 * 6 * 3 * 4, 3 * 10 * 12,
    ),
    (
        ("GRU", ["x", "w", "r"], ["y"], {"hidden_size": 110}),
        X, {"w": zeros(1, 330, 5), "r": zeros(1, 330, 110)}, 3 * 4 * 330 * (5 + 110), 3 * 4 * 110,
    ),
    (
        ("LSTM", ["x", "w", "r"], ["", "h"], {"hidden_size": 91, "direction": "bidirectional"}),
        X, {"w": zeros(2, 364, 5), "r": zeros(2, 364, 91)}, 3 * 4 * 2 * 364 * (5 + 91), 2 * 4 * 91,
    ),
    (  # steps of less than 2**17
        ("LSTM", ["x", "w", "r"], ["", "h"], {"hidden_size": 90, "direction": "bidirectional"}),
        X, {"w": zeros(2, 360, 5), "r": zeros(2, 360, 90)}, 0, 2 * 4 * 90,
    ),
    (  # four steps of three rows
        ("GRU", ["x", "w", "r"], ["", "h"], {"hidden_size": 110, "layout": 1}),
        X, {"w": zeros(1, 330, 5), "r": zeros(1, 330, 110)}, 0, 3 * 110,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", NODES, ids=lambda c: c[0][0])
def test_a_node(case):
    node, inputs, constants, products, made = case
    assert work(node, inputs, **constants) == products + ELEMENT * made


def test_shapes_go_from_node_to_node():
    """Through an operator that the onnx package does not know too: it makes as many as it reads."""
    for between in (
        h.make_node("Tanh", ["a"], ["b"]),
        h.make_node("Gelu", ["a"], ["b"], domain="com.microsoft"),
    ):
        nodes = [h.make_node("MatMul", ["x", "v"], ["a"]), between, h.make_node("MatMul", ["b", "w"], ["y"])]
        got = work(nodes, {"x": zeros(3, 5)}, v=zeros(5, 8), w=zeros(8, 2))
        last = 3 * 2 if between.op_type == "Tanh" else 3 * 8
        assert got == 3 * 5 * 8 + 3 * 8 * 2 + ELEMENT * (3 * 8 + 3 * 8 + last)


def body(name, reads=(), more=()):
    """A graph with a product of `x` by `w`."""
    info = h.make_tensor_value_info
    nodes = [h.make_node("MatMul", ["x", "w"], [f"{name}y"]), *more]
    return h.make_graph(nodes, name, list(reads), [info(f"{name}y", 1, None)])


ONE = 2 * 5 * 7 + ELEMENT * 2 * 7


def test_an_if_counts_the_larger_branch():
    less = h.make_graph(
        [h.make_node("Identity", ["x"], ["z"])], "b", [], [h.make_tensor_value_info("z", 1, None)]
    )
    node = h.make_node("If", ["c"], ["y"], then_branch=body("a"), else_branch=less)
    assert work([node], {"c": np.array(True), "x": zeros(2, 5)}, w=zeros(5, 7)) == ONE


@pytest.mark.parametrize("steps", [3, None])
def test_a_loop_counts_its_steps(steps):
    """`STEPS` if their number is computed by the part."""
    info = h.make_tensor_value_info
    more = [h.make_node("Identity", ["go"], ["on"])]
    loop = body("a", [info("i", 7, []), info("go", 9, [])], more)
    loop.output.insert(0, info("on", 9, []))
    nodes, inputs = (
        [h.make_node("Loop", ["n", "c"], ["y"], body=loop)],
        {"c": np.array(True), "x": zeros(2, 5)},
    )
    if steps is None:
        nodes.insert(0, h.make_node("Where", ["c", "m", "m"], ["n"]))
        inputs["m"] = np.array(3)
        assert work(nodes, inputs, w=zeros(5, 7)) == STEPS * (ONE + ELEMENT) + ELEMENT
    else:
        assert work(nodes, inputs | {"n": np.array(steps)}, w=zeros(5, 7)) == steps * (ONE + ELEMENT)


def test_a_scan_has_as_many_steps_as_what_it_goes_through():
    info = h.make_tensor_value_info
    scan = body("a", [info("row", 1, [5])])
    node = h.make_node("Scan", ["rows"], ["y"], body=scan, num_scan_inputs=1)
    assert work([node], {"rows": zeros(9, 5), "x": zeros(2, 5)}, w=zeros(5, 7)) == 9 * ONE


@pytest.mark.parametrize("layout", [0, 1])
def test_a_recurrence_of_data_without_a_known_shape(layout):
    """Behind an operator that nobody knows: its steps count as one."""
    nodes = [
        h.make_node("Strange", ["x"], ["a"]),
        h.make_node("GRU", ["a", "w", "r"], ["", "h"], hidden_size=210, layout=layout),
    ]
    got = work(nodes, {"x": zeros(3, 1, 5)}, w=zeros(1, 630, 5), r=zeros(1, 630, 210))
    assert got >= 3 * 630 * (5 + 210)


def test_what_is_no_array_is_no_error():
    """Sequences, texts, values that are left out; nodes that nobody knows."""
    nodes = [
        h.make_node("ConcatFromSequence", ["s"], ["y"], axis=0),
        h.make_node("Strange", ["t", "u"], ["z"]),
    ]
    given = {"s": [zeros(2, 3), zeros(4, 3)], "t": np.array(["a", "b"], object), "u": None}
    assert work(nodes, given) == ELEMENT * (18 + 2)


# ---- which parts get threads ------------------------------------------------------------------------------
def model_of(*nodes, **constants):
    """Nodes from `x` to `y`."""
    info = h.make_tensor_value_info
    graph = h.make_graph(
        list(nodes), "g", [info("x", 1, [None, None])], [info("y", 1, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def quantized_then_product(k=64, n=32):
    """A quantized product, which is lowgemm's, then one of floats."""
    g = np.random.default_rng(0)
    return model_of(
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("MatMulInteger", ["q", "v", "z"], ["sums"]),
        h.make_node("Cast", ["sums"], ["float"], to=1),
        h.make_node("MatMul", ["float", "w"], ["y"]),
        v=g.integers(-9, 9, (k, k), dtype=np.int8), w=g.integers(-2, 3, (k, n)).astype(np.float32),
    )  # fmt: skip


def part_of(model):
    (part,) = [s.part for s in model._program.steps if s.part is not None]
    return part


def test_a_part_has_threads_if_it_has_much_to_do(monkeypatch):
    """By its weights and by its rows; and once it has them, it keeps them. The results are the same."""
    peers.need("onnxruntime")
    monkeypatch.setattr(engines, "MUCH", 100 * 64 * 32)
    one, two = (Model(quantized_then_product(), num_threads=n) for n in (1, 2))
    g = np.random.default_rng(1)
    for rows, threaded in ((10, False), (19, False), (100, True), (10, True)):
        x = g.standard_normal((rows, 64)).astype(np.float32)
        for _ in range(4):
            np.testing.assert_array_equal(two.run(None, {"x": x})[0], one.run(None, {"x": x})[0])
        assert part_of(two).threaded == threaded and not part_of(two).whole
        assert not part_of(one).threaded


def test_work_is_asked_for_when_there_is_twice_as_much(monkeypatch):
    """Not in every run."""
    peers.need("onnxruntime")
    asked = []
    monkeypatch.setattr(engines, "work_of", lambda *args: asked.append(1) or 0)
    model = Model(quantized_then_product(), num_threads=2)
    for rows in (4, 4, 5, 7, 8, 8, 15, 3, 16):
        model.run(None, {"x": np.ones((rows, 64), np.float32)})
    assert len(asked) == 3


def test_a_model_that_is_one_part_runs_as_in_onnxruntime():
    """With threads, however little it is."""
    peers.need("onnxruntime")
    for threads, threaded in ((1, False), (2, True)):
        model = Model(model_of(h.make_node("Softmax", ["x"], ["y"])), num_threads=threads)
        model.run(None, {"x": np.ones((1, 2), np.float32)})
        assert part_of(model).whole and part_of(model).threaded == threaded


def test_the_team_sleeps_beside_a_part_with_threads():
    """Else there are more threads than cores."""
    peers.need("onnxruntime")
    model = Model(quantized_then_product(), num_threads=2)
    (step,) = [s for s in model._program.steps if s.part is not None]
    model.run(None, {"x": np.ones((1, 64), np.float32)})
    step.last = 0.0
    assert not step.gets_the_cores()
    step.part.threaded = True
    assert step.gets_the_cores()
