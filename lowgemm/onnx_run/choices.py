"""QLinearWhere with constant scales: a byte of one operand or of the other, each by a table of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_i64, pointer_at
from lowgemm.jit.routine import routine
from lowgemm.onnx_run import contrib, strided
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways

_u64 = np.uint64
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
#: Elements of a piece, and nanoseconds of an element.
PIECE, ELEMENT = 4096, 1.0


@routine(PASS)
def choose(args, first, end, worker):
    """Bytes of x where the condition is not 0, else of y, each by its table.

    Arguments: condition, x, y, dst, both tables, one behind the other, elements. Pieces are `PIECE` elements.
    """
    count = load_i64(args, 5)
    condition = numba.carray(pointer_at(args, 0), (count,), np.uint8)
    x, y = (
        numba.carray(pointer_at(args, 1), (count,), np.uint8),
        numba.carray(pointer_at(args, 2), (count,), np.uint8),
    )
    out = numba.carray(pointer_at(args, 3), (count,), np.uint8)
    tables = numba.carray(pointer_at(args, 4), (512,), np.uint8)
    for i in range(_u64(first * PIECE), _u64(min(end * PIECE, count))):
        of_x, of_y = np.int64(x[i]), np.int64(256) + np.int64(y[i])
        # by multiplication: a jump that no CPU can guess takes 3 ns
        out[i] = tables[_u64(of_y + (of_x - of_y) * np.int64(condition[i] != 0))]


def _repeated(x: np.ndarray, shape: tuple[int, ...], recorder: Recorder | None) -> Any:
    """An operand of the result's shape in C order, or NotImplemented."""
    whole = np.broadcast_to(x, shape)
    if x.shape == shape and x.flags.c_contiguous:
        return x
    if recorder is None:
        return np.ascontiguousarray(whole)
    return recorder.copied(whole) if strided.takes(np.empty(shape, x.dtype), whole) else NotImplemented


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """QLinearWhere, for a recorder too."""
    _, _, x_scale, x_zero, _, y_scale, y_zero, z_scale, z_zero = [*constants, *[None] * 9][:9]
    held = x_scale, x_zero, y_scale, y_zero, z_scale, z_zero
    if any(v is None or v.size != 1 for v in held) or any(z.dtype not in _BYTES for z in held[1::2]):
        return None
    operator = contrib.OPERATORS[contrib.DOMAIN, "QLinearWhere"]
    bytes_of = [np.arange(256, dtype=np.uint8).view(z.dtype) for z in (x_zero, y_zero)]
    tables = np.concatenate(
        [operator(state, np.bool_(which), bytes_of[0], *held[:2], bytes_of[1], *held[2:]) for which in (1, 0)]
    )

    def run(condition: np.ndarray, x: np.ndarray, *others: Any, recorder: Recorder | None = None) -> Any:
        y = others[2]
        if condition.dtype != np.bool_ or x.dtype != x_zero.dtype or y.dtype != y_zero.dtype:
            return NotImplemented
        shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
        given = [_repeated(a, shape, recorder) for a in (condition, x, y)]
        out = np.empty(shape, z_zero.dtype)
        if not out.size or any(a is NotImplemented for a in given):
            return NotImplemented
        at, hold, by = ways(recorder)
        args = *(at(a) for a in (*given, out)), hold(tables), out.size
        run_shared(choose, args, -(-out.size // PIECE), ELEMENT * out.size, state.num_threads, by)
        return out

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run
