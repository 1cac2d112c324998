"""`Model` and `python -m lowgemm run`: inputs, outputs, and what is said about bad ones."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
import peers
from onnx import TensorProto as T
from onnx import helper

from lowgemm.__main__ import main
from lowgemm.onnx_run import Model, UnsupportedOperator

UINT8, INT32 = T.UINT8, T.INT32


def product(checked=True, op="MatMulInteger", domain="", **more):
    """x (named batch, 3) @ w, w constant."""
    w = np.arange(-3, 3, dtype=np.int8).reshape(3, 2)
    node = helper.make_node(op, ["x", "w"], ["y"], domain=domain, **more)
    return om.model_of(
        [node],
        [om.value("x", ["batch", 3], UINT8)],
        [om.value("y", ["batch", 2], INT32)],
        {"w": w},
        checked=checked,
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(product(), path)
    return str(path)


def test_command(file, tmp_path, capsys):
    x = np.arange(12, dtype=np.uint8).reshape(4, 3)
    right = x.astype(int) @ np.arange(-3, 3).reshape(3, 2)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    out = str(tmp_path / "y.npz")
    for given in (f"x={tmp_path}/x.npy", f"{tmp_path}/x.npy", f"{tmp_path}/x.npz", f"x={tmp_path}/x.npz"):
        assert main(["run", file, "--input", given, "--output", out]) == 0
        np.testing.assert_array_equal(np.load(out)["y"], right)
    text = capsys.readouterr().out
    for part in ("x: uint8, (4, 3)", "y: int32, (4, 2)", "MatMulInteger", "lowgemm", "median of 1"):
        assert part in text
    assert main(["run", file, "--random", "--dim", "batch=7", "--repeat", "0"]) == 0
    assert "y: int32, (7, 2)" in capsys.readouterr().out


def test_compare(file, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `test`)")
    assert main(["run", file, "--random", "--dim", "batch=4", "--compare"]) == 0
    text = capsys.readouterr().out
    assert text.count("0 of 8") == 2 and "as written" in text and "optimized" in text and "share" in text
    from lowgemm.onnx_run import Model

    right = Model.run
    monkeypatch.setattr(Model, "run", lambda *a, **k: [y + 3 for y in right(*a, **k)])
    assert main(["run", file, "--random", "--dim", "batch=4", "--compare"]) == 0
    assert capsys.readouterr().out.count("8 of 8") == 2


def test_command_errors(file, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    np.save(tmp_path / "wide.npy", np.zeros((1, 4), np.uint8))
    np.save(tmp_path / "float.npy", np.zeros((1, 3)))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    onnx.save(product(False, "Nonesuch", "org.example"), tmp_path / "unknown.onnx")

    def said(*arguments):
        assert main(["run", *arguments]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") <= 3, text
        return text

    assert "expected an ONNX model" in said(str(tmp_path / "text.onnx"))
    assert "expected an ONNX model" in said(str(tmp_path / "empty.onnx"))
    assert "none.onnx" in said(str(tmp_path / "none.onnx"))
    assert "directory" in said(str(tmp_path))
    assert "org.example::Nonesuch (1 node)" in said(str(tmp_path / "unknown.onnx"), "--random")
    assert "inputs missing: x; pass --input" in said(file)
    assert "bad.npy" in said(file, "--input", str(tmp_path / "bad.npy"))
    assert "npz file" in said(file, "--input", str(tmp_path / "bad.npz"))
    assert "objects.npy" in said(file, "--input", str(tmp_path / "objects.npy"))
    assert "x: expected shape ('batch', 3), got (1, 4)" in said(file, "--input", f"x={tmp_path}/wide.npy")
    assert "x: expected dtype uint8, got float64" in said(file, "--input", f"x={tmp_path}/float.npy")
    assert "--input: the model has no input 'z'; it has x" in said(
        file, "--random", "--input", f"z={tmp_path}/float.npy"
    )
    assert "--dim: the model has no named axis 'foo'; it has batch" in said(
        file, "--random", "--dim", "foo=3"
    )
    assert "--dim: expected NAME=SIZE" in said(file, "--random", "--dim", "batch")
    assert "bytes; pass --input" in said(file, "--random", "--dim", "batch=99999999999")
    assert "--repeat" in said(file, "--random", "--repeat", "-1")
    assert "num_threads: expected at least 1" in said(file, "--random", "--threads", "0")
    assert "--output" in said(file, "--random", "--output", str(tmp_path / "no" / "y.npz"))


def test_unknown_operators_are_all_named():
    nodes = [
        helper.make_node("Sofmax", ["x"], ["a"]),
        helper.make_node("Nonesuch", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("Nonesuch", ["b"], ["y"], domain="com.microsoft"),
    ]
    model = om.model_of(nodes, [om.value("x", [2])], [om.value("y", None)], {}, checked=False)
    with pytest.raises(
        UnsupportedOperator, match=r"ai.onnx::Sofmax \(1 node\), com.microsoft::Nonesuch \(2 nodes\)"
    ):
        Model(model)


def test_operand_errors_keep_their_message():
    w = np.zeros((4, 2), np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    model = Model(
        om.model_of(
            [node], [om.value("x", None, UINT8)], [om.value("y", None, INT32)], {"w": w}, checked=False
        )
    )
    with pytest.raises(ValueError, match=r"^MatMulInteger, output y: rhs: expected depth 3"):
        model.run({"x": np.zeros((2, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"^feeds: expected x; missing x; unknown z"):
        model.run({"z": np.zeros(3)})
    with pytest.raises(ValueError, match=r"^outputs: "):
        model.run({"x": np.zeros((2, 4), np.uint8)}, ["none"])
    for bad in (3, None, b"junk"):
        with pytest.raises((TypeError, ValueError), match=r"^source: expected"):
            Model(bad)
    with pytest.raises(ValueError, match=r"^rounding: "):
        Model(product(), rounding="up")
    with pytest.raises(TypeError, match=r"^fuse: "):
        Model(product(), fuse=1)
    with pytest.raises(TypeError, match="fuse: expected a bool"):
        Model(product(), fuse=np.zeros((2, 2)))  # whose truth is no question to ask first


def test_both_orders_of_run():
    """onnxruntime's and onnx.reference's order, and the one that dicts allow; by position and by name."""
    from onnx.reference import ReferenceEvaluator

    proto = product()
    model, x = Model(proto), np.array([[1, 2, 3]], np.uint8)
    right = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    feed = {"x": x}
    calls = [
        model.run(None, feed), model.run(["y"], feed), model.run(("y",), feed), model.run(feed),
        model.run(feed, ["y"]),
        model.run(feed, None), model.run(input_feed=feed), model.run(output_names=["y"], input_feed=feed),
        model.run(feeds=feed), model.run(feeds=feed, outputs=["y"]), model.run(feed, outputs=["y"]),
        model.run(["y"], feeds=feed), model.timed(None, feed), model.timed(feed), model.timed(feeds=feed),
    ]  # fmt: skip
    for got in calls:
        assert len(got) == 1
        np.testing.assert_array_equal(got[0], right)
    assert model.run([], feed) == []
    for call, error, text in (
        (lambda: model.run(), TypeError, "input_feed: expected a dict of arrays by name, got NoneType"),
        (lambda: model.run(["y"], [x]), TypeError, "input_feed: expected a dict of arrays by name, got list"),
        (lambda: model.run(None, {"z": x}), ValueError, "input_feed: expected x; missing x; unknown z"),
        (lambda: model.run("y", feed), TypeError, "output_names: expected a list of names or None, got 'y'"),
        (lambda: model.run([0], feed), TypeError, "output_names: expected a list of names"),
        (lambda: model.run(3, feed), TypeError, "output_names: expected a list of names"),
        (lambda: model.run(["n"], feed), ValueError, "output_names: expected names of outputs, got n"),
        (lambda: model.run(feed, feed), TypeError, "output_names, input_feed: expected names and one dict"),
        (lambda: model.run(feed, feeds=feed), TypeError, "feeds: given twice"),
        (lambda: model.run(["y"], feed, outputs=["y"]), TypeError, "outputs: given twice"),
    ):
        with pytest.raises(error, match=f"^{text}"):
            call()


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 2), (4, 1), (4, 2)])
def test_dequantized_bias_of_any_shape(shape):
    """Gemm in quantize-dequantize form: one value or one a column runs on integers, anything else in float32;
    both right.
    """
    g = np.random.default_rng(0)
    one, bias = np.float32(0.5), np.asarray(g.integers(-900, 900, shape)).astype(np.int32)
    constants = {
        "w": np.arange(-3, 3, dtype=np.int8).reshape(3, 2), "s": one, "zx": np.uint8(7), "zw": np.int8(0),
        "b": bias, "sb": one * one, "zb": np.int32(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", [*names], [f"{names[0]}f"])
        for names in (("x", "s", "zx"), ("w", "s", "zw"), ("b", "sb", "zb"))
    ]
    nodes.append(helper.make_node("Gemm", ["xf", "wf", "bf"], ["y"]))
    proto = om.model_of(nodes, [om.value("x", [4, 3], UINT8)], [om.value("y", [4, 2])], constants, 13)
    x = g.integers(0, 256, (4, 3), dtype=np.uint8)
    model = Model(proto)
    assert sum(model.rewritten.values()) == (bias.size == max(shape[-1:], default=1))
    exact = 0.25 * ((x.astype(int) - 7) @ constants["w"].astype(int) + bias)
    np.testing.assert_array_equal(model.run(None, {"x": x})[0], exact)


def test_damaged_models_are_refused_or_run():
    """Bytes flipped and cut off: ValueError or TypeError, or a model that runs; nothing else."""
    g = np.random.default_rng(0)
    whole = product().SerializeToString()
    ran = refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for i in g.integers(0, len(data), g.integers(1, 4)):
            data[i] = g.integers(0, 256)
        data = bytes(data[: g.integers(0, len(data))] if g.random() < 0.2 else data)
        try:
            model = Model(data)
            model.run({t.name: np.zeros((2, 3), t.dtype) for t in model.inputs})
            ran += 1
        except (ValueError, TypeError):
            refused += 1
    print(f"\n{ran} ran, {refused} were refused")
    assert ran and refused


def test_model_is_not_changed_and_weights_are_packed_once():
    proto = product()
    before = proto.SerializeToString()
    model = Model(proto)
    for rows in (1, 5):
        x = np.full((rows, 3), 255, np.uint8)
        np.testing.assert_array_equal(model.run({"x": x})[0], x.astype(int) @ np.arange(-3, 3).reshape(3, 2))
    assert model.state.packed_count == 1 and proto.SerializeToString() == before


def test_overridden_weights_are_not_served_from_the_pack():
    proto = product()
    proto.graph.input.append(om.value("w", [3, 2], T.INT8))
    model = Model(proto)
    x = np.ones((1, 3), np.uint8)
    np.testing.assert_array_equal(model.run({"x": x})[0], [[-3, 0]])
    np.testing.assert_array_equal(model.run({"x": x, "w": np.ones((3, 2), np.int8)})[0], [[3, 3]])
    np.testing.assert_array_equal(model.run({"x": x})[0], [[-3, 0]])


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("branch", [False, True])
def test_outputs_that_constants_decide_are_the_callers(fuse, branch):
    """What is computed once, when a model is loaded, or is a branch's own constant: a caller may write to it."""
    codes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    constants = {"codes": codes, "s": np.float32(2), "z": np.uint8(1), "same": np.ones((2, 3), np.float32)}
    node = helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["y"])
    if branch:
        tensors = [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()]
        outputs = [om.value(n, [2, 3], T.FLOAT) for n in ("y", "same")]
        graph = helper.make_graph([node], "b", [], outputs, tensors)
        node = helper.make_node("If", ["c"], ["y", "other"], then_branch=graph, else_branch=graph)
        constants = {}
    else:
        node = [node, helper.make_node("Identity", ["same"], ["other"])]
    outputs = [om.value(n, [2, 3], T.FLOAT) for n in ("y", "other")]
    nodes = node if isinstance(node, list) else [node]
    proto = om.model_of(nodes, [om.value("c", [], T.BOOL)], outputs, constants, checked=False)
    model = Model(proto, fuse=fuse)
    for _ in range(4):
        y, other = model.run({"c": np.array(True)})
        np.testing.assert_array_equal(y, 2 * (codes.astype(np.float32) - 1))
        assert (other == 1).all()
        y[...] = other[...] = 77


