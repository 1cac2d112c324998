"""Which nodes of a graph are a chain of float operators (`chains.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm.onnx_run import views
from lowgemm.onnx_run.chain_code import ADD, DIV, ERF, MAX, MIN, MUL, SIGMOID, SLOPE, SQRT, SUB, TANH
from lowgemm.onnx_run.dynamic import as_own
from lowgemm.onnx_run.engines import attributes_of, copy_of, reads_of
from lowgemm.onnx_run.image_means import is_image_mean
from lowgemm.onnx_run.layer_norm import is_layer_norm
from lowgemm.onnx_run.row_means import is_row_mean


class Group(NamedTuple):
    """Nodes of a chain in order; names of what it reads and makes; which inputs no one else reads, so that a
    result may lie there; and outputs whose range is wanted.
    """

    nodes: list[Any]
    inputs: list[str]
    outputs: list[str]
    spent: list[str]
    ranged: list[str]


#: Operators of two operands.
TWO = {"Add": ADD, "Sub": SUB, "Mul": MUL, "Div": DIV, "PRelu": SLOPE}
CURVES = {"Sigmoid": SIGMOID, "Tanh": TANH, "Erf": ERF, "Sqrt": SQRT}
#: onnx.TensorProto.FLOAT, and some operators all of whose float operands have the type of the result.
_FLOAT = 1
_ALIKE = (
    {n for _, n in views.OPERATORS} | TWO.keys() | CURVES.keys() | {"ReduceMean", "Softmax", "MatMul", "Relu"}
)
#: Nodes at most of chains that are merged: each needs registers.
MERGED = 16
#: Where a chain begins that makes float32 numbers of sums: sums * scale + bias.
SCALED = "Scaled"


def _number(constants: Mapping[str, np.ndarray], name: str) -> float | None:
    value = constants.get(name)
    return None if value is None or value.dtype != np.float32 or value.size != 1 else float(value.reshape(()))


def steps_of(node: Any, constants: Mapping[str, np.ndarray]) -> list[tuple[int, float]] | None:
    """An operator of one tensor as (operation, number) in order; None if it is none, or its numbers are not
    constants.
    """
    if node.domain or len(node.output) != 1:
        return None
    numbers = attributes_of(node)
    if node.op_type == "Relu":
        return [(MAX, 0.0)]
    if node.op_type in CURVES:
        return [(CURVES[node.op_type], 0.0)]
    if node.op_type == "LeakyRelu":
        return [(SLOPE, float(np.float32(numbers.get("alpha", 0.01))))]
    if node.op_type == "HardSwish":  # the number times its hard sigmoid
        return [(MUL, float(np.float32(1 / 6))), (ADD, 0.5), (MIN, 1.0), (MAX, 0.0)]
    if node.op_type == "HardSigmoid":
        alpha, beta = (np.float32(numbers.get(n, d)) for n, d in (("alpha", 0.2), ("beta", 0.5)))
        return [(MUL, float(alpha)), (ADD, float(beta)), (MIN, 1.0), (MAX, 0.0)]
    if node.op_type == "Pow":
        power = _number(constants, node.input[1])
        return [(MUL, 0.0)] * (int(power) - 1) if power in (2, 3) else None  # onnxruntime's cube is x * x * x
    if node.op_type == "Clip":
        found = []
        for i, (name, operation) in enumerate((("min", MAX), ("max", MIN)), 1):
            if name in numbers:
                found.append((operation, float(numbers[name])))
            elif len(node.input) > i and node.input[i]:
                value = _number(constants, node.input[i])
                if value is None:
                    return None
                found.append((operation, value))
        return found or None
    return None


def factors_of(node: Any, constants: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """What a BatchNormalization multiplies each channel by, and what it adds then, in onnxruntime's order;
    None if it is none, or these are not constants.
    """
    numbers = attributes_of(node)
    if node.op_type != "BatchNormalization" or node.domain or len(node.output) != 1 or len(node.input) != 5:
        return None
    if numbers.get("training_mode") or not numbers.get("spatial", 1) or "is_test" in numbers:
        return None
    given = [constants.get(n) for n in node.input[1:]]
    if any(v is None or v.dtype != np.float32 or v.ndim != 1 for v in given):
        return None
    scale, bias, mean, variance = given
    with np.errstate(all="ignore"):
        factor = np.float32(1) / np.sqrt(variance + np.float32(numbers.get("epsilon", 1e-5))) * scale
        return factor, bias - mean * factor


def is_elementwise(node: Any, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether a chain may hold a node, if its data are float32."""
    return steps_of(node, constants) is not None or factors_of(node, constants) is not None or (
        not node.domain and node.op_type in TWO and len(node.input) == 2
        and all(n not in constants or constants[n].dtype == np.float32 for n in node.input)
    )  # fmt: skip


