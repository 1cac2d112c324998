"""Operators that move elements: beside onnxruntime's, taken down beside run at once, and within models."""

from __future__ import annotations

import numba
import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from functools import partial

import onnx
import onnx_models as om
from onnx import helper as h
from onnx_models import one_by_one

from lowgemm.onnx_run import Model, copies, frame, tape
from lowgemm.onnx_run.state import NotOurs, State

DTYPES = [np.bool_, np.int8, np.uint8, np.float32, np.int64, np.float64]
#: Those of onnxruntime's kernel.
RESIZED = [np.int8, np.uint8, np.float32]
needs_passes = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the passes are compiled")


def ints(*values):
    return np.array(values, np.int64)


def numbers(g, shape, dtype):
    return np.asarray(g.integers(0, 2 if dtype == np.bool_ else 100, shape)).astype(dtype)


def shape_of(g, least=0, axes=5):
    return [int(n) for n in g.integers(least, (8, 7, 6, 5, 4)[: g.integers(1, axes + 1)])]


def a_slice(g, dtype):
    shape = shape_of(g)
    along = g.permutation(len(shape))[: g.integers(1, len(shape) + 1)]
    lows, highs = (g.integers(-10, 10, len(along)) for _ in range(2))
    far = g.random(len(along)) < 0.2
    steps = g.choice([-3, -2, -1, 1, 1, 1, 2, 3], len(along))
    highs = np.where(far, np.where(steps > 0, 2**62, -(2**62)), highs)
    signed = np.where(g.random(len(along)) < 0.5, along, along - len(shape))
    return (numbers(g, shape, dtype), ints(*lows), ints(*highs), ints(*signed), ints(*steps)), {}


def a_split(g, dtype):
    shape = shape_of(g, 1)
    axis = int(g.integers(len(shape)))
    cuts = np.sort(g.integers(0, shape[axis] + 1, g.integers(0, 3)))
    lengths = np.diff([0, *cuts, shape[axis]])
    return (numbers(g, shape, dtype), ints(*lengths)), {"axis": axis - len(shape) * int(g.integers(2))}


def a_concat(g, dtype):
    shape = shape_of(g, 1)
    axis, parts = int(g.integers(len(shape))), []
    for _ in range(g.integers(1, 4)):
        shape[axis] = int(g.integers(0, 5))
        parts.append(numbers(g, shape, dtype))
    return tuple(parts), {"axis": axis - len(shape) * int(g.integers(2))}


def a_pad(g, dtype):
    mode = str(g.choice(["constant", "edge", "reflect"]))
    shape = shape_of(g, 1, 4)
    high = np.array(shape) - 1 if mode == "reflect" else np.full(len(shape), 4)
    pads = np.concatenate([g.integers(0, high + 1) for _ in range(2)])
    if mode == "constant":
        pads -= g.integers(0, 2, len(pads)) * (g.random() < 0.3) * (np.tile(shape, 2) > 2)
    more = (numbers(g, (), dtype),) if mode == "constant" and g.random() < 0.7 else ()
    return (numbers(g, shape, dtype), ints(*pads), *more), {"mode": mode}


def an_expand(g, dtype):
    shape = np.array(shape_of(g, 1))
    kept = np.where(g.random(len(shape)) < 0.5, 1, shape)
    wanted = np.where(g.random(len(shape)) < 0.3, 1, shape)
    return (numbers(g, kept[g.integers(len(shape)) :], dtype), ints(*wanted)), {}


def a_tile(g, dtype):
    shape = shape_of(g, 1, 4)
    return (numbers(g, shape, dtype), ints(*g.integers(1, 4, len(shape)))), {}


def a_gather(g, dtype):
    shape = shape_of(g, 1, 4)
    axis = int(g.integers(len(shape)))
    found = g.integers(-shape[axis], shape[axis], shape_of(g, 1, 3)[: g.integers(0, 3)])
    kind = np.int64 if g.random() < 0.5 else np.int32
    return (numbers(g, shape, dtype), np.asarray(found, kind)), {"axis": axis}


def a_resize(g, dtype):
    """By whole factors, of images with the channels second."""
    shape = [int(n) for n in g.integers(1, (3, 4, 9, 7))]
    factors = [1, 1, *g.integers(1, 6, 2)]
    rule = sorted(copies._REPEATS)[g.integers(len(copies._REPEATS))]
    attributes = {"mode": "nearest", "coordinate_transformation_mode": rule[0], "nearest_mode": rule[1]}
    x = numbers(g, shape, dtype)
    if g.random() < 0.5:
        return (x, None, np.float32(factors)), attributes
    return (x, None, None, ints(*(n * t for n, t in zip(shape, factors, strict=True)))), attributes


