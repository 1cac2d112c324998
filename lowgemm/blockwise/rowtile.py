"""A few rows by one panel of codes: decoded in registers, multiplied there, scaled and added to float32 sums.

Expanding a panel into memory first costs a store and a load for every 64 levels, which a few rows cannot share. Here a register of
codes becomes levels by one byte look-up for each part of the byte (two for 4-bit codes, four for 2-bit ones), and each is an operand
of the kernel's own product. All rows of a tile use the decoded register before the next one is loaded, so memory is read once, from
front to end.

On `vpdpbusd`, which multiplies unsigned by signed bytes, the levels are the unsigned side, 128 higher than they are, and the rows the
signed one: what that adds is 128 times the sum of a row's group, which is known when the row is copied. Sums of the weights, which
would have to be read from memory like the codes, are needed only for a zero point.
"""

from __future__ import annotations

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
    shuffle,
    splat,
    store,
    vec,
)

#: Rows of a tile, the tallest first: 16 sums, a table, a mask and the levels fit 32 registers.
HEIGHTS = (16, 8, 4, 2, 1)
#: The same with 16 registers.
FEW_REGISTERS = (8, 4, 2, 1)
#: How far ahead of the codes in use memory is asked for, into the second-level cache. On Sapphire Rapids, 1 x 4096 x 4096, INT4 in
#: groups of 128 that no cache held: 0.58 ms; 2048 bytes ahead 0.61, into the first-level cache 0.63, not at all 0.77.
AHEAD = 8192
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


def look_up(width: int) -> tuple[str, str] | None:
    """LLVM's name of the byte look-up for registers of `width` bytes and its feature, if the target has it."""
    has = target()[1]
    found = _ARM_LOOK_UP if width == 16 and "neon" in has else _LOOK_UP.get(width)
    return found if found is not None and found[1] in has else None


def decodes(kernel: Kernel) -> bool:
    """Whether the kernel can take levels from registers: it has tile hooks for a single row, and the target a byte look-up."""
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
    """Rows from which a tile of this height is taken: three quarters of it, since a smaller tile decodes as much again."""
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


