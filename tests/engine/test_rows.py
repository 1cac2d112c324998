"""Rows of an lhs for kernels that read rows: every order in memory, both signs, padding and sums."""

from __future__ import annotations

import numpy as np
import pytest

from lowgemm import kernels
from lowgemm.engine import packing

KERNELS = [k for k in kernels.all_kernels() if k.row_bytes and not kernels.why_not(k)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("order", ["rows", "columns", "reversed columns", "steps"])
@pytest.mark.parametrize(("m", "depth"), [(1, 1), (3, 64), (16, 16), (17, 65), (33, 130), (40, 15), (5, 0)])
def test_rows(kernel, dtype, order, m, depth):
    g, info = np.random.default_rng(m + depth), np.iinfo(dtype)
    a = g.integers(info.min, info.max, (2 * m, 3 * depth), dtype=dtype, endpoint=True)
    a[::3] = info.min  # sums at their ends
    a = {
        "rows": a[:m, :depth],
        "columns": np.asfortranarray(a[:m, :depth]),
        "reversed columns": np.asfortranarray(a[:m, :depth])[::-1, ::-1],
        "steps": a[::2, ::3],
    }[order]
    flip, shift = packing.element_map(kernel, "lhs", a.dtype.kind)
    assert shift == 0
    padded = -(-depth // kernel.row_bytes) * kernel.row_bytes
    to = np.full((m + 1, padded + 64), 77, np.uint8)
    sums = np.full(m + 1, 99, np.int32)
    routine = packing.pack_routine(kernel, "lhs", order == "rows").ctypes
    routine(
        a.ctypes.data,
        a.strides[0],
        a.strides[1],
        m,
        depth,
        flip,
        to.ctypes.data,
        to.strides[0],
        sums.ctypes.data,
    )
    np.testing.assert_array_equal(to[:m, :depth].view(dtype), a)
    assert (to[:m, depth:padded] == 0).all() and (to[:m, padded:] == 77).all() and (to[m] == 77).all()
    np.testing.assert_array_equal(sums[:m], a.astype(int).sum(axis=1))
    assert sums[m] == 99
    if order == "rows":  # in place: the sums alone
        sums[:] = 98
        routine(a.ctypes.data, a.strides[0], 1, m, depth, flip, None, 0, sums.ctypes.data)
        np.testing.assert_array_equal(sums[:m], a.astype(int).sum(axis=1))
        assert sums[m] == 98
