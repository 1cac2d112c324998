"""Random output pipelines, sound ones and ones with fields that do not fit."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np

import lowgemm as lg

from .arrays import JUNK, integers

ROUNDINGS = ("gemmlowp", "tflite", "tflite_single", "onnx", "onnx_reference", "torch")
CLASSES = (
    lg.BiasAddition, lg.QuantizeDownInt32ByFixedPoint, lg.ScaleInt32ByFixedPointAndExponent,
    lg.QuantizeDownInt32ToUint8Scale, lg.Clamp, lg.Tanh, lg.Logistic, lg.SaturatingCast, lg.TruncatingCast,
    lg.Lut, lg.Requantize, lg.Dequantize, lg.Custom,
)  # fmt: skip


def _triple(acc: Any, row: Any, col: Any) -> Any:
    return acc * 3 + row - col


def _indexed(acc: Any, row: Any, col: Any, table: Any) -> Any:
    return acc ^ table[col % 8]


_customs: list[Any] = []


def customs() -> list[Any]:
    """Two functions of the user's own, compiled once."""
    if not _customs:
        _customs.extend([lg.Custom(_triple), lg.Custom(_indexed, (np.arange(8) * 1000,))])
    return _customs


def int32(r: random.Random) -> int:
    """An int32, often at an end."""
    return r.choice((0, 1, -1, 2**31 - 1, -(2**31), r.randrange(-(2**31), 2**31), r.randrange(-300, 300)))


def vector(
    r: random.Random, g: np.random.Generator, size: int, low: int = -(2**31), high: int = 2**31 - 1
) -> Any:
    """A vector of integers in one of the forms that are taken."""
    v = g.integers(low, high, size, endpoint=True)
    kind = r.randrange(8)
    if kind == 0 and size:
        return v.tolist()
    if kind == 1:
        return v.astype(">i4")
    if kind == 2:
        return v.astype(np.int32)[::-1]
    if kind == 3:
        w = v.astype(np.int32)
        w.flags.writeable = False
        return w
    return v if kind < 6 else v.astype(np.int32)


def sound(r: random.Random, g: np.random.Generator, m: int, n: int) -> Any:
    """A pipeline for an m x n result."""
    if r.random() < 0.25:
        return r.choice((None, [], ()))
    stages: list[Any] = []
    axis = r.randrange(2)
    size = (m, n)[axis]
    if r.random() < 0.5:
        stages.append(lg.BiasAddition(vector(r, g, size), axis=axis))
    for _ in range(r.choice((0, 1, 1, 2, 3))):
        stages.append(_middle(r, g, r.randrange(2), m, n))
    stages += _end(r, g, m, n)
    if len(stages) == 1 and r.random() < 0.5:
        return stages[0]
    return stages if r.random() < 0.7 else tuple(stages)


def _middle(r: random.Random, g: np.random.Generator, axis: int, m: int, n: int) -> Any:
    size = (m, n)[axis]
    kind = r.randrange(8)
    if kind == 0:
        return lg.BiasAddition(vector(r, g, size), axis=axis)
    if kind == 1:
        return lg.QuantizeDownInt32ByFixedPoint(int32(r), r.randrange(32), int32(r))
    if kind == 2:
        mult = r.choice((int32(r), r.randrange(2**30, 2**31), vector(r, g, size), vector(r, g, size, 0)))
        exponent = r.choice((r.randrange(-31, 31), r.randrange(-12, 1), vector(r, g, size, -31, 30)))
        return lg.ScaleInt32ByFixedPointAndExponent(mult, exponent, r.choice((0, int32(r))), axis=axis)
    if kind == 3:
        offset, mult = (r.choice((int32(r), vector(r, g, size))) for _ in range(2))
        return lg.QuantizeDownInt32ToUint8Scale(offset, mult, r.randrange(32), axis=axis)
    if kind == 4:
        return lg.Clamp(int32(r), int32(r))
    if kind == 5:
        return lg.Tanh(int32(r), r.choice((1, 2**31 - 1, r.randrange(1, 5000))))
    if kind == 6:
        return lg.Logistic(r.randrange(30))
    return r.choice(customs())


