"""Slow, obvious definitions of block-wise coding and of the optimizers.

The fast code must give the same bits.

All arithmetic is float32, one rounding for each operation written here, except the nearest-value search,
which is exact: elements within 1e-9 of a mid-point are decided with rational numbers.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def nearest_codes(x: np.ndarray, scale: float, values: np.ndarray) -> np.ndarray:
    """Index of the table value nearest to ``x / scale`` as real numbers, the lower index on a tie.

    Parameters
    ----------
    x : ndarray of float32, shape (n,)
        Finite.
    scale : float
        Not negative; with 0 all elements get the code nearest to 0.
    values : ndarray of float32, shape (m,)
        The table, in any order.

    Returns
    -------
    ndarray of uint8, shape (n,)

    Examples
    --------
    >>> nearest_codes(np.float32([-4, 0, 1, 4]), 4.0, np.float32([-1, 0, 0.5, 1]))
    array([0, 1, 1, 3], dtype=uint8)
    """
    table = values.astype(np.float64) + 0.0
    if scale == 0:
        return np.full(x.size, np.abs(table).argmin(), dtype=np.uint8)
    distinct, first = np.unique(table, return_index=True)
    quotient = x.astype(np.float64) / float(scale)  # within 2**-53 of the real quotient
    middles = (distinct[1:] + distinct[:-1]) / 2
    rank = np.searchsorted(middles, quotient)
    for neighbour in (rank, rank - 1):
        m = middles[np.clip(neighbour, 0, middles.size - 1)]
        for i in np.flatnonzero(np.abs(quotient - m) <= 1e-9 * np.abs(m)):
            rank[i] = _exact_rank(Fraction(float(x[i])) / Fraction(float(scale)), distinct, first, rank[i])
    return first[rank].astype(np.uint8)


def _exact_rank(q: Fraction, distinct: np.ndarray, first: np.ndarray, near: int) -> int:
    """Rank of the nearest among the values around rank `near`, by rational arithmetic."""
    around = range(max(near - 2, 0), min(near + 3, distinct.size))
    return min(around, key=lambda r: (abs(Fraction(float(distinct[r])) - q), first[r]))


def quantize(x: np.ndarray, values: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a flat array and the largest absolute value of each block of `blocksize` elements.

    Parameters
    ----------
    x : ndarray of float32, shape (n,)
        Finite.
    values : ndarray of float32
        The table.
    blocksize : int
        The last block may be short.

    Returns
    -------
    codes : ndarray of uint8, shape (n,)
    scales : ndarray of float32, shape (ceil(n / blocksize),)

    Examples
    --------
    >>> codes, scales = quantize(np.float32([1, -2, 0.5]), np.float32([-1, 0, 1]), 2)
    >>> print(codes, scales)
    [1 0 2] [2.  0.5]
    """
    codes = np.empty(x.size, dtype=np.uint8)
    scales = np.empty(-(-x.size // blocksize), dtype=np.float32)
    for b in range(scales.size):
        block = x[b * blocksize : (b + 1) * blocksize]
        scales[b] = np.abs(block).max()
        codes[b * blocksize : (b + 1) * blocksize] = nearest_codes(block, scales[b], values)
    return codes, scales


def dequantize(codes: np.ndarray, scales: np.ndarray, values: np.ndarray, blocksize: int) -> np.ndarray:
    """``values[code] * scale of the block``: one float32 multiplication.

    Parameters
    ----------
    codes : ndarray of uint8, shape (n,)
    scales : ndarray of float32, shape (ceil(n / blocksize),)
    values : ndarray of float32
        The table; codes beyond its end stand for 0.
    blocksize : int

    Returns
    -------
    ndarray of float32, shape (n,)

    Examples
    --------
    >>> print(dequantize(np.uint8([1, 0, 2]), np.float32([2, 0.5]), np.float32([-1, 0, 1]), 2))
    [ 0.  -2.   0.5]
    """
    table = np.zeros(256, dtype=np.float32)
    table[: values.size] = values
    return table[codes] * np.repeat(scales, blocksize)[: codes.size]


def pack4(codes: np.ndarray, filler: int) -> np.ndarray:
    """Two 4-bit codes in a byte, the first in the high half; an odd count is filled up with `filler`.

    Examples
    --------
    >>> print([hex(b) for b in pack4(np.uint8([1, 2, 3]), 7)])
    ['0x12', '0x37']
    """
    even = np.append(codes, np.uint8(filler)) if codes.size % 2 else codes
    return even[0::2] << 4 | even[1::2]


def unpack4(packed: np.ndarray, count: int) -> np.ndarray:
    """The `count` codes of `pack4`.

    Examples
    --------
    >>> print(unpack4(np.uint8([0x12, 0x37]), 3))
    [1 2 3]
    """
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[:count]


#: Rows whose largest absolute value is smaller than this are coded as zeros: 127 / 2**-119 is about the
#: largest float32.
TINY_ROW = 2.0**-119


def vectorwise(
    x: np.ndarray, threshold: float = 0.0, scale_without: str = "elements"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Int8 codes with one scale for each row, and the outlier columns whose codes are 0.

    Parameters
    ----------
    x : ndarray of float32, shape (m, k)
        Finite.
    threshold : float
        Elements with an absolute value of at least this are outliers, their columns outlier columns; 0: none.
    scale_without : str
        What does not count for a row's scale: its outlier "elements", or all its elements in outlier
        "columns".

    Returns
    -------
    codes : ndarray of int8, shape (m, k)
    scales : ndarray of float32, shape (m,)
    outliers : ndarray of int64

    Examples
    --------
    >>> codes, scales, outliers = vectorwise(np.float32([[1, 9, -0.5], [1, 2, 0]]), 6.0)
    >>> print(codes.tolist(), scales, outliers)
    [[127, 0, -64], [64, 0, 0]] [1. 2.] [1]
    >>> print(vectorwise(np.float32([[1, 9, -0.5], [1, 2, 0]]), 6.0, "columns")[1])
    [1. 1.]
    """
    large = np.abs(x) >= np.float32(threshold) if threshold else np.zeros(x.shape, bool)
    out = large.any(axis=0)
    rest = np.where(out, np.float32(0), x)
    counted = {"elements": np.where(large, np.float32(0), x), "columns": rest}[scale_without]
    scales = np.abs(counted).max(axis=1, initial=0).astype(np.float32)
    scales[scales < np.float32(TINY_ROW)] = 0
    inverse = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=inverse, where=scales > 0)
    inverse *= np.float32(127)
    return np.rint(rest * inverse[:, None]).astype(np.int8), scales, np.flatnonzero(out)


def mixed_linear(
    x: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    bias: np.ndarray | None = None,
    threshold: float = 6.0,
    scale_without: str = "elements",
) -> np.ndarray:
    """LLM.int8(): exact int8 sums, and outlier columns of `x` in float32 on top, one after the other.

    Parameters
    ----------
    x : ndarray of float32, shape (m, k)
    codes : ndarray of int8, shape (k, n)
        The weight's.
    scales : ndarray of float32, shape (n,)
        Largest absolute value of each column of the weight.
    bias : ndarray of float32, shape (n,), optional
    threshold, scale_without
        See `vectorwise`.

    Returns
    -------
    ndarray of float32, shape (m, n)
        ``(float32(sum) * (row_scale / 127) + x[:, o1] * codes[o1] + ...) * (scales / 127) + bias``.

    Examples
    --------
    >>> print(mixed_linear(np.float32([[1, 8]]), np.int8([[127], [64]]), np.float32([2.0])))
    [[10.062992]]
    """
    q, row_scales, outliers = vectorwise(x, threshold, scale_without)
    acc = q.astype(np.int64) @ codes.astype(np.int64)
    y = acc.astype(np.int32).astype(np.float32) * (row_scales / np.float32(127))[:, None]
    for k in outliers:
        y = y + x[:, k, None] * codes[k].astype(np.float32)
    y = y * (scales / np.float32(127))
    return y if bias is None else y + bias


def gemm_4bit(
    lhs: np.ndarray,
    levels: np.ndarray,
    scales: np.ndarray,
    group: int,
    lhs_zero_point: int = 0,
    lhs_scale: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """Exact integer sums of each group of depth, times the group's scales, added up in float32.

    Parameters
    ----------
    lhs : ndarray of int8 or uint8, shape (m, depth)
    levels : ndarray of integers, shape (depth, n)
        Less their zero points, if they have some.
    scales : ndarray of float32, shape (groups, n)
    group : int
        Depth steps of a group; the last may be short.
    lhs_zero_point : int
    lhs_scale : ndarray of float32, shape (m,) or (m, groups), optional
        Of each row, or of each row and group; then the group's scales are multiplied by it.
    bias : ndarray of float32, shape (n,), optional

    Returns
    -------
    ndarray of float32, shape (m, n)

    Examples
    --------
    >>> print(gemm_4bit(np.int8([[1, 2]]), np.int8([[3], [4]]), np.float32([[0.5], [2]]), 1))
    [[17.5]]
    """
    y = np.zeros((lhs.shape[0], levels.shape[1]), np.float32)
    left, right = lhs.astype(np.int64) - lhs_zero_point, levels.astype(np.int64)
    for g in range(scales.shape[0]):
        part = slice(g * group, (g + 1) * group)
        exact = (left[:, part] @ right[part]).astype(np.uint64).astype(np.uint32).view(np.int32)
        own = scales[g] if lhs_scale is None or lhs_scale.ndim < 2 else scales[g] * lhs_scale[:, g, None]
        y = y + exact.astype(np.float32) * own
    if lhs_scale is not None and lhs_scale.ndim < 2:
        y = y * lhs_scale[:, None]
    return y if bias is None else y + bias
