"""Requantizing stores that overlap with the next tile: the scaling of one tile runs inside the depth loop of the next.

A tile's sums are scaled by some 14 instructions for 16 results. Run at the end of the tile they stand alone: the
product units wait (110 of 136 cycles for an 8 x 48 tile on Zen 5, which is 14 % at depth 256). The depth loop in turn leaves half
of the vector units and half of the issue slots free. So a finished tile is stored as int32 to a buffer of `mr` x `nr`
words (1.5 KiB, in L1), and each of the next tile's first depth groups also takes one register of it: load, scale,
clamp, store as bytes. What is left after the last tile, or where the depth has fewer groups than the tile has
registers, goes through the same code in a loop of its own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from lowgemm.kernels.framework.irtools import at, const, i8, i32, i64, load, splat, store, vec
from lowgemm.kernels.framework.requant import requantize_constants, requantized

#: Vectors of constants kept for each panel: two of multipliers, two of roundings, the shift, two bounds.
_CONSTANTS = 7


class Deferred:
    """Emits the parts; `params` is the address of what `requantize_store8` of the output routines has."""

    def __init__(self, k: Any, b: ir.IRBuilder, params: ir.Value) -> None:
        self.k, self.params = k, params
        self.mr, self.size = k.row_tiles[0], 4 * k.lanes
        self.sums = self._buffer(b, self.mr * k.max_nv)
        self.constants = self._buffer(b, _CONSTANTS * k.max_nv)

    def _buffer(self, b: ir.IRBuilder, registers: int) -> ir.Value:
        with b.goto_entry_block():  # not `cgutils.alloca_once`, which clears it: 60 cycles a call
            buffer = b.alloca(ir.ArrayType(i8, registers * self.size))
        buffer.align = self.size
        return b.bitcast(buffer, i8.as_pointer())

    def prepare(self, b: ir.IRBuilder, nv: int, col: ir.Value) -> None:
        """Emit: the constants of `nv` panels from column `col` on, to memory; registers are for sums."""
        words = [load(b, i64, at(b, self.params, 8 * i), 8) for i in range(5)]
        pointers = [load(b, i8.as_pointer(), at(b, self.params, 8 * i), 8) for i in range(2)]
        vector = vec(i32, self.k.lanes)
        bounds = [splat(b, b.trunc(words[i], i32), self.k.lanes) for i in (3, 4)]
        for v in range(nv):
            first = b.mul(b.add(col, const(i64, v * self.k.lanes)), const(i64, 4))
            multiplier, right = (load(b, vector, at(b, p, first), 4) for p in pointers)
            (even, odd), roundings, shift = requantize_constants(b, multiplier, right, words[2])
            for i, x in enumerate((even, odd, *roundings, shift, *bounds)):
                store(b, x, at(b, self.constants, (_CONSTANTS * v + i) * self.size), self.size)

    def keep(self, b: ir.IRBuilder, values: dict[tuple[int, int], ir.Value]) -> None:
        """Emit: store a finished tile's sums, one panel after the other."""
        for (r, v), x in sorted(values.items(), key=lambda item: (item[0][1], item[0][0])):
            store(b, x, at(b, self.sums, (v * self.mr + r) * self.size), self.size)

    def _constants(self, b: ir.IRBuilder, v: ir.Value) -> tuple:
        """Emit: load what `requantized` takes for panel `v`."""
        half, vector = vec(i64, self.k.lanes // 2), vec(i32, self.k.lanes)
        first = at(b, self.constants, b.mul(v, const(i64, _CONSTANTS * self.size)))
        even, odd, *roundings = (load(b, half, at(b, first, i * self.size), self.size) for i in range(4))
        shift, low, high = (load(b, vector, at(b, first, i * self.size), self.size) for i in (4, 5, 6))
        # says that these are 32-bit numbers, or LLVM would take the full 64-bit product
        word = const(half, 32)
        multipliers = [b.ashr(b.shl(m, word), word) for m in (even, odd)]
        return (multipliers, roundings, shift), low, high, 8

    def scale(self, b: ir.IRBuilder, index: ir.Value, nv: int, c: ir.Value, ldc: ir.Value) -> None:
        """Emit: scale and store register number `index` of the full tile, `nv` panels wide, that begins at `c`."""
        # Constants where they are known: the two numbers cost one general register more than code for sapphirerapids has.
        if nv == 1:
            v, r = const(i64, 0), index
        else:
            v, r = b.udiv(index, const(i64, self.mr)), b.urem(index, const(i64, self.mr))
        x = load(b, vec(i32, self.k.lanes), at(b, self.sums, b.mul(index, const(i64, self.size))), self.size)
        y = requantized(b, x, *self._constants(b, v))
        store(b, y, at(b, at(b, c, b.mul(ldc, r)), b.mul(v, const(i64, self.k.lanes))))

    def _loop(self, b: ir.IRBuilder, start: ir.Value, stop: int, body: Any) -> None:
        fn = b.function
        entry, block, done = b.block, fn.append_basic_block("drain"), fn.append_basic_block("drained")
        b.cbranch(b.icmp_signed("<", start, const(i64, stop)), block, done)
        b.position_at_end(block)
        index = b.phi(i64)
        index.add_incoming(start, entry)
        body(index)
        following = b.add(index, const(i64, 1))
        index.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, const(i64, stop)), block, done)
        b.position_at_end(done)

    def scale_rest(self, b: ir.IRBuilder, start: ir.Value, nv: int, c: ir.Value, ldc: ir.Value) -> None:
        """Emit: scale and store the registers of a full tile from `start` on."""
        self._loop(b, start, self.mr * nv, lambda index: self.scale(b, index, nv, c, ldc))

    def scale_tile(
        self, b: ir.IRBuilder, skip: ir.Value | None, rows: int, nv: int, c: ir.Value, ldc: ir.Value
    ) -> None:
        """Emit: scale and store a tile of `rows` rows at once, unless `skip`."""
        vector = vec(i32, self.k.lanes)

        def panel(v: ir.Value) -> None:
            constants = self._constants(b, v)
            sums = at(b, self.sums, b.mul(v, const(i64, self.mr * self.size)))
            to = at(b, c, b.mul(v, const(i64, self.k.lanes)))
            for r in range(rows):
                x = load(b, vector, at(b, sums, r * self.size), self.size)
                store(b, requantized(b, x, *constants), at(b, to, b.mul(ldc, const(i64, r))))

        start = const(i64, 0) if skip is None else b.select(skip, const(i64, nv), const(i64, 0))
        self._loop(b, start, nv, panel)
