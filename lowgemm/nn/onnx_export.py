"""Export of an integer network to ONNX in QDQ form. Needs the optional package ``onnx``.

Each layer becomes DequantizeLinear, the float operator, and QuantizeLinear. This is the standard form, and
runtimes fuse it back into integer operators. Convolutions are transposed to channels first; the transposes
move integers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.nn.add import QuantizedResidual
from lowgemm.nn.conv import QuantizedConv2d
from lowgemm.nn.layer import Layer
from lowgemm.nn.linear import QuantizedLinear
from lowgemm.nn.pool import QuantizedAveragePool2d, QuantizedFlatten, QuantizedMaxPool2d
from lowgemm.nn.sequential import QuantizedSequential
from lowgemm.nn.weighted import Weighted
from lowgemm.quantization import QParams

OPSET = 17
_TO_FIRST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


class _Graph:
    """Nodes and constants under construction. A tensor of integers is (name, channels come first)."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.helper, self.to_tensor = helper, numpy_helper.from_array
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.to_tensor(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(
            self.helper.make_node(op, list(inputs), [out], name=f"{op}{len(self.nodes)}", **attributes)
        )
        return out

    def quantize(self, real: str, p: QParams) -> str:
        info = np.iinfo(p.dtype)
        if (p.qmin, p.qmax) != (info.min, info.max):
            raise ValueError(f"model: expected all integers of {p.dtype} in use, got {p.qmin} to {p.qmax}")
        return self.node("QuantizeLinear", real, *self.parameters(p))

    def parameters(self, p: QParams) -> tuple[str, str]:
        return self.constant(p.scale, np.float32), self.constant(p.zero_point, p.dtype)

    def dequantize(self, q: str, p: QParams, **attributes: Any) -> str:
        return self.node("DequantizeLinear", q, *self.parameters(p), **attributes)

    def oriented(self, tensor: tuple[str, bool], first: bool) -> str:
        name, is_first = tensor
        return (
            name if is_first == first else self.node("Transpose", name, perm=_TO_FIRST if first else _TO_LAST)
        )

    def activation(self, real: str, kind: str) -> str:
        if kind == "relu":
            return self.node("Relu", real)
        if kind == "relu6":
            return self.node("Clip", real, self.constant(0, np.float32), self.constant(6, np.float32))
        return real


def to_onnx(model: QuantizedSequential, input_shape: Sequence[int | None]) -> Any:
    """An ONNX model with float input and output that computes what `model.predict` does.

    Parameters
    ----------
    model : QuantizedSequential
        All integers of the activations' dtypes must be in use (no simulated bits).
    input_shape : sequence of int or None
        Shape of the input; None for the batch.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ImportError
        Without the package ``onnx``.
    TypeError, ValueError
        If the model has no such form.

    Notes
    -----
    Runtimes rescale in float32 and round half to even. A network converted with ``rounding="onnx"`` comes
    closest. `docs/networks.md` counts the differences from onnxruntime.
    """
    if not isinstance(model, QuantizedSequential):
        raise TypeError(f"model: expected a QuantizedSequential, got {type(model).__name__}")
    from onnx import TensorProto, checker, helper

    shape = [None if s is None else int(s) for s in input_shape]
    g = _Graph()
    tensor = (g.quantize("x", model.input_qparams), False)
    tensor = _layers(g, model.layers, tensor)
    if model.output_qparams is not None:
        name = g.oriented(tensor, False)
        g.dequantize(name, model.output_qparams)
    g.nodes[-1].output[0] = "y"
    result = model.output_shape(tuple(1 if s is None else s for s in shape))
    graph = helper.make_graph(
        g.nodes,
        "lowgemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], *result[1:]])],
        g.constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    checker.check_model(proto)
    return proto


def export(
    model: QuantizedSequential, file: str | os.PathLike[str], input_shape: Sequence[int | None]
) -> None:
    """Write what `to_onnx` makes to a file.

    Parameters
    ----------
    model, input_shape
        As for `to_onnx`.
    file : path
        Where to.

    Raises
    ------
    ImportError, TypeError, ValueError
        As `to_onnx`.
    """
    proto = to_onnx(model, input_shape)
    with open(file, "wb") as f:
        f.write(proto.SerializeToString())


def _layers(g: _Graph, layers: Sequence[Layer], tensor: tuple[str, bool]) -> tuple[str, bool]:
    for layer in layers:
        if isinstance(layer, Weighted):
            tensor = _weighted(g, layer, tensor)
        elif isinstance(layer, QuantizedFlatten):
            shape = g.constant([0, -1], np.int64)
            tensor = (g.node("Reshape", g.oriented(tensor, False), shape), False)
        elif isinstance(layer, QuantizedResidual):
            name, first = _layers(g, layer.branch, tensor)
            a = g.dequantize(g.oriented(tensor, first), layer.add.a_qparams)
            total = g.node("Add", a, g.dequantize(name, layer.add.b_qparams))
            tensor = (g.quantize(g.activation(total, layer.activation), layer.output_qparams), first)
        elif isinstance(layer, (QuantizedMaxPool2d, QuantizedAveragePool2d)):
            tensor = (_pool(g, layer, g.oriented(tensor, True)), True)
        else:
            raise TypeError(f"model: expected layers of lowgemm.nn, got {type(layer).__name__}")
    return tensor


def _pads(padding: tuple[int, int, int, int]) -> list[int]:
    top, bottom, left, right = padding
    return [top, left, bottom, right]


def _pool(g: _Graph, layer: Any, q: str) -> str:
    options = {"kernel_shape": layer.size, "strides": layer.stride, "pads": _pads(layer.padding)}
    if isinstance(layer, QuantizedMaxPool2d):
        return g.node("MaxPool", q, **options)
    mean = g.node("AveragePool", g.dequantize(q, layer.input_qparams), count_include_pad=0, **options)
    return g.quantize(mean, layer.input_qparams)


def _weighted(g: _Graph, layer: Any, tensor: tuple[str, bool]) -> tuple[str, bool]:
    convolution = isinstance(layer, QuantizedConv2d)
    x = g.dequantize(g.oriented(tensor, convolution), layer.input_qparams)
    axis = 0 if convolution else 1
    per_channel = {"axis": axis} if layer.weight_qparams.per_channel else {}
    w = layer.weight.transpose(3, 2, 0, 1) if convolution else layer.weight
    inputs = [x, g.dequantize(g.constant(w, w.dtype), layer.weight_qparams, **per_channel)]
    if layer.bias is not None:
        unit = layer.accumulator_scale
        p = QParams(np.float32(unit), 0, "int32", 0 if unit.ndim else None)
        inputs.append(g.dequantize(g.constant(layer.bias, np.int32), p, **({"axis": 0} if unit.ndim else {})))
    if convolution:
        y = g.node(
            "Conv", *inputs, kernel_shape=layer.size, strides=layer.stride, dilations=layer.dilation,
            pads=_pads(layer.padding), group=layer.groups,
        )  # fmt: skip
    else:
        if not isinstance(layer, QuantizedLinear):
            raise TypeError(f"model: expected layers of lowgemm.nn, got {type(layer).__name__}")
        y = g.node("Gemm", *inputs)
    y = g.activation(y, layer.activation)
    if layer.output_qparams is not None:
        y = g.quantize(y, layer.output_qparams)
    return y, convolution
