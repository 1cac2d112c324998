"""Who runs the float nodes: both engines beside each other, and how a graph is divided between them and
lowgemm.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx_models as om
from onnx import TensorProto as T
from onnx import helper

from lowgemm.onnx_run import Model, UnsupportedOperator, engines


def one(op, shapes, opset, attributes, constants=None):
    """A model of one float node; the first input is fed."""
    names = [f"i{i}" for i in range(len(shapes))]
    node = helper.make_node(op, names, ["y"], **attributes)
    g = np.random.default_rng(0)
    held = constants or {
        n: (g.random(s) + 0.5).astype(np.float32) for n, s in zip(names[1:], shapes[1:], strict=True)
    }
    inputs, outputs = [om.value("i0", [None] * len(shapes[0]))], [om.value("y", None)]
    model = om.model_of([node], inputs, outputs, held, opset, checked=False)
    return model, {"i0": g.standard_normal(shapes[0]).astype(np.float32)}


CASES = [
    *(
        ("BatchNormalization", [(2, 3, 4, 5), *[(3,)] * 4], opset, {})
        for opset in (7, 8, 9, 11, 13, 14, 15, 17)
    ),
    ("BatchNormalization", [(2, 3), *[(3,)] * 4], 9, {"epsilon": 0.1}),
    *(
        (op, [(2, 3, 4)], opset, {} if axis is None else {"axis": axis})
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for opset in (7, 11, 12, 13, 17)
        for axis in (None, 0, 1, 2)
    ),
    *(("GlobalMaxPool", [(2, 3, *[4, 5, 6][:n])], 13, {}) for n in (1, 2, 3)),
    *(("LRN", [(2, 5, 3, 4)], 13, {"size": size, "alpha": 0.5, "bias": 2.0}) for size in (1, 3, 5)),
    ("ConvTranspose", [(2, 4, 5, 6), (4, 3, 3, 2), (3,)], 11, {}),
    ("ConvTranspose", [(2, 4, 5, 6), (4, 3, 3, 2), (6,)], 11, {"group": 2, "strides": [2, 3]}),
    (
        "ConvTranspose",
        [(1, 4, 5, 6), (4, 1, 3, 3), (4,)],
        11,
        {"group": 4, "pads": [1, 0, 1, 2], "strides": [2, 2]},
    ),
    (
        "ConvTranspose",
        [(1, 4, 5), (4, 2, 3), (4,)],
        11,
        {"group": 2, "dilations": [2], "output_padding": [1], "strides": [2]},
    ),
    ("ConvTranspose", [(1, 2, 5, 5), (2, 2, 3, 3), (2,)], 11, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("ConvTranspose", [(1, 2, 5, 5), (2, 2, 3, 3), (2,)], 11, {"output_shape": [10, 11], "strides": [2, 2]}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[2]}")
def test_what_the_onnx_package_gets_wrong_is_right_here(case):
    """Without onnxruntime too: the same numbers as onnxruntime's, to the last bits of float32."""
    peers.need("onnxruntime")
    op, shapes, opset, attributes = case
    model, feeds = one(op, shapes, opset, attributes)
    want = om.onnxruntime_run(model, feeds)["y"]
    for engine in ("onnx.reference", "onnxruntime"):
        ours = Model(model, float_nodes=engine)
        got = ours.run(None, feeds)[0]
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
        assert [r.runs_on for r in ours.profile] == [engine]


