"""Runs with values in fixed places beside the steps one by one, bit for bit, whatever the values are."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from functools import partial

import onnx
from onnx import helper as h
from onnx_models import one_by_one

from lowgemm.onnx_run import Model, frame, tape

MS = "com.microsoft"


@pytest.fixture(autouse=True)
def _needs():
    peers.need("onnxruntime")


def model_of(nodes, kinds, outputs, constants=()):
    """Of inputs by name: (dtype, number of axes)."""
    info, g = h.make_tensor_value_info, np.random.default_rng(0)
    made = {
        "w": g.integers(-128, 128, (24, 24)).astype(np.int8), "v": g.integers(-128, 128, (24, 24)).astype(np.int8),
        "ws": np.float32(0.01), "wz": np.int8(0), **dict(constants),
    }  # fmt: skip
    graph = h.make_graph(
        nodes, "g",
        [info(n, h.np_dtype_to_tensor_dtype(np.dtype(t)), [None] * axes) for n, (t, axes) in kinds.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in made.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)


def product(x, n, w="w"):
    """Nodes of a dynamically quantized product."""
    return [
        h.make_node("DynamicQuantizeLinear", [x], [f"q{n}", f"s{n}", f"z{n}"]),
        h.make_node("MatMulIntegerToFloat", [f"q{n}", w, f"s{n}", "ws", f"z{n}", "wz"], [f"p{n}"], domain=MS),
    ]


def frames(model):
    return [f for found in model._program._frames._known.values() if type(found) is list for f in found]


def compared(model, many, runs=4):
    """Runs of each kind of inputs, those in a frame too, as the steps one by one."""
    for feeds in many:
        want = one_by_one(model, None, feeds)
        for _ in range(runs):
            same(model.run(None, feeds), want)


def same(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def attention(outputs=("y", "t")):
    """Two products, views of them, a part of the engine's that reads these, and so on."""
    return model_of(
        [
            h.make_node("Softsign", ["x"], ["a"]),
            *product("a", 0),
            *product("a", 1, "v"),
            h.make_node("Shape", ["a"], ["shape"]),
            h.make_node("Gather", ["shape", "zero"], ["rows"]),
            h.make_node("Concat", ["rows", "sizes"], ["heads"], axis=0),
            h.make_node("Reshape", ["p0", "heads"], ["r0"]),
            h.make_node("Reshape", ["p1", "heads"], ["r1"]),
            h.make_node("Transpose", ["r0"], ["t0"], perm=[1, 0, 2]),
            h.make_node("Transpose", ["r1"], ["t1"], perm=[1, 2, 0]),
            h.make_node("MatMul", ["t0", "t1"], ["m"]),
            h.make_node("Softmax", ["m"], ["y"], axis=-1),
            h.make_node("Transpose", ["r0"], ["u"], perm=[2, 0, 1]),
            h.make_node("Softsign", ["u"], ["t"]),
        ],
        {"x": ("f4", 2)}, outputs, {"zero": np.array([0]), "sizes": np.array([4, 6])},
    )  # fmt: skip


@pytest.mark.parametrize(
    "outputs", [("y", "t"), ("r0", "y"), ("t1", "s0", "z1", "q0", "heads", "t"), ("p0", "a", "x")]
)
def test_as_the_steps(outputs, threads):
    model, g = Model(attention(outputs), num_threads=threads), np.random.default_rng(1)
    compared(model, [{"x": g.standard_normal((n, 24)).astype(np.float32)} for n in (7, 300, 7, 1, 40)])
    assert len(frames(model)) == 4 and not any(f.bailed for f in frames(model))


def test_large_inputs_of_any_strides(monkeypatch):
    """They are read where they lie; small ones are copied."""
    monkeypatch.setattr(frame, "LARGEST", 64 << 20)
    model, g = Model(attention()), np.random.default_rng(2)
    x = g.standard_normal((720, 48)).astype(np.float32)
    for view in (x[:, :24], x[::2, ::2], x[::-1, 24:], np.asfortranarray(x[:90, :24]), x[:5, 3:27]):
        kept = view.copy()
        compared(model, [{"x": view}])
        np.testing.assert_array_equal(view, kept)
    assert len(frames(model)) == 5


