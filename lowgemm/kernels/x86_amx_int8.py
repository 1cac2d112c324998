"""Intel AMX: `tdpbusd` and `tdpbssd`, 16 rows x 16 columns x 64 depth steps with each instruction.

    acc[r, n] += sum_{k<64} lhs[r, 64s + k] * rhs[64s + k, n]      u8 or s8 x s8 -> int32, r < 16, n < 16

    lhs panel: there is none                       rhs panel, step s (1 KiB): 16 groups of 4 depth steps
    r0:  k0 k1 k2 ... k63                          g0:  n0: k0 k1 k2 k3     | n1: k0 ... | ... n15
    r1:  k0 k1 k2 ... k63                          g1:  n0: k4 k5 k6 k7     | n1: k4 ... | ... n15
    ...                                            ...
    r15: k0 k1 k2 ... k63                          g15: n0: k60 k61 k62 k63 | n1: ...

A tile register holds 16 rows of 64 bytes. An lhs tile is 64 consecutive depth steps of 16 rows that lie any
number of bytes apart, so the rows of a matrix need no packing where its depth is a multiple of 64. Where the
depth is less, the tiles of its one step are as narrow as it is, in groups of 4, and again nothing is packed
(8192 x 40 by 40 x 128 to bytes takes 0.64 of the time of `x86_avx512vnni`, which packs). An rhs tile is 16
consecutive groups of the panels of `x86_avx512vnni`, byte for byte: that kernel takes over on the same packed
rhs where rows are few. The rhs is stored signed, as it wants it; the lhs keeps its sign, as there is an
instruction for each.

The 8 tile registers: 2 x 2 accumulators (32 x 32 results), two of the lhs, two of the rhs; four products need
four loads. The products of 8-bit numbers are added in 32 bits; nothing saturates.

Where the lhs is scattered (`Kernel.scatters`), the steps of the depth are found through a list, and rows of
the result through another: convolutions read the pixels of an image so (`engine/pixels.py`). The steps are as
wide as they can be where whole ones make a pixel: with 96 channels there are two of 48.

One call takes any number of panels: a tile of 32 rows meets them all before the next 32 rows. Its lhs (up to
32 KiB at depth 1,024) so stays in L1 while the rhs passes by from L2 as it lies in memory, and the result is
written along its rows.

Finished accumulators are stored to 4 KiB of stack. Their terms are added, or they are scaled, two rows at a
time, shared out evenly among the first steps of the next tile, whose products keep the tile unit busy for 64
cycles a step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from llvmlite import ir

from lowgemm.kernels.framework import tile_permission
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i8, i32, i64, load, splat, store, vec
from lowgemm.kernels.framework.kernel import LIST_HEAD, Kernel, Target, TileLoop
from lowgemm.kernels.framework.requant import constants_at
from lowgemm.kernels.framework.tile_machine import SoftwareTiles
from lowgemm.kernels.vnni import byte_sums

#: Rows of a tile register, and bytes of each.
ROWS, BYTES = 16, 64
#: Tile registers: accumulator of row half `a` and panel `v`, lhs of half `a`, rhs of panel `v`.
ACC, LHS, RHS = (lambda a, v: 2 * a + v), (lambda a: 4 + a), (lambda v: 6 + v)
#: The 64 bytes that `ldtilecfg` reads: palette 1, and for each register 64 bytes in each of 16 rows.
_SHAPES = [1, *[0] * 15, *[BYTES, 0] * 8, *[0] * 16, *[ROWS] * 8, *[0] * 8]
#: Rows of a finished tile that are finished together, between the products of the next one.
PAIR = 2
#: What its twin has otherwise.
_OF_TWIN = ("name", "features", "fallback", "least_rows", "least_depth", "least_work", "compiled_for")


def _loop(b: ir.IRBuilder, start: ir.Value, stop: ir.Value, name: str, body: Any) -> None:
    """Emit ``for i in range(start, stop): body(i)``."""
    fn = b.function
    entry, block, done = b.block, fn.append_basic_block(name), fn.append_basic_block(f"{name}_done")
    b.cbranch(b.icmp_signed("<", start, stop), block, done)
    b.position_at_end(block)
    index = b.phi(i64)
    index.add_incoming(start, entry)
    body(index)
    following = b.add(index, const(i64, 1), flags=["nuw", "nsw"])
    index.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, stop), block, done)
    b.position_at_end(done)


def _parts(b: ir.IRBuilder, x: ir.Value, size: ir.Value | int) -> ir.Value:
    """`x / size`, rounded up; both are positive or 0."""
    size = const(i64, size) if isinstance(size, int) else size
    return b.udiv(b.add(x, b.sub(size, const(i64, 1))), size)


def _least(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed("<", x, y), x, y)


@dataclass(frozen=True)
class AmxInt8(Kernel):
    """A loop over 32 x 32 tiles on eight tile registers; the instructions are hooks, which a test
    replaces.
    """

    expect: ClassVar[str] = "tdpb"
    any_panels: ClassVar[bool] = True

    @property
    def scatters(self) -> bool:
        """Tiles may be of a scattered lhs."""
        return True

    def piece_bytes(self, run: int) -> int:
        """As many bytes of a run as a tile is wide, in whole groups."""
        return max((n for n in range(self.kr, BYTES + 1, self.kr) if run % n == 0), default=0)

    def tile_loop(self, depth: int, l1: int) -> TileLoop:
        """Four products of 16 cycles; 2 KiB of rhs from L2, and as much lhs where its 32 rows leave L1 while
        the rhs passes by.
        """
        lhs_stays = 2 * ROWS * depth <= l1 * 2 // 3
        return TileLoop(4 * 16, (2 if lhs_stays else 4) * ROWS * BYTES)

    def refusal(self) -> str:
        """What the kernel says to the request for the tile registers' state, which a process must make before
        it uses them.
        """
        return tile_permission.refusal()

    def add_sums(self, builder: ir.IRBuilder, acc: ir.Value, packed: ir.Value, side: str) -> ir.Value | None:
        """Sums by `vpdpbusd`, as for the kernel whose panels these are."""
        return byte_sums(builder, acc, packed, side)

    def twin(self) -> Kernel:
        """The same program on tile registers in software."""
        return _OnSoftware(
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_TWIN},
            name=f"test_{self.name}_software",
            features=(),
            fallback="test_panels_16x4",
        )

    # ---- the instructions ----------------------------------------------------------------------------------
    def _instruction(self, b: ir.IRBuilder, name: str, *args: ir.Value) -> None:
        call = call_intrinsic(b, f"llvm.x86.{name}", ir.VoidType(), list(args))
        # A loop with it is not unrolled: a turn is 64 cycles of products, and more addresses than registers
        # were spilled.
        call.attributes.add("convergent")

    def configure(self, b: ir.IRBuilder, address: ir.Value) -> None:
        """Give all tile registers the shapes in the 64 bytes at `address`, and clear them."""
        self._instruction(b, "ldtilecfg", address)

    def clear(self, b: ir.IRBuilder, tile: int) -> None:
        """Set a tile to zero."""
        self._instruction(b, "tilezero", const(i8, tile))

    def load_tile(self, b: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
        """Load the rows of a tile, `stride` bytes apart."""
        self._instruction(b, "tileloadd64", const(i8, tile), address, stride)

    def multiply(self, b: ir.IRBuilder, acc: int, lhs: int, rhs: int, signed: bool) -> None:
        """Add the products of two tiles to a third; the lhs is signed or not, the rhs signed."""
        name = "tdpbssd" if signed else "tdpbusd"
        self._instruction(b, name, *(const(i8, t) for t in (acc, lhs, rhs)))

    def store_tile(self, b: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
        """Store the rows of a tile, `stride` bytes apart."""
        self._instruction(b, "tilestored64", const(i8, tile), address, stride)

    def release(self, b: ir.IRBuilder) -> None:
        """Give the tile registers back, so that a context switch need not save them."""
        self._instruction(b, "tilerelease")

    # ---- the loop ------------------------------------------------------------------------------------------
    def emit(
        self,
        builder: ir.IRBuilder,
        args: dict[str, ir.Value],
        lhs_signed: bool,
        scaling: Any,
        scattered: bool = False,
    ) -> bool:
        """Emit the whole microkernel."""
        _Call(self, builder, args, lhs_signed, scaling, scattered).tiles()
        self.release(builder)
        return True

    def emit_products(self, builder: ir.IRBuilder, steps: ir.Value, source: ir.Value) -> bool:
        """Emit turns of the four products of a tile, on tiles of what lies at `source`."""
        b = builder
        with b.goto_entry_block():
            config = b.alloca(ir.ArrayType(i8, BYTES))
        config.align = 64
        address = b.bitcast(config, i8.as_pointer())
        store(b, ir.Constant(vec(i8, BYTES), _SHAPES), address, BYTES)
        self.configure(b, address)
        for tile in range(8):
            self.load_tile(b, tile, source, const(i64, 0))

        def turn(step: ir.Value) -> None:
            for a in range(2):
                for v in range(2):
                    self.multiply(b, ACC(a, v), LHS(a), RHS(v), False)

        _loop(b, const(i64, 0), steps, "products", turn)
        self.release(b)
        return True


class _OnSoftware(SoftwareTiles, AmxInt8):
    """The same program on tile registers in software, for products of any size."""


class _Call:
    """Emits the parts of one microkernel.

    One tile waits: its sums are in a buffer, and what `waiting_` slots say of it is where it belongs.
    """

    def __init__(
        self,
        k: AmxInt8,
        b: ir.IRBuilder,
        args: dict[str, ir.Value],
        signed: bool,
        scaling: Any,
        scattered: bool,
    ) -> None:
        self.k, self.b, self.args, self.signed, self.scaling = k, b, args, signed, scaling
        self.height = 2 * ROWS
        self.first, self.rows, self.scattered = args["lhs"], args["m"], scattered
        groups, whole = args["groups"], const(i64, ROWS)
        if scattered:
            self.first, self.rows, self.places, piece = (
                load(b, ty, at(b, args["lhs"], 8 * i), 8)
                for i, ty in enumerate((i8.as_pointer(), i64, i8.as_pointer(), i64))
            )
            self.steps_at = at(b, args["lhs"], 8 * LIST_HEAD)
            self.step_groups = b.lshr(piece, const(i64, 2))
        else:
            few = b.and_(b.icmp_signed("<", groups, whole), b.icmp_signed(">", groups, const(i64, 0)))
            self.step_groups = b.select(few, groups, whole)
        self.row_bytes = 4 * k.nr
        self.config = self._buffer(BYTES)
        self.sums = self._buffer(self.height * self.row_bytes)
        self.constants = self._buffer(scaling.kept * self.row_bytes)
        self.waiting_row, self.waiting_panel, self.waiting_rows, self.waiting_nv = (
            self._number() for _ in range(4)
        )
        self.steps = _parts(b, groups, self.step_groups)
        self.fused = b.icmp_unsigned("!=", b.ptrtoint(args["requant"], i64), const(i64, 0))

    def _number(self) -> ir.Value:
        with self.b.goto_entry_block():
            slot = self.b.alloca(i64)
        self.b.store(const(i64, 0), slot)
        return slot

    def _buffer(self, size: int) -> ir.Value:
        with self.b.goto_entry_block():
            slot = self.b.alloca(ir.ArrayType(i8, size))
        slot.align = 64
        return self.b.bitcast(slot, i8.as_pointer())

    # ---- products ------------------------------------------------------------------------------------------
    def _configure(self, rows: ir.Value) -> None:
        """Emit: shapes for a tile of `rows` rows, 32 or what is left of the matrix, and of a step of the
        depth.
        """
        b = self.b
        store(b, ir.Constant(vec(i8, BYTES), _SHAPES), self.config, BYTES)
        whole = const(i64, ROWS)
        first = _least(b, rows, whole)
        second = b.sub(rows, first)
        # a shape without rows is a fault, also of a register that is not used
        second = b.select(b.icmp_signed("==", second, const(i64, 0)), whole, second)
        for a, height in enumerate((first, second)):
            for tile in (*(ACC(a, v) for v in range(2)), LHS(a)):
                store(b, b.trunc(height, i8), at(b, self.config, 48 + tile))
            width = b.shl(self.step_groups, const(i64, 2))
            store(b, b.trunc(width, i8), at(b, self.config, 16 + 2 * LHS(a)))
            store(b, b.trunc(self.step_groups, i8), at(b, self.config, 48 + RHS(a)))
        self.k.configure(b, self.config)

    def _clear(self, halves: int, nv: int) -> None:
        for a in range(halves):
            for v in range(nv):
                self.k.clear(self.b, ACC(a, v))

    def _step(self, halves: int, nv: int, lhs: ir.Value, rhs: ir.Value, step: ir.Value) -> None:
        """Emit the loads and products of a step of the depth."""
        k, b, args = self.k, self.b, self.args
        if self.scattered:
            left = at(b, lhs, load(b, i64, at(b, self.steps_at, b.shl(step, const(i64, 3))), 8))
        else:
            left = at(b, lhs, b.mul(step, const(i64, BYTES)))
        right = at(b, rhs, b.mul(step, b.mul(self.step_groups, const(i64, BYTES))))
        for a in range(halves):
            down = b.mul(args["lhs_stride"], const(i64, ROWS))
            k.load_tile(b, LHS(a), at(b, left, down) if a else left, args["lhs_stride"])
            for v in range(nv):
                if a == 0:
                    panel = at(b, right, args["rhs_stride"]) if v else right
                    k.load_tile(b, RHS(v), panel, const(i64, BYTES))
                k.multiply(b, ACC(a, v), LHS(a), RHS(v), self.signed)

    def _keep(self, halves: int, nv: int, row: ir.Value, rows: ir.Value, panel: ir.Value) -> None:
        """Emit: store the accumulators to the buffer, where they wait."""
        k, b = self.k, self.b
        for a in range(halves):
            for v in range(nv):
                to = at(b, self.sums, a * ROWS * self.row_bytes + v * 4 * k.lanes)
                k.store_tile(b, ACC(a, v), to, const(i64, self.row_bytes))
        slots = self.waiting_row, self.waiting_panel, self.waiting_rows, self.waiting_nv
        for value, slot in zip((row, panel, rows, const(i64, nv)), slots, strict=True):
            b.store(value, slot)
        with b.if_then(self.fused):
            self._prepare(nv, panel)

    def tiles(self) -> None:
        """Emit the loops over the rows and, within, the columns."""
        b, args = self.b, self.args
        zero, height = const(i64, 0), const(i64, self.height)

        def row_tile(number: ir.Value) -> None:
            row = b.mul(number, height)
            rows = _least(b, b.sub(self.rows, row), height)
            first, last = b.icmp_signed("==", number, zero), b.icmp_signed("<", rows, height)
            with b.if_then(b.or_(first, last)):
                self._configure(rows)
            lhs = at(b, self.first, b.mul(row, args["lhs_stride"]))
            _loop(b, zero, _parts(b, args["nv"], 2), "columns", lambda i: self._tile(lhs, row, rows, i))

        _loop(b, zero, _parts(b, self.rows, self.height), "rows", row_tile)
        self._drain()

    def _tile(self, lhs: ir.Value, row: ir.Value, rows: ir.Value, number: ir.Value) -> None:
        """Emit the tile of a pair of panels: its products, and the rest of what the tile before needs."""
        b, args = self.b, self.args
        zero, one, two = (const(i64, i) for i in range(3))
        panel = b.shl(number, one)
        rhs = at(b, args["rhs"], b.mul(panel, args["rhs_stride"]))
        tall = b.icmp_signed(">", rows, const(i64, ROWS))
        wide = b.icmp_signed(">=", b.sub(args["nv"], panel), two)

        def depth(halves: int, nv: int, start: ir.Value) -> None:
            _loop(b, start, self.steps, "depth", lambda step: self._step(halves, nv, lhs, rhs, step))
            self._keep(halves, nv, row, rows, panel)

        with b.if_else(b.and_(tall, wide)) as (main, edge):
            with main:
                self._clear(2, 2)
                depth(2, 2, self._overlapping(lhs, rhs))
            with edge:
                self._drain()
                with b.if_else(tall) as (two_halves, one_half):
                    with two_halves:
                        self._clear(2, 1)
                        depth(2, 1, zero)
                    with one_half, b.if_else(wide) as (pair, single):
                        for nv, block in ((2, pair), (1, single)):
                            with block:
                                self._clear(1, nv)
                                depth(1, nv, zero)

    def _overlapping(self, lhs: ir.Value, rhs: ir.Value) -> ir.Value:
        """Emit the first steps of a main tile, with the rows of the one that waits shared out among them;
        gives the next step.
        """
        b = self.b
        zero, pairs = const(i64, 0), const(i64, self.height // PAIR)
        is_main = b.and_(
            b.icmp_signed("==", b.load(self.waiting_rows), const(i64, self.height)),
            b.icmp_signed("==", b.load(self.waiting_nv), const(i64, 2)),
        )
        overlaps = b.and_(is_main, b.icmp_signed(">", self.steps, zero))
        with b.if_then(b.not_(overlaps)):
            self._drain()
        each = _parts(b, pairs, b.select(overlaps, self.steps, const(i64, 1)))
        along = b.select(overlaps, _parts(b, pairs, each), zero)

        def both(step: ir.Value) -> None:
            self._step(2, 2, lhs, rhs, step)
            first = b.mul(step, each)
            last = _least(b, b.add(first, each), pairs)
            _loop(b, first, last, "pair", lambda i: self._finish(b.mul(i, const(i64, PAIR)), PAIR, 2))

        _loop(b, zero, along, "both", both)
        return along

    # ---- what becomes of the sums --------------------------------------------------------------------------
    def _drain(self) -> None:
        """Emit: finish the tile that waits, if there is one."""
        b = self.b
        zero = const(i64, 0)
        rows, nv = b.load(self.waiting_rows), b.load(self.waiting_nv)
        with b.if_else(b.icmp_signed("==", nv, const(i64, 2))) as (pair, single):
            for count, block in ((2, pair), (1, single)):
                with block:
                    _loop(b, zero, rows, "drain", lambda i, count=count: self._finish(i, 1, count))
        b.store(zero, self.waiting_rows)

    def _finish(self, first: ir.Value, count: int, nv: int) -> None:
        """Emit: add the compensation to `count` rows of the tile that waits, and store them as int32 or
        bytes.
        """
        b, args = self.b, self.args
        panel = b.load(self.waiting_panel)
        row = b.add(b.load(self.waiting_row), first)
        sums = at(b, self.sums, b.mul(first, const(i64, self.row_bytes)))
        with b.if_else(self.fused) as (scaled, plain):
            with scaled:
                for r in range(count):
                    self._bytes(
                        self._place(b.add(row, const(i64, r))), panel, at(b, sums, r * self.row_bytes), nv
                    )
            with plain, b.if_else(b.icmp_signed("!=", args["add_c"], const(i64, 0))) as (adding, storing):
                for block, adds in ((adding, True), (storing, False)):
                    with block:
                        for r in range(count):
                            of_row = at(b, sums, r * self.row_bytes)
                            self._int32(self._place(b.add(row, const(i64, r))), panel, of_row, nv, adds)

    def _place(self, row: ir.Value) -> ir.Value:
        """Emit: which row of the result a row is."""
        if not self.scattered:
            return row
        return load(self.b, i64, at(self.b, self.places, self.b.shl(row, const(i64, 3))), 8)

    def _compensated(self, row: ir.Value, panel: ir.Value, sums: ir.Value, nv: int) -> list[ir.Value]:
        k, b, args, ty = self.k, self.b, self.args, vec(i32, self.k.lanes)
        of_row = load(b, i32, at(b, args["row_compensation"], b.mul(row, const(i64, 4))), 4)
        of_row = splat(b, of_row, k.lanes)
        cols = at(b, args["col_compensation"], b.mul(panel, const(i64, 4 * k.lanes)))
        values = []
        for place in range(0, nv * 4 * k.lanes, 4 * k.lanes):
            of_cols = load(b, ty, at(b, cols, place), 4)
            values.append(b.add(load(b, ty, at(b, sums, place), 64), b.add(of_row, of_cols)))
        return values

    def _int32(self, row: ir.Value, panel: ir.Value, sums: ir.Value, nv: int, adds: bool) -> None:
        b, args, size = self.b, self.args, 4 * self.k.lanes
        c = at(b, args["c"], b.mul(row, b.mul(args["ldc"], const(i64, 4))))
        c = at(b, c, b.mul(panel, const(i64, size)))
        for v, x in enumerate(self._compensated(row, panel, sums, nv)):
            place = at(b, c, v * size)
            store(b, b.add(x, load(b, x.type, place, 4)) if adds else x, place, 4)

    def _constant(self, v: int, number: int) -> ir.Value:
        """Where constant `number` of panel `v` of the tile that waits is."""
        size = 4 * self.k.lanes
        return at(self.b, self.constants, (self.scaling.kept * v + number) * size)

    def _bytes(self, row: ir.Value, panel: ir.Value, sums: ir.Value, nv: int) -> None:
        b, args, lanes = self.b, self.args, self.k.lanes
        c = at(b, at(b, args["c"], b.mul(row, args["ldc"])), b.mul(panel, const(i64, lanes)))
        for v, x in enumerate(self._compensated(row, panel, sums, nv)):
            types = enumerate(self.scaling.types(lanes))
            kept = [load(b, ty, self._constant(v, i), 4 * lanes) for i, ty in types]
            store(b, self.scaling.result(b, x, self.scaling.loaded(b, kept), 8), at(b, c, v * lanes))

    def _prepare(self, nv: int, panel: ir.Value) -> None:
        """Emit: what scaling the columns of a tile needs, to memory, where its rows find it."""
        b, args, lanes = self.b, self.args, self.k.lanes
        for v in range(nv):
            col = b.add(args["col"], b.mul(b.add(panel, const(i64, v)), const(i64, lanes)))
            for i, x in enumerate(constants_at(b, self.scaling, args["requant"], col, lanes)):
                store(b, x, self._constant(v, i), 4 * lanes)


KERNEL = AmxInt8(
    name="x86_amx_int8",
    features=("amx-tile", "amx-int8", "avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    mr=32,
    lanes=16,
    max_nv=2,
    kr=4,
    lhs_type="u8 or s8",
    rhs_type="s8",
    row_tiles=(32, 16, 1),
    row_bytes=BYTES,
    fallback="x86_avx512vnni",
    # Against `x86_avx512vnni` on one core of an Intel Xeon, panels in L1: 8 rows 1.05 (depth 64) to 2.3 times
    # as fast (1,024), 4 rows 0.79 to 1.39. Whole products of 8 rows 1.03 (8 x 64 x 768) to 2.1 (8 x 768 x
    # 768). To bytes, m x depth x n: as fast at 128 x 8 x 64, 128 x 24 x 24, 32 x 60 x 64 and 32 x 100 x 40;
    # 0.75 of its speed at 8 x 64 x 24 and 8192 x 3 x 40; 1.5 to 2 times at 8192 x 40 x 128.
    least_rows=8,
    least_depth=4,
    least_work=180_000,
    macs_per_cycle=1024,  # 16 x 16 x 64 every 16 cycles
    # After a NumPy product, one thread and two (microseconds): 152 and 158 at 512 cubed, 216 and 210 at 576,
    # 280 and 237 at 640 (two cores of a Xeon, a virtual machine, where waking a thread costs its caller 40).
    long_macs=576**3,
    compiled_for=Target("x86_64-unknown-linux-gnu", "sapphirerapids"),
)
