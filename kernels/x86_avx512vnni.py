"""AVX512-VNNI: `vpdpbusd` on 512-bit registers, the fastest x86 path without AMX.

    acc[n] += sum_{k<4} lhs[r, 4g + k] * rhs[4g + k, n]      u8 x s8 -> int32, 16 columns an instruction

`vpdpbusd` adds the four products without an intermediate 16-bit step, so nothing saturates (the saturating
form `vpdpbusds` is never used). 8 rows x 48 columns keep 24 accumulators, 3 rhs vectors and 1 broadcast in
the 32 registers: 24 instructions need 11 loads. Measured on Zen 4 (one 512-bit `vpdpbusd` a cycle).
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir
from lowgemm.kernels.emit import Kernel, call_intrinsic, i32, load, splat, vec


@dataclass(frozen=True)
class Avx512Vnni(Kernel):
    """Tile hooks of the AVX512-VNNI kernel."""

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Broadcast the 4 bytes of one row."""
        return splat(builder, load(builder, i32, address, 4), 16)

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """16 columns of 4 bytes; panels are 64-byte aligned."""
        return load(builder, vec(i32, 16), address, 64)

    def product(self, builder, acc, lhs, rhs):
        """One `vpdpbusd` (declared on i32 vectors; LLVM 22 upgrades that to its i8 form)."""
        v16 = vec(i32, 16)
        return (call_intrinsic(builder, "llvm.x86.avx512.vpdpbusd.512", v16, [acc[0], lhs, rhs]),)


KERNEL = Avx512Vnni(
    name="x86_avx512vnni",
    features=("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    mr=8,
    lanes=16,
    max_nv=3,
    kr=4,
    lhs_type="u8",
    rhs_type="s8",
    expect="vpdpbusd",
)
