"""The ONNX layer: the onnx package's own node cases, its reference evaluator, onnxruntime, and torch."""

from __future__ import annotations

import functools
import warnings
from collections import Counter

import numpy as np
import peers
import pytest

import lowgemm
from lowgemm.compat import onnx as ox

OPERATORS = {
    "MatMulInteger": ox.matmul_integer,
    "QLinearMatMul": ox.qlinear_matmul,
    "QuantizeLinear": ox.quantize_linear,
    "DequantizeLinear": ox.dequantize_linear,
    "DynamicQuantizeLinear": ox.dynamic_quantize_linear,
}
OURS = {
    np.dtype(t)
    for t in (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32, np.float16, np.float64)
}


@functools.cache
def all_cases():
    """Every node case (the collector fills its list once a process, whatever it is asked for)."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other operators' cases
        return collect_testcases(None)


def node_cases(op: str):
    pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
    return [c for c in all_cases() if [n.op_type for n in c.model.graph.node] == [op]]


def attributes(node) -> dict:
    from onnx import helper

    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if found.get("output_dtype"):
        found["output_dtype"] = helper.tensor_dtype_to_np_dtype(found["output_dtype"])
    return found


@pytest.mark.parametrize("op", OPERATORS)
def test_node_cases(op):
    """Every case of the onnx package whose element types NumPy has; the others are counted by type."""
    if op == "QLinearMatMul":
        peers.need("onnx")
    counts: Counter = Counter()
    for case in node_cases(op):
        known = attributes(case.model.graph.node[0])
        if set(known) - {"axis", "block_size", "output_dtype"}:
            counts[f"skipped: attribute {sorted(set(known) - {'axis', 'block_size', 'output_dtype'})}"] += 1
            continue
        for inputs, outputs in case.data_sets:
            arrays = [np.asarray(a) for a in (*inputs, *outputs)]
            foreign = {str(a.dtype) for a in arrays if a.dtype not in OURS}
            if foreign:
                counts[f"skipped: {', '.join(sorted(foreign))}"] += 1
                continue
            options = {"rounding": "onnx_reference"} if op == "QLinearMatMul" else known
            got = OPERATORS[op](*inputs, **options)
            for mine, right in zip(got if isinstance(got, tuple) else (got,), outputs, strict=True):
                assert mine.dtype == right.dtype, case.name
                np.testing.assert_array_equal(mine, right, err_msg=case.name)
            counts["run"] += 1
    print(op, dict(counts))
    assert counts["run"] > 0


def session(op: str, inputs: dict[str, np.ndarray], result: np.dtype):
    """A one-node model for onnxruntime; all but the first input are constants."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `test`)")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `test`)")
    from onnx import helper, numpy_helper

    names = list(inputs)
    first = inputs[names[0]]
    node = helper.make_node(op, names, ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(names[0], helper.np_dtype_to_tensor_dtype(first.dtype), first.shape)],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(result)), None)],
        [numpy_helper.from_array(np.ascontiguousarray(inputs[n]), n) for n in names[1:]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    run = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def evaluate():
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, {names[0]: first})[0]

    assert onnx is not None
    return run.run(None, {names[0]: first})[0], evaluate


def test_matmul_integer_equals_onnxruntime():
    rng = np.random.default_rng(0)
    compared = 0
    for m, k, n in ((1, 1, 1), (3, 17, 5), (32, 64, 48), (65, 300, 33)):
        for right in (np.uint8, np.int8):
            A = rng.integers(0, 256, (m, k), dtype=np.uint8)
            B = rng.integers(np.iinfo(right).min, np.iinfo(right).max, (k, n), dtype=right, endpoint=True)
            zeros = {"az": np.uint8(rng.integers(0, 256)), "bz": rng.integers(0, 100, n).astype(right)}
            got, evaluate = session(
                "MatMulInteger", {"A": A, "B": B, **{k: np.asarray(v) for k, v in zeros.items()}}, np.int32
            )
            mine = ox.matmul_integer(A, B, *zeros.values())
            exact = (A.astype(int) - int(zeros["az"])) @ (B.astype(int) - zeros["bz"].astype(int))
            np.testing.assert_array_equal(mine, exact)
            np.testing.assert_array_equal(mine, evaluate())
            np.testing.assert_array_equal(mine, got)
            compared += mine.size
    print("MatMulInteger:", compared, "compared, 0 differ")


