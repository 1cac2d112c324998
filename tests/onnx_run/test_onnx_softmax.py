"""QLinearSoftmax that is taken down for a tape, beside onnxruntime, bit for bit."""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h

from lowgemm.onnx_run import Model

MS = "com.microsoft"


def model_of(dtype, axes, axis, opset, scales):
    """Bytes of one dtype, turned over, softmax, and back to floats."""
    constants = {
        "xs": np.float32(scales[0]), "ys": np.float32(scales[1]), "z": np.array(3, dtype),
        "yz": np.array(np.iinfo(dtype).min, dtype),
    }  # fmt: skip
    nodes = [
        h.make_node("Transpose", ["x"], ["t"], perm=list(range(axes))[::-1]),
        h.make_node("QLinearSoftmax", ["t", "xs", "z", "ys", "yz"], ["s"], domain=MS, axis=axis, opset=opset),
        h.make_node("DequantizeLinear", ["s", "ys", "yz"], ["y"]),
    ]
    kind = h.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("x", kind, [None] * axes)],
        [onnx.ValueInfoProto(name=n) for n in ("s", "y")],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("opset", [12, 13])
def test_recorded(dtype, opset, threads):
    """Along any axis; data in another order of axes, and of nothing."""
    peers.need("onnxruntime")
    g, info = np.random.default_rng(opset), np.iinfo(dtype)
    for axes, axis in ((1, -1), (2, -1), (2, 1), (3, 2), (3, 1), (3, 0), (4, -3)):
        proto = model_of(dtype, axes, axis, opset, (g.uniform(0.01, 0.3), 1 / 256))
        model = Model(proto, num_threads=threads)
        for size in (5, 17, 1):
            shape = tuple(int(n) for n in g.integers(1, 9, axes - 1)) + (size,)
            for _ in range(4):
                x = g.integers(info.min, info.max, shape, endpoint=True).astype(dtype)
                want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")
                for t, got in zip(model.outputs, model.run(None, {"x": x}), strict=True):
                    np.testing.assert_array_equal(got, want[t.name], err_msg=f"{axes} {axis} {shape}")
        groups = [t.group for t in model._program._turns if hasattr(t, "group")]
        taped = {r.end - i for gr in groups for i, f in enumerate(gr.found) for r in f.values() if r.tape}
        assert 3 in taped, (axes, axis, taped)
        empty = np.zeros((0,) * axes, dtype)
        assert all(y.shape == empty.shape for y in model.run(None, {"x": empty}))
