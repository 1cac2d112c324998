"""The last routines of a pipeline: clamp, and store int32, 16 or 8 bits to the result. (`scale_and_store.py`
scales and stores in one pass.)
"""

from __future__ import annotations

from lowgemm.jit.memory import copy_bytes, load_i32, offset, store_8, store_16, store_32
from lowgemm.jit.routine import inner
from lowgemm.output.parameters import NUMBER, described, reader
from lowgemm.output.tile_routine import tile_routine

#: The bounds, and whether to add to what the result holds. Only int32 results can be added to, and they have
#: no bounds.
STORE = described(low=NUMBER, high=NUMBER, accumulate=NUMBER)
_read = reader(STORE)


@inner
def _copy_words(to, source, count):
    """Copy `count` int32 from `source` to `to`; of vectors the last copies some again.

    Element by element a row of 12 takes 14 ns.
    """
    if count >= 8:
        for i in range(count // 8):
            copy_bytes(offset(to, 32 * i), offset(source, 32 * i), 32)
        copy_bytes(offset(to, 4 * count - 32), offset(source, 4 * count - 32), 32)
    elif count >= 4:
        copy_bytes(to, source, 16)
        copy_bytes(offset(to, 4 * count - 16), offset(source, 4 * count - 16), 16)
    else:
        for i in range(count):
            store_32(to, i, load_i32(source, i))


@tile_routine(STORE)
def store32(
    tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out, row_stride, col_stride
):
    """Store int32, or add it to what is there."""
    accumulate = _read(params)[2]
    if col_stride == 4 and not accumulate:
        for r in range(rows):
            _copy_words(offset(out, r * row_stride), offset(tile, 4 * r * ld), cols)
        return
    for r in range(rows):
        line, to = offset(tile, 4 * r * ld), offset(out, r * row_stride)
        for c in range(cols):
            x, place = load_i32(line, c), offset(to, c * col_stride)
            if accumulate:
                x += load_i32(place, 0)
            store_32(place, 0, x)


@tile_routine(STORE)
def store16(
    tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out, row_stride, col_stride
):
    """Clamp and store 16 bits."""
    low, high, _ = _read(params)
    for r in range(rows):
        line, to = offset(tile, 4 * r * ld), offset(out, r * row_stride)
        for c in range(cols):
            store_16(offset(to, c * col_stride), 0, min(max(load_i32(line, c), low), high))


@tile_routine(STORE)
def store8(
    tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out, row_stride, col_stride
):
    """Clamp and store 8 bits."""
    low, high, _ = _read(params)
    for r in range(rows):
        line, to = offset(tile, 4 * r * ld), offset(out, r * row_stride)
        if col_stride == 1:
            for c in range(cols):
                store_8(to, c, min(max(load_i32(line, c), low), high))
        else:
            for c in range(cols):
                store_8(to, c * col_stride, min(max(load_i32(line, c), low), high))
