"""Test cases for a microkernel's contract, on packed panels, with the answer by definition: int32 sums, and
scaled bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lowgemm.kernels.framework.kernel import EITHER, Kernel
from lowgemm.reference_fixedpoint import rounding_divide_by_pot, saturating_rounding_doubling_high_mul

_STORED = {"u8": np.uint8, "s8": np.int8, "s16": np.int16}


@dataclass(frozen=True)
class Scale:
    """A scale that the kernel fuses: for each column a multiplier and a right shift, one offset, and the
    bounds of the bytes.
    """

    multiplier: np.ndarray
    right: np.ndarray
    offset: int
    low: int
    high: int
    col: int

    def of(self, sums: np.ndarray) -> np.ndarray:
        """The bytes, by definition."""
        cols = slice(self.col, self.col + sums.shape[1])
        y = saturating_rounding_doubling_high_mul(sums, self.multiplier[cols], 32)
        y = rounding_divide_by_pot(y, self.right[cols]) + self.offset
        return np.clip(y, self.low, self.high).astype(np.int64).astype(np.uint8)

    def record(self) -> np.ndarray:
        """What the kernel reads: two addresses and three numbers."""
        pointers = self.multiplier.ctypes.data, self.right.ctypes.data
        return np.array([*pointers, self.offset, self.low, self.high], np.int64)


@dataclass(frozen=True)
class FloatScale:
    """The other scale that kernels fuse: for each column a float32, the zero point of the bytes, and their
    bounds.
    """

    scale: np.ndarray
    offset: int
    low: int
    high: int
    col: int

    def of(self, sums: np.ndarray) -> np.ndarray:
        """The bytes, by definition."""
        y = sums.astype(np.float32) * self.scale[self.col : self.col + sums.shape[1]]
        return (
            np.clip(np.rint(y).astype(np.float64) + self.offset, self.low, self.high)
            .astype(np.int64)
            .astype(np.uint8)
        )

    def record(self) -> np.ndarray:
        """What the kernel reads: an address and three numbers."""
        return np.array([self.scale.ctypes.data, self.offset, self.low, self.high], np.int64)


@dataclass(frozen=True)
class Case:
    """One call of a microkernel: sizes, packed panels, compensation, what `c` holds before, and the right `c`
    after.
    """

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
    lhs_signed: bool = False
    scale: Scale | FloatScale | None = None

    @property
    def cols(self) -> int:
        """Columns of the result."""
        return self.col_compensation.size


def _elements(
    kernel: Kernel, side: str, rng: np.random.Generator, shape: tuple[int, ...], lhs_signed: bool = False
) -> np.ndarray:
    stored = kernel.lhs_type if side == "lhs" else kernel.rhs_type
    if stored == EITHER:
        stored = "s8" if lhs_signed else "u8"
    dtype = _STORED[stored]
    low, high = (-255, 255) if stored == "s16" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    kind = rng.integers(0, 4)
    if kind == 0:
        return rng.choice(np.array([low, high]), shape).astype(dtype)
    if kind == 1:
        return np.full(shape, rng.choice([low, high]), dtype=dtype)
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


def cases(kernel: Kernel, seed: int = 0, count: int = 60) -> Iterator[Case]:
    """Calls over every tile height and width, depths from 0, with extreme values and compensation
    that wraps.
    """
    rng = np.random.default_rng(seed)
    for i in range(count):
        m = 1 + i % (2 * kernel.mr + 3)
        nv = 1 + i % (2 * kernel.max_nv + 1 if kernel.any_panels else kernel.max_nv)
        groups = int(rng.integers(0, 40)) if i else 0
        panels = -(-m // kernel.mr)
        lhs_signed = kernel.lhs_type == EITHER and i % 4 < 2
        if kernel.row_bytes:
            lhs, left, lhs_stride = _rows(kernel, rng, m, groups, lhs_signed)
        else:
            lhs = _elements(kernel, "lhs", rng, (panels, groups + 1, kernel.mr, kernel.kr))
            lhs_stride = lhs[0].nbytes
            left = lhs[:, :groups].transpose(0, 2, 1, 3).reshape(panels * kernel.mr, -1)[:m].astype(np.int64)
        rhs = _elements(kernel, "rhs", rng, (nv, groups + 1, kernel.lanes, kernel.kr))
        cols = nv * kernel.lanes
        ldc = cols + int(rng.integers(0, 5))
        row_compensation = rng.integers(-(2**31), 2**31, m).astype(np.int32)
        col_compensation = rng.integers(-(2**31), 2**31, cols).astype(np.int32)
        c = rng.integers(-(2**31), 2**31, (m, ldc)).astype(np.int32)
        add_c = i % 3 == 0
        right = rhs[:, :groups].transpose(0, 2, 1, 3).reshape(cols, -1).astype(np.int64)
        sums = left @ right.T + row_compensation[:, None] + col_compensation + (c[:, :cols] if add_c else 0)
        expected = c.copy()
        expected[:, :cols] = sums.astype(np.uint64).astype(np.uint32).view(np.int32)
        rhs_stride = rhs[0].nbytes
        if kernel.over_read:  # what lies behind the panels is read, and must not count
            behind = _elements(kernel, "rhs", rng, (kernel.over_read,))
            rhs = np.concatenate([rhs.reshape(-1), behind])
        yield Case(
            m, nv, groups, int(add_c), ldc, lhs_stride, rhs_stride, lhs, rhs, row_compensation,
            col_compensation, c, expected, lhs_signed,
        )  # fmt: skip


def _rows(
    kernel: Kernel, rng: np.random.Generator, m: int, groups: int, signed: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """An lhs that is read as rows: its memory, its elements, and the bytes from row to row."""
    depth = groups * kernel.kr
    padded = -(-depth // kernel.row_bytes) * kernel.row_bytes
    rows = _elements(kernel, "lhs", rng, (m, padded + int(rng.integers(0, 70))), signed)
    rows[:, depth:padded] = 0
    return rows, rows[:, :depth].astype(np.int64), rows.strides[0]


def scaled(kernel: Kernel, seed: int = 1, count: int = 60, float32: bool = False) -> Iterator[Case]:
    """The same calls with a scale, in fixed point or in float32, for kernels with `fuses_requantize`:
    multipliers, shifts, offsets and bounds at their ends too.
    """
    rng = np.random.default_rng(seed)
    for v in cases(kernel, seed, count):
        col = int(rng.integers(0, 4)) * kernel.lanes
        total = col + v.cols
        multiplier = rng.choice(np.array([0, 1, 2**30, 2**31 - 1, int(rng.integers(0, 2**31))]), total)
        right = rng.integers(1, 32, total) if rng.random() < 0.5 else rng.integers(1, 12, total)
        offset = int(rng.integers(-128, 256)) if right.max() < 22 else 0
        low, high = [(0, 255), (-128, 127), (3, 100)][int(rng.integers(0, 3))]
        scale: Scale | FloatScale = Scale(
            multiplier.astype(np.int32), right.astype(np.int32), offset, low, high, col
        )
        if float32:
            factors = np.float32(2.0) ** rng.integers(-25, 5, total) * rng.choice([1, 1.5, 0.7071], total)
            scale = FloatScale(factors.astype(np.float32), int(rng.integers(low, high + 1)), low, high, col)
        sums = v.expected[:, : v.cols]
        if v.add_c:
            sums = (
                (sums.astype(np.int64) - v.c[:, : v.cols]).astype(np.uint64).astype(np.uint32).view(np.int32)
            )
        c = rng.integers(0, 256, (v.m, v.ldc), dtype=np.uint8)
        expected = c.copy()
        expected[:, : v.cols] = scale.of(sums)
        yield replace(v, add_c=0, c=c, expected=expected, scale=scale)
