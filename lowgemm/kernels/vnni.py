"""Hooks on `vpdpbusd`, for `x86_avx512vnni.py` (512 bits), `x86_avxvnni.py` (256 bits) and
`x86_avxvnniint8.py`.

The instruction adds four u8 x s8 products to an int32 lane without a 16-bit step in between, so nothing
saturates (the saturating form `vpdpbusds` is never used).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from llvmlite import ir

from lowgemm.kernels.framework.kernel import Kernel, call_intrinsic, const, i32, load, splat, vec

#: What a twin has otherwise.
_OF_TWIN = ("name", "features", "compiled_for")


def byte_sums(builder: ir.IRBuilder, acc: ir.Value, packed: ir.Value, side: str) -> ir.Value | None:
    """`Kernel.add_sums` for u8 (lhs) and s8 (rhs) where a group fills a register: a product with ones, one
    instruction for eight.
    """
    words = acc.type
    if 32 * words.count not in (128, 256, 512):
        return None
    ones, packed = const(words, 0x01010101), builder.bitcast(packed, words)
    operands = [packed, ones] if side == "lhs" else [ones, packed]
    return call_intrinsic(builder, f"llvm.x86.avx512.vpdpbusd.{32 * words.count}", words, [acc, *operands])


@dataclass(frozen=True)
class Vnni(Kernel):
    """Tile hooks on `vpdpbusd`; `lanes` (16 or 8) decides the register width."""

    lhs_type: str = "u8"
    rhs_type: str = "s8"
    kr: int = 4
    expect: ClassVar[str] = "vpdpbusd"
    adds_up: ClassVar[bool] = True
    defers_requantize: ClassVar[bool] = True

    @property
    def scatters(self) -> bool:
        """Where the lhs is unsigned, as the sums of pixels take bytes to be (`engine/rows.py`)."""
        return self.lhs_type == "u8"

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

    def add_sums(self, builder, acc, packed, side):
        """A product with ones, in registers of the kernel's own width."""
        return byte_sums(builder, acc, packed, side) if acc.type.count <= self.lanes else None

    def twin(self) -> Kernel | None:
        """The same tiles with the product in plain IR; only of the short registers, for LLVM needs long for
        the others.
        """
        if self.lanes > 8:
            return None
        same = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_TWIN}
        return _PlainVnni(**same, name=f"test_{self.name}_plain", features=())


class _PlainVnni(Vnni):
    """The product by its definition, for any CPU."""

    def product(self, builder, acc, lhs, rhs):
        """Four products of bytes, added in 32 bits."""

        def step(words: ir.Value, stored: str, k: int) -> ir.Value:
            top = builder.shl(words, const(words.type, 24 - 8 * k))
            return (builder.ashr if stored == "s8" else builder.lshr)(top, const(words.type, 24))

        total = acc[0]
        for k in range(4):
            left, right = step(lhs, self.lhs_type, k), step(rhs, self.rhs_type, k)
            total = builder.add(total, builder.mul(left, right))
        return (total,)

    def add_sums(self, builder, acc, packed, side):
        """Plain code, for any CPU."""
        return None
