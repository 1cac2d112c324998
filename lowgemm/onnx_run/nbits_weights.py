"""Weights of a MatMulNBits, packed for lowgemm's products, and the products.

A weight of 8 bits is 16 times its upper half and its lower half: two products of 4 bits.
"""

from __future__ import annotations

import numpy as np

from lowgemm.blockwise import gemm_lowbit, pack_rhs_codes
from lowgemm.onnx_run.nbits_rows import codes_of, digits_of

_f32 = np.float32


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Codes of `bits` along the last axis, the first in the lowest bits of a byte; `count` of them.

    Examples
    --------
    >>> unpacked(np.array([[0x21, 0x03]], np.uint8), 4, 3).tolist()
    [[1, 2, 3]]
    """
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :count]


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """The opposite of `unpacked`; codes that are missing for a whole byte are 0."""
    per_byte = 8 // bits
    more = -codes.shape[-1] % per_byte
    whole = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, more)])
    parts = whole.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(parts << shifts, axis=-1).astype(np.uint8)


class PackedBlocks:
    """Weights of a MatMulNBits, packed for `gemm_lowbit`.

    Parameters
    ----------
    b : ndarray of uint8, shape (n, blocks, bytes of a block)
        Codes, as the node has them.
    scales : ndarray of float32
        n times blocks.
    zeros : ndarray of uint8, optional
        Of each block, as many to a byte as codes; each column's begin with a byte. Else half of the range.
    depth, bits, block : int
        The node's K, bits and block_size.

    Attributes
    ----------
    shape, depth, bits, block
        Shape of `b`, and the node's.

    Raises
    ------
    ValueError
        If a shape does not fit.
    """

    def __init__(
        self, b: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, depth: int, bits: int, block: int
    ) -> None:
        self.shape, self.depth, self.bits, self.block = b.shape, depth, bits, block
        n, blocks = b.shape[0], -(-depth // block)
        expected = n, blocks, block * bits // 8
        if b.shape != expected:
            raise ValueError(
                f"B: expected shape {expected} for K {depth} and blocks of {block}, got {b.shape}"
            )
        if scales.size != n * blocks:
            raise ValueError(f"scales: expected {n} x {blocks} numbers, got shape {scales.shape}")
        points = None
        if zeros is not None:
            each = -(-blocks * bits // 8)
            if zeros.size != n * each:
                raise ValueError(f"zero_points: expected {n} x {each} bytes, got shape {zeros.shape}")
            points = unpacked(zeros.reshape(n, each), bits, blocks).T
        codes, factors = unpacked(b.reshape(n, -1), bits, depth).T, scales.reshape(n, blocks).T
        if bits == 8:
            points = np.full((blocks, n), 128, np.uint8) if points is None else points
            self.parts = [
                pack_rhs_codes(codes >> 4, factors * _f32(16), points >> 4, group=block),
                pack_rhs_codes(codes & 15, factors, points & 15, group=block),
            ]
        else:
            self.parts = [pack_rhs_codes(codes, factors, points, group=block, bits=bits)]
        self._padding = self._behind(b)

    def _behind(self, b: np.ndarray) -> np.ndarray | None:
        """Codes behind the depth, which count for nothing, unless they are 0."""
        behind = (
            unpacked(b[:, -1], self.bits, self.block)[:, self.depth - self.block * (b.shape[1] - 1) :]
            if b.size
            else b
        )
        return behind.copy() if behind.any() else None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(p.nbytes for p in self.parts) + (0 if self._padding is None else self._padding.nbytes)

    def to_array(self) -> np.ndarray:
        """`b`, as the node has it."""
        n, blocks, _ = self.shape
        whole = np.zeros((n, blocks * self.block), np.uint8)
        codes = [p.codes()[: self.depth].T for p in self.parts]
        whole[:, : self.depth] = codes[0] << 4 | codes[1] if self.bits == 8 else codes[0]
        if self._padding is not None:
            whole[:, self.depth :] = self._padding
        return packed(whole, self.bits).reshape(self.shape)

    def product(self, rows: np.ndarray, coded: bool, num_threads: int | None) -> np.ndarray:
        """``rows @ weights`` in float32; `coded`: the rows as int8 with a scale for each block."""
        count, n = rows.shape[0], self.shape[0]
        if not count or not n:
            return np.empty((count, n), _f32)
        prepared = codes_of(rows, self.block) if coded else digits_of(rows)
        if prepared is None:
            return self._product_beside_infinities(rows, coded, num_threads)
        codes, scales = prepared
        found = [gemm_lowbit(codes, p, lhs_scale=scales, num_threads=num_threads) for p in self.parts]
        if not coded:  # the digits of a row, the smallest first
            for i, (high, middle, low) in enumerate(f.reshape(3, count, n) for f in found):
                middle += low
                middle += high
                found[i] = middle
        for more in found[1:]:
            found[0] += more
        return found[0]

    def _product_beside_infinities(
        self, rows: np.ndarray, coded: bool, num_threads: int | None
    ) -> np.ndarray:
        """The product where some numbers are infinite or NaN. In their rows these alone decide, since each
        result is infinite or NaN; so the product is of zeros there.
        """
        finite = np.isfinite(rows)
        whole = finite.all(axis=1)
        y = self.product(np.where(whole[:, None], rows, _f32(0)), coded, num_threads)
        places = np.flatnonzero(~finite.all(axis=0))
        weights = sum(p.to_array()[places] for p in self.parts)
        with np.errstate(invalid="ignore"):  # infinity times 0
            for k, w in zip(places, weights, strict=True):
                y += np.where(finite[:, k], _f32(0), rows[:, k])[:, None] * w
        return y