def test_subgraphs_use_the_same_operators():
    """MatMulInteger inside an If."""
    branches = [
        helper.make_graph(
            [helper.make_node("MatMulInteger", ["x", w], [f"r_{w}"])],
            w,
            [],
            [om.value(f"r_{w}", [1, 2], INT32)],
        )
        for w in ("v", "w")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    constants = {"v": np.ones((3, 2), np.int8), "w": np.full((3, 2), 2, np.int8)}
    proto = om.model_of(
        [node],
        [om.value("c", [], T.BOOL), om.value("x", [1, 3], UINT8)],
        [om.value("y", [1, 2], INT32)],
        constants,
        checked=False,
    )
    x = np.array([[1, 2, 3]], np.uint8)
    for flag, right in ((True, 6), (False, 12)):
        assert (Model(proto).run({"c": np.array(flag), "x": x})[0] == right).all()


@pytest.mark.parametrize("fuse", [True, False])
def test_nodes_in_any_order(fuse):
    """onnxruntime's quantizer may put an If before the node whose value its branches read."""
    branch = {
        op: helper.make_graph(
            [helper.make_node(op, ["d"], [f"r_{op}"])], op, [], [om.value(f"r_{op}", [2, 2])]
        )
        for op in ("Relu", "Neg")
    }
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branch["Relu"], else_branch=branch["Neg"]),
        helper.make_node("Mul", ["f", "s"], ["d"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=1),
    ]
    constants = {"w": np.int8([[1, -2], [3, 4]])}
    inputs, outputs = [om.value("c", [], T.BOOL), om.value("x", [2, 2])], [om.value("y", [2, 2])]
    g = np.random.default_rng(0)
    found = {}
    for order in ((0, 1, 2, 3, 4), (2, 3, 4, 1, 0), (4, 1, 0, 3, 2)):
        proto = om.model_of([nodes[i] for i in order], inputs, outputs, constants, checked=False)
        before, model = proto.SerializeToString(), Model(proto, fuse=fuse)
        for trial in range(4):
            x = g.standard_normal((2, 2)).astype(np.float32) if order[0] == 0 else found[trial][0]
            for flag in (True, False):
                y = model.run({"c": np.array(flag), "x": x})[0]
                want = found.setdefault(trial, (x, {}))[1].setdefault(flag, y)
                np.testing.assert_array_equal(y, want)
                assert (y >= 0).all() if flag else y.any()
        assert proto.SerializeToString() == before


