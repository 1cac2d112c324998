"""Products and convolutions to bytes whose scales, zero points or biases come with the data: recorded, one by
one and as written beside onnxruntime, bit for bit.
"""

from __future__ import annotations

import numpy as np
import onnx_models as om
import pytest
from test_onnx_products import BYTES, _needs, coded, same, zero  # noqa: F401 (a fixture)

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h

from lowgemm.onnx_run import Model


def scale(g, *shape, size=0.02):
    return np.asarray(g.random(shape) * size + size, np.float32)


def parted(g, values, always):
    """Which values are constants, and which come with the data."""
    data = {n for n in values if n in always or g.random() < 0.5}
    if data == set(always):
        data.add(str(g.choice([n for n in ("xs", "ws", "ys", "xz", "yz") if n in values])))
    return {n: v for n, v in values.items() if n not in data}, {n: values[n] for n in values if n in data}


@pytest.mark.parametrize("seed", range(30))
def test_products(seed, threads):
    g = np.random.default_rng(seed)
    da, db = (np.uint8, BYTES[seed % 2]) if seed % 3 else (np.int8, np.int8)
    m, k, n = (int(v) for v in g.integers(1, 70, 3))
    lead = (2, 3) if seed % 4 == 0 else ()
    each = (n,) if seed % 5 == 0 and not lead else ()
    values = {
        "x": coded(g, da, *lead, m, k), "xs": scale(g), "xz": zero(g, da), "w": coded(g, db, *lead, k, n),
        "ws": scale(g, *each), "wz": zero(g, db, *each), "ys": scale(g, size=k * 0.01), "yz": zero(g, da),
    }  # fmt: skip
    constants, feeds = parted(g, values, ("x",))
    recorded = not ("wz" in feeds and each)  # vectors of zero points come as constants only
    same([h.make_node("QLinearMatMul", list(values), ["y"])], constants, feeds, threads, recorded=recorded)


@pytest.mark.parametrize("seed", range(30))
def test_convolutions(seed, threads):
    g = np.random.default_rng(100 + seed)
    dx, dw = (np.uint8, BYTES[seed % 2]) if seed % 3 else (np.int8, np.int8)
    groups = (1, 1, 3, 20, 70)[seed % 5]
    depth = 1 if seed % 5 > 2 else int(g.integers(1, 20))
    outputs = groups * (1 if seed % 5 > 2 else int(g.integers(1, 9)))
    taps, around = [(3, 3), (1, 1), (2, 3)][seed % 3], int(g.integers(0, 2))
    each = (outputs,) if seed % 4 == 0 else ()
    values = {
        "x": coded(g, dx, 2, depth * groups, 7, 9), "xs": scale(g), "xz": zero(g, dx),
        "w": coded(g, dw, outputs, depth, *taps), "ws": scale(g, *each), "wz": zero(g, dw),
        "ys": scale(g, size=depth * 0.1), "yz": zero(g, dx),
    }  # fmt: skip
    if seed % 2:
        values["bias"] = g.integers(-(2**12), 2**12, outputs).astype(np.int32)
    constants, feeds = parted(g, values, ("x",))
    node = h.make_node("QLinearConv", list(values), ["y"], group=groups, pads=[around] * 4)
    same([node], constants, feeds, threads)


@pytest.mark.parametrize("bad", [0.0, -0.5, np.inf, np.nan, 1e-45])
@pytest.mark.parametrize("which", ["xs", "ws", "ys"])
def test_scales_that_are_no_positive_numbers(bad, which):
    """Their run goes one by one: what the operator's own function says, an answer or an error."""
    g = np.random.default_rng(1)
    values = {
        "x": coded(g, np.uint8, 5, 8), "xs": scale(g), "xz": zero(g, np.uint8), "w": coded(g, np.int8, 8, 6),
        "ws": scale(g), "wz": zero(g, np.int8), "ys": scale(g, size=0.1), "yz": zero(g, np.uint8),
    }  # fmt: skip
    node = h.make_node("QLinearMatMul", list(values), ["y"])
    graph = h.make_graph(
        [node], "g",
        [h.make_tensor_value_info(n, h.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in values.items()],
        [onnx.ValueInfoProto(name="y")],
    )  # fmt: skip
    proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    recorded, plain = Model(proto), Model(proto, fuse=False)

    def answer(model, feeds):
        try:
            return model.run(None, feeds)[0]
        except (TypeError, ValueError) as error:
            return type(error), str(error)

    for wrong in (False, True, False, True, False):
        feeds = values | ({which: np.float32(bad).reshape(())} if wrong else {})
        got, want = answer(recorded, feeds), answer(plain, feeds)
        if isinstance(want, tuple):
            assert got == want
        else:
            np.testing.assert_array_equal(got, want, strict=True)
        if not wrong:
            theirs = om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")["y"]
            np.testing.assert_array_equal(got, theirs)
