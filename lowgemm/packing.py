"""Packing: both operands into the panels that a kernel reads, with their sums, in one pass.

The panel layout is drawn in `kernels/emit.py`. One routine serves both sides and every stride: "mn" is the
row index of the lhs or the column index of the rhs, `width` the panel's height or width. Three cases:

* depth is contiguous in memory (row-major lhs, column-major rhs): a transposition of 4- or 8-byte units,
  `width` rows by 16 bytes at a time, in vector registers;
* mn is contiguous (column-major lhs, row-major rhs): bytes of `kr` depth steps are interleaved, up to 64
  columns at a time so that each cache line is read once even when a power-of-two stride lets lines evict
  each other;
* anything else, and every edge: elements are gathered into a small padded block first.

Next file to open: `compute.py`, the tile loop.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm._jit import compile_c, signature
from lowgemm.kernels import Kernel, by_id, id_of, stamp_of
from lowgemm.kernels.emit import at, const, i8, i16, i32, i64, load, shuffle, splat, store, vec
from lowgemm.memory import load_u8, offset, stack, store_8

#: Bytes of packed depth that one transposition step handles for each row; panels are padded to it.
CHUNK_BYTES = 16
#: Columns that the interleaving case reads from each row at a time: one cache line.
LINE = 64


def padded_depth_bytes(kernel: Kernel, depth: int) -> int:
    """Bytes that one row or column of `depth` elements takes in a packed panel."""
    return -(-depth * kernel.element_bytes // CHUNK_BYTES) * CHUNK_BYTES


def groups(kernel: Kernel, depth: int) -> int:
    """Depth groups the kernel's loop runs over."""
    return -(-depth // kernel.kr)


# ---- vector IR -------------------------------------------------------------------------------------------
def _concat(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Concatenate equal vectors (a power of two of them)."""
    while len(parts) > 1:
        n = parts[0].type.count
        parts = [shuffle(b, x, y, list(range(2 * n))) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _slice(b: ir.IRBuilder, x: ir.Value, start: int, n: int) -> ir.Value:
    return x if n == x.type.count else shuffle(b, x, None, list(range(start, start + n)))


def _convert(k: Kernel, b: ir.IRBuilder, raw: ir.Value, flip: ir.Value, bias: ir.Value) -> ir.Value:
    """Raw bytes to packed elements: flip the top bit, or widen to 16 bits (see `element_map`)."""
    x = b.xor(raw, splat(b, flip, raw.type.count))
    if k.element_bytes == 2:
        x = b.add(b.sext(x, vec(i16, x.type.count)), splat(b, bias, x.type.count))
    return x


def _alignment(step: int) -> int:
    """Alignment of addresses that are multiples of `step` bytes from a 64-byte boundary."""
    return min(step & -step, 64)


def _group_sums(k: Kernel, b: ir.IRBuilder, packed: ir.Value, width: int, side: str) -> ir.Value:
    """Sum of each row's elements in a packed group: `width` int32."""
    kind = k.lhs_type if side == "lhs" else k.rhs_type
    if k.kr * k.element_bytes % 4:  # a row's part of a group is no whole word: add element by element
        elements = b.bitcast(packed, vec(ir.IntType(8 * k.element_bytes), width * k.kr))
        extend = b.zext if kind == "u8" else b.sext
        total = const(vec(i32, width), 0)
        for j in range(k.kr):
            picked = shuffle(b, elements, None, [w * k.kr + j for w in range(width)])
            total = b.add(total, extend(picked, total.type))
        return total
    words = b.bitcast(packed, vec(i32, width * k.kr * k.element_bytes // 4))
    ty = words.type

    def shl_sar(left: int, right: int) -> ir.Value:
        x = b.shl(words, const(ty, left)) if left else words
        return b.ashr(x, const(ty, right))

    if kind == "s16":
        total = b.add(shl_sar(16, 16), shl_sar(0, 16))
    elif kind == "s8":
        total = b.add(b.add(shl_sar(24, 24), shl_sar(16, 24)), b.add(shl_sar(8, 24), shl_sar(0, 24)))
    else:
        low = const(ty, 0x00FF00FF)
        pairs = b.add(b.and_(words, low), b.and_(b.lshr(words, const(ty, 8)), low))
        total = b.add(b.and_(pairs, const(ty, 0xFFFF)), b.lshr(pairs, const(ty, 16)))
    while total.type.count > width:
        n = total.type.count // 2
        total = b.add(
            shuffle(b, total, None, [2 * i for i in range(n)]),
            shuffle(b, total, None, [2 * i + 1 for i in range(n)]),
        )
    return total


def _add_group(k: Kernel, b: ir.IRBuilder, acc: ir.Value, packed: ir.Value, side: str) -> ir.Value:
    """Add each row's elements in a packed group to the int32 sums `acc`, by the kernel's own way if it has one."""
    total = k.add_sums(b, acc, packed, side)
    return b.add(acc, _group_sums(k, b, packed, acc.type.count, side)) if total is None else total


def _emit_transpose(k: Kernel, side: str, width: int, b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    """Emit: `steps` transpositions of `width` rows x 16 packed bytes, rows `stride` bytes apart."""
    unit = k.kr * k.element_bytes  # bytes that stay together: one row's part of a group
    per_row = CHUNK_BYTES // k.element_bytes  # raw bytes read from a row each step
    n = CHUNK_BYTES // unit  # groups each step
    ety = ir.IntType(8 * unit)
    last = b.sub(a["valid"], const(i64, 1))
    rows = []
    for i in range(width):
        clamped = b.select(b.icmp_signed("<", const(i64, i), a["valid"]), const(i64, i), last)
        rows.append(at(b, a["src"], b.mul(clamped, a["stride"])))
    group_bytes = width * unit
    acc_ptr = cgutils.alloca_once_value(b, const(vec(i32, width), 0))
    with cgutils.for_range(b, a["steps"]) as loop:
        src_off = b.mul(loop.index, const(i64, per_row))
        dst = at(b, a["dst"], b.mul(loop.index, const(i64, n * group_bytes)))
        # Lane-wise: vector j holds rows j, n + j, 2n + j, ... in its 128-bit lanes.
        vectors = []
        quads = 1
        while quads * n < width:  # a power of two, for `_concat`
            quads *= 2
        for j in range(n):
            parts = []
            for q in range(quads):
                raw = load(b, vec(i8, per_row), at(b, rows[min(q * n + j, width - 1)], src_off))
                parts.append(b.bitcast(_convert(k, b, raw, a["flip"], a["bias"]), vec(ety, n)))
            vectors.append(_concat(b, parts))
        lanes = vectors[0].type.count // n
        total = vectors[0].type.count
        # n x n transposition inside each lane, log2(n) rounds of interleaving.
        half = n // 2
        while half >= 1:
            nxt: list[Any] = [None] * n
            for j in range(n):
                if j & half:
                    continue
                lo, hi = vectors[j], vectors[j | half]
                mask_lo, mask_hi = [], []
                for lane in range(lanes):
                    base = lane * n
                    for e in range(n):
                        # swap bit `half` between the vector index and the element index
                        mask_lo.append(base + e if not e & half else total + base + (e ^ half))
                        mask_hi.append(base + (e | half) if not e & half else total + base + e)
                nxt[j] = shuffle(b, lo, hi, mask_lo)
                nxt[j | half] = shuffle(b, lo, hi, mask_hi)
            vectors = nxt
            half //= 2
        acc = b.load(acc_ptr)
        for g in range(n):
            x = _slice(b, vectors[g], 0, width)
            store(b, x, at(b, dst, g * group_bytes), _alignment(group_bytes))
            acc = _add_group(k, b, acc, x, side)
        b.store(acc, acc_ptr)
    _add_sums(b, a["sums"], b.load(acc_ptr))


def _add_sums(b: ir.IRBuilder, address: ir.Value, values: ir.Value) -> None:
    store(b, b.add(load(b, values.type, address, 4), values), address, 4)


def _emit_interleave(
    k: Kernel, side: str, width: int, panels: int, b: ir.IRBuilder, a: dict[str, ir.Value]
) -> None:
    """Emit: `steps` groups of `kr` depth rows x `panels * width` contiguous columns."""
    cols = panels * width
    group_bytes = width * k.kr * k.element_bytes
    accs = [cgutils.alloca_once_value(b, const(vec(i32, width), 0)) for _ in range(panels)]
    with cgutils.for_range(b, a["steps"]) as loop:
        src = at(b, a["src"], b.mul(loop.index, b.mul(a["stride"], const(i64, k.kr))))
        dst = at(b, a["dst"], b.mul(loop.index, const(i64, group_bytes)))
        vectors = [
            _convert(
                k,
                b,
                load(b, vec(i8, cols), at(b, src, b.mul(a["stride"], const(i64, j)))),
                a["flip"],
                a["bias"],
            )
            for j in range(k.kr)
        ]
        for p in range(panels):
            parts = [_slice(b, v, p * width, width) for v in vectors]
            while len(parts) > 1:  # interleave neighbours, then treat each pair as one wider element
                paired = []
                for x, y in zip(parts[::2], parts[1::2], strict=True):
                    n = x.type.count
                    mask = [i for e in range(n) for i in (e, n + e)]
                    wide = ir.IntType(2 * x.type.element.width)
                    paired.append(b.bitcast(shuffle(b, x, y, mask), vec(wide, n)))
                parts = paired
            store(b, parts[0], at(b, dst, b.mul(a["dst_stride"], const(i64, p))), _alignment(group_bytes))
            b.store(_add_group(k, b, b.load(accs[p]), parts[0], side), accs[p])
    for p in range(panels):
        _add_sums(b, at(b, a["sums"], 4 * p * width), b.load(accs[p]))


_TRANSPOSE_ARGS = ("src", "stride", "valid", "steps", "flip", "dst", "sums")
_INTERLEAVE_ARGS = ("src", "stride", "steps", "flip", "dst", "dst_stride", "sums")


def _unpack(b: ir.IRBuilder, names: tuple[str, ...], tup: ir.Value) -> dict[str, ir.Value]:
    a = dict(zip(names, cgutils.unpack_tuple(b, tup), strict=True))
    a["bias"] = b.trunc(a["flip"], i16)
    a["flip"] = b.trunc(a["flip"], i8)
    return a


@intrinsic(prefer_literal=True)
def _transpose(typingctx, kernel_id, side, width, args):
    kernel, wide = by_id(kernel_id.literal_value), width.literal_value
    name = ("lhs", "rhs")[side.literal_value]

    def codegen(context, builder, signature, values):
        _emit_transpose(kernel, name, wide, builder, _unpack(builder, _TRANSPOSE_ARGS, values[3]))
        return context.get_dummy_value()

    return types.void(kernel_id, side, width, args), codegen


@intrinsic(prefer_literal=True)
def _interleave(typingctx, kernel_id, side, width, panels, args):
    kernel, wide, count = by_id(kernel_id.literal_value), width.literal_value, panels.literal_value
    name = ("lhs", "rhs")[side.literal_value]

    def codegen(context, builder, signature, values):
        _emit_interleave(kernel, name, wide, count, builder, _unpack(builder, _INTERLEAVE_ARGS, values[4]))
        return context.get_dummy_value()

    return types.void(kernel_id, side, width, panels, args), codegen


# ---- the routine -----------------------------------------------------------------------------------------
_SIGNATURE = signature("pnnnnnpnp")


@numba.njit(nogil=True)
def _clear(sums, n):
    for i in range(4 * n):
        store_8(sums, i, 0)


@numba.njit(nogil=True)
def _gather(src, mn_stride, k_stride, valid, k0, count, block, width, per_row, pad):
    """Copy `count` depth steps of `valid` rows into a padded block of `width` rows x `per_row` bytes."""
    for i in range(width):
        row = min(i, valid - 1) * mn_stride
        for j in range(per_row):
            value = pad
            if j < count:
                value = load_u8(src, row + (k0 + j) * k_stride)
            store_8(block, i * per_row + j, value)


def _make_pack(kernel_id: int, side: int, width: int, kr: int, element_bytes: int, stamp: int):
    per_row = CHUNK_BYTES // element_bytes
    chunk_bytes = CHUNK_BYTES * width
    block_bytes = width * per_row
    wide = LINE // width

    @compile_c(_SIGNATURE)
    def pack(src, mn_stride, k_stride, mn, depth, flip, dst, dst_stride, sums):
        _ = stamp
        block = stack(block_bytes)
        # What the padding must hold so that it is zero once packed.
        pad = flip if element_bytes == 1 else 0
        panels = (mn + width - 1) // width
        _clear(sums, panels * width)
        p = 0
        while p < panels:
            valid = min(width, mn - p * width)
            panel = offset(dst, p * dst_stride)
            start = offset(src, p * width * mn_stride)
            total = offset(sums, 4 * p * width)
            done = 0  # depth steps packed
            count = 1
            if k_stride == 1:
                steps = depth // per_row
                _transpose(kernel_id, side, width, (start, mn_stride, valid, steps, flip, panel, total))
                done = steps * per_row
            elif mn_stride == 1 and valid == width:
                # whole chunks only, so that the remainder starts on a chunk
                steps = depth // per_row * (per_row // kr)
                if mn - p * width >= LINE:
                    count = wide
                    _interleave(
                        kernel_id, side, width, wide, (start, k_stride, steps, flip, panel, dst_stride, total)
                    )
                else:
                    _interleave(
                        kernel_id, side, width, 1, (start, k_stride, steps, flip, panel, dst_stride, total)
                    )
                done = depth // per_row * per_row
            for q in range(count):
                at_depth = done
                while at_depth < depth:
                    _gather(
                        offset(start, q * width * mn_stride), mn_stride, k_stride, valid, at_depth,
                        min(per_row, depth - at_depth), block, width, per_row, pad,
                    )  # fmt: skip
                    to = offset(panel, q * dst_stride + at_depth // per_row * chunk_bytes)
                    _transpose(
                        kernel_id, side, width,
                        (block, per_row, width, 1, flip, to, offset(total, 4 * q * width)),
                    )  # fmt: skip
                    at_depth += per_row
            p += count

    return pack


@functools.cache
def pack_routine(kernel: Kernel, side: str) -> Any:
    """Compiled packing routine of one side of a kernel (`side` is ``"lhs"`` or ``"rhs"``).

    C signature: ``(src, mn_stride, k_stride, mn, depth, flip, dst, dst_stride, sums)``. Strides in bytes; `flip`
    is 0x80 or 0 (see `element_map`); `sums` receives one int32 for each row of every panel, the sum of its
    packed elements over the depth, modulo 2**32.
    """
    width = kernel.mr if side == "lhs" else kernel.lanes
    return _make_pack(
        id_of(kernel), int(side == "rhs"), width, kernel.kr, kernel.element_bytes, stamp_of(kernel)
    )


def element_map(kernel: Kernel, side: str, dtype_kind: str) -> tuple[int, int]:
    """How raw elements become packed ones: the byte to xor, and what was subtracted from the value by that.

    A uint8 value x stored as int8 is ``x ^ 0x80``, which reads as ``x - 128``; an int8 value stored as uint8 is
    the same flip and reads as ``x + 128``. The zero point moves along, so the product stays exact:
    ``(x - d) - (zero_point - d) = x - zero_point``. A 16-bit element holds both signs as they are.
    """
    stored = kernel.lhs_type if side == "lhs" else kernel.rhs_type
    unsigned = dtype_kind == "u"
    if stored == "s16":
        return (0x80 if unsigned else 0), 0
    if unsigned == (stored == "u8"):
        return 0, 0
    return 0x80, (128 if unsigned else -128)
