"""Nodes that constants alone decide, computed once, when a model is loaded.

Models in half precision keep each weight behind a Cast, which quantizers do not look behind. They quantize
what the Cast makes, in every run. With the Cast and the quantizer computed, such weights are constants like
others, which are packed once; and biases behind a Cast are numbers that a chain adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lowgemm.onnx_run import branches
from lowgemm.onnx_run.engines import (
    LARGE,
    PLAIN,
    Context,
    Subgraph,
    attributes_of,
    copy_of,
    graphs_of,
    reads_of,
)
from lowgemm.onnx_run.operators import OPERATORS
from lowgemm.onnx_run.state import NotOurs, State

#: Operators whose results are not the same each time.
CHANCE = (
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
)  # fmt: skip
#: Results may be so many times as large as what they are made from, or have so many bytes. To write out what
#: an Expand or a ConstantOfShape says in a few bytes saves nothing.
TIMES, FREE = 4, 1 << 16
#: Operators of lowgemm's that constants may go through; a DequantizeLinear says how weights are coded.
CODING = ("QuantizeLinear", "DynamicQuantizeLinear")


def fold(
    model: Any, held: dict[str, np.ndarray], context: Context, state: State, table: branches.Table = ()
) -> None:
    """Compute such nodes of a model in place, and put the nodes of a branch in the place of each If that they
    decide.

    Parameters
    ----------
    model : ModelProto
        The model, after `branches.lift`.
    held : dict of str to ndarray
        Its initializers that are not in its message; large results come here.
    context : Context
        Of the engine that computes float nodes.
    state : State
        Settings.
    table : collection
        Operators of lowgemm's: branches that hold any are graphs of the model's like its own.
    """
    from onnx import numpy_helper

    # an initializer that is also an input may be overridden
    fed = {i.name for i in model.graph.input}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name not in fed}
    constants |= {n: v for n, v in held.items() if n not in fed}
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        _fold(graph, model, constants, held, context, state)
        while branches.decide(model, graph, table, constants, held):
            _fold(graph, model, constants, held, context, state)
        graphs += branches.inside(graph, table)


def _fold(
    graph: Any,
    model: Any,
    constants: dict[str, np.ndarray],
    held: dict[str, np.ndarray],
    context: Context,
    state: State,
) -> None:
    """Compute such nodes of one graph; results that are read become constants of the model."""
    from onnx import numpy_helper

    known = dict(constants)
    outputs = {o.name for o in graph.output}
    found = _floats(graph.node, known, outputs, context)
    known |= found
    for node in graph.node:
        mine = node.op_type in CODING and not node.domain and outputs.isdisjoint(node.output)
        if mine and all(n in known for n in node.input):
            made = results_of(node, OPERATORS[node.domain, node.op_type], known, state)
            known |= made
            found |= made
    if not found:
        return
    kept = [copy_of(n) for n in graph.node if not all(o in found for o in n.output if o)]
    del graph.node[:]
    graph.node.extend(kept)
    read = {n for node in kept for n in reads_of(node)}
    for name, value in found.items():
        if name in read:
            value.flags.writeable = False
            constants[name] = value
            if value.nbytes > LARGE and value.dtype in PLAIN:
                held[name] = value
            else:
                model.graph.initializer.append(numpy_helper.from_array(value, name))


def _floats(
    nodes: Any, constants: Mapping[str, np.ndarray], outputs: set[str], context: Context
) -> dict[str, np.ndarray]:
    """Results of the engine's nodes that constants alone decide."""
    taken: list[Any] = []
    #: By name: bytes of the constants that it is made from.
    source = {n: v.nbytes for n, v in constants.items()}
    for node in nodes:
        other = (node.domain, node.op_type) in OPERATORS or node.domain or node.op_type in CHANCE
        if other or graphs_of(node) or not outputs.isdisjoint(node.output):
            continue
        reads = reads_of(node)
        if all(n in source for n in reads) and (reads or node.op_type == "Constant"):
            taken.append(node)
            source |= {o: sum(source[n] for n in reads) for o in node.output if o}
    if not taken:
        return {}
    reads = list(dict.fromkeys(n for node in taken for n in reads_of(node) if n in constants))
    made = [o for node in taken for o in node.output if o]
    part = Subgraph(taken, [], made, {n: constants[n] for n in reads}, context)
    try:
        results = part()
    except (TypeError, ValueError):  # said when it runs
        return {}
    found = {
        n: v
        for n, v in zip(made, results, strict=True)
        if isinstance(v, np.ndarray) and v.nbytes <= max(FREE, TIMES * source[n])
    }
    whole = {o for node in taken if all(o in found for o in node.output if o) for o in node.output}
    return {n: v for n, v in found.items() if n in whole}


def results_of(
    node: Any, function: Callable[..., Any], constants: Mapping[str, np.ndarray], state: State
) -> dict[str, np.ndarray]:
    """What `function` makes of a node of lowgemm's whose inputs are all constants, by name; nothing if it
    refuses them.
    """
    try:
        given = [constants.get(n) for n in node.input]
        results = function(state, *given, **attributes_of(node))
    except (NotOurs, TypeError, ValueError):  # said when it runs
        return {}
    results = results if isinstance(results, tuple) else (results,)
    return {o: np.asarray(r) for o, r in zip(node.output, results, strict=False) if o}
