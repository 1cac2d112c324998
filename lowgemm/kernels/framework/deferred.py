"""Requantizing stores that overlap with the next tile: the scaling of one tile runs inside the depth loop of
the next.

A tile's sums are scaled by some 14 instructions for 16 results. Run at the end of the tile they stand alone:
the product units wait (110 of 136 cycles for an 8 x 48 tile on Zen 5, which is 14 % at depth 256). The depth
loop in turn leaves half of the vector units and half of the issue slots free. So a finished tile is stored as
int32 to a buffer of `mr` x `nr` words (1.5 KiB, in L1), and each of the next tile's first depth groups also
takes one register of it: load, scale, clamp, store as bytes. What is left after the last tile, or where the
depth has fewer groups than the tile has registers, goes through the same code in a loop of its own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from lowgemm.kernels.framework.irtools import at, const, i8, i32, i64, load, store, vec
from lowgemm.kernels.framework.requant import constants_at


class Deferred:
    """Emits the parts, for a scale of `requant.py`; `params` is the address of its record."""

    def __init__(self, k: Any, b: ir.IRBuilder, params: ir.Value, scaling: Any) -> None:
        self.k, self.params, self.scaling = k, params, scaling
        self.mr, self.size = k.row_tiles[0], 4 * k.lanes
        self.sums = self._buffer(b, self.mr * k.max_nv)
        self.constants = self._buffer(b, scaling.kept * k.max_nv)

    def _buffer(self, b: ir.IRBuilder, registers: int) -> ir.Value:
        with b.goto_entry_block():  # not `cgutils.alloca_once`, which clears it: 60 cycles a call
            buffer = b.alloca(ir.ArrayType(i8, registers * self.size))
        buffer.align = self.size
        return b.bitcast(buffer, i8.as_pointer())

    def prepare(self, b: ir.IRBuilder, nv: int, col: ir.Value) -> None:
        """Emit: the constants of `nv` panels from column `col` on, to memory; registers are for sums."""
        for v in range(nv):
            first = b.add(col, const(i64, v * self.k.lanes))
            for i, x in enumerate(constants_at(b, self.scaling, self.params, first, self.k.lanes)):
                store(b, x, at(b, self.constants, (self.scaling.kept * v + i) * self.size), self.size)

    def keep(self, b: ir.IRBuilder, values: dict[tuple[int, int], ir.Value]) -> None:
        """Emit: store a finished tile's sums, one panel after the other."""
        for (r, v), x in sorted(values.items(), key=lambda item: (item[0][1], item[0][0])):
            store(b, x, at(b, self.sums, (v * self.mr + r) * self.size), self.size)

    def _constants(self, b: ir.IRBuilder, v: ir.Value) -> list[ir.Value]:
        """Emit: load the constants of panel `v`."""
        first = at(b, self.constants, b.mul(v, const(i64, self.scaling.kept * self.size)))
        types = enumerate(self.scaling.types(self.k.lanes))
        return self.scaling.loaded(
            b, [load(b, ty, at(b, first, i * self.size), self.size) for i, ty in types]
        )

    def scale(self, b: ir.IRBuilder, index: ir.Value, nv: int, place_of: Any) -> None:
        """Emit: scale and store register number `index` of the full tile, `nv` panels wide, whose rows go
        where `place_of` says.
        """
        # Constants where they are known: the two numbers cost one general register more than code for
        # sapphirerapids has.
        if nv == 1:
            v, r = const(i64, 0), index
        else:
            v, r = b.udiv(index, const(i64, self.mr)), b.urem(index, const(i64, self.mr))
        x = load(b, vec(i32, self.k.lanes), at(b, self.sums, b.mul(index, const(i64, self.size))), self.size)
        y = self.scaling.result(b, x, self._constants(b, v), 8)
        store(b, y, at(b, place_of(r), b.mul(v, const(i64, self.k.lanes))))

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

    def scale_rest(self, b: ir.IRBuilder, start: ir.Value, nv: int, place_of: Any) -> None:
        """Emit: scale and store the registers of a full tile from `start` on."""
        self._loop(b, start, self.mr * nv, lambda index: self.scale(b, index, nv, place_of))

    def scale_tile(self, b: ir.IRBuilder, skip: ir.Value | None, rows: int, nv: int, place_of: Any) -> None:
        """Emit: scale and store a tile of `rows` rows at once, unless `skip`."""
        vector = vec(i32, self.k.lanes)

        def panel(v: ir.Value) -> None:
            constants = self._constants(b, v)
            sums = at(b, self.sums, b.mul(v, const(i64, self.mr * self.size)))
            column = b.mul(v, const(i64, self.k.lanes))
            for r in range(rows):
                x = load(b, vector, at(b, sums, r * self.size), self.size)
                store(b, self.scaling.result(b, x, constants, 8), at(b, place_of(r), column))

        start = const(i64, 0) if skip is None else b.select(skip, const(i64, nv), const(i64, 0))
        self._loop(b, start, nv, panel)