def _end(r: random.Random, g: np.random.Generator, m: int, n: int) -> list[Any]:
    axis = r.randrange(2)
    size = (m, n)[axis]
    kind = r.randrange(7)
    if kind == 0:
        return []
    if kind == 1:
        return [lg.SaturatingCast(r.choice((np.uint8, np.int8, np.int16, "uint8", "i1")))]
    if kind == 2:
        return [lg.TruncatingCast()]
    if kind == 3:
        return [lg.Lut(integers(r, g, r.choice((np.uint8, np.int8)), (256,)), r.choice((np.uint8, np.int8)))]
    if kind == 4:
        scale = r.choice((0.5, 3, -0.25, 1e-30, float(g.normal()), g.normal(size=size)))
        row_scale = None if axis == 0 or r.random() < 0.5 else g.normal(size=m)
        bias = r.choice((None, None, float(g.normal()), g.normal(size=n)))
        return [lg.Dequantize(scale, axis, row_scale, bias)]
    dtype = np.dtype(r.choice((np.uint8, np.int8, np.int16)))
    info = np.iinfo(dtype)
    scale = r.choice((0.5, 0.25, 0, 1e-12, 2.0**29, r.random(), r.random() * 1e-3, g.random(size) * 0.1))
    low = r.choice((None, r.randrange(info.min, info.max + 1)))
    high = r.choice((None, r.randrange(info.min if low is None else low, info.max + 1)))
    zero = r.choice((0, info.min, info.max, r.randrange(info.min, info.max + 1)))
    if r.random() < 0.3:
        zero = dtype.type(zero)
    return [lg.Requantize(scale, zero, dtype, rounding=r.choice(ROUNDINGS), axis=axis, min=low, max=high)]


def odd(r: random.Random, g: np.random.Generator, m: int, n: int) -> Any:
    """A pipeline that should not be taken, or that only just is. Making it may raise."""
    kind = r.randrange(8)
    if kind == 0:
        return r.choice(JUNK)
    if kind == 1:
        return [r.choice(JUNK), *_end(r, g, m, n)]
    if kind == 2:  # two stages that decide the dtype
        return [*_end(r, g, m, n), *_end(r, g, m, n)]
    if kind == 3:
        return lg.BiasAddition(vector(r, g, r.choice((0, n + 1, m + 1, 1))), axis=r.randrange(2))
    if kind == 4:
        return [_middle(r, g, r.randrange(2), m + 1, n + 2)]
    if kind == 5:
        return [_middle(r, g, 0, m, n) for _ in range(40)]
    cls = r.choice(CLASSES)
    fields = [f.name for f in dataclasses.fields(cls)]
    sane = {
        "bias": 0, "multiplier": 2**30, "shift": 3, "exponent": -2, "offset": 1, "mult_int": 3, "min": 0,
        "max": 100,
        "real_zero": 0, "real_amplitude": 9, "integer_bits": 3, "dtype": np.uint8, "scale": 0.5, "axis": 1,
        "table": np.arange(256, dtype=np.uint8), "input_dtype": np.uint8, "zero_point": 0,
        "rounding": "gemmlowp", "offset_after_shift": 0, "function": _triple, "arrays": (), "row_scale": None,
    }  # fmt: skip
    values = {name: sane[name] for name in fields}
    if cls is lg.BiasAddition:
        values["bias"] = np.zeros(n, int)
    for name in r.sample(fields, r.choice((1, 1, 2)) if len(fields) > 1 else 1):
        values[name] = r.choice(JUNK)
    if cls is lg.Custom and callable(values["function"]) and values["function"] is not _triple:
        values["function"] = _triple  # any callable would be handed to Numba, seconds each
    return cls(**values)
