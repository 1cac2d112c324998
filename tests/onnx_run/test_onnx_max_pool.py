"""MaxPool of bytes against onnxruntime, and the compiled pass against the definition: no element differs."""

from __future__ import annotations

import numpy as np
import onnx_models as om
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from onnx import helper

from lowgemm.onnx_run import Model, max_pool
from lowgemm.onnx_run.state import NotOurs, State
from lowgemm.onnx_run.windows import windows

BYTES = (np.uint8, np.int8)


def attributes(g, axes):
    """Of one pool."""
    kernel = [int(n) for n in g.integers(1, 5, axes)]
    how = {"kernel_shape": kernel, "ceil_mode": int(g.integers(2))}
    if g.random() < 0.7:
        how["strides"] = [int(n) for n in g.integers(1, 4, axes)]
    if g.random() < 0.5:
        how["dilations"] = [int(n) for n in g.integers(1, 4, axes)]
    if g.random() < 0.4:
        how["pads"] = [int(g.integers(0, k)) for k in kernel * 2]
    elif g.random() < 0.5:
        how["auto_pad"] = str(g.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    return how


def image(g, axes):
    shape = int(g.integers(1, 3)), int(g.integers(1, 40)), *map(int, g.integers(1, 9, axes))
    x = g.integers(0, 256, shape, dtype=np.uint8).view(g.choice(BYTES))
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if g.random() < 0.5 else x


def test_equal_to_onnxruntime(threads):
    """One to three axes: padding, strides, dilations, windows that begin inside and end outside."""
    peers.need("onnxruntime")
    g, compared = np.random.default_rng(0), 0
    for _ in range(250):
        axes = int(g.integers(1, 4))
        x, how = image(g, axes), attributes(g, axes)
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        node = helper.make_node("MaxPool", ["x"], ["y"], **how)
        inputs, outputs = [om.value("x", [None] * x.ndim, kind)], [om.value("y", None, kind)]
        model = om.model_of([node], inputs, outputs, {}, 17, checked=False)
        try:
            want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")["y"]
        except Exception:  # onnxruntime's errors have no common base
            with pytest.raises(ValueError, match="kernel_shape"):
                max_pool.max_pool(State(), x, **how)
            continue
        for got in (
            max_pool.max_pool(State(num_threads=threads), x, **how),
            max_pool.max_by_definition(x, windows(x.shape[2:], **how)),
        ):
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want, err_msg=str((x.shape, how)))
        compared += 1
    assert compared > 180


def test_other_numbers_of_axes_and_types():
    x = np.arange(16, dtype=np.uint8).reshape(1, 1, 2, 2, 2, 2)
    y = max_pool.max_pool(State(), x, kernel_shape=[2] * 4)
    assert y.shape == (1, 1, 1, 1, 1, 1) and y.item() == 15
    assert max_pool.max_pool(State(), x[:0], kernel_shape=[2] * 4).shape == (0, 1, 1, 1, 1, 1)
    assert max_pool.max_pool(State(), np.empty((0, 3, 4), np.int8), kernel_shape=[2]).shape == (0, 3, 3)
    with pytest.raises(NotOurs):
        max_pool.max_pool(State(), x.astype(np.float32), kernel_shape=[2] * 4)
    with pytest.raises(ValueError, match="images, channels"):
        max_pool.max_pool(State(), x[0, 0, 0, 0], kernel_shape=[2])
    for wrong in ({"kernel_shape": [2]}, {"strides": [0, 1]}, {"pads": [1, 1]}, {"auto_pad": "SAME"}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected"):
            max_pool.max_pool(State(), x[0, 0], **{"kernel_shape": [2, 2], **wrong})


@pytest.mark.parametrize("engine", ["onnx.reference", "onnxruntime"])
def test_found_behind_quantizers(engine):
    """A pool of bytes is lowgemm's, behind operators that move them too; one of floats is the engine's."""
    peers.need("onnxruntime")
    g = np.random.default_rng(1)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
        helper.make_node("MaxPool", ["b"], ["y"], kernel_shape=[3, 1], name="second"),
        helper.make_node("MaxPool", ["x"], ["f"], kernel_shape=[2, 1]),
        helper.make_node("MaxPool", ["q"], ["i", "where"], kernel_shape=[2, 1]),
    ]
    outputs = [om.value("y", None, om.TensorProto.INT8), om.value("f", None), om.value("where", None, 7)]
    constants = {"s": np.float32(0.02), "z": np.int8(-7)}
    proto = om.model_of(nodes, [om.value("x", [None, 5, None, None])], outputs, constants, 17, checked=False)
    x = g.standard_normal((2, 5, 9, 8)).astype(np.float32)
    want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")
    model = Model(proto, float_nodes=engine)
    for name, got in zip(want, model.run(None, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, want[name])
    assert {(r.op, r.runs_on): r.nodes for r in model.profile if "MaxPool" in r.op} == {
        ("lowgemm::MaxPool", "lowgemm"): 2, ("MaxPool", engine): 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="MaxPool 'second', output y: kernel_shape"):
        model.run(None, {"x": np.zeros((1, 5, 1, 1), np.float32)})
