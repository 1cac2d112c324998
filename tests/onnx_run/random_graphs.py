"""Random quantized graphs, beside onnxruntime's run of the graph as written.

    python tests/onnx_run/random_graphs.py --graphs 1000 --seed 1

draws graphs of up to 16 operators: quantized products and convolutions as onnxruntime's tool writes them,
float operators on them, operators that move elements, sizes that are computed from shapes, and parts of all
that as branches of an If. Each runs as written and fused, on one and on two threads, several times, so that it is recorded and gets a frame, with
other numbers, and at last with another number of rows where the graph allows that. All results are equal, bit
for bit.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any, NamedTuple

import numpy as np
import onnx_models as om
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from lowgemm.onnx_run import engines

#: Largest number of elements of a value.
LARGEST = 1 << 14
RUNS = 4
#: Operators that onnxruntime's optimizer moves a DequantizeLinear across.
MOVING = ("Reshape", "Transpose", "Unsqueeze", "Flatten", "Slice", "Gather", "Pad", "Expand", "Tile", "Split")


class Value(NamedTuple):
    """A value of the graph: its name and its shape for the first inputs."""

    name: str
    shape: tuple[int, ...]


class Unfit(Exception):
    """An operator does not fit what is there."""


class Graph:
    """A graph while it is drawn.

    Attributes
    ----------
    floats : list of Value
        float32 values.
    codes : list of (Value, str, str)
        uint8 values with the names of their scales and zero points.
    inner : dict of str to ndarray, or None
        Constants of the branch that is drawn.
    depth : int
        How many branches the operators drawn now are inside of.
    results : list of str
        Outputs whose shape is not known.
    decided : dict of str to ndarray
        Constant conditions.
    """

    def __init__(self, seed: int) -> None:
        self.r, self.g = random.Random(seed), np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.floats: list[Value] = []
        self.codes: list[tuple[Value, str, str]] = []
        self.count = self.depth = 0
        self.inner: dict[str, np.ndarray] | None = None
        self.results: list[str] = []
        self.decided: dict[str, np.ndarray] = {}

    def name(self, kind: str = "v") -> str:
        """A new one."""
        self.count += 1
        return f"{kind}{self.count}"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """The name of a new constant."""
        name = self.name("c")
        held = self.constants if self.inner is None else self.inner
        held[name] = np.asarray(value, dtype)
        return name

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        """Add a node; the name of its first output (the others have `.1`, `.2` behind it)."""
        name = self.name()
        self.nodes.append(
            helper.make_node(op, inputs, [name, *(f"{name}.{i}" for i in range(1, outputs))], **attributes)
        )
        return name

    def made(self, name: str, shape: tuple[int, ...]) -> Value:
        """Note a float value."""
        if not 0 < np.prod(shape, dtype=int) <= LARGEST or len(shape) > 5:
            raise Unfit
        value = Value(name, tuple(int(n) for n in shape))
        self.floats.append(value)
        return value

    def any(self, axes: int = 0) -> Value:
        """A float value with that many axes at least; newer ones rather than older ones."""
        fitting = [v for v in self.floats if len(v.shape) >= axes]
        if not fitting:
            raise Unfit
        return self.r.choice(fitting[-4:])


# ---- operators: each adds to the graph, or raises Unfit --------------------------------------------------


def unary(graph: Graph) -> None:
    """An operator on each element."""
    x, r = graph.any(), graph.r
    op, more = r.choice((
        ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("Erf", {}), ("Neg", {}), ("Abs", {}),
        ("LeakyRelu", {"alpha": 0.1}), ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}), ("Identity", {}),
    ))  # fmt: skip
    graph.made(graph.node(op, [x.name], **more), x.shape)


def root(graph: Graph) -> None:
    """A square root of a sum of squares and a constant, as in a norm."""
    x = graph.any()
    square = graph.node("Mul", [x.name, x.name])
    graph.made(graph.node("Sqrt", [graph.node("Add", [square, graph.constant(1e-5)])]), x.shape)


def binary(graph: Graph) -> None:
    """An operator on two values that broadcast, or on a value and a constant."""
    r, g = graph.r, graph.g
    op = r.choice(("Add", "Sub", "Mul", "Div"))
    x = graph.any()
    kind = r.randrange(4)
    if kind == 0:
        others = [v for v in graph.floats if _broadcast(v.shape, x.shape)]
        other = r.choice(others)
        shape = np.broadcast_shapes(other.shape, x.shape)
        if op == "Div":
            op = "Mul"
        name = other.name
    else:
        inner = [n if r.random() < 0.6 else 1 for n in x.shape]
        part = {1: (), 2: x.shape[-1:], 3: tuple(inner)}[kind]
        values = g.uniform(0.5, 2, part) * (1 if op == "Div" else r.choice((-1, 1)))
        name, shape = graph.constant(values), np.broadcast_shapes(x.shape, part)
    pair = [x.name, name] if r.random() < 0.7 or op == "Div" else [name, x.name]
    graph.made(graph.node(op, pair), shape)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(a[::-1], b[::-1], strict=False))


def softmax(graph: Graph) -> None:
    """Softmax over the last axis."""
    x = graph.any(1)
    graph.made(graph.node("Softmax", [x.name], axis=-1), x.shape)


def mean(graph: Graph) -> None:
    """ReduceMean over the last axis."""
    x, keep = graph.any(1), graph.r.random() < 0.8
    shape = x.shape[:-1] + ((1,) if keep else ())
    graph.made(graph.node("ReduceMean", [x.name], axes=[-1], keepdims=int(keep)), shape)


def normalized(graph: Graph) -> None:
    """LayerNormalization of a product, or what it does, or a root mean square, written out, with a Cast of
    float32 to itself. Of another value onnxruntime's optimizer makes one operator of it, in a part of
    lowgemm's too.
    """
    dynamic_product(graph)
    x, r, g = graph.floats[-1], graph.r, graph.g
    width = x.shape[-1]
    gain, bias = (graph.constant(g.uniform(0.5, 2, width)) for _ in range(2))
    kind = r.randrange(3)
    if kind == 0 and width > 7:
        names = [x.name, gain, bias][: r.choice((2, 3))]
        graph.made(graph.node("LayerNormalization", names, epsilon=1e-3), x.shape)
        return
    name, epsilon = graph.node("Cast", [x.name], to=T.FLOAT), graph.constant(1e-3)
    if kind:
        name = graph.node("Sub", [name, graph.node("ReduceMean", [name], axes=[-1], keepdims=1)])
    square = graph.node("Pow", [name, graph.constant(2.0)])
    mean = graph.node("ReduceMean", [square], axes=[-1], keepdims=1)
    root = graph.node("Sqrt", [graph.node("Add", [mean, epsilon])])
    graph.made(graph.node("Add", [graph.node("Mul", [graph.node("Div", [name, root]), gain]), bias]), x.shape)


def slice_(graph: Graph) -> None:
    """A part of some axes, also backwards; perhaps with bounds that are computed from the shape."""
    x, r = graph.any(1), graph.r
    axis = r.randrange(len(x.shape))
    n = x.shape[axis]
    if r.random() < 0.4:
        size = graph.node("Shape", [x.name])
        end = graph.node("Gather", [size, graph.constant([axis], np.int64)])
        half = graph.node("Div", [end, graph.constant([2], np.int64)])
        bounds = [half, end] if r.random() < 0.5 or n < 2 else [graph.constant([0], np.int64), half]
        name = graph.node("Slice", [x.name, *bounds, graph.constant([axis], np.int64)])
        taken = range(n)[slice(n // 2, n) if bounds[0] == half else slice(0, n // 2)]
    else:
        step = r.choice((1, 1, 1, 2, -1))
        begin, end = (0, r.randint(1, n)) if step > 0 else (n - 1, -n - 1)
        if step == 1:
            begin = r.randrange(end)
        taken = range(n)[begin : None if end < -n else end : step]
        parts = [graph.constant([v], np.int64) for v in (begin, end, axis, step)]
        name = graph.node("Slice", [x.name, *parts])
    graph.made(name, (*x.shape[:axis], len(taken), *x.shape[axis + 1 :]))


def concat(graph: Graph) -> None:
    """Two or three values, or one twice, put together."""
    x, r = graph.any(1), graph.r
    axis = r.randrange(len(x.shape))
    fitting = [
        v for v in graph.floats
        if len(v.shape) == len(x.shape)
        and all(a == b for i, (a, b) in enumerate(zip(v.shape, x.shape, strict=True)) if i != axis)
    ]  # fmt: skip
    parts = [x, *(r.choice(fitting) for _ in range(r.randint(1, 2)))]
    r.shuffle(parts)
    shape = list(x.shape)
    shape[axis] = sum(v.shape[axis] for v in parts)
    graph.made(
        graph.node("Concat", [v.name for v in parts], axis=axis - r.choice((0, len(shape)))), tuple(shape)
    )


def gather(graph: Graph) -> None:
    """Some indices of an axis, or one."""
    x, r = graph.any(2), graph.r
    axis = r.randrange(len(x.shape))
    n = x.shape[axis]
    indices = graph.g.integers(-n, n, r.choice(((), (1,), (3,), (2, 2))))
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    graph.made(graph.node("Gather", [x.name, graph.constant(indices, np.int64)], axis=axis), shape)


def pad(graph: Graph) -> None:
    """More elements at the ends of one axis."""
    x, r = graph.any(1), graph.r
    axis, mode = r.randrange(len(x.shape)), r.choice(("constant", "constant", "reflect", "edge"))
    most = min(2, x.shape[axis] - 1) if mode == "reflect" else 2
    ends = np.zeros((2, len(x.shape)), np.int64)
    ends[:, axis] = r.randint(0, most), r.randint(0, most)
    inputs = [x.name, graph.constant(ends.reshape(-1), np.int64)]
    if mode == "constant" and r.random() < 0.5:
        inputs.append(graph.constant(0.25))
    graph.made(graph.node("Pad", inputs, mode=mode), np.add(x.shape, ends.sum(0)))


def split(graph: Graph) -> None:
    """Two or three parts of an axis."""
    x, r = graph.any(1), graph.r
    axis = r.randrange(len(x.shape))
    n = x.shape[axis]
    cuts = sorted(r.randint(1, n - 1) for _ in range(r.randint(1, 2))) if n > 1 else [1]
    sizes = np.diff([0, *dict.fromkeys(cuts), n])
    if n < 2:
        raise Unfit
    name = graph.node("Split", [x.name, graph.constant(sizes, np.int64)], len(sizes), axis=axis)
    for i, size in enumerate(sizes):
        graph.made(f"{name}.{i}" if i else name, (*x.shape[:axis], size, *x.shape[axis + 1 :]))


def repeat(graph: Graph) -> None:
    """Each element, or the whole of an axis, several times."""
    x, r = graph.any(1), graph.r
    axis, times, kind = r.randrange(len(x.shape)), r.randint(2, 3), r.randrange(3)
    shape = (*x.shape[:axis], times * x.shape[axis], *x.shape[axis + 1 :])
    factors = [times if i == axis else 1 for i in range(len(shape))]
    if kind == 0:
        name = graph.node("Tile", [x.name, graph.constant(factors, np.int64)])
    elif kind == 1 and x.shape[axis] == 1:
        name = graph.node("Expand", [x.name, graph.constant(factors, np.int64)])
    elif kind == 2 and len(x.shape) == 4 and axis > 1:
        rules = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        more = rules if r.random() < 0.5 else {}
        name = graph.node("Resize", [x.name, "", graph.constant(factors)], mode="nearest", **more)
    else:
        raise Unfit
    graph.made(name, shape)


def transpose(graph: Graph) -> None:
    """Axes in another order."""
    x = graph.any(2)
    order = list(range(len(x.shape)))
    graph.r.shuffle(order)
    graph.made(graph.node("Transpose", [x.name], perm=order), tuple(x.shape[a] for a in order))


def reshape(graph: Graph) -> None:
    """All axes behind the first as one, in one of four ways."""
    x, r = graph.any(2), graph.r
    rest = int(np.prod(x.shape[1:]))
    way = r.randrange(4)
    if way == 0:
        name = graph.node("Flatten", [x.name], axis=1)
    elif way == 1:
        name = graph.node("Reshape", [x.name, graph.constant([0, -1], np.int64)])
    elif way == 2:
        first = graph.node("Gather", [graph.node("Shape", [x.name]), graph.constant([0], np.int64)])
        name = graph.node(
            "Reshape", [x.name, graph.node("Concat", [first, graph.constant([-1], np.int64)], axis=0)]
        )
    else:
        half = 2 if rest % 2 == 0 else 1
        name = graph.node("Reshape", [x.name, graph.constant([0, half, rest // half], np.int64)])
        graph.made(name, (x.shape[0], half, rest // half))
        return
    graph.made(name, (x.shape[0], rest))


def unsqueeze(graph: Graph) -> None:
    """An axis of 1 more."""
    x = graph.any()
    axis = graph.r.randint(0, len(x.shape))
    name = graph.node("Unsqueeze", [x.name, graph.constant([axis], np.int64)])
    graph.made(name, (*x.shape[:axis], 1, *x.shape[axis:]))


def dynamic_product(graph: Graph) -> None:
    """A product as the tool's dynamic models have it, of constant weights."""
    x, r, g = graph.any(2), graph.r, graph.g
    depth, width = x.shape[-1], r.choice((1, 8, 17, 32))
    q = graph.node("DynamicQuantizeLinear", [x.name], 3)
    kind = r.choice((np.uint8, np.int8))
    w = graph.constant(g.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (depth, width)), kind)
    zero = graph.constant(r.choice((0, 3, 100)), kind)
    sums = graph.node("MatMulInteger", [q, w, f"{q}.2", zero])
    scale = graph.constant(g.uniform(0.001, 0.01, r.choice(((), (1,), (width,)))))
    now = graph.node("Mul", [graph.node("Cast", [sums], to=T.FLOAT), graph.node("Mul", [f"{q}.1", scale])])
    if r.random() < 0.6:
        now = graph.node("Add", [now, graph.constant(g.standard_normal(width))])
    graph.made(now, (*x.shape[:-1], width))


