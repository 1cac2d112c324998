"""Functions of an LSTM's gates, limits, peepholes and lengths of sequences: beside onnxruntime and beside the
definition, bit for bit.
"""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h

from lowgemm.engine import parts
from lowgemm.engine.parts import PASS
from lowgemm.jit.memory import load_i64, pointer_at
from lowgemm.jit.routine import routine
from lowgemm.onnx_run import Model, lstm, lstm_gates
from lowgemm.onnx_run.state import State

MS = "com.microsoft"
#: Those that are lowgemm's, with values for alpha and beta where they have them.
FUNCTIONS = {
    "Sigmoid": (), "Tanh": (), "Relu": (), "LeakyRelu": (0.125,), "ThresholdedRelu": (0.25,),
    "Affine": (0.75, -0.125), "HardSigmoid": (0.3, 0.4), "Softsign": (),
}  # fmt: skip
INPUTS = ["x", "w", "r", "b", "n", "h", "c", "p", "ws", "wz", "rs", "rz"]


def drawn_attributes(g, directions):
    """Some of the attributes that say what becomes of the gates."""
    found = {}
    if g.random() < 0.5:
        names = [str(n) for n in g.choice(list(FUNCTIONS), 3 * directions)]
        found["activations"] = names
        if g.random() < 0.7:
            given = [FUNCTIONS[n] for n in names]
            found["activation_alpha"] = [v[0] for v in given if v]
            found["activation_beta"] = [v[1] for v in given if len(v) > 1]
            # the last ones are left out, or all
            found = {n: v[: g.integers(len(v) + 1)] if n != "activations" else v for n, v in found.items()}
            found = {n: v for n, v in found.items() if v}
    if g.random() < 0.4:
        found["clip"] = float(np.float32(g.choice([0.05, 0.5, 3.0])))
    if g.random() < 0.4:
        found["input_forget"] = int(g.integers(2))
    return found


