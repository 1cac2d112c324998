"""From a short description to a microkernel: the framework that unrolls the tile hooks.

Start reading here if you port lowgemm to another CPU, then open `x86_avx512vnni.py` for a description.

Every microkernel computes, for `m` rows and `nv` adjacent packed rhs panels of `lanes` columns each,

    c[r, n] = sum_k lhs[r, k] * rhs[k, n] + row_terms[r] + col_terms[n] + (c[r, n] if add_c else 0)

modulo 2**32, for r < m and n < nv * lanes. `row_terms` and `col_terms` carry zero points, bias and the
compensation for flipped signs, so that a plain int32 product is stored once and never read again. If `requant` is
not null (only for kernels with `fuses_requantize`), the sums are scaled, clamped and stored as bytes instead, by the
parameters of the output routine `requantize_store8`, and `ldc` counts bytes; `col` is the column of c[0, 0] in them.

The packed panels (one group is `kr` consecutive depth steps, here 4):

    lhs: panel of `mr` rows                          rhs: panel of `lanes` columns
    group 0: r0k0 r0k1 r0k2 r0k3 | r1k0 .. r1k3 | ...    group 0: n0k0 n0k1 n0k2 n0k3 | n1k0 .. n1k3 | ...
    group 1: r0k4 r0k5 r0k6 r0k7 | r1k4 .. r1k7 | ...    group 1: n0k4 n0k5 n0k6 n0k7 | n1k4 .. n1k7 | ...

Depth is padded to whole groups with packed zeros; rows and columns beyond the matrix repeat the last valid
one (their results are never stored).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from llvmlite import ir
from lowgemm.kernels.deferred import Deferred
from lowgemm.kernels.irtools import (  # noqa: F401 (kernels take these from here)
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
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm._jit import signature


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

    #: Instruction that the depth loop must contain (tests read the assembly).
    expect: ClassVar[str] = ""
    layout_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.row_tiles:
            halves = tuple(h for h in (8, 4, 2, 1) if h < self.mr)
            object.__setattr__(self, "row_tiles", (self.mr, *halves))
        tiles = list(self.row_tiles)
        if tiles[0] > self.mr or tiles[-1] != 1 or tiles != sorted(set(tiles), reverse=True):
            raise ValueError(f"row_tiles: expected heights falling from at most {self.mr} to 1, got {tiles}")

    #: Whether the kernel is right only if the rhs holds no -128 once packed; chosen by the data then.
    rhs_excludes_min: ClassVar[bool] = False

    #: Number of forms of the product that `row_products` takes in turn from panel to panel.
    forms: ClassVar[int] = 1

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

    def prepare_lhs(self, builder: ir.IRBuilder, lhs: Any) -> Any:
        """What `product` takes for a loaded lhs: arithmetic that all panels of a row share."""
        return lhs

    def load_rhs(self, builder: ir.IRBuilder, address: ir.Value) -> Any:
        """Load one depth group of one rhs panel."""
        raise NotImplementedError

    def product(self, builder: ir.IRBuilder, acc: tuple[ir.Value, ...], lhs: Any, rhs: Any) -> tuple:
        """Add the product of one lhs and one rhs group to the accumulators."""
        raise NotImplementedError

    def row_products(self, builder: ir.IRBuilder, accs: list[tuple], lhs: Any, rhs: list) -> list[tuple]:
        """`product` for every panel of the tile; a kernel overrides it to order or alternate them by itself.

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


def _prefetch_c(b: ir.IRBuilder, c: ir.Value, ldc_bytes: ir.Value, mr: int, row_bytes: int) -> None:
    """Ask for the lines of the result before the depth loop hides the wait."""
    void = ir.VoidType()
    for r in range(mr):
        row = at(b, c, b.mul(ldc_bytes, const(i64, r)))
        for line in range(0, row_bytes, 64):
            write, keep, data = const(i32, 1), const(i32, 3), const(i32, 1)
            call_intrinsic(b, "llvm.prefetch.p0", void, [at(b, row, line), write, keep, data])


