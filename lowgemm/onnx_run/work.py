"""How much a part of a model has to do: an estimate from the shapes of what it is given, without running it.

The unit is a multiply-accumulate of a float product. Whether a part of onnxruntime's gets threads depends on it
(`engines.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

#: What a number that a node makes counts for. A sum takes the time of 10 multiply-accumulates and an
#: exponential that of 50, but two threads gain little of it: a detector whose last part is a ConvTranspose and
#: sums of 2.5 million numbers takes 6.3 ms with threads and 6.4 without.
ELEMENT = 8
#: Steps of a Loop whose number is computed.
STEPS = 16
#: Multiply-accumulates of a step of a recurrence from which on threads pay, 4 us on one. Two threads, alone
#: and beside threads of onnxruntime's that wait: an LSTM of two directions with a hidden size of 100 (40,000)
#: 6.0 and 6.6 ms without threads, 5.6 and 9.5 with them; a GRU of 400 (480,000) 7.4 and 7.6, 3.8 and 5.7.
STEP = 1 << 17
#: Elements up to which integers and booleans are given with their values: sizes, axes, and numbers of steps.
SMALL = 64

_Shape = tuple[int, ...]


def work_of(
    nodes: Sequence[Any],
    inputs: Mapping[str, Any],
    constants: Mapping[str, np.ndarray],
    opsets: Mapping[str, int],
    ir_version: int,
) -> int:
    """Multiply-accumulates, and what counts as much.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    inputs : mapping of str to array_like
        Values that came. Anything but an array has a shape that is not known.
    constants : mapping of str to ndarray
        What the nodes read beside.
    opsets : mapping of str to int
        Version of each domain.
    ir_version : int
        Of the model.

    Returns
    -------
    int
        A node counts for what it multiplies, and `ELEMENT` times the numbers that it makes, or those that it
        reduces or pools. Of an If the larger
        branch counts, of a Loop and a Scan every step. Where the onnx package finds no shape, a node makes as
        many numbers as the largest that it reads has.
    """
    known = {n: v for n, v in (*inputs.items(), *constants.items()) if isinstance(v, np.ndarray)}
    shapes = _Shapes({n: v.shape for n, v in known.items()})
    shapes.counts |= {n: sum(np.size(a) for a in v) for n, v in inputs.items() if isinstance(v, list)}
    graph = _inferred(nodes, known, opsets, ir_version)
    if graph is not None:
        shapes.add(graph)
        nodes = graph.node  # their bodies have shapes too
    return _of_nodes(nodes, shapes, known)


class _Shapes:
    """Shapes by name, and numbers of elements of what has no known shape."""

    def __init__(self, shapes: Mapping[str, _Shape]) -> None:
        self.shapes = dict(shapes)
        self.counts = {n: math.prod(s) for n, s in shapes.items()}

    def add(self, graph: Any) -> None:
        """Those that the onnx package found in a graph."""
        for info in (*graph.value_info, *graph.output):
            kind = info.type.tensor_type
            sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
            if kind.HasField("shape") and min(sizes, default=0) >= 0:
                self.shapes[info.name] = tuple(sizes)
                self.counts[info.name] = math.prod(sizes)

    def count(self, name: str) -> int:
        """Elements; 1 of what nobody knows."""
        return self.counts.get(name, 1)


def _inferred(
    nodes: Sequence[Any], known: Mapping[str, np.ndarray], opsets: Mapping[str, int], ir_version: int
) -> Any:
    """The graph with all shapes that the onnx package finds, or None."""
    from onnx import helper, numpy_helper, shape_inference

    inputs, values = [], []
    try:
        for name, v in known.items():
            if v.dtype.kind in "iub" and v.size <= SMALL:
                values.append(numpy_helper.from_array(v, name))
            else:
                kind = 8 if v.dtype.kind == "O" else helper.np_dtype_to_tensor_dtype(v.dtype)
                inputs.append(helper.make_tensor_value_info(name, kind, v.shape))
        graph = helper.make_graph(nodes, "part", inputs, [], values)
        sets = [helper.make_opsetid(d, v) for d, v in opsets.items()]
        model = helper.make_model(graph, opset_imports=sets, ir_version=ir_version)
        return shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # of an element type or an operator that the package does not know
        return None


def _of_nodes(nodes: Sequence[Any], shapes: _Shapes, known: Mapping[str, np.ndarray]) -> int:
    total = 0
    for node in nodes:
        largest = max((shapes.count(n) for n in node.input if n), default=1)
        for name in node.output:
            shapes.counts.setdefault(name, largest)
        if node.op_type in ("If", "Loop", "Scan"):
            total += _of_bodies(node, shapes, known)
            continue
        makes = sum(shapes.count(n) for n in node.output if n)
        total += ELEMENT * (max(makes, shapes.count(node.input[0])) if _reads_all(node) else makes)
        product = _PRODUCTS.get(node.op_type)
        if product is not None:
            total += product(node, shapes)
    return total


def _reads_all(node: Any) -> bool:
    """Whether a node goes through all numbers that it is given, to make fewer."""
    return node.op_type.startswith(("Reduce", "Arg")) or node.op_type.endswith("Pool")


def _of_bodies(node: Any, shapes: _Shapes, known: Mapping[str, np.ndarray]) -> int:
    bodies = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            inner = _Shapes(shapes.shapes)
            inner.counts |= shapes.counts
            inner.shapes |= {t.name: tuple(t.dims) for t in attribute.g.initializer}
            inner.counts |= {t.name: math.prod(t.dims) for t in attribute.g.initializer}
            inner.add(attribute.g)
            bodies.append(_of_nodes(attribute.g.node, inner, known))
    return max(bodies, default=0) * _steps(node, shapes, known)


def _steps(node: Any, shapes: _Shapes, known: Mapping[str, np.ndarray]) -> int:
    if node.op_type == "If":
        return 1
    if node.op_type == "Scan":
        return next(iter(shapes.shapes.get(node.input[-1], ())), STEPS)
    return int(known[node.input[0]].max(initial=0)) if node.input[0] in known else STEPS


# ---- products: what is multiplied -------------------------------------------------------------------------
def _attribute(node: Any, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


def _matrix(data: int, weight: int) -> Callable[[Any, _Shapes], int]:
    """Every number of the data with as many as the weight has columns."""

    def product(node: Any, shapes: _Shapes) -> int:
        right = shapes.shapes.get(node.input[weight], ())
        columns = right[-2 if _attribute(node, "transB") and len(right) > 1 else -1] if right else 1
        return shapes.count(node.input[data]) * columns

    return product


def _convolution(weight: int) -> Callable[[Any, _Shapes], int]:
    """Every number of the result with a filter."""

    def product(node: Any, shapes: _Shapes) -> int:
        filters = shapes.shapes.get(node.input[weight], (1,))
        return shapes.count(node.output[0]) * math.prod(filters[1:])

    return product


def _turned_convolution(node: Any, shapes: _Shapes) -> int:
    """Every number of the data with a filter."""
    return shapes.count(node.input[0]) * math.prod(shapes.shapes.get(node.input[1], (1,))[1:])


def _recurrence(inside: int) -> Callable[[Any, _Shapes], int]:
    """Both weights once for each row of each step, if a step is large enough to be shared; `inside` is the axis
    of the weight that data have too.
    """

    def product(node: Any, shapes: _Shapes) -> int:
        weight = shapes.shapes.get(node.input[1], ())
        if len(weight) != 3:
            return 0
        recurrent = shapes.count(node.input[2])
        rows = shapes.count(node.input[0]) // max(1, weight[inside])
        data = shapes.shapes.get(node.input[0], (1, 1, 1))
        steps = max(1, data[1 if _attribute(node, "layout") else 0])
        if rows * recurrent < STEP * steps * weight[0]:  # weight[0]: directions, one after another
            return 0
        return rows * (math.prod(weight) + recurrent)

    return product


#: Operators that multiply. The quantized ones are onnxruntime's in a Loop or a Scan.
_PRODUCTS: dict[str, Callable[[Any, _Shapes], int]] = {
    "MatMul": _matrix(0, 1), "Gemm": _matrix(0, 1), "FusedMatMul": _matrix(0, 1), "FusedGemm": _matrix(0, 1),
    "MatMulInteger": _matrix(0, 1), "MatMulIntegerToFloat": _matrix(0, 1), "QLinearMatMul": _matrix(0, 3),
    "DynamicQuantizeMatMul": _matrix(0, 1), "QGemm": _matrix(0, 3),
    "Attention": _matrix(0, 1), "QAttention": _matrix(0, 1),
    "Conv": _convolution(1), "FusedConv": _convolution(1), "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3), "ConvTranspose": _turned_convolution,
    "RNN": _recurrence(2), "GRU": _recurrence(2), "LSTM": _recurrence(2), "DynamicQuantizeLSTM": _recurrence(1),
}  # fmt: skip
