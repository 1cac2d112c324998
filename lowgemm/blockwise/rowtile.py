"""A few rows by one panel of codes: decoded in registers, multiplied there, scaled and added to float32 sums.

Expanding a panel into memory first costs a store and a load for every 64 levels, which a few rows cannot
share. Here a register of codes becomes levels by one byte look-up for each part of the byte (two for 4-bit
codes, four for 2-bit ones), and each is an operand of the kernel's own product. All rows of a tile use the
decoded register before the next one is loaded, so memory is read once, from front to end.

On `vpdpbusd`, which multiplies unsigned by signed bytes, the levels are the unsigned side, 128 higher than
they are, and the rows the signed one: what that adds is 128 times the sum of a row's group, which is known
when the row is copied. Sums of the weights, which would have to be read from memory like the codes, are
needed only for a zero point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.blockwise.levels import STEP_BYTES
from lowgemm.jit.target import target
from lowgemm.kernels import Kernel, by_id
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i16,
    i32,
    i64,
    load,
    prefetch,
    repeat,
    shuffle,
    splat,
    store,
    vec,
)

#: Rows of a tile, the tallest first: 16 sums, a table, a mask and the levels fit 32 registers.
HEIGHTS = (16, 8, 4, 2, 1)
#: The same with 16 registers.
FEW_REGISTERS = (8, 4, 2, 1)
#: How far ahead of the codes in use memory is asked for, into the second-level cache. On Sapphire Rapids, 1 x
#: 4096 x 4096, INT4 in groups of 128 that no cache held: 0.58 ms; 2048 bytes ahead 0.61, into the first-level
#: cache 0.63, not at all 0.77.
AHEAD = 8192
#: Products of a turn of the loop at most where it has two steps.
PRODUCTS_OF_A_TURN = 4
#: What the levels are higher where they are the unsigned side.
RAISED = 128
_f32 = ir.FloatType()
#: Byte look-ups of 16 entries by the bytes of a register, and the feature that each needs.
_LOOK_UP = {
    64: ("llvm.x86.avx512.pshuf.b.512", "avx512bw"),
    32: ("llvm.x86.avx2.pshuf.b", "avx2"),
    16: ("llvm.x86.ssse3.pshuf.b.128", "ssse3"),
}
_ARM_LOOK_UP = ("llvm.aarch64.neon.tbl1.v16i8", "neon")
#: A look-up of 64 entries, which has no use for an index's highest two bits. In a table that repeats the
#: levels, bits of other codes do no harm either, so that nothing is masked: three instructions instead of
#: five for a register of 4-bit codes.
_WIDE_LOOK_UP = ("llvm.x86.avx512.permvar.qi.512", "avx512vbmi")


def look_up(width: int) -> tuple[str, str] | None:
    """LLVM's name of the byte look-up for registers of `width` bytes and its feature, if the target
    has it.
    """
    has = target()[1]
    if width == 64 and _WIDE_LOOK_UP[1] in has:
        return _WIDE_LOOK_UP
    found = _ARM_LOOK_UP if width == 16 and "neon" in has else _LOOK_UP.get(width)
    return found if found is not None and found[1] in has else None


def decodes(kernel: Kernel) -> bool:
    """Whether the kernel can take levels from registers: it has tile hooks for a single row, and the target a
    byte look-up.
    """
    one = kernel.at_height(1)
    return (
        not hasattr(kernel, "compile") and one.lhs_rows == 1 and look_up(kernel.rhs_group_bytes) is not None
    )


def raises(kernel: Kernel) -> bool:
    """Whether the levels are the unsigned side of the product, `RAISED` higher."""
    return (kernel.lhs_type, kernel.rhs_type) == ("u8", "s8")


def heights(kernel: Kernel) -> tuple[int, ...]:
    """Heights of the tiles, falling."""
    return HEIGHTS if kernel.rhs_group_bytes == 64 or look_up(16) == _ARM_LOOK_UP else FEW_REGISTERS


def least_rows(height: int) -> int:
    """Rows from which a tile of this height is taken: three quarters of it, since a smaller tile decodes as
    much again.
    """
    return -(-3 * height // 4)


def covered(rows: int, kernel: Kernel) -> int:
    """Rows that the tiles for `rows` rows reach over, some of them empty.

    Examples
    --------
    >>> from lowgemm.kernels import by_name
    >>> [covered(m, by_name("x86_avx512vnni")) for m in (1, 3, 5, 7, 12, 17)]
    [1, 4, 5, 8, 16, 17]
    """
    done = 0
    for height in heights(kernel):
        while rows - done >= least_rows(height):
            done += height
    return done


def _operand_of(kernel: Kernel) -> ir.Type:
    """Type of the rhs registers that the kernel's product takes."""
    b = ir.IRBuilder(
        ir.Function(
            ir.Module(), ir.FunctionType(ir.VoidType(), [i8.as_pointer()]), "load"
        ).append_basic_block()
    )
    return kernel.load_rhs(b, b.function.args[0]).type


