"""What a loaded model holds: each weight once, and the constants of its float nodes beside the parts, not in
them.
"""

from __future__ import annotations

import pickle

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import TensorProto as T
from onnx import helper as h

from lowgemm.onnx_run import Model

SIZE = 64  # weights of 4 KiB: smaller tensors stay in the model's own message


def weights(g, *shape, dtype=np.uint8):
    return g.integers(0, 256, shape, dtype=np.uint8).view(dtype)


def model_of(nodes, constants, dtype=T.FLOAT, shape=(None, SIZE), outputs=("y",)):
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("x", dtype, shape)],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    sets = [h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)]
    return h.make_model(graph, opset_imports=sets, ir_version=8)


def quantized_inputs(names="a_scale a_zero w w_scale w_zero y_scale y_zero"):
    return ["x", *names.split()]


SCALES = {"a_scale": np.float32(0.02), "w_scale": np.float32(0.01), "y_scale": np.float32(0.5)}
ZEROS = {"a_zero": np.uint8(3), "w_zero": np.int8(0), "y_zero": np.uint8(7)}
G = np.random.default_rng(3)
MATRIX = {"w": weights(G, SIZE, SIZE, dtype=np.int8), **SCALES, **ZEROS}
FILTERS = {"w": weights(G, 9, 64, 3, 3, dtype=np.int8), **SCALES, **ZEROS}
GEMM = ["x", "a_scale", "a_zero", "w", "w_scale", "w_zero", "", "y_scale", "y_zero"]
CASES = {
    "QLinearMatMul": ([h.make_node("QLinearMatMul", quantized_inputs(), ["y"])], MATRIX, T.UINT8,
                      (None, SIZE)),
    "QGemm": ([h.make_node("QGemm", GEMM, ["y"], domain="com.microsoft")], MATRIX, T.UINT8, (None, SIZE)),
    "transposed": ([h.make_node("QGemm", GEMM, ["y"], domain="com.microsoft", transB=1)], MATRIX, T.UINT8,
                   (None, SIZE)),
    "QLinearConv": ([h.make_node("QLinearConv", quantized_inputs(), ["y"])], FILTERS, T.UINT8,
                    (None, 64, None, None)),
    "groups": (
        [h.make_node("QLinearConv", quantized_inputs(), ["y"], group=3)],
        {**FILTERS, "w": weights(G, 9, 64, 3, 3, dtype=np.int8)}, T.UINT8, (None, 192, None, None),
    ),
    "ConvInteger": ([h.make_node("ConvInteger", ["x", "w"], ["y"])], FILTERS, T.UINT8,
                    (None, 64, None, None)),
    "DynamicQuantizeMatMul": (
        [h.make_node("DynamicQuantizeMatMul", ["x", "w", "w_scale", "w_zero"], ["y"],
                     domain="com.microsoft")],
        MATRIX, T.FLOAT, (None, SIZE),
    ),
}  # fmt: skip


def data_for(dtype, shape):
    sizes = [6 if n is None else n for n in shape]
    return (
        G.integers(0, 256, sizes, dtype=np.uint8)
        if dtype == T.UINT8
        else G.standard_normal(sizes).astype(np.float32)
    )


@pytest.mark.parametrize("name", CASES)
def test_a_packed_weight_is_held_packed_alone(name):
    """Nothing else holds it; a pickle has it all the same, bit for bit."""
    nodes, constants, dtype, shape = CASES[name]
    proto = model_of(nodes, constants, dtype, shape)
    model, x = Model(proto), data_for(dtype, shape)
    got = model.run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")["y"])
    program = model._program
    assert list(program.packed) == ["w"] and "w" not in model._large and not program.constants
    assert not any(
        v is not None and np.array_equal(v, constants["w"]) for v in model.state._constants.values()
    )
    assert any(v is program.packed["w"].form for v in program._start)
    np.testing.assert_array_equal(program.unpacked()["w"], constants["w"])
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.run(None, {"x": x})[0], got)
    assert again.packed_bytes == model.packed_bytes


