"""Intel AMX: `tdpbusd` and `tdpbssd`, 16 rows x 16 columns x 64 depth steps with each instruction.

    acc[r, n] += sum_{k<64} lhs[r, 64s + k] * rhs[64s + k, n]      u8 or s8 x s8 -> int32, r < 16, n < 16

    lhs panel: there is none                       rhs panel, step s (1 KiB): 16 groups of 4 depth steps
    r0:  k0 k1 k2 ... k63                          g0:  n0: k0 k1 k2 k3     | n1: k0 ... | ... n15
    r1:  k0 k1 k2 ... k63                          g1:  n0: k4 k5 k6 k7     | n1: k4 ... | ... n15
    ...                                            ...
    r15: k0 k1 k2 ... k63                          g15: n0: k60 k61 k62 k63 | n1: ...

A tile register holds 16 rows of 64 bytes. An lhs tile is 64 consecutive depth steps of 16 rows that lie any number of bytes apart, so
the rows of a matrix need no packing where its depth is a multiple of 64. An rhs tile is 16 consecutive groups of the panels of
`x86_avx512vnni`, byte for byte: that kernel takes over on the same packed rhs where rows are few. The rhs is stored signed, as it wants it;
the lhs keeps its sign, as there is an instruction for each.

The 8 tile registers: 2 x 2 accumulators (32 x 32 results), two of the lhs, two of the rhs; four products need four loads. The products
of 8-bit numbers are added in 32 bits; nothing saturates.

Finished accumulators are stored to 4 KiB of stack. Their terms are added, or they are scaled, 8 rows at a time in the first four
steps of the next tile, whose products keep the tile unit busy for 64 cycles a step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from llvmlite import ir

from lowgemm.kernels.framework import tile_permission
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i8, i32, i64, load, splat, store, vec
from lowgemm.kernels.framework.kernel import Kernel, Target
from lowgemm.kernels.framework.requant import constants_at
from lowgemm.kernels.framework.tile_machine import SoftwareTiles
from lowgemm.kernels.vnni import byte_sums

#: Rows of a tile register, and bytes of each.
ROWS, BYTES = 16, 64
#: Tile registers: accumulator of row half `a` and panel `v`, lhs of half `a`, rhs of panel `v`.
ACC, LHS, RHS = (lambda a, v: 2 * a + v), (lambda a: 4 + a), (lambda v: 6 + v)
#: The 64 bytes that `ldtilecfg` reads: palette 1, and for each register 64 bytes in each of 16 rows.
_SHAPES = [1, *[0] * 15, *[BYTES, 0] * 8, *[0] * 16, *[ROWS] * 8, *[0] * 8]
#: Rows of a finished tile that one step of the next tile takes along.
CHUNK = 8
#: What its twin has otherwise.
_OF_TWIN = ("name", "features", "fallback", "least_rows", "least_depth", "compiled_for")


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


def _least(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed("<", x, y), x, y)


@dataclass(frozen=True)
class AmxInt8(Kernel):
    """A loop over 32 x 32 tiles on eight tile registers; the instructions are hooks, which a test replaces."""

    expect: ClassVar[str] = "tdpb"

    def refusal(self) -> str:
        """What the kernel says to the request for the tile registers' state, which a process must make before it uses them."""
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

    # ---- the instructions ------------------------------------------------------------------------------------
    def _instruction(self, b: ir.IRBuilder, name: str, *args: ir.Value) -> None:
        call = call_intrinsic(b, f"llvm.x86.{name}", ir.VoidType(), list(args))
        # A loop with it is not unrolled: a turn is 64 cycles of products, and more addresses than registers were spilled.
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

    # ---- the loop ----------------------------------------------------------------------------------------------
    def emit(self, builder: ir.IRBuilder, args: dict[str, ir.Value], lhs_signed: bool, scaling: Any) -> bool:
        """Emit the whole microkernel."""
        b, fn = builder, builder.function
        end = fn.append_basic_block("end")
        state = _Call(self, b, args, lhs_signed, scaling)
        fused = b.icmp_unsigned("!=", b.ptrtoint(args["requant"], i64), const(i64, 0))
        for nv in range(self.max_nv, 0, -1):
            here, other = fn.append_basic_block(f"nv{nv}"), fn.append_basic_block(f"not_nv{nv}")
            b.cbranch(b.icmp_signed("==", args["nv"], const(i64, nv)), here, other)
            b.position_at_end(here)
            scaling, plain = fn.append_basic_block(f"bytes_nv{nv}"), fn.append_basic_block(f"int32_nv{nv}")
            b.cbranch(fused, scaling, plain)
            b.position_at_end(scaling)
            state.rows(nv, state.bytes_of(nv))
            b.branch(end)
            b.position_at_end(plain)
            state.rows(nv, state.int32_of(nv))
            b.branch(end)
            b.position_at_end(other)
        b.branch(end)
        b.position_at_end(end)
        self.release(b)
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
    """Emits the parts of one microkernel."""

    def __init__(
        self, k: AmxInt8, b: ir.IRBuilder, args: dict[str, ir.Value], signed: bool, scaling: Any
    ) -> None:
        self.k, self.b, self.args, self.signed, self.scaling = k, b, args, signed, scaling
        self.height = 2 * ROWS
        self.row_bytes = 4 * k.nr
        self.config = self._buffer(BYTES)
        self.sums = self._buffer(self.height * self.row_bytes)
        self.steps = b.ashr(b.add(args["groups"], const(i64, 15)), const(i64, 4))

    def _buffer(self, size: int) -> ir.Value:
        with self.b.goto_entry_block():
            slot = self.b.alloca(ir.ArrayType(i8, size))
        slot.align = 64
        return self.b.bitcast(slot, i8.as_pointer())

    def _configure(self, rows: ir.Value) -> None:
        """Emit: shapes for a tile of `rows` rows, 32 or what is left of the matrix."""
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
        self.k.configure(b, self.config)

    def _step(self, halves: int, nv: int, lhs: ir.Value, step: ir.Value) -> None:
        """Emit the loads and products of 64 depth steps."""
        k, b, args = self.k, self.b, self.args
        left = at(b, lhs, b.mul(step, const(i64, BYTES)))
        right = at(b, args["rhs"], b.mul(step, const(i64, ROWS * BYTES)))
        for a in range(halves):
            down = b.mul(args["lhs_stride"], const(i64, ROWS))
            k.load_tile(b, LHS(a), at(b, left, down) if a else left, args["lhs_stride"])
            for v in range(nv):
                if a == 0:
                    panel = at(b, right, args["rhs_stride"]) if v else right
                    k.load_tile(b, RHS(v), panel, const(i64, BYTES))
                k.multiply(b, ACC(a, v), LHS(a), RHS(v), self.signed)

    def _keep(self, halves: int, nv: int) -> None:
        """Emit: store the accumulators to the buffer."""
        k, b = self.k, self.b
        for a in range(halves):
            for v in range(nv):
                to = at(b, self.sums, a * ROWS * self.row_bytes + v * 4 * k.lanes)
                k.store_tile(b, ACC(a, v), to, const(i64, self.row_bytes))

    def rows(self, nv: int, finish: Any) -> None:
        """Emit the loop over the rows; `finish` stores one row of sums (its number, where the sums are)."""
        k, b, args, fn = self.k, self.b, self.args, self.b.function
        zero, height, chunks = const(i64, 0), const(i64, self.height), const(i64, self.height // CHUNK)

        def chunk(first: ir.Value, number: ir.Value) -> None:
            """Finish rows CHUNK * `number` and following of the tile that begins at row `first`."""
            begin = b.mul(number, const(i64, CHUNK))
            sums = at(b, self.sums, b.mul(begin, const(i64, self.row_bytes)))
            finish(b.add(first, begin), sums, CHUNK)

        head, tile, after = (fn.append_basic_block(f"{name}_nv{nv}") for name in ("rows", "tile", "after"))
        came = b.block
        b.branch(head)
        b.position_at_end(head)
        row = b.phi(i64)
        row.add_incoming(zero, came)
        b.cbranch(b.icmp_signed("<", row, args["m"]), tile, after)

        b.position_at_end(tile)
        rows = _least(b, b.sub(args["m"], row), height)
        first = b.icmp_signed("==", row, zero)
        with b.if_then(b.or_(first, b.icmp_signed("<", rows, height))):
            self._configure(rows)
        before = b.sub(row, height)
        waiting = b.select(first, zero, chunks)  # parts of the tile before that are not finished
        lhs = at(b, args["lhs"], b.mul(row, args["lhs_stride"]))
        with b.if_else(b.icmp_signed(">", rows, const(i64, ROWS))) as (two, one):
            with two:
                for a in range(2):
                    for v in range(nv):
                        k.clear(b, ACC(a, v))
                along = _least(b, waiting, self.steps)

                def both(step: ir.Value) -> None:
                    self._step(2, nv, lhs, step)
                    chunk(before, step)

                _loop(b, zero, along, "both", both)
                _loop(b, along, self.steps, "depth", lambda step: self._step(2, nv, lhs, step))
                _loop(b, along, waiting, "rest", lambda number: chunk(before, number))
                self._keep(2, nv)
            with one:
                _loop(b, zero, waiting, "drain", lambda number: chunk(before, number))
                for v in range(nv):
                    k.clear(b, ACC(0, v))
                _loop(b, zero, self.steps, "depth", lambda step: self._step(1, nv, lhs, step))
                self._keep(1, nv)
        nxt = b.add(row, height)
        row.add_incoming(nxt, b.block)
        b.branch(head)

        b.position_at_end(after)
        last = b.sub(row, height)  # the tile that waits, if there were rows at all
        left = b.sub(args["m"], last)
        left = b.select(b.icmp_signed(">", args["m"], zero), left, zero)

        def one_row(number: ir.Value) -> None:
            finish(b.add(last, number), at(b, self.sums, b.mul(number, const(i64, self.row_bytes))), 1)

        _loop(b, zero, left, "last", one_row)

    # ---- what becomes of the sums ------------------------------------------------------------------------------
    def _cols(self, nv: int) -> list[ir.Value]:
        k, b = self.k, self.b
        size = 4 * k.lanes
        return [
            load(b, vec(i32, k.lanes), at(b, self.args["col_compensation"], v * size), 4) for v in range(nv)
        ]

    def _compensated(self, cols: list[ir.Value], row: ir.Value, sums: ir.Value) -> list[ir.Value]:
        k, b = self.k, self.b
        term = load(b, i32, at(b, self.args["row_compensation"], b.mul(row, const(i64, 4))), 4)
        term = splat(b, term, k.lanes)
        ty = vec(i32, k.lanes)
        return [
            b.add(load(b, ty, at(b, sums, v * 4 * k.lanes), 64), b.add(term, col))
            for v, col in enumerate(cols)
        ]

    def int32_of(self, nv: int) -> Any:
        """Emit what the rows have in common; gives what emits the int32 store of some."""
        k, b, args = self.k, self.b, self.args
        cols = self._cols(nv)
        ldc = b.mul(args["ldc"], const(i64, 4))
        add_c = b.icmp_signed("!=", args["add_c"], const(i64, 0))

        def finish(first: ir.Value, sums: ir.Value, count: int) -> None:
            def rows(adding: bool) -> None:
                for r in range(count):
                    row = b.add(first, const(i64, r))
                    c = at(b, args["c"], b.mul(row, ldc))
                    for v, x in enumerate(self._compensated(cols, row, at(b, sums, r * self.row_bytes))):
                        place = at(b, c, v * 4 * k.lanes)
                        store(b, b.add(x, load(b, x.type, place, 4)) if adding else x, place, 4)

            with b.if_else(add_c) as (then, otherwise):
                with then:
                    rows(True)
                with otherwise:
                    rows(False)

        return finish

    def bytes_of(self, nv: int) -> Any:
        """The same for sums that are scaled, clamped and stored as bytes."""
        k, b, args = self.k, self.b, self.args
        cols, constants = self._cols(nv), []
        for v in range(nv):
            col = b.add(args["col"], const(i64, v * k.lanes))
            constants.append(constants_at(b, self.scaling, args["requant"], col, k.lanes))

        def finish(first: ir.Value, sums: ir.Value, count: int) -> None:
            for r in range(count):
                row = b.add(first, const(i64, r))
                c = at(b, args["c"], b.mul(row, args["ldc"]))
                for v, x in enumerate(self._compensated(cols, row, at(b, sums, r * self.row_bytes))):
                    store(b, self.scaling.result(b, x, constants[v], 8), at(b, c, v * k.lanes))

        return finish


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
    least_rows=16,
    least_depth=64,
    macs_per_cycle=1024,  # 16 x 16 x 64 every 16 cycles
    compiled_for=Target("x86_64-unknown-linux-gnu", "sapphirerapids"),
)
