"""What a microkernel computes, and how it is described: its contract, its panels, its tile hooks.

Start reading here if you port lowgemm to another CPU, then open `../x86_avx512vnni.py` for a description and
`unroll.py` for what is made of it.

Every microkernel computes, for `m` rows and `nv` adjacent packed rhs panels of `lanes` columns each,

    c[r, n] = sum_k lhs[r, k] * rhs[k, n]
              + row_compensation[r] + col_compensation[n] + (c[r, n] if add_c else 0)

modulo 2**32, for r < m and n < nv * lanes. `row_compensation` and `col_compensation` carry zero points, bias
and the compensation for flipped signs, so that a plain int32 product is stored once and never read again. If
`requant` is not null (only for kernels with `fuses_requantize`), the sums are scaled, clamped and stored as
bytes instead, and `ldc` counts bytes; `col` is the column of c[0, 0] in the parameters. The scale is fixed
when the kernel is compiled: that of the output routine `requantize_store8`, or that of
`float_requantize_store8`.

Its arguments, in this order (`ARGUMENTS`):

* `m`, `nv`: rows, and rhs panels side by side, `max_nv` at most but for a kernel of `any_panels`. `groups`:
  depth groups.
* `lhs`, `rhs`: pointers to the first packed panel, 64-byte aligned. `lhs_stride`, `rhs_stride`: bytes from
  one panel to the next.
* `c`: pointer to c[0, 0]. `ldc`: elements from one row of c to the next (bytes with `requant`).
* `row_compensation`, `col_compensation`: pointers to one int32 for each row, and for each column.
* `add_c`: 1 or 0. `requant`: null, or pointer to the record of the scale's output routine. `col`: see above.

The packed panels (one group is `kr` consecutive depth steps, here 4):

    lhs: panel of `mr` rows                          rhs: panel of `lanes` columns
    group 0: r0k0 r0k1 r0k2 r0k3 | r1k0 .. r1k3 | ...    group 0: n0k0 n0k1 n0k2 n0k3 | n1k0 .. n1k3 | ...
    group 1: r0k4 r0k5 r0k6 r0k7 | r1k4 .. r1k7 | ...    group 1: n0k4 n0k5 n0k6 n0k7 | n1k4 .. n1k7 | ...

Depth is padded to whole groups with packed zeros; rows and columns beyond the matrix repeat the last valid
one (their results are never stored).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from llvmlite import ir
from numba.extending import register_jitable

from lowgemm.jit.routine import signature
from lowgemm.kernels.framework.irtools import (  # noqa: F401 (kernels take these from here)
    at,
    call_intrinsic,
    const,
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

#: The type of an lhs whose sign the kernel is told.
EITHER = "u8 or s8"


#: Numbers of the list by which a scattered lhs is read, before those of the steps: see `Kernel.scatters`.
LIST_HEAD = 4
#: Fields that say what pays on a kernel.
_LEAST = ("least_rows", "least_depth", "least_work")


@register_jitable
def pays(k: Any, m: int, n: int, depth: int) -> bool:
    """Whether `m` x `depth` by `depth` x `n` pays on `k`, which has the fields of `_LEAST`. An element of the
    result counts as much work as a depth of 16.
    """
    return m >= k.least_rows and depth >= k.least_depth and m * n * (depth + 16) >= k.least_work


#: What runs 64-bit Arm programs on other CPUs, with every extension that it knows.
EMULATOR = ("qemu-aarch64", "-cpu", "max")


@dataclass(frozen=True)
class Target:
    """A CPU to compile for: names of LLVM, and the command that runs a program for it elsewhere, if there is
    one.
    """

    triple: str
    cpu: str
    features: str = ""
    emulator: tuple[str, ...] = ()


class TileLoop(NamedTuple):
    """What one step of the main tile's loop needs, from its instructions: cycles of its products, and bytes
    from L2.
    """

    products: int
    from_l2: int


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
        sign as it is. So does ``"u8 or s8"``, for the lhs of a kernel that emits its own loop: it is told the
        sign.
    row_tiles : tuple of int
        Heights of the tiles that are emitted, falling from `mr` to 1, so that every row count is covered;
        left out, `mr` and the powers of two below it.
    lhs_rows : int
        Rows that one `load_lhs` covers.
    unroll : int
        Depth groups in each turn of the loop, where the loop's own instructions cost issue slots.
    row_bytes : int
        0: the lhs is packed into panels. Otherwise the kernel reads it as rows, `lhs_stride` bytes apart,
        whose depth is padded with zeros to a multiple of this; a matrix that lies so already is not packed at
        all. Nor is a matrix of less depth, in whole groups: of its rows the kernel reads no more than these.
        It reads whole steps of the rhs too: up to `lanes * row_bytes` bytes from the start of the last step,
        which may lie behind the panel (they meet zeros of the lhs).
    fallback : str
        Name of a kernel on the same packed rhs, which takes products that would not pay here; "" if there is
        none.
    least_rows, least_depth, least_work : int
        What pays here: products with fewer rows, less depth or less work (see `pays`) go to `fallback`.
    compiled_for : Target or None
        A CPU that has what the kernel needs and little more: what ``--asm`` and the assembly tests compile
        for.
    macs_per_cycle : int
        Multiply-accumulates of a core in a cycle at most, for the estimate of `explain`, to which a factor of
        two does not matter.
    long_macs : int
        Multiply-accumulates of a product from which on it pays to wake a thread for it; 0: as
        `lowgemm/engine/threads.py` says for all kernels.
    block_rows, block_rows_with_stages, block_columns : int
        Rows of a block of the result at most; the same where output stages run on its tiles; and columns
        where the depth is split. What was measured for this kernel, and where, belongs beside the number; 0:
        as `lowgemm/engine/blocking.py` says for all kernels.
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
    row_bytes: int = 0
    fallback: str = ""
    least_rows: int = 1
    least_depth: int = 1
    least_work: int = 1
    compiled_for: Target | None = None
    macs_per_cycle: int = 64
    long_macs: int = 0
    block_rows: int = 0
    block_rows_with_stages: int = 0
    block_columns: int = 0

    #: Instruction that the depth loop must contain (tests read the assembly).
    expect: ClassVar[str] = ""
    #: Instruction that the loops of a fused store must contain, for kernels with `fuses_requantize`: on x86
    #: the product of 32 by 32 bits.
    expect_fused: ClassVar[str] = "vpmuldq"

    def __post_init__(self) -> None:
        if not self.row_tiles:
            halves = tuple(h for h in (8, 4, 2, 1) if h < self.mr)
            object.__setattr__(self, "row_tiles", (self.mr, *halves))
        tiles = list(self.row_tiles)
        if tiles[0] > self.mr or tiles[-1] != 1 or tiles != sorted(set(tiles), reverse=True):
            raise ValueError(f"row_tiles: expected heights falling from at most {self.mr} to 1, got {tiles}")
        self._check()

    def _check(self) -> None:
        """Refuse numbers that the packing or the loops cannot serve, and say why."""
        for name in ("mr", "lanes", "max_nv", "kr", "lhs_rows", "unroll", *_LEAST):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        by_rows = bool(self.row_bytes)
        lhs, rhs = (
            (EITHER,) if by_rows else ("u8", "s8", "s16"),
            ("u8", "s8") if by_rows else ("u8", "s8", "s16"),
        )
        for name, allowed in (("lhs_type", lhs), ("rhs_type", rhs)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: expected {' or '.join(map(repr, allowed))} (an lhs that is read as rows keeps "
                    "its sign, and only such), "
                    f"got {getattr(self, name)!r}"
                )
        if not by_rows and (self.lhs_type == "s16") != (self.rhs_type == "s16"):
            raise ValueError(
                "rhs_type: expected 16 bits on both sides or on neither, since groups of both have the same "
                "depth, got "
                f"{self.lhs_type} x {self.rhs_type}"
            )
        size = self.kr * (2 if self.rhs_type == "s16" else 1)
        if size not in (1, 2, 4, 8, 16):
            raise ValueError(
                "kr: expected groups of 1, 2, 4, 8 or 16 bytes, which the packing turns in registers of 16, "
                f"got {self.kr} steps of "
                f"{self.rhs_type}, {size} bytes"
            )
        if self.row_bytes % 64:
            raise ValueError(
                f"row_bytes: expected a multiple of 64, in which rows are padded, got {self.row_bytes}"
            )
        if not self.fallback and any(getattr(self, name) != 1 for name in _LEAST):
            raise ValueError(
                "fallback: expected a kernel for products of fewer rows, less depth or less work"
            )

    #: Whether `row_products` loads the panels itself, each time it needs one, because the registers are full.
    reloads_rhs: ClassVar[bool] = False

    #: Whether accumulators are plain sums, so that parts of the depth may have some of their own, which are
    #: added at the end.
    adds_up: ClassVar[bool] = False

    #: Whether a call may have any number of panels, whose columns a kernel that writes its own loop walks
    #: along itself; or `max_nv` at most.
    any_panels: ClassVar[bool] = False

    #: Whether the scaling of a tile runs inside the next one's depth loop, which needs four registers
    #: (`deferred.py`).
    defers_requantize: ClassVar[bool] = False

    @property
    def fuses_requantize(self) -> bool:
        """Whether the kernel can scale and store bytes itself: with 512-bit registers, which leave room for
        it.
        """
        return self.lanes == 16 and not hasattr(self, "compile")

    @property
    def scatters(self) -> bool:
        """Whether the microkernel can also be had for a scattered lhs, whose rows lie in pieces
        (`piece_bytes`).

        Then `lhs` points to a list of 64-bit numbers: the address of the first row; how many rows there are,
        in place of `m`; the address of 64-bit numbers that say which row of the result each of them is; the
        bytes of a piece; and for each piece how many bytes behind its row's address it lies. Rows are stored
        in their order: of several with one place the last counts.
        """
        return False

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

    @property
    def step_depth(self) -> int:
        """Depth that one turn of the loop multiplies (`unroll` aside)."""
        return self.row_bytes or self.kr

    def piece_bytes(self, run: int) -> int:
        """Bytes of a piece of a scattered lhs, a step of the depth, where as many as `run` bytes follow one
        another; 0: the kernel has none of which whole ones make a run.
        """
        size = self.kr * self.element_bytes
        return 0 if run % size else size

    @property
    def over_read(self) -> int:
        """Bytes behind a packed rhs that the kernel may read (see `row_bytes`)."""
        return self.lanes * self.row_bytes

    def takes(self, m: int, n: int, depth: int) -> bool:
        """Whether a product of so many rows and columns and so deep pays on this kernel."""
        return bool(pays(self, m, n, depth))

    def tile_loop(self, depth: int, l1: int) -> TileLoop | None:
        """A step of the main tile (`mr` x `nr`, `step_depth` deep) in a product of that depth, on a CPU with
        so much L1; None: not modelled.

        `explain` predicts the speed of a product from it.
        """
        return None

    def refusal(self) -> str:
        """Why this process may not run the kernel although the CPU could, or "": asks the operating system
        where that must be asked.
        """
        return ""

    def twin(self) -> Kernel | None:
        """The same program for any CPU, on a machine in software, or None; it needs to be registered."""
        return None

    def emit(
        self,
        builder: ir.IRBuilder,
        args: dict[str, ir.Value],
        lhs_signed: bool,
        scaling: Any,
        scattered: bool = False,
    ) -> bool:
        """Emit the whole microkernel, for a kernel that writes its loop itself; false: `unroll.py` does, from
        the hooks below.

        `scaling` is the scale of `requant.py` that it does where `requant` is not null. `scattered`: see
        `scatters`.
        """
        return False

    def emit_products(self, builder: ir.IRBuilder, steps: ir.Value, source: ir.Value) -> bool:
        """Emit `steps` turns of the main tile's products on registers alone, for a kernel that writes its
        loop itself (`tools/peak.py`).

        `source` has 1 KiB of numbers to fill the registers with.
        """
        return False

    # ---- hooks: a kernel overrides load_lhs, load_rhs and product, others where it must --------------------
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
