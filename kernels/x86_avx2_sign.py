"""AVX2 `pmaddubsw` on |lhs| and the rhs with the lhs's sign: 8-bit panels, exact if the rhs holds no -128.

    acc[n] += sum_{k<4} |lhs[r, 4g + k]| * (sign(lhs[r, 4g + k]) * rhs[4g + k, n])      s8 x s8 -> int32

    lhs panel, group g (8 bytes)                   rhs panel, group g (32 bytes)
    r0: k0 k1 k2 k3 | r1: k0 k1 k2 k3              n0: k0 k1 k2 k3 | n1: k0 k1 k2 k3 | ... n7

`pmaddubsw` wants unsigned by signed bytes and saturates sums of two products at 16 bits, which is why used plainly it
gives wrong numbers. Moving the lhs's sign to the rhs keeps every sum within 2 * 128 * 127 = 32512 < 32768, so it
cannot saturate here. -128 has no positive counterpart in 8 bits: an rhs that holds it (or a uint8 rhs that holds 0,
which is packed as -128) goes to `x86_avx2`.

Four or five instructions for 32 products against four for `x86_avx2` (two `pmaddwd` and two additions), so the latter is
faster wherever arithmetic is the limit and stays the default; this one needs half the panel memory. `psignb` moves the
sign in one instruction, but shares two ports with the multiplications on Zen 4; xor and subtract take two, on any port.
Alternating them from panel to panel, in a 2 x 32 tile that shares |lhs| among four panels, gives 76 GMAC/s with
Haswell code, against 66 for `psignb` alone and 69 for xor alone in 4 x 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir
from lowgemm.kernels.framework.kernel import Kernel, call_intrinsic, const, i8, i16, i32, load, splat, vec


@dataclass(frozen=True)
class Avx2Sign(Kernel):
    """Tile hooks on `psignb` or xor and subtract, `pmaddubsw` and `pmaddwd`."""

    expect: ClassVar[str] = "pmaddubsw"
    rhs_excludes_min: ClassVar[bool] = True
    forms: ClassVar[int] = 2

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Broadcast the 4 bytes of one row."""
        return builder.bitcast(splat(builder, load(builder, i32, address, 4), 8), vec(i8, 32))

    def prepare_lhs(self, builder: ir.IRBuilder, lhs: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The bytes, all ones where negative, and magnitudes (|-128| = 128 unsigned)."""
        negative = builder.sext(builder.icmp_signed("<", lhs, const(lhs.type, 0)), lhs.type)
        wraps = ir.Constant(ir.IntType(1), 0)
        return lhs, negative, call_intrinsic(builder, "llvm.abs.v32i8", lhs.type, [lhs, wraps])

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """4 bytes of each column."""
        return load(builder, vec(i8, 32), address, 32)

    def row_products(self, builder, accs, lhs, rhs):
        """The lhs's sign on the rhs, then products of pairs in 16 bits, then of quadruples in 32."""
        signed, negative, magnitude = lhs
        ones = const(vec(i16, 16), 1)
        out = []
        for v, (acc, cols) in enumerate(zip(accs, rhs, strict=True)):
            if v % 2 == 0:
                moved = call_intrinsic(builder, "llvm.x86.avx2.psign.b", vec(i8, 32), [cols, signed])
            else:
                moved = builder.sub(builder.xor(cols, negative), negative)
            pairs = call_intrinsic(builder, "llvm.x86.avx2.pmadd.ub.sw", vec(i16, 16), [magnitude, moved])
            quads = call_intrinsic(builder, "llvm.x86.avx2.pmadd.wd", vec(i32, 8), [pairs, ones])
            out.append((builder.add(acc[0], quads),))
        return out


KERNEL = Avx2Sign(
    name="x86_avx2_sign",
    features=("avx2",),
    mr=2,
    lanes=8,
    max_nv=4,
    kr=4,
    lhs_type="s8",
    rhs_type="s8",
)
