"""Operators that are taken down for a tape, beside the same one by one and as the model is written, bit for
bit.
"""

from __future__ import annotations

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h
from onnx_models import one_by_one

from lowgemm.onnx_run import Model, average, contrib, tape
from lowgemm.onnx_run.state import State

MS = "com.microsoft"


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def model_of(nodes, constants, kinds, outputs=("y",)):
    """Of inputs by name: (dtype, number of axes)."""
    info = h.make_tensor_value_info
    graph = h.make_graph(
        nodes, "g",
        [info(n, h.np_dtype_to_tensor_dtype(np.dtype(t)), [None] * axes) for n, (t, axes) in kinds.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)


def recorded(model):
    """For each group of steps the parts of it that ran: (first, end, whether they are a tape)."""
    groups = [t.group for t in model._program._turns if hasattr(t, "group")]
    return [
        [(i, r.end, r.tape is not None) for i, f in enumerate(g.found) for r in f.values()] for g in groups
    ]


def compared(proto, many, threads=1, exact=True):
    """Recorded, one by one, and (`exact`) as written: the same bits. Returns the model."""
    model = Model(proto, num_threads=threads)
    plain = Model(proto, fuse=False, num_threads=1)
    for feeds in many:
        kept = {n: x.copy() for n, x in feeds.items()}
        with np.errstate(invalid="ignore"):
            want = plain.run(None, feeds) if exact else one_by_one(model, None, feeds)
            found = [
                *(model.run(None, feeds) for _ in range(4)),
                one_by_one(model, None, feeds),
            ]  # the fourth in a frame
        for got in found:
            for a, b in zip(got, want, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                np.testing.assert_array_equal(a, b)
        for n, x in feeds.items():
            np.testing.assert_array_equal(x, kept[n])
    return model


def node(op, inputs, output="y", **more):
    domain = (
        MS if (op[:7] == "QLinear" and op not in ("QLinearConv", "QLinearMatMul")) or op == "QGemm" else ""
    )
    return h.make_node(op, inputs.split(), [output], domain=domain, **more)


G = np.random.default_rng(0)
CONSTANTS = {
    "s": np.float32(0.02), "z": np.uint8(7), "w": G.integers(-128, 128, (20, 3, 3, 3)).astype(np.int8), "i": np.int8(0), "t": np.float32(1.5),
    "m": G.integers(-128, 128, (6, 5)).astype(np.int8), "v": G.random(5, np.float32) / 50, "iv": np.full(5, 3, np.int8),
    "b": G.integers(-500, 500, 5).astype(np.int32), "half": np.float32(0.7), "some": np.arange(5).astype(np.int8),
}  # fmt: skip
IMAGE, ROWS = (3, 9, 11), (6,)
#: First and second node, dtype and shape of the data without the batch.
PAIRS = {
    "convolutions": ("QLinearConv x s z w s i t z", "QLinearAdd a t z a t z half z", np.uint8, IMAGE),
    "product": ("QLinearMatMul x s z m v iv t z", "DequantizeLinear a t z", np.uint8, ROWS),
    "gemm": ("QGemm x s z m v iv b t z", "QLinearMul a t z a t z half z", np.uint8, ROWS),
    "gemm to floats": ("QGemm x s z m v iv b", "QuantizeLinear a t z", np.uint8, ROWS),
    "quantizers": ("QuantizeLinear x s z", "DequantizeLinear a t z", np.float32, IMAGE),
    "product and table": ("QLinearMatMul x s z m v iv t z", "QLinearSigmoid a t z s z", np.uint8, ROWS),
    "mean": ("QLinearConv x s z w s i t z", "QLinearGlobalAveragePool a t z s z", np.uint8, IMAGE),
    "mean of what lies channels first": ("QLinearAdd x s z x t z half z", "QLinearGlobalAveragePool a t z s z", np.uint8, IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name, threads):
    first, second, dtype, shape = PAIRS[name]
    (op, _, rest), (other, _, more) = first.partition(" "), second.partition(" ")
    proto = model_of([node(op, rest, "a"), node(other, more)], CONSTANTS, {"x": (dtype, 1 + len(shape))})
    g = np.random.default_rng(1)

    def draw(n):
        return (
            g.integers(0, 256, (n, *shape), dtype=np.uint8)
            if dtype == np.uint8
            else g.standard_normal((n, *shape)).astype(np.float32)
        )

    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(draw(3), 1, -1)), -1, 1)
    model = compared(
        proto, [{"x": x} for x in (draw(2), draw(300), draw(2), last)], threads, exact=op != "QGemm"
    )
    # images that lie channels first are brought in order before a convolution
    assert any(ran == (0, 2, True) for ran in recorded(model)[0])


def dynamic(source, w, n, zero="i", bias=""):
    """A product of dynamically quantized rows."""
    nodes = [
        h.make_node("DynamicQuantizeLinear", [source], [f"q{n}", f"s{n}", f"z{n}"]),
        h.make_node("MatMulInteger", [f"q{n}", w, f"z{n}", zero], [f"sums{n}"]),
        h.make_node("Cast", [f"sums{n}"], [f"real{n}"], to=1),
        h.make_node("Mul", [f"s{n}", "s"], [f"scale{n}"]),
        h.make_node("Mul", [f"real{n}", f"scale{n}"], [f"p{n}"]),
    ]
    return nodes + ([h.make_node("Add", [f"p{n}", bias], [f"y{n}"])] if bias else [])


def test_products_back_to_floats(threads):
    """With equal rows for several readers, and results that are only seen in another order."""
    g = np.random.default_rng(2)
    constants = {
        "s": np.float32(0.02), "i": np.int8(3), "bias": g.standard_normal(12).astype(np.float32), "rows": np.array([-1, 8]),
        "heads": np.array([2, -1, 3, 4]), **{f"w{i}": g.integers(-128, 128, (8, 12)).astype(np.int8) for i in range(2)},
    }  # fmt: skip
    nodes = []
    for i in range(2):
        nodes += [
            h.make_node("Reshape", ["x", "rows"], [f"r{i}"]),
            *dynamic(f"r{i}", f"w{i}", i, bias="bias"),
            h.make_node("Reshape", [f"y{i}", "heads"], [f"h{i}"]),
            h.make_node("Transpose", [f"h{i}"], [f"t{i}"], perm=[0, 2, 1, 3]),
        ]
    proto = model_of(nodes, constants, {"x": (np.float32, 3)}, ("t0", "t1", "y0"))
    many = [{"x": g.standard_normal((2, n, 8)).astype(np.float32)} for n in (5, 300, 5)]
    model = compared(proto, many, threads)
    counts = {r.op: r.nodes for r in model.profile}
    assert counts["DynamicQuantizeLinear"] == 1  # of both
    assert all(ran[2] for group in recorded(model) for ran in group)


def test_zero_points_are_data_too(threads):
    """That of a DynamicQuantizeLinear is read by a product, and by others as any number is."""
    g = np.random.default_rng(6)
    nodes = [
        *dynamic("x", "w", 0),
        node("DequantizeLinear", "z0 t z", "a"),
        node("QLinearMul", "q0 s z z0 t z half z", "b"),
    ]
    constants = CONSTANTS | {"w": g.integers(-128, 128, (8, 12)).astype(np.int8)}
    many = [{"x": g.standard_normal((n, 8)).astype(np.float32) + shift} for n, shift in ((3, 0), (9000, 1))]
    for outputs in (("p0", "a", "b"), ("p0", "a", "b", "z0")):
        model = compared(model_of(nodes, constants, {"x": (np.float32, 2)}, outputs), many, threads)
        assert all(ran[2] for group in recorded(model) for ran in group)


def test_a_step_that_cannot_be_recorded_parts_the_others():
    """Columns whose zero points come with the data are for no tape."""
    g = np.random.default_rng(3)
    constants = {
        "s": np.float32(0.02), "i": np.int8(3),
        **{f"w{i}": g.integers(-128, 128, (8, 8)).astype(np.int8) for i in range(5)},
    }  # fmt: skip
    nodes, last = [], "x"
    for i in range(5):
        nodes += dynamic(last, f"w{i}", i, "each" if i == 2 else "i")
        last = f"p{i}"
    proto = model_of(nodes, constants, {"x": (np.float32, 2), "each": (np.int8, 1)}, ("p4", "p1", "q3"))
    each = np.arange(8, dtype=np.int8)
    model = compared(
        proto, [{"x": g.standard_normal((n, 8)).astype(np.float32), "each": each} for n in (3, 40)]
    )
    assert sorted(set(recorded(model)[0])) == [(0, 5, True), (5, 6, False), (6, 10, True)]
    # a pass that its data are not for: the steps of that tape run one by one
    x = g.standard_normal((3, 8)).astype(np.float32)
    x[1, 2] = -np.inf
    compared(proto, [{"x": x, "each": each}])


def test_nodes_are_merged_if_all_is_equal():
    """Attributes, constants and inputs; what is seen is still there."""
    constants = {"a": np.array([3, -1]), "b": np.array([3, -1]), "c": np.array([-1, 2])}
    nodes = [h.make_node("Abs", ["x"], [n]) for n in "uv"]
    nodes += [h.make_node("Reshape", [n, s], [f"{n}{s}"]) for n in "uv" for s in "abc"]
    nodes += [
        h.make_node("Softmax", [n], [f"s{n}{axis}"], axis=axis) for n in ("ua", "vb") for axis in (0, 1)
    ]
    nodes += [h.make_node("Sub", ["sua0", "svb1"], ["y"]), h.make_node("Sub", ["ub", "va"], ["none"])]
    outputs = ("y", "none", "u", "v", "uc", "vb")
    x = np.random.default_rng(7).standard_normal((3, 4)).astype(np.float32)
    plain, model = (
        Model(model_of(nodes, constants, {"x": (np.float32, 2)}, outputs), fuse=f) for f in (False, True)
    )
    for got, want in zip(model.run(None, {"x": x}), plain.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    counts = {r.op: r.nodes for r in model.profile}
    assert counts["Softmax"] == 2 and counts["Reshape"] <= 3


def test_views_of_what_an_earlier_tape_made():
    """They lie in no memory of the next tape; and rows that have to be copied are no tape's."""
    g = np.random.default_rng(8)
    constants = {
        "s": np.float32(0.02), "i": np.int8(3), "heads": np.array([2, -1, 2, 4]), "rows": np.array([-1, 8]),
        **{f"w{i}": g.integers(-128, 128, n).astype(np.int8) for i, n in enumerate(((8, 8), (8, 8), (4, 8)))},
    }  # fmt: skip
    nodes = [
        *dynamic("x", "w0", 0),
        h.make_node("Reshape", ["p0", "heads"], ["h"]),
        h.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
        *dynamic("t", "w2", 2),  # rows of a turned tensor
        h.make_node("Reshape", ["t", "rows"], ["r"]),  # a copy
        h.make_node("Transpose", ["r"], ["y"]),
        *dynamic("r", "w1", 1),
    ]
    proto = model_of(nodes, constants, {"x": (np.float32, 3)}, ("y", "p1", "p2", "t"))
    compared(proto, [{"x": g.standard_normal((2, n, 8)).astype(np.float32)} for n in (5, 30)])


def test_what_a_step_took_down_before_it_gave_up_is_forgotten():
    two = np.array([2], np.float32)

    def doubled(recorder, x):
        y = np.empty_like(x)
        recorder.run(tape.scale_by, (recorder.held(two), recorder.at(x), recorder.at(y)), x.size)
        return (y,)

    def gives_up(recorder, x):
        recorder.run(tape.scale_by, (recorder.held(two), recorder.at(x), recorder.at(x)), x.size)

    group = tape.Group([(doubled, (1,), (2,)), (doubled, (2,), (3,)), (gives_up, (3,), (4,))], set(), {4}, 1)
    values = [None, np.arange(5, dtype=np.float32), None, None, None]
    found = group.following(0, values)
    assert found.end == 2 and found.outputs == (3,)
    np.testing.assert_array_equal(found.tape.run(values)[0], 4 * values[1])


def test_random_numbers_are_not_merged():
    nodes = [h.make_node("RandomNormalLike", ["x"], [f"r{i}"]) for i in range(2)]
    nodes.append(h.make_node("Sub", ["r0", "r1"], ["y"]))
    (y,) = Model(model_of(nodes, {}, {"x": (np.float32, 2)})).run(None, {"x": np.zeros((9, 9), np.float32)})
    assert (y != 0).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("seed", range(6))
def test_floats_between_bytes(dtype, seed, threads):
    """Any operators of a chain between dequantizers and quantizers, one number a channel among them."""
    g, channels = np.random.default_rng(seed), (1, 5, 16, 33)[seed % 4]
    zero = dtype(g.integers(-128, 128) if dtype == np.int8 else g.integers(0, 256))
    constants = {
        "s": np.float32(g.random() / 20 + 0.001), "z": zero, "t": np.float32(0.031), "u": dtype(g.integers(0, 100)),
        "slope": g.standard_normal((channels, 1, 1)).astype(np.float32), "each": g.standard_normal((1, channels, 1, 1)).astype(np.float32),
    }  # fmt: skip
    nodes = [node("DequantizeLinear", "x s z", "a"), node("DequantizeLinear", "x2 t u", "b")]
    nodes += [
        node("PRelu", "a slope", "c0"),
        node("Mul", "b each", "d"),
        node(g.choice(["Add", "Sub", "Mul"]), "c0 d", "c1"),
    ]
    last = "c1"
    for i, op in enumerate(g.choice(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Add", "Div"], 3)):
        nodes.append(node(op, f"{last} {'each' if op in ('Add', 'Div') else ''}", f"c{i + 2}"))
        last = f"c{i + 2}"
    nodes += [node("QuantizeLinear", f"{last} t z"), node("QuantizeLinear", "c1 s u", "y1")]
    kinds = {"x": (dtype, 4), "x2": (dtype, 4)}

    def draw(*shape):
        return g.integers(0, 256, shape, dtype=np.uint8).view(dtype)

    def last(x):
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)

    many = []
    for size in ((1, 1), (3, 7), (40, 31)):
        a, b = draw(2, channels, *size), draw(2, channels, *size)
        many += [{"x": a, "x2": b}, {"x": last(a), "x2": b}, {"x": last(a), "x2": last(b)}]
    many.append(
        {"x": draw(2, channels, 3, 3), "x2": draw(1, channels, 1, 3)}
    )  # another shape: as it is written
    model = compared(model_of(nodes, constants, kinds, ("y", "y1")), many, threads)
    assert {step.label[:5] for step in model._program.steps} == {"chain"}


def test_floats_that_someone_else_reads_stay_the_engines():
    nodes = [
        node("DequantizeLinear", "x s z", "a"), node("PRelu", "a half", "c"), node("QuantizeLinear", "c t z"), node("Exp", "c", "e"),
    ]  # fmt: skip
    g = np.random.default_rng(4)
    constants = {n: CONSTANTS[n] for n in "szt"} | {
        "half": np.array([0.5, 0.25, -1], np.float32).reshape(3, 1, 1)
    }
    model = model_of(nodes, constants, {"x": (np.uint8, 4)}, ("y", "e"))
    model = compared(model, [{"x": g.integers(0, 256, (2, 3, 5, 5), dtype=np.uint8)}])
    assert not any(step.label.startswith("chain") for step in model._program.steps)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantized_before_the_largest_is_taken(dtype):
    """The order of numbers stays, NaN and infinities among them."""
    g = np.random.default_rng(5)
    constants = {"s": np.float32(0.05), "z": dtype(9)}
    for how in (
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    ):
        nodes = [node("Exp", "x", "e"), node("MaxPool", "e", "p", **how), node("QuantizeLinear", "p s z")]
        x = g.standard_normal((2, 3, 9, 8)).astype(np.float32) * 2
        rare = x.copy()
        rare[0, 0, :4], rare[1, 1, 2:5, 3], rare[0, 2, 5] = np.nan, np.inf, -np.inf
        model = compared(model_of(nodes, constants, {"x": (np.float32, 4)}), [{"x": x}, {"x": rare}])
        assert model.rewritten["MaxPool -> MaxPool"] == 1
    # a negative scale turns the order over
    nodes[-2] = node("MaxPool", "e", "p", kernel_shape=[2, 2])
    model = compared(
        model_of(nodes, constants | {"s": np.float32(-0.05)}, {"x": (np.float32, 4)}), [{"x": x}]
    )
    assert not model.rewritten


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_means_of_images(dtype, threads):
    """`average.global_average` beside the operator's own function."""
    g, state = np.random.default_rng(6), State()
    for trial in range(60):
        shape = (
            int(g.integers(1, 4)),
            int(g.integers(1, 300)),
            *(int(n) for n in g.integers(1, 40, trial % 3 + 1)[:2]),
        )
        x = g.integers(0, 256, shape, dtype=np.uint8).view(dtype)
        if trial % 2:
            x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        a, b = (dtype(v) for v in g.integers(0, 128, 2))
        # steps of a half and a quarter: ties
        scales = np.array(g.choice([0.5, 0.25, 0.013, 1.7], 2), np.float32)
        want = contrib.qlinear_global_average_pool(state, x, scales[0], a, scales[1], b)
        got = average.global_average(x, scales, (int(a), int(b)), np.dtype(dtype), threads)
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_array_equal(got, want)
