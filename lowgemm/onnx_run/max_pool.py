"""MaxPool of bytes: a compiled pass, and how nodes are found that it may run.

A window that holds no element has the type's smallest value. Channels are last in the memory of the result,
since convolutions want them so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_i64, pointer_at
from lowgemm.jit.routine import inner, routine
from lowgemm.onnx_run import turned
from lowgemm.onnx_run.dynamic import OWN, as_own
from lowgemm.onnx_run.state import NotOurs, State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways
from lowgemm.onnx_run.windows import AXES, Windows, first_and_end, largest, of_three_axes, windows

_u64 = np.uint64
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
#: Nanoseconds of one thread for a byte of a window, about.
NANOSECONDS = 0.1
#: Shapes of images whose windows are kept.
SHAPES = 64


def max_by_definition(x: np.ndarray, w: Windows) -> np.ndarray:
    """The largest of each window of (images, channels, ...)."""
    return largest(x, w)[0]


@inner
def _larger(x, from_, out, to, count):
    """Where one of `count` bytes from index `from_` on is larger than that from `to` on, it replaces it."""
    p, q = _u64(from_), _u64(to)
    for c in range(_u64(count)):
        v = x[p + c]
        out[q + c] = v if v > out[q + c] else out[q + c]


@inner
def _pool(x, out, g, channels, lowest, first, end):
    """Lines `first` to `end` of the result: the largest of each window, or `lowest` if it has no data.

    `g` is what `windows.of_three_axes` gives.
    """
    to, rows = first * g[5, 2] * channels, g[5, 0] * g[5, 1]
    for line in range(first, end):
        n, i, j = line // rows, line % rows // g[5, 1], line % g[5, 1]
        top, middle = i * g[2, 0] - g[4, 0], j * g[2, 1] - g[4, 1]
        low0, high0 = first_and_end(top, g[3, 0], g[0, 0])
        low1, high1 = first_and_end(middle, g[3, 1], g[0, 1])
        for k in range(g[5, 2]):
            left = k * g[2, 2] - g[4, 2]
            low2, high2 = first_and_end(left, g[3, 2], g[0, 2])
            for c in range(_u64(channels)):
                out[_u64(to) + c] = lowest
            for u in range(low0, min(high0, g[1, 0])):
                row = (n * g[0, 0] + top + u * g[3, 0]) * g[0, 1]
                for v in range(low1, min(high1, g[1, 1])):
                    place = (row + middle + v * g[3, 1]) * g[0, 2]
                    for w in range(low2, min(high2, g[1, 2])):
                        _larger(x, (place + left + w * g[3, 2]) * channels, out, to, channels)
            to += channels


@routine(PASS)
def max_pool_bytes(args, first, end, worker):
    """Largest bytes of windows; channels are last in the memory of both.

    Arguments: src, dst, numbers (`g` of `_pool`), channels, bytes of both, whether they are signed. Pieces
    are lines of the result, along its last axis.
    """
    src, dst = pointer_at(args, 0), pointer_at(args, 1)
    g, channels = numba.carray(pointer_at(args, 2), (6, 3), np.int64), load_i64(args, 3)
    size, out_size = load_i64(args, 4), load_i64(args, 5)
    if load_i64(args, 6) != 0:
        x, out = numba.carray(src, (size,), np.int8), numba.carray(dst, (out_size,), np.int8)
        _pool(x, out, g, channels, np.int8(-128), first, end)
    else:
        x, out = numba.carray(src, (size,), np.uint8), numba.carray(dst, (out_size,), np.uint8)
        _pool(x, out, g, channels, np.uint8(0), first, end)


def _compiled(
    x: np.ndarray, w: Windows, numbers: np.ndarray, num_threads: int | None, recorder: Recorder | None = None
) -> Any:
    """`max_by_definition`, by the compiled pass; NotImplemented if a recorder cannot take it down."""
    if recorder is not None:
        x = recorder.in_order(x)
        if not all(w.out) or not (x.flags.c_contiguous or turned.sizes(x)):
            return NotImplemented
    images, channels = x.shape[:2]
    y = turned.empty_last((images, channels, *w.out), x.dtype)
    if y.size:
        x = turned.last(x, num_threads, recorder)
        at, held, run = ways(recorder)
        lines, time = images * math.prod(w.out[:-1]), NANOSECONDS * y.size * math.prod(w.kernel)
        args = (at(x), at(y), held(numbers), channels, x.size, y.size, int(x.dtype == np.int8))
        run_shared(max_pool_bytes, args, lines, time, num_threads, run)
    return y


def _checked(x: np.ndarray) -> None:
    if x.dtype not in _BYTES:
        raise NotOurs
    if x.ndim < 3:
        raise ValueError(f"X: expected images, channels and at least one spatial axis, got shape {x.shape}")


def _fits(x: np.ndarray) -> bool:
    return x.ndim - 2 <= AXES and bool(x.size) and not numba.config.DISABLE_JIT


def max_pool(state: State, x: np.ndarray, *, storage_order: int = 0, **attributes: Any) -> np.ndarray:
    """MaxPool of bytes; `storage_order` is about indices, which are not made."""
    _checked(x)
    w = windows(x.shape[2:], **attributes)
    return (
        _compiled(x, w, of_three_axes(x.shape[2:], w), state.num_threads)
        if _fits(x)
        else max_by_definition(x, w)
    )


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """MaxPool of bytes; where the windows of a shape lie is found out once."""
    how = {k: v for k, v in attributes.items() if k != "storage_order"}
    plans: dict[tuple[int, ...], Any] = {}

    def run(x: np.ndarray, recorder: Recorder | None = None) -> Any:
        if x.dtype not in _BYTES or x.ndim < 3 or not _fits(x):
            return NotImplemented
        size = x.shape[2:]
        plan = plans.get(size)
        if plan is None:
            if len(plans) >= SHAPES:
                plans.clear()
            w = windows(size, **how)
            plan = plans[size] = w, of_three_axes(size, w)
        return _compiled(x, *plan, state.num_threads, recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


#: Operators of the standard that only move elements; the first input's type is the result's.
_MOVING = (
    "Concat", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip


def _gives_bytes(node: Any, constants: Mapping[str, np.ndarray], known: set[str]) -> bool:
    if node.op_type == "QuantizeLinear":
        zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is None:
            return len(node.input) < 3 and not any(a.name == "output_dtype" for a in node.attribute)
        return zero.dtype in _BYTES
    if node.op_type in _MOVING and not node.domain:
        return node.input[0] in known or (
            node.input[0] in constants and constants[node.input[0]].dtype in _BYTES
        )
    return node.op_type.startswith("QLinear") or node.op_type == "DynamicQuantizeLinear"


def of_bytes(nodes: Sequence[Any], constants: Mapping[str, np.ndarray]) -> list[Any]:
    """Nodes with MaxPool as lowgemm's own where it certainly gets bytes, and nobody wants indices."""
    known: set[str] = set()
    found = []
    for node in nodes:
        if _gives_bytes(node, constants, known):
            known.add(node.output[0])
            if node.op_type == "MaxPool" and not node.domain and len(node.output) == 1:
                node = as_own(node)
        found.append(node)
    return found


OPERATORS = {(OWN, "MaxPool"): max_pool}
MAKERS = {(OWN, "MaxPool"): prepared}
