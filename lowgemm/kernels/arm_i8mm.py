"""Armv8.6 matrix multiply: `usmmla`, 2 rows by 2 columns by 8 depth steps of u8 x s8.

    acc[r, n] += sum_{k<8} lhs[r, 8g + k] * rhs[8g + k, n]      u8 x s8 -> int32

    lhs panel, group g (64 bytes)                  rhs panel, group g (32 bytes)
    r0: k0 .. k7 | r1: k0 .. k7 | ... r7           n0: k0 .. k7 | n1: k0 .. k7 | ... n3

Two instructions make a panel of 4 columns; `finalize` sorts the 2 x 2 blocks into rows. The products are
added in 32 bits; nothing saturates. Tile 8 x 12: 24 accumulators in the 32 registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from lowgemm.kernels.framework.kernel import (
    EMULATOR,
    Kernel,
    Target,
    at,
    call_intrinsic,
    const,
    i8,
    i32,
    load,
    shuffle,
    vec,
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


KERNEL = MatrixMultiply(
    "arm_i8mm",
    ("i8mm",),
    mr=8,
    lanes=4,
    max_nv=3,
    kr=8,
    lhs_rows=2,
    compiled_for=Target("aarch64-unknown-linux-gnu", "generic", "+neon,+i8mm", EMULATOR),
)