class _Tile:
    """Emits a tile of `rows` rows by a panel."""

    def __init__(self, kernel: Kernel, bits: int, b: ir.IRBuilder, args: dict[str, ir.Value]) -> None:
        self.k, self.bits, self.b, self.args = kernel.at_height(1), bits, b, args
        self.width = kernel.rhs_group_bytes
        self.bytes = vec(i8, self.width)
        found = look_up(self.width)
        assert found is not None
        self.name = found[0]
        self.arm = found == _ARM_LOOK_UP
        self.table = shuffle(
            b, load(b, vec(i8, 16), args["levels"]), None, list(range(16)) * (self.width // 16)
        )

    def _levels(self, x: ir.Value, field: int) -> list[ir.Value]:
        """Levels of one part of each byte of codes, as operands of the kernel's product."""
        b, k = self.b, self.k
        if field:
            words = b.bitcast(x, vec(i16, self.width // 2))
            x = b.bitcast(b.lshr(words, const(words.type, self.bits * field)), self.bytes)
        index = b.and_(x, const(self.bytes, 2**self.bits - 1))
        order = [self.table, index]
        found = call_intrinsic(b, self.name, self.bytes, order)
        if k.element_bytes == 2:
            half = self.width // 2
            parts = [shuffle(b, found, None, list(range(i, i + half))) for i in (0, half)]
            return [b.sext(p, vec(i16, half)) for p in parts]
        return [b.bitcast(found, vec(i32, k.lanes)) if raises(k) else found]

    def _product(self, acc: tuple, left: Any, levels: Any) -> tuple:
        if raises(self.k):
            return self.k.product(self.b, acc, levels, left)
        return self.k.product(self.b, acc, left, levels)

    def emit(self, rows: int, row: ir.Value) -> None:
        """The depth of one group, then the sums of the tile."""
        b, k, args, fn = self.b, self.k, self.args, self.b.function
        fields = 8 // self.bits
        loads = STEP_BYTES // self.width
        each = 2 if k.element_bytes == 2 else 1  # products of a look-up
        products = fields * loads * each  # of each row in a step
        # a product waits four or five cycles for the one before it into the same sum
        chains = max(1, min(products, 8 // rows))
        step_bytes = products * k.kr * k.element_bytes  # of a row
        lhs = at(b, args["lhs"], b.mul(row, args["lhs_stride"]))
        starts = self._starts(rows, chains, row)
        entry, body, done = b.block, fn.append_basic_block("step"), fn.append_basic_block("stepped")
        b.branch(body)
        b.position_at_end(body)
        step = b.phi(i64)
        step.add_incoming(const(i64, 0), entry)
        phis = [tuple(b.phi(a.type) for a in acc) for acc in starts]
        for phi, start in zip(phis, starts, strict=True):
            for p, s in zip(phi, start, strict=True):
                p.add_incoming(s, entry)
        now: list[tuple] = list(phis)
        source = at(b, args["codes"], b.mul(step, const(i64, STEP_BYTES)))
        left_at = at(b, lhs, b.mul(step, const(i64, step_bytes)))
        call_intrinsic(
            b, "llvm.prefetch.p0", ir.VoidType(),
            [at(b, source, AHEAD), const(i32, 0), const(i32, 2), const(i32, 1)],
        )  # fmt: skip
        for i in range(loads):
            x = load(b, self.bytes, at(b, source, i * self.width), self.width)
            for field in range(fields):
                for j, levels in enumerate(self._levels(x, field)):
                    # where in the depth of the step: a field holds STEP_BYTES levels, a load `width` of them
                    place = (field * loads + i) * each + j
                    for r in range(rows):
                        left = k.load_lhs(
                            b,
                            at(b, at(b, left_at, place * k.kr * k.element_bytes), self._row(r)),
                        )
                        c = r * chains + place % chains
                        now[c] = self._product(now[c], left, levels)
        following = b.add(step, const(i64, 1), flags=["nuw", "nsw"])
        step.add_incoming(following, body)
        for phi, after in zip(phis, now, strict=True):
            for p, a in zip(phi, after, strict=True):
                p.add_incoming(a, body)
        b.cbranch(b.icmp_signed("<", following, args["steps"]), body, done)
        b.position_at_end(done)
        self._add(rows, row, [now[r * chains : (r + 1) * chains] for r in range(rows)])

    def _row(self, r: int) -> ir.Value:
        return self.b.mul(self.args["lhs_stride"], const(i64, r))

    @property
    def _starts_with_terms(self) -> bool:
        """Whether a sum is one register, which may begin with the terms: an instruction less for each row and group."""
        return len(self.k.zero()) == 1

    def _terms(self, at_row: ir.Value) -> ir.Value:
        b, args = self.b, self.args
        one = load(b, i32, at(b, args["row_terms"], b.mul(at_row, const(i64, 4))), 4)
        columns = load(b, vec(i32, self.k.lanes), args["col_terms"], 4)
        return b.add(columns, splat(b, one, self.k.lanes))

    def _starts(self, rows: int, chains: int, row: ir.Value) -> list[tuple]:
        starts = [self.k.zero()] * (rows * chains)
        if self._starts_with_terms:
            for r in range(rows):
                starts[r * chains] = (self._terms(self.b.add(row, const(i64, r))),)
        return starts

    def _add(self, rows: int, row: ir.Value, sums: list[list[tuple]]) -> None:
        """``total = total + float32(sum) * scale``, each operation rounded."""
        b, k, args = self.b, self.k, self.args
        floats = vec(_f32, k.lanes)
        scales = load(b, floats, args["scales"], 4)
        for r in range(rows):
            at_row = b.add(row, const(i64, r))
            values = [k.finalize(b, acc)[0] for acc in sums[r]]
            value = values[0] if self._starts_with_terms else b.add(values[0], self._terms(at_row))
            for other in values[1:]:
                value = b.add(value, other)
            place = at(b, args["totals"], b.mul(at_row, args["total_stride"]))
            added = b.fmul(b.sitofp(value, floats), scales)
            store(b, b.fadd(load(b, floats, place, 4), added), place, 4)


#: What `multiply_codes` takes after its two constants.
ARGUMENTS = (
    "rows", "codes", "steps", "levels", "lhs", "lhs_stride", "row_terms", "col_terms", "scales", "totals", "total_stride",
)  # fmt: skip
_POINTERS = {"codes", "levels", "lhs", "row_terms", "col_terms", "scales", "totals"}
_TYPES = tuple(types.voidptr if a in _POINTERS else types.intp for a in ARGUMENTS)


@intrinsic(prefer_literal=True)
def multiply_codes(typingctx, kernel_id, bits, args):
    """``totals[r] += float32(sum of group) * scales`` for all rows and one panel of codes of one group.

    `kernel_id` and `bits` are constants, `args` is a tuple as `ARGUMENTS` says: rows; packed codes, their steps, the level of each code;
    rows of the lhs and their stride in bytes; int32 for each row and for each column that are added to the integer sums; float32
    scales; float32 sums and the stride of their rows in bytes. Of lhs, row terms and totals there are as many rows as `covered` says.
    """
    kernel = by_id(kernel_id.literal_value)
    width = bits.literal_value

    def codegen(context, builder, signature, values):
        items = cgutils.unpack_tuple(builder, values[2])
        named = dict(zip(ARGUMENTS, items, strict=True))
        fn, b = builder.function, builder
        tile = _Tile(kernel, width, b, named)
        row: ir.Value = const(i64, 0)
        for height in heights(kernel):
            head, body, after = (fn.append_basic_block(f"{n}_{height}") for n in ("rows", "tile", "after"))
            came = b.block
            b.branch(head)
            b.position_at_end(head)
            now = b.phi(i64)
            now.add_incoming(row, came)
            left = b.sub(named["rows"], now)
            b.cbranch(b.icmp_signed(">=", left, const(i64, least_rows(height))), body, after)
            b.position_at_end(body)
            tile.emit(height, now)
            now.add_incoming(b.add(now, const(i64, height)), b.block)
            b.branch(head)
            b.position_at_end(after)
            row = now
        return context.get_dummy_value()

    return types.void(kernel_id, bits, types.Tuple(_TYPES)), codegen
