"""DynamicQuantizeLSTM beside onnxruntime, bit for bit, and beside its definition; sigmoid and tanh beside
onnxruntime's.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import sys

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h
from onnx_models import one_by_one

from lowgemm.engine import parts
from lowgemm.onnx_run import Model, chain_code, lstm
from lowgemm.onnx_run.state import State

MS = "com.microsoft"


def drawn(g, directions, hidden, depth, dtype, columns=False, zeros=True):
    size = (directions, 4 * hidden) if columns else (directions,)
    info = np.iinfo(dtype)

    def point():
        return (
            g.integers(info.min // 4, info.max // 2, (directions,)).astype(dtype)
            if zeros
            else np.zeros(directions, dtype)
        )

    return {
        "w": g.integers(info.min, info.max, (directions, depth, 4 * hidden), endpoint=True).astype(dtype),
        "r": g.integers(info.min, info.max, (directions, hidden, 4 * hidden), endpoint=True).astype(dtype),
        "b": g.standard_normal((directions, 8 * hidden)).astype(np.float32),
        "ws": (g.random(size) / 50 + 0.001).astype(np.float32), "wz": point(),
        "rs": (g.random(size) / 50 + 0.001).astype(np.float32), "rz": point(),
    }  # fmt: skip


def model_of(constants, hidden, direction, names, more=(), **attributes):
    node = h.make_node(
        "DynamicQuantizeLSTM",
        names,
        ["y", "yh", "yc"],
        domain=MS,
        hidden_size=hidden,
        direction=direction,
        **attributes,
    )
    info = onnx.helper.make_tensor_value_info
    graph = h.make_graph(
        [node], "g", [info("x", 1, [None] * 3), *more],
        [onnx.ValueInfoProto(name=n) for n in ("y", "yh", "yc")],
        [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)


NAMES = ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_beside_onnxruntime(direction, dtype):
    """One sequence and several, all sizes of the state, zero points of both kinds; every state.

    onnxruntime on one thread: each of more has ranges of its own.
    """
    peers.need("onnxruntime")
    g = np.random.default_rng(1)
    for hidden, depth in ((4, 3), (20, 7), (64, 33), (1, 1), (2, 5), (3, 4), (25, 6), (50, 9), (102, 3)):
        constants = drawn(g, 1 + (direction == "bidirectional"), hidden, depth, dtype)
        proto = model_of(constants, hidden, direction, NAMES)
        model = Model(proto)
        for steps, rows in ((1, 1), (9, 1), (5, 3)):
            x = g.standard_normal((steps, rows, depth)).astype(np.float32)
            want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")
            for _ in range(4):
                for t, got in zip(model.outputs, model.run(None, {"x": x}), strict=True):
                    np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
        assert {r.runs_on for r in model.profile} == {"lowgemm"}
        (step,) = model._program.steps
        assert step.record is not None  # compiled


@pytest.mark.parametrize("columns", [False, True])
def test_beside_the_definition(columns):
    """Several sequences, scales of columns, states that are given, without a bias."""
    g, info = np.random.default_rng(2), onnx.helper.make_tensor_value_info
    for rows in (1, 3):
        constants = drawn(g, 2, 12, 5, np.int8, columns, zeros=not columns)
        states = {n: g.standard_normal((2, rows, 12)).astype(np.float32) for n in ("h", "c")}
        names = ["x", "w", "r", "" if columns else "b", "", "h", "c", "", "ws", "wz", "rs", "rz"]
        model = Model(
            model_of(constants, 12, "bidirectional", names, [info(n, 1, [None] * 3) for n in states])
        )
        x = g.standard_normal((6, rows, 5)).astype(np.float32)
        kept = {n: v.copy() for n, v in states.items()}
        got = model.run(None, {"x": x, **states})
        c = constants
        want = lstm.dynamic_quantize_lstm(
            State(), x, c["w"], c["r"], None if columns else c["b"], None, states["h"], states["c"], None,
            c["ws"], c["wz"], c["rs"], c["rz"], direction="bidirectional", hidden_size=12,
        )  # fmt: skip
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
        for n, v in kept.items():
            np.testing.assert_array_equal(states[n], v)


@pytest.mark.parametrize("name", ["initial_h", "initial_c"])
@pytest.mark.parametrize("hidden", [4, 5])
def test_states_of_other_shapes_are_refused(name, hidden):
    """Compiled code goes by their size, which the caller gives; the next run is as ever."""
    g = np.random.default_rng(5)
    names = [*NAMES[:5], "initial_h", "initial_c", *NAMES[7:]]
    more = [h.make_tensor_value_info(n, 1, [None] * 3) for n in names[5:7]]
    model = Model(model_of(drawn(g, 2, hidden, 3, np.int8), hidden, "bidirectional", names, more))
    state = g.standard_normal((2, 2, hidden)).astype(np.float32)
    feeds = {"x": g.standard_normal((3, 2, 3)).astype(np.float32), "initial_h": state, "initial_c": state}
    want = model.run(None, feeds)
    for shape in ((2, 1, hidden), (1, 2, hidden), (2, 2, 1), (2, 3, hidden)):
        for _ in range(3):
            with pytest.raises(ValueError, match="initial_h, initial_c: expected shape"):
                model.run(None, {**feeds, name: np.ones(shape, np.float32)})
        for y, right in zip(model.run(None, feeds), want, strict=True):
            np.testing.assert_array_equal(y, right)


@pytest.mark.parametrize("hidden", [4, 5])
def test_no_steps_leave_the_state(hidden):
    g = np.random.default_rng(6)
    names = [*NAMES[:5], "initial_h", "initial_c", *NAMES[7:]]
    more = [h.make_tensor_value_info(n, 1, [None] * 3) for n in names[5:7]]
    model = Model(model_of(drawn(g, 2, hidden, 3, np.int8), hidden, "bidirectional", names, more))
    first, second = g.standard_normal((2, 2, 2, hidden)).astype(np.float32)
    for _ in range(4):
        y, yh, yc = model.run(
            None, {"x": np.zeros((0, 2, 3), np.float32), "initial_h": first, "initial_c": second}
        )
        assert y.shape == (0, 2, 2, hidden)
        np.testing.assert_array_equal(yh, first)
        np.testing.assert_array_equal(yc, second)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_the_usual_activations_may_be_named(direction):
    """As some converters do, in any case of letters; constant weights in the engine."""
    peers.need("onnxruntime")
    g, count = np.random.default_rng(8), 1 + (direction == "bidirectional")
    proto = model_of(drawn(g, count, 8, 5, np.int8), 8, direction, NAMES)
    x = g.standard_normal((5, 2, 5)).astype(np.float32)
    usual = Model(proto, num_threads=1).run(None, {"x": x})
    named = (("Sigmoid", "tanh", "Tanh"), "lowgemm"), (("Sigmoid", "Tanh", "Elu"), "onnxruntime")
    for names, owner in named:
        proto.graph.node[0].attribute.append(h.make_attribute("activations", names * count))
        model, want = Model(proto, num_threads=1), om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")
        for _ in range(2):
            for t, got, same in zip(model.outputs, model.run(None, {"x": x}), usual, strict=True):
                np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
                assert np.array_equal(got, same) == (owner == "lowgemm")
        assert {r.runs_on for r in model.profile} == {owner}
        proto.graph.node[0].attribute.pop()


@pytest.mark.parametrize(("direction", "layers"), [("forward", 1), ("forward", 2), ("bidirectional", 2)])
def test_recorded_layers(direction, layers, threads):
    """Layers and a quantizer are recorded, equal to the steps one by one; infinities in the input or in a
    state, and NaN, are the definition's.
    """
    g, info, count = (
        np.random.default_rng(6),
        onnx.helper.make_tensor_value_info,
        1 + (direction != "forward"),
    )
    first, second = drawn(g, count, 32, 12, np.int8), drawn(g, count, 32, 32, np.uint8)
    nodes, constants, feeds = [], {"axes": np.array([1])}, ["x", "", "h", "c"]
    for i, made in enumerate((first, second)[:layers]):
        constants |= {f"{n}{i}": v for n, v in made.items()}
        names = [f"{n}{i}" for n in ("ws", "wz", "rs", "rz")]
        nodes += [
            h.make_node(
                "DynamicQuantizeLSTM",
                [feeds[0], f"w{i}", f"r{i}", f"b{i}", "", *(feeds[2:] if i == 0 else ["", ""]), "", *names],
                [f"y{i}", f"h{i}", f"c{i}"], domain=MS, hidden_size=32, direction=direction,
            ),
            h.make_node("ReduceSum", [f"y{i}", "axes"], [f"v{i}"], keepdims=0) if count > 1
            else h.make_node("Squeeze", [f"y{i}", "axes"], [f"v{i}"]),
        ]  # fmt: skip
        feeds[0] = f"v{i}"
    nodes.append(h.make_node("DynamicQuantizeLinear", [feeds[0]], ["q", "s", "z"]))
    outputs = [f"y{layers - 1}", "h0", "c0", f"h{layers - 1}", f"c{layers - 1}", "q", "s"]
    outputs = list(dict.fromkeys(outputs))
    graph = h.make_graph(
        nodes, "g", [info(n, 1, [None] * 3) for n in ("x", "h", "c")],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    sets = [h.make_opsetid("", 17), h.make_opsetid(MS, 1)]
    model = Model(h.make_model(graph, opset_imports=sets, ir_version=8), num_threads=threads)
    alone = []
    lstms = [s for s in model._program.steps if s.nodes[0].op_type == "DynamicQuantizeLSTM"]
    for step in lstms:
        step.run = lambda *v, run=step.run: alone.append(1) or run(*v)
    for steps, rows in ((1, 1), (7, 2), (1, 1)):
        given = {"x": g.standard_normal((steps, rows, 12)).astype(np.float32)}
        given |= {n: g.standard_normal((count, rows, 32)).astype(np.float32) for n in "hc"}
        kept = {n: v.copy() for n, v in given.items()}
        for bad, where in ((None, "x"), (np.inf, "x"), (np.inf, "h"), (np.nan, "c"), (None, "x")):
            fed = {n: v.copy() for n, v in given.items()}
            if bad is not None:
                fed[where][0, 0, 3] = bad
            want = one_by_one(model, None, fed)
            for _ in range(4):
                alone.clear()
                for a, b in zip(model.run(None, fed), want, strict=True):
                    np.testing.assert_array_equal(a, b)
                assert (not alone) == (bad is None)
        for n, v in kept.items():
            np.testing.assert_array_equal(given[n], v)


CURVES = {
    "Sigmoid": chain_code.SIGMOID,
    "Tanh": chain_code.TANH,
    "Erf": chain_code.ERF,
    "Sqrt": chain_code.SQRT,
}


def computed(operation, x):
    """By a chain of one instruction, all of whose operands are `x`."""
    got, data = np.empty_like(x), x.copy()
    code, fills = np.array([operation, 0, 4, 1, 4, 1, 4, 1, 4], np.int64), np.empty(0, np.int64)
    pointers = got.ctypes.data, data.ctypes.data
    args = fills.ctypes.data, code.ctypes.data, 1, 0, x.size, chain_code.BLOCK, *(0,) * 6, *pointers
    parts.run(chain_code.run_chain, args, -(-x.size // chain_code.BLOCK))
    return got


@pytest.mark.parametrize("op", CURVES)
def test_activations(op):
    """At 0, at the bounds, NaN and infinities, numbers of all sizes, in lengths around the vectors'."""
    peers.need("onnxruntime")
    g = np.random.default_rng(5)
    borders = [
        0,
        -0.0,
        0.921875,
        -0.921875,
        0.92187506,
        3.925,
        3.9250002,
        -3.925,
        18,
        -18,
        17.99999,
        9,
        -9,
        8.99999,
    ]
    odd = np.float32([*borders, 1e-30, 100, -100, np.nan, np.inf, -np.inf])
    for size in (1, 15, 16, 17, 40, 5000):
        tiny = g.standard_normal(size) * 2.0 ** g.integers(-150, 0, size)
        x = np.concatenate([odd, g.standard_normal(size), g.uniform(-19, 19, 3 * size), tiny])
        x = x.astype(np.float32)
        got = computed(CURVES[op], x)
        info = onnx.helper.make_tensor_value_info
        graph = h.make_graph(
            [h.make_node(op, ["x"], ["y"])], "g", [info("x", 1, [None])], [info("y", 1, [None])]
        )
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
        np.testing.assert_array_equal(got, om.onnxruntime_run(model, {"x": x})["y"])