def _depth_loop(
    k: Kernel,
    b: ir.IRBuilder,
    nv: int,
    start: ir.Value,
    stop: ir.Value,
    count: int,
    addresses,
    accs,
    also=None,
) -> dict:
    """Emit ``for step in range(start, stop, count)`` over depth groups, `count` of them in each turn.

    `also`, a function of (builder, step), emits what else each turn does.
    """
    fn = b.function
    lhs, rhs = addresses
    entry, body, done = b.block, fn.append_basic_block("depth"), fn.append_basic_block("depth_done")
    b.cbranch(b.icmp_signed("<", start, stop), body, done)
    b.position_at_end(body)
    step = b.phi(i64)
    step.add_incoming(start, entry)
    phis = {key: tuple(b.phi(a.type) for a in regs) for key, regs in accs.items()}
    now = phis
    for u in range(count):
        lhs_at = at(b, at(b, lhs, b.mul(step, const(i64, k.lhs_group_bytes))), u * k.lhs_group_bytes)
        rhs_off = b.mul(step, const(i64, k.rhs_group_bytes))
        panels = [at(b, at(b, rhs[v], rhs_off), u * k.rhs_group_bytes) for v in range(nv)]
        right = [partial(k.load_rhs, b, p) if k.reloads_rhs else k.load_rhs(b, p) for p in panels]
        following = {}
        for r in sorted({r for r, _ in accs}):
            left = k.prepare_lhs(b, k.load_lhs(b, at(b, lhs_at, r * k.kr * k.element_bytes)))
            row = k.row_products(b, [now[r, v] for v in range(nv)], left, right)
            following.update({(r, v): acc for v, acc in enumerate(row)})
        now = following
    if also is not None:
        also(b, step)
    nxt = b.add(step, const(i64, count), flags=["nuw", "nsw"])
    step.add_incoming(nxt, body)
    b.cbranch(b.icmp_signed("<", nxt, stop), body, done)
    b.position_at_end(done)
    final = {}
    for key, regs in accs.items():
        out = []
        for before, phi, after in zip(regs, phis[key], now[key], strict=True):
            phi.add_incoming(before, entry)
            phi.add_incoming(after, body)
            p = b.phi(before.type)
            p.add_incoming(before, entry)
            p.add_incoming(after, body)
            out.append(p)
        final[key] = tuple(out)
    return final


def _tile(k: Kernel, b: ir.IRBuilder, mr: int, nv: int, groups, lhs, rhs, rhs_stride, begin=None) -> dict:
    """Emit the depth loop of an `mr` x `nv` tile; gives its accumulators by (first row, panel).

    `begin`, if given, is a pair of a number of depth groups and what else each of these first groups does.
    """
    addresses = lhs, [at(b, rhs, b.mul(rhs_stride, const(i64, v))) if v else rhs for v in range(nv)]
    accs = {(r, v): k.zero() for r in range(0, mr, k.lhs_rows) for v in range(nv)}
    start = const(i64, 0)
    if begin is not None:
        accs = _depth_loop(k, b, nv, start, begin[0], 1, addresses, accs, begin[1])
        start = begin[0]
    if k.unroll > 1:
        whole = b.sub(groups, b.srem(b.sub(groups, start), const(i64, k.unroll)))
        accs = _depth_loop(k, b, nv, start, whole, k.unroll, addresses, accs)
        start = whole
    return _depth_loop(k, b, nv, start, groups, 1, addresses, accs)


def _sums(k: Kernel, b: ir.IRBuilder, mr: int, accs, cols, rows) -> dict:
    """Emit: a tile's sums with the terms added, by (row, panel)."""
    values = {}
    for (head, v), acc in accs.items():
        for r, x in enumerate(k.finalize(b, acc), head):
            if r < mr:  # a register of several rows may reach past an odd last one
                term = splat(b, load(b, i32, at(b, rows, 4 * r), 4), k.lanes)
                values[r, v] = b.add(x, b.add(term, cols[v]))
    return values