def test_weights_of_an_lstm_are_held_packed_alone():
    """Both, of each direction; the definition, which runs for infinities, has them all the same."""
    hidden, depth, g = 12, 30, np.random.default_rng(4)
    constants = {
        "w": weights(g, 2, depth, 4 * hidden, dtype=np.int8),
        "r": weights(g, 2, hidden, 4 * hidden, dtype=np.int8),
        "ws": np.float32([0.01, 0.02]), "wz": np.int8([0, 3]), "rs": np.float32([0.02, 0.01]),
        "rz": np.int8([1, 0]),
    }  # fmt: skip
    names = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    node = h.make_node(
        "DynamicQuantizeLSTM", names, ["y"], domain="com.microsoft", hidden_size=hidden,
        direction="bidirectional",
    )  # fmt: skip
    proto = model_of([node], constants, shape=(None, None, depth))
    model, x = Model(proto), g.standard_normal((5, 1, depth)).astype(np.float32)
    got = model.run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")["y"])
    assert set(model._program.packed) == {"w", "r"} and not {"w", "r"} & set(model._large)
    assert not any(isinstance(v, np.ndarray) and v.shape == (2, depth, 4 * hidden) for v in (
        *model._program._start, *model.state._constants.values()
    ))  # fmt: skip
    for name, value in model._program.unpacked().items():
        np.testing.assert_array_equal(value, constants[name])
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.run(None, {"x": x})[0], got)
    x[2] = np.inf
    want = Model(proto, float_nodes="onnx.reference").run(None, {"x": x})[0]
    for same in (model, again):
        np.testing.assert_array_equal(same.run(None, {"x": x})[0], want)


def test_a_weight_with_other_readers_stays():
    """Two forms of one weight, and a weight that a float node reads as well."""
    nodes = [
        h.make_node("QGemm", GEMM, ["y"], domain="com.microsoft"),
        h.make_node("QGemm", GEMM, ["t"], domain="com.microsoft", transB=1),
        h.make_node("Cast", ["v"], ["seen"], to=1),
        h.make_node(
            "QLinearMatMul", ["x", "a_scale", "a_zero", "v", "w_scale", "w_zero", "y_scale", "y_zero"], ["z"]
        ),
    ]
    constants = {**MATRIX, "v": weights(G, SIZE, SIZE, dtype=np.int8)}
    proto = model_of(nodes, constants, T.UINT8, outputs=("y", "t", "z", "seen"))
    x = data_for(T.UINT8, (5, SIZE))
    want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")
    for fuse in (False, True):
        model = Model(proto, fuse=fuse)
        for same in (model, pickle.loads(pickle.dumps(model))):
            for t, got in zip(same.outputs, same.run(None, {"x": x}), strict=True):
                np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
        assert "w" not in model._program.packed


def test_other_operands_than_were_prepared_for():
    """Bytes of the other sign: the node's own function runs, on the packed weight."""
    nodes, constants, _, shape = CASES["ConvInteger"]
    proto = model_of(nodes, constants, T.INT8, shape)
    x = data_for(T.UINT8, shape).view(np.int8)
    want = om.onnxruntime_run(model_of(nodes, constants, T.INT8, shape), {"x": x}, "ORT_DISABLE_ALL")["y"]
    np.testing.assert_array_equal(Model(proto).run(None, {"x": x})[0], want)
    # three dimensions are a batch of matrices, which the prepared product takes as rows
    proto = model_of(CASES["QGemm"][0], constants | MATRIX, T.UINT8, None)
    with pytest.raises(ValueError, match="QGemm"):
        Model(proto).run(None, {"x": data_for(T.UINT8, (0, 3))})


def test_constants_of_float_nodes_are_shared():
    """A table of more than 64 KiB is an input of the part, a float matrix is given beside it."""
    peers.need("onnxruntime")
    table, matrix = (
        G.standard_normal((300, 256)).astype(np.float32),
        G.standard_normal((256, 10)).astype(np.float32),
    )
    nodes = [
        h.make_node("Gather", ["table", "x"], ["rows"]),
        h.make_node("MatMul", ["rows", "matrix"], ["y"]),
    ]
    proto = model_of(nodes, {"table": table, "matrix": matrix}, T.INT64, None)
    model = Model(proto)
    for x in (np.array([1, 299, 7]), np.array([[5], [0]])):
        want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")["y"]
        for same in (model, pickle.loads(pickle.dumps(model))):
            np.testing.assert_allclose(same.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-5)
    part = model._program.steps[0].part
    assert set(part.inputs) == {"x", "table"}
    # the session would keep the part's own bytes for another session, with other providers
    assert not getattr(part.session, "_model_bytes", None)
    assert len(part._model([x, table], True, {"matrix": matrix}).SerializeToString()) < 2000
