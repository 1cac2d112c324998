"""Convolutions whose filters come with the data, beside their definition: one window at a time."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h

import lowgemm
from lowgemm import kernels
from lowgemm.onnx_run import Model
from lowgemm.onnx_run.reference import conv_sums

#: Those that a model may run on; kernels that tests make take minutes to compile for all of this.
RUNS = [k.name for k in kernels.all_kernels() if not kernels.why_not(k) and not k.name.startswith("test_")]
KINDS = ["plain", "point", "groups", "depthwise", "grouped"]
#: Which zero points are there: of images and of filters; a number, one for each filter, with the data.
ZEROS = [("", ""), ("number", "number"), ("number", "each"), ("data", "number"), ("data", "data")]


def coded(g, dtype, shape):
    """Bytes, or only the ends of their range."""
    info = np.iinfo(dtype)
    if g.random() < 0.3:
        return g.choice([info.min, info.max], shape).astype(dtype)
    return g.integers(info.min, info.max + 1, shape).astype(dtype)


def shapes(g, kind, axes):
    """Of an image and of filters, and the attributes."""
    depth, outputs = int(g.choice([1, 2, 3, 5, 16, 21, 40])), int(g.choice([1, 2, 7, 17, 33]))
    groups = int(g.integers(2, 5)) if kind == "groups" else 1
    if kind == "depthwise":
        depth, outputs, groups = 1, 1, int(g.choice([2, 15, 16, 33, 64, 70]))
    elif kind == "grouped":
        depth = int(g.choice([4, 8, 16]))
        groups, outputs = 64 // depth + int(g.integers(0, 5)), int(g.choice(range(4, depth + 1, 4)))
    taps = (1,) * axes if kind == "point" else tuple(g.integers(1, 5 if axes < 3 else 3, axes).tolist())
    strides, dilations = g.integers(1, 3, axes).tolist(), g.integers(1, 3, axes).tolist()
    pads = g.integers(0, 3, 2 * axes).tolist()
    if kind == "point" and g.integers(2):
        strides, pads = [1] * axes, [0] * (2 * axes)
    size = [
        max(1, d * (k - 1) + 1 - pads[i] - pads[axes + i], int(g.integers(1, 13 if axes < 3 else 5)))
        for i, (k, d) in enumerate(zip(taps, dilations, strict=True))
    ]
    image = (int(g.integers(1, 3)), depth * groups, *size)
    how = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    return image, (outputs * groups, depth, *taps), how


def zero_of(g, form, dtype, filters):
    if not form:
        return None
    return coded(g, dtype, (filters,) if form == "each" else ())


def expected(x, w, x_zero, w_zero, how, scale, y_zero):
    """int32 sums, and bytes: round(sum * scale) in float32, ties to even, plus the zero point."""
    sums = conv_sums(x, w, 0 if x_zero is None else x_zero, 0 if w_zero is None else w_zero, **how)
    info = np.iinfo(y_zero.dtype)
    real = np.rint(sums.astype(np.float32) * scale.reshape(-1, *(1,) * (x.ndim - 2)))
    low, high = info.min - int(y_zero), info.max - int(y_zero)
    return sums.astype(np.int32), (np.clip(real, low, high) + int(y_zero)).astype(y_zero.dtype)


def models(x, w, x_zero, w_zero, zeros, how, scale, y_zero, turned):
    """The model, and what is fed each time."""
    nodes, held, feeds = [], {}, {"x": x, "w": w}
    names = {"x": "x", "w": "w"}
    for name in turned:
        order = [0, *range(2, x.ndim), 1]
        feeds[name] = np.ascontiguousarray(feeds[name].transpose(order))
        back = [0, x.ndim - 1, *range(1, x.ndim - 1)]
        nodes.append(h.make_node("Transpose", [name], [f"{name} turned"], perm=back))
        names[name] = f"{name} turned"
    for name, value, form in (("xz", x_zero, zeros[0]), ("wz", w_zero, zeros[1])):
        if value is not None:
            (feeds if form == "data" else held)[name] = value
    points = [n for n, v in (("xz", x_zero), ("wz", w_zero)) if v is not None]
    nodes.append(h.make_node("ConvInteger", [names["x"], names["w"], *points], ["sums"], **how))
    outputs = ["sums"]
    if "data" not in zeros and zeros[0]:
        held |= {"xs": np.float32(1), "ys": np.float32(1), "ws": scale, "yz": y_zero}
        q = [names["x"], "xs", "xz", names["w"], "ws", "wz", "ys", "yz"]
        nodes.append(h.make_node("QLinearConv", q, ["y"], **how))
        outputs.append("y")
    info = h.make_tensor_value_info
    graph = h.make_graph(
        nodes, "g", [info(n, h.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in held.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10), feeds


def recorded(model):
    """Whether all steps are parts of recorded calls."""
    groups = [turn.group for turn in model._program._turns if hasattr(turn, "group")]
    return bool(groups) and all(
        r.tape is not None and r.end == len(g._records) for g in groups for r in g.found[0].values()
    )


def check(g, kind, axes, threads, zeros):
    dx, dw = g.choice([np.uint8, np.int8], 2)
    image, filters, how = shapes(g, kind, axes)
    x_zero, w_zero = zero_of(g, zeros[0], dx, filters[0]), zero_of(g, zeros[1], dw, filters[0])
    if kind in ("depthwise", "grouped") and zeros[1] == "number" and g.random() < 0.5:
        w_zero = np.asarray(0 if dw == np.int8 else 128, dw)  # what leaves 8 bits
    scale = (2.0 ** -g.uniform(2, 12, filters[0])).astype(np.float32)
    y_zero = coded(g, dx, ())
    turned = [n for n in ("x", "w") if g.random() < 0.3]
    model = None
    for _ in range(5):
        x, w = coded(g, dx, image), coded(g, dw, filters)
        for form, i in (("data", 0), ("data", 1)):
            if zeros[i] == form:
                x_zero, w_zero = (
                    (zero_of(g, form, dx, 1), w_zero) if i == 0 else (x_zero, zero_of(g, form, dw, 1))
                )
        proto, feeds = models(x, w, x_zero, w_zero, zeros, how, scale, y_zero, turned)
        model = model or Model(proto, num_threads=threads)
        want = expected(x, w, x_zero, w_zero, how, scale, y_zero)
        for got, exact in zip(model.run(None, feeds), want, strict=False):
            np.testing.assert_array_equal(got, exact, strict=True)
    assert recorded(model)


@pytest.mark.parametrize("kernel", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_filters_that_come_with_the_data(kernel, kind, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    for seed in range(10):
        g = np.random.default_rng([seed, RUNS.index(kernel)])
        check(g, kind, seed % 3 + 1, 1, ZEROS[seed % len(ZEROS)])


@pytest.mark.parametrize("kind", KINDS)
def test_on_several_threads(kind, threads):
    for seed in range(6):
        g = np.random.default_rng([seed, threads])
        check(g, kind, seed % 2 + 1, threads, ZEROS[seed % len(ZEROS)])


def test_what_does_not_fit_is_refused_or_done_by_the_operator():
    """Filters of another type or shape, and four axes: no recording, and the operator's own answer."""
    g = np.random.default_rng(0)
    x, w = coded(g, np.uint8, (1, 2, 3, 3, 3, 3)), coded(g, np.int8, (2, 2, 1, 2, 2, 1))
    node = h.make_node("ConvInteger", ["x", "w"], ["sums"])
    info = h.make_tensor_value_info
    kinds = {"x": onnx.TensorProto.UINT8, "w": onnx.TensorProto.INT8}
    graph = h.make_graph(
        [node], "g", [info(n, k, None) for n, k in kinds.items()], [onnx.ValueInfoProto(name="sums")]
    )
    model = Model(h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10))
    for _ in range(3):
        (got,) = model.run(None, {"x": x, "w": w})
        np.testing.assert_array_equal(got, conv_sums(x, w))
        with pytest.raises(ValueError, match="channels"):
            model.run(None, {"x": x[:, :1], "w": w})
    assert not recorded(model)


