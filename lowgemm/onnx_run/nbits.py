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

import numba
import numpy as np

from lowgemm.blockwise import gemm_lowbit, pack_rhs_codes
from lowgemm.checks.values import integer
from lowgemm.jit.memory import round_even
from lowgemm.jit.routine import inner, inner_dividing, routine
from lowgemm.onnx_run.addresses import address
from lowgemm.onnx_run.state import NotOurs, State

DOMAIN = "com.microsoft"
#: Largest whole number that a row is scaled to: its first digit is 127 at most.
WHOLE = 127 * 65536
#: Largest number of a block up to which its codes are 0, and of a row up to which its digits are: what they
#: are multiplied by would be infinite, or the scale have fewer bits.
SMALL, SMALL_ROW = 1e-36, 1e-31
_u64 = np.uint64
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
            self._parts = [
                pack_rhs_codes(codes >> 4, factors * _f32(16), points >> 4, group=block),
                pack_rhs_codes(codes & 15, factors, points & 15, group=block),
            ]
        else:
            self._parts = [pack_rhs_codes(codes, factors, points, group=block, bits=bits)]
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
        return sum(p.nbytes for p in self._parts) + (0 if self._padding is None else self._padding.nbytes)

    def to_array(self) -> np.ndarray:
        """`b`, as the node has it."""
        n, blocks, _ = self.shape
        whole = np.zeros((n, blocks * self.block), np.uint8)
        codes = [p.codes()[: self.depth].T for p in self._parts]
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
        found = [gemm_lowbit(codes, p, lhs_scale=scales, num_threads=num_threads) for p in self._parts]
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
        weights = sum(p.to_array()[places] for p in self._parts)
        with np.errstate(invalid="ignore"):  # infinity times 0
            for k, w in zip(places, weights, strict=True):
                y += np.where(finite[:, k], _f32(0), rows[:, k])[:, None] * w
        return y


