"""Chains of float operators beside onnxruntime's run of the model as written, bit for bit; and what is no
chain.
"""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om
from onnx import helper as h
from onnx_models import one_by_one

from lowgemm.compat import onnx as ox
from lowgemm.onnx_run import Model, chain_groups


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def conv_then(nodes, outputs, constants, channels=5, more=()):
    """A model of a dynamically quantized convolution of `x` to `c`, and what follows."""
    g = np.random.default_rng(7)
    made = {
        "w": g.integers(0, 256, (channels, 3, 3, 3), dtype=np.uint8), "wz": np.uint8(120),
        "ws": np.float32(0.02), **constants,
    }  # fmt: skip
    head = om.dynamic_convolution("x", "w", pads=[1, 1, 1, 1])
    info = onnx.helper.make_tensor_value_info
    inputs = [info("x", 1, [None, 3, None, None]), *(info(n, 1, None) for n in more)]
    graph = h.make_graph(
        head + nodes, "g", inputs, [info(o, 1, None) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in made.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def compared(model, feeds, kinds=True, threads=1):
    """Ours equals onnxruntime's of the model as written; the model."""
    ours, want = Model(model, num_threads=threads), om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
    for _ in range(4):  # the third and later ones have fixed places
        for t, got in zip(ours.outputs, ours.run(None, feeds), strict=True):
            np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
    if kinds:
        assert not any(r.runs_on == "onnxruntime" for r in ours.profile), ours.profile
    return ours


def drawn(g, nodes, channels):
    """Random operators on `c` and what they make; constants; names of all values."""
    values, constants = ["c"], {}
    made = []
    for i in range(nodes):
        kind, out = (
            g.choice(
                [
                    "Add",
                    "Sub",
                    "Mul",
                    "Div",
                    "PRelu",
                    "Relu",
                    "LeakyRelu",
                    "HardSigmoid",
                    "HardSwish",
                    "Clip",
                    "Sigmoid",
                    "Tanh",
                    "Erf",
                    "Pow",
                    "Sqrt",
                ]
            ),
            f"v{i}",
        )
        first = str(g.choice(values))
        if kind in ("Add", "Sub", "Mul", "Div"):
            which = g.integers(4)
            if which == 0:
                second = str(g.choice(values))
            else:
                shape = [(), (1, channels, 1, 1), (channels, 1, 1), (1,)][g.integers(4)]
                second = f"k{i}"
                constants[second] = (g.standard_normal(shape) + np.float32(0.1)).astype(np.float32)
            both = [first, second]
            g.shuffle(both)
            made.append(h.make_node(kind, both, [out]))
        elif kind == "PRelu":
            shape = [(1,), (channels, 1, 1), (1, channels, 1, 1)][g.integers(3)]
            constants[f"k{i}"] = g.standard_normal(shape).astype(np.float32)
            made.append(h.make_node(kind, [first, f"k{i}"], [out]))
        elif kind == "Pow":
            constants[f"k{i}"] = np.full([(), (1,)][g.integers(2)], g.integers(2, 4), np.float32)
            made.append(h.make_node(kind, [first, f"k{i}"], [out]))
        elif kind == "Clip":
            constants[f"l{i}"], constants[f"h{i}"] = np.float32(-g.random()), np.float32(g.random() * 6)
            made.append(h.make_node(kind, [first, f"l{i}", f"h{i}"], [out]))
        else:
            made.append(h.make_node(kind, [first], [out]))
        values.append(out)
    return made, constants, values


@pytest.mark.parametrize("seed", range(12))
def test_random_chains(seed, threads):
    """Any graph of these operators, several outputs, operands of one number, one a channel and all,
    infinities and NaN.
    """
    g = np.random.default_rng(seed)
    channels = int(g.integers(1, 20))
    nodes, constants, values = drawn(g, int(g.integers(1, 12)), channels)
    outputs = [values[-1], *(str(v) for v in g.choice(values[1:], 1) if v != values[-1])]
    model = conv_then(nodes, outputs, constants, channels)
    for size in ((1, 7), (24, 31)):
        x = g.standard_normal((int(g.integers(1, 3)), 3, *size)).astype(np.float32)
        # zero divided by zero is a NaN of any sign, which `assert_array_equal` takes for one
        compared(model, {"x": x}, threads=threads)


def product_then(nodes, outputs, constants, columns, axes, more=()):
    """A model of a dynamically quantized product of `x` to `c`, and what follows."""
    g = np.random.default_rng(8)
    made = {
        "w": g.integers(0, 256, (7, columns), dtype=np.uint8),
        "wz": np.uint8(120),
        "ws": np.float32(0.02),
        **constants,
    }
    head = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["sums"]),
        h.make_node("Cast", ["sums"], ["real"], to=1), h.make_node("Mul", ["s", "ws"], ["scale"]),
        h.make_node("Mul", ["real", "scale"], ["c"]),
    ]  # fmt: skip
    info = onnx.helper.make_tensor_value_info
    graph = h.make_graph(
        head + nodes, "g", [info("x", 1, [None] * axes), *(info(n, 1, None) for n in more)],
        [info(o, 1, None) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in made.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("columns", [1, 5, 16, 48, 700, 1500])
@pytest.mark.parametrize("axes", [2, 3])
def test_columns(columns, axes, threads):
    """Operands of one number a column, of few and of more columns than a block has; quantized again at the
    end.
    """
    g = np.random.default_rng(columns)
    constants = {
        "a": g.standard_normal(columns).astype(np.float32),
        "b": g.standard_normal((1,) * (axes - 1) + (columns,)).astype(np.float32),
        "half": np.float32(0.5), "w2": g.integers(0, 256, (columns, 3), dtype=np.uint8),
    }  # fmt: skip
    nodes = [
        h.make_node("Mul", ["c", "a"], ["m"]), h.make_node("Erf", ["m"], ["e"]),
        h.make_node("Sub", ["b", "e"], ["d"]), h.make_node("Mul", ["d", "half"], ["y"]),
        h.make_node("DynamicQuantizeLinear", ["y"], ["q2", "s2", "z2"]),
        h.make_node("MatMulInteger", ["q2", "w2", "z2", "wz"], ["i2"]),
        h.make_node("Cast", ["i2"], ["r2"], to=1),
        h.make_node("Mul", ["s2", "ws"], ["t2"]), h.make_node("Mul", ["r2", "t2"], ["last"]),
    ]  # fmt: skip
    for outputs in (["last"], ["last", "y", "c"]):
        model = product_then(nodes, outputs, constants, columns, axes)
        for rows in (1, 9):
            x = g.standard_normal((*(2,) * (axes - 2), rows, 7)).astype(np.float32)
            ours = compared(model, {"x": x}, threads=threads)
        assert "lowgemm::QuantizeInRange" in {r.op for r in ours.profile}


def test_rows_and_columns_at_once(threads):
    """One operand a row, and one a channel and one a column."""
    constants = {
        "a": np.float32([[1], [-2], [3], [0.5]]),
        "b": np.arange(5, dtype=np.float32),
        "k": np.arange(8, dtype=np.float32).reshape(2, 4, 1),
    }
    x = np.random.default_rng(9).standard_normal((2, 4, 7)).astype(np.float32)
    for names in (("a",), ("a", "b"), ("k", "b"), ("b", "a", "k")):
        nodes, now = [], "c"
        for n in names:
            nodes.append(h.make_node("Add", [now, n], [f"{n}{now}"]))
            now = f"{n}{now}"
        compared(product_then(nodes, [now], constants, 5, 3), {"x": x}, threads=threads)


@pytest.mark.parametrize("seed", range(40))
def test_any_way_of_repeating(seed, threads):
    """Operands with any axes of 1, of fewer axes, some of which make the result larger, and constants."""
    g = np.random.default_rng(seed)
    nodes, constants, feeds, now = [], {}, {}, "c"
    full = (
        int(g.integers(1, 4)),
        int(g.choice([1, 3, 6])),
        int(g.choice([1, 5, 40])),
        int(g.choice([1, 9, 700])),
    )
    for i in range(int(g.integers(1, 5))):
        first = int(g.integers(5))
        shape = tuple(n if g.random() < 0.6 else 1 for n in full[first:])
        held = g.standard_normal(shape).astype(np.float32)
        (constants if i % 2 else feeds)[f"k{i}"] = held
        both = [now, f"k{i}"]
        g.shuffle(both)
        nodes.append(h.make_node(str(g.choice(["Add", "Sub", "Mul"])), both, [f"v{i}"]))
        now = f"v{i}"
    nodes.append(h.make_node("Relu", [now], ["y"]))
    feeds["x"] = g.standard_normal((*full[:3], 7)).astype(np.float32)
    model = product_then(nodes, ["y"], constants, full[3], 4, more=[n for n in feeds if n != "x"])
    compared(model, feeds, threads=threads)


@pytest.mark.parametrize("hidden", [3, 64, 300])
def test_additive_attention(hidden, threads):
    """Two products against one another, their tanh, and a quantizer behind it: a recording of its own."""
    g = np.random.default_rng(hidden)
    constants = {
        "first": np.array([2]), "second": np.array([1]), "w2": g.integers(0, 256, (hidden, 1), dtype=np.uint8),
        "u": g.integers(0, 256, (7, hidden), dtype=np.uint8),
    }  # fmt: skip
    nodes = [
        h.make_node("MatMulInteger", ["q", "u", "z", "wz"], ["other sums"]),
        h.make_node("Cast", ["other sums"], ["other real"], to=1),
        h.make_node("Mul", ["other real", "scale"], ["d"]),
        h.make_node("Unsqueeze", ["c", "first"], ["c2"]), h.make_node("Unsqueeze", ["d", "second"], ["d2"]),
        h.make_node("Add", ["c2", "d2"], ["sum"]), h.make_node("Tanh", ["sum"], ["t"]),
        h.make_node("DynamicQuantizeLinear", ["t"], ["q2", "s2", "z2"]),
        h.make_node("MatMulInteger", ["q2", "w2", "z2", "wz"], ["i2"]),
        h.make_node("Cast", ["i2"], ["r2"], to=1),
        h.make_node("Mul", ["s2", "ws"], ["t2"]), h.make_node("Mul", ["r2", "t2"], ["y"]),
    ]  # fmt: skip
    model = product_then(nodes, ["y"], constants, hidden, 3)
    for shape in ((1, 9, 7), (2, 30, 7), (1, 1, 7)):
        x = g.standard_normal(shape).astype(np.float32)
        ours = compared(model, {"x": x}, threads=threads)
    assert "lowgemm::QuantizeInRange" in {r.op for r in ours.profile}


@pytest.mark.parametrize("value", [1e9, -1e9, np.nan, np.inf, -np.inf])
def test_what_is_not_finite(value, threads):
    """The range that a chain notes is infinite then, or none. Where NaN is among other numbers, onnxruntime's
    range depends on their places; ours does not.
    """
    nodes, constants = [h.make_node("Mul", ["c", "k"], ["y"])], {"k": np.float32(3e38)}
    nodes += [
        h.make_node("DynamicQuantizeLinear", ["y"], ["q2", "s2", "z2"]),
        h.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["r"]),
    ]  # fmt: skip
    x = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)
    x[0, 0, 3, 3] = value
    model, feeds = conv_then(nodes, ["y", "r"], constants), {"x": x}
    want, ours = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL"), Model(model, num_threads=threads)
    missing = np.isnan(want["y"])
    if missing.any() and not missing.all():
        with np.errstate(invalid="ignore"):
            want["r"] = ox.dequantize_linear(*ox.dynamic_quantize_linear(want["y"]))
    for _ in range(2):
        for got, name in zip(ours.run(None, feeds), ["y", "r"], strict=True):
            np.testing.assert_array_equal(got, want[name], err_msg=name)


