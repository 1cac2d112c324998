"""AVX-VNNI-INT8: `vpdpbssd` on 256 bits, four s8 x s8 products a lane (hooks in `vnni.py`).

    acc[n] += sum_{k<4} lhs[r, 4g + k] * rhs[4g + k, n]      s8 x s8 -> int32

    lhs panel, group g (24 bytes)                  rhs panel, group g (32 bytes)
    r0: k0 k1 k2 k3 | r1: k0 k1 k2 k3 | ... r5     n0: k0 k1 k2 k3 | n1: k0 k1 k2 k3 | ... n7

The four products of an s8 by an s8 are added in 32 bits; nothing saturates. Tile 6 x 16, as of `x86_avxvnni`,
which every CPU with this instruction runs too, at the same speed. So this one is never chosen by itself: it
spares int8 by int8 the flip of signs, which packing does on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowgemm.kernels.framework.kernel import Target, call_intrinsic
from lowgemm.kernels.vnni import Vnni


@dataclass(frozen=True)
class VnniInt8(Vnni):
    """Tile hooks on `vpdpbssd`."""

    lhs_type: str = "s8"
    expect: ClassVar[str] = "vpdpbssd"

    def product(self, builder, acc, lhs, rhs):
        """One `vpdpbssd`."""
        name = f"llvm.x86.avx2.vpdpbssd.{32 * self.lanes}"
        return (call_intrinsic(builder, name, acc[0].type, [acc[0], lhs, rhs]),)

    def add_sums(self, builder, acc, packed, side):
        """Both sides are signed: the form for an rhs."""
        return super().add_sums(builder, acc, packed, "rhs")


KERNEL = VnniInt8(
    name="x86_avxvnniint8",
    features=("avx2", "avxvnni", "avxvnniint8"),
    mr=6,
    lanes=8,
    max_nv=2,
    compiled_for=Target("x86_64-unknown-linux-gnu", "sierraforest"),
)
