"""Quantizing and dequantizing give what onnxruntime gives with the same scales."""

import numpy as np
import pytest

from lowgemm.quantization import choose_qparams, dequantize, quantize

onnx = pytest.importorskip("onnx", reason="compares with ONNX operators")
onnxruntime = pytest.importorskip("onnxruntime", reason="compares with ONNX operators")


def run(operator, x, p, axis):
    """One QuantizeLinear or DequantizeLinear node."""
    kinds = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3}
    out = np.dtype(np.float32) if operator == "DequantizeLinear" else p.dtype
    values = {"x": x, "scale": p.scale.astype(np.float32), "zero": p.zero_point.astype(p.dtype)}
    node = onnx.helper.make_node(operator, list(values), ["y"], **({} if axis is None else {"axis": axis}))
    inputs = [onnx.helper.make_tensor_value_info(k, kinds[v.dtype], v.shape) for k, v in values.items()]
    outputs = [onnx.helper.make_tensor_value_info("y", kinds[out], x.shape)]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, values)[0]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_same_integers_and_reals(dtype, axis):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((300, 200)) * rng.uniform(0.1, 4, 200)).astype(np.float32)
    bound = np.abs(x).max() if axis is None else np.abs(x).max(1 - axis)
    x[0, :3] = [1e30, -1e30, 0]
    p = choose_qparams(-0.7 * bound, 0.9 * bound, dtype, axis=axis)
    q = quantize(x, p)
    theirs = run("QuantizeLinear", x, p, axis)
    # They divide in float32, which may round onto a tie: one step, and rarely.
    different = q.astype(int) - theirs
    assert np.abs(different).max() <= 1 and (different != 0).mean() < 1e-4
    assert np.array_equal(dequantize(q, p), run("DequantizeLinear", q, p, axis))
