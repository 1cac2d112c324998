"""MatMulNBits: float32 data times weights of 4, 2 or 8 bits with a scale and a zero point for each block of
depth.

The products are lowgemm's of coded weights (`lowgemm.blockwise`), which are exact integer sums of each block,
scaled and added in float32. They take bytes, so a row of the data becomes three digits: a whole number of 24
bits, with its sign, is 65,536 times the first digit, 256 times the second, and the third. So no number of the
data is off by more than 2**-23 of the largest of its row, which is what float32 sums lose anyway. (A row up
to 1e-31 counts as zeros.) The digits of a row are rows of one product: the weights are decoded once. The
result has the same bits on every CPU and for any number of threads.

A weight of 8 bits is 16 times its upper half and its lower half: two products of 4 bits.

With `accuracy_level` 4 onnxruntime codes the data as int8 first, each block of a row with a scale of its own.
So does this, and multiplies the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.blockwise import gemm_lowbit, pack_rhs_codes
from lowgemm.checks.values import integer
from lowgemm.onnx_run import nbits_tape
from lowgemm.onnx_run.nbits_rows import codes_of, digits_of
from lowgemm.onnx_run.state import NotOurs, State
from lowgemm.onnx_run.tape import Recorder

DOMAIN = "com.microsoft"
_f32 = np.float32
_KNOWN = {"K", "N", "bits", "block_size", "accuracy_level"}


# ---- weights ----------------------------------------------------------------------------------------------
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
        """The product where some numbers are infinite or NaN. In their rows these alone decide: each result is
        infinite or NaN.
        """
        finite = np.isfinite(rows)
        whole = finite.all(axis=1)
        y = self.product(np.where(whole[:, None], rows, _f32(0)), coded, num_threads)
        y[~whole] = 0
        places = np.flatnonzero(~finite.all(axis=0))
        weights = sum(p.to_array()[places] for p in self.parts)
        with np.errstate(invalid="ignore"):  # infinity times 0
            for k, w in zip(places, weights, strict=True):
                y += np.where(finite[:, k], _f32(0), rows[:, k])[:, None] * w
        return y


# ---- the operator -----------------------------------------------------------------------------------------
def _is_coded(bits: int, block: int, level: int) -> bool:
    """Whether onnxruntime (1.32) codes the data as int8."""
    return level == 4 and (bits != 2 or 32 <= block <= 128)


def _taken(attributes: dict[str, Any], a: Any, scales: Any, zeros: Any, g_idx: Any) -> bool:
    """Whether a node is lowgemm's: float32, zero points in bytes, blocks in order."""
    return (
        not set(attributes) - _KNOWN
        and attributes.get("bits", 4) in (2, 4, 8)
        and g_idx is None
        and (a is None or a.dtype == _f32)
        and scales.dtype == _f32
        and (zeros is None or zeros.dtype == np.uint8)
    )


def _weights(b: Any, scales: np.ndarray, zeros: Any, attributes: dict[str, Any]) -> PackedBlocks:
    depth, bits = integer(attributes["K"], "K", 1), attributes.get("bits", 4)
    block = integer(attributes["block_size"], "block_size", 16)
    if block & (block - 1):
        raise ValueError(f"block_size: expected a power of 2, got {block}")
    if b.dtype != np.uint8 or b.ndim != 3 or b.shape[0] != attributes["N"]:
        raise ValueError(
            f"B: expected uint8 of shape ({attributes['N']}, blocks, bytes), got {b.dtype} of shape {b.shape}"
        )
    return PackedBlocks(b, scales, zeros, depth, bits, block)


def _run(state: State, a: np.ndarray, w: PackedBlocks, bias: Any, level: int) -> np.ndarray:
    if a.dtype != _f32 or not a.ndim or a.shape[-1] != w.depth:
        raise ValueError(f"A: expected float32 of shape (..., {w.depth}), got {a.dtype} of shape {a.shape}")
    n = w.shape[0]
    rows = a.reshape(int(np.prod(a.shape[:-1])), w.depth)
    y = w.product(rows, _is_coded(w.bits, w.block, level), state.num_threads)
    if bias is not None:
        if bias.shape != (n,):
            raise ValueError(f"bias: expected shape ({n},), got {bias.shape}")
        y += bias
    return y.reshape(*a.shape[:-1], n)


def matmul_nbits(
    state: State, a, b, scales, zero_points=None, g_idx=None, bias=None, *, accuracy_level: int = 0, **attributes: Any
) -> np.ndarray:  # fmt: skip
    """MatMulNBits, its weights packed for this call."""
    b = b.to_array() if isinstance(b, PackedBlocks) else b
    if not _taken(attributes, a, scales, zero_points, g_idx):
        raise NotOurs
    return _run(state, a, _weights(b, scales, zero_points, attributes), bias, accuracy_level)


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """MatMulNBits with constant weights."""
    _, b, scales, zeros, g_idx, *_ = [*constants, *[None] * 6][:6]
    level = attributes.get("accuracy_level", 0)
    if b is None or scales is None or not _taken(attributes, None, scales, zeros, g_idx):
        return None
    w = state.blocks(b, scales, zeros, make=lambda: _weights(b, scales, zeros, attributes))

    def run(*inputs: Any) -> Any:
        given = [*inputs, *[None] * 6][:6]
        if given[3] is not zeros or given[4] is not None:  # they come with the data after all
            return NotImplemented
        return _run(state, given[0], w, given[5], level)

    def record(recorder: Recorder, *inputs: Any) -> Any:
        given = [*inputs, *[None] * 6][:6]
        x, bias = given[0], given[5]
        if given[3] is not zeros or given[4] is not None or x.dtype != _f32 or x.shape[-1:] != (w.depth,):
            return None
        if bias is not None and (bias.shape != (w.shape[0],) or bias.dtype != _f32):
            return None
        y = nbits_tape.record(recorder, x, w, bias, _is_coded(w.bits, w.block, level), state.num_threads)
        return None if y is None else (y,)

    record.several = True  # type: ignore[attr-defined]
    run.record = record  # type: ignore[attr-defined]
    return run


OPERATORS = {(DOMAIN, "MatMulNBits"): matmul_nbits}
MAKERS = {(DOMAIN, "MatMulNBits"): prepared}
