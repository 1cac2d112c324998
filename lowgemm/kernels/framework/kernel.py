"""What a microkernel computes, and how it is described: its contract, its panels, its tile hooks.

Start reading here if you port lowgemm to another CPU, then open `../x86_avx512vnni.py` for a description and `unroll.py` for what is made
of it.

Every microkernel computes, for `m` rows and `nv` adjacent packed rhs panels of `lanes` columns each,

    c[r, n] = sum_k lhs[r, k] * rhs[k, n] + row_compensation[r] + col_compensation[n] + (c[r, n] if add_c else 0)

modulo 2**32, for r < m and n < nv * lanes. `row_compensation` and `col_compensation` carry zero points, bias and the
compensation for flipped signs, so that a plain int32 product is stored once and never read again. If `requant` is
not null (only for kernels with `fuses_requantize`), the sums are scaled, clamped and stored as bytes instead, by the
parameters of the output routine `requantize_store8`, and `ldc` counts bytes; `col` is the column of c[0, 0] in them.

Its arguments, in this order (`ARGUMENTS`):

* `m`, `nv`: rows, and rhs panels side by side. `groups`: depth groups.
* `lhs`, `rhs`: pointers to the first packed panel, 64-byte aligned. `lhs_stride`, `rhs_stride`: bytes from one panel to the next.
* `c`: pointer to c[0, 0]. `ldc`: elements from one row of c to the next (bytes with `requant`).
* `row_compensation`, `col_compensation`: pointers to one int32 for each row, and for each column.
* `add_c`: 1 or 0. `requant`: null, or pointer to the record of `requantize_store8`. `col`: see above.

The packed panels (one group is `kr` consecutive depth steps, here 4):

    lhs: panel of `mr` rows                          rhs: panel of `lanes` columns
    group 0: r0k0 r0k1 r0k2 r0k3 | r1k0 .. r1k3 | ...    group 0: n0k0 n0k1 n0k2 n0k3 | n1k0 .. n1k3 | ...
    group 1: r0k4 r0k5 r0k6 r0k7 | r1k4 .. r1k7 | ...    group 1: n0k4 n0k5 n0k6 n0k7 | n1k4 .. n1k7 | ...

Depth is padded to whole groups with packed zeros; rows and columns beyond the matrix repeat the last valid
one (their results are never stored).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llvmlite import ir

from lowgemm.jit.routine import signature
from lowgemm.kernels.framework.irtools import (  # noqa: F401 (kernels take these from here)
    at,
    call_intrinsic,
    const,
    i1,
    i8,
    i16,
    i32,
    i64,
    load,
    shuffle,
    splat,
    store,
    vec,
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """Description of one microkernel: five numbers and three hooks.

    Attributes
    ----------
    name : str
        Registry name, also the value of ``LOWGEMM_KERNEL`` that forces it.
    features : tuple of str
        LLVM target features that the emitted instructions need.
    mr : int
        Rows of a packed lhs panel, and of the main tile.
    lanes : int
        Columns of a packed rhs panel.
    max_nv : int
        Panels side by side in the main tile, which so has ``nr = max_nv * lanes`` columns.
    kr : int
        Consecutive depth steps packed together for each row or column.
    lhs_type, rhs_type : str
        ``"u8"``, ``"s8"`` or ``"s16"``: how a packed element is stored. An operand of the other 8-bit sign
        has its top bit flipped while it is packed and its zero point moved by 128; ``"s16"`` holds either
        sign as it is.
    row_tiles : tuple of int
        Heights of the tiles that are emitted, falling from `mr` to 1, so that every row count is covered; left
        out, `mr` and the powers of two below it.
    lhs_rows : int
        Rows that one `load_lhs` covers.
    unroll : int
        Depth groups in each turn of the loop, where the loop's own instructions cost issue slots.
    block_rows, block_rows_with_stages, block_columns : int
        Rows of a block of the result at most; the same where output stages run on its tiles; and columns where the depth is split. What
        was measured for this kernel, and where, belongs beside the number; 0: as `lowgemm/engine/blocking.py` says for all kernels.
    """

    name: str
    features: tuple[str, ...]
    mr: int
    lanes: int
    max_nv: int
    kr: int
    lhs_type: str = "u8"
    rhs_type: str = "s8"
    row_tiles: tuple[int, ...] = ()
    lhs_rows: int = 1
    unroll: int = 1
    block_rows: int = 0
    block_rows_with_stages: int = 0
    block_columns: int = 0

    #: Instruction that the depth loop must contain (tests read the assembly).
    expect: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.row_tiles:
            halves = tuple(h for h in (8, 4, 2, 1) if h < self.mr)
            object.__setattr__(self, "row_tiles", (self.mr, *halves))
        tiles = list(self.row_tiles)
        if tiles[0] > self.mr or tiles[-1] != 1 or tiles != sorted(set(tiles), reverse=True):
            raise ValueError(f"row_tiles: expected heights falling from at most {self.mr} to 1, got {tiles}")

    #: Whether `row_products` loads the panels itself, each time it needs one, because the registers are full.
    reloads_rhs: ClassVar[bool] = False

    #: Whether the scaling of a tile runs inside the next one's depth loop, which needs four registers (`deferred.py`).
    defers_requantize: ClassVar[bool] = False

    @property
    def fuses_requantize(self) -> bool:
        """Whether the kernel can scale and store bytes itself: with 512-bit registers, which leave room for it."""
        return self.lanes == 16 and not hasattr(self, "compile")

    @property
    def nr(self) -> int:
        """Columns of the main tile."""
        return self.lanes * self.max_nv

    @property
    def element_bytes(self) -> int:
        """Bytes of a packed element."""
        return 2 if self.lhs_type == "s16" else 1

    @property
    def lhs_group_bytes(self) -> int:
        """Bytes of one depth group of a packed lhs panel."""
        return self.mr * self.kr * self.element_bytes

    @property
    def rhs_group_bytes(self) -> int:
        """Bytes of one depth group of a packed rhs panel."""
        return self.lanes * self.kr * self.element_bytes

    # ---- hooks: a kernel overrides load_lhs, load_rhs and product, others where it must --------------------------------------------------------
    def zero(self) -> tuple[ir.Value, ...]:
        """Accumulator registers of one `load_lhs` and one panel, cleared."""
        return (const(vec(i32, self.lanes), 0),)

    def at_height(self, mr: int) -> Kernel:
        """Kernel whose hooks make the tiles of `mr` rows, on the same panels."""
        return self

    def load_lhs(self, builder: ir.IRBuilder, address: ir.Value) -> Any:
        """Load the depth group of `lhs_rows` rows, in the form that `product` wants (usually broadcast)."""
        raise NotImplementedError

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> Any:
        """Load one depth group of one rhs panel."""
        raise NotImplementedError

    def product(self, builder: ir.IRBuilder, acc: tuple[ir.Value, ...], lhs: Any, rhs: Any) -> tuple:
        """Add the product of one lhs and one rhs group to the accumulators."""
        raise NotImplementedError

    def row_products(self, builder: ir.IRBuilder, accs: list[tuple], lhs: Any, rhs: list) -> list[tuple]:
        """`product` for every panel of the tile; a kernel overrides it to order them by itself.

        `rhs` holds what `load_rhs` gave, or with `reloads_rhs` functions that call it.
        """
        return [self.product(builder, acc, lhs, panel) for acc, panel in zip(accs, rhs, strict=True)]

    def add_sums(self, builder: ir.IRBuilder, acc: ir.Value, packed: ir.Value, side: str) -> ir.Value | None:
        """For packing: `acc` plus the sum of each row's or column's elements in a packed group.

        None leaves it to shifts and additions.
        """
        return None

    def finalize(self, builder: ir.IRBuilder, acc: tuple[ir.Value, ...]) -> list[ir.Value]:
        """Accumulators of one `load_lhs` and one panel, as a vector of `lanes` int32 for each row."""
        return [acc[0]]


ARGUMENTS = (
    "m", "nv", "groups", "lhs", "lhs_stride", "rhs", "rhs_stride",
    "c", "ldc", "row_compensation", "col_compensation", "add_c", "requant", "col",
)  # fmt: skip
POINTERS = frozenset({"lhs", "rhs", "c", "row_compensation", "col_compensation", "requant"})
#: Signature of every microkernel: pointers as void*, everything else a 64-bit integer.
SIGNATURE = signature("".join("p" if a in POINTERS else "n" for a in ARGUMENTS))