def _store_sums(k: Kernel, b: ir.IRBuilder, values, c, ldc_bytes, add_c) -> None:
    """Emit: store int32 sums, with `c` added on request."""
    fn = b.function
    plain, adding, stored = (fn.append_basic_block(name) for name in ("plain", "adding", "stored"))
    b.cbranch(add_c, adding, plain)
    for block in (plain, adding):
        b.position_at_end(block)
        for (r, v), value in sorted(values.items()):
            place = at(b, at(b, c, b.mul(ldc_bytes, const(i64, r))), v * 4 * k.lanes)
            if block is adding:
                value = b.add(value, load(b, value.type, place, 4))
            store(b, value, place, 4)
        b.branch(stored)
    b.position_at_end(stored)


class _Rows:
    """Emits the loops over the rows of one call: ``while m - row >= mr`` for each tile height."""

    def __init__(self, k: Kernel, b: ir.IRBuilder, args: dict[str, ir.Value], nv: int) -> None:
        self.k, self.b, self.args, self.nv = k, b, args, nv
        vbytes = 4 * k.lanes
        self.cols = [load(b, vec(i32, k.lanes), at(b, args["col_terms"], v * vbytes), 4) for v in range(nv)]

    def _loop(self, mr: int, row_in: ir.Value, body: Any) -> ir.Value:
        b, fn = self.b, self.b.function
        head, tile, after = (
            fn.append_basic_block(f"{name}_{mr}x{self.nv}") for name in ("rows", "tile", "after")
        )
        came = b.block
        b.branch(head)
        b.position_at_end(head)
        row = b.phi(i64)
        row.add_incoming(row_in, came)
        b.cbranch(b.icmp_signed("<=", b.add(row, const(i64, mr)), self.args["m"]), tile, after)
        b.position_at_end(tile)
        body(row)
        nxt = b.add(row, const(i64, mr))
        row.add_incoming(nxt, b.block)
        b.branch(head)
        b.position_at_end(after)
        return row

    def _accumulate(self, mr: int, row: ir.Value, begin: Any = None) -> dict:
        k, b, args = self.k, self.b, self.args
        panel, within = b.udiv(row, const(i64, k.mr)), b.urem(row, const(i64, k.mr))
        lhs = at(b, args["lhs"], b.mul(panel, args["lhs_stride"]))
        lhs = at(b, lhs, b.mul(within, const(i64, k.kr * k.element_bytes)))
        hooks = k.at_height(mr)
        accs = _tile(hooks, b, mr, self.nv, args["groups"], lhs, args["rhs"], args["rhs_stride"], begin)
        return _sums(hooks, b, mr, accs, self.cols, at(b, args["row_terms"], b.mul(row, const(i64, 4))))

    def int32(self, row: ir.Value, add_c: ir.Value) -> None:
        """Tiles of every height from `row` on, stored as int32."""
        k, b, args = self.k, self.b, self.args
        ldc_bytes = b.mul(args["ldc"], const(i64, 4))
        # Heights fall, so each of the smaller ones runs at most once where they halve; the loop form costs nothing
        # and needs no such assumption.
        for mr in k.row_tiles:

            def tile(row: ir.Value, mr: int = mr) -> None:
                c = at(b, args["c"], b.mul(row, ldc_bytes))
                _prefetch_c(b, c, ldc_bytes, mr, 4 * k.lanes * self.nv)
                _store_sums(k, b, self._accumulate(mr, row), c, ldc_bytes, add_c)

            row = self._loop(mr, row, tile)

    def bytes(self, deferred: Deferred) -> None:
        """The same, scaled and stored as bytes; where registers allow, each full tile while the next one multiplies."""
        k, b, args = self.k, self.b, self.args
        ldc = args["ldc"]
        deferred.prepare(b, self.nv, args["col"])
        zero, full = const(i64, 0), k.row_tiles[0]
        registers = const(i64, full * self.nv)

        def waiting(row: ir.Value) -> tuple[ir.Value, ir.Value]:
            """Where the tile before goes, and the registers of it that are done: all, if there is no such tile."""
            before = at(b, args["c"], b.mul(b.sub(row, const(i64, full)), ldc))
            return before, b.select(b.icmp_signed("==", row, zero), registers, zero)

        def tile(row: ir.Value) -> None:
            before, done = waiting(row)
            fewer = b.select(b.icmp_signed("<", args["groups"], registers), args["groups"], registers)
            steps = b.select(b.icmp_signed("==", done, zero), fewer, zero)
            scale = lambda b, step: deferred.scale(b, step, self.nv, before, ldc)  # noqa: E731
            values = self._accumulate(full, row, (steps, scale))
            deferred.scale_rest(b, b.add(done, steps), self.nv, before, ldc)
            deferred.keep(b, values)

        row, heights = zero, k.row_tiles
        if k.defers_requantize:
            row, heights = self._loop(full, zero, tile), heights[1:]
            before, _ = waiting(row)
            deferred.scale_tile(b, b.icmp_signed("==", row, zero), full, self.nv, before, ldc)
        for mr in heights:

            def small(row: ir.Value, mr: int = mr) -> None:
                deferred.keep(b, self._accumulate(mr, row))
                c = at(b, args["c"], b.mul(row, ldc))
                deferred.scale_tile(b, None, mr, self.nv, c, ldc)

            row = self._loop(mr, row, small)