def test_a_product_and_a_convolution():
    """One has its channels last in memory, the other second; the sum lies in the memory of one of them."""
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["beside"], ["q3", "s3", "z3"]),
        h.make_node("MatMulInteger", ["q3", "w3", "z3", "wz"], ["i3"]),
        h.make_node("Cast", ["i3"], ["r3"], to=1),
        h.make_node("Mul", ["s3", "ws"], ["t3"]), h.make_node("Mul", ["r3", "t3"], ["c3"]),
    ]  # fmt: skip
    g = np.random.default_rng(10)
    constants = {"w3": g.integers(0, 256, (7, 12), dtype=np.uint8)}
    ends = [
        [h.make_node("Add", ["c3", "c"], ["y"])],
        [h.make_node("Sub", ["c3", "c"], ["v"]), h.make_node("Mul", ["v", "c"], ["u"]),
         h.make_node("Add", ["u", "v"], ["y"])],
        [h.make_node("Mul", ["c", "c"], ["v"]), h.make_node("Relu", ["c3"], ["u"]),
         h.make_node("Add", ["v", "u"], ["y"])],
    ]  # fmt: skip
    for more in ends:
        for outputs in ({"y"}, {"y", "v"}, {"y", "u"}):
            made = [n.output[0] for n in more if n.output[0] in outputs]
            model = conv_then(nodes + more, made, constants, more=("beside",))
            feeds = {"x": g.standard_normal((2, 3, 9, 12)), "beside": g.standard_normal((2, 5, 9, 7))}
            compared(model, {n: v.astype(np.float32) for n, v in feeds.items()})


