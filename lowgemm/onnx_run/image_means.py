"""ReduceMean over the last axes, of float32 numbers that lowgemm made: the mean of each channel of an image.

onnxruntime takes the axes as one and adds as `row_means.py` says, so images in C order are rows there. Images
with their channels last in memory are gone through once, 64 channels side by side, if the sums of all
channels begin at the same place; else they are turned over first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_f32, load_i64, offset, pointer_at, stack, store_f32
from lowgemm.jit.routine import inner, routine
from lowgemm.onnx_run import row_means, turned
from lowgemm.onnx_run.dynamic import OWN
from lowgemm.onnx_run.engines import attributes_of
from lowgemm.onnx_run.row_means import LANES, mean_of
from lowgemm.onnx_run.state import NotOurs, State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways

#: Channels of a piece.
CHANNELS = 64
_STACK = 2 * LANES * 4 * CHANNELS


@inner
def add_to_sums(total, x, count):
    """Add `count` numbers to as many sums."""
    for c in range(count):
        store_f32(total, c, load_f32(total, c) + load_f32(x, c))


@inner
def _columns(x, step, count, channels, dst):
    """The means of `channels` columns at `x` of `count` numbers that lie `step` bytes apart; `count` is a
    multiple of `LANES`.
    """
    sums, lane = stack(_STACK), 4 * CHANNELS
    first, pairs = min(count, 2 * LANES), count // (2 * LANES) * 2 * LANES
    for i in range(first):
        for c in range(channels):
            store_f32(offset(sums, lane * i), c, load_f32(offset(x, step * i), c))
    for i in range(first, pairs):
        add_to_sums(offset(sums, lane * (i % (2 * LANES))), offset(x, step * i), channels)
    if first > LANES:
        for i in range(LANES):
            add_to_sums(offset(sums, lane * i), offset(sums, lane * (LANES + i)), channels)
        for i in range(pairs, count):
            add_to_sums(offset(sums, lane * (i - pairs)), offset(x, step * i), channels)
    for c in range(channels):
        even = load_f32(sums, c) + load_f32(sums, 2 * CHANNELS + c)
        odd = load_f32(sums, CHANNELS + c) + load_f32(sums, 3 * CHANNELS + c)
        store_f32(dst, c, mean_of(even + odd, np.float32(count)))


@routine(PASS)
def image_means(args, first, end, worker):
    """Means of images with their channels last. Arguments: src, dst, channels, pixels. Pieces are `CHANNELS`
    channels of an image.
    """
    src, dst, channels, pixels = (
        pointer_at(args, 0),
        pointer_at(args, 1),
        load_i64(args, 2),
        load_i64(args, 3),
    )
    parts = (channels + CHANNELS - 1) // CHANNELS
    for piece in range(first, end):
        image, low = piece // parts, piece % parts * CHANNELS
        place = offset(src, 4 * (image * channels * pixels + low))
        to = offset(dst, 4 * (image * channels + low))
        _columns(place, 4 * channels, pixels, min(CHANNELS, channels - low), to)


def is_image_mean(node: Any, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether a node may be a ReduceMean over the last axes, of which there are two or more, or all from the
    third on; only the number of its operand's axes can say.
    """
    if node.op_type != "ReduceMean" or node.domain:
        return False
    given = list(node.input[1:])
    axes = constants.get(given[0]) if given and given[0] else attributes_of(node).get("axes")
    if axes is None or not np.size(axes):
        return False
    found = np.sort(np.ravel(axes))
    last = found.size > 1 and found[-1] == -1
    return bool((last or found[0] == 2) and (np.diff(found) == 1).all())


def _rows(x: np.ndarray, axes: Any, keepdims: int) -> tuple[int, tuple[int, ...]]:
    """How many numbers a mean is of, and the result's shape.

    Raises
    ------
    NotOurs
        If the axes are not the last.
    """
    found = sorted(int(a) % x.ndim for a in np.ravel(axes)) if x.ndim else []
    before = x.ndim - len(found)
    if not found or found != list(range(before, x.ndim)):
        raise NotOurs
    return math.prod(x.shape[before:]), (*x.shape[:before], *(1,) * (len(found) if keepdims else 0))


def compiled(
    x: np.ndarray, axes: Any, keepdims: int = 1, num_threads: int | None = 1, recorder: Recorder | None = None
) -> Any:
    """The means; NotImplemented if they are not for this."""
    count, shape = _rows(x, axes, keepdims)
    if recorder is not None:
        x = recorder.in_order(x)
    if numba.config.DISABLE_JIT or not x.size:
        return NotImplemented
    at, _, run = ways(recorder)
    found = turned.sizes(x)
    if found is not None and (count % LANES or count != found[2]):
        y = np.empty(x.shape, x.dtype)
        turned.fill(y, x, num_threads, recorder)
        x, found = y, None
    if found is None:
        if not x.flags.c_contiguous:
            return NotImplemented
        y = np.empty(shape, np.float32)
        run_shared(row_means.row_means, (at(x), at(y), count), y.size, 0.2 * x.size, num_threads, run)
        return y
    y = np.empty(shape, np.float32)
    images, channels, pixels = found
    args = at(x), at(y), channels, pixels
    run_shared(image_means, args, images * -(-channels // CHANNELS), 0.2 * x.size, num_threads, run)
    return y


def reduce_mean(
    state: State, x: np.ndarray, given: Any = None, *, axes: Any = None, keepdims: int = 1, **_: Any
) -> np.ndarray:
    """ReduceMean of float32 over the last axes."""
    axes = axes if given is None else given
    count, shape = _rows(x, axes, keepdims)
    x = np.ascontiguousarray(x) if turned.sizes(x) is None else x
    y = compiled(x, axes, keepdims, state.num_threads)
    if y is NotImplemented:
        rows = x.reshape(math.prod(shape), count)
        y = row_means.by_definition(rows).reshape(shape)
    return y


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """ReduceMean, as `prepare.py` has operators."""
    axes = constants[1] if len(constants) > 1 and constants[1] is not None else attributes.get("axes")
    keepdims = attributes.get("keepdims", 1)

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> Any:
        try:
            return compiled(x, axes, keepdims, state.num_threads, recorder)
        except NotOurs:  # said when it runs by itself
            return NotImplemented

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


OPERATORS = {(OWN, "ReduceMean"): reduce_mean}
MAKERS = {(OWN, "ReduceMean"): prepared}
