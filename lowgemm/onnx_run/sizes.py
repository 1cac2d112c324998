"""Operators on sizes: what exporters write between two products to ask for a shape and to compute with it.

``Shape -> Gather -> Div -> Mul`` says where a third of a row begins. Such numbers depend on shapes alone, so
a recording, which is for its inputs' shapes, has them as constants and runs none of these nodes. By
themselves each is a step or a part that takes more time than the product before it: in a decoder of two gated
cells 45 nodes stand between products of one row, and 25 of them are these.

What such numbers are the bounds of is in `copies.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lowgemm.onnx_run import views
from lowgemm.onnx_run.engines import attributes_of
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder

_INTEGERS = (np.dtype(np.int64), np.dtype(np.int32))
#: ONNX's numbers of these types, and of what an If asks.
_KINDS = {7: np.int64, 6: np.int32, 9: np.bool_}


def shape(state: State, x: np.ndarray, *, start: int = 0, end: int | None = None) -> np.ndarray:
    """Shape."""
    return np.array(np.shape(x)[start:end], np.int64)


def gather(state: State, x: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Gather; an index beyond the axis is refused."""
    return np.take(x, indices, axis)


def concat(state: State, *parts: np.ndarray, axis: int) -> np.ndarray:
    """Concat."""
    return np.concatenate(parts, axis)


def cast(state: State, x: np.ndarray, *, to: int, saturate: int = 1, round_mode: str = "up") -> np.ndarray:
    """Cast to int32, int64 or bool."""
    return x.astype(_KINDS[to])


def div(state: State, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Div of integers, which rounds towards zero."""
    if not np.all(b):
        raise ValueError("B: expected divisors, got 0")
    towards_zero = (a % b != 0) & ((a < 0) != (b < 0))  # the smallest integer has no magnitude
    return np.asarray(a // b + towards_zero, np.result_type(a, b))


def bounds(x: np.ndarray, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> tuple[slice, ...]:
    """What a Slice takes of each axis."""
    begin, end = (np.asarray(v).reshape(-1).tolist() for v in (starts, ends))
    along = range(len(begin)) if axes is None else np.asarray(axes).reshape(-1).tolist()
    by = [1] * len(begin) if steps is None else np.asarray(steps).reshape(-1).tolist()
    if not len(begin) == len(end) == len(along) == len(by) or 0 in by:
        raise ValueError("starts, ends, axes, steps: expected as many of each, and no step of 0")
    found = [slice(None)] * x.ndim
    for a, first, last, step in zip(along, begin, end, by, strict=True):
        if not -x.ndim <= a < x.ndim:
            raise ValueError(f"axes: expected {-x.ndim} to {x.ndim - 1}, got {a}")
        n = x.shape[a]
        if step < 0:  # bounds that lie before the first element: ONNX begins at it, and None ends behind it
            first, last = max(first, -n), None if last < -n else last
        found[a] = slice(first, last, step)
    return tuple(found)


def slice_(state: State, x: np.ndarray, *more: Any) -> np.ndarray:
    """Slice, as a view."""
    return x[bounds(x, *more)]


def constant_of_shape(state: State, shape: np.ndarray, *, value: Any = None) -> np.ndarray:
    """ConstantOfShape."""
    from onnx import numpy_helper

    number = np.float32(0) if value is None else numpy_helper.to_array(value).reshape(-1)[0]
    return np.full(tuple(shape.tolist()), number)


#: Operators on int32 and int64.
OPERATORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("", "Shape"): shape,
    ("", "Size"): lambda state, x: np.array(np.size(x), np.int64),
    ("", "Gather"): gather,
    ("", "Concat"): concat,
    ("", "Cast"): cast,
    ("", "Div"): div,
    ("", "Add"): lambda state, a, b: np.asarray(a + b),
    ("", "Sub"): lambda state, a, b: np.asarray(a - b),
    ("", "Mul"): lambda state, a, b: np.asarray(a * b),
    ("", "Slice"): slice_,
    ("", "Equal"): lambda state, a, b: np.asarray(a == b),
    ("", "Less"): lambda state, a, b: np.asarray(a < b),
    ("", "Greater"): lambda state, a, b: np.asarray(a > b),
    ("", "Not"): lambda state, a: np.asarray(np.logical_not(a)),
    ("", "Where"): lambda state, condition, a, b: np.where(condition, a, b),
    ("", "ConstantOfShape"): constant_of_shape,
}


#: Operators that ask for a shape.
ASKING = ("Shape", "Size")


def find(nodes: Sequence[Any], constants: Mapping[str, np.ndarray]) -> set[str]:
    """Names of integers that shapes decide.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    constants : mapping
        Values that no run changes.
    """
    sizes: set[str] = set()

    def known(names: Sequence[str]) -> bool:
        return all(n in sizes or (n in constants and constants[n].dtype in _INTEGERS) for n in names if n)

    for node in nodes:
        reads = list(node.input)
        asks = not node.domain and node.op_type in ASKING
        if asks or (not sizes.isdisjoint(reads) and known(reads) and _is_ours(node)):
            sizes.update(node.output)
    return sizes


def _is_ours(node: Any) -> bool:
    """Whether a node is an operator on integers that is here."""
    key = node.domain, node.op_type
    if key == ("", "Cast"):
        return attributes_of(node)["to"] in _KINDS
    if key == ("", "ConstantOfShape"):
        value = attributes_of(node).get("value")
        return value is not None and value.data_type in _KINDS
    if key == ("", "Slice") and len(node.input) < 3:  # before operator set 10 its bounds are attributes
        return False
    return key in OPERATORS or key in views.OPERATORS


def recorded(compute: Callable[..., Any], of_shape: bool) -> Callable[..., Any]:
    """What takes a node down whose result the shapes decide: it becomes a constant of the tape.

    Of everything but `ASKING` (`of_shape`) the inputs must be constants of the tape, too.
    """

    def record(recorder: Recorder, *inputs: Any) -> Any:
        if not of_shape and not all(v is None or recorder.is_constant(v) for v in inputs):
            return None
        if not all(v is None or isinstance(v, np.ndarray) for v in inputs):
            return None
        try:
            y = np.array(compute(*inputs))
        except (TypeError, ValueError, IndexError):  # said when it runs
            return None
        y.flags.writeable = False
        recorder.constant(y)
        return (y,)

    return record
