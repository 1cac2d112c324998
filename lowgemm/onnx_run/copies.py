"""Operators that move elements and compute nothing: Slice, Split, Concat, Pad, Expand, Tile, Gather, Resize
by whole factors, and ConstantOfShape.

onnxruntime takes 10 us for a part that holds one of them, and it parts what would be one recording. So either
side may run them: within a part of onnxruntime's they stay there, and beside lowgemm's steps they are
lowgemm's. A part of an array whose elements follow one another is a view; anything else is one pass
(`strided.py`), or one for each piece that a result is put together of.

Where the pieces lie must depend on shapes alone, since a recording is for these. The indices of a Gather may
be data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm.engine.parts import run_shared
from lowgemm.onnx_run import chain_groups, sizes, strided, views
from lowgemm.onnx_run.addresses import address
from lowgemm.onnx_run.engines import attributes_of
from lowgemm.onnx_run.state import NotOurs, State
from lowgemm.onnx_run.tape import Recorder, clear

#: Bytes at whose multiples NumPy's arrays begin.
ALIGNED = 16
#: A place in an array.
_Where = tuple[Any, ...]
#: Of a Resize to the nearest, the ways to find an element's place and to round it that repeat each element
#: where the factor is a whole number.
_REPEATS = {
    ("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"), ("pytorch_half_pixel", "round_prefer_ceil"),
}  # fmt: skip
#: So large that places are found in float32 without doubt: they are never nearer to where they are rounded
#: the other way than half of a factor's part.
LARGEST_FACTOR, LONGEST_AXIS = 16, 1 << 16
_INDICES = (np.dtype(np.int64), np.dtype(np.int32))


class _Whole(NamedTuple):
    """A result that is put together: an array that nothing was written to yet; in order, which places of it
    are filled, and of what: an array, a number, or places that were filled before; and its shape in the end.
    """

    y: np.ndarray
    moves: list[tuple[_Where, Any]]
    shape: tuple[int, ...]


def _empty(shape: Sequence[int], like: np.ndarray) -> np.ndarray:
    """An array whose axes have the order in memory that those of another have."""
    order: Any = "K" if len(shape) == like.ndim else "C"
    return np.empty_like(like, shape=tuple(shape), order=order, subok=False)


def _axis(axis: int, axes: int) -> int:
    if not -axes <= axis < axes:
        raise ValueError(f"axis: expected {-axes} to {axes - 1}, got {axis}")
    return axis % axes


def _whole_numbers(values: Any) -> list[int]:
    return [int(n) for n in np.asarray(values).reshape(-1)]


# ---- parts of an array ------------------------------------------------------------------------------------
def _slice(x: np.ndarray, *bounds: Any) -> tuple[np.ndarray, ...]:
    return (x[sizes.bounds(x, *bounds)],)


def _split(x: np.ndarray, split: Any, *, axis: int = 0) -> tuple[np.ndarray, ...]:
    axis, lengths = _axis(axis, x.ndim), _whole_numbers(split)
    if min(lengths, default=0) < 0 or sum(lengths) != x.shape[axis]:
        raise ValueError(f"split: expected sizes with the sum {x.shape[axis]}, got {lengths}")
    ends = np.cumsum(lengths).tolist()
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(end - n, end))] for n, end in zip(lengths, ends, strict=True))


# ---- put together -----------------------------------------------------------------------------------------
def _concat(*parts: np.ndarray, axis: int) -> _Whole:
    first = parts[0]
    axis = _axis(axis, first.ndim)
    shape, moves, end = list(first.shape), [], 0
    for part in parts:
        others = [n for i, n in enumerate(part.shape) if i != axis]
        if part.dtype != first.dtype or others != [n for i, n in enumerate(shape) if i != axis]:
            raise NotOurs  # arrays of nothing, which onnxruntime leaves out, or an error, which it says
        moves.append(((*(slice(None),) * axis, slice(end, end + part.shape[axis])), part))
        end += part.shape[axis]
    shape[axis] = end
    return _Whole(_empty(shape, first), moves, tuple(shape))


def _pad(x: np.ndarray, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant") -> _Whole:
    given = range(x.ndim) if axes is None else [_axis(a, x.ndim) for a in _whole_numbers(axes)]
    both, count = _whole_numbers(pads), len(given)
    if len(both) != 2 * count or len(set(given)) != count:
        raise ValueError("pads, axes: expected two for each axis")
    before, behind = [0] * x.ndim, [0] * x.ndim
    for i, a in enumerate(given):
        before[a], behind[a] = both[i], both[count + i]
    least = min([*before, *behind], default=0)
    far = any(max(p, q) >= n for p, q, n in zip(before, behind, x.shape, strict=True))
    # pads below 0 take something away
    if x.dtype.kind not in "fiub" or (mode != "constant" and (least < 0 or not x.size)):
        raise NotOurs
    shape = [p + n + q for p, n, q in zip(before, x.shape, behind, strict=True)]
    if (mode == "reflect" and far) or min(shape, default=0) < 0:
        raise NotOurs
    kept = tuple(slice(max(-p, 0), n + min(q, 0)) for p, n, q in zip(before, x.shape, behind, strict=True))
    inner = _at(x, kept)
    middle = tuple(slice(max(p, 0), max(p, 0) + n) for p, n in zip(before, inner.shape, strict=True))
    moves: list[tuple[_Where, Any]] = []
    if mode == "constant":
        moves.append(((), x.dtype.type(0) if value is None else np.asarray(value, x.dtype).reshape(())[()]))
    moves.append((middle, inner))
    for a, (p, n, q) in enumerate(zip(before, x.shape, behind, strict=True) if mode != "constant" else ()):
        # the axes before this one are filled, those behind it not yet
        around = (slice(None),) * a, middle[a + 1 :]
        for where, edge, mirror in (
            (slice(0, p), slice(p, p + 1), slice(2 * p, p, -1)),
            (slice(p + n, p + n + q), slice(p + n - 1, p + n), slice(p + n - 2, p + n - 2 - q, -1)),
        ):
            if mode == "reflect" and mirror.stop == -1:
                mirror = slice(mirror.start, None, -1)
            if where.stop > where.start:
                source = edge if mode == "edge" else mirror
                moves.append(((*around[0], where, *around[1]), (*around[0], source, *around[1])))
    return _Whole(_empty(shape, x), moves, tuple(shape))


def _expand(x: np.ndarray, shape: Any) -> _Whole:
    whole = np.broadcast_shapes(x.shape, tuple(_whole_numbers(shape)))
    return _Whole(np.empty(whole, x.dtype), [((), x)], whole)


def _tile(x: np.ndarray, repeats: Any) -> _Whole:
    times = _whole_numbers(repeats)
    if len(times) != x.ndim or min(times, default=0) < 0:
        raise ValueError(f"repeats: expected {x.ndim} numbers that are not negative, got {times}")
    parted = [m for both in zip(times, x.shape, strict=True) for m in both]
    source = x.reshape([m for n in x.shape for m in (1, n)])
    shape = tuple(t * n for t, n in zip(times, x.shape, strict=True))
    return _Whole(np.empty(parted, x.dtype), [((), source)], shape)


def _resize(
    x: np.ndarray, roi: Any, scales: Any, sizes: Any = None, *, mode: str = "nearest", **rules: Any
) -> _Whole:
    """By whole factors, each element as often as they say: so do the rules that `_REPEATS` holds."""
    if sizes is not None:
        times = [m / n if n else 0 for m, n in zip(_whole_numbers(sizes), x.shape, strict=True)]
    else:
        times = np.asarray(scales, np.float64).reshape(-1).tolist()
    if (
        len(times) != x.ndim
        or not all(t in range(1, LARGEST_FACTOR + 1) for t in times)
        or x.dtype.kind not in "fiub"
    ):
        raise NotOurs
    factors = [int(t) for t in times]
    shape = tuple(t * n for t, n in zip(factors, x.shape, strict=True))
    if max(shape, default=0) > LONGEST_AXIS:
        raise NotOurs
    parted = _empty(shape, x).reshape([m for both in zip(x.shape, factors, strict=True) for m in both])
    source = x.reshape([m for n in x.shape for m in (n, 1)])
    return _Whole(parted, [((), source)], shape)


def _constant_of_shape(shape: Any, *, value: Any = None) -> _Whole:
    whole = tuple(_whole_numbers(shape))
    number = np.float32(0)
    if value is not None:
        from onnx import numpy_helper

        number = numpy_helper.to_array(value).reshape(-1)[0]
    return _Whole(np.empty(whole, number.dtype), [((), number)], whole)


def _gather(x: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> np.ndarray:
    if indices.dtype not in _INDICES:
        raise NotOurs
    return np.take(x, indices, _axis(axis, x.ndim))


_PARTS: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {"Slice": _slice, "Split": _split}
_WHOLES: dict[str, Callable[..., _Whole]] = {
    "Concat": _concat, "Pad": _pad, "Expand": _expand, "Tile": _tile, "Resize": _resize,
    "ConstantOfShape": _constant_of_shape,
}  # fmt: skip


def _at(y: np.ndarray, where: _Where) -> np.ndarray:
    """The places of an array; with an index of no axis NumPy gives a number in the place of an array."""
    return y[(*where, ...)]


# ---- at once ----------------------------------------------------------------------------------------------
def function_of(operator: str) -> Callable[..., Any]:
    """What computes an operator, as `operators.py` has them."""

    def parted(state: State, x: Any, *more: Any, **attributes: Any) -> Any:
        # onnxruntime's results are aligned, and the order of its sums depends on that (`Recorder.is_within`)
        found = _PARTS[operator](x, *more, **attributes)
        return tuple(p.copy(order="K") if address(p) % ALIGNED else p for p in found)

    def whole(state: State, *inputs: Any, **attributes: Any) -> np.ndarray:
        y, moves, shape = _WHOLES[operator](*inputs, **attributes)
        for where, source in moves:
            _at(y, where)[...] = _at(y, source) if type(source) is tuple else source
        return y.reshape(shape)

    def gathered(state: State, x: Any, indices: Any, *, axis: int = 0) -> np.ndarray:
        return np.asarray(_gather(x, indices, axis=axis))

    return parted if operator in _PARTS else gathered if operator == "Gather" else whole


# ---- taken down -------------------------------------------------------------------------------------------
def _copy(recorder: Recorder, y: np.ndarray, x: np.ndarray, num_threads: int | None) -> bool:
    """Take down a copy; False if that cannot be. Nothing is copied to an array of nothing."""
    if y.size:
        if not strided.takes(y, x):
            return False
        strided.run_copy(y, x, recorder.at, recorder.run, num_threads)
    recorder.keep(y)
    return True


def _part(recorder: Recorder, x: np.ndarray, num_threads: int | None) -> np.ndarray | None:
    """A part of an array: as it is, if its elements follow one another in memory that nobody else knows."""
    if x.flags.c_contiguous and recorder.owns(x):
        return x
    y = np.empty_like(x, subok=False)
    return y if x.size and _copy(recorder, y, x, num_threads) else None


def _take(
    recorder: Recorder, x: np.ndarray, indices: np.ndarray, axis: int, num_threads: int | None
) -> np.ndarray | None:
    """A Gather."""
    axis, fixed = _axis(axis, x.ndim), recorder.is_constant(indices)
    if fixed and indices.size == 1:
        i = int(indices.reshape(()))
        if not -x.shape[axis] <= i < x.shape[axis]:
            return None
        i %= x.shape[axis]
        row = x[(*(slice(None),) * axis, slice(i, i + 1))]
        part = _part(recorder, row, num_threads)
        return None if part is None else part.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    x, indices = recorder.in_order(x), recorder.in_order(indices)
    y = np.empty((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)
    if not x.flags.c_contiguous or not indices.flags.c_contiguous or not y.size or x.dtype.kind == "O":
        return None
    found = np.empty(2, np.float32)
    recorder.keep(y, found)
    recorder.run(clear, (recorder.at(found), 8, 1), 1)
    row, count = x.dtype.itemsize * int(np.prod(x.shape[axis + 1 :])), indices.size
    pieces = y.nbytes // row
    args = (
        recorder.at(x), recorder.at(indices), indices.itemsize, count, x.shape[axis], row, recorder.at(y),
        recorder.at(found),
    )  # fmt: skip
    time = pieces * strided.ROW + strided.BYTE * y.nbytes
    run_shared(strided.take_rows, args, pieces, time, num_threads, recorder.run)
    recorder.check(found)
    return y


def _put_together(recorder: Recorder, whole: _Whole, num_threads: int | None) -> np.ndarray | None:
    """What is put together of pieces; None if that cannot be."""
    y = whole.y
    for where, source in whole.moves:
        source = _at(y, source) if type(source) is tuple else source
        if isinstance(source, np.generic):
            source = np.array(source)
            recorder.constant(source)
            recorder.kept.append(source)
        if not _copy(recorder, _at(y, where), source, num_threads):
            return None
    found = y.reshape(whole.shape)
    recorder.keep(y)
    return found if y.size and np.shares_memory(y, found) else None


def joined(recorder: Recorder, parts: Sequence[np.ndarray], axis: int, num_threads: int | None) -> Any:
    """Take a Concat down; None if that cannot be."""
    try:
        return _put_together(recorder, _concat(*parts, axis=axis), num_threads)
    except (NotOurs, ValueError):  # said when it runs
        return None


def recorded(operator: str, attributes: Mapping[str, Any], num_threads: int | None) -> Callable[..., Any]:
    """What takes a node down (`tape.Group`)."""

    def record(recorder: Recorder, *inputs: Any) -> Any:
        data = inputs[: data_of(operator, len(inputs))]
        if not all(type(v) is np.ndarray and v.dtype.kind in "fiub" for v in data):
            return None
        if not all(v is None or recorder.is_constant(v) for v in inputs[len(data) :]):
            return None
        # sizes, which the recorder need not keep
        recorder.kept += [v for v in data if recorder.is_constant(v)]
        try:
            if operator == "Gather":
                y = _take(recorder, *inputs, attributes.get("axis", 0), num_threads)  # type: ignore[misc]
                return None if y is None else (y,)
            if operator in _PARTS:
                parts = [_part(recorder, p, num_threads) for p in _PARTS[operator](*inputs, **attributes)]
                return None if any(p is None for p in parts) else parts
            y, moves, shape = _WHOLES[operator](*inputs, **attributes)
        except (NotOurs, TypeError, ValueError, IndexError):  # said when it runs
            return None
        y = _put_together(recorder, _Whole(y, moves, shape), num_threads)
        return None if y is None else (y,)

    return record


# ---- which nodes ------------------------------------------------------------------------------------------
def data_of(operator: str, count: int) -> int:
    """How many of an operator's `count` inputs are data; the others say where they go."""
    return {"Concat": count, "Gather": 2, "ConstantOfShape": 0}.get(operator, 1)