def test_constant_filters_with_zero_points_of_their_own_are_recorded(threads):
    """A zero point for each filter makes a product with vectors of zero points."""
    for seed in range(8):
        g = np.random.default_rng(seed)
        image, filters, how = shapes(g, KINDS[seed % 4], 2)
        dx, dw = g.choice([np.uint8, np.int8], 2)
        w, w_zero = coded(g, dw, filters), coded(g, dw, filters[:1])
        scale = (2.0 ** -g.uniform(2, 12, filters[0])).astype(np.float32)
        x_zero, y_zero = coded(g, dx, ()), coded(g, dx, ())
        held = {
            "w": w, "xs": np.float32(1), "ys": np.float32(1), "ws": scale, "xz": x_zero, "yz": y_zero,
            "wz": w_zero,
        }  # fmt: skip
        nodes = [
            h.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"], **how),
            h.make_node("ConvInteger", ["x", "w", "xz", "wz"], ["sums"], **how),
        ]
        info = h.make_tensor_value_info("x", h.np_dtype_to_tensor_dtype(np.dtype(dx)), image)
        graph = h.make_graph(
            nodes, "g", [info], [onnx.ValueInfoProto(name=o) for o in ("sums", "y")],
            [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in held.items()],
        )  # fmt: skip
        model = Model(
            h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10), num_threads=threads
        )
        for _ in range(4):
            x = coded(g, dx, image)
            want = expected(x, w, x_zero, w_zero, how, scale, y_zero)
            for got, exact in zip(model.run(None, {"x": x}), want, strict=True):
                np.testing.assert_array_equal(got, exact, strict=True)
        assert recorded(model)


