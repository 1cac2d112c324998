"""The routine that stores int32 rows of any width, beside NumPy's assignment."""

from __future__ import annotations

import numpy as np
import pytest

import lowgemm
from lowgemm import reference


@pytest.mark.parametrize("columns", [*range(1, 20), 31, 33, 47])
@pytest.mark.parametrize("stride", [1, 2])
def test_rows_of_any_width(columns, stride, kernel):
    """Columns that fill no register come from a tile; nothing beside them is written."""
    g = np.random.default_rng(columns)
    lhs, rhs = (
        g.integers(0, 256, (37, 24), dtype=np.uint8),
        g.integers(-128, 128, (24, columns), dtype=np.int8),
    )
    whole = np.full((39, stride * columns + 6), 7, np.int32)
    out = whole[1:-1, 3 : 3 + stride * columns : stride]
    before = whole.copy()
    before[1:-1, 3 : 3 + stride * columns : stride] = reference.gemm(lhs, rhs, lhs_zero_point=11)
    lowgemm.gemm(lhs, rhs, lhs_zero_point=11, out=out)
    np.testing.assert_array_equal(whole, before)