def test_results_are_the_callers():
    """A later run does not write to them, and writing to them changes no later run."""
    model, g = Model(attention(("r0", "t1", "a", "s0", "z0", "heads"))), np.random.default_rng(3)
    feeds = [{"x": g.standard_normal((9, 24)).astype(np.float32)} for _ in range(2)]
    want = one_by_one(model, None, feeds[0])
    found = [model.run(None, feeds[0]) for _ in range(5)]
    model.run(None, feeds[1])
    for got in found:
        same(got, want)
        for a in got:
            a[...] = 0
    same(model.run(None, feeds[0]), want)


@pytest.mark.parametrize("outputs", [("p0", "flat"), ("p0", "c"), ("p0", "x"), ("flat", "half", "row")])
def test_results_share_no_memory(outputs):
    """Neither two that are views of one array, nor one that is a constant or an input."""
    nodes = [
        *product("x", 0), h.make_node("Reshape", ["p0", "back"], ["flat"]),
        h.make_node("Gather", ["p0", "zero"], ["row"]), h.make_node("Slice", ["p0", "one", "two"], ["half"]),
    ]  # fmt: skip
    constants = {"back": np.array([-1]), "zero": np.array(0), "one": np.array([0]), "two": np.array([1])}
    model = Model(model_of(nodes, {"x": (np.float32, 2)}, outputs, constants | {"c": np.float32([1, 2])}))
    x = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    x.flags.writeable = False
    want = [y.copy() for y in one_by_one(model, None, {"x": x})]
    for _ in range(5):
        found = model.run(None, {"x": x})
        for i, y in enumerate(found):
            y[...] = 7
            same(found[i + 1 :], want[i + 1 :])


def test_a_view_is_there_as_long_as_it_is_read():
    """A step of its own that says anew where elements lie: what it returns lies in another value's place."""
    nodes = [
        h.make_node("Softsign", ["x"], ["a"]),
        *product("a", 0),
        h.make_node(
            "MatMulInteger", ["q0", "b", "", "e"], ["u"]
        ),  # which no tape has, so the next reads "p0"
        h.make_node("Flatten", ["p0"], ["view"], axis=0),
        h.make_node("Softsign", ["u_"], ["v_"]),
        *product("v_", 1),
    ]
    nodes.insert(4, h.make_node("Cast", ["u"], ["u_"], to=1))
    for i in range(1, 4):
        nodes += [h.make_node("Softsign", [f"p{i}"], [f"a{i}"]), *product(f"a{i}", i + 1)]
    nodes.append(h.make_node("Flatten", ["p4"], ["last"], axis=0))
    nodes.append(h.make_node("Sub", ["last", "view"], ["y"]))
    for outputs in (("y",), ("view", "u"), ("view", "last"), ("view", "y", "u")):
        model = Model(model_of(nodes, {"x": ("f4", 2), "b": ("u1", 2), "e": ("u1", 1)}, outputs))
        g = np.random.default_rng(4)
        for n in (6, 40):
            b = g.integers(0, 256, (24, 24), dtype=np.uint8)
            feeds = {"x": g.standard_normal((n, 24)).astype(np.float32), "b": b, "e": b[0]}
            compared(model, [feeds])
            kept = model.run(None, feeds)
            model.run(None, {**feeds, "x": feeds["x"][::-1].copy()})
            same(kept, one_by_one(model, None, feeds))
        kinds = [type(u).__name__ for u in frames(model)[0].units for _ in u.steps if u.steps[0].moves]
        assert "_Kept" in kinds


