"""Sums of a recorded product or convolution to bytes, where scales or zero points come with the data: a pass
behind that of the sums, as the stages of a plan have constants.

The arithmetic is onnxruntime's: ``x_scale * w_scale / y_scale`` in float32, in this order, times the sum, cut
off, rounded to even, and the zero point. Scales that are not positive numbers end the recorded call, and the
operator's own function says what they make.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from lowgemm.compat.onnx_passes import quantize_scaled
from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_f32, load_i64, load_u8, offset, pointer_at, store_f32
from lowgemm.jit.routine import inner_dividing, routine
from lowgemm.onnx_run.tape import Recorder

_u64 = np.uint64
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
#: Nanoseconds of a sum.
ELEMENT = 0.4


@inner_dividing
def _scale(x, w, y):
    return x * w / y


@routine(PASS)
def scales_of_columns(args, first, end, worker):
    """The scale of each column, and NaN in the place behind them if one is not a positive number.

    Arguments: scale of x, those of w, the step from one of these to the next (0 or 1), scale of y, columns,
    dst. There is one piece.
    """
    x, y = load_f32(pointer_at(args, 0), 0), load_f32(pointer_at(args, 3), 0)
    step, columns, dst = load_i64(args, 2), load_i64(args, 4), pointer_at(args, 5)
    sound = np.float32(0)
    for c in range(columns):
        w = load_f32(pointer_at(args, 1), step * c)
        scale = _scale(x, w, y)
        if not (x > 0 and w > 0 and 0 < scale < np.float32(np.inf)):  # then y is one too
            sound = np.float32(np.nan)
        store_f32(dst, c, scale)
    store_f32(dst, columns, sound)


@routine(PASS)
def requantize_rows(args, first, end, worker):
    """int32 sums to bytes.

    Arguments: sums, dst, columns, scales of columns, zero point of the result (a byte), 128 if that is
    signed, else 0, and a bias for each column or 0. Pieces are rows.
    """
    columns, flip = load_i64(args, 2), load_i64(args, 5)
    scales = numba.carray(pointer_at(args, 3), (columns,), np.float32)
    zero = np.int32((np.int64(load_u8(pointer_at(args, 4), 0)) ^ flip) - flip)
    below, above = np.float32(-flip - zero), np.float32(255 - flip - zero)
    biased = load_i64(args, 6) != 0
    bias = numba.carray(pointer_at(args, 6), (columns,), np.int32)
    for r in range(first, end):
        sums = numba.carray(offset(pointer_at(args, 0), 4 * r * columns), (columns,), np.int32)
        out = numba.carray(offset(pointer_at(args, 1), r * columns), (columns,), np.uint8)
        if biased:
            for c in range(_u64(columns)):
                whole = np.int32(sums[c] + bias[c])
                out[c] = quantize_scaled(np.float32(whole) * scales[c], zero, below, above) & np.int32(0xFF)
        else:
            for c in range(_u64(columns)):
                out[c] = quantize_scaled(np.float32(sums[c]) * scales[c], zero, below, above) & np.int32(0xFF)


def _one(recorder: Recorder, value: Any, *dtypes: Any) -> bool:
    """Whether a value is one number of such a type that the recorder can read."""
    return value is not None and value.size == 1 and value.dtype in dtypes and recorder.knows(value)


def _row(recorder: Recorder, value: Any, columns: int, dtype: Any) -> bool:
    """Whether a value is one number for each column."""
    lies = value.flags.c_contiguous and max(value.shape, default=1) == value.size == columns
    return bool(value.dtype == dtype and lies and recorder.knows(value))


def requantized(
    recorder: Recorder, sums: Any, scales: Any, y_zero: Any, bias: Any, num_threads: int | None
) -> Any:
    """Take down the bytes of sums whose columns lie last in memory, of shape (rows, columns); NotImplemented
    if that cannot be. `scales` are of x, of w (one, or one for each column) and of y; there may be a bias.
    """
    rows, columns = sums.shape
    x_scale, w_scale, y_scale = scales
    if not (_one(recorder, x_scale, np.float32) and _one(recorder, y_scale, np.float32)):
        return NotImplemented
    one_w = _one(recorder, w_scale, np.float32)
    if not one_w and not _row(recorder, w_scale, columns, np.float32):
        return NotImplemented
    if not _one(recorder, y_zero, *_BYTES) or (
        bias is not None and not _row(recorder, bias, columns, np.int32)
    ):
        return NotImplemented
    of_columns, y = np.empty(columns + 1, np.float32), np.empty((rows, columns), y_zero.dtype)
    recorder.keep(of_columns, y, *(v for v in (*scales, y_zero, bias) if v is not None))
    at = recorder.at
    args = at(x_scale), at(w_scale), int(not one_w), at(y_scale), columns, at(of_columns)
    recorder.run(scales_of_columns, args, 1)
    recorder.check(of_columns[columns:])
    flip = 128 if y_zero.dtype == np.int8 else 0
    given = 0 if bias is None else at(bias)
    more = at(sums), at(y), columns, at(of_columns), at(y_zero), flip, given
    run_shared(requantize_rows, more, rows, ELEMENT * sums.size, num_threads, recorder.run)
    return y