def a_constant(g, dtype):
    value = onnx.numpy_helper.from_array(numbers(g, 1, dtype))
    return (ints(*shape_of(g)),), {"value": value} if g.random() < 0.8 else {}


CASES = {
    "Slice": a_slice, "Split": a_split, "Concat": a_concat, "Pad": a_pad, "Expand": an_expand, "Tile": a_tile,
    "Gather": a_gather, "Resize": a_resize, "ConstantOfShape": a_constant,
}  # fmt: skip


def outputs_of(operator, inputs):
    return [f"y{i}" for i in range(len(inputs[1]) if operator == "Split" else 1)]


def at_once(operator, inputs, attributes):
    found = copies.function_of(operator)(State(), *inputs, **attributes)
    return list(found) if type(found) is tuple else [found]


def by_onnxruntime(operator, inputs, attributes):
    names = ["" if v is None else f"x{i}" for i, v in enumerate(inputs)]
    given = {n: v for n, v in zip(names, inputs, strict=True) if n}
    infos = [h.make_tensor_value_info(n, h.np_dtype_to_tensor_dtype(v.dtype), v.shape)
             for n, v in given.items()]  # fmt: skip
    outputs = outputs_of(operator, inputs)
    graph = h.make_graph([h.make_node(operator, names, outputs, **attributes)], "g", infos,
                         [onnx.ValueInfoProto(name=o) for o in outputs])  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    found = om.onnxruntime_run(model, given, "ORT_DISABLE_ALL")
    return [found[o] for o in outputs]


def same(found, want):
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("operator", CASES)
def test_at_once_as_onnxruntime(operator):
    peers.need("onnxruntime")
    g = np.random.default_rng(1)
    for i in range(60):
        dtypes = RESIZED if operator == "Resize" else DTYPES
        inputs, attributes = CASES[operator](g, dtypes[i % len(dtypes)])
        same(at_once(operator, inputs, attributes), by_onnxruntime(operator, inputs, attributes))


def turned(g, x):
    """The same array, its axes in another order in memory or with gaps."""
    if not x.ndim:
        return x
    order = g.permutation(x.ndim)
    gaps = np.empty([2 * x.shape[a] for a in order], x.dtype).transpose(np.argsort(order))
    y = gaps[(slice(None, None, 2),) * x.ndim] if g.random() < 0.3 else gaps[tuple(map(slice, x.shape))]
    y[...] = x
    return y


@needs_passes
@pytest.mark.parametrize("operator", CASES)
def test_taken_down_as_at_once(operator, threads):
    """From memory of others, in any order, and from a recording's own (behind a copy)."""
    g = np.random.default_rng(2)
    taken = 0
    for i in range(150):
        inputs, attributes = CASES[operator](g, DTYPES[i % len(DTYPES)])
        count = copies.data_of(operator, len(inputs))
        if g.random() < 0.5:
            inputs = (*(turned(g, x) for x in inputs[:count]), *inputs[count:])
        fixed = set(range(count, len(inputs)))
        if operator == "Gather" and g.random() < 0.5:
            fixed.add(1)
        numbers_in = tuple(range(len(inputs)))
        made = tuple(len(inputs) + j for j in range(len(outputs_of(operator, inputs))))
        records = [(copies.recorded(operator, attributes, threads), numbers_in, made)]
        values = [*inputs, *[None] * len(made)]
        if (
            g.random() < 0.5 and 0 not in fixed and operator != "ConstantOfShape"
        ):  # a copy of the first input comes before
            values.append(None)
            own = len(values) - 1
            records.insert(0, (copies.recorded("Concat", {"axis": 0}, threads), (0,), (own,)))
            records[1] = (records[1][0], (own, *numbers_in[1:]), made)
        group = tape.Group(records, fixed, set(made), threads)
        want = at_once(operator, inputs, attributes)
        recorded = group.following(0, values)
        if recorded.tape is None or recorded.end < len(records):
            # nothing to copy, or parts of it: such steps run one by one
            assert any(v.size == 0 for v in (*inputs[:count], *want)), (inputs, attributes)
            continue
        for _ in range(2):
            found = recorded.tape.run(values)
            same([found[recorded.outputs.index(n)] for n in made], want)
        taken += 1
    assert taken > 50