@pytest.mark.parametrize("kernel", RUNS)
def test_few_windows_and_large_filters(kernel, monkeypatch):
    """A matrix so large would be packed block by block, or multiplied where it lies, for so few rows."""
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    g = np.random.default_rng(RUNS.index(kernel))
    for image, filters, pad, dtype in (
        ((1, 64, 3, 3), (100, 64, 3, 3), 0, np.uint8), ((1, 64, 3, 4), (96, 64, 3, 3), 0, np.int8),
        ((1, 70, 4, 4), (64, 70, 3, 3), 1, np.uint8), ((2, 300, 2, 2), (65, 300, 2, 2), 0, np.int8),
        ((1, 256, 1, 3), (128, 256, 1, 1), 0, np.uint8), ((1, 260, 3, 3), (130, 260, 3, 3), 1, np.uint8),
    ):  # fmt: skip
        node = h.make_node("ConvInteger", ["x", "w", "xz", "wz"], ["sums"], pads=[pad] * 4)
        info, kind = h.make_tensor_value_info, h.np_dtype_to_tensor_dtype(np.dtype(dtype))
        x_zero, w_zero = coded(g, dtype, ()), coded(g, np.int8, ())
        graph = h.make_graph(
            [node], "g", [info("x", kind, image), info("w", onnx.TensorProto.INT8, filters)],
            [onnx.ValueInfoProto(name="sums")],
            [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (("xz", x_zero), ("wz", w_zero))],
        )  # fmt: skip
        proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
        for threads in (1, 2):
            model = Model(proto, num_threads=threads)
            for _ in range(2):
                x, w = coded(g, dtype, image), coded(g, np.int8, filters)
                (got,) = model.run(None, {"x": x, "w": w})
                sums = conv_sums(x, w, x_zero, w_zero, pads=[pad] * 4)
                np.testing.assert_array_equal(got, sums.astype(np.int32))
            assert recorded(model)
