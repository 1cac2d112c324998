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

from lowgemm.engine import parts
from lowgemm.onnx_run import Model, chains, lstm
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
    """One sequence and several, zero points of both kinds; every state. onnxruntime on one thread: each of
    more has ranges of its own.
    """
    peers.need("onnxruntime")
    g = np.random.default_rng(1)
    for hidden, depth in ((4, 3), (20, 7), (64, 33)):
        constants = drawn(g, 1 + (direction == "bidirectional"), hidden, depth, dtype)
        proto = model_of(constants, hidden, direction, NAMES)
        model = Model(proto)
        for steps, rows in ((1, 1), (9, 1), (5, 3)):
            x = g.standard_normal((steps, rows, depth)).astype(np.float32)
            want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")
            for t, got in zip(model.outputs, model.run(None, {"x": x}), strict=True):
                np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
        assert {r.runs_on for r in model.profile} == {"lowgemm"}


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


def test_what_is_unusual_runs_in_the_engine():
    """Lengths of sequences, and clipping."""
    peers.need("onnxruntime")
    g = np.random.default_rng(3)
    constants = drawn(g, 1, 8, 5, np.int8) | {"n": np.array([3, 5], np.int32)}
    x = g.standard_normal((5, 2, 5)).astype(np.float32)
    for names, more in ((["x", "w", "r", "b", "n", *NAMES[5:]], {}), (NAMES, {"clip": 0.5})):
        proto = model_of(constants, 8, "forward", names, **more)
        model, want = Model(proto, num_threads=1), om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")
        for t, got in zip(model.outputs, model.run(None, {"x": x}), strict=True):
            np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
        assert {r.runs_on for r in model.profile} == {"onnxruntime"}


CURVES = {"Sigmoid": chains.SIGMOID, "Tanh": chains.TANH, "Erf": chains.ERF}


def computed(operation, x):
    """By a chain of one instruction, all of whose operands are `x`."""
    got, data = np.empty_like(x), x.copy()
    code, fills = np.array([operation, 0, 4, 1, 4, 1, 4, 1, 4], np.int64), np.empty(0, np.int64)
    pointers = got.ctypes.data, data.ctypes.data
    args = fills.ctypes.data, code.ctypes.data, 1, 0, x.size, chains.BLOCK, 0, 0, *pointers
    parts.run(chains.run_chain, args, -(-x.size // chains.BLOCK))
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
    for operation in (CURVES[op], chains.MUL):
        computed(operation, x)  # compiles
        m.feclearexcept(underflow)
        computed(operation, x)
        flags.append(m.fetestexcept(underflow))
    assert flags == [0, underflow]