@pytest.mark.parametrize("groups", [1, 5])
def test_chains_on_sums(groups):
    """Images of several sizes after each other: plans of each; one pixel, where both orders of memory are the
    same.
    """
    nodes = [h.make_node("PRelu", ["c", "p"], ["r"]), h.make_node("Add", ["r", "c"], ["y"])]
    model = conv_then(nodes, ["y"], {"p": np.float32([[[0.1]], [[-0.2]], [[0.3]], [[2]], [[0]]])})
    ours, g = Model(model), np.random.default_rng(groups)
    for size in ((1, 1), (3, 4), (30, 41), (1, 1)):
        x = g.standard_normal((groups, 3, *size)).astype(np.float32)
        want = om.onnxruntime_run(model, {"x": x}, "ORT_DISABLE_ALL")["y"]
        np.testing.assert_array_equal(ours.run(None, {"x": x})[0], want)


def test_gate():
    """A gate of one number a channel that comes from elsewhere, and a residual sum."""
    nodes = [
        h.make_node("Mul", ["c", "gate"], ["m"]), h.make_node("Add", ["m", "beside"], ["y"]),
        h.make_node("Relu", ["y"], ["r"]),
    ]  # fmt: skip
    model = conv_then(nodes, ["r"], {}, more=("gate", "beside"))
    g = np.random.default_rng(1)
    x = g.standard_normal((2, 3, 9, 9)).astype(np.float32)
    for shape in ((1, 5, 1, 1), (2, 5, 1, 1), (2, 5, 9, 9), (1, 1, 1, 1), (1,)):
        feeds = {"x": x, "gate": g.random(shape, np.float32), "beside": g.random((2, 5, 9, 9), np.float32)}
        compared(model, feeds)


