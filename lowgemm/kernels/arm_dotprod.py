"""Armv8.2 dot product: `sdot`, four s8 x s8 products a lane.

    acc[n] += sum_{k<4} lhs[r, 4g + k] * rhs[4g + k, n]      s8 x s8 -> int32

    lhs panel, group g (32 bytes)                  rhs panel, group g (16 bytes)
    r0: k0 k1 k2 k3 | r1: k0 k1 k2 k3 | ... r7     n0: k0 k1 k2 k3 | n1: k0 k1 k2 k3 | ... n3

The four products are added in 32 bits; nothing saturates. Tile 8 x 12: 24 accumulators in the 32 registers.
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
    i8,
    i32,
    load,
    splat,
    vec,
)


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


KERNEL = DotProduct(
    "arm_dotprod",
    ("dotprod",),
    mr=8,
    lanes=4,
    max_nv=3,
    kr=4,
    lhs_type="s8",
    rhs_type="s8",
    compiled_for=Target("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod", EMULATOR),
)
