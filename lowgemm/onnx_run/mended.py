"""Float operators that `onnx.reference` gets wrong, as the ONNX specification has them.

Found by comparison with onnxruntime (onnx 1.23): BatchNormalization of operator sets 7 to 13 runs in training
mode, Softmax, LogSoftmax and Hardmax below 13 do not take the axes from `axis` on as one, LogSoftmax has the
logarithm of 0 where a power is 0, ConvTranspose mixes up its groups, GlobalMaxPool takes the wrong axes
unless there are two, LRN loops over images instead of channels, MaxPool pads int8 with 0, numbers elements
wrongly and has other windows in odd cases. onnxruntime, where
it is installed, runs all of these; then nothing here is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowgemm.onnx_run.windows import largest, windows


def batch_normalization(
    x: np.ndarray, scale: Any, bias: Any, mean: Any, variance: Any, *, epsilon: float = 1e-5
) -> np.ndarray:
    """BatchNormalization with the given mean and variance: ``(x - mean) / sqrt(variance + epsilon) * scale +
    bias``.
    """
    shape = (-1, *(1,) * (x.ndim - 2))
    scale, bias, mean, variance = (np.reshape(v, shape) for v in (scale, bias, mean, variance))
    factor = scale / np.sqrt(variance + np.asarray(epsilon, variance.dtype))
    return ((x - mean) * factor + bias).astype(x.dtype)


def _rows(x: np.ndarray, axis: int, opset: int) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """What a softmax runs over as the last axis, and the way back."""
    if opset < 13:  # the axes from `axis` on count as one
        axis = axis % x.ndim if x.ndim else 0
        return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:]))), lambda y: y.reshape(
            x.shape
        )
    return np.moveaxis(x, axis, -1), lambda y: np.moveaxis(y, -1, axis)


def softmax(x: np.ndarray, *, axis: int, opset: int) -> np.ndarray:
    """Softmax of any operator set."""
    if x.size == 0:
        return x
    rows, back = _rows(x, axis, opset)
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return back((powers / powers.sum(axis=-1, keepdims=True)).astype(x.dtype))


def log_softmax(x: np.ndarray, *, axis: int, opset: int) -> np.ndarray:
    """LogSoftmax of any operator set, by the logarithm of the sum."""
    if x.size == 0:
        return x
    rows, back = _rows(x, axis, opset)
    below = rows - rows.max(axis=-1, keepdims=True)
    return back((below - np.log(np.exp(below).sum(axis=-1, keepdims=True))).astype(x.dtype))


def hardmax(x: np.ndarray, *, axis: int, opset: int) -> np.ndarray:
    """Hardmax of any operator set: 1 at the first largest value, 0 elsewhere."""
    if x.size == 0:
        return x
    rows, back = _rows(x, axis, opset)
    y = np.zeros_like(rows)
    np.put_along_axis(y, rows.argmax(axis=-1)[..., None], 1, axis=-1)
    return back(y)


def global_max_pool(x: np.ndarray) -> np.ndarray:
    """GlobalMaxPool over any number of spatial axes."""
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


def max_pool(x: np.ndarray, *, storage_order: int = 0, **attributes: Any) -> tuple[np.ndarray, np.ndarray]:
    """MaxPool, and the numbers of the elements that are the largest of their windows."""
    return largest(x, windows(x.shape[2:], **attributes), bool(storage_order))


def lrn(
    x: np.ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> np.ndarray:
    """LRN: each value divided by a power of the squares of its neighbours along the channels."""
    channels = x.shape[1]
    squares = x.astype(np.float64) ** 2
    sums = np.zeros_like(squares)
    for c in range(channels):
        low, high = max(0, c - (size - 1) // 2), min(channels, c + size // 2 + 1)
        sums[:, c] = squares[:, low:high].sum(axis=1)
    return (x / (bias + alpha / size * sums) ** beta).astype(x.dtype)


def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Any = None,
    group: int = 1,
    kernel_shape: Any = None,
    output_padding: Any = None,
    output_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> np.ndarray:
    """ConvTranspose: every input value times its filter is added to where the filter lies."""
    axes = x.ndim - 2
    ones = [1] * axes
    strides, dilations = strides or ones, dilations or ones
    more = output_padding or [0] * axes
    kernel = w.shape[2:]
    whole = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") or output_shape:
        out = list(output_shape or [n * s for n, s in zip(x.shape[2:], strides, strict=True)])[-axes:]
        total = [f + m - o for f, m, o in zip(whole, more, out, strict=True)]
        small = [t // 2 for t in total]
        begin = small if auto_pad == "SAME_UPPER" else [t - s for t, s in zip(total, small, strict=True)]
    else:
        pads = pads or [0] * (2 * axes)
        begin = list(pads[:axes])
        out = [f + m - b - e for f, m, b, e in zip(whole, more, begin, pads[axes:], strict=True)]
    # room on all sides, so that what lies in the padding, negative padding too, is cut off at the end
    size = [max(f, b + o) + max(0, -b) for f, b, o in zip(whole, begin, out, strict=True)]
    per_group, filters = x.shape[1] // group, w.shape[1]
    y = np.zeros((x.shape[0], filters * group, *size), x.dtype)
    shift = [max(0, -b) for b in begin]
    for g in range(group):
        part = x[:, g * per_group : (g + 1) * per_group]
        for offset in np.ndindex(*kernel):
            weights = w[(slice(g * per_group, (g + 1) * per_group), slice(None), *offset)]
            place = tuple(
                slice(f + o * d, f + o * d + (n - 1) * s + 1, s)
                for f, o, d, n, s in zip(shift, offset, dilations, x.shape[2:], strides, strict=True)
            )
            added = np.moveaxis(np.tensordot(part, weights, axes=(1, 0)), -1, 1)
            y[(slice(None), slice(g * filters, (g + 1) * filters), *place)] += added
    cut = tuple(slice(f + b, f + b + o) for f, b, o in zip(shift, begin, out, strict=True))
    y = y[(slice(None), slice(None), *cut)]
    return y if bias is None else y + bias.reshape(-1, *(1,) * axes)


def _softmaxes(function: Callable[..., np.ndarray]) -> Callable[..., Any]:
    def run(opset: int, x: np.ndarray, *, axis: int | None = None) -> np.ndarray:
        return function(x, axis=(1 if opset < 13 else -1) if axis is None else axis, opset=opset)

    return run


def _batch(opset: int, x: np.ndarray, *others: Any, epsilon: float = 1e-5, **more: Any) -> np.ndarray:
    return batch_normalization(x, *others, epsilon=epsilon)


#: Operator: (first operator set, the first that `onnx.reference` has right again or None, function of (opset,
#: inputs, attributes)). BatchNormalization with more outputs than one is training, which stays theirs.
MENDED: dict[str, tuple[int, int | None, Callable[..., np.ndarray]]] = {
    "BatchNormalization": (7, 14, _batch),
    "Softmax": (1, 13, _softmaxes(softmax)),
    "LogSoftmax": (1, None, _softmaxes(log_softmax)),
    "Hardmax": (1, 13, _softmaxes(hardmax)),
    "MaxPool": (1, None, lambda opset, x, **attributes: max_pool(x, **attributes)),
    "GlobalMaxPool": (1, None, lambda opset, x: global_max_pool(x)),
    "LRN": (1, None, lambda opset, x, **attributes: lrn(x, **attributes)),
    "ConvTranspose": (1, None, lambda opset, *inputs, **attributes: conv_transpose(*inputs, **attributes)),
}


def classes(opset: int) -> list[type]:
    """Evaluator classes of the operators that need mending in this operator set."""
    return [
        _evaluator_class(name, function, opset)
        for name, (first, last, function) in MENDED.items()
        if first <= opset and (last is None or opset < last)
    ]


def _evaluator_class(name: str, function: Callable[..., np.ndarray], opset: int) -> type:
    from onnx.defs import get_schema
    from onnx.reference.op_run import OpRun

    class Operator(OpRun):
        op_domain = ""
        op_schema = get_schema(name, opset)  # else the defaults are those of the newest operator set

        def _run(self, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
            if name == "BatchNormalization" and sum(map(bool, self.onnx_node.output)) > 1:
                from onnx.reference.ops import load_op

                return load_op("", name, opset)(self.onnx_node, self.run_params).run(*inputs)
            given = {k: v for k, v in attributes.items() if v is not None}
            result = function(opset, *inputs, **given)
            return (
                result[: len(self.onnx_node.output)] if isinstance(result, tuple) else (np.asarray(result),)
            )

    Operator.__name__ = Operator.__qualname__ = name
    return Operator