@needs_passes
def test_an_index_beyond_its_axis_is_refused(threads):
    """The steps run one by one then, which say so."""
    x, indices = np.arange(12, dtype=np.float32).reshape(4, 3), ints(1, -4, 3)
    group = tape.Group([(copies.recorded("Gather", {}, threads), (0, 1), (2,))], set(), {2}, threads)
    recorded = group.following(0, [x, indices, None])
    np.testing.assert_array_equal(recorded.tape.run([x, indices, None])[0], x[indices])
    for beyond in (4, -5):
        assert recorded.tape.run([x, ints(1, beyond, 3), None]) is None
    np.testing.assert_array_equal(recorded.tape.run([x, indices, None])[0], x[indices])
    with pytest.raises(IndexError):
        at_once("Gather", (x, ints(4)), {})


def test_what_is_left_to_the_engine():
    x = np.zeros((2, 3), np.float32)
    for operator, inputs, attributes in (
        ("Concat", (x, x.astype(np.int8)), {"axis": 0}), ("Concat", (x, np.zeros((0, 4), np.float32)), {"axis": 0}),
        ("Pad", (x, ints(0, 3, 0, 0)), {"mode": "reflect"}), ("Pad", (x, ints(-1, 0, 0, 0)), {"mode": "edge"}),
        ("Pad", (x[:0], ints(1, 0, 0, 0)), {"mode": "edge"}), ("Pad", (x, ints(-3, 0, 0, 0)), {}),
    ):  # fmt: skip
        with pytest.raises(NotOurs):
            at_once(operator, inputs, attributes)


# ---- models -----------------------------------------------------------------------------------------------
@needs_passes
@pytest.mark.parametrize("axes", [3, 4])
def test_a_resize_by_whole_factors_as_large_as_may_be(axes):
    """Each element is repeated, whichever rule says where it lies."""
    peers.need("onnxruntime")
    for factor in (3, 7, copies.LARGEST_FACTOR):
        x = np.arange(copies.LONGEST_AXIS // factor, dtype=np.float32).reshape(*(1,) * (axes - 1), -1)
        scales = np.float32([1] * (axes - 1) + [factor])
        for rule in copies._REPEATS:
            attributes = {"coordinate_transformation_mode": rule[0], "nearest_mode": rule[1]}
            inputs = x, None, scales
            same(at_once("Resize", inputs, attributes), by_onnxruntime("Resize", inputs, attributes))
            same(at_once("Resize", inputs, attributes), [np.repeat(x, factor, -1)])
    for scales in (np.float32([1, 1, 1.5, 1][-axes:]), np.float32([1] * (axes - 1) + [17])):
        with pytest.raises(NotOurs):
            at_once("Resize", (np.zeros((2,) * axes, np.float32), None, scales), {})


@needs_passes
@pytest.mark.parametrize("signed", [False, True])
def test_coded_joins_and_pools_between_convolutions(signed, threads):
    """QLinearConcat, whose parts have scales of their own or the result's, and MaxPool of bytes: recorded."""
    peers.need("onnxruntime")
    kind = np.int8 if signed else np.uint8
    g = np.random.default_rng(6)
    constants = {
        "w": g.integers(-128, 128, (6, 5, 3, 3)).astype(np.int8),
        "wz": np.int8(0),
        "ws": np.float32(0.02),
    }
    for i in range(4):
        constants[f"s{i}"] = np.float32(0.01 + 0.013 * i)
        constants[f"z{i}"] = np.asarray(3 * i, kind)
    conv = ["w", "ws", "wz"]
    ms = "com.microsoft"
    nodes = [
        h.make_node("QuantizeLinear", ["a", "s0", "z0"], ["q"]),
        h.make_node("QLinearConv", ["q", "s0", "z0", *conv, "s1", "z1"], ["c"], pads=[1] * 4),
        h.make_node("MaxPool", ["c"], ["m"], kernel_shape=[3, 3], pads=[1] * 4),
        h.make_node("QLinearConcat", ["s1", "z1", "m", "s1", "z1", "q", "s0", "z0", "c", "s1", "z1"], ["j"],
                    axis=1, domain=ms),
        h.make_node("Slice", ["j", "two", "seven", "one"], ["p"]),
        h.make_node("QLinearConv", ["p", "s1", "z1", *conv, "s2", "z2"], ["d"]),
        h.make_node("QLinearConcat", ["s3", "z3", "d", "s2", "z2", "d", "s3", "z3"], ["y"], axis=-1, domain=ms),
        # operands in two orders in memory, and an image that is not made for a convolution
        h.make_node("QuantizeLinear", ["b", "s0", "z0"], ["q2"]), h.make_node("Reshape", ["q2", "as5"], ["r"]),
        h.make_node("Slice", ["j", "one", "six", "one"], ["t"]),
        h.make_node("QLinearAdd", ["r", "s0", "z0", "t", "s1", "z1", "s2", "z2"], ["u"], domain=ms),
        h.make_node("QLinearConv", ["r", "s0", "z0", *conv, "s2", "z2"], ["v"]),
    ]  # fmt: skip
    constants |= {"two": ints(2), "seven": ints(7), "one": ints(1), "six": ints(6), "as5": ints(1, 5, 9, -1)}
    graph = h.make_graph(
        nodes, "g",
        [h.make_tensor_value_info("a", 1, [1, 5, 9, None]), h.make_tensor_value_info("b", 1, [1, None])],
        [onnx.ValueInfoProto(name=o) for o in ("y", "m", "j", "u", "v")],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(ms, 1)], ir_version=8)
    ours = Model(model, num_threads=threads)
    for columns in (8, 17):
        feeds = {n: g.standard_normal(shape).astype(np.float32)
                 for n, shape in (("a", (1, 5, 9, columns)), ("b", (1, 45 * columns)))}  # fmt: skip
        want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
        for run in (*[ours.run] * 4, partial(one_by_one, ours)):
            same(run(None, feeds), [want[t.name] for t in ours.outputs])
    assert all(type(u) is frame._Taped for u in units(ours))
    assert len(units(ours)) == 2