@pytest.mark.parametrize("shape", [(2, 1, 9, 9), (9,), (9, 9), (1, 9, 1)])
def test_images_and_other_operands(shape, threads):
    """Of images with their channels last in memory: operands that are repeated along these."""
    model = conv_then(
        [h.make_node("Mul", ["c", "gate"], ["m"]), h.make_node("Relu", ["m"], ["r"])],
        ["r"],
        {},
        more=("gate",),
    )
    g = np.random.default_rng(2)
    x = g.standard_normal((2, 3, 9, 9)).astype(np.float32)
    compared(model, {"x": x, "gate": g.standard_normal(shape).astype(np.float32)}, threads=threads)


@pytest.mark.parametrize("shape", [(1, 5, 9, 9), (1, 2, 5, 9, 9), (3, 2, 5, 9, 9)])
def test_other_shapes_run_in_the_engine(shape):
    """Operands that lie in another order, and those with more axes than the images."""
    model = conv_then(
        [h.make_node("Mul", ["c", "gate"], ["m"]), h.make_node("Relu", ["m"], ["r"])],
        ["r"],
        {},
        more=("gate",),
    )
    g = np.random.default_rng(2)
    x = g.standard_normal((2, 3, 9, 9)).astype(np.float32)
    ours = compared(model, {"x": x, "gate": g.standard_normal(shape).astype(np.float32)}, kinds=False)
    assert any(r.runs_on == "onnxruntime" for r in ours.profile)


