"""Hooks on `pmaddwd`, for `x86_sse2.py` (128 bits), `x86_avx2.py` (256) and `x86_avx512bw.py` (512).

Elements are widened to 16 bits while they are packed, which costs twice the panel memory but no instruction
in the loop, and takes either sign. Two products of 8-bit values are at most 2 * 255 * 255, far from wrapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from lowgemm.kernels.framework.kernel import Kernel, call_intrinsic, i16, i32, load, splat, vec

_INSTRUCTION = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


@dataclass(frozen=True)
class Pmaddwd(Kernel):
    """Tile hooks on `pmaddwd`; `lanes` (4, 8 or 16) decides the register width."""

    lhs_type: str = "s16"
    rhs_type: str = "s16"
    kr: int = 2
    expect: ClassVar[str] = "pmaddwd"

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Broadcast the two 16-bit values of one row."""
        words = splat(builder, load(builder, i32, address, 4), self.lanes)
        return builder.bitcast(words, vec(i16, 2 * self.lanes))

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Two 16-bit values of each column; panels are aligned to the register."""
        return load(builder, vec(i16, 2 * self.lanes), address, self.rhs_group_bytes)

    def product(self, builder, acc, lhs, rhs):
        """`pmaddwd` and an addition."""
        pairs = call_intrinsic(builder, _INSTRUCTION[self.lanes], vec(i32, self.lanes), [lhs, rhs])
        return (builder.add(acc[0], pairs),)