def test_data_that_a_tape_refuses():
    model, g = Model(attention(("y", "t", "s0", "q1", "z1"))), np.random.default_rng(5)
    x = g.standard_normal((9, 24)).astype(np.float32)
    nodes = [
        *product("x", 0),
        h.make_node("Softsign", ["p0"], ["a"]),
        *product("a", 1),
        h.make_node("Softsign", ["p1"], ["y"]),
    ]
    model = Model(model_of(nodes, {"x": ("f4", 2)}, ["y", "a", "s0", "z0"]))
    compared(model, [{"x": x}])
    for bad in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y[3, 4] = bad
        compared(model, [{"x": y}, {"x": x}])
    (found,) = frames(model)
    taped = [u for u in found.units if hasattr(u, "words")]
    assert len(taped) == 2 and not found.bailed
    assert not any(u.words[tape.STATUS] for u in taped)  # the next run is one of tapes again


def test_shapes_that_depend_on_values():
    """A run in which something does not fit is finished without places; after some there is no frame."""
    nodes = [
        *product("x", 0),
        h.make_node("NonZero", ["mask"], ["where"]),
        h.make_node("Gather", ["where", "zero"], ["rows"]),
        h.make_node("Squeeze", ["rows", "first"], ["r"]),
        h.make_node("Softsign", ["p0"], ["a"]),
        h.make_node("Gather", ["a", "r"], ["some"]),
        *product("some", 1),
        h.make_node("Softsign", ["p1"], ["y"]),
    ]
    proto = model_of(
        nodes,
        {"x": ("f4", 2), "mask": ("i8", 1)},
        ["y", "some", "r"],
        {"zero": np.array([0]), "first": np.array([0])},
    )
    model, g = Model(proto), np.random.default_rng(6)
    x = g.standard_normal((20, 24)).astype(np.float32)
    for count in (5, 9, 20, 1, 9, 5, 5, 3):
        mask = np.zeros(20, np.int64)
        mask[:count] = 1
        compared(model, [{"x": x, "mask": mask}], 3)
    assert not frames(model)


def test_sizes_that_depend_on_values():
    """What a Reshape makes of other sizes, when the number of elements is the same."""
    nodes = [
        h.make_node("Softsign", ["x"], ["a"]), *product("a", 0), h.make_node("Reshape", ["p0", "sizes"], ["r"]),
        h.make_node("Transpose", ["r"], ["t"]), h.make_node("Softsign", ["t"], ["y"]),
    ]  # fmt: skip
    model = Model(model_of(nodes, {"x": ("f4", 2), "sizes": ("i8", 1)}, ["y"]))
    x = np.random.default_rng(7).standard_normal((12, 24)).astype(np.float32)
    for sizes in ((12, 24), (24, 12), (12, 24), (-1, 36), (8, 0), (288, 1)):
        if sizes != (8, 0):
            compared(model, [{"x": x, "sizes": np.array(sizes)}])
            continue
        for call in (model.run, model.run, partial(one_by_one, model)):
            with pytest.raises(ValueError, match="Reshape"):
                call(None, {"x": x, "sizes": np.array(sizes)})


def test_python_threads_at_once():
    model, g = Model(attention()), np.random.default_rng(8)
    feeds = [{"x": g.standard_normal((60, 24)).astype(np.float32)} for _ in range(8)]
    want = [one_by_one(model, None, f) for f in feeds]
    for _ in range(3):
        model.run(None, feeds[0])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda f: model.run(None, f), feeds * 9), want * 9, strict=True):
            same(got, expected)


def test_few_kinds_of_inputs_are_kept():
    model = Model(attention())
    for n in range(1, 3 * frame.KINDS):
        compared(model, [{"x": np.full((n, 24), 0.1, np.float32)}], 3)
        assert len(model._program._frames._known) <= frame.KINDS


def test_too_much_memory_is_not_kept(monkeypatch):
    monkeypatch.setattr(frame, "LARGEST", 20_000)
    model, g = Model(attention()), np.random.default_rng(9)
    for n in (5, 6, 200, 7):
        compared(model, [{"x": g.standard_normal((n, 24)).astype(np.float32)}])
        assert sum(f.nbytes for f in frames(model)) <= 20_000
    assert frames(model)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (4, 1, 3)])