def test_inputs_are_not_changed():
    """Results lie in the memory of what nothing reads later, and of nothing else."""
    nodes = [
        h.make_node("Add", ["c", "beside"], ["a"]),
        h.make_node("Mul", ["a", "c"], ["b"]),
        h.make_node("Sub", ["b", "beside"], ["y"]),
    ]
    model = conv_then(nodes, ["y", "a", "c"], {}, more=("beside",))
    g = np.random.default_rng(3)
    beside = g.random((1, 5, 40, 40), np.float32)
    kept = beside.copy()
    compared(model, {"x": g.standard_normal((1, 3, 40, 40)).astype(np.float32), "beside": beside})
    np.testing.assert_array_equal(beside, kept)


def test_a_chain_does_not_wait_for_itself():
    """What depends on a chain by way of another node is no part of it."""
    nodes = [
        h.make_node("Relu", ["c"], ["r"]), h.make_node("Exp", ["r"], ["g"]),
        h.make_node("Mul", ["r", "g"], ["m"]), h.make_node("Add", ["m", "r"], ["y"]),
    ]  # fmt: skip
    model = conv_then(nodes, ["y"], {})
    found = chain_groups.find(model.graph.node, {}, {"c"}, {"c"}, {"y"})
    assert [[n.op_type for n in c.nodes] for c in found] == [["Relu"]]
    compared(
        model, {"x": np.random.default_rng(4).standard_normal((1, 3, 6, 6)).astype(np.float32)}, kinds=False
    )


def test_chains_do_not_wait_for_each_other():
    """Two chains, each of which could go on with what lies behind the other: one of them does."""
    nodes = [
        h.make_node("Relu", ["c"], ["a"]), h.make_node("Exp", ["a"], ["v"]),
        h.make_node("Neg", ["x"], ["x2"]),
        *om.dynamic_convolution("x2", "w", 2, pads=[1, 1, 1, 1]), h.make_node("Relu", ["c2"], ["b"]),
        h.make_node("Exp", ["b"], ["u"]),
        h.make_node("Add", ["a", "u"], ["m"]), h.make_node("Add", ["b", "v"], ["n"]),
        h.make_node("Sub", ["m", "n"], ["y"]),
    ]  # fmt: skip
    x = np.random.default_rng(6).standard_normal((1, 3, 6, 6)).astype(np.float32)
    compared(conv_then(nodes, ["y"], {}), {"x": x}, kinds=False)


def test_integers_are_no_chain():
    """Sums of other types are left to the engine."""
    nodes = [
        h.make_node("Shape", ["c"], ["n"]),
        h.make_node("Add", ["n", "n"], ["two"]),
        h.make_node("Cast", ["two"], ["y"], to=1),
    ]
    model = conv_then(nodes, ["y"], {})
    compared(model, {"x": np.ones((1, 3, 6, 6), np.float32)}, kinds=False)


def test_casts_that_change_nothing():
    """Of float32 to float32: gone, unless the graph's caller or a subgraph reads it, or its type is not
    known.
    """
    cast = [h.make_node("Cast", [n], [f"{n}2"], to=1) for n in ("c", "sum", "x", "whole", "given")]
    nodes = [
        cast[0], h.make_node("Add", ["k", "c2"], ["sum"]), cast[1], h.make_node("Relu", ["sum2"], ["y"]),
        cast[2], h.make_node("Shape", ["y"], ["whole"]), cast[3], h.make_node("Mul", ["y", "k"], ["given"]), cast[4],
        h.make_node("Tanh", ["c2"], ["t"]),
    ]  # fmt: skip
    kept = chain_groups.without_casts(nodes, {"c"}, {"given2"})
    assert [(n.op_type, *n.input) for n in kept] == [
        ("Add", "k", "c"), ("Relu", "sum"), ("Cast", "x"), ("Shape", "y"), ("Cast", "whole"), ("Mul", "y", "k"),
        ("Cast", "given"), ("Tanh", "c"),
    ]  # fmt: skip
    assert list(nodes[1].input) == ["k", "c2"]
    branch = h.make_graph(
        [h.make_node("Relu", ["c2"], ["r"])], "b", [], [h.make_tensor_value_info("r", 1, None)]
    )
    nodes = [cast[0], h.make_node("If", ["when"], ["y"], then_branch=branch, else_branch=branch)]
    assert len(chain_groups.without_casts(nodes, {"c"}, set())) == 2


