"""An lhs for kernels that read it as rows: copied so that each row's depth is contiguous and padded with
zeros, and its row sums.

Kernels with `row_bytes` (see `kernels/framework/kernel.py`) take the elements as they are, of either sign. A
matrix whose rows lie like that already is not copied: then the routine is called without a destination, for
the sums alone.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.jit.memory import is_null, load_u8, offset, store_8
from lowgemm.jit.routine import Routine, routine, signature, unpack_words
from lowgemm.kernels import Kernel, by_id
from lowgemm.kernels.framework.kernel import (
    at,
    call_intrinsic,
    const,
    i8,
    i32,
    i64,
    load,
    shuffle,
    splat,
    store,
    vec,
)

#: Bytes of a row in one register, and rows and depth steps of a block that is transposed.
WIDE, SQUARE = 64, 16
_SIGNATURE = signature("pnnnnnpnp")
_ROW_ARGS = ("src", "stride", "depth", "flip", "dst", "dst_stride", "rows", "sums")


def _add_bytes(k: Kernel, b: ir.IRBuilder, acc: ir.Value, raw: ir.Value) -> ir.Value:
    """Add 64 unsigned bytes to 16 int32 sums, by the kernel's own way if it has one."""
    total = k.add_sums(b, acc, raw, "lhs")
    if total is not None:
        return total
    words, low = b.bitcast(raw, acc.type), const(acc.type, 0x00FF00FF)
    pairs = b.add(b.and_(words, low), b.and_(b.lshr(words, const(acc.type, 8)), low))
    return b.add(acc, b.add(b.and_(pairs, const(acc.type, 0xFFFF)), b.lshr(pairs, const(acc.type, 16))))


def _emit_rows(k: Kernel, b: ir.IRBuilder, a: dict[str, ir.Value], copy: bool) -> None:
    """Emit: the sums of rows whose depth is contiguous, and a padded copy of them.

    With `flip` 0x80 the bytes are signed: their top bits are flipped for the sum, which makes each 128 more.
    """
    ty, wide = vec(i32, WIDE // 4), vec(i8, WIDE)
    flip = splat(b, b.trunc(a["flip"], i8), WIDE)
    whole, rest = b.sdiv(a["depth"], const(i64, WIDE)), b.srem(a["depth"], const(i64, WIDE))
    excess = b.mul(a["flip"], a["depth"])
    index = ir.Constant(vec(i8, WIDE), list(range(WIDE)))
    mask = b.icmp_unsigned("<", index, splat(b, b.trunc(rest, i8), WIDE))
    zero = const(wide, 0)
    with cgutils.for_range(b, a["rows"]) as outer:
        src = at(b, a["src"], b.mul(outer.index, a["stride"]))
        dst = at(b, a["dst"], b.mul(outer.index, a["dst_stride"]))
        acc = cgutils.alloca_once_value(b, const(ty, 0))
        b.store(const(ty, 0), acc)
        with cgutils.for_range(b, whole) as loop:
            place = b.mul(loop.index, const(i64, WIDE))
            x = load(b, wide, at(b, src, place))
            if copy:
                store(b, x, at(b, dst, place))
            b.store(_add_bytes(k, b, b.load(acc), b.xor(x, flip)), acc)
        with b.if_then(b.icmp_signed(">", rest, const(i64, 0))):
            place = b.mul(whole, const(i64, WIDE))
            pointer = b.bitcast(at(b, src, place), wide.as_pointer())
            x = call_intrinsic(
                b, f"llvm.masked.load.v{WIDE}i8.p0", wide, [pointer, const(i32, 1), mask, zero]
            )
            if copy:
                store(b, x, at(b, dst, place))
            b.store(_add_bytes(k, b, b.load(acc), b.select(mask, b.xor(x, flip), zero)), acc)
        total = call_intrinsic(b, "llvm.vector.reduce.add.v16i32", i32, [b.load(acc)])
        total = b.sub(total, b.trunc(excess, i32))
        store(b, total, at(b, a["sums"], b.mul(outer.index, const(i64, 4))), 4)


@intrinsic(prefer_literal=True)
def rows_of(typingctx, kernel_id, copy, args):
    """`_emit_rows` with the arguments `_ROW_ARGS`."""
    kernel, copies = by_id(kernel_id.literal_value), bool(copy.literal_value)

    def codegen(context, builder, sig, values):
        words = unpack_words(context, builder, sig.args[2], values[2])
        _emit_rows(kernel, builder, dict(zip(_ROW_ARGS, words, strict=True)), copies)
        return context.get_dummy_value()

    return types.void(kernel_id, copy, args), codegen


@intrinsic
def turn(typingctx, src, k_stride, dst, dst_stride):
    """Transpose 16 x 16 bytes: 16 depth steps of 16 adjacent rows become 16 rows of 16 adjacent depth
    steps.
    """

    def codegen(context, builder, sig, values):
        b = builder
        source, stride, to, to_stride = values
        rows = [load(b, vec(i8, SQUARE), at(b, source, b.mul(stride, const(i64, i)))) for i in range(SQUARE)]
        for _ in range(4):  # each round interleaves row i with row i + 8: after four, rows are columns
            mask = [j for i in range(8) for j in (i, SQUARE + i)]
            high = [j + 8 for j in mask]
            pairs = [(rows[i], rows[i + 8]) for i in range(8)]
            rows = [shuffle(b, x, y, m) for x, y in pairs for m in (mask, high)]
        for i, row in enumerate(rows):
            store(b, row, at(b, to, b.mul(to_stride, const(i64, i))))
        return context.get_dummy_value()

    return types.void(types.voidptr, types.intp, types.voidptr, types.intp), codegen


def make_rows(kernel_id: int, row_bytes: int, key: int) -> Routine:
    """The routine: arguments as in `packing.pack_routine`, `dst_stride` from row to row; with no `dst` it
    makes the sums alone.
    """

    @routine(_SIGNATURE, key)
    def pack_rows(src, mn_stride, k_stride, mn, depth, flip, dst, dst_stride, sums):
        """The arguments are described at `packing.pack_routine`."""
        if is_null(dst):
            rows_of(kernel_id, 0, (src, mn_stride, depth, flip, dst, dst_stride, mn, sums))
            return
        if k_stride == 1:
            rows_of(kernel_id, 1, (src, mn_stride, depth, flip, dst, dst_stride, mn, sums))
        else:
            square_rows = mn // SQUARE * SQUARE if mn_stride == 1 else 0
            square_depth = depth // SQUARE * SQUARE
            for r in range(0, square_rows, SQUARE):
                for k in range(0, square_depth, SQUARE):
                    turn(offset(src, r + k * k_stride), k_stride, offset(dst, r * dst_stride + k), dst_stride)
            for r in range(mn):
                for k in range(square_depth if r < square_rows else 0, depth):
                    store_8(dst, r * dst_stride + k, load_u8(src, r * mn_stride + k * k_stride))
            end = (depth + row_bytes - 1) // row_bytes * row_bytes
            for r in range(mn):
                for k in range(depth, end):
                    store_8(dst, r * dst_stride + k, 0)
            rows_of(kernel_id, 0, (dst, dst_stride, depth, flip, dst, dst_stride, mn, sums))

    return pack_rows
