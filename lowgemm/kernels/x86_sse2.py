"""SSE2, the x86-64 baseline: `pmaddwd` on 128 bits, two 16-bit products a lane, any pair of signs
(`pmaddwd.py`).

    acc[i][n] += lhs[r, 2g] * rhs[2g, n] + lhs[r, 2g + 1] * rhs[2g + 1, n]
                 with r = (n + i) mod 4, i = 0 .. 3

    lhs panel, group g (16 bytes)                  rhs panel, group g (16 bytes; elements of 16 bits)
    r0: k0 k1 | r1: k0 k1 | ... r3                 n0: k0 k1 | n1: k0 k1 | ... n3

SSE has no broadcasting load: a row in every lane costs a shuffle, which competes with the products for the
vector ports. So four rows are loaded at once and turned by one lane three times, which pairs each row with
each column: 3 shuffles for 12 products, where broadcasting takes 6. The accumulators hold diagonals of 4 x 4
blocks; `finalize` sorts them into rows. Tile 4 x 12: 12 accumulators, the turned rows and a product. The
three rhs vectors no longer fit the 16 registers, so they are loaded again for each turn, which costs nothing:
two-operand instructions would need a copy of the register otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llvmlite import ir

from lowgemm.kernels.framework.kernel import Kernel, Target, const, i16, i32, load, shuffle, vec
from lowgemm.kernels.pmaddwd import Pmaddwd


@dataclass(frozen=True)
class Turning(Pmaddwd):
    """Tile hooks on `pmaddwd` with four rows in a register."""

    lhs_rows: int = 4
    reloads_rhs: ClassVar[bool] = True

    def at_height(self, mr: int) -> Kernel:
        """Fewer than four rows are broadcast one by one, on the same panels."""
        if mr % self.lhs_rows == 0:
            return self
        fields = {name: getattr(self, name) for name in ("name", "features", "mr", "lanes", "max_nv")}
        return Pmaddwd(**fields)

    def zero(self) -> tuple[ir.Value, ...]:
        """One register for each turn."""
        return (const(vec(i32, 4), 0),) * 4

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        """Two 16-bit values of each of four rows."""
        return load(builder, vec(i16, 8), address, 16)

    def row_products(self, builder, accs, lhs, rhs):
        """All panels by the rows as they are, then turned once, twice, three times."""
        accs = [list(acc) for acc in accs]
        for turn in range(4):
            if turn:
                words = builder.bitcast(lhs, vec(i32, 4))
                lhs = builder.bitcast(shuffle(builder, words, None, [1, 2, 3, 0]), lhs.type)
            # An empty instruction that may write memory: LLVM would hold the rhs in registers, and spill,
            # otherwise.
            same = ir.FunctionType(lhs.type, [lhs.type])
            lhs = builder.asm(same, "", "=x,0,~{memory}", [lhs], side_effect=True)
            for acc, load_again in zip(accs, rhs, strict=True):
                acc[turn] = self.product(builder, (acc[turn],), lhs, load_again())[0]
        return [tuple(acc) for acc in accs]

    def finalize(self, builder, acc):
        """Row r has column n from the register of turn (r - n) mod 4."""
        rows = []
        for r in range(4):
            turns = [acc[(r - n) % 4] for n in range(4)]
            left = shuffle(builder, turns[0], turns[1], [0, 5, 0, 5])
            right = shuffle(builder, turns[2], turns[3], [2, 7, 2, 7])
            rows.append(shuffle(builder, left, right, [0, 1, 4, 5]))
        return rows


KERNEL = Turning(
    name="x86_sse2",
    features=("sse2",),
    mr=4,
    lanes=4,
    max_nv=3,
    compiled_for=Target("x86_64-unknown-linux-gnu", "x86-64"),
)