def test_chains_that_meet_are_one(threads):
    """Half of a product, and a gate of it by another: one chain, unless what joins them is read elsewhere
    too, or one of them waits for the other by way of another node.
    """
    more = [
        h.make_node("MatMulInteger", ["q", "u", "z", "wz"], ["i2"]), h.make_node("Cast", ["i2"], ["r2"], to=1),
        h.make_node("Mul", ["r2", "scale"], ["d"]),
    ]  # fmt: skip
    constants = {
        "u": np.random.default_rng(1).integers(0, 256, (7, 40), dtype=np.uint8),
        "half": np.float32(0.5),
    }
    gate = [h.make_node("Mul", ["c", "half"], ["a"]), h.make_node("Tanh", ["d"], ["t"])]
    through = [h.make_node("Mul", ["c", "half"], ["a"]), h.make_node("Exp", ["a"], ["e"]),
               h.make_node("Tanh", ["d"], ["t0"]), h.make_node("Add", ["t0", "e"], ["t"])]  # fmt: skip
    last = h.make_node("Add", ["t", "a"], ["y"])
    x = np.random.default_rng(2).standard_normal((3, 5, 7)).astype(np.float32)
    for nodes, outputs, sizes in (
        ([*gate, last], ["y"], [3]),
        ([*gate[::-1], last], ["y"], [3]),
        ([*gate, last], ["y", "a"], [1, 2]),
        ([*gate, last, h.make_node("Exp", ["a"], ["e"])], ["y", "e"], [1, 2]),
        ([*through, last], ["y"], [1, 3]),
    ):
        model = product_then(more + nodes, outputs, constants, 40, 3)
        found = chain_groups.find(list(model.graph.node), constants, {"c", "d"}, {"c", "d"}, set(outputs))
        assert sorted(len(c.nodes) for c in found) == sizes
        compared(model, {"x": x}, kinds="e" not in outputs and nodes[1].op_type != "Exp", threads=threads)


@pytest.mark.parametrize("zeros", [np.uint8(120), np.uint8([3, 0, 200, 255, 7])], ids=["one", "each"])
@pytest.mark.parametrize("scales", [np.float32(0.02), np.float32([0.5, 1, 2, 0.1, 3])], ids=["one", "each"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 9, 5000])
def test_sums_become_floats_in_the_chain(zeros, scales, bias, rows, threads):
    """Of products with zero points and scales for all or for each column, and a bias; one number a row of
    5,000 short rows is another engine's chain, on sums that lowgemm scales.
    """
    g = np.random.default_rng(rows)
    constants = {"wz": zeros, "ws": scales, "b": g.standard_normal(5).astype(np.float32)}
    nodes = [h.make_node("Add", ["c", "b"], ["c2"])] if bias else []
    data = "c2" if bias else "c"
    nodes += [
        h.make_node("Tanh", [data], ["t"]), h.make_node("Mul", ["t", "gate"], ["m"]),
        h.make_node("Add", ["m", data], ["y"]),
    ]  # fmt: skip
    for outputs in (["y"], ["y", data]):
        model = product_then(nodes, outputs, constants, 5, 2, more=["gate"])
        feeds = {"x": g.standard_normal((rows, 7)), "gate": g.standard_normal((rows, 1))}
        ours = compared(
            model, {n: v.astype(np.float32) for n, v in feeds.items()}, kinds=rows < 5000, threads=threads
        )
        assert "lowgemm::MatMulSums" in {r.op for r in ours.profile}