def test_qlinear_matmul_equals_onnxruntime_and_the_reference():
    peers.need("onnx")
    peers.need("onnxruntime")
    rng = np.random.default_rng(1)
    compared = differ = reference_differ = 0
    for trial in range(24):
        m, k, n = rng.integers(1, 70, 3)
        right = np.uint8 if trial % 2 else np.int8
        a = rng.integers(0, 256, (m, k), dtype=np.uint8)
        b = rng.integers(np.iinfo(right).min, np.iinfo(right).max, (k, n), dtype=right, endpoint=True)
        # scales that are powers of two give many exact ties
        exact = trial % 3 == 0
        scales = [
            np.float32(2.0 ** -rng.integers(2, 6)) if exact else np.float32(rng.random() * 0.05 + 1e-3)
            for _ in range(2)
        ]
        y_scale = np.float32(2.0 ** rng.integers(-2, 4)) if exact else np.float32(rng.random() * 4 + 0.05)
        inputs = {
            "a": a, "as": np.asarray(scales[0]), "az": np.asarray(np.uint8(rng.integers(0, 256))),
            "b": b, "bs": np.asarray(scales[1]), "bz": np.asarray(right(rng.integers(0, 100))),
            "ys": np.asarray(y_scale), "yz": np.asarray(np.uint8(rng.integers(0, 256))),
        }  # fmt: skip
        got, evaluate = session("QLinearMatMul", inputs, np.uint8)
        compared += got.size
        differ += int(np.count_nonzero(ox.qlinear_matmul(*inputs.values()) != got))
        mine = ox.qlinear_matmul(*inputs.values(), rounding="onnx_reference")
        reference_differ += int(np.count_nonzero(mine != evaluate()))
    print(
        f"QLinearMatMul: {compared} compared, {differ} differ from onnxruntime, {reference_differ} from the reference"
    )
    assert differ == 0 and reference_differ == 0 and compared > 10_000


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantize_and_dequantize_equal_onnxruntime(dtype):
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(0, 50, 5000), np.arange(-200, 200) / 2]).astype(np.float32)
    scale, zero = np.asarray(np.float32(0.5)), np.asarray(dtype(7))
    got, _ = session("QuantizeLinear", {"x": x, "s": scale, "z": zero}, dtype)
    mine = ox.quantize_linear(x, scale, zero)
    np.testing.assert_array_equal(mine, got)
    got, _ = session("DequantizeLinear", {"x": mine, "s": scale, "z": zero}, np.float32)
    np.testing.assert_array_equal(ox.dequantize_linear(mine, scale, zero), got)


def test_requantize_equals_torchs_quantized_linear():
    torch = pytest.importorskip("torch", reason="torch is not installed (an optional comparison)")
    rng = np.random.default_rng(3)
    compared = differ = 0
    for trial in range(12):
        m, k, n = (int(v) for v in rng.integers(1, 60, 3))
        x = rng.integers(0, 128, (m, k), dtype=np.uint8)  # 7 bits: right on CPUs without VNNI too
        w = rng.integers(-128, 128, (n, k), dtype=np.int8)
        xs, ws, ys = (float(v) for v in rng.random(3) * 0.1 + 0.01)
        if trial % 3 == 0:
            xs, ws, ys = 0.25, 0.5, 2.0
        xz, yz = int(rng.integers(0, 128)), int(rng.integers(0, 256))
        qx = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), xs, xz)
        qw = torch._make_per_tensor_quantized_tensor(torch.from_numpy(w), ws, 0)
        packed = torch.ops.quantized.linear_prepack(qw, None)
        right = torch.ops.quantized.linear(qx, packed, ys, yz).int_repr().numpy()
        scale = np.float32(np.float32(xs) * np.float32(ws)) / np.float32(ys)
        stage = lowgemm.Requantize(scale, yz, np.uint8, rounding="torch")
        mine = lowgemm.gemm(x, w.T, lhs_zero_point=xz, output=[stage])
        compared += mine.size
        differ += int(np.count_nonzero(mine != right))
    print(f"quantized.linear: {compared} compared, {differ} differ")
    # the engines behind it (fbgemm, onednn) form the scale in different orders: at most the last bit of a near-tie
    assert differ <= compared // 1000


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: ox.matmul_integer(np.zeros((2, 2)), np.zeros((2, 2), np.uint8)), TypeError, "A"),
        (lambda: ox.matmul_integer(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), np.int8(3)), TypeError, "a_zero_point"),
        (lambda: ox.matmul_integer(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), None, np.zeros(3, np.uint8)), ValueError, "b_zero_point"),
        (lambda: ox.quantize_linear(np.zeros(3, np.float32), np.float32(1), np.float32(0)), TypeError, "y_zero_point"),
        (lambda: ox.quantize_linear(np.zeros((3, 4), np.float32), np.ones(3, np.float32), axis=1), ValueError, "y_scale"),
        (lambda: ox.dequantize_linear(np.zeros(3, np.uint8), np.float32(1), np.int8(0)), TypeError, "x_zero_point"),
        (lambda: ox.dequantize_linear(np.zeros(3), np.float32(1)), TypeError, "x"),
        (lambda: ox.dynamic_quantize_linear(np.zeros(0, np.float32)), ValueError, "x"),
        (lambda: ox.dynamic_quantize_linear(np.zeros(3)), TypeError, "x"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        call()