def emit_microkernel(k: Kernel, b: ir.IRBuilder, args: dict[str, ir.Value]) -> None:
    """Emit the whole microkernel: row loop, one depth loop per tile shape, stores."""
    fn = b.function
    end = fn.append_basic_block("end")
    deferred = Deferred(k, b, args["requant"]) if k.fuses_requantize else None
    fused = b.icmp_unsigned("!=", b.ptrtoint(args["requant"], i64), const(i64, 0))
    add_c = b.icmp_signed("!=", args["add_c"], const(i64, 0))
    for n in range(k.max_nv, 0, -1):
        here, other = fn.append_basic_block(f"nv{n}"), fn.append_basic_block(f"not_nv{n}")
        b.cbranch(b.icmp_signed("==", args["nv"], const(i64, n)), here, other)
        b.position_at_end(here)
        rows = _Rows(k, b, args, n)
        if deferred is not None:
            scaling, plain = fn.append_basic_block(f"bytes_nv{n}"), fn.append_basic_block(f"int32_nv{n}")
            b.cbranch(fused, scaling, plain)
            b.position_at_end(scaling)
            rows.bytes(deferred)
            b.branch(end)
            b.position_at_end(plain)
        rows.int32(const(i64, 0), add_c)
        b.branch(end)
        b.position_at_end(other)
    b.branch(end)
    b.position_at_end(end)


ARGUMENTS = (
    "m", "nv", "groups", "lhs", "lhs_stride", "rhs", "rhs_stride",
    "c", "ldc", "row_terms", "col_terms", "add_c", "requant", "col",
)  # fmt: skip
POINTERS = frozenset({"lhs", "rhs", "c", "row_terms", "col_terms", "requant"})
#: Signature of every microkernel: pointers as void*, everything else a 64-bit integer.
SIGNATURE = signature("".join("p" if a in POINTERS else "n" for a in ARGUMENTS))


@intrinsic(prefer_literal=True)
def microkernel_body(typingctx, kernel_id, args):
    """Body of the microkernel number `kernel_id` of the registry."""
    from lowgemm.kernels import by_id

    kernel = by_id(kernel_id.literal_value)

    def codegen(context, builder, signature, values):
        items = cgutils.unpack_tuple(builder, values[1])
        emit_microkernel(kernel, builder, dict(zip(ARGUMENTS, items, strict=True)))
        return context.get_dummy_value()

    return types.void(kernel_id, args), codegen
