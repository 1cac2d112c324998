"""NEON without the dot product: `smull` to 16 bits, `sadalp` into 32.

    acc[n] += lhs[r, 2g] * rhs[2g, n] + lhs[r, 2g + 1] * rhs[2g + 1, n]      s8 x s8 -> int32

    lhs panel, group g (16 bytes)                  rhs panel, group g (16 bytes)
    r0: k0 k1 | r1: k0 k1 | ... r7                 n0: k0 k1 | n1: k0 k1 | ... n7

A product of two s8 values fits 16 bits (at most 16384), and `sadalp` adds neighbours into 32 bits, so nothing
saturates. Tile 8 x 8: 16 accumulators of 4 columns in the 32 registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from lowgemm.kernels.framework.kernel import (
    EMULATOR,
    Kernel,
    Target,
    call_intrinsic,
    const,
    i8,
    i16,
    i32,
    load,
    shuffle,
    splat,
    vec,
)


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


KERNEL = Neon(
    "arm_neon",
    ("neon",),
    mr=8,
    lanes=8,
    max_nv=1,
    kr=2,
    lhs_type="s8",
    rhs_type="s8",
    compiled_for=Target("aarch64-unknown-linux-gnu", "generic", "+neon", EMULATOR),
)