@pytest.mark.parametrize("engine", ["onnx.reference", "onnxruntime"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_max_pool_of_integers_with_padding(dtype, engine):
    """Padding is below every value, negative ones too."""
    peers.need("onnxruntime")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    inputs, outputs = [om.value("x", [1, 2, 5, 5], kind)], [om.value("y", None, kind)]
    model = om.model_of([node], inputs, outputs, {}, 13, checked=False)
    x = np.full((1, 2, 5, 5), 255, np.uint8).view(dtype)
    x[0, 0] = np.random.default_rng(0).integers(128, 250, (5, 5), dtype=np.uint8).view(dtype)
    want = om.onnxruntime_run(model, {"x": x})["y"]
    np.testing.assert_array_equal(Model(model, float_nodes=engine).run(None, {"x": x})[0], want)


def test_missing_external_data_is_said(tmp_path):
    import onnx

    proto = mixed()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    Model(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(OSError, match=r"^source: a file of its external data is missing: .*weights.bin"):
        Model(path)


def mixed():
    """Float, integer and float nodes, twice; an integer product in a branch."""
    w = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    nodes, now = [], "x"
    for i in range(2):
        nodes += [
            helper.make_node("Relu", [now], [f"r{i}"]),
            helper.make_node("DynamicQuantizeLinear", [f"r{i}"], [f"q{i}", f"s{i}", f"z{i}"]),
            helper.make_node("MatMulInteger", [f"q{i}", "w", f"z{i}"], [f"p{i}"]),
            helper.make_node("Cast", [f"p{i}"], [f"c{i}"], to=T.FLOAT),
            helper.make_node("Mul", [f"c{i}", f"s{i}"], [f"m{i}"]),
            helper.make_node("Reshape", [f"m{i}", "shape"], [f"v{i}"]),
        ]
        now = f"v{i}"
    return om.model_of(
        nodes, [om.value("x", ["n", 4])], [om.value(now, ["n", 4])], {"w": w, "shape": np.array([-1, 4])}
    )


@pytest.mark.parametrize("engine", ["onnx.reference", "onnxruntime"])
def test_parts(engine):
    """Three parts: before, between and after the products; equal to onnxruntime's run of the whole."""
    peers.need("onnxruntime")
    proto = mixed()
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    model = Model(proto, fuse=False, float_nodes=engine)
    got = model.run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")["v1"])
    parts = [s for s in model._program.steps if s.part is not None]
    assert len(parts) == 3 and {r.runs_on for r in model.profile} == {engine, "lowgemm"}
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(same.run(None, {"x": x})[0], got)


def test_values_are_let_go_of():
    """After a run's step nothing is held that no later step reads."""
    program = Model(mixed(), fuse=False)._program
    read = set(program._out)
    held = {n for n, v in enumerate(program._start) if v is not None} | {0}
    for step in reversed(program.steps):
        assert set(step.frees) == ({*step.inputs, *step.outputs} - read - held)
        read |= set(step.inputs) | set(step.outputs)


def test_outputs_belong_to_the_caller():
    """A view of an input or a constant is copied."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["y"]), helper.make_node("Identity", ["w"], ["z"]),
        helper.make_node("MatMulInteger", ["x", "w"], ["p"]),
    ]  # fmt: skip
    w = np.ones((2, 2), np.int8)
    proto = om.model_of(
        nodes, [om.value("x", [2, 2], T.UINT8)],
        [om.value("y", [4], T.UINT8), om.value("z", [2, 2], T.INT8), om.value("p", [2, 2], T.INT32)],
        {"w": w, "shape": np.array([4])},
    )  # fmt: skip
    model, x = Model(proto), np.ones((2, 2), np.uint8)
    for _ in range(2):
        y, z, p = model.run(None, {"x": x})
        np.testing.assert_array_equal(p, 2)
        y[...], z[...] = 7, 7
        assert (x == 1).all()


@pytest.mark.parametrize(
    "op", ["FastGelu", "Gelu", "QuickGelu", "BiasGelu", "FusedMatMul", "SkipLayerNormalization"]
)
def test_contributed_float_operators(op):
    """onnxruntime runs them; without it they are refused by name, and the error says what would help."""
    peers.need("onnxruntime")
    shapes = {
        "BiasGelu": [(2, 3, 4), (4,)],
        "FusedMatMul": [(2, 4), (4, 4)],
        "SkipLayerNormalization": [(2, 3, 4), (2, 3, 4), (4,)],
    }
    g = np.random.default_rng(0)
    names = [f"i{i}" for i in range(len(shapes.get(op, [0])))]
    values = {
        n: g.standard_normal(s).astype(np.float32)
        for n, s in zip(names, shapes.get(op, [(2, 3, 4)]), strict=True)
    }
    node = helper.make_node(op, names, ["y"], domain="com.microsoft", name="the node")
    graph = helper.make_graph(
        [node], "g", [om.value(n, v.shape) for n, v in values.items()], [om.value("y", None)]
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    want = om.onnxruntime_run(model, values)["y"]
    np.testing.assert_array_equal(Model(model).run(None, values)[0], want)
    with pytest.raises(
        UnsupportedOperator, match=rf"com.microsoft::{op} \(1 node\); onnxruntime may run them"
    ):
        Model(model, float_nodes="onnx.reference")


def test_without_onnxruntime(monkeypatch):
    monkeypatch.setattr(engines, "onnxruntime", lambda: None)
    model = Model(mixed())
    assert {r.runs_on for r in model.profile} == {"onnx.reference", "lowgemm"}
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        Model(mixed(), float_nodes="onnxruntime")
    with pytest.raises(ValueError, match="float_nodes"):
        Model(mixed(), float_nodes="torch")


def test_the_domain_has_two_names_and_free_sizes_may_be_negative():
    proto = mixed()
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    model = Model(proto)
    assert model.inputs[0].shape == (None, 4)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(model.run(None, {"x": x})[0], Model(mixed()).run(None, {"x": x})[0])


def test_parts_share_one_arena():
    """Memory that is given back to the system costs a page fault for every 4 KiB when it is taken again."""
    peers.need("onnxruntime")
    model = Model(mixed())
    model.run(None, {"x": np.ones((5, 4), np.float32)})
    sessions = [
        s.part.session for s in model._program.steps if s.part is not None and s.part.session is not None
    ]
    assert sessions
    for session in sessions:
        options = session.get_session_options()
        assert options.get_session_config_entry("session.use_env_allocators") == "1"
        assert not options.enable_cpu_mem_arena


@pytest.mark.parametrize("rows", [1, 200])
def test_constants_that_nodes_make_are_none_for_onnxruntime(rows):
    """It multiplies by constant weights in another order of sums. So without fusion a model is as written,
    bit for bit, where its weights come from nodes, as those of quantize-dequantize models do.
    """
    peers.need("onnxruntime")
    g, made = np.random.default_rng(3), helper.make_node
    nodes = [
        made("DequantizeLinear", ["w", "ws", "wz"], ["real"]),
        made("MatMul", ["x", "real"], ["product"]),
        made("Transpose", ["v"], ["turned"], perm=[1, 0]),
        made("MatMul", ["product", "turned"], ["y"]),
    ]
    constants = {
        "w": g.integers(-128, 128, (300, 150)).astype(np.int8), "ws": np.float32(0.013), "wz": np.int8(3),
        "v": g.standard_normal((40, 150)).astype(np.float32),
    }  # fmt: skip
    inputs, outputs = [om.value("x", [None, 300])], [om.value("y", None)]
    proto = om.model_of(nodes, inputs, outputs, constants, checked=False)
    x = g.standard_normal((rows, 300)).astype(np.float32)
    want = om.onnxruntime_run(proto, {"x": x}, "ORT_DISABLE_ALL")["y"]
    np.testing.assert_array_equal(Model(proto, fuse=False, num_threads=1).run(None, {"x": x})[0], want)


@pytest.mark.parametrize("operand", ["sizes", "scales"])
def test_a_resize_whose_sizes_come_with_the_data_is_onnxruntimes(operand):
    """It takes none whose sizes are a vector of any length; another number of axes is another session."""
    peers.need("onnxruntime")
    made = helper.make_node
    nodes = [
        made("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), made("Cast", ["q"], ["c"], to=T.FLOAT),
        made("Shape", ["x"], ["n"]), made("Mul", ["n", "factors"], ["large"]),
        made("Cast", ["factors"], ["f"], to=T.FLOAT), made("Neg", ["c"], ["d"]),
        made("Resize", ["d", "", "", "large"] if operand == "sizes" else ["d", "", "f"], ["y"], mode="linear"),
    ]  # fmt: skip
    inputs = [om.value("x", None), om.value("factors", [None], T.INT64)]
    proto = om.model_of(nodes, inputs, [om.value("y", None)], {}, checked=False)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    model, g = Model(proto, num_threads=1), np.random.default_rng(0)
    for shape in ((1, 1, 4, 5), (1, 2, 3, 4), (1, 1, 4, 5), (4, 5), (1, 1, 4, 5), (3, 7)):
        x, factors = g.standard_normal(shape).astype(np.float32), np.array([1, 1, 2, 3][-len(shape) :])
        feeds = {"x": x, "factors": factors}
        for _ in range(3):
            got = model.run(None, feeds)[0]
            np.testing.assert_array_equal(got, om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")["y"])
    assert {r.runs_on for r in model.profile if r.op == "Resize"} == {"onnxruntime"}


@pytest.mark.parametrize(("domain", "opset"), [("com.microsoft", 17), ("", 21)])
@pytest.mark.parametrize("fuse", [False, True])
def test_quantizers_of_16_bits_are_between_float_nodes_as_written(domain, opset, fuse):
    """onnxruntime's optimizer makes int8 of float weights that stand between them, and of what such weights
    are multiplied by.
    """
    peers.need("onnxruntime")
    g, made = np.random.default_rng(4), helper.make_node
    nodes = [
        made("QuantizeLinear", ["x", "s", "z"], ["q"], domain=domain),
        made("DequantizeLinear", ["q", "s", "z"], ["r"], domain=domain),
        made("DequantizeLinear", ["w", "ws", "wz"], ["real"]),
        made("Conv", ["r", "real"], ["c"]), made("Relu", ["c"], ["d"]),
        made("QuantizeLinear", ["d", "s", "z"], ["e"], domain=domain),
        made("DequantizeLinear", ["e", "s", "z"], ["f"], domain=domain),
        made("DequantizeLinear", ["v", "ws", "wz"], ["weights"]), made("MatMul", ["f", "weights"], ["m"]),
        made("QuantizeLinear", ["m", "s", "z"], ["h"], domain=domain),
        made("DequantizeLinear", ["h", "s", "z"], ["y"], domain=domain),
    ]  # fmt: skip
    constants = {
        "s": np.float32(1e-4), "z": np.uint16(32000), "ws": np.float32(3e-3), "wz": np.int8(0),
        "w": g.integers(-128, 128, (8, 3, 1, 1)).astype(np.int8),
        "v": g.integers(-128, 128, (64, 32)).astype(np.int8),
    }  # fmt: skip
    proto = om.model_of(
        nodes, [om.value("x", [None, 3, None, 64])], [om.value("y", None)], constants, opset, False
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.ir_version = 10
    feeds = {"x": g.standard_normal((2, 3, 5, 64)).astype(np.float32)}
    want = om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")["y"]
    model = Model(proto, num_threads=1, fuse=fuse)
    for _ in range(3):
        got = model.run(None, feeds)[0]
        # a step of 1e-4 where a float sum has other last bits; int8 in between moves it by tens of steps
        assert np.abs(got - want).max() <= (1.1e-4 if fuse else 0)
    owners = {r.runs_on for r in model.profile if r.op.split(":")[-1] == "QuantizeLinear"}
    assert owners == {"onnxruntime" if fuse else "lowgemm"}


def test_why_onnxruntime_refuses_a_node_is_said():
    """No other engine knows its own operators."""
    peers.need("onnxruntime")
    node = helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node], "g", [om.value("a", [None, None]), om.value("b", [None, None])], [om.value("y", None)]
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = Model(helper.make_model(graph, opset_imports=sets, ir_version=8))
    model._program.steps[0].nodes[0].attribute.append(helper.make_attribute("nonsense", 1))
    a = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"FusedMatMul.*nonsense"):
        model.run(None, {"a": a, "b": a})
