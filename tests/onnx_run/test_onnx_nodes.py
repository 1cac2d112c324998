"""The onnx package's own node cases, run as models."""

from __future__ import annotations

import functools
import warnings
from collections import Counter

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")

from lowgemm.onnx_run import Model

OURS = (
    "MatMulInteger", "QLinearMatMul", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
    "QLinearConv", "ConvInteger",
)  # fmt: skip
PLUMBING = (
    "Reshape", "Transpose", "Add", "Mul", "Cast", "Relu", "Softmax", "Flatten", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Squeeze", "Unsqueeze", "Gather", "Slice", "Pad", "Clip",
)  # fmt: skip


@functools.cache
def all_cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other operators' cases
        return collect_testcases(None)


def cases(op):
    return [c for c in all_cases() if [n.op_type for n in c.model.graph.node] == [op]]


def array(value):
    """Cases hold arrays, numbers, and TensorProtos where NumPy lacks the type."""
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def run(case, op, exact, engine="auto"):
    model = Model(case.model, rounding="onnx_reference", float_nodes=engine)
    names = [i.name for i in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        got = model.run(dict(zip(names, map(array, inputs), strict=True)))
        for mine, right in zip(got, outputs, strict=True):
            right = array(right)
            assert mine.dtype == right.dtype and mine.shape == right.shape, case.name
            if mine.dtype.kind == "V":  # ml_dtypes'
                mine, right = mine.astype(np.float32), right.astype(np.float32)
            if exact or right.dtype.kind not in "f":
                np.testing.assert_array_equal(mine, right, err_msg=case.name)
            else:
                np.testing.assert_allclose(mine, right, rtol=1e-3, atol=1e-7, err_msg=case.name)
    return {r.op: r.runs_on for r in model.profile}[op]


@pytest.mark.parametrize("op", OURS)
def test_quantized_operators(op):
    """Bit for bit; element types that lowgemm lacks (float8, 4-bit results) go to the onnx package, and are
    counted.
    """
    if op in ("QLinearMatMul", "QuantizeLinear", "DequantizeLinear"):
        peers.need("onnx")
    found = cases(op)
    counts = Counter(run(case, op, True) for case in found)
    print(f"\n{op}: {dict(counts)}")
    assert found and counts["lowgemm"] > 0 and sum(counts.values()) == len(found)


@pytest.mark.parametrize("engine", ["onnx.reference", "onnxruntime"])
@pytest.mark.parametrize("op", PLUMBING)
def test_plumbing(op, engine):
    """These are another engine's, and reach it through a model of ours."""
    peers.need(engine.split(".")[0])
    if op == "Cast" or (op, engine) == ("AveragePool", "onnxruntime"):
        peers.need(
            "onnx"
        )  # the cases of onnx 1.16 for rounded-up windows are its own reference's, which was wrong then
    found = [c for c in cases(op) if all(hasattr(i.type, "tensor_type") for i in c.model.graph.input)]
    counts: Counter = Counter()
    for case in found:
        arrays = [array(a) for s in case.data_sets for part in s for a in part]
        if any(a.dtype.kind not in "fiub" for a in arrays):
            counts["skipped: types NumPy lacks"] += 1
            continue
        counts[run(case, op, False, engine)] += 1
    print(f"\n{op}: {dict(counts)}")
    assert counts[engine] > 0
