"""`vpdpbusd`: four u8 x s8 products added to an int32 lane, AVX512-VNNI (512-bit) and AVX-VNNI (256-bit).

    acc[n] += sum_{k<4} lhs[r, 4g + k] * rhs[4g + k, n]      u8 x s8 -> int32

    lhs panel, group g (32 bytes)                  rhs panel, group g (64 bytes; 32 for AVX-VNNI)
    r0: k0 k1 k2 k3 | r1: k0 k1 k2 k3 | ... r7     n0: k0 k1 k2 k3 | n1: k0 k1 k2 k3 | ... n15

The instruction adds the four products without a 16-bit step in between, so nothing saturates (the saturating form
`vpdpbusds` is never used). Tiles: 8 x 48 keeps 24 accumulators, 3 rhs vectors and 1 broadcast in the 32 registers of
AVX-512, and 24 instructions need 11 loads; 6 x 16 keeps 12 + 2 + 1 in the 16 registers of AVX. Measured on Zen 4
(one 512-bit `vpdpbusd` a cycle): 8 x 48 in L1 230 GMAC/s of 235 on registers alone, depth 1024; 8 x 16 still 225.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir
from lowgemm.kernels.emit import Kernel, call_intrinsic, i32, load, splat, vec


@dataclass(frozen=True)
class Vnni(Kernel):
    """Tile hooks on `vpdpbusd`; `lanes` (16 or 8) decides the register width."""

    lhs_type: str = "u8"
    rhs_type: str = "s8"
    kr: int = 4
    expect: ClassVar[str] = "vpdpbusd"

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Broadcast the 4 bytes of one row."""
        return splat(builder, load(builder, i32, address, 4), self.lanes)

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """4 bytes of each column; panels are aligned to the register."""
        return load(builder, vec(i32, self.lanes), address, self.rhs_group_bytes)

    def product(self, builder, acc, lhs, rhs):
        """One `vpdpbusd` (declared on i32 vectors; LLVM 22 upgrades that to its i8 form)."""
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        return (call_intrinsic(builder, name, vec(i32, self.lanes), [acc[0], lhs, rhs]),)


AVX512 = Vnni(
    name="x86_avx512vnni",
    features=("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    mr=8,
    lanes=16,
    max_nv=3,
)
AVX = Vnni(
    name="x86_avxvnni",
    features=("avx2", "avxvnni"),
    mr=6,
    lanes=8,
    max_nv=2,
)
