"""Test cases for a microkernel's contract, on packed panels, with the answer by definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lowgemm.kernels.framework.kernel import Kernel

_STORED = {"u8": np.uint8, "s8": np.int8, "s16": np.int16}


@dataclass(frozen=True)
class Case:
    """One call of a microkernel: sizes, packed panels, compensation, what `c` holds before, and the right `c` after."""

    m: int
    nv: int
    groups: int
    add_c: int
    ldc: int
    lhs_stride: int
    rhs_stride: int
    lhs: np.ndarray
    rhs: np.ndarray
    row_compensation: np.ndarray
    col_compensation: np.ndarray
    c: np.ndarray
    expected: np.ndarray


def _elements(kernel: Kernel, side: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    stored = kernel.lhs_type if side == "lhs" else kernel.rhs_type
    dtype = _STORED[stored]
    low, high = (-255, 255) if stored == "s16" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    kind = rng.integers(0, 4)
    if kind == 0:
        return rng.choice(np.array([low, high]), shape).astype(dtype)
    if kind == 1:
        return np.full(shape, rng.choice([low, high]), dtype=dtype)
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


def cases(kernel: Kernel, seed: int = 0, count: int = 60) -> Iterator[Case]:
    """Calls over every tile height and width, depths from 0, with extreme values and compensation that wraps."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        m = 1 + i % (2 * kernel.mr + 3)
        nv = 1 + i % kernel.max_nv
        groups = int(rng.integers(0, 40)) if i else 0
        panels = -(-m // kernel.mr)
        lhs = _elements(kernel, "lhs", rng, (panels, groups + 1, kernel.mr, kernel.kr))
        rhs = _elements(kernel, "rhs", rng, (nv, groups + 1, kernel.lanes, kernel.kr))
        cols = nv * kernel.lanes
        ldc = cols + int(rng.integers(0, 5))
        row_compensation = rng.integers(-(2**31), 2**31, m).astype(np.int32)
        col_compensation = rng.integers(-(2**31), 2**31, cols).astype(np.int32)
        c = rng.integers(-(2**31), 2**31, (m, ldc)).astype(np.int32)
        add_c = i % 3 == 0
        left = lhs[:, :groups].transpose(0, 2, 1, 3).reshape(panels * kernel.mr, -1)[:m].astype(np.int64)
        right = rhs[:, :groups].transpose(0, 2, 1, 3).reshape(cols, -1).astype(np.int64)
        sums = left @ right.T + row_compensation[:, None] + col_compensation + (c[:, :cols] if add_c else 0)
        expected = c.copy()
        expected[:, :cols] = sums.astype(np.uint64).astype(np.uint32).view(np.int32)
        yield Case(
            m, nv, groups, int(add_c), ldc, lhs[0].nbytes, rhs[0].nbytes, lhs, rhs, row_compensation, col_compensation, c, expected
        )  # fmt: skip