def _is_copy(node: Any, constants: Mapping[str, np.ndarray], known: set[str]) -> bool:
    """Whether a node is an operator that is here, and where its elements go depends on shapes alone: on
    constants, and on values that are `known` to.
    """
    operator, reads = node.op_type, list(node.input)
    if node.domain or (operator not in _PARTS and operator not in _WHOLES and operator != "Gather"):
        return False
    data, attributes = data_of(operator, len(reads)), attributes_of(node)
    if all(n in constants for n in reads):
        return False
    # older operator sets have attributes in the place of inputs
    least = {"Slice": 3, "Resize": 3, "Concat": 1, "ConstantOfShape": 1}.get(operator, 2)
    if len(reads) < least or (operator == "Tile" and len(reads) > 2):
        return False
    if operator == "Resize" and not _repeats(attributes):
        return False
    if operator == "Pad" and attributes.get("mode", "constant") not in ("constant", "edge", "reflect"):
        return False
    if operator == "Split" and ("num_outputs" in attributes or not reads[1]):
        return False
    return all(n in constants or n in known for n in reads[data:] if n)


def _repeats(attributes: Mapping[str, Any]) -> bool:
    """Whether a Resize repeats each element if its factors are whole numbers."""
    place = attributes.get("coordinate_transformation_mode", "half_pixel")
    rule = place, attributes.get("nearest_mode", "round_prefer_floor")
    usual = attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch" and "axes" not in attributes
    return attributes.get("mode", "nearest") == "nearest" and rule in _REPEATS and usual


