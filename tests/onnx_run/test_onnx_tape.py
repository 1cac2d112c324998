"""Recorded steps beside the same steps one by one, bit for bit; where values lie; and whose memory results
are.
"""

from __future__ import annotations

import concurrent.futures

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h
from onnx_models import dynamic_convolution, one_by_one, onnxruntime_run

from lowgemm.onnx_run import Model, tape


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def model_of(outputs, beside=False):
    """Two dynamically quantized convolutions with chains behind them, a residual sum, and a float node."""
    g, info = np.random.default_rng(0), onnx.helper.make_tensor_value_info
    made = {
        "w0": g.integers(0, 256, (20, 3, 3, 3), dtype=np.uint8),
        "w1": g.integers(0, 256, (20, 20, 1, 1), dtype=np.uint8),
        "wz": np.uint8(120), "ws": np.float32(0.02),
    }  # fmt: skip
    nodes, last = [], "x"
    for i in range(2):
        nodes += dynamic_convolution(last, f"w{i}", i)
        nodes.append(h.make_node("Sigmoid" if i else "Relu", [f"c{i}"], [f"y{i}"]))
        last = f"y{i}"
    nodes += [
        h.make_node("Add", ["y1", "beside" if beside else "y0"], ["t"]),
        h.make_node("DynamicQuantizeLinear", ["t"], ["q2", "s2", "z2"]),
        h.make_node("GlobalMaxPool", ["t"], ["y"]),
    ]
    inputs = [info("x", 1, [None, 3, None, None])] + ([info("beside", 1, [None] * 4)] if beside else [])
    kinds = {"q": onnx.TensorProto.UINT8, "z": onnx.TensorProto.UINT8}
    graph = h.make_graph(
        nodes, "g", inputs, [info(o, kinds.get(o[0], 1), None) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in made.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def tapes(model):
    """All that were recorded; None where steps run one by one."""
    groups = [t.group for t in model._program._turns if hasattr(t, "group")]
    return [r.tape for g in groups for found in g.found for r in found.values()]


@pytest.mark.parametrize("outputs", [["y"], ["t", "y0"], ["q2", "s2", "z2", "y"], ["z0", "s1", "q1", "y1"]])
def test_as_the_steps(outputs, threads):
    """Whatever is read of them: floats, bytes, scales, zero points; images of several sizes."""
    model, g = Model(model_of(outputs), num_threads=threads), np.random.default_rng(1)
    for size in ((5, 5), (40, 33), (120, 90), (40, 33)):
        feeds = {"x": g.standard_normal((2, 3, *size)).astype(np.float32)}
        want = one_by_one(model, None, feeds)
        for _ in range(4):  # the third is in a frame
            for got, expected in zip(model.run(None, feeds), want, strict=True):
                assert got.dtype == expected.dtype and got.shape == expected.shape
                np.testing.assert_array_equal(got, expected)
    assert tapes(model) and all(t is not None for t in tapes(model))


def test_timed_passes(monkeypatch, threads):
    """A timed run has the results of others, and each step the time of its own passes: here each pass takes
    as many seconds as its number says.
    """
    model, g = Model(model_of(["t", "q2"]), num_threads=threads), np.random.default_rng(4)
    feeds = {"x": g.standard_normal((2, 3, 40, 33)).astype(np.float32)}
    want = one_by_one(model, None, feeds)
    real = tape._each

    def numbered(words):
        count = len(real(words))
        assert count == words[tape.END] > 1
        return [float(i) for i in range(1, count + 1)]

    for got, expected in zip(model.timed(None, feeds), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    before = {step: step.seconds for step in model._program.all_steps()}
    monkeypatch.setattr(tape, "_each", numbered)
    for got, expected in zip(model.timed(None, feeds), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    for turn in model._program._turns:
        if not hasattr(turn, "group"):
            continue
        (recorded,) = (r for found in turn.group.found for r in found.values())
        spent = [round(step.seconds - before[step]) for step in turn.members[: recorded.end]]
        first = [0, *recorded.passes[:-1]]
        assert spent == [sum(range(a + 1, b + 1)) for a, b in zip(first, recorded.passes, strict=True)]
        assert sum(spent) == sum(range(1, int(recorded.tape._words[tape.END]) + 1))


def test_inputs_of_any_strides():
    """What comes from outside is read where it lies, or brought into order by the steps themselves."""
    model, g = Model(model_of(["t", "y"], beside=True)), np.random.default_rng(2)
    x = g.standard_normal((2, 3, 12, 14)).astype(np.float32)
    whole = g.standard_normal((2, 20, 20, 24)).astype(np.float32)
    last = np.ascontiguousarray(np.moveaxis(whole[:, :, :10, :12], 1, -1))
    for beside in (
        np.ascontiguousarray(whole[:, :, :10, :12]), np.moveaxis(last, -1, 1), whole[:, :, :20:2, ::2],
        whole[:, ::-1, :10, :12],
    ):  # fmt: skip
        feeds, kept = {"x": x, "beside": beside}, beside.copy()
        want = one_by_one(model, None, feeds)
        for _ in range(4):
            for got, expected in zip(model.run(None, feeds), want, strict=True):
                np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(beside, kept)


def test_results_are_the_callers():
    """A later run does not write to them, and writing to them changes no later run."""
    model, g = Model(model_of(["t", "q2", "s2", "z2", "y0"])), np.random.default_rng(3)
    feeds = [{"x": g.standard_normal((1, 3, 9, 9)).astype(np.float32)} for _ in range(2)]
    for _ in range(4):  # the last two in a frame
        first = model.run(None, feeds[0])
    kept = [a.copy() for a in first]
    model.run(None, feeds[1])
    for got, expected in zip(first, kept, strict=True):
        np.testing.assert_array_equal(got, expected)
        got[...] = 0
    for got, expected in zip(model.run(None, feeds[0]), kept, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("outputs", [["y", "t", "s2"], ["y", "q0", "s0", "z0", "q1", "s2"]])
def test_infinities_and_nan(outputs, threads):
    """In the input, and such as a chain makes: equal to onnxruntime, by the same recordings as other numbers;
    the next run is right.
    """
    proto, x = model_of(outputs), np.ones((1, 3, 9, 9), np.float32)
    model, alone = Model(proto, num_threads=threads), []
    for _ in range(4):
        want = model.run(None, {"x": x})
    for step in model._program.steps:
        step.run = lambda *values, step=step, run=step.run: alone.append(step.label) or run(*values)
    model.run(None, {"x": x})
    usual = alone.copy()
    for bad in (np.nan, np.inf, -np.inf):
        alone.clear()
        y = x.copy()
        y[0, 1, 2, 3] = bad
        alike(model.run(None, {"x": y}), onnxruntime_run(proto, {"x": y}, "ORT_DISABLE_ALL"), outputs)
        assert alone == usual
    model.run(None, {"x": np.full_like(x, 3e38)})
    for got, expected in zip(model.run(None, {"x": x}), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def alike(got, want, outputs):
    for a, name in zip(got, outputs, strict=True):
        np.testing.assert_array_equal(a, want[name], err_msg=name)


def test_an_input_is_still_there_when_a_pass_fails():
    """A chain may put its result where its input lies, but not while it is recorded: the quantizer behind it
    may have the steps run one by one, from the same input.
    """
    info, outputs = onnx.helper.make_tensor_value_info, ["y", "q", "s", "z"]
    nodes = [
        h.make_node("MatMulIntegerToFloat", ["a", "b", "scale", "scale"], ["c"], domain="com.microsoft"),
        h.make_node("Mul", ["c", "k"], ["y"]), h.make_node("DynamicQuantizeLinear", ["y"], ["q", "s", "z"]),
    ]  # fmt: skip
    graph = h.make_graph(
        nodes, "g", [info(n, 2, [None, None]) for n in "ab"],
        [info(n, k, None) for n, k in zip(outputs, (1, 2, 1, 2), strict=True)],
        [onnx.numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("scale", 0.01), ("k", 2e38))],
    )  # fmt: skip
    sets = [h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)]
    proto, g = h.make_model(graph, opset_imports=sets, ir_version=8), np.random.default_rng(6)
    model = Model(proto)
    for high in (50, 8, 50):
        feeds = {n: g.integers(0, high, (24, 24), dtype=np.uint8) for n in "ab"}
        want = onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")
        alike(model.run(None, feeds), want, outputs)
        assert 0 < np.isfinite(want["y"]).mean() < 1 or (high == 8 and np.isfinite(want["s"]))
    assert tapes(model) and all(t is not None for t in tapes(model))


def test_python_threads_at_once():
    model, g = Model(model_of(["t"])), np.random.default_rng(4)
    feeds = [{"x": g.standard_normal((1, 3, 30, 30)).astype(np.float32)} for _ in range(8)]
    want = [one_by_one(model, None, f)[0] for f in feeds]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda f: model.run(None, f)[0], feeds * 5), want * 5, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_more_shapes_than_are_kept():
    model = Model(model_of(["y"]))
    for size in range(5, 5 + 2 * tape.SHAPES):
        feeds = {"x": np.full((1, 3, size, 5), size, np.float32)}
        np.testing.assert_array_equal(model.run(None, feeds), one_by_one(model, None, feeds))
        assert len(tapes(model)) <= tape.SHAPES * 2


def test_places_of_values_that_live_at_once_are_apart():
    """And the memory is no larger than all of them together."""
    g = np.random.default_rng(5)
    for _ in range(200):
        lives, first = [], 0
        for _ in range(int(g.integers(1, 30))):
            first += int(g.integers(0, 3))
            lives.append((int(g.integers(1, 500)), first, first + int(g.integers(0, 9))))
        where, size = tape.placed(lives)
        for i, (begin, (nbytes, low, high)) in enumerate(zip(where, lives, strict=True)):
            assert begin % 64 == 0 and begin + nbytes <= size
            for j, (other, (more, least, most)) in enumerate(zip(where, lives, strict=True)):
                if i != j and low <= most and least <= high:
                    assert begin + nbytes <= other or other + more <= begin
        assert size <= sum(-(-nbytes // 64) * 64 for nbytes, _, _ in lives)