def drawn_lstm(g):
    """A node's constants, fed values and attributes, of random sizes and with random parts left out."""
    direction = str(g.choice(["forward", "reverse", "bidirectional"]))
    directions, dtype = 1 + (direction == "bidirectional"), g.choice([np.int8, np.uint8])
    hidden, depth = int(g.choice([1, 2, 3, 5, 8, 17, 25, 32])), int(g.integers(1, 9))
    steps, rows = int(g.integers(1, 8)), int(g.choice([1, 2, 3, 6]))
    info, wide, size = np.iinfo(dtype), 4 * hidden, (directions, rows, hidden)
    columns = g.random() < 0.3
    scale = (directions, wide) if columns else (directions,)
    constants = {
        "w": g.integers(info.min, info.max, (directions, depth, wide), endpoint=True).astype(dtype),
        "r": g.integers(info.min, info.max, (directions, hidden, wide), endpoint=True).astype(dtype),
        "ws": (g.random(scale) / 50 + 0.001).astype(np.float32),
        "rs": (g.random(scale) / 50 + 0.001).astype(np.float32),
        "wz": np.zeros(scale, dtype), "rz": np.zeros(scale, dtype),
    }  # fmt: skip
    if not columns:
        for n in ("wz", "rz"):
            constants[n] = g.integers(info.min // 4, info.max // 2, scale).astype(dtype)
    if g.random() < 0.7:
        constants["b"] = g.standard_normal((directions, 2 * wide)).astype(np.float32)
    if g.random() < 0.6:
        constants["p"] = g.standard_normal((directions, 3 * hidden)).astype(np.float32)
    feeds = {"x": g.standard_normal((steps, rows, depth)).astype(np.float32)}
    if g.random() < 0.6:
        lengths = g.integers(0, steps + 1, rows).astype(np.int32)
        (constants if g.random() < 0.5 else feeds)["n"] = lengths
    if g.random() < 0.5:
        feeds["h"] = g.standard_normal(size).astype(np.float32)
    if g.random() < 0.5:
        feeds["c"] = g.standard_normal(size).astype(np.float32)
    attributes = {"hidden_size": hidden, "direction": direction} | drawn_attributes(g, directions)
    return constants, feeds, attributes


def model_of(constants, feeds, attributes, outputs=("y", "yh", "yc")):
    names = [n if n in constants or n in feeds else "" for n in INPUTS]
    node = h.make_node("DynamicQuantizeLSTM", names, list(outputs), domain=MS, **attributes)
    graph = h.make_graph(
        [node], "g",
        [h.make_tensor_value_info(n, 6 if n == "n" else 1, [None] * v.ndim) for n, v in feeds.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs if n],
        [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)


@pytest.mark.parametrize("seed", [*range(60), 739])  # the last has states with NaN
def test_random_lstms(seed):
    """Each run four times: step by step, recorded, and in a frame; onnxruntime on one thread. Where functions
    without bounds take a state beyond float32, ranges of infinities are the definition's.
    """
    peers.need("onnxruntime")
    g = np.random.default_rng(seed)
    constants, feeds, attributes = drawn_lstm(g)
    proto = model_of(constants, feeds, attributes)
    want = om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")
    given = [(constants | feeds).get(n) for n in INPUTS]
    with np.errstate(all="ignore"):
        defined = lstm.dynamic_quantize_lstm(State(), *given, **attributes)
    finite = all(np.isfinite(v).all() for v in defined)
    model = Model(proto, num_threads=1)
    for _ in range(4):
        for t, got, same in zip(model.outputs, model.run(None, feeds), defined, strict=True):
            np.testing.assert_array_equal(got, same)
            if finite:
                assert got.tobytes() == want[t.name].tobytes(), (t.name, attributes)
    assert {r.runs_on for r in model.profile} == {"lowgemm"}


@pytest.mark.parametrize("rows", [1, 3])
def test_recorded_with_peepholes_and_lengths(rows, threads):
    """One call for a model; lengths that come with the data are a step of their own."""
    g = np.random.default_rng(3)
    while True:
        constants, feeds, attributes = drawn_lstm(g)
        if {"p", "n"} <= set(constants) and feeds["x"].shape[1] == rows and constants["n"].any():
            break
    model = Model(model_of(constants, feeds, attributes), num_threads=threads)
    given = [(constants | feeds).get(n) for n in INPUTS]
    want = lstm.dynamic_quantize_lstm(State(), *given, **attributes)
    for _ in range(4):
        for got, same in zip(model.run(None, feeds), want, strict=True):
            np.testing.assert_array_equal(got, same)
    found = [f for kept in model._program._frames._known.values() if type(kept) is list for f in kept]
    assert found and all(type(u).__name__ == "_Taped" for f in found for u in f.units)


def test_lengths_that_do_not_fit_are_refused():
    g = np.random.default_rng(4)
    while True:
        constants, feeds, attributes = drawn_lstm(g)
        if "n" in feeds and feeds["x"].shape[1] > 1:
            break
    model = Model(model_of(constants, feeds, attributes))
    want = model.run(None, feeds)
    steps, rows, _ = feeds["x"].shape
    for bad in ([steps + 1] * rows, [-1] * rows, [steps] * (rows - 1)):
        with pytest.raises(ValueError, match="sequence_lens"):
            model.run(None, feeds | {"n": np.array(bad, np.int32)})
    for got, same in zip(model.run(None, feeds), want, strict=True):
        np.testing.assert_array_equal(got, same)


@pytest.mark.parametrize("what", ["no results of all steps", "an exponential function"])
def test_what_is_onnxruntimes(what):
    """Lengths without Y, since its ranges are others then; a function of the C library."""
    peers.need("onnxruntime")
    g = np.random.default_rng(5)
    while True:
        constants, feeds, attributes = drawn_lstm(g)
        if ("n" in constants) == what.startswith("no") and attributes["direction"] == "forward":
            break
    if "n" in constants:
        constants["n"] = g.integers(1, feeds["x"].shape[0] + 1, len(constants["n"])).astype(np.int32)
    else:
        attributes["activations"] = ["Sigmoid", "Elu", "Tanh"]
    outputs = ("", "yh", "yc") if "n" in constants else ("y", "yh", "yc")
    proto = model_of(constants, feeds, attributes, outputs)
    model, want = Model(proto, num_threads=1), om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")
    for _ in range(4):
        for t, got in zip(model.outputs, model.run(None, feeds), strict=True):
            np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
    assert {r.runs_on for r in model.profile} == {"onnxruntime"}


@pytest.mark.parametrize("bias", [False, True])
def test_gates_that_are_not_finite(bias):
    """A product beyond float32: infinities are held within float32, and NaN too where a bias is added."""
    peers.need("onnxruntime")
    hidden = 3
    constants = {
        "w": np.full((1, 2, 12), 127, np.int8), "r": np.full((1, hidden, 12), -127, np.int8),
        "ws": np.full(1, 3e38, np.float32), "rs": np.full(1, 3e38, np.float32),
        "wz": np.zeros(1, np.int8), "rz": np.zeros(1, np.int8),
    }  # fmt: skip
    if bias:
        constants["b"] = np.ones((1, 24), np.float32)
    feeds = {"x": np.ones((3, 1, 2), np.float32), "h": np.ones((1, 1, hidden), np.float32)}
    attributes = {"hidden_size": hidden, "direction": "forward"}
    proto = model_of(constants, feeds, attributes)
    model, want = Model(proto, num_threads=1), om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")
    assert np.isnan(want["y"]).any() != bias
    for _ in range(4):
        for t, got in zip(model.outputs, model.run(None, feeds), strict=True):
            np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)


@routine(PASS)
def apply(args, first, end, worker):
    """Arguments: a direction's numbers, which function, dst, src. Pieces are numbers, all for one worker."""
    lstm_gates.activate(
        pointer_at(args, 0), load_i64(args, 1), pointer_at(args, 2), pointer_at(args, 3), end - first
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    """Compiled and defined; at 0, at the bounds of each, infinities and NaN."""
    values = [*FUNCTIONS[name], 0.0, 0.0]
    g = np.random.default_rng(6)
    odd = [0, -0.0, 0.25, -0.25, 0.125, 1, -1, 2, np.inf, -np.inf, np.nan]
    x = np.concatenate([odd, g.standard_normal(90) * 4]).astype(np.float32)
    (gates,) = lstm_gates.gates_of(
        {"activations": [name] * 3, "activation_alpha": values[:1] * 3, "activation_beta": values[1:2] * 3}
    )
    numbers = gates.numbers(True)
    pairs = zip((lstm_gates.OF_GATES, lstm_gates.OF_NEW, lstm_gates.OF_CELLS), gates[:3], strict=True)
    for which, function in pairs:
        got = np.empty_like(x)
        parts.run(apply, (numbers.ctypes.data, which, got.ctypes.data, x.ctypes.data), x.size)
        with np.errstate(all="ignore"):
            want = lstm_gates.by_definition(function, x)
        assert want.dtype == np.float32
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got[:-1]), np.signbit(want[:-1]))
