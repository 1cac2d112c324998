"""GlobalAveragePool of float32 numbers that lowgemm made, between a chain and the quantizer behind it.

The order of the sum is onnxruntime's on x86: four sums of every fourth number, put together as
``(0 + 2) + (1 + 3)``, then the numbers that are left one by one. So the result has its bits, and no other
engine has to be called in the middle of a recording.
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
from lowgemm.onnx_run import turned
from lowgemm.onnx_run.dynamic import OWN, as_own
from lowgemm.onnx_run.image_means import add_to_sums, is_image_mean
from lowgemm.onnx_run.row_means import mean_of
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways

#: Sums that are made side by side, and channels of a piece.
LANES, CHANNELS = 4, 64
_STACK = 4 * LANES * CHANNELS


@inner
def _row(x, count):
    """The mean of `count` numbers at `x` that lie one after the other."""
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    whole = count // LANES
    for i in range(whole):
        j = LANES * i
        a, b = a + load_f32(x, j), b + load_f32(x, j + 1)
        c, d = c + load_f32(x, j + 2), d + load_f32(x, j + 3)
    total = (a + c) + (b + d)
    for i in range(LANES * whole, count):
        total += load_f32(x, i)
    return mean_of(total, np.float32(count))


@inner
def _columns(x, step, count, channels, dst):
    """The means of `channels` columns at `x` of `count` numbers that lie `step` bytes apart."""
    sums = stack(_STACK)
    for c in range(LANES * CHANNELS):
        store_f32(sums, c, np.float32(0))
    whole = count // LANES * LANES
    for i in range(whole):
        add_to_sums(offset(sums, 4 * CHANNELS * (i % LANES)), offset(x, step * i), channels)
    for c in range(channels):
        first = load_f32(sums, c) + load_f32(sums, 2 * CHANNELS + c)
        store_f32(sums, c, first + (load_f32(sums, CHANNELS + c) + load_f32(sums, 3 * CHANNELS + c)))
    for i in range(whole, count):
        add_to_sums(sums, offset(x, step * i), channels)
    for c in range(channels):
        store_f32(dst, c, mean_of(load_f32(sums, c), np.float32(count)))


@routine(PASS)
def means(args, first, end, worker):
    """Means of images.

    Arguments: src, dst, channels, pixels, last. `last`: the channels lie last in memory, and pieces are
    `CHANNELS` channels of an image; else they are channels.
    """
    src, dst, channels, pixels = (
        pointer_at(args, 0),
        pointer_at(args, 1),
        load_i64(args, 2),
        load_i64(args, 3),
    )
    if load_i64(args, 4) == 0:
        for i in range(first, end):
            store_f32(dst, i, _row(offset(src, 4 * pixels * i), pixels))
        return
    parts = (channels + CHANNELS - 1) // CHANNELS
    for piece in range(first, end):
        image, low = piece // parts, piece % parts * CHANNELS
        place = offset(src, 4 * (image * channels * pixels + low))
        to = offset(dst, 4 * (image * channels + low))
        _columns(place, 4 * channels, pixels, min(CHANNELS, channels - low), to)


def by_definition(x: np.ndarray) -> np.ndarray:
    """The means, in the order of the sums that the module describes."""
    count = math.prod(x.shape[2:])
    rows = x.reshape(*x.shape[:2], count)
    whole, sums = count // LANES * LANES, np.zeros((*x.shape[:2], LANES), np.float32)
    for i in range(0, whole, LANES):
        sums += rows[..., i : i + LANES]
    total = (sums[..., 0] + sums[..., 2]) + (sums[..., 1] + sums[..., 3])
    for i in range(whole, count):
        total = total + rows[..., i]
    return (total / np.float32(count)).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


def compiled(x: np.ndarray, num_threads: int | None = 1, recorder: Recorder | None = None) -> Any:
    """`by_definition`; NotImplemented if it is not for this."""
    found = turned.sizes(x)
    if numba.config.DISABLE_JIT or not x.size or (found is None and not x.flags.c_contiguous):
        return NotImplemented
    images, channels, pixels = *x.shape[:2], math.prod(x.shape[2:])
    y = np.empty((images, channels, *(1,) * (x.ndim - 2)), np.float32)
    pieces = images * (channels if found is None else -(-channels // CHANNELS))
    at, _, run = ways(recorder)
    args = at(x), at(y), channels, pixels, int(found is not None)
    run_shared(means, args, pieces, 0.2 * x.size, num_threads, run)
    return y


def global_average_pool(state: State, x: np.ndarray) -> np.ndarray:
    """GlobalAveragePool of float32."""
    y = compiled(x, state.num_threads)
    return by_definition(x) if y is NotImplemented else y


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """GlobalAveragePool, as `prepare.py` has operators."""

    def run(x: np.ndarray, recorder: Recorder | None = None) -> Any:
        return compiled(x, state.num_threads, recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def of_chains(nodes: Sequence[Any], constants: Mapping[str, np.ndarray]) -> list[Any]:
    """Nodes with GlobalAveragePool, and ReduceMean over the last axes, as lowgemm's own where a chain makes
    what they read.
    """
    made = {o for n in nodes if n.domain == OWN and n.op_type == "Chain" for o in n.output}
    found = []
    for node in nodes:
        pool = node.op_type == "GlobalAveragePool" and not node.domain
        if (pool or is_image_mean(node, constants)) and node.input[0] in made:
            node = as_own(node)
        found.append(node)
    return found


OPERATORS = {(OWN, "GlobalAveragePool"): global_average_pool}
MAKERS = {(OWN, "GlobalAveragePool"): prepared}
