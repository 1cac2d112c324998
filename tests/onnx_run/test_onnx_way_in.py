"""Runs by the frame that ran last: which inputs it takes, and what it does with others."""

from __future__ import annotations

import numba
import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from onnx import helper as h
from onnx_models import one_by_one
from test_onnx_frame import frames, model_of, product, same

from lowgemm import config
from lowgemm.onnx_run import Model, frame, tape, way_in

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="compiled code only")


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def two_inputs(outputs=("p1", "b")):
    """Of two inputs: a part of the engine's between two products."""
    nodes = [
        *product("x", 0), h.make_node("Add", ["p0", "y"], ["a"]), h.make_node("Softsign", ["a"], ["b"]),
        *product("b", 1, "v"),
    ]  # fmt: skip
    return model_of(nodes, {"x": ("f4", 2), "y": ("f4", 2)}, outputs)


def drawn(g, rows=5):
    return {n: g.standard_normal((rows, 24)).astype(np.float32) for n in ("x", "y")}


def warm(model, feeds):
    for _ in range(3):
        model.run(None, feeds)


def counted(monkeypatch):
    """How often a frame was run by `run_again`, which grows."""
    found, original = [], frame.Frame.run_again

    def run_again(self, *given):
        made = original(self, *given)
        found.append(made is not None)
        return made

    monkeypatch.setattr(frame.Frame, "run_again", run_again)
    return found


@pytest.mark.parametrize("outputs", [("p1", "b"), ("b", "p0", "x"), ("a", "a", "p1"), ("s0", "z1")])
def test_other_values(outputs, monkeypatch, threads):
    model, g = Model(two_inputs(outputs), num_threads=threads), np.random.default_rng(1)
    warm(model, drawn(g))
    seen = counted(monkeypatch)
    kept = []
    for _ in range(5):
        feeds = drawn(g)
        want = one_by_one(model, None, feeds)
        same(model.run(None, feeds), want)
        kept.append((model.run(None, feeds), want))
    assert all(seen) and bool(seen) == (not any(f.shared for f in frames(model)))
    for got, want in kept:
        same(got, want)


def test_small_passes_wake_no_thread(monkeypatch):
    """What has one piece for one thread is run without the team, however many threads a model may have."""
    model, g = Model(two_inputs(), num_threads=2), np.random.default_rng(6)
    warm(model, drawn(g))
    seen, feeds = counted(monkeypatch), drawn(g)
    monkeypatch.setattr(model._program, "_run_all", None)
    same(model.run(None, feeds), Model(two_inputs(), num_threads=1).run(None, feeds))
    assert seen == [True] and not any(f.shared for f in frames(model))


def test_other_arrays(monkeypatch):
    """Of other shapes, strides, dtypes and kinds: as if there were no frame."""
    model, g = Model(two_inputs()), np.random.default_rng(2)
    warm(model, drawn(g))
    seen, feeds = counted(monkeypatch), drawn(g)
    x = feeds["x"]
    swapped = np.empty((5, 48), np.float32)[:, ::2]
    swapped[...] = x
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    for other in (swapped, np.asfortranarray(x), x[::-1], unaligned, x.view(np.ma.MaskedArray), x.tolist()):
        same(model.run(None, feeds | {"x": other}), one_by_one(model, None, feeds | {"x": other}))
        same(model.run(None, feeds), one_by_one(model, None, feeds))
    more = drawn(g, 7)
    same(model.run(None, more), one_by_one(model, None, more))
    same(model.run(None, feeds), one_by_one(model, None, feeds))
    assert True in seen and False in seen
    with pytest.raises(TypeError, match="x: expected dtype float32, got float64"):
        model.run(None, feeds | {"x": x.astype(float)})
    with pytest.raises(ValueError, match="missing y"):
        model.run(None, {"x": x})
    with pytest.raises(ValueError, match="unknown z"):
        model.run(None, feeds | {"z": x})
    same(model.run(None, dict(reversed(feeds.items()))), one_by_one(model, None, feeds))


def test_settings_have_frames_of_their_own(monkeypatch):
    model, g = Model(two_inputs(), num_threads=1), np.random.default_rng(3)
    feeds = drawn(g)
    warm(model, feeds)
    seen, want = counted(monkeypatch), one_by_one(model, None, feeds)
    monkeypatch.setattr(config, "kernel", "portable")
    same(model.run(None, feeds), want)
    assert not seen
    warm(model, feeds)
    same(model.run(None, feeds), want)
    assert seen


def test_without_built_in_functions(monkeypatch):
    """Where arrays are not laid out as expected, NumPy and ctypes do the same."""
    monkeypatch.setattr(way_in, "put", lambda: None)
    monkeypatch.setattr(way_in, "run_tape", lambda: None)
    model, g = Model(two_inputs()), np.random.default_rng(4)
    seen = counted(monkeypatch)
    for _ in range(6):
        feeds = drawn(g)
        same(model.run(None, feeds), one_by_one(model, None, feeds))
    assert frames(model) and True not in seen


def test_inputs_are_copied_byte_for_byte():
    """What `put` copies, and that it copies nothing of arrays that do not fit."""
    g = np.random.default_rng(5)
    for shape, dtype in (
        ((3,), "u1"),
        ((5, 7), "i1"),
        ((2, 9), "f4"),
        ((11,), "f8"),
        ((), "i8"),
        ((13,), "?"),
    ):
        x = (
            g.integers(0, 2, shape).astype(dtype)
            if dtype == "?"
            else g.integers(-99, 99, shape).astype(dtype)
        )
        whole = np.full(x.nbytes + 16, 7, np.uint8)
        place = whole[8 : 8 + x.nbytes]
        other = np.zeros((2, 3), np.int16)
        forms = [frame._form(other), frame._form(x)]
        call, kept = way_in.put_call(forms, {1: place})
        put = way_in.put()
        assert put(call, other, x[..., None]) is None and put(call, other.T, x) is None
        assert (whole == 7).all()
        assert put(call, other, x) is call
        assert place.tobytes() == x.tobytes() and (whole[:8] == 7).all() and (whole[-8:] == 7).all()
        del kept


def test_a_tape_that_fails():
    """It says so, and the next run begins anew."""
    words = np.zeros(8, np.int64)
    call = way_in.tape_call(tape.run_tape.address, words)
    assert way_in.run_tape()(call) is call
    words[tape.STATUS] = 3
    assert way_in.run_tape()(call) is None and words[tape.STATUS] == 0