@pytest.mark.parametrize("op", CURVES)
def test_squares_that_underflow(op):
    """A square of small numbers is subnormal, and takes a CPU 250 cycles: none is made."""
    m = ctypes.CDLL(ctypes.util.find_library("m")) if sys.platform == "linux" else None
    if m is None or platform.machine() != "x86_64":
        pytest.skip("asks glibc on x86 whether an operation underflowed")
    underflow, x, flags = 0x10, np.full(64, 1e-20, np.float32), []
    for operation in (CURVES[op], chain_code.MUL):
        computed(operation, x)  # compiles
        m.feclearexcept(underflow)
        computed(operation, x)
        flags.append(m.fetestexcept(underflow))
    assert flags == [0, underflow]


@pytest.mark.parametrize("threads", [1, 2])
def test_recorded(threads):
    """Runs that are recorded, and in a frame, as the definition: states that are given or not, both
    directions at once or in turn; states that are not finite, which a recording refuses.
    """
    peers.need("onnxruntime")
    g, info, hidden = np.random.default_rng(7), onnx.helper.make_tensor_value_info, 128
    c = drawn(g, 2, hidden, 9, np.int8)
    names = ["x", "w", "r", "b", "", "h", "c", "", "ws", "wz", "rs", "rz"]
    more = [info(n, 1, [None] * 3) for n in ("h", "c")]
    with_states = Model(model_of(c, hidden, "bidirectional", names, more), num_threads=threads)
    without = Model(model_of(c, hidden, "bidirectional", NAMES), num_threads=threads)
    assert parts.workers_for(40 * hidden * (4 * hidden / 75 + 3) * 2, 2, threads) == threads

    def compared(x, states):
        model = with_states if states else without
        with np.errstate(all="ignore"):
            want = lstm.dynamic_quantize_lstm(
                State(), x, c["w"], c["r"], c["b"], None, states.get("h"), states.get("c"), None, c["ws"], c["wz"],
                c["rs"], c["rz"], direction="bidirectional", hidden_size=hidden,
            )  # fmt: skip
        for _ in range(4):
            for a, b in zip(model.run(None, {"x": x, **states}), want, strict=True):
                np.testing.assert_array_equal(a, b)

    for steps, rows in ((40, 1), (15, 3)):
        x = g.standard_normal((steps, rows, 9)).astype(np.float32)
        states = {n: g.standard_normal((2, rows, hidden)).astype(np.float32) for n in ("h", "c")}
        compared(x, {})
        compared(x, states)
        for name in states:
            for value in (np.inf, np.nan):
                bad = {n: v.copy() for n, v in states.items()}
                bad[name][1, 0, 5] = value
                compared(x[:2], bad)
        compared(x, states)
    for model in (with_states, without):
        found = [f for kept in model._program._frames._known.values() if type(kept) is list for f in kept]
        assert found and all(type(u).__name__ == "_Taped" for f in found for u in f.units)
