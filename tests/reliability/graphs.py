"""Fuzz steps for `lowgemm.onnx_run`: small models of quantized nodes, sound, copied, odd and damaged."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
from onnx import TensorProto as T
from onnx import helper
from onnx.reference import ReferenceEvaluator

import lowgemm as lg
from lowgemm import reference
from lowgemm.onnx_run import Model
from lowgemm.onnx_run.reference import conv_sums
from lowgemm.output.check import check_pipeline

from . import copies
from .arrays import JUNK, broken, dressed, integers
from .by_path import load
from .outcomes import DOCUMENTED, NAMED, same

om = load("onnx_models", pathlib.Path(__file__).parents[1] / "onnx_run" / "onnx_models.py")

KINDS = {
    "uint8": T.UINT8,
    "int8": T.INT8,
    "int32": T.INT32,
    "float32": T.FLOAT,
}


def graph_of(
    op: str, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray], names: list[str], **more: Any
) -> Any:
    """One node; inputs of any size."""
    outputs = ["y"] if op != "DynamicQuantizeLinear" else ["y", "scale", "zero"]
    node = helper.make_node(op, names, outputs, **more)
    inputs = [om.value(k, [None] * v.ndim, KINDS[str(v.dtype)]) for k, v in feeds.items()]
    said = [helper.make_empty_tensor_value_info(o) for o in outputs]
    return om.model_of([node], inputs, said, constants, opset=21, checked=False)


def zero_point(s: Any, dtype: Any, count: int = 0) -> np.ndarray:
    """A scalar, or one for each of `count`."""
    return np.asarray(integers(s.r, s.g, dtype, (count,) if count and s.r.random() < 0.4 else ()))


def product(s: Any, finished: bool) -> tuple[Any, ...]:
    """MatMulInteger or QLinearMatMul, and their answer."""
    r = s.r
    a, b = s.operand(s.size() + 1, s.size() + 1), None
    b = s.operand(a.shape[1], s.size() + 1)
    a_zero, b_zero = zero_point(s, a.dtype), zero_point(s, b.dtype, b.shape[1])
    zeros = {"lhs_zero_point": a_zero, "rhs_zero_point": b_zero}
    values = {"a": a, "b": b, "az": a_zero, "bz": b_zero}
    if not finished:
        return "MatMulInteger", values, ["a", "b", "az", "bz"], {}, reference.gemm(a, b, **zeros)
    scales = [np.float32(r.uniform(0.01, 0.5)) for _ in range(3)]
    y_zero = zero_point(s, r.choice((np.uint8, np.int8)))
    values.update(zip(("sa", "sb", "sy"), map(np.asarray, scales), strict=True), yz=y_zero)
    scale = float(np.float32(np.float32(scales[0] * scales[1]) / scales[2]))
    stage = lg.Requantize(scale, int(y_zero), y_zero.dtype, rounding="onnx_reference")
    names = ["a", "sa", "az", "b", "sb", "bz", "sy", "yz"]
    return "QLinearMatMul", values, names, {}, reference.gemm(a, b, output=stage, **zeros)


def convolution(s: Any, finished: bool) -> tuple[Any, ...]:
    """ConvInteger or QLinearConv with any geometry, and their answer."""
    r = s.r
    axes, group = r.choice((1, 2, 2, 3)), r.choice((1, 1, 2, 3))
    inside, filters = r.choice(((1, 1), (2, 3), (3, 1)))
    size = [r.randrange(3, 8) for _ in range(axes)]
    more: dict[str, Any] = {
        "group": group, "strides": [r.randrange(1, 3) for _ in size],
        "pads": [r.randrange(2) for _ in (*size, *size)],
    }  # fmt: skip
    x = integers(r, s.g, r.choice((np.uint8, np.int8)), (r.randrange(1, 3), group * inside, *size))
    w = integers(
        r, s.g, r.choice((np.uint8, np.int8)), (group * filters, inside, *[r.randrange(1, 4) for _ in size])
    )
    x_zero, w_zero = zero_point(s, x.dtype), zero_point(s, w.dtype, len(w))
    sums = conv_sums(x, w, x_zero, w_zero, **more)
    values = {"x": x, "w": w, "xz": x_zero, "wz": w_zero}
    if not finished:
        return "ConvInteger", values, ["x", "w", "xz", "wz"], more, sums.astype(np.int32)
    x_scale, y_scale = np.float32(r.uniform(0.01, 0.1)), np.float32(r.uniform(0.01, 1))
    w_scale = np.asarray(s.g.uniform(0.001, 0.1, r.choice((None, len(w)))), np.float32)
    y_zero = zero_point(s, r.choice((np.uint8, np.int8)))
    bias = s.g.integers(-3000, 3000, len(w)).astype(np.int32)
    stages = [
        lg.BiasAddition(bias),
        lg.Requantize(x_scale * w_scale / y_scale, int(y_zero), y_zero.dtype, rounding="onnx_reference"),
    ]
    rows = np.moveaxis(sums, 1, -1)
    checked, dtype = check_pipeline(stages, rows.size // len(w), len(w))
    right = reference.apply_pipeline(rows.reshape(-1, len(w)).astype(np.int32), checked).astype(dtype)
    values.update(sx=np.asarray(x_scale), sw=w_scale, sy=np.asarray(y_scale), yz=y_zero, bias=bias)
    names = ["x", "sx", "xz", "w", "sw", "wz", "sy", "yz", "bias"]
    return "QLinearConv", values, names, more, np.moveaxis(right.reshape(rows.shape), -1, 1)


def problem(s: Any) -> tuple[Any, ...]:
    """Operator, all its inputs by name, their order, attributes and the answer."""
    return s.r.choice((product, product, convolution))(s, s.r.random() < 0.5)


def graph(s: Any) -> None:
    """Sound: some inputs are fed, as arrays of any kind, and the others are constants of the model, packed at
    the first run.
    """
    r = s.r
    op, values, names, more, expected = problem(s)
    first = names[0]
    fed = {k for k in values if k == first or (len(values[k].shape) > 1 and r.random() < 0.3)}
    feeds = {k: values[k] for k in fed}
    model = s.call("onnx", Model,
                   graph_of(op, feeds, {k: v for k, v in values.items() if k not in fed}, names, **more),
                   rounding="onnx_reference", num_threads=r.choice((None, 1, 2)))  # fmt: skip
    if r.random() < 0.3:
        if r.random() < 0.5:
            s.call("onnx", model.run, feeds)
        model = copies.renewed(s, model)
        copies.churned()
    for _ in range(2):
        [got] = s.call("onnx", model.run, {k: dressed(r, v) for k, v in feeds.items()})
        s.expect(same(got, expected), f"onnx: {op}")


def graph_linear(s: Any) -> None:
    """QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear as the onnx package itself computes them."""
    r = s.r
    x = (s.g.normal(size=(s.size() + 1, s.size() + 1)) * r.choice((1, 100))).astype(np.float32)
    op = r.choice(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))
    constants = {
        "scale": np.float32(r.uniform(0.01, 3)),
        "zero_point": zero_point(s, r.choice((np.uint8, np.int8))),
    }
    if op == "DequantizeLinear":
        x = integers(r, s.g, constants["zero_point"].dtype, x.shape)
    names = ["x"] if op == "DynamicQuantizeLinear" else ["x", *constants]
    proto = graph_of(op, {"x": x}, constants if len(names) > 1 else {}, names)
    right = ReferenceEvaluator(proto).run(None, {"x": x})
    for got, expected in zip(
        s.call("onnx", Model(proto).run, {"x": dressed(r, x) if x.itemsize == 1 else x}), right, strict=True
    ):
        s.expect(same(got, expected), f"onnx: {op}")


def graph_odd(s: Any) -> None:
    """Feeds, names of outputs, and models themselves that do not fit: documented exceptions, or the right
    answer.
    """
    r = s.r
    op, values, names, more, _ = problem(s)
    first = names[0]
    feeds: Any = {first: values[first]}
    proto = graph_of(op, feeds, {k: v for k, v in values.items() if k != first}, names, **more)
    outputs, options, source = None, {}, proto
    what = r.randrange(6)
    if what == 0:
        feeds[first] = broken(r, values[first])
    elif what == 1:
        feeds = r.choice((*JUNK, {}, {"none": 3}, {**feeds, "none": 3}))
    elif what == 2:
        outputs = r.choice((*JUNK, ["none"], ["y", "y"]))
    elif what == 3:
        options = {r.choice(("rounding", "fuse", "num_threads")): r.choice(JUNK)}
    elif what == 4:
        source = r.choice(JUNK)
    else:
        data = bytearray(proto.SerializeToString())
        for _ in range(r.choice((1, 3))):
            data[r.randrange(len(data))] = r.randrange(256)
        source = bytes(data[: r.randrange(len(data))] if r.random() < 0.2 else data)
    try:
        model = s.call("onnx", Model, source, **options)
        s.call("onnx", model.run, feeds, outputs)
    except OSError:  # a text is the path of a file
        s.expect(isinstance(source, str), f"onnx: a file was looked for, from {source!r:.100}")
    except DOCUMENTED as error:
        s.counts["onnx refused"] += 1
        text = re.sub(r"^[\w.:]+, output \S*: ", "", str(error))
        s.expect(what == 5 or bool(NAMED.match(text)), f"the message names no argument: {error!r:.300}")


STEPS = (("graph", 1), ("graph_linear", 1), ("graph_odd", 1))
