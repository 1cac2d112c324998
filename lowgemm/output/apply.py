"""The stages on int32 sums in memory, tile by tile: for `lowgemm.requantize` and for convolutions."""

from __future__ import annotations

from lowgemm.jit.memory import as_address, load_i32, load_i64, offset, store_32
from lowgemm.jit.routine import call_address, routine

#: Rows and columns of the tile that goes through the stages at a time: 16 KB, half of L1.
TILE_ROWS, TILE_COLS = 16, 256


@routine("pnpnnnnpnnp")
def apply(
    stages, count, acc, acc_row_stride, acc_col_stride, m, n, out, out_row_stride, out_col_stride, tile
):
    """Put an m x n matrix of int32 through `count` stages.

    `stages` points to the addresses of the first stage's routine and parameters, then of the second's, and so
    on (`CompiledPipeline.addresses`). `acc` points to the matrix, `out` to the result; their strides in bytes
    are `acc_row_stride`, `acc_col_stride`, `out_row_stride` and `out_col_stride`. `tile` points to memory for
    `TILE_ROWS` x `TILE_COLS` int32.
    """
    for row in range(0, m, TILE_ROWS):
        rows = min(TILE_ROWS, m - row)
        for col in range(0, n, TILE_COLS):
            cols = min(TILE_COLS, n - col)
            for r in range(rows):
                line, source = (
                    offset(tile, 4 * r * TILE_COLS),
                    offset(acc, (row + r) * acc_row_stride + col * acc_col_stride),
                )
                if acc_col_stride == 4:
                    for c in range(cols):
                        store_32(line, c, load_i32(source, c))
                else:
                    for c in range(cols):
                        store_32(line, c, load_i32(offset(source, c * acc_col_stride), 0))
            to = as_address(offset(out, row * out_row_stride + col * out_col_stride))
            for i in range(count):
                call_address(
                    load_i64(stages, 2 * i),
                    (
                        as_address(tile), TILE_COLS, rows, cols, row, col, load_i64(stages, 2 * i + 1), 0, 0,
                        0, 0, to, out_row_stride, out_col_stride,
                    ),
                )  # fmt: skip
