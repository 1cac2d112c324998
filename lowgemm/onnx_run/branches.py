"""The branches of an If as graphs of the model, like its own.

A branch reads what is around it by name, has constants of its own, and may have names that the other branch
has too. Here every name is made the only one of its kind in the model, and the constants of branches become
the model's. From then on a branch is a graph like the model's own: it is folded (`folded.py`), rewritten
(`rewrite.py`) and made into a program (`program.py`) in the same way, and what it reads of others are its
inputs.

Where a constant decides which branch it is, the nodes of that branch take the place of the If.

An If whose branches hold nothing of lowgemm's stays as it is, and so does everything in a Loop or a Scan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from lowgemm.onnx_run.engines import LARGE, PLAIN, copy_of, graphs_of

#: Operators by domain and name.
Table = Collection[tuple[str, str]]


def holds_ours(node: Any, table: Table) -> bool:
    """Whether the subgraphs of a node have operators that are in a table."""
    return any(
        (inner.domain, inner.op_type) in table or holds_ours(inner, table)
        for graph in graphs_of(node)
        for inner in graph.node
    )


def is_if(node: Any) -> bool:
    """Whether a node is an If."""
    return bool(node.op_type == "If" and not node.domain)


def is_identity(node: Any) -> bool:
    """Whether a node is an Identity."""
    return bool(node.op_type == "Identity" and node.domain in ("", "ai.onnx"))


def branch(node: Any, condition: bool) -> Any:
    """The graph that an If runs."""
    wanted = "then_branch" if condition else "else_branch"
    return next(a.g for a in node.attribute if a.name == wanted)


def inside(graph: Any, table: Table) -> list[Any]:
    """The branches of each If of a graph that holds operators of a table."""
    return [
        inner for node in graph.node if is_if(node) and holds_ours(node, table) for inner in graphs_of(node)
    ]


def graphs(graph: Any, table: Table) -> Iterator[Any]:
    """A graph and all branches of that kind in it, outer ones first."""
    yield graph
    for inner in inside(graph, table):
        yield from graphs(inner, table)


def _defined(graph: Any) -> Iterator[str]:
    """Names that a graph itself gives to values."""
    for named in (*graph.input, *graph.initializer):
        yield named.name
    for node in graph.node:
        yield from (o for o in node.output if o)


def _all_inside(graph: Any) -> Iterator[Any]:
    """Every graph in a graph, outer ones first."""
    for node in graph.node:
        for inner in graphs_of(node):
            yield inner
            yield from _all_inside(inner)


class Names:
    """Names in use anywhere in a model, and new ones.

    Parameters
    ----------
    model : ModelProto
        The model.
    held : collection of str
        Names of initializers that are not in its message.
    """

    def __init__(self, model: Any, held: Collection[str] = ()) -> None:
        every = (model.graph, *_all_inside(model.graph))
        self._count = Counter(name for graph in every for name in _defined(graph))
        self._count.update(iter(held))  # of a dict it would take the values

    def new(self, name: str) -> str:
        """`name`, with underscores behind it if it is in use; it is then."""
        while name in self._count:
            name += "_"
        self._count[name] = 1
        return name

    def only(self, name: str) -> str:
        """The name for what has `name`: another, if other values have it too."""
        return name if self._count[name] == 1 else self.new(name)


def rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give values of a graph other names, there and where graphs in it read them."""
    if not names:
        return
    for node in graph.node:
        for values in (node.input, node.output):
            for i, n in enumerate(values):
                if n in names:
                    values[i] = names[n]
        for inner in graphs_of(node):
            own = set(_defined(inner))
            rename(inner, {a: b for a, b in names.items() if a not in own})
    for named in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        named.name = names.get(named.name, named.name)


def _constants_taken_from(graph: Any) -> list[Any]:
    """Take the `Constant` nodes that hold a tensor out of a graph; the tensors, with the names of their
    values.
    """
    kept, tensors = [], []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and value is not None:
            tensors.append(copy_of(value.t))
            tensors[-1].name = node.output[0]
        else:
            kept.append(node)
    if tensors:
        _put(graph, [copy_of(n) for n in kept])
    return tensors