class Found(NamedTuple):
    """Names of what such operators make, and of float32 values where a chain of float operators may begin."""

    made: set[str]
    begin: set[str]


def find(
    nodes: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    known: set[str],
    products: set[str],
    others: set[str],
) -> Found:
    """Such operators in a graph.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    constants : mapping
        Values that no run changes.
    known : set of str
        Sizes, which shapes decide (`sizes.find`).
    products, others : set of str
        float32 results of lowgemm's; what is made of them by chains is found here. Of `others` a chain may
        begin at views, too.
    """
    found, ours = Found(set(), set(others)), products | others
    for node in nodes:
        reads = [n for n in node.input if n not in constants]
        if known.isdisjoint(node.output) and _is_copy(node, constants, known):
            found.made.update(node.output)
            data = [n for n in node.input[: 1 if node.op_type == "Gather" else len(node.input)] if n in reads]
            if all(n in ours for n in data[: data_of(node.op_type, len(data))]):
                found.begin.update(node.output)
                ours.update(node.output)
        elif (node.domain, node.op_type) in views.OPERATORS and node.input[0] in ours:
            ours.update(node.output)
            if node.input[0] in found.begin:
                found.begin.update(node.output)
        elif chain_groups.is_elementwise(node, constants) and not ours.isdisjoint(reads):
            ours.update(node.output)
    return found