class _Tile:
    """Emits tiles: some rows by a panel of codes, along the depth of one group."""

    def __init__(
        self,
        kernel: Kernel,
        bits: int,
        zero_points: bool,
        factors: bool,
        b: ir.IRBuilder,
        args: dict[str, ir.Value],
    ) -> None:
        self.k, self.bits, self.zero_points, self.factors = kernel.at_height(1), bits, zero_points, factors
        self.b, self.args = b, args
        self.width = kernel.rhs_group_bytes
        self.bytes = vec(i8, self.width)
        self.operand = _operand_of(self.k)
        found = look_up(self.width)
        assert found is not None
        self.name, self.masks = found[0], found != _WIDE_LOOK_UP
        entries = [i % 16 if self.masks else i % 2**bits for i in range(self.width)]
        self.table = shuffle(b, load(b, vec(i8, 16), args["levels"]), None, entries)

    def _levels(self, x: ir.Value, field: int) -> list[ir.Value]:
        """Levels of one part of each byte of codes, as operands of the kernel's product."""
        b, k = self.b, self.k
        if field:
            words = b.bitcast(x, vec(i16, self.width // 2))
            x = b.bitcast(b.lshr(words, const(words.type, self.bits * field)), self.bytes)
        if self.masks:
            x = b.and_(x, const(self.bytes, 2**self.bits - 1))
        found = call_intrinsic(b, self.name, self.bytes, [self.table, x])
        if k.element_bytes == 2:
            half = self.width // 2
            parts = [shuffle(b, found, None, list(range(i, i + half))) for i in (0, half)]
            return [b.sext(p, vec(i16, half)) for p in parts]
        return [b.bitcast(found, self.operand)]

    def _product(self, acc: tuple, left: Any, levels: Any) -> tuple:
        if raises(self.k):
            return self.k.product(self.b, acc, levels, left)
        return self.k.product(self.b, acc, left, levels)

    def emit(self, rows: int, row: ir.Value, panel: ir.Value) -> None:
        """The depth of one group, then the sums of the tile: of `rows` rows from `row` on and of the panel of
        this number.
        """
        b, k, args = self.b, self.k, self.args
        fields = 8 // self.bits
        loads = STEP_BYTES // self.width
        each = 2 if k.element_bytes == 2 else 1  # products of a look-up
        products = fields * loads * each  # of each row in a step
        # A product waits four or five cycles for the one before it into the same sum. So two steps that have
        # no more than two products each are one turn (2 % of the time of one row).
        together = 2 if rows * products <= PRODUCTS_OF_A_TURN // 2 else 1
        chains = max(1, min(together * products, 8 // rows))
        step_bytes = products * k.kr * k.element_bytes  # of a row
        lhs = at(b, args["lhs"], b.mul(row, args["lhs_stride"]))
        codes = at(b, args["codes"], b.mul(panel, args["panel_bytes"]))
        starts = [acc for r in range(rows) for acc in self._starts(chains, self._plus(row, r), panel)]
        registers = len(k.zero())

        def one(step: ir.Value, values: list[ir.Value], first: int = 0) -> list[ir.Value]:
            """A step; its first product goes into chain `first`."""
            now = [tuple(values[i : i + registers]) for i in range(0, len(values), registers)]
            left_at = at(b, lhs, b.mul(step, const(i64, step_bytes)))
            source = at(b, codes, b.mul(step, const(i64, STEP_BYTES)))
            prefetch(b, at(b, source, AHEAD))
            for i in range(loads):
                x = load(b, self.bytes, at(b, source, i * self.width), self.width)
                for field in range(fields):
                    for j, levels in enumerate(self._levels(x, field)):
                        # where in the depth of the step: a field holds STEP_BYTES levels, a load `width` of
                        # them
                        place = (field * loads + i) * each + j
                        for r in range(rows):
                            at_row = at(b, left_at, b.mul(args["lhs_stride"], const(i64, r)))
                            left = k.load_lhs(b, at(b, at_row, place * k.kr * k.element_bytes))
                            c = r * chains + (first + place) % chains
                            now[c] = self._product(now[c], left, levels)
            return [value for acc in now for value in acc]

        def turn(number: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            step = b.mul(number, const(i64, together))
            for i in range(together):
                values = one(b.add(step, const(i64, i)), values, i * products)
            return values

        values = [value for acc in starts for value in acc]
        # panels are padded to 16 depth steps, which are two steps here where two are one turn
        turns = args["steps"] if together == 1 else b.lshr(args["steps"], const(i64, 1))
        values = repeat(b, turns, values, turn)
        sums = [tuple(values[i : i + registers]) for i in range(0, len(values), registers)]
        for r in range(rows):
            self._add(panel, self._plus(row, r), sums[r * chains : (r + 1) * chains])

    def _plus(self, row: ir.Value, r: int) -> ir.Value:
        return self.b.add(row, const(i64, r))

    def _of_panel(self, name: str, panel: ir.Value, element_bytes: int = 4) -> ir.Value:
        """Where a panel's elements of an argument begin that has one for each column."""
        return at(self.b, self.args[name], self.b.mul(panel, const(i64, element_bytes * self.k.lanes)))

    @property
    def _starts_with_terms(self) -> bool:
        """Whether a sum is one register, which may begin with the terms: an instruction less for each row and
        group.
        """
        return len(self.k.zero()) == 1

    def _terms(self, row: ir.Value, panel: ir.Value) -> ir.Value:
        b, args, lanes = self.b, self.args, self.k.lanes
        words, place = vec(i32, lanes), b.mul(row, const(i64, 4))
        one = load(b, i32, at(b, args["row_terms"], place), 4)
        terms = b.add(load(b, words, self._of_panel("col_terms", panel), 4), splat(b, one, lanes))
        if not self.zero_points:
            return terms
        total = splat(b, load(b, i32, at(b, args["row_sums"], place), 4), lanes)
        zeros = b.sext(load(b, vec(i8, lanes), self._of_panel("zeros", panel, 1)), words)
        return b.sub(terms, b.mul(zeros, total))

    def _starts(self, chains: int, row: ir.Value, panel: ir.Value) -> list[tuple]:
        starts = [self.k.zero()] * chains
        if self._starts_with_terms:
            starts[0] = (self._terms(row, panel),)
        return starts

    def _add(self, panel: ir.Value, row: ir.Value, sums: list[tuple]) -> None:
        """``total = total + float32(sum) * scale``, each operation rounded, of a row and a panel; with
        factors the scale is that of the column times that of the row.
        """
        b, k, args = self.b, self.k, self.args
        floats = vec(_f32, k.lanes)
        values = [k.finalize(b, acc)[0] for acc in sums]
        value = values[0] if self._starts_with_terms else b.add(values[0], self._terms(row, panel))
        for other in values[1:]:
            value = b.add(value, other)
        place = at(b, self._of_panel("totals", panel), b.mul(row, args["total_stride"]))
        scales = load(b, floats, self._of_panel("scales", panel), 4)
        if self.factors:
            factor = load(b, _f32, at(b, args["row_factors"], b.mul(row, const(i64, 4))), 4)
            scales = b.fmul(scales, splat(b, factor, k.lanes))
        store(b, b.fadd(load(b, floats, place, 4), b.fmul(b.sitofp(value, floats), scales)), place, 4)


#: What `multiply_codes` takes after its constants.
ARGUMENTS = (
    "rows", "panels", "codes", "panel_bytes", "steps", "levels", "lhs", "lhs_stride", "row_terms",
    "col_terms", "scales", "totals", "total_stride", "row_sums", "zeros", "row_factors",
)  # fmt: skip
_POINTERS = {
    "codes", "levels", "lhs", "row_terms", "col_terms", "scales", "totals", "row_sums", "zeros",
    "row_factors",
}  # fmt: skip
_TYPES = tuple(types.voidptr if a in _POINTERS else types.intp for a in ARGUMENTS)


@intrinsic(prefer_literal=True)
def multiply_codes(typingctx, kernel_id, bits, zero_points, factors, args):
    """``totals[r] += float32(sum of group) * scales`` for all rows and the panels of a chunk, codes of one
    group.

    `kernel_id`, the number of a kernel in the registry, and the next three are constants. `args` is a tuple
    as `ARGUMENTS` says: rows and panels; packed codes, bytes from a panel to the next, steps of a panel, the
    level of each code; rows of the lhs and their stride in bytes; int32 for each row and for each column that
    are added to the integer sums; float32 scales; float32 sums and the stride of their rows in bytes. With
    `zero_points` also the int32 sum of each row and an int8 zero point of each column, whose product is
    subtracted from the integer sum. With `factors` also a float32 factor of each row, which the scales are
    multiplied by. Of all that is by rows there are as many as `covered` says.
    """
    kernel = by_id(kernel_id.literal_value)
    width, with_zeros, with_factors = (
        bits.literal_value,
        bool(zero_points.literal_value),
        bool(factors.literal_value),
    )

    def codegen(context, builder, signature, values):
        items = cgutils.unpack_tuple(builder, values[4])
        named = dict(zip(ARGUMENTS, items, strict=True))
        b = builder
        tile = _Tile(kernel, width, with_zeros, with_factors, b, named)

        def multiply(height: int, row: ir.Value) -> None:
            with cgutils.for_range(b, named["panels"]) as loop:
                tile.emit(height, row, loop.index)

        row: ir.Value = const(i64, 0)
        for height in heights(kernel):
            row = _while_left(b, named["rows"], row, height, multiply)
        return context.get_dummy_value()

    return types.void(kernel_id, bits, zero_points, factors, types.Tuple(_TYPES)), codegen


def _while_left(
    b: ir.IRBuilder, rows: ir.Value, row: ir.Value, height: int, emit: Callable[[int, ir.Value], None]
) -> ir.Value:
    """Tiles of one height, from a row on, as long as `least_rows` of it are left; the row after them."""
    came = b.block
    head, body, after = (b.function.append_basic_block(f"{n}_{height}") for n in ("rows", "tile", "after"))
    b.branch(head)
    b.position_at_end(head)
    now = b.phi(i64)
    now.add_incoming(row, came)
    b.cbranch(b.icmp_signed(">=", b.sub(rows, now), const(i64, least_rows(height))), body, after)
    b.position_at_end(body)
    emit(height, now)
    now.add_incoming(b.add(now, const(i64, height)), b.block)
    b.branch(head)
    b.position_at_end(after)
    return now