def without_casts(nodes: Sequence[Any], floats: set[str], seen: set[str]) -> list[Any]:
    """Nodes without each Cast of float32 to float32 that nothing but nodes reads.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    floats : set of str
        Some values that are float32.
    seen : set of str
        Outputs of the graph.
    """
    known, same = set(floats), {}
    inner = {r for n in nodes for r in reads_of(n) if r not in n.input}
    kept = []
    for node in nodes:
        if any(n in same for n in node.input):
            node = copy_of(node)
            names = [same.get(n, n) for n in node.input]
            del node.input[:]
            node.input.extend(names)
        first = next(iter(node.input), "")
        if not node.domain and node.op_type == "Cast":
            if attributes_of(node)["to"] != _FLOAT:
                kept.append(node)
                continue
            known.add(node.output[0])
            if first in known and node.output[0] not in seen | inner:
                same[node.output[0]] = first
                continue
        elif not node.domain and node.op_type in _ALIKE and any(n in known for n in node.input):
            known.add(node.output[0])
        kept.append(node)
    return kept


def with_own_rows(nodes: Sequence[Any], constants: Mapping[str, np.ndarray], floats: set[str]) -> list[Any]:
    """Nodes with means and normalizations of rows as lowgemm's own operators, where they read `floats`, which
    lowgemm makes, views of them, or each other's results.
    """
    known, found = set(floats), []
    for node in nodes:
        if any(n in known for n in node.input[:1]):
            if is_row_mean(node, constants) or is_layer_norm(node, constants):
                known.update(node.output)
                node = as_own(node)
            elif (node.domain, node.op_type) in views.OPERATORS:
                known.update(node.output)
        found.append(node)
    return found


def find(
    nodes: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    sources: set[str],
    fresh: set[str],
    seen: set[str],
    rows: bool = True,
) -> list[Group]:
    """Chains in a graph.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    constants : mapping
        Values that no run changes.
    sources : set of str
        float32 values where a chain may begin; it may at views of them, and of what a chain makes, too.
    fresh : set of str
        Those of them whose memory no other value shares.
    seen : set of str
        Outputs of the graph.
    rows : bool
        Whether means and normalizations of rows are lowgemm's (`with_own_rows`). What is computed of such
        means alone, one number a row, is a chain of its own.
    """
    starts = set(sources)
    narrow: set[str] = set()  # one number a row
    groups: list[list[Any]] = []
    needs: list[int] = []  # which groups a group reads, on whatever way, as bits; the group runs as one
    place: dict[str, int] = {}  # which group makes a value
    behind: dict[str, int] = {}  # which groups a value of another node depends on

    def groups_of(names: Sequence[str]) -> int:
        """Groups that must have run before these values are there."""
        found = 0
        for name in names:
            found |= 1 << place[name] if name in place else behind.get(name, 0)
        while True:
            more = found
            for group, read in enumerate(needs):
                if found >> group & 1:
                    more |= read
            if more == found:
                return found
            found = more

    def is_narrow(name: str) -> bool:
        return name in narrow or (name in constants and constants[name].size == 1)

    def merge(group: int, others: list[int], node: Any) -> None:
        """Take into a group others of which a node of it reads, and nothing but the group. So the group waits
        for them in no other way, nor they for it, else the node would not be of it.
        """
        for other in others:
            own = {id(n) for n in (node, *groups[other], *groups[group])}
            made = [n.output[0] for n in groups[other]]
            alone = all(n not in seen and own.issuperset(readers.get(n, ())) for n in made)
            if alone and len(own) <= MERGED:
                groups[group] = groups[other] + groups[group]
                needs[group] |= needs[other]
                groups[other], needs[other] = [], 1 << group
                place.update(dict.fromkeys(made, group))

    readers = _readers(nodes)
    for node in nodes:
        reads = reads_of(node)
        joined = None
        data = [n for n in reads if n not in constants]
        known = [n for n in data if n in place or n in starts]
        if node.op_type == SCALED:
            joined = len(groups)
        elif known and is_elementwise(node, constants):
            small = all(is_narrow(n) for n in reads)
            if small:
                narrow.add(node.output[0])
            for group in sorted({place[n] for n in data if n in place}, reverse=True):
                others = [n for n in data if place.get(n) != group]
                alike = small == (groups[group][0].output[0] in narrow)
                if alike and not groups_of(others) >> group & 1:
                    joined = group
                    break
            if joined is None and any(n in starts or n in narrow for n in data):
                joined = len(groups)
        elif known and (node.domain, node.op_type) in views.OPERATORS:
            starts.update(node.output)
        elif known and rows and is_row_mean(node, constants):
            starts.add(node.output[0])
            narrow.add(node.output[0])
        elif (known and rows and is_layer_norm(node, constants)) or (
            rows and any(n in place for n in reads[:1]) and is_image_mean(node, constants)
        ):
            starts.add(node.output[0])
        if joined == len(groups):
            groups.append([])
            needs.append(0)
        elif joined is not None:
            around = {place[n] for n in data if n in place} - {joined}
            narrower = groups[joined][0].output[0] in narrow
            merge(joined, [g for g in sorted(around) if narrower == (groups[g][0].output[0] in narrow)], node)
        if joined is not None:
            groups[joined].append(node)
            needs[joined] |= groups_of([n for n in data if place.get(n) != joined])
            place[node.output[0]] = joined
        else:
            for name in node.output:
                behind[name] = groups_of(reads)
    return _closed(groups, nodes, fresh, seen)


