"""Fuzz steps for `nn`: layers against their definitions, and layers and calls with arguments that do
not fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm import nn, pack_rhs
from lowgemm.nn import reference
from lowgemm.quantization import QParams

from .arrays import JUNK, broken, dressed, integers, spaced

DOCUMENTED = (TypeError, ValueError, MemoryError)
POOLS = (nn.QuantizedMaxPool2d, nn.QuantizedAveragePool2d)


def _qparams(s: Any, dtype: Any = None, channels: int | None = None) -> QParams:
    r = s.r
    dtype = np.dtype(r.choice((np.int8, np.uint8)) if dtype is None else dtype)
    if channels is None or r.random() < 0.5:
        return QParams(r.uniform(0.01, 1.0), int(integers(r, s.g, dtype, ())), dtype)
    return QParams(s.g.uniform(0.01, 1.0, channels), integers(r, s.g, dtype, (channels,)), dtype, axis=-1)


def _weighted(s: Any, shape: tuple[int, ...]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a layer with weights of that shape."""
    r = s.r
    dtype = r.choice((np.int8, np.uint8))
    bias = r.choice((None, s.g.integers(-5000, 5000, shape[-1]).astype(np.int32)))
    output = None if r.random() < 0.2 else _qparams(s)
    named = {
        "activation": r.choice(("none", "relu", "relu6")),
        "rounding": r.choice(("gemmlowp", "onnx", "tflite")),
    }
    if output is None and named["activation"] == "relu6":
        named["activation"] = "relu"
    return [integers(r, s.g, dtype, shape), bias, _qparams(s), _qparams(s, dtype, shape[-1]), output], named


def _layer(s: Any) -> tuple[Any, list[Any], dict[str, Any], tuple[int, ...]]:
    """A class, what makes a layer of it, and the shape of an input."""
    r = s.r
    pixels = (r.randrange(1, 3), r.randrange(3, 9), r.randrange(3, 9))
    kind = r.randrange(5)
    if kind == 0:
        inputs = r.randrange(1, 40)
        args, named = _weighted(s, (inputs, r.randrange(1, 40)))
        return nn.QuantizedLinear, args, named, r.choice(((7, inputs), (2, 3, inputs)))
    if kind == 1:
        groups = r.choice((1, 1, 2, 3))
        inside = r.choice((1, 1, 2, 5))
        shape = (r.randrange(1, 4), r.randrange(1, 4), inside, groups * r.randrange(1, 4))
        args, named = _weighted(s, shape)
        named.update(stride=r.choice((1, 2, (1, 2))), padding=r.choice((0, 1, (0, 1, 1, 0))), groups=groups)
        return nn.QuantizedConv2d, args, named, (*pixels, groups * inside)
    shape = (*pixels, r.randrange(1, 5))
    if kind == 2:
        named = {"stride": r.choice((None, 1, 2)), "padding": r.choice((0, 1))}
        return r.choice(POOLS), [_qparams(s), r.choice((2, 3, (2, 3)))], named, shape
    if kind == 3:
        return nn.QuantizedFlatten, [_qparams(s)], {}, shape
    p, channels = _qparams(s), shape[-1]
    w = integers(r, s.g, np.int8, (1, 1, channels, channels))
    branch = [nn.QuantizedConv2d(w, None, p, QParams(0.01, 0, "int8"), _qparams(s))]
    return nn.QuantizedResidual, [branch, _qparams(s)], {"activation": r.choice(("none", "relu"))}, shape


def layer(s: Any) -> None:
    """A sound layer gives what its definition gives."""
    cls, args, named, shape = _layer(s)
    made = s.call("nn", cls, *args, **named)
    x = integers(s.r, s.g, made.input_qparams.dtype, shape)
    expected = made.reference(x)
    got = s.call("nn", made, dressed(s.r, x))
    equal = np.array_equal(got, expected, equal_nan=got.dtype.kind == "f")
    s.expect(equal and got.dtype == expected.dtype, f"nn: {made!r:.200}")


def layer_odd(s: Any) -> None:
    """One argument, or the input, that does not fit: a documented exception, or the definition's answer."""
    r = s.r
    cls, args, named, shape = _layer(s)
    sane = integers(r, s.g, np.uint8, shape)
    where = r.randrange(len(args) + len(named) + 1)
    if where < len(args):
        args[where] = r.choice((*JUNK, broken(r, sane)))
    elif where < len(args) + len(named):
        named[list(named)[where - len(args)]] = r.choice(JUNK)
    try:
        made = s.call("nn", cls, *args, **named)
        x = integers(r, s.g, made.input_qparams.dtype, shape)
        x = broken(r, x) if where == len(args) + len(named) else x
        got = s.call("nn", made, x)
    except DOCUMENTED as error:
        s.refused("nn", error)
        return
    expected = made.reference(np.asarray(x))
    s.expect(
        np.array_equal(got, expected, equal_nan=got.dtype.kind == "f"), f"nn: took and lied: {made!r:.200}"
    )


def dynamic(s: Any) -> None:
    """`dynamic_linear`, sound or with one argument that does not fit."""
    r = s.r
    inputs, outputs = r.randrange(1, 50), r.randrange(1, 50)
    x = s.g.normal(size=(r.randrange(0, 9), inputs)).astype(np.float32)
    w = s.g.integers(-127, 128, (inputs, outputs)).astype(np.int8)
    scale = s.g.uniform(0.001, 0.1, outputs).astype(np.float32)
    bias = r.choice((None, s.g.normal(size=outputs).astype(np.float32)))
    expected = reference.dynamic_linear(x, w, scale, bias)
    args: list[Any] = [spaced(r, x)[0], r.choice((w, pack_rhs(w))), scale, bias]
    odd = r.random() < 0.4
    if odd:
        args[r.randrange(4)] = r.choice((*JUNK, x * np.nan, broken(r, w)))
    try:
        got = s.call("nn", nn.dynamic_linear, *args)
    except DOCUMENTED as error:
        s.expect(odd, f"dynamic_linear: refused a sound call: {error!r:.200}")
        s.refused("nn", error)
        return
    if not odd:
        s.expect(got.dtype == np.float32 and np.array_equal(got, expected), "dynamic_linear")
        near = s.call("nn", nn.weight_only_linear, args[0], w, scale, bias)
        exact = x.astype(np.float64) @ (w * scale.astype(np.float64)) + (0 if bias is None else bias)
        s.expect(bool(np.allclose(near, exact, rtol=1e-3, atol=1e-3)), "weight_only_linear")


STEPS = (("layer", 4), ("layer_odd", 4), ("dynamic", 2))
