"""Models made by onnxruntime's own quantization tool, beside onnxruntime: every tensor, differences
counted.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `test`)")
import onnx_models as om
import peers

from lowgemm.onnx_run import Model

KINDS = ("qdq", "qdq_channel", "qdq_s8", "qoperator", "qoperator_channel", "dynamic")
NETWORKS = {"mlp": om.mlp, "mlp_matmul": lambda g: om.mlp(g, gemm=False), "conv": om.conv_net}


@pytest.fixture(scope="module", params=[(n, k) for n in NETWORKS for k in KINDS], ids="-".join)
def case(request, tmp_path_factory):
    name, kind = request.param
    if (name, kind) == ("conv", "dynamic"):  # the only one with ConvInteger
        peers.need("onnxruntime")
    g = np.random.default_rng([list(NETWORKS).index(name), KINDS.index(kind)])
    model, shape = NETWORKS[name](g)
    batches = [g.random((16, *shape), np.float32) for _ in range(4)]
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    return name, kind, om.quantized(model, path, kind, batches), g.random((200, *shape), np.float32)


def integer_nodes(model):
    return {r.op.split("::")[-1]: r.runs_on for r in model.profile}


def test_every_tensor(case):
    """Integers are equal, all of them; floats within 2e-6 (the onnx package sums in another order than
    onnxruntime).
    """
    name, kind, proto, x = case
    proto = om.every_tensor(proto)
    # without the optimizer, onnxruntime runs the nodes that the file has
    theirs = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")
    names = list(theirs)
    ours = dict(zip(names, Model(proto, fuse=False).run({"x": x}, names), strict=True))
    integers = floats = unequal = 0
    worst = 0.0
    for key, right in theirs.items():
        got = ours[key]
        assert got.dtype == right.dtype and got.shape == right.shape, key
        if right.dtype.kind in "iu":
            np.testing.assert_array_equal(got, right, err_msg=key)
            integers += right.size
        else:
            floats += right.size
            unequal += int(np.count_nonzero(got != right))
            worst = max(worst, float(np.abs(got - right).max(initial=0)))
    print(
        f"\n{name} {kind}: {integers} integers equal; {unequal} of {floats} floats differ, by {worst:.1e} at "
        "most"
    )
    assert integers > 0 and worst < 2e-6


def test_fused(case):
    """The whole model on integers where it can be: equal to onnxruntime's optimized run, but for
    QLinearSoftmax's table.
    """
    name, kind, proto, x = case
    model = Model(proto)
    got = model.run({"x": x})[0]
    nodes = integer_nodes(model)
    names = {"QGemm", "QLinearMatMul", "QLinearConv", "MatMulIntegerToFloat", "ConvIntegerToFloat"}
    products = names & set(nodes)
    assert products and all(nodes[p] == "lowgemm" for p in products)
    assert not {"Conv", "Gemm", "MatMul"} & set(nodes), nodes
    basic = om.onnxruntime_run(proto, {"x": x}, "ORT_ENABLE_BASIC")["y"]
    full = om.onnxruntime_run(proto, {"x": x})["y"]
    counts = [int(np.count_nonzero(got != y)) for y in (basic, full)]
    worst = [float(np.abs(got - y).max()) for y in (basic, full)]
    print(
        f"\n{name} {kind}: of {got.size} outputs {counts[0]} differ from the model as written, by "
        f"{worst[0]:.1e} at most; "
        f"{counts[1]} from the optimized one, by {worst[1]:.1e}"
    )
    step = 1 / 255
    if kind == "dynamic":
        assert max(worst) < 1e-6
    else:
        assert (np.abs(got - basic) < 1.01 * step).all() and counts[0] <= got.size // 100
        assert (np.abs(got - full) < 1.01 * step).all()
    assert model.packed_bytes > 0


def test_fused_layers_before_softmax(case):
    """Rewritten layers against the optimized ones of onnxruntime, on the integers before the softmax: at most
    one step.
    """
    name, kind, proto, x = case
    if not kind.startswith("qdq"):
        pytest.skip("only quantize-dequantize models are rewritten")
    short = type(proto)()
    short.CopyFrom(proto)
    nodes = {o: n for n in short.graph.node for o in n.output}
    softmax = next(n for n in short.graph.node if n.op_type == "Softmax")
    logits = nodes[nodes[softmax.input[0]].input[0]].output[0]  # dequantized from these
    del short.graph.output[:]
    signed = "_s8" in kind
    short.graph.output.append(om.value(logits, None, om.TensorProto.INT8 if signed else om.TensorProto.UINT8))
    model = Model(short)
    assert model.rewritten
    got = model.run({"x": x})[0]
    right = om.onnxruntime_run(short, {"x": x})[logits]
    steps = np.abs(got.astype(int) - right.astype(int))
    print(
        f"\n{name} {kind}: {np.count_nonzero(steps)} of {steps.size} logits differ, by {steps.max()} step(s) "
        "at most"
    )
    assert steps.max() <= 1 and np.count_nonzero(steps) <= steps.size // 50


def test_batches_and_threads_do_not_matter(case):
    _, _, proto, x = case
    if case[1] == "dynamic":
        x = x[:1]  # a batch has one range, so parts of it are other problems
    whole = Model(proto, num_threads=2).run({"x": x})[0]
    one = Model(proto, num_threads=1)
    parts = [one.run({"x": x[i : i + 1]})[0] for i in range(min(len(x), 5))]
    np.testing.assert_array_equal(whole[:5], np.concatenate(parts))
