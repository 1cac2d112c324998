"""The two ways in which packing turns rows into panels, in vector registers: transposition and interleaving.

`packing.py` has the cases and the layout; here are the instructions for one block of each, as LLVM IR.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.jit.routine import unpack_words
from lowgemm.kernels import Kernel, by_id
from lowgemm.kernels.framework.kernel import at, const, i8, i16, i32, i64, load, shuffle, splat, store, vec

#: Bytes of packed depth that one transposition step handles for each row; panels are padded to it.
CHUNK_BYTES = 16


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
    """Add each row's elements in a packed group to the int32 sums `acc`, by the kernel's own way if it has
    one.
    """
    total = k.add_sums(b, acc, packed, side)
    return b.add(acc, _group_sums(k, b, packed, acc.type.count, side)) if total is None else total


def _swap(b: ir.IRBuilder, vectors: list[ir.Value], bit: int, unit: int, other: int) -> list[ir.Value]:
    """Exchange bit `bit` of the vector's number with bit `other` of the number of a run of `unit` elements in
    it.
    """
    out = list(vectors)
    total = vectors[0].type.count
    for j, low in enumerate(vectors):
        if j & bit:
            continue
        masks: tuple[list[int], list[int]] = ([], [])
        for run in range(total // unit):
            for to, mask in enumerate(masks):
                source = (run & ~other) | (other if to else 0)
                first = source * unit + (total if run & other else 0)
                mask.extend(range(first, first + unit))
        out[j], out[j | bit] = (shuffle(b, low, vectors[j | bit], mask) for mask in masks)
    return out


def _emit_transpose(
    k: Kernel, side: str, width: int, chunks: int, b: ir.IRBuilder, a: dict[str, ir.Value]
) -> None:
    """Emit: `steps` transpositions of `width` rows x `chunks` * 16 packed bytes, rows `stride` bytes apart.

    Exchanges in registers. With n = 16 / unit, element u of 16-byte lane l of the register of row q n + r is
    that row's part of group l n + u. First r is exchanged with u, bit by bit, which stays within the lanes:
    now register (q, u) holds in lane l the part of group l n + u that rows q n ... belong to. Then q with the
    low bits of l: the lanes of a group come together. Then what is left of l with the low bits of u: a
    register holds groups that follow one another. Rows are padded to a multiple of n by repeating the last
    one; a padded group is stored alone.
    """
    unit = k.kr * k.element_bytes  # bytes that stay together: one row's part of a group
    per_row = CHUNK_BYTES // k.element_bytes  # raw bytes of a chunk of a row
    n = CHUNK_BYTES // unit  # groups of a chunk
    quads = power_of_two(-(-width // n))
    element = ir.IntType(8 * unit)
    last = b.sub(a["valid"], const(i64, 1))
    rows = []
    for i in range(width):
        clamped = b.select(b.icmp_signed("<", const(i64, i), a["valid"]), const(i64, i), last)
        rows.append(at(b, a["src"], b.mul(clamped, a["stride"])))
    group_bytes = width * unit
    spread = max(chunks // quads, 1)  # groups in one register
    padded = width != quads * n
    whole = 1 if padded else spread  # of which the sums are taken at once
    zero = const(vec(i32, whole * width), 0)
    # several sums: additions to one would wait for one another (32 cycles for 512 bytes, of 16)
    acc_ptrs = [cgutils.alloca_once_value(b, zero) for _ in range(min(4, n))]
    with cgutils.for_range(b, a["steps"]) as loop:
        src_off = b.mul(loop.index, const(i64, chunks * per_row))
        dst = at(b, a["dst"], b.mul(loop.index, const(i64, chunks * n * group_bytes)))
        vectors = []
        for i in range(quads * n):
            raw = load(b, vec(i8, chunks * per_row), at(b, rows[min(i, width - 1)], src_off))
            vectors.append(b.bitcast(_convert(k, b, raw, a["flip"], a["bias"]), vec(element, chunks * n)))
        if chunks < quads:  # all rows' lanes in one register instead: `chunks` is 1
            vectors = [_concat(b, vectors[j::n]) for j in range(n)]
        for bit in _bits(n):
            vectors = _swap(b, vectors, bit, 1, bit)
        if chunks >= quads:
            for bit in _bits(quads):
                vectors = _swap(b, vectors, bit * n, n, bit)
        if not padded:
            for bit in _bits(spread):
                vectors = _swap(b, vectors, bit, quads * n, bit)
        accs = [b.load(p) for p in acc_ptrs]
        for number, x in enumerate(vectors):
            q, u = divmod(number, n) if chunks >= quads else (0, number)
            for h in range(spread if padded else 1):
                part = _slice(b, x, h * quads * n, whole * width)
                # the bits of u that were exchanged with h say which h this register is of
                group = (
                    (h * quads + q) * n + u if padded else (u % spread * quads + q) * n + u // spread * spread
                )
                store(b, part, at(b, dst, group * group_bytes), _alignment(whole * group_bytes))
                i = number % len(accs)
                accs[i] = _add_group(k, b, accs[i], part, side)
        for p, acc in zip(acc_ptrs, accs, strict=True):
            b.store(acc, p)
    total = None
    for p in acc_ptrs:
        acc = b.load(p)
        for i in range(whole):
            part = _slice(b, acc, i * width, width)
            total = part if total is None else b.add(total, part)
    _add_sums(b, a["sums"], total)


def power_of_two(count: int) -> int:
    """The least power of two from `count` up."""
    return 1 << max(count - 1, 0).bit_length()


def _bits(count: int) -> list[int]:
    """Powers of two below `count`, the largest first."""
    return [1 << i for i in reversed(range(count.bit_length() - 1))]


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


@intrinsic(prefer_literal=True)
def copy_start(typingctx, to, source, size, count, pad):
    """Read `size` (a constant) bytes and write them, those from number `count` on replaced by `pad`."""
    n = size.literal_value

    def codegen(context, builder, signature, values):
        b, ty = builder, vec(i8, n)
        raw = load(b, ty, values[1])
        kept = b.icmp_unsigned("<", ir.Constant(ty, list(range(n))), splat(b, b.trunc(values[3], i8), n))
        store(b, b.select(kept, raw, splat(b, b.trunc(values[4], i8), n)), values[0], n)
        return context.get_dummy_value()

    return types.void(types.voidptr, types.voidptr, size, types.int64, types.int64), codegen


#: Arguments of both: pointers `src`, `dst` and `sums` (int32), byte strides of `src` and between panels, how
#: many rows are `valid`, how often to do it (`steps`), and the byte to xor.
_TRANSPOSE_ARGS = ("src", "stride", "valid", "steps", "flip", "dst", "sums")
_INTERLEAVE_ARGS = ("src", "stride", "steps", "flip", "dst", "dst_stride", "sums")


def _unpack(
    context: Any, b: ir.IRBuilder, names: tuple[str, ...], ty: Any, values: ir.Value
) -> dict[str, ir.Value]:
    a = dict(zip(names, unpack_words(context, b, ty, values), strict=True))
    a["bias"] = b.trunc(a["flip"], i16)
    a["flip"] = b.trunc(a["flip"], i8)
    return a


@intrinsic(prefer_literal=True)
def transpose(typingctx, kernel_id, side, width, chunks, args):
    """`_emit_transpose` with the arguments `_TRANSPOSE_ARGS`; `side` is 0 for the lhs, 1 for the rhs."""
    kernel, wide, count = by_id(kernel_id.literal_value), width.literal_value, chunks.literal_value
    name = ("lhs", "rhs")[side.literal_value]

    def codegen(context, builder, signature, values):
        a = _unpack(context, builder, _TRANSPOSE_ARGS, signature.args[4], values[4])
        _emit_transpose(kernel, name, wide, count, builder, a)
        return context.get_dummy_value()

    return types.void(kernel_id, side, width, chunks, args), codegen


@intrinsic(prefer_literal=True)
def interleave(typingctx, kernel_id, side, width, panels, args):
    """`_emit_interleave` with the arguments `_INTERLEAVE_ARGS`; `side` is 0 for the lhs, 1 for the rhs."""
    kernel, wide, count = by_id(kernel_id.literal_value), width.literal_value, panels.literal_value
    name = ("lhs", "rhs")[side.literal_value]

    def codegen(context, builder, signature, values):
        a = _unpack(context, builder, _INTERLEAVE_ARGS, signature.args[4], values[4])
        _emit_interleave(kernel, name, wide, count, builder, a)
        return context.get_dummy_value()

    return types.void(kernel_id, side, width, panels, args), codegen
