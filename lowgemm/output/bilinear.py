"""Zero points that differ by row and by column: what the kernel's compensation cannot express."""

from __future__ import annotations

from lowgemm.jit.memory import load_i32, offset, store_32
from lowgemm.output.parameters import described
from lowgemm.output.tile_routine import tile_routine


@tile_routine(described())
def bilinear(
    tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out, row_stride, col_stride
):
    """Add ``lhs_zero[r] * factor[c] - row_sum[r] * rhs_zero[c]``.

    ``factor[c] = depth * rhs_zero[c] - col_sum[c]`` is made when columns are packed.
    """
    for r in range(rows):
        line = offset(tile, 4 * r * ld)
        lhs_zero, total = load_i32(lhs_zeros, r), load_i32(sums, r)
        for c in range(cols):
            x = load_i32(line, c) + lhs_zero * load_i32(factors, c) - total * load_i32(rhs_zeros, c)
            store_32(line, c, x)