def test_forms_in_c_order(shape):
    a = np.empty(shape, np.float32)
    assert frame._in_order(frame._Form(shape, a.dtype, ())).strides == a.strides


def _branch(name, weight, *first):
    """A product of `x` by a constant from outside, with the scale 0.01, behind other nodes."""
    nodes = [
        *first,
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "p"]),
        h.make_node("MatMulInteger", ["q", weight, "p"], ["sums"]),
        h.make_node("Cast", ["sums"], ["floats"], to=onnx.TensorProto.FLOAT),
        h.make_node("Mul", ["s", "ws"], ["scale"]),
        h.make_node("Mul", ["floats", "scale"], [name]),
    ]
    return h.make_graph(nodes, name, [], [h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)])


def test_branches_with_constants_from_outside_run_in_frames():
    node = h.make_node("If", ["c"], ["y"], then_branch=_branch("a", "w"), else_branch=_branch("b", "v"))
    proto = model_of([node], {"c": (bool, 0), "x": (np.float32, 2)}, ["y"])
    model, plain, g = Model(proto), Model(proto, fuse=False), np.random.default_rng(1)
    for run in range(12):
        feeds = {"c": np.array(run % 2 == 0), "x": g.normal(size=(3, 24)).astype(np.float32)}
        np.testing.assert_array_equal(model.run(feeds)[0], plain.run(feeds)[0])


def test_a_branch_may_read_the_condition():
    first = h.make_node("Not", ["c"], ["d"])
    branch = _branch("a", "w", first)
    branch.output.append(h.make_tensor_value_info("d", onnx.TensorProto.BOOL, None))
    other = _branch("b", "v")
    other.node.append(h.make_node("Identity", ["c"], ["e"]))
    other.output.append(h.make_tensor_value_info("e", onnx.TensorProto.BOOL, None))
    node = h.make_node("If", ["c"], ["y", "z"], then_branch=branch, else_branch=other)
    model = Model(model_of([node], {"c": (bool, 0), "x": (np.float32, 2)}, ["y", "z"]))
    for c in (True, False) * 4:
        assert not model.run({"c": np.array(c), "x": np.zeros((2, 24), np.float32)})[1]


def test_strings_have_no_place():
    """What reads them runs as elsewhere, and the rest has a frame; strings may be results, too."""
    ml, words = "ai.onnx.ml", ["a", "b", "c"]
    nodes = [
        h.make_node("LabelEncoder", ["words"], ["n"], domain=ml, keys_strings=words, values_floats=[1.0, 2.0, 3.0]),
        h.make_node("Mul", ["n", "x"], ["m"]), *product("m", 0), h.make_node("Softsign", ["p0"], ["o"]),
        *product("o", 1, "v"), h.make_node("ArgMax", ["p1"], ["i"], axis=-1, keepdims=0),
        h.make_node("LabelEncoder", ["i"], ["t"], domain=ml, keys_int64s=[0, 1], values_strings=["zero", "one"]),
    ]  # fmt: skip
    proto = model_of(nodes, {"x": (np.float32, 2)}, ["p1", "t"])
    proto.graph.input.append(h.make_tensor_value_info("words", onnx.TensorProto.STRING, [None, None]))
    proto.opset_import.append(h.make_opsetid(ml, 2))
    model, g = Model(proto, num_threads=1), np.random.default_rng(5)
    for rows in (3, 3, 1, 3):
        many = [
            {"x": g.standard_normal((rows, 24)).astype(np.float32),
             "words": g.choice([*words, "unknown"], (rows, 1)).astype(object)}
            for _ in range(3)
        ]  # fmt: skip
        compared(model, many)
    assert len(frames(model)) == 2 and not any(f.bailed for f in frames(model))
    for f in frames(model):
        assert [type(u) for u in f.units] == [
            frame._Kept,
            frame._Taped,
            frame._Bound,
            frame._Taped,
            frame._Kept,
        ]