def model_of(nodes, outputs, constants, sizes=(None, 6, 8)):
    """Nodes between a quantized image "x" of bytes and outputs."""
    info = h.make_tensor_value_info
    graph = h.make_graph(
        nodes, "g", [info("a", 1, [None] * len(sizes)), info("rows", 7, [None])],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def moved():
    """Operators of every kind between quantizers, on bytes and on floats, by rows that are data."""
    constants = {
        "s": np.float32(0.02), "z": np.uint8(120), "one": ints(1), "four": ints(4), "ends": ints(2**62),
        "back": ints(-1), "axis": ints(2), "pads": ints(0, 1, 2, 0, 0, 1), "edges": ints(0, 0, 1, 1, 0, 2),
        "wide": ints(1, 6, 1), "table": np.arange(40, dtype=np.uint8).reshape(10, 4), "lengths": ints(5, 3),
        "picked": ints(0, 5, -2), "last": np.array(-1),
    }  # fmt: skip
    nodes = [
        h.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        h.make_node("Slice", ["q", "one", "ends", "axis", "one"], ["part"]),
        h.make_node("Slice", ["q", "back", "one", "axis", "back"], ["mirrored"]),
        h.make_node("Concat", ["part", "mirrored", "q"], ["joined"], axis=2),
        h.make_node("DequantizeLinear", ["joined", "s", "z"], ["f"]),
        h.make_node("Pad", ["f", "pads", "s"], ["padded"]),
        h.make_node("Pad", ["padded", "edges"], ["around"], mode="edge"),
        h.make_node("QuantizeLinear", ["around", "s", "z"], ["q2"]),
        h.make_node("Pad", ["q2", "pads"], ["mirrors"], mode="reflect"),
        h.make_node("DequantizeLinear", ["mirrors", "s", "z"], ["y"]),
        h.make_node("Split", ["part", "ones"], ["first", "other"], axis=1),
        h.make_node("DequantizeLinear", ["other", "s", "z"], ["u"]),
        h.make_node("Gather", ["q", "rows"], ["taken"], axis=1),
        h.make_node("DequantizeLinear", ["taken", "s", "z"], ["v"]),
        h.make_node("Gather", ["table", "rows"], ["embedded"]),
        h.make_node("DequantizeLinear", ["embedded", "s", "z"], ["w"]),
        h.make_node("Gather", ["v", "last"], ["end"], axis=-1),
        h.make_node("QuantizeLinear", ["end", "s", "z"], ["bytes"]),
        h.make_node("Identity", ["first"], ["same"]),
    ]  # fmt: skip
    constants["ones"] = ints(2, 4)
    return model_of(nodes, ("y", "u", "v", "w", "end", "bytes", "same"), constants)


def feeds_of(images, rows, seed=0):
    g = np.random.default_rng(seed)
    return {"a": g.standard_normal((images, 6, 8)).astype(np.float32), "rows": g.integers(-6, 6, rows)}


def units(ours):
    found = [f for made in ours._program._frames._known.values() if type(made) is list for f in made]
    return [u for f in found for u in f.units]


@needs_passes
@pytest.mark.parametrize("count", [1, 2])
def test_a_model_of_them_is_one_recording(count):
    peers.need("onnxruntime")
    model = moved()
    ours = Model(model, num_threads=count)
    assert not any(s.part for s in ours._program.steps), [s.label for s in ours._program.steps]
    for seed, (images, rows) in enumerate([(1, 3), (2, 5), (1, 3), (2, 1), (3, 0)]):
        feeds = feeds_of(images, rows, seed)
        want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
        for run in (*[ours.run] * 4, partial(one_by_one, ours)):
            found = run(None, feeds)
            for t, got in zip(ours.outputs, found, strict=True):
                np.testing.assert_array_equal(got, want[t.name], err_msg=f"{t.name} {images} {rows}")
            for got in found:
                got[...] = 77  # the caller's own
    assert len(units(ours)) >= 3
    assert sum(type(u) is frame._Taped for u in units(ours)) >= 3


@needs_passes
def test_a_row_that_is_not_there_is_an_error():
    peers.need("onnxruntime")
    ours, feeds = Model(moved(), num_threads=1), feeds_of(1, 3)
    want = next(ours.run(None, feeds) for _ in range(4))
    with pytest.raises(ValueError, match="Gather"):
        ours.run(None, feeds | {"rows": ints(0, 6, 1)})
    same(ours.run(None, feeds), want)


def test_places_that_are_data_are_the_engines():
    """A recording would be for these places alone."""
    peers.need("onnxruntime")
    nodes = [
        h.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        h.make_node("Slice", ["q", "rows", "ends", "axis"], ["part"]),
        h.make_node("DequantizeLinear", ["part", "s", "z"], ["y"]),
    ]
    constants = {"s": np.float32(0.02), "z": np.uint8(9), "ends": ints(2**62), "axis": ints(1)}
    model = model_of(nodes, ("y",), constants)
    ours = Model(model, num_threads=1)
    for first in (0, 3, 1, 5, 2):
        feeds = feeds_of(1, 1) | {"rows": ints(first)}
        same(ours.run(None, feeds), [om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")["y"]])


def test_parts_that_the_engine_sums_are_aligned():
    """The order of its sums depends on where numbers lie, and its own results are aligned."""
    peers.need("onnxruntime")
    nodes = [
        h.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["f"]),
        h.make_node("Split", ["f", "lengths"], ["first", "other"], axis=1),
        h.make_node("ReduceMean", ["other"], ["y"], axes=[-1]),
        h.make_node("Slice", ["f", "two", "six", "one"], ["part"]),
        h.make_node("ReduceSum", ["part", "last"], ["u"]),
    ]  # fmt: skip
    constants = {"s": np.float32(0.013), "z": np.uint8(120), "lengths": ints(1, 5), "two": ints(2), "six": ints(6),
                 "one": ints(1), "last": ints(-1)}  # fmt: skip
    model = model_of(nodes, ("y", "u"), constants)
    ours = Model(model, num_threads=1)
    g = np.random.default_rng(0)
    for columns in (5, 7, 9, 11, 13):
        feeds = {"a": g.standard_normal((1, 6, columns)).astype(np.float32), "rows": ints(1)}
        want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
        for run in (*[ours.run] * 4, partial(one_by_one, ours)):
            same(run(None, feeds), [want["y"], want["u"]])


def test_the_engine_keeps_those_between_its_nodes():
    peers.need("onnxruntime")
    nodes = [
        h.make_node("Softmax", ["a"], ["p"]), h.make_node("Slice", ["p", "zero", "two", "one"], ["part"]),
        h.make_node("Softmax", ["part"], ["r"]), h.make_node("Concat", ["r", "p"], ["both"], axis=1),
        h.make_node("QuantizeLinear", ["both", "s", "z"], ["q"]),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]  # fmt: skip
    constants = {"s": np.float32(0.02), "z": np.uint8(9), "zero": ints(0), "two": ints(2), "one": ints(1)}
    model = model_of(nodes, ("y",), constants)
    ours = Model(model, num_threads=1)
    (part,) = [s for s in ours._program.steps if s.part]
    assert {"Softmax", "Slice"} == {n.op_type for n in part.nodes}  # Concat is left to the recording behind
    for images in (1, 2):
        feeds = feeds_of(images, 1)
        want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")["y"]
        for _ in range(4):
            same(ours.run(None, feeds), [want])
