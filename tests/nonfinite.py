"""What NaN and infinity become in every quantizer: run by `test_nonfinite.py`, and on every target by
`forced_target.py`.

One rule: a NaN is refused, since no integer stands for it. Infinity saturates where the scale is given, and
is refused where the scale comes from the data. ONNX's quantizers alone take a NaN, and give onnxruntime's
number for it, the smallest; its DynamicQuantizeLinear takes infinities too, and has infinite steps then.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import lowgemm
from lowgemm import nn
from lowgemm import quantization as lq
from lowgemm.blockwise import (
    MixedWeight,
    gemm_4bit,
    mixed_linear,
    pack_rhs_4bit,
    quantize_blockwise,
    quantize_vectorwise,
)
from lowgemm.compat import onnx as ox
from lowgemm.quantization import QParams

#: Elements: below and above the size from which the loops are compiled.
SIZES = (7, 40_007)
NAN, INFINITIES = np.float32(np.nan), (np.float32(np.inf), np.float32(-np.inf))


def given_scale(size: int) -> dict[str, Any]:
    """Quantizers whose scale is given: functions of a float32 vector, with the results for -infinity and
    infinity.
    """
    p = QParams(0.5, 3, "uint8")
    each = QParams(np.full(size, 0.5), 3, "int8", 0)
    narrow = QParams(0.5, 0, "int8", None, -8, 7)
    layer = nn.QuantizedLinear(np.ones((1, 1), np.int8), None, p, QParams(1.0), p)
    network = nn.QuantizedSequential([nn.QuantizedFlatten(p)])
    f32 = np.float32
    return {
        "quantize": (lambda x: lq.quantize(x, p), 0, 255),
        "quantize float64": (lambda x: lq.quantize(x.astype(np.float64), p), 0, 255),
        "quantize float16": (lambda x: lq.quantize(x.astype(np.float16), p), 0, 255),
        "quantize per channel": (lambda x: lq.quantize(x, each), -128, 127),
        "quantize per channel, last axis": (
            lambda x: lq.quantize(np.stack([x, x]), QParams(each.scale, 3, "int8", 1))[1], -128, 127
        ),
        "quantize int16": (lambda x: lq.quantize(x, QParams(0.5, 3, "int16")), -(2**15), 2**15 - 1),
        "quantize int32": (lambda x: lq.quantize(x, QParams(0.5, 3, "int32")), -(2**31), 2**31 - 1),
        "quantize 4 bits": (lambda x: lq.quantize(x, narrow), -8, 7),
        "fake_quantize": (lambda x: lq.fake_quantize(x, p), -1.5, 126.0),
        "fake_quantize per channel": (lambda x: lq.fake_quantize(x, each), -65.5, 62.0),
        "network input": (lambda x: network.predict(x[None])[0], -1.5, 126.0),
        "layer input": (lambda x: nn.QuantizedSequential([layer]).predict(x[:, None])[:, 0], -1.5, 126.0),
        "quantize_linear": (lambda x: ox.quantize_linear(x, f32(0.5), np.uint8(3)), 0, 255),
        "quantize_linear int16": (
            lambda x: ox.quantize_linear(x, f32(0.5), np.int16(3)), -(2**15), 2**15 - 1
        ),
        "quantize_linear float16": (
            lambda x: ox.quantize_linear(x.astype(np.float16), np.float16(0.5), np.int8(3)), -128, 127
        ),
        "quantize_linear per channel": (
            lambda x: ox.quantize_linear(x, np.full(size, 0.5, f32), np.full(size, 3, np.int8), axis=0), -128,
            127,
        ),
        "quantize_linear in blocks": (
            lambda x: ox.quantize_linear(
                x, np.full(-(-size // 4), 0.5, f32), np.full(-(-size // 4), 3, np.int8), axis=0, block_size=4
            ), -128, 127,
        ),
    }  # fmt: skip


def scale_from_data(size: int) -> dict[str, Any]:
    """Quantizers that take the scale from the data: NaN and infinity are refused."""
    w = np.ones((size, 3), np.int8)
    packed, mixed = lowgemm.pack_rhs(w), MixedWeight(w.astype(np.float32))
    four = pack_rhs_4bit(np.ones((size, 2), np.float32))
    found = {
        "dynamic_linear": lambda x: nn.dynamic_linear(x[None], packed, 1.0),
        "dynamic_linear, later row": lambda x: nn.dynamic_linear(
            np.stack([np.zeros_like(x), x]), packed, 1.0
        ),
        "quantize_blockwise": lambda x: quantize_blockwise(x, blocksize=64),
        "quantize_blockwise nf4": lambda x: quantize_blockwise(x, "nf4", blocksize=64),
        "quantize_blockwise nested": lambda x: quantize_blockwise(x, "nf4", blocksize=64, nested=True),
        "quantize_vectorwise": lambda x: quantize_vectorwise(x[None]),
        "quantize_vectorwise, threshold": lambda x: quantize_vectorwise(x[None], threshold=6.0),
        "mixed_linear": lambda x: mixed_linear(x[None], mixed),
        "MixedWeight": lambda x: MixedWeight(x[:, None]),
        "gemm_4bit": lambda x: gemm_4bit(x[None], four),
        "pack_rhs_4bit": lambda x: pack_rhs_4bit(x[:, None]),
        "range_report": lambda x: lq.range_report({"x": x}),
        "sqnr": lambda x: lq.sqnr(x, QParams(0.5)),
    }
    for kind in (lq.MinMax, lq.MovingAverage, lq.Percentile, lq.MeanSquaredError, lq.Entropy):
        found[kind.__name__] = lambda x, kind=kind: kind().observe(x)
        found[f"{kind.__name__} per channel"] = lambda x, kind=kind: kind(axis=1).observe(x[:, None])
    return found


def endless_ranges(size: int) -> list[str]:
    """What DynamicQuantizeLinear does otherwise than its documentation says."""
    found = []
    for some in ((NAN,), INFINITIES[:1], INFINITIES[1:], INFINITIES, (NAN, INFINITIES[1])):
        for places in ((0, 1), (min(size - 1, 5), size - 2), (size - 1, size - 2)):
            x = (np.arange(size) % 9 - 4).astype(np.float32)
            x[list(places[: len(some)])] = some
            y, scale, zero = ox.dynamic_quantize_linear(x)
            numbers = x[~np.isnan(x)]
            if np.isfinite(numbers).all():
                expected = ox.dynamic_quantize_linear(numbers)
                right = np.array_equal(y[~np.isnan(x)], expected[0]) and (scale, zero) == expected[1:]
            else:
                right = scale == np.inf and zero == (255 if numbers.min() == -np.inf else 0)
                right = right and bool((y[np.isfinite(x)] == zero).all())
            if not right or y[~np.isfinite(x)].any():
                found.append(f"dynamic_quantize_linear {size}: {some} at {places}")
    y, scale, zero = ox.dynamic_quantize_linear(np.full(size, NAN))
    return found if np.isnan(scale) and zero == 255 and not y.any() else [*found, f"NaN alone {size}"]


def placed(size: int, value: np.float32) -> list[np.ndarray]:
    """Vectors with `value` at the start, in the middle of a vector register, at the end."""
    made = []
    for at in (0, min(size - 1, 5), size - 1):
        x = (np.arange(size) % 9 - 4).astype(np.float32)
        x[at] = value
        made.append(x)
    return made


def refused(function: Any, x: np.ndarray) -> bool:
    """Whether it is a ValueError whose message begins with an argument's name."""
    try:
        function(x)
    except ValueError as error:
        return str(error).split(":")[0].isidentifier() or str(error).startswith("tensors[")
    return False


def wrong() -> list[str]:
    """What does not keep to the rule."""
    found = []
    for size in SIZES:
        found += endless_ranges(size)
        for name, (function, low, high) in given_scale(size).items():
            ends = list(zip(INFINITIES, (high, low), strict=True))
            if name.startswith("quantize_linear"):
                ends.append((NAN, low))
            else:
                found += [f"{name} {size}: NaN taken" for x in placed(size, NAN) if not refused(function, x)]
            for value, end in ends:
                for x in placed(size, value):
                    expected = function(np.where(np.isfinite(x), x, np.float32(0)))
                    expected[~np.isfinite(x)] = end
                    if not np.array_equal(function(x), expected):
                        found.append(f"{name} {size}: {value} is not {end}")
        for name, function in scale_from_data(size).items():
            for value in (NAN, *INFINITIES):
                found += [
                    f"{name} {size}: {value} taken" for x in placed(size, value) if not refused(function, x)
                ]
    return found