def _readers(nodes: Sequence[Any]) -> dict[str, list[int]]:
    """Which nodes read each value, by their ids."""
    readers: dict[str, list[int]] = {}
    for node in nodes:
        for name in reads_of(node):
            readers.setdefault(name, []).append(id(node))
    return readers


def _closed(groups: list[list[Any]], nodes: Sequence[Any], fresh: set[str], seen: set[str]) -> list[Group]:
    """Groups with what each reads and makes; those that make nothing that is read are left out."""
    readers = _readers(nodes)
    quantized = {n.input[0] for n in nodes if n.op_type == "DynamicQuantizeLinear"}
    found = []
    for members in groups:
        own, made = {id(n) for n in members}, {n.output[0] for n in members}
        inputs = list(dict.fromkeys(n for m in members for n in reads_of(m) if n not in made))
        outputs = [
            n.output[0] for n in members
            if n.output[0] in seen or any(r not in own for r in readers.get(n.output[0], []))
        ]  # fmt: skip
        spent = [n for n in inputs if n in fresh and n not in seen and set(readers[n]) <= own]
        if outputs:
            found.append(Group(members, inputs, outputs, spent, [o for o in outputs if o in quantized]))
    return found


def coding(node: Any, op: str, constants: Mapping[str, np.ndarray]) -> tuple[np.float32, np.ndarray] | None:
    """Scale and zero point of a (de)quantizer of bytes with one of each, constant and finite; else None."""
    if node is None or node.op_type != op or node.domain not in ("", "com.microsoft") or len(node.input) != 3:
        return None
    scale, zero = (constants.get(n) for n in node.input[1:])
    numbers = attributes_of(node)
    if (
        scale is None
        or zero is None
        or any(numbers.get(n) for n in ("block_size", "output_dtype", "precision"))
    ):
        return None
    if (
        scale.dtype != np.float32
        or scale.size != 1
        or zero.size != 1
        or zero.dtype not in (np.uint8, np.int8)
    ):
        return None
    return (np.float32(scale.item()), zero) if np.isfinite(scale).all() else None


def find_coded(nodes: Sequence[Any], constants: Mapping[str, np.ndarray], seen: set[str]) -> list[Group]:
    """Chains between bytes: of dequantized tensors, to quantized ones and to other such chains alone. Their
    nodes are the dequantizers, the operators and the quantizers; a dequantizer may be needed elsewhere too.
    """
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in reads_of(node):
            readers.setdefault(name, []).append(node)
    real = {
        n.output[0]: n
        for n in nodes
        if coding(n, "DequantizeLinear", constants) and n.input[0] not in constants
    }
    quantizers = {id(n) for n in nodes if coding(n, "QuantizeLinear", constants)}
    groups = [
        g for g in find(nodes, constants, set(real), set(), seen, rows=False) if seen.isdisjoint(g.outputs)
    ]
    left = -1
    while left != len(groups):
        left, inside = len(groups), {id(n) for g in groups for n in g.nodes} | quantizers
        groups = [g for g in groups if all(id(r) in inside for o in g.outputs for r in readers[o])]
    found = []
    for group in groups:
        own = {id(n) for n in group.nodes}
        before = [real[n] for n in group.inputs if n in real]
        behind = [r for o in group.outputs for r in readers[o] if id(r) in quantizers]
        inputs = dict.fromkeys(real[n].input[0] if n in real else n for n in group.inputs)
        inputs |= dict.fromkeys(n for r in (*before, *behind) for n in r.input[1:])
        floats = [o for o in group.outputs if any(id(r) not in own | quantizers for r in readers[o])]
        outputs = [*floats, *(r.output[0] for r in behind)]
        found.append(Group([*before, *group.nodes, *behind], list(inputs), outputs, [], []))
    return found
