"""Sums of rows and of runs of bytes, beside NumPy's."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from lowgemm.jit.memory import offset, store_32
from lowgemm.jit.routine import routine
from lowgemm.onnx_run.byte_sums import sum_columns, sum_run

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="vectors are compiled")


@routine("pnnnnp")
def _columns(src, columns, step, rows, flip, dst):
    sum_columns(src, columns, step, rows, flip, dst)


@routine("pnnnp")
def _runs(src, count, runs, flip, dst):
    for i in range(runs):
        store_32(dst, i, sum_run(offset(src, i * count), count, flip))


@pytest.mark.parametrize("flip", [0, 128])
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 31, 48, 63, 64, 65, 80, 127, 130, 256])
def test_columns(columns, flip):
    """Rows with gaps; nothing is written behind the sums."""
    g = np.random.default_rng(columns)
    for rows in (0, 1, 2, 77):
        x = g.integers(0, 256, (max(rows, 1), columns + 5), dtype=np.uint8)
        found = np.full(columns + 3, -1, np.int32)
        _columns.ctypes(x.ctypes.data, columns, columns + 5, rows, flip, found.ctypes.data)
        want = (x[:rows, :columns] ^ np.uint8(flip)).astype(np.int32).sum(0)
        np.testing.assert_array_equal(found, [*want, -1, -1, -1])


@pytest.mark.parametrize("flip", [0, 128])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 1000, 4097])
def test_runs(count, flip):
    """One after the other: none begins with the sum before it."""
    x = np.random.default_rng(count).integers(0, 256, (5, count), dtype=np.uint8)
    found = np.zeros(5, np.int32)
    _runs.ctypes(x.ctypes.data, count, 5, flip, found.ctypes.data)
    np.testing.assert_array_equal(found, (x ^ np.uint8(flip)).astype(np.int32).sum(1))


def test_the_largest():
    x = np.full((1, 1 << 20), 255, np.uint8)
    found = np.zeros(1, np.int32)
    _runs.ctypes(x.ctypes.data, 1 << 20, 1, 0, found.ctypes.data)
    assert found[0] == 255 << 20
