"""Operators of one tensor of bytes, however many follow each other, as one table of 256.

What is computed element by element from one tensor of bytes and from constants has at most 256 different
results. So a chain such as ``DequantizeLinear -> HardSigmoid -> Mul with the same tensor -> QuantizeLinear``
is evaluated once, for every byte, by the operators as they are written (the float ones by the engine), and
then looked up. No value changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm.jit.addresses import NotCopied
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.engines import copy_of, reads_of
from lowgemm.onnx_run.look_up import by_table
from lowgemm.onnx_run.tape import Recorder

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
#: Float operators that compute each element from those in its place.
_FLOAT = frozenset((
    "Abs", "Add", "Ceil", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt",
    "Sub", "Tanh", "ThresholdedRelu",
))  # fmt: skip
_CODED = frozenset(("QLinearSigmoid", "QLinearLeakyRelu", "QLinearAdd", "QLinearMul"))
#: Operators that are a table even by themselves.
_ALWAYS = ("QLinearSigmoid", "QLinearLeakyRelu")
_LINEAR = ("QuantizeLinear", "DequantizeLinear")


class Table(NamedTuple):
    """Nodes of a table in order; the bytes that are looked up, and the bytes that it gives."""

    nodes: list[Any]
    source: str
    output: str


#: Operators that leave the elements in their order. A table is looked up before them.
_ORDERED = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def _by_element(node: Any) -> bool:
    if node.op_type in _LINEAR:
        return node.domain in ("", DOMAIN)
    if node.domain == DOMAIN:
        return node.op_type in _CODED or node.op_type in ("Gelu", "QuickGelu")
    return not node.domain and node.op_type in _FLOAT


def _coded_inputs(node: Any) -> list[tuple[str, str]]:
    """Names of the bytes that an operator reads, and of their zero points."""
    names = [*node.input, "", ""]
    if node.op_type == "DequantizeLinear" or node.op_type in ("QLinearSigmoid", "QLinearLeakyRelu"):
        return [(names[0], names[2])]
    if node.op_type in _CODED:
        return [(names[0], names[2]), (names[3], names[5])]
    return []


def _gives_bytes(node: Any, constants: Mapping[str, np.ndarray]) -> bool:
    place = {
        "QuantizeLinear": 2,
        "QLinearSigmoid": 4,
        "QLinearLeakyRelu": 4,
        "QLinearAdd": 7,
        "QLinearMul": 7,
    }.get(node.op_type)
    if place is None:
        return False
    zero = constants.get(node.input[place]) if len(node.input) > place else None
    return zero is not None and zero.dtype in _BYTES


def find(
    nodes: Sequence[Any], constants: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> tuple[list[Any], list[Table]]:
    """Tables in a graph.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    constants : mapping
        Values that no run changes.
    outputs : sequence of str
        What is read of the graph.

    Returns
    -------
    list, list of Table
        Nodes that are still needed, in order, a Table in the place of each last node of one; and the tables.
    """
    root: dict[str, str] = {}  # of which bytes alone a value is a function
    behind: dict[str, list[int]] = {}  # which nodes compute it from them
    made: dict[str, tuple[str, list[int], bool]] = {}  # both of what operators make; whether it was moved
    line: set[str] = set()  # what nodes compute one after the other
    moved: set[str] = set()  # and some of them only say anew where elements lie
    for i, node in enumerate(nodes):
        data = [n for n in node.input if n and n not in constants]
        numbers = [constants[n] for n in node.input if n in constants]
        if not node.domain and node.op_type in _ORDERED and data == [node.input[0]] and data[0] in line:
            name = node.output[0]
            root[name], behind[name] = root[data[0]], [*behind[data[0]], i]
            line.add(name)
            moved.add(name)
            continue
        if not data or not _by_element(node) or any(v.size != 1 for v in numbers):
            continue
        if data[0] in moved and node.op_type not in _LINEAR and any(v.ndim for v in numbers):
            continue  # a number with axes may give the result more than it was moved to
        for name, zero in _coded_inputs(node):
            if name in moved:  # another table begins at bytes that were moved
                del root[name]
                line.discard(name)
                moved.discard(name)
            if name in data and name not in root and zero in constants and constants[zero].dtype in _BYTES:
                root[name], behind[name] = name, []
        roots = {None if n in moved and len(data) > 1 else root.get(n) for n in data}
        if len(roots) == 1 and None not in roots:
            found = sorted({i, *(j for n in data for j in behind[n])})
            for name in node.output:
                root[name], behind[name] = roots.copy().pop(), found
                made[name] = root[name], found, data[0] in moved
            if len(data) == 1 and (not behind[data[0]] or data[0] in line):
                line.update(node.output)
                moved.update(node.output if data[0] in moved else ())
    kept, tables, needed = [], [], set(outputs)
    for i in reversed(range(len(nodes))):
        node = nodes[i]
        if not any(o in needed for o in node.output):
            continue
        name = node.output[0]
        source, found, apart = made.get(name, ("", [], False))
        own, moves = [nodes[j] for j in found], []
        if apart:
            own, moves = _apart(own, constants)
        worth = len(own) > 1 or node.op_type in _ALWAYS
        if worth and own and len(node.output) == 1 and _gives_bytes(node, constants):
            table = Table(own, source, own[-1].output[0])
            tables.append(table)
            kept += [*moves[::-1], table]
            needed.add(source)
        else:
            kept.append(node)
            needed.update(reads_of(node))
    return kept[::-1], tables


def _apart(nodes: list[Any], constants: Mapping[str, np.ndarray]) -> tuple[list[Any], list[Any]]:
    """Nodes that follow one another, without those that only say anew where elements lie; and these, of what
    the others give.
    """
    name, own, moves = nodes[-1].output[0], [], []
    last = ""
    for node in nodes:
        node = copy_of(node)
        if node.op_type in _ORDERED:
            node.output[0] = f"{node.output[0]} coded"
            if moves:
                node.input[0] = moves[-1].output[0]
            moves.append(node)
        else:
            if own:
                place = next(i for i, n in enumerate(node.input) if n and n not in constants)
                node.input[place] = last
            last = node.output[0]
            own.append(node)
    own[-1].output[0] = moves[0].input[0] = f"{name} coded"
    moves[-1].output[0] = name
    return own, moves


class LookUp(NotCopied):
    """A table, filled when its first bytes come.

    Parameters
    ----------
    run : callable
        Computes the output from any bytes: the nodes as they are written.
    num_threads : int or None
        As in `lowgemm.gemm`.
    """

    instead = "copy the Model"

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], num_threads: int | None = 1) -> None:
        self.run, self.num_threads = run, num_threads
        self._tables: dict[tuple[np.dtype, int], np.ndarray | None] = {}

    def _table(self, x: np.ndarray) -> np.ndarray | None:
        # the axes of the data, so that constants that have axes broadcast with it
        every = np.arange(256, dtype=np.uint8).view(x.dtype).reshape(*(1,) * (x.ndim - 1), 256)
        found = self.run(every)
        # constants with more axes than the data make the result larger, which a table does not
        return (
            np.ascontiguousarray(found).reshape(256)
            if found.shape == every.shape and found.dtype in _BYTES
            else None
        )

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray]:
        """The output."""
        table = self._table_for(x)
        return (self.run(x) if table is None else by_table(table, x, self.num_threads),)

    def record(self, recorder: Recorder, x: np.ndarray) -> Any:
        """Take it down; None if that cannot be."""
        table = self._table_for(x)
        y = NotImplemented if table is None else by_table(table, x, self.num_threads, recorder)
        return None if y is NotImplemented else (y,)

    def _table_for(self, x: np.ndarray) -> np.ndarray | None:
        if x.dtype not in _BYTES or not x.ndim:
            return None
        key = x.dtype, x.ndim
        if key not in self._tables:
            self._tables[key] = self._table(x)
        return self._tables[key]