def dynamic_convolution(graph: Graph) -> None:
    """A convolution as the tool's dynamic models have it."""
    x, r, g = graph.any(3), graph.r, graph.g
    if len(x.shape) > 4:
        raise Unfit
    inside, spatial = x.shape[1], x.shape[2:]
    group = inside if r.random() < 0.3 else 1
    outside = inside if group > 1 else r.choice((4, 16, 20))
    window = [min(3, n) for n in spatial]
    q = graph.node("DynamicQuantizeLinear", [x.name], 3)
    w = graph.constant(g.integers(0, 256, (outside, inside // group, *window)), np.uint8)
    zero = graph.constant(128, np.uint8)
    ends = [r.randrange(2) for _ in spatial] * 2
    strides = [r.choice((1, 1, 2)) for _ in spatial]
    sums = graph.node("ConvInteger", [q, w, f"{q}.2", zero], group=group, pads=ends, strides=strides)
    scale = graph.node("Mul", [f"{q}.1", graph.constant(g.uniform(0.001, 0.01))])
    now = graph.node("Mul", [graph.node("Cast", [sums], to=T.FLOAT), scale])
    if r.random() < 0.5:
        bias = g.standard_normal((1, outside, *[1] * len(spatial)))
        now = graph.node("Add", [now, graph.constant(bias)])
    sizes = [
        (n + a + b - k) // s + 1
        for n, a, b, k, s in zip(
            spatial, ends[: len(spatial)], ends[len(spatial) :], window, strides, strict=True
        )
    ]
    graph.made(now, (x.shape[0], outside, *sizes))


def quantize(graph: Graph) -> None:
    """To uint8 with a constant scale, and back, perhaps with something between."""
    x, r = graph.any(), graph.r
    pair = [graph.constant(r.uniform(0.01, 0.1)), graph.constant(r.choice((0, 128, 77)), np.uint8)]
    code = graph.node("QuantizeLinear", [x.name, *pair])
    graph.codes.append((Value(code, x.shape), *pair))
    graph.made(graph.node("DequantizeLinear", [code, *pair]), x.shape)


def moved_codes(graph: Graph) -> None:
    """Bytes in another order, as one row of an axis, or two of them put together, and back to float32."""
    if not graph.codes:
        raise Unfit
    r = graph.r
    x, scale, zero = r.choice(graph.codes[-3:])
    if len(x.shape) < 2:
        raise Unfit
    way = r.randrange(3)
    if way == 0:
        order = list(range(len(x.shape)))[::-1]
        name, shape = graph.node("Transpose", [x.name], perm=order), x.shape[::-1]
    elif way == 1:
        name, shape = graph.node("Concat", [x.name, x.name], axis=0), (2 * x.shape[0], *x.shape[1:])
    else:
        name = graph.node("Gather", [x.name, graph.constant(x.shape[0] - 1, np.int64)])
        shape = x.shape[1:]
    graph.made(graph.node("DequantizeLinear", [name, scale, zero]), shape)


def conditional(graph: Graph) -> None:
    """An If: parts of the graph as its branches. What decides is an input, a number, a size or a constant; the
    branches may have names in common, constants of their own or of the graph, and others inside of them.
    """
    if graph.depth == 2:
        raise Unfit
    r = graph.r
    condition, equal = _condition(graph), r.random() < 0.5
    before = graph.count
    first = _branch(graph, before, [None] * r.choice((1, 1, 2, 3)), equal)
    shapes = [v.shape for v in first[1]]
    second = _branch(graph, before if equal else graph.count, shapes, equal)
    graphs = [first[0], second[0]]
    r.shuffle(graphs)
    graph.node("If", [condition], len(shapes), then_branch=graphs[0], else_branch=graphs[1])
    # onnxruntime's optimizer (1.32) aborts the process where a branch reads what was dequantized and moved
    makers = {o: n for n in graph.nodes for o in n.output}
    for node in [makers.get(n) for n in engines.reads_of(graph.nodes[-1])[1:]]:
        source = node
        while source is not None and source.op_type in MOVING:
            source = makers.get(source.input[0])
        if source is not node and source is not None and source.op_type == "DequantizeLinear":
            raise Unfit
    for output, a, b in zip(graph.nodes[-1].output, first[1], second[1], strict=True):
        if a.shape == b.shape:
            graph.made(output, a.shape)
        else:
            graph.results.append(output)


def _condition(graph: Graph) -> str:
    """The name of a boolean."""
    r, kind = graph.r, graph.r.randrange(5)
    if kind < 2:
        return "condition"
    if kind == 2:
        name = f"decided{len(graph.decided)}"
        graph.constants[name] = graph.decided[name] = np.array(r.random() < 0.5)
        return name
    x = graph.any(1)
    if kind == 3:
        size = graph.node("Gather", [graph.node("Shape", [x.name]), graph.constant(0, np.int64)])
        return graph.node("Equal", [size, graph.constant(x.shape[0], np.int64)])
    return graph.node("Greater", [graph.node("ReduceSum", [x.name], keepdims=0), graph.constant(0.0)])


def _branch(graph: Graph, count: int, wanted: list[Any], alone: bool) -> tuple[Any, list[Value]]:
    """A branch and its results, of the wanted shapes if there are such values; its names are counted from
    `count` on. `alone`: its constants must be its own.
    """
    r = graph.r
    outside = graph.nodes, graph.floats, graph.codes, graph.inner, graph.results, graph.count
    graph.nodes, graph.floats, graph.codes, graph.results = [], [*graph.floats], [*graph.codes], []
    graph.count, graph.depth = count, graph.depth + 1
    # names that are counted anew may be those of constants outside
    own = alone or r.random() < 0.7
    graph.inner = {} if own else graph.inner
    _grow(graph, r.randint(1, 5))
    results: list[Value] = []
    for shape in wanted:
        fitting = [v for v in graph.floats if shape is None or v.shape == shape] or graph.floats
        inside = [v for v in fitting if v not in outside[1] and v not in results]
        if inside:
            result = r.choice(inside[-2:])
        else:
            x = r.choice(fitting)
            result = Value(graph.node(r.choice(("Identity", "Sigmoid")), [x.name]), x.shape)
        if own and r.random() < 0.05:
            result = Value(graph.constant(graph.g.standard_normal(result.shape)), result.shape)
        results.append(result)
    held = graph.inner if own and graph.inner is not None else {}
    tensors = [numpy_helper.from_array(v, n) for n, v in held.items()]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
    as_nodes = r.random() < 0.5
    outputs = [helper.make_tensor_value_info(v.name, T.FLOAT, None) for v in results]
    made = helper.make_graph(
        [*nodes, *graph.nodes] if as_nodes else graph.nodes, "b", [], outputs, [] if as_nodes else tensors
    )
    most = graph.count
    graph.nodes, graph.floats, graph.codes, graph.inner, graph.results, graph.count = outside
    graph.count, graph.depth = max(most, graph.count), graph.depth - 1
    return made, results


#: With how often each is tried.
OPERATORS = (
    (unary, 4), (root, 1), (normalized, 2), (binary, 5), (softmax, 1), (mean, 2), (slice_, 3), (concat, 2),
    (gather, 2), (pad, 1), (split, 1), (repeat, 2), (transpose, 2), (reshape, 2), (unsqueeze, 1),
    (dynamic_product, 6), (dynamic_convolution, 3),
    (quantize, 2), (moved_codes, 2), (conditional, 4),
)  # fmt: skip


class Drawn(NamedTuple):
    """A model and what it is run with, several times; and its constant conditions."""

    model: Any
    feeds: list[dict[str, np.ndarray]]
    decided: dict[str, np.ndarray]

    def undecided(self) -> Drawn:
        """The same with these conditions as inputs: onnxruntime's optimizer (1.32) aborts the process for
        some models with constant ones.
        """
        model = type(self.model)()
        model.CopyFrom(self.model)
        kept = [t for t in self.model.graph.initializer if t.name not in self.decided]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.input.extend(om.value(n, [], T.BOOL) for n in self.decided)
        return Drawn(model, [feed | self.decided for feed in self.feeds], {})


def _grow(graph: Graph, wanted: int) -> None:
    """Add so many operators, or as many as fit."""
    choices = [f for f, weight in OPERATORS for _ in range(weight)]
    tries = 0
    while wanted and tries < 200:
        tries += 1
        before = len(graph.nodes), len(graph.floats)
        try:
            graph.r.choice(choices)(graph)
            wanted -= 1
        except Unfit:
            del graph.nodes[before[0] :], graph.floats[before[1] :]


def draw(seed: int) -> Drawn:
    """A random model."""
    graph = Graph(seed)
    r = graph.r
    inputs = []
    for i in range(r.randint(1, 2)):
        shape = r.choice(((r.randint(1, 5), r.randint(1, 40)), (1, r.randint(1, 6), r.randint(1, 24)),
                          (r.randint(1, 2), r.randint(1, 8), r.randint(3, 9), r.randint(3, 9))))  # fmt: skip
        inputs.append(Value(f"x{i}", shape))
    graph.floats += inputs
    _grow(graph, r.randint(3, 16))
    made = [v for v in graph.floats if v not in inputs]
    read = {n for node in graph.nodes for n in engines.reads_of(node)}
    outputs = [v for v in made if v.name not in read or r.random() < 0.1]
    model = om.model_of(
        graph.nodes,
        [om.value("condition", [], T.BOOL), *(om.value(v.name, [None] * len(v.shape)) for v in inputs)],
        [helper.make_tensor_value_info(n, T.FLOAT, None) for n in [v.name for v in outputs] + graph.results],
        graph.constants, checked=False,
    )  # fmt: skip
    feeds: list[dict[str, np.ndarray]] = [
        {v.name: _numbers(graph, v.shape) for v in inputs} for _ in range(RUNS)
    ]
    more = r.randint(1, 2)
    feeds.append({v.name: _numbers(graph, (v.shape[0] + more, *v.shape[1:])) for v in inputs})
    for feed in feeds:
        feed["condition"] = np.array(r.random() < 0.5)
    return Drawn(model, feeds, graph.decided)


def _numbers(graph: Graph, shape: tuple[int, ...]) -> np.ndarray:
    scale = graph.r.choice((1, 1, 3, 0.01, 0))
    return (graph.g.standard_normal(shape) * scale).astype(np.float32)


def _answers(session: Any, feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """What onnxruntime says, perhaps without the last, of another shape: it may refuse that, and where
    something becomes empty it may return memory that nothing was written to.
    """
    answers = [session.run(None, feed) for feed in feeds[:RUNS]]
    try:
        last, again = [session.run(None, feeds[RUNS]) for _ in range(2)]
    except Exception:  # onnxruntime has a class for each kind of error
        return answers
    sound = all(a.size and _same(a, b) for a, b in zip(last, again, strict=True))
    return [*answers, last] if sound else answers


def _session(model: Any, level: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


def differences(seed: int) -> list[str]:
    """What is wrong with the results for a graph; nothing if all are right.

    Fused, an output is left out if onnxruntime's own optimizer changes it: it adds the numbers of a
    ReduceMean behind a Transpose in another order, and lowgemm's fused float parts are optimized by it.
    """
    from lowgemm.onnx_run import Model

    drawn = draw(seed)
    right = _answers(_session(drawn.model, "ORT_DISABLE_ALL"), drawn.feeds)
    other = drawn.undecided()
    optimized = _answers(_session(other.model, "ORT_ENABLE_ALL"), other.feeds[: len(right)])
    changed = {
        i for a, b in zip(right, optimized, strict=False) for i in range(len(a)) if not _same(a[i], b[i])
    }
    wrong = []
    for fuse in (False, True):
        for threads in (1, 2):
            where = f"seed {seed}, fuse={fuse}, {threads} threads"
            model = Model(drawn.model, fuse=fuse, num_threads=threads)
            looked_at = [i for i in range(len(right[0])) if not (fuse and i in changed)]
            held = [model.run(None, feed) for feed in drawn.feeds[: len(right)]]
            # after all runs: none may change the results of one before
            for run, (got, expected) in enumerate(zip(held, right, strict=True)):
                wrong += [
                    f"{where}, run {run}: output {i}" for i in looked_at if not _same(got[i], expected[i])
                ]
    return wrong


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bad = 0
    for seed in range(args.seed, args.seed + args.graphs):
        try:
            wrong = differences(seed)
        except Exception as error:
            wrong = [f"seed {seed}: {type(error).__name__}: {error}"]
        bad += bool(wrong)
        for line in wrong:
            print(line, flush=True)
    print(f"{args.graphs} graphs, {bad} wrong")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
