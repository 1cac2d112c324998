"""QLinearAveragePool and the global one: prepared and recorded, in any layout, beside their definition."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h

from lowgemm.onnx_run import Model, average_pool, contrib
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.windows import of_three_axes, windows

MS = "com.microsoft"


def whole(g, dtype, shape):
    return g.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def problem(g, trial):
    """The operator's name, attributes, type and shape of the image."""
    dtype, axes, last = (np.uint8, np.int8)[trial % 2], 1 + trial // 2 % 3, trial // 6 % 2
    size, channels = tuple(int(n) for n in g.integers(3, 9, axes)), int(g.choice([1, 3, 16, 40]))
    shape = (2, *size, channels) if last else (2, channels, *size)
    if trial % 5 == 0:
        return "QLinearGlobalAveragePool", {"channels_last": last}, dtype, shape
    kernel = list(size) if trial % 7 == 0 else [int(n) for n in g.integers(1, 4, axes)]
    how = {
        "kernel_shape": kernel, "strides": [int(n) for n in g.integers(1, 4, axes)],
        "pads": [0] * 2 * axes if trial % 7 == 0 else [int(g.integers(0, k)) for k in kernel * 2],
        "ceil_mode": int(g.integers(2)), "count_include_pad": int(g.integers(2)), "channels_last": last,
    }  # fmt: skip
    return "QLinearAveragePool", how, dtype, shape


@pytest.mark.parametrize("trial", range(48))
def test_recorded(trial, threads):
    """Between a table and a dequantizer: one recording, with the bits of the node alone."""
    g = np.random.default_rng(trial)
    op, how, dtype, shape = problem(g, trial)
    names = {"s": np.float32(0.03), "z": whole(g, dtype, ()), "t": np.float32(0.05), "u": whole(g, dtype, ())}
    nodes = [
        h.make_node("QLinearSigmoid", ["x", "s", "z", "t", "u"], ["a"], domain=MS),
        h.make_node(op, ["a", "t", "u", "s", "z"], ["b"], domain=MS, **how),
        h.make_node("DequantizeLinear", ["b", "s", "z"], ["y"]),
    ]
    info = h.make_tensor_value_info
    graph = h.make_graph(
        nodes, "g", [info("x", h.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)], [info("y", 1, None)],
        [onnx.numpy_helper.from_array(v, n) for n, v in names.items()],
    )  # fmt: skip
    proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)
    model, state = Model(proto, num_threads=threads), State(num_threads=1)
    pool = getattr(
        contrib, "qlinear_average_pool" if op == "QLinearAveragePool" else "qlinear_global_average_pool"
    )
    for _ in range(4):
        x = whole(g, dtype, shape)
        a = contrib.qlinear_sigmoid(state, x, *(names[n] for n in "sztu"))
        b = pool(state, a, *(names[n] for n in "tusz"), **how)
        want = (b.astype(np.float32) - np.float32(names["z"])) * names["s"]
        got = model.run(None, {"x": x})[0]
        np.testing.assert_array_equal(got, want, strict=True)
    groups = [t.group for t in model._program._turns if hasattr(t, "group")]
    assert [r.tape is not None for found in groups[0].found for r in found.values()] == [True]


def test_the_definition():
    """Sums in float32 in the order of the places, over every axis."""
    g = np.random.default_rng(1)
    for axes in (1, 2, 3):
        x = whole(g, np.uint8, (2, 5, *g.integers(4, 7, axes)))
        w = windows(x.shape[2:], [2] * axes, pads=[1, 0] * axes)
        params = average_pool.params_of((np.float32(0.1), np.float32(0.2)), (np.uint8(9), np.uint8(30)))
        got = average_pool.averages(x, params, np.dtype(np.uint8), w, of_three_axes(x.shape[2:], w), False)
        for place in np.ndindex(got.shape):
            total, count = np.float32(0), 0
            for inner in np.ndindex(w.kernel):
                at = [p * s - b + i for p, s, b, i in zip(place[2:], w.strides, w.begin, inner, strict=True)]
                if all(0 <= i < n for i, n in zip(at, x.shape[2:], strict=True)):
                    total += (np.float32(x[(*place[:2], *at)]) - np.float32(9)) * np.float32(0.1)
                    count += 1
            mean = np.rint(total / np.float32(count) / np.float32(0.2) + np.float32(30))
            assert got[place] == np.clip(mean, 0, 255)