def test_nodes_in_a_circle():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["b"])]
    proto = om.model_of(nodes, [om.value("x", [2])], [om.value("b", [2])], {}, checked=False)
    with pytest.raises(ValueError, match=r"^model: .* reads, by others, what it makes"):
        Model(proto)


@pytest.mark.parametrize("words", [np.array(["yes", "no"]), np.array(["yes", "no"], object), ["yes", "no"]])
def test_strings(words):
    """NumPy's own strings and lists of them do, as in onnxruntime."""
    peers.need("onnxruntime")
    nodes = [
        helper.make_node("LabelEncoder", ["words"], ["n"], domain="ai.onnx.ml", keys_strings=["yes", "no"],
                         values_floats=[2.0, -1.0]),
        helper.make_node("DynamicQuantizeLinear", ["n"], ["q", "s", "z"]),
    ]  # fmt: skip
    outputs = [onnx.ValueInfoProto(name=n) for n in "qs"]
    proto = om.model_of(nodes, [om.value("words", [None], T.STRING)], outputs, {}, checked=False)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    model = Model(proto)
    want = om.onnxruntime_run(proto, {"words": np.array(words, object)})
    for _ in range(4):
        for name, y in zip("qs", model.run(None, {"words": words}), strict=True):
            np.testing.assert_array_equal(y, want[name])
