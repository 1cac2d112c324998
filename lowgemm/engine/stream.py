"""Storing a block of int32 past the caches: non-temporal stores of whole cache lines.

A plain store reads its line first and writes it back later, so that a result that no cache keeps passes by
memory twice. A non-temporal store of a whole line does neither. On one core of an Intel Xeon (Sapphire
Rapids), GB/s of int32 written to memory that was not in its second-level cache: 10 by plain stores, 24 by
these. See docs/performance.md for when it pays.

Such stores are seen by other threads in any order until a fence, with which the routine ends.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.jit.memory import load_i32, offset, store_32
from lowgemm.jit.routine import routine
from lowgemm.jit.target import target
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i32, i64, load, repeat, vec

#: Bytes of a cache line.
LINE = 64


def register_bytes() -> int:
    """Bytes of the widest non-temporal store of the target; 0: it has none whose order is known here."""
    has = target()[1]
    widths = (("avx512f", 64), ("avx2", 32), ("sse2", 16))
    return next((width for feature, width in widths if feature in has), 0)


@intrinsic
def _stream_lines(typingctx, source, to, lines):
    """Copy `lines` cache lines, at least one, to `to`, which begins with one, past the caches."""

    def codegen(context, builder, signature, values):
        b = builder
        start, end, count = values
        width = register_bytes()
        ty = vec(i32, width // 4)

        def turn(number: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            line = b.mul(number, const(i64, LINE))
            for part in range(0, LINE, width):
                place = b.bitcast(at(b, at(b, end, line), part), ty.as_pointer())
                kept = b.store(load(b, ty, at(b, at(b, start, line), part), 4), place, align=width)
                kept.set_metadata("nontemporal", b.module.add_metadata([const(i32, 1)]))
            return []

        repeat(b, count, [], turn)
        return context.get_dummy_value()

    return types.void(types.voidptr, types.voidptr, types.intp), codegen


@intrinsic
def _fence(typingctx):
    """Let other threads see what was stored before they see what is stored after."""

    def codegen(context, builder, signature, values):
        call_intrinsic(builder, "llvm.x86.sse.sfence", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _beyond_line(typingctx, pointer):
    """Bytes from the beginning of its cache line to an address."""

    def codegen(context, builder, signature, values):
        return builder.and_(builder.ptrtoint(values[0], i64), const(i64, LINE - 1))

    return types.intp(types.voidptr), codegen


@routine("pnnnpn")
def stream(tile, ld, rows, cols, out, row_stride):
    """Store `rows` x `cols` int32 whose rows are `ld` elements apart to rows that are `row_stride` bytes
    apart.
    """
    if ld == cols and row_stride == 4 * cols:
        cols, rows = rows * cols, 1
    for r in range(rows):
        source, to = offset(tile, 4 * r * ld), offset(out, r * row_stride)
        first = min(cols, (LINE - _beyond_line(to)) % LINE // 4)
        lines = (cols - first) * 4 // LINE
        for c in range(first):
            store_32(to, c, load_i32(source, c))
        if lines > 0:
            _stream_lines(offset(source, 4 * first), offset(to, 4 * first), lines)
        for c in range(first + lines * (LINE // 4), cols):
            store_32(to, c, load_i32(source, c))
    _fence()