# ---- data -------------------------------------------------------------------------------------------------
def codes_by_definition(rows: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Each block of a row as int8, and the scale of each: what `accuracy_level` 4 does to the data.

    It is multiplied by 127 over its largest, as in onnxruntime, which is not the inverse of the scale to the
    last bit.
    """
    codes, scales = np.empty(rows.shape, np.int8), []
    for begin in range(0, rows.shape[1], block):
        part = rows[:, begin : begin + block]
        largest = np.abs(part).max(axis=1, keepdims=True)
        inverse = np.where(largest > _f32(SMALL), _f32(127) / np.maximum(largest, _f32(SMALL)), _f32(0))
        codes[:, begin : begin + block] = np.rint(part * inverse)
        scales.append(largest / _f32(127))
    return codes, np.concatenate(scales, axis=1)


def digits_by_definition(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Three digits of every number, as three times as many rows, and the scale of each of these rows."""
    largest = np.abs(rows).max(axis=1, initial=0)
    scale = largest / _f32(WHOLE)
    factor = np.where(largest > _f32(SMALL_ROW), _f32(WHOLE) / np.maximum(largest, _f32(SMALL_ROW)), _f32(0))
    whole = np.clip(np.rint(rows * factor[:, None]), -WHOLE, WHOLE).astype(np.int32)
    low = ((whole + 128) & 255) - 128
    rest = (whole - low) >> 8
    middle = ((rest + 128) & 255) - 128
    high = (rest - middle) >> 8
    digits = np.concatenate([high, middle, low]).astype(np.int8)
    return digits, np.concatenate([scale * _f32(65536), scale * _f32(256), scale])


@inner_dividing
def _scale(top, whole):
    """Of whole numbers up to `whole` for numbers up to `top`."""
    return top / whole


@inner_dividing
def _factor(top, whole, least):
    """What to multiply such numbers with."""
    return whole / top if top > least else np.float32(0)


@inner
def _largest(x, begin, count):
    """The largest size; and a NaN if a number is none, or infinite, else 0."""
    top, bad, b = np.float32(0), np.float32(0), _u64(begin)
    for k in range(_u64(count)):
        top = max(top, abs(x[b + k]))
        bad += x[b + k] * np.float32(0)
    return top, bad


@inner
def _coded(x, begin, y, count, inverse):
    b = _u64(begin)
    for k in range(_u64(count)):
        y[b + k] = np.int8(np.int32(round_even(x[b + k] * inverse)))


@inner
def _digits(x, high, middle, low, to, step, count, factor, limit):
    p, q, r = _u64(to), _u64(to + step), _u64(to + 2 * step)
    for k in range(_u64(count)):
        v = round_even(x[p + k] * factor)
        whole = np.int32(min(max(v, -limit), limit))
        last = ((whole + np.int32(128)) & np.int32(255)) - np.int32(128)
        rest = (whole - last) >> np.int32(8)
        second = ((rest + np.int32(128)) & np.int32(255)) - np.int32(128)
        high[p + k] = np.int8((rest - second) >> np.int32(8))
        middle[q + k] = np.int8(second)
        low[r + k] = np.int8(last)


@routine("ppppnnn")
def code_rows(src, dst, scales, finite, count, depth, block):
    """`codes_by_definition`. `finite` is int64: 0 if a number is infinite or none."""
    x, codes = numba.carray(src, (count * depth,), np.float32), numba.carray(dst, (count * depth,), np.int8)
    blocks = (depth + block - 1) // block
    s, good = numba.carray(scales, (count * blocks,), np.float32), numba.carray(finite, (1,), np.int64)
    good[0] = 1
    for r in range(count):
        for i in range(blocks):
            begin, size = r * depth + i * block, min(block, depth - i * block)
            top, bad = _largest(x, begin, size)
            if bad != np.float32(0):
                good[0] = 0
                return
            s[r * blocks + i] = _scale(top, np.float32(127))
            _coded(x, begin, codes, size, _factor(top, np.float32(127), np.float32(SMALL)))


@routine("ppppnn")
def split_rows(src, dst, scales, finite, count, depth):
    """`digits_by_definition`. `finite` is int64: 0 if a number is infinite or none."""
    x, digits = (
        numba.carray(src, (count * depth,), np.float32),
        numba.carray(dst, (3 * count * depth,), np.int8),
    )
    s, good, limit = (
        numba.carray(scales, (3 * count,), np.float32),
        numba.carray(finite, (1,), np.int64),
        np.float32(WHOLE),
    )
    good[0] = 1
    for r in range(count):
        begin = r * depth
        top, bad = _largest(x, begin, depth)
        if bad != np.float32(0):
            good[0] = 0
            return
        scale = _scale(top, limit)
        s[r], s[count + r], s[2 * count + r] = scale * np.float32(65536), scale * np.float32(256), scale
        _digits(
            x,
            digits,
            digits,
            digits,
            begin,
            count * depth,
            depth,
            _factor(top, limit, np.float32(SMALL_ROW)),
            limit,
        )


def _prepared(
    rows: np.ndarray, definition: Any, work: Any, shapes: Any, *more: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """What `work` makes of rows, int8 and float32 arrays of these shapes, or its definition; None if a number
    is infinite or NaN.
    """
    if numba.config.DISABLE_JIT:
        return definition(rows, *more) if np.isfinite(rows).all() else None
    rows, finite = np.ascontiguousarray(rows), np.empty(1, np.int64)
    codes, scales = np.empty(shapes[0], np.int8), np.empty(shapes[1], _f32)
    work.ctypes(*(address(v) for v in (rows, codes, scales, finite)), *rows.shape, *more)
    return (codes, scales) if finite[0] else None


def codes_of(rows: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray] | None:
    """int8 codes of rows, and the scales of their blocks; None if a number is infinite or NaN."""
    count, depth = rows.shape
    return _prepared(
        rows, codes_by_definition, code_rows, ((count, depth), (count, -(-depth // block))), block
    )


def digits_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Digits of rows and their scales; None if a number is infinite or NaN."""
    count, depth = rows.shape
    return _prepared(rows, digits_by_definition, split_rows, ((3 * count, depth), (3 * count,)))


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

    return run


OPERATORS = {(DOMAIN, "MatMulNBits"): matmul_nbits}
MAKERS = {(DOMAIN, "MatMulNBits"): prepared}