def _put(graph: Any, nodes: list[Any]) -> None:
    """Let a graph have these nodes, which are copies, instead of its own."""
    del graph.node[:]
    graph.node.extend(nodes)


def constants_to_initializers(model: Any) -> None:
    """Turn `Constant` nodes that hold a tensor into initializers: what they feed counts as constant then."""
    model.graph.initializer.extend(_constants_taken_from(model.graph))


def lift(model: Any, table: Table) -> None:
    """Make every name in a model the only one of its kind, and the constants of branches that hold operators of
    a table initializers of the model.
    """
    names = Names(model)
    for graph in _all_inside(model.graph):
        rename(graph, {n: new for n in _defined(graph) if (new := names.only(n)) != n})
    for graph in graphs(model.graph, table):
        if graph is not model.graph:
            model.graph.initializer.extend(_lifted(graph, names))


def _lifted(graph: Any, names: Names) -> list[Any]:
    """Take the constants of a branch out of it, and let nodes make all its results."""
    from onnx import helper

    tensors = [copy_of(t) for t in graph.initializer] + _constants_taken_from(graph)
    del graph.initializer[:], graph.value_info[:]
    # onnxruntime refuses a branch that returns what is outside of it
    made = {o for n in graph.node for o in n.output}
    for output in graph.output:
        if output.name not in made:
            name = names.new(output.name)
            graph.node.append(helper.make_node("Identity", [output.name], [name]))
            output.name = name
    return tensors


def _in_place_of(node: Any, taken: Any) -> list[Any]:
    """The nodes of a branch, and what gives their results the names of an If's."""
    from onnx import helper

    names: dict[str, str] = {}
    twice = []
    for inner, outer in zip(taken.output, node.output, strict=False):
        if outer and inner.name not in names:
            names[inner.name] = outer
        elif outer:
            twice.append(helper.make_node("Identity", [names[inner.name]], [outer]))
    rename(taken, names)
    return [copy_of(n) for n in taken.node] + twice


def decide(
    model: Any,
    graph: Any,
    table: Table,
    constants: dict[str, np.ndarray],
    held: dict[str, np.ndarray] | None = None,
) -> bool:
    """Put the nodes of a branch in the place of each If of a graph whose condition is a constant.

    Parameters
    ----------
    model : ModelProto
        The model, after `lift`.
    graph : GraphProto
        Its own, or that of a branch in it.
    table : collection
        As in `lift`.
    constants : dict of str to ndarray
        The model's initializers that nobody overrides; those of the branches come to it.
    held : dict of str to ndarray, optional
        Initializers that are not in the model's message. Large ones of the branches come to it.

    Returns
    -------
    bool
        Whether there was any.
    """

    def condition(node: Any) -> Any:
        found = constants.get(node.input[0]) if is_if(node) else None
        return None if found is None or found.size != 1 else bool(found.reshape(()))

    known = [condition(n) for n in graph.node]
    if all(c is None for c in known):
        return False
    names, nodes = Names(model, held or ()), []
    for node, taken in zip(list(graph.node), known, strict=True):
        if taken is None:
            nodes.append(copy_of(node))
            continue
        inner = branch(node, taken)
        if not holds_ours(node, table):
            for tensor in _lifted(inner, names):
                _keep(tensor, model, constants, held)
        nodes += _in_place_of(node, inner)
    _put(graph, nodes)
    return True


def _keep(
    tensor: Any, model: Any, constants: dict[str, np.ndarray], held: dict[str, np.ndarray] | None
) -> None:
    """Make a tensor an initializer of the model."""
    from onnx import numpy_helper

    value = constants[tensor.name] = numpy_helper.to_array(tensor)
    value.flags.writeable = False
    if held is not None and value.nbytes > LARGE and value.dtype in PLAIN:
        held[tensor.name] = value
    else:
        model.graph.initializer.append(tensor)


def decide_all(model: Any, table: Table) -> None:
    """`decide` for all graphs of a model whose initializers are all in its message, until no constant decides
    any more.
    """
    from onnx import numpy_helper

    fed = {i.name for i in model.graph.input}
    found = True
    while found:
        asked = {n.input[0] for graph in graphs(model.graph, table) for n in graph.node if is_if(n)} - fed
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in asked}
        found = any([decide(model, graph, table, constants) for graph in graphs(model.graph, table)])