@pytest.mark.parametrize("kinds", [("u1", "u1"), ("i1", "u1"), ("u1", "i1")])
@pytest.mark.parametrize("small", [(1, 1), (5, 1), (1, 24), (1,), ()])
def test_bytes_that_are_repeated_become_floats_first(kinds, small, threads):
    """A normalization that is quantized part by part divides by a number a row, which comes as a byte."""
    g = np.random.default_rng(7)
    one = np.float32(0.05)
    constants = {"s": one, "t": np.float32(0.02)} | {
        f"z{i}": np.array(3, kind) for i, kind in enumerate(kinds)
    }
    h, nodes = onnx.helper.make_node, []
    for n, zero in (("a", "z0"), ("b", "z1")):
        nodes.append(h("DequantizeLinear", [n, "s", zero], [f"{n}r"]))
    nodes += [
        h("Sqrt", ["br"], ["root"]), h("Div", ["ar", "root"], ["d"]), h("Sub", ["d", "c"], ["e"]),
        h("QuantizeLinear", ["e", "t", "z0"], ["y"]),
    ]  # fmt: skip
    made = {n: onnx.helper.np_dtype_to_tensor_dtype(np.dtype(k)) for n, k in zip("ab", kinds, strict=True)}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [*(info(n, k, None) for n, k in made.items()), info("c", 1, None)],
        [onnx.ValueInfoProto(name="y")], [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    model = Model(proto, num_threads=threads)
    feeds = {
        "a": g.integers(-128 if kinds[0] == "i1" else 0, 127, (5, 24)).astype(kinds[0]),
        "b": g.integers(4, 127, small).astype(kinds[1]),
        "c": g.standard_normal((5, 24)).astype(np.float32),
    }
    want = Model(proto, fuse=False).run(None, feeds)
    for _ in range(4):
        np.testing.assert_array_equal(model.run(None, feeds)[0], want[0])
        np.testing.assert_array_equal(one_by_one(model, None, feeds)[0], want[0])
    found = [f for known in model._program._frames._known.values() if type(known) is list for f in known]
    assert [type(u).__name__ for f in found for u in f.units] == ["_Taped"]


def normalized(g, channels, name="c", out="y", **attributes):
    """A BatchNormalization of `name`, and its constants."""
    constants = {
        "bs": g.standard_normal(channels), "bb": 10 * g.standard_normal(channels),
        "bm": g.standard_normal(channels), "bv": g.random(channels) * 10.0 ** g.integers(-6, 6, channels),
    }  # fmt: skip
    node = h.make_node("BatchNormalization", [name, *constants], [out], **attributes)
    return node, {n: v.astype(np.float32) for n, v in constants.items()}


@pytest.mark.parametrize("seed", range(12))
def test_batch_normalization(seed, threads):
    """Of images, rows and matrices of rows, whose second axis has the channels; and of what is not finite."""
    g = np.random.default_rng(seed)
    channels, axes = int(g.integers(1, 40)), seed % 3 + 2
    node, constants = normalized(g, channels, epsilon=float(10.0 ** -g.integers(1, 6)))
    nodes = [
        node, h.make_node("Relu", ["y"], ["r"]), h.make_node("DynamicQuantizeLinear", ["r"], ["q2", "s2", "z2"]),
        h.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["last"]),
    ]  # fmt: skip
    for size in (1, 17):
        if axes == 4:
            model = conv_then(nodes, ["last", "y"], constants, channels)
            x = g.standard_normal((2, 3, size, size)).astype(np.float32)
        else:
            columns = channels if axes == 2 else int(g.integers(1, 40))
            model = product_then(nodes, ["last", "y"], constants, columns, axes)
            x = g.standard_normal((size, *(channels,) * (axes - 2), 7)).astype(np.float32)
        ours = compared(model, {"x": x}, threads=threads)
        assert {r.runs_on for r in ours.profile if r.op == "BatchNormalization"} == {"lowgemm"}
        x.reshape(-1)[0] = g.choice([np.inf, np.nan, 3e38])
        compared(model, {"x": x}, threads=threads)


def test_batch_normalization_that_is_not_for_a_chain():
    """Numbers that are no constants, training, and another number of channels, which is an error."""
    g = np.random.default_rng(0)
    node, constants = normalized(g, 5)
    x = g.standard_normal((2, 3, 6, 6)).astype(np.float32)
    mean = constants.pop("bm")
    model = conv_then([node], ["y"], constants, more=["bm"])
    ours = compared(model, {"x": x, "bm": mean}, kinds=False)
    assert {r.runs_on for r in ours.profile if r.op == "BatchNormalization"} == {"onnxruntime"}
    node, constants = normalized(g, 4)
    for channels in (1, 5):
        with pytest.raises(ValueError, match="BatchNormalization"):
            Model(conv_then([node], ["y"], constants, channels)).run(None, {"x": x})
    for more in ({"training_mode": 1}, {"is_test": 0}, {"spatial": 0}):
        node, constants = normalized(g, 5, **more)
        assert chain_groups.factors_of(node, constants) is None
