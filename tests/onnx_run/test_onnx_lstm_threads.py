"""Threads that share the steps of an LSTM: the same bits on any number of them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from test_onnx_lstm_gates import INPUTS, drawn_attributes, model_of

from lowgemm import config, kernels
from lowgemm.engine import parts, threads
from lowgemm.jit import team
from lowgemm.onnx_run import Model, lstm, lstm_prepared
from lowgemm.onnx_run.lstm_prepared import block_of, cut_of, in_blocks
from lowgemm.onnx_run.state import State

#: Units around the sizes at which a state has one block more.
HIDDEN = (1, 3, 16, 100, 128, 255, 256, 257, 300, 512, 530, 1024, 1100, 3000)


@pytest.fixture
def four(monkeypatch):
    """A team of four threads, where whatever has two pieces is shared, however short it is."""
    if team.the_team() is None:
        pytest.skip("no team of threads on this system")
    standing = team.Team(4)
    monkeypatch.setattr(team, "the_team", lambda: standing)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 4)
    monkeypatch.setattr(parts, "NANOSECONDS", 1e-9)
    return standing


@pytest.mark.parametrize("lanes", [1, 3, 5, 7, 8, 16, 32])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_blocks(hidden, lanes):
    """All columns, each once; a block begins with a panel of its own; gates of a unit are in one block."""
    block = block_of(hidden, lanes)
    gates, units = np.divmod(in_blocks(np.arange(4 * hidden), block), hidden)
    assert sorted(zip(gates, units, strict=True)) == [(g, u) for g in range(4) for u in range(hidden)]
    for first in range(0, hidden, block):
        n = min(block, hidden - first)
        assert (gates[4 * first : 4 * (first + n)] == np.repeat(range(4), n)).all()
        assert (units[4 * first : 4 * (first + n)] == np.tile(np.arange(first, first + n), 4)).all()
    assert block == hidden or 4 * block % lanes == 0


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_cuts(workers, monkeypatch, four):
    """Parts cover all units of all rows, one way or the other."""
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: workers)
    for hidden in HIDDEN:
        for rows in (1, 2, 3, 5, 16, 33):
            block = block_of(hidden, 16)
            cut = cut_of(hidden, block, rows, 1.0, None)
            assert (cut.units >= hidden) or (cut.rows == rows and cut.units % block == 0)
            by_rows = cut.rows < rows
            size, each = (rows, cut.rows) if by_rows else (hidden, cut.units)
            assert (cut.parts - 1) * each < size <= cut.parts * each
            assert 1 <= cut.workers <= min(workers, cut.parts)
            assert (cut.workers > 1) == (workers > 1 and (hidden >= 256 or rows > 1))
            assert cut_of(hidden, block, rows, 1.0, 1)[2:] == (1, 1)


def drawn(g, hidden, rows):
    """A node's constants, fed values and attributes."""
    direction = str(g.choice(["forward", "reverse", "bidirectional"]))
    directions, depth, steps = (
        1 + (direction == "bidirectional"),
        int(g.integers(1, 40)),
        int(g.integers(1, 6)),
    )
    dtype = g.choice([np.int8, np.uint8])
    info, size = np.iinfo(dtype), (directions, rows, hidden)
    scale = (directions, 4 * hidden) if g.random() < 0.3 else (directions,)
    zero = scale if len(scale) == 1 else (1,)
    constants = {
        "w": g.integers(info.min, info.max, (directions, depth, 4 * hidden), endpoint=True).astype(dtype),
        "r": g.integers(info.min, info.max, (directions, hidden, 4 * hidden), endpoint=True).astype(dtype),
        "ws": (g.random(scale) / 500 + 0.0001).astype(np.float32),
        "rs": (g.random(scale) / 500 + 0.0001).astype(np.float32),
        "wz": np.full(scale, g.integers(info.min // 4, info.max // 2, zero)).astype(dtype),
        "rz": np.full(scale, g.integers(info.min // 4, info.max // 2, zero)).astype(dtype),
    }  # fmt: skip
    if g.random() < 0.7:
        constants["b"] = g.standard_normal((directions, 8 * hidden)).astype(np.float32)
    if g.random() < 0.5:
        constants["p"] = g.standard_normal((directions, 3 * hidden)).astype(np.float32)
    feeds = {"x": g.standard_normal((steps, rows, depth)).astype(np.float32)}
    if g.random() < 0.5:
        lengths = g.integers(0, steps + 1, rows).astype(np.int32)
        (constants if g.random() < 0.5 else feeds)["n"] = lengths
    for name in "hc":
        if g.random() < 0.5:
            feeds[name] = g.standard_normal(size).astype(np.float32)
    attributes = {"hidden_size": hidden, "direction": direction} | drawn_attributes(g, directions)
    return constants, feeds, attributes


@pytest.mark.parametrize("seed", range(24))
def test_random_lstms(seed, four):
    """Beside the definition on one to four threads, each four times: step by step, recorded, in a frame."""
    g = np.random.default_rng(seed)
    hidden, rows = int(g.choice([5, 64, 100, 255, 256, 300, 530])), int(g.choice([1, 1, 2, 3, 7, 20]))
    constants, feeds, attributes = drawn(g, hidden, rows)
    given = [(constants | feeds).get(n) for n in INPUTS]
    with np.errstate(all="ignore"):
        want = lstm.dynamic_quantize_lstm(State(), *given, **attributes)
    proto = model_of(constants, feeds, attributes)
    for count in (1, 2, 3, 4):
        model = Model(proto, num_threads=count)
        for _ in range(4):
            for got, same in zip(model.run(None, feeds), want, strict=True):
                np.testing.assert_array_equal(got, same)


@pytest.mark.parametrize("kernel", [k.name for k in kernels.all_kernels() if not kernels.why_not(k)])
def test_every_kernel(kernel, four, monkeypatch):
    """Panels of all widths; weights are packed for the kernel that a model is loaded with."""
    monkeypatch.setattr(config, "kernel", kernel)
    g = np.random.default_rng(3)
    for rows in (1, 9):
        constants, feeds, attributes = drawn(g, 300, rows)
        given = [(constants | feeds).get(n) for n in INPUTS]
        with np.errstate(all="ignore"):
            want = lstm.dynamic_quantize_lstm(State(), *given, **attributes)
        model = Model(model_of(constants, feeds, attributes), num_threads=3)
        for _ in range(3):
            for got, same in zip(model.run(None, feeds), want, strict=True):
                np.testing.assert_array_equal(got, same)


@pytest.mark.parametrize(("hidden", "rows"), [(512, 1), (64, 6)])
def test_steps_are_shared(hidden, rows, four):
    """Each step is a job of the team: large states by their units, small ones by their sequences."""
    g = np.random.default_rng(hidden)
    while True:
        constants, feeds, attributes = drawn(g, hidden, rows)
        if attributes["direction"] == "forward" and "n" not in constants | feeds and len(feeds["x"]) == 5:
            break
    jobs, share = [], lstm_prepared.cut_of

    def cut(*given):
        jobs.append(share(*given))
        return jobs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lstm_prepared, "cut_of", cut)
        model = Model(model_of(constants, feeds, attributes), num_threads=2)
        before = four.last_end
        for _ in range(3):
            model.run(None, feeds)
    assert {c.workers for c in jobs} == {2}
    assert four.last_end != before
    assert four.numbers[team.HELD] == 0
