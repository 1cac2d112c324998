"""The end of a product with coded weights: float32 sums times a scale for each row, and a bias for each
column.
"""

from __future__ import annotations

import numba
import numpy as np

from lowgemm.jit.memory import offset, pointer_field
from lowgemm.jit.routine import inner


@inner
def store_rows(job, total, stride, row, rows, col, cols):
    """Store `rows` rows of `total`, `stride` elements apart, to the result of the job from a row and a column
    on.
    """
    for r in range(rows):
        place = 4 * ((row + r) * job.cols + col)
        out = numba.carray(offset(pointer_field(job, "out"), place), (cols,), np.float32)
        factor = np.float32(1)
        if job.row_scales != 0:
            factor = numba.carray(pointer_field(job, "row_scales"), (job.rows,), np.float32)[row + r]
        for c in range(cols):
            out[c] = total[r * stride + c] * factor
        if job.bias != 0:
            bias = numba.carray(offset(pointer_field(job, "bias"), 4 * col), (cols,), np.float32)
            for c in range(cols):
                out[c] += bias[c]
