"""The ONNX layer: the onnx package's own node cases, its reference evaluator, onnxruntime, and torch."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
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


def session(op: str, inputs: dict[str, np.ndarray], result: np.dtype, opset: int = 13):
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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
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
        f"QLinearMatMul: {compared} compared, {differ} differ from onnxruntime, {reference_differ} from the "
        "reference"
    )
    assert differ == 0 and reference_differ == 0 and compared > 10_000


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
@pytest.mark.parametrize("op", ["MatMulInteger", "QLinearMatMul"])
def test_parameters_of_each_matrix_of_a_stack_equal_onnxruntime(op, lead):
    """Zero points and scales of shape (..., 1, n), also where n is the number of matrices; and one value a
    matrix.
    """
    rng = np.random.default_rng(5)
    compared = 0
    for trial in range(12):
        m, k, n = (int(v) for v in rng.integers(1, 20, 3))
        n = lead[-1] if trial % 3 == 0 else n  # (3, 1, 1) is one a matrix, not one a column
        a = rng.integers(0, 256, (*lead, m, k), dtype=np.uint8)
        b = rng.integers(-128, 128, (*lead, k, n), dtype=np.int8)
        az, bz = np.asarray(np.uint8(trial)), rng.integers(-99, 99, (*lead, 1, n)).astype(np.int8)
        columns = (rng.random((*lead, 1, n)) * 0.05 + 1e-3).astype(np.float32)
        one, y = np.float32(0.02), np.asarray(np.float32(rng.random() + 0.1))
        if op == "MatMulInteger":
            inputs = {"a": a, "b": b, "az": az, "bz": bz}
        else:
            inputs = {"a": a, "as": np.asarray(one), "az": az, "b": b, "bs": columns, "bz": bz, "ys": y,
                      "yz": np.asarray(np.uint8(9))}  # fmt: skip
        function = ox.matmul_integer if op == "MatMulInteger" else ox.qlinear_matmul
        got, _ = session(op, inputs, np.int32 if op == "MatMulInteger" else np.uint8)
        np.testing.assert_array_equal(function(*inputs.values()), got)
        # one value a matrix is the same as equal values of its columns
        inputs["bz"], whole = bz[..., :1], np.repeat(bz[..., :1], n, axis=-1)
        if op == "QLinearMatMul":
            inputs["bs"] = columns[..., :1]
        by_matrix = function(*inputs.values())
        inputs["bz"] = whole
        if op == "QLinearMatMul":
            inputs["bs"] = np.repeat(columns[..., :1], n, axis=-1)
        np.testing.assert_array_equal(by_matrix, function(*inputs.values()))
        compared += got.size
    print(f"{op} of stacks {lead}: {compared} compared, 0 differ")


def test_rows_of_each_matrix_and_vectors():
    """The left operand's parameters, which onnxruntime takes as scalars only, against one product a
    matrix.
    """
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 256, (2, 3, 5), dtype=np.uint8), rng.integers(-128, 128, (2, 5, 4), dtype=np.int8)
    az = rng.integers(0, 256, (2, 3, 1)).astype(np.uint8)
    scales = (rng.random((2, 3, 1)) * 0.01 + 1e-3).astype(np.float32)
    one, ys, yz = np.float32(0.5), np.float32(0.7), np.uint8(100)
    sums = ox.matmul_integer(a, b, az)
    np.testing.assert_array_equal(sums, (a.astype(int) - az) @ b.astype(int))
    got = ox.qlinear_matmul(a, scales, az, b, one, np.int8(3), ys, yz)
    each = [
        ox.qlinear_matmul(a[i], scales[i, :, 0], az[i, :, 0], b[i], one, np.int8(3), ys, yz) for i in range(2)
    ]
    np.testing.assert_array_equal(got, each)
    # a vector by a stack, and a stack by a vector
    by_matrix = np.array([0.1, 0.2], np.float32).reshape(2, 1, 1)
    got = ox.qlinear_matmul(a[0, 0], one, np.uint8(1), b, by_matrix, np.int8(3), ys, yz)
    assert got.shape == (2, 4)
    for i in range(2):
        alone = ox.qlinear_matmul(a[0, :1], one, np.uint8(1), b[i], by_matrix[i], np.int8(3), ys, yz)
        np.testing.assert_array_equal(got[i], alone[0])
    got = ox.qlinear_matmul(a, scales, az, b[0, :, 0], one, np.int8(3), ys, yz)
    whole = ox.qlinear_matmul(a, scales, az, b[0, :, :1], one, np.int8(3), ys, yz)
    np.testing.assert_array_equal(got, whole[..., 0])
    assert ox.qlinear_matmul(a[:0], scales[:0], az[:0], b[:1], one, np.int8(3), ys, yz).shape == (0, 3, 4)


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


@pytest.mark.parametrize("real", [np.float32, np.float16])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.filterwarnings("error")
def test_what_is_no_number_quantizes_to(dtype, real):
    """Infinities saturate and NaN is the smallest value, whatever its sign, the length and the place in a
    vector.
    """
    info = np.iinfo(dtype)
    special = np.array([np.nan, np.copysign(np.nan, -1), np.inf, -np.inf, 1, 60000, -60000], real)
    want = np.array([info.min, info.min, info.max, info.min, 9, 0, 0], np.int64)
    want[5:] = np.clip(np.array([120000, -120000]) + 7, info.min, info.max)
    scale, zero = np.asarray(real(0.5)), np.asarray(dtype(7))
    for length in (1, 7, 64, 1001):
        x = np.resize(special, length)
        mine = ox.quantize_linear(x, scale, zero)
        np.testing.assert_array_equal(mine, np.resize(want, length))
        np.testing.assert_array_equal(
            ox.quantize_linear(x[:, None], scale[None], zero[None], axis=1)[:, 0], mine
        )
        # 0 / 0 and 1 / 0 are NaN and infinity as well
        zeros = ox.quantize_linear(np.array([0, 1, -1], real), np.zeros((), real), zero)
        np.testing.assert_array_equal(zeros, [info.min, info.max, info.min])
    for length in (7, 64, 1001):
        x = np.resize(special, length)
        got, _ = session("QuantizeLinear", {"x": x, "s": scale, "z": zero}, dtype, opset=21)
        np.testing.assert_array_equal(ox.quantize_linear(x, scale, zero), got)


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
    # the engines behind it (fbgemm, onednn) form the scale in different orders: at most the last bit of a
    # near-tie
    assert differ <= compared // 1000


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: ox.matmul_integer(np.zeros((2, 2)), np.zeros((2, 2), np.uint8)), TypeError, "A"),
        (lambda: ox.matmul_integer(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), np.int8(3)),
         TypeError, "a_zero_point"),
        (lambda: ox.matmul_integer(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), None,
                                   np.zeros(3, np.uint8)), ValueError, "b_zero_point"),
        (lambda: ox.matmul_integer(np.zeros((3, 2, 2), np.uint8), np.zeros((2, 2), np.uint8),
                                   np.zeros((2, 2, 1), np.uint8)), ValueError, "a_zero_point"),
        (lambda: ox.matmul_integer(np.zeros((2, 2), np.uint8), np.zeros((3, 2, 2), np.uint8), None,
                                   np.zeros((3, 2, 1), np.uint8)), ValueError, "b_zero_point"),
        (lambda: ox.matmul_integer(np.zeros((2, 2), np.uint8), np.zeros((3, 2, 2), np.uint8), None,
                                   np.zeros((1, 3, 1, 2), np.uint8)), ValueError, "b_zero_point"),
        (lambda: ox.qlinear_matmul(np.zeros((2, 2), np.uint8), np.float32(1), np.uint8(0),
                                   np.zeros((3, 2, 2), np.uint8), np.ones((2, 1, 2), np.float32), np.uint8(0),
                                   np.float32(1), np.uint8(0)), ValueError, "b_scale"),
        (lambda: ox.qlinear_matmul(np.zeros((3, 2, 2), np.uint8), np.ones((3, 2, 1), np.float32), np.uint8(0),
                                   np.zeros((2, 2), np.uint8), np.ones(2, np.float32), np.uint8(0),
                                   np.float32(1), np.uint8(0)), ValueError, "a_scale, b_scale"),
        (lambda: ox.quantize_linear(np.zeros(3, np.float32), np.float32(1), np.float32(0)), TypeError,
         "y_zero_point"),
        (lambda: ox.quantize_linear(np.zeros((3, 4), np.float32), np.ones(3, np.float32), axis=1), ValueError,
         "y_scale"),
        (lambda: ox.dequantize_linear(np.zeros(3, np.uint8), np.float32(1), np.int8(0)), TypeError,
         "x_zero_point"),
        (lambda: ox.dequantize_linear(np.zeros(3), np.float32(1)), TypeError, "x"),
        (lambda: ox.dynamic_quantize_linear(np.zeros(3)), TypeError, "x"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        call()


LANES = """
import numpy as np
from lowgemm.compat import onnx as ox
for dtype in (np.uint8, np.int8, np.uint16, np.int16):
    for real in (np.float32, np.float16):
        x = np.resize(np.array([np.nan, -np.nan, np.inf, -np.inf], real), 1001)
        y = ox.quantize_linear(x, np.asarray(real(0.5)), np.asarray(dtype(7)))
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        assert (y == np.resize(np.array([low, low, high, low], dtype), 1001)).all(), (dtype, real)
print("fine")
"""


@pytest.mark.parametrize("fewer", [False, True])
def test_what_is_no_number_does_not_depend_on_the_vector_unit(fewer):
    """The loops are NumPy's, which it chooses by the CPU: with all of them, and with none but its
    baseline.
    """
    core = "_core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "core"
    features = importlib.import_module(f"numpy.{core}._multiarray_umath")
    __cpu_dispatch__, __cpu_features__ = features.__cpu_dispatch__, features.__cpu_features__

    env = {**os.environ, "NUMBA_CPU_NAME": "generic" if fewer else ""}
    env = {k: v for k, v in env.items() if v}
    if fewer:
        found = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
        env["NPY_DISABLE_CPU_FEATURES"] = " ".join(found)
    done = subprocess.run([sys.executable, "-c", LANES], env=env, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_a_result_without_elements_and_scales_for_each_row_or_column(m, n):
    a, b = np.zeros((m, 4), np.uint8), np.zeros((4, n), np.uint8)
    one, zero = np.float32(1), np.uint8(0)
    for scales in ((np.ones(m, np.float32), one), (one, np.ones(n, np.float32))):
        y = ox.qlinear_matmul(a, scales[0], zero, b, scales[1], zero, one, zero)
        assert y.shape == (m, n) and y.dtype == np.uint8


@pytest.mark.parametrize("block", [1, 2, 3, 7, 15, 16, 17, 300])
def test_blocks_of_the_last_axis(block):
    """Short blocks have their scales repeated for some elements at a time, also where the last is a part."""
    g = np.random.default_rng(block)
    for shape in ((1, 1), (3, 5), (2, 3, 28), (5, 511), (2, 2, 513), (700,)):
        n = shape[-1]
        many = (*shape[:-1], -(-n // block))
        scale = (g.random(many) / 9 + 1e-3).astype(np.float32)
        along = np.repeat(scale, block, axis=-1)[..., :n]
        for dtype in (np.uint8, np.int8, np.int16, np.uint16, np.int32):
            info = np.iinfo(dtype)
            zero = g.integers(info.min // 2, info.max // 2, many).astype(dtype)
            zeros = np.repeat(zero, block, axis=-1)[..., :n].astype(np.float32)
            q = g.integers(info.min, info.max, shape, endpoint=True).astype(dtype)
            got = ox.dequantize_linear(q, scale, zero, axis=-1, block_size=block)
            np.testing.assert_array_equal(got, (q.astype(np.float32) - zeros) * along, strict=True)
            if dtype == np.int32:
                continue
            x = (g.standard_normal(shape) * 50).astype(np.float32)
            got = ox.quantize_linear(x, scale, zero, axis=-1, block_size=block)
            steps = np.rint(x / along).astype(np.float64) + zeros
            np.testing.assert_array_equal(got, np.clip(steps, info.min, info.max).astype(dtype), strict=True)
