"""Arm: NEON without and with the dot product, and the 8-bit matrix multiply.

    arm_neon     acc[n] += lhs[r, 2g] * rhs[2g, n] + lhs[r, 2g + 1] * rhs[2g + 1, n]     s8 x s8, smull + sadalp
    arm_dotprod  acc[n] += sum_{k<4} lhs[r, 4g + k] * rhs[4g + k, n]                     s8 x s8, sdot
    arm_i8mm     acc[r, n] += sum_{k<8} lhs[r, 8g + k] * rhs[8g + k, n]                  u8 x s8, usmmla (2 x 2)

    lhs panel, group g                             rhs panel, group g
    r0: k0 .. k(kr-1) | r1: k0 .. | ... r7         n0: k0 .. k(kr-1) | n1: k0 .. | ...

A product of two s8 values fits 16 bits (at most 16384), and `sadalp` adds neighbours into 32 bits, so nothing
saturates. `usmmla` takes 2 rows and 2 columns of 8 depth steps each and gives 2 x 2 sums: two of them make a
panel of 4 columns. All tiles keep 24 accumulators in the 32 registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir
from lowgemm.kernels.emit import Kernel, at, call_intrinsic, const, i8, i16, i32, load, shuffle, splat, vec


@dataclass(frozen=True)
class Neon(Kernel):
    """Tile hooks on `smull`, `smull2` and `sadalp`: 8 columns, two accumulators of 4."""

    expect: ClassVar[str] = "sadalp"

    def zero(self) -> tuple[ir.Value, ...]:
        """Two registers of 4 columns."""
        return (const(vec(i32, 4), 0), const(vec(i32, 4), 0))

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Broadcast the 2 bytes of one row."""
        return builder.bitcast(splat(builder, load(builder, i16, address, 2), 4), vec(i8, 8))

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """2 bytes of each of 8 columns."""
        return load(builder, vec(i8, 16), address, 16)

    def product(self, builder, acc, lhs, rhs):
        """`smull` to 16 bits and `sadalp` into 32, for each half of the columns."""
        out = []
        for half, total in enumerate(acc):
            cols = shuffle(builder, rhs, None, list(range(8 * half, 8 * half + 8)))
            wide = call_intrinsic(builder, "llvm.aarch64.neon.smull.v8i16", vec(i16, 8), [lhs, cols])
            pairs = call_intrinsic(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", vec(i32, 4), [wide])
            out.append(builder.add(total, pairs))
        return tuple(out)

    def finalize(self, builder, acc):
        """Both halves side by side."""
        return [shuffle(builder, acc[0], acc[1], list(range(8)))]


@dataclass(frozen=True)
class DotProduct(Kernel):
    """Tile hooks on `sdot`: 4 columns a register."""

    expect: ClassVar[str] = "sdot"

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Broadcast the 4 bytes of one row."""
        return builder.bitcast(splat(builder, load(builder, i32, address, 4), 4), vec(i8, 16))

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """4 bytes of each of 4 columns."""
        return load(builder, vec(i8, 16), address, 16)

    def product(self, builder, acc, lhs, rhs):
        """One `sdot`."""
        return (
            call_intrinsic(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", vec(i32, 4), [acc[0], lhs, rhs]),
        )


@dataclass(frozen=True)
class MatrixMultiply(Kernel):
    """Tile hooks on `usmmla`: 2 rows by 4 columns, two registers of 2 x 2 sums."""

    expect: ClassVar[str] = "usmmla"

    def zero(self) -> tuple[ir.Value, ...]:
        """Columns 0 to 1 and 2 to 3 of two rows."""
        return (const(vec(i32, 4), 0), const(vec(i32, 4), 0))

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """8 bytes of each of two rows."""
        return load(builder, vec(i8, 16), address, 8)

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
        """8 bytes of each of 4 columns."""
        return [load(builder, vec(i8, 16), at(builder, address, 16 * i), 16) for i in range(2)]

    def product(self, builder, acc, lhs, rhs):
        """Two `usmmla`."""
        name = "llvm.aarch64.neon.usmmla.v4i32.v16i8"
        return tuple(
            call_intrinsic(builder, name, vec(i32, 4), [total, lhs, cols])
            for total, cols in zip(acc, rhs, strict=True)
        )

    def finalize(self, builder, acc):
        """Rows out of the 2 x 2 blocks."""
        return [shuffle(builder, acc[0], acc[1], [2 * r, 2 * r + 1, 4 + 2 * r, 5 + 2 * r]) for r in range(2)]


NEON = Neon("arm_neon", ("neon",), mr=8, lanes=8, max_nv=1, kr=2, lhs_type="s8", rhs_type="s8")
DOTPROD = DotProduct("arm_dotprod", ("dotprod",), mr=8, lanes=4, max_nv=3, kr=4, lhs_type="s8", rhs_type="s8")
I8MM = MatrixMultiply("arm_i8mm", ("i8mm",), mr=8, lanes=4, max_nv=3, kr=8, lhs_rows=2)
