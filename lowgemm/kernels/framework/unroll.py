"""From a description to a microkernel: the framework that unrolls the tile hooks into loops over rows and
depth.

The contract is in `kernel.py`; `deferred.py` has the stores that overlap with the next tile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from lowgemm.kernels.framework.deferred import Deferred
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i8, i32, i64, load, splat, store, vec
from lowgemm.kernels.framework.kernel import LIST_HEAD, Kernel
from lowgemm.kernels.framework.requant import FIXED_POINT

#: Accumulators of a tile, below which the depth has two sets of them in turn: each product waits for the one
#: before, 5 cycles, and one row by three panels has three of them in flight.
FEW = 5


#: From a number of a row in a tile to its address.
Addresses = Callable[[int | ir.Value], ir.Value]


def _prefetch_c(b: ir.IRBuilder, place_of: Addresses, mr: int, row_bytes: int) -> None:
    """Ask for the lines of the result before the depth loop hides the wait."""
    void = ir.VoidType()
    for r in range(mr):
        row = place_of(r)
        for line in range(0, row_bytes, 64):
            write, keep, data = const(i32, 1), const(i32, 3), const(i32, 1)
            call_intrinsic(b, "llvm.prefetch.p0", void, [at(b, row, line), write, keep, data])


def _panel_rows(k: Kernel, lhs: ir.Value) -> Any:
    """Where the rows of a packed panel are, for `_depth_loop`: from (builder, step, number of a group behind
    it) to a function that gives a row's address.
    """

    def rows(b: ir.IRBuilder, step: ir.Value, u: int) -> Addresses:
        group = at(b, at(b, lhs, b.mul(step, const(i64, k.lhs_group_bytes))), u * k.lhs_group_bytes)
        return lambda r: at(b, group, r * k.kr * k.element_bytes)

    return rows


def _listed_rows(first: ir.Value, stride: ir.Value, three: ir.Value, pieces: ir.Value) -> Any:
    """Likewise where rows lie `stride` bytes apart from `first` on, and `pieces` points to how far the groups
    are behind that; `three` is three strides.

    x86 adds 1, 2, 4 or 8 times a register to an address, so eight rows need no more than two pointers and two
    strides.
    """

    def rows(b: ir.IRBuilder, step: ir.Value, u: int) -> Addresses:
        piece = load(b, i64, at(b, at(b, pieces, b.shl(step, const(i64, 3))), 8 * u), 8)
        row_0 = at(b, first, piece)
        row_3 = at(b, row_0, three)

        def address(r: int) -> ir.Value:
            if r in (5, 7):
                return at(b, row_3, b.mul(stride, const(i64, r - 3)))
            return at(
                b, row_0, b.mul(three, const(i64, r // 3)) if r % 3 == 0 else b.mul(stride, const(i64, r))
            )

        return address

    return rows


def _depth_loop(
    k: Kernel,
    b: ir.IRBuilder,
    nv: int,
    start: ir.Value,
    stop: ir.Value,
    count: int,
    addresses,
    sets,
    extra=None,
) -> list[dict]:
    """Emit ``for step in range(start, stop, count)`` over depth groups, `count` of them in each turn.

    Each of a turn's groups has the next of the `sets` of accumulators, in turn. `extra`, a function of
    (builder, step), emits what else each turn does. `addresses`: where the rows of the lhs are (see
    `_panel_rows`), and the panels of the rhs.
    """
    fn = b.function
    rows, rhs = addresses
    entry, body, done = b.block, fn.append_basic_block("depth"), fn.append_basic_block("depth_done")
    b.cbranch(b.icmp_signed("<", start, stop), body, done)
    b.position_at_end(body)
    step = b.phi(i64)
    step.add_incoming(start, entry)
    phis = [{key: tuple(b.phi(a.type) for a in regs) for key, regs in one.items()} for one in sets]
    now = list(phis)
    for u in range(count):
        row_at = rows(b, step, u)
        rhs_off = b.mul(step, const(i64, k.rhs_group_bytes))
        panels = [at(b, at(b, rhs[v], rhs_off), u * k.rhs_group_bytes) for v in range(nv)]
        right = [partial(k.load_rhs, b, p) if k.reloads_rhs else k.load_rhs(b, p) for p in panels]
        following, before = {}, now[u % len(sets)]
        for r in sorted({r for r, _ in before}):
            left = k.load_lhs(b, row_at(r))
            row = k.row_products(b, [before[r, v] for v in range(nv)], left, right)
            following.update({(r, v): acc for v, acc in enumerate(row)})
        now[u % len(sets)] = following
    if extra is not None:
        extra(b, step)
    next_index = b.add(step, const(i64, count), flags=["nuw", "nsw"])
    step.add_incoming(next_index, body)
    b.cbranch(b.icmp_signed("<", next_index, stop), body, done)
    b.position_at_end(done)
    final: list[dict] = []
    for one, of_one, last in zip(sets, phis, now, strict=True):
        final.append({})
        for key, regs in one.items():
            out = []
            for before, phi, after in zip(regs, of_one[key], last[key], strict=True):
                phi.add_incoming(before, entry)
                phi.add_incoming(after, body)
                p = b.phi(before.type)
                p.add_incoming(before, entry)
                p.add_incoming(after, body)
                out.append(p)
            final[-1][key] = tuple(out)
    return final


def _tile(k: Kernel, b: ir.IRBuilder, mr: int, nv: int, groups, rows, rhs, rhs_stride, begin=None) -> dict:
    """Emit the depth loop of an `mr` x `nv` tile; gives its accumulators by (first row, panel). `rows`: see
    `_panel_rows`.

    `begin`, if given, is a pair of a number of depth groups and what else each of these first groups does.
    """
    addresses = rows, [at(b, rhs, b.mul(rhs_stride, const(i64, v))) if v else rhs for v in range(nv)]
    accs = {(r, v): k.zero() for r in range(0, mr, k.lhs_rows) for v in range(nv)}
    start = const(i64, 0)
    if begin is not None:
        (accs,) = _depth_loop(k, b, nv, start, begin[0], 1, addresses, [accs], begin[1])
        start = begin[0]
    sets = [accs]
    if k.adds_up and len(accs) < FEW:
        sets.append({key: k.zero() for key in accs})
    count = max(k.unroll, len(sets))
    if count > 1:
        whole = b.sub(groups, b.srem(b.sub(groups, start), const(i64, count)))
        sets = _depth_loop(k, b, nv, start, whole, count, addresses, sets)
        start = whole
    for more in sets[1:]:
        sets[0] = {
            key: tuple(b.add(x, y) for x, y in zip(regs, more[key], strict=True))
            for key, regs in sets[0].items()
        }
    return _depth_loop(k, b, nv, start, groups, 1, addresses, sets[:1])[0]


def _sums(k: Kernel, b: ir.IRBuilder, mr: int, accs, cols, of_rows: Addresses) -> dict:
    """Emit: a tile's sums with the compensation added, by (row, panel); that of a row is where `of_rows`
    says.
    """
    values = {}
    for (head, v), acc in accs.items():
        for r, x in enumerate(k.finalize(b, acc), head):
            if r < mr:  # a register of several rows may reach past an odd last one
                of_row = splat(b, load(b, i32, of_rows(r), 4), k.lanes)
                values[r, v] = b.add(x, b.add(of_row, cols[v]))
    return values


def _store_sums(k: Kernel, b: ir.IRBuilder, values, place_of: Addresses, add_c) -> None:
    """Emit: store int32 sums, with `c` added on request."""
    fn = b.function
    plain, adding, stored = (fn.append_basic_block(name) for name in ("plain", "adding", "stored"))
    b.cbranch(add_c, adding, plain)
    for block in (plain, adding):
        b.position_at_end(block)
        for (r, v), value in sorted(values.items()):
            place = at(b, place_of(r), v * 4 * k.lanes)
            if block is adding:
                value = b.add(value, load(b, value.type, place, 4))
            store(b, value, place, 4)
        b.branch(stored)
    b.position_at_end(stored)


class _Rows:
    """Emits the loops over the rows of one call: ``while m - row >= mr`` for each tile height."""

    def __init__(
        self, k: Kernel, b: ir.IRBuilder, args: dict[str, ir.Value], nv: int, scattered: bool
    ) -> None:
        self.k, self.b, self.args, self.nv, self.scattered = k, b, args, nv, scattered
        self.count = args["m"]
        if scattered:  # see `Kernel.scatters`
            self.first, self.count, self.places = (
                load(b, ty, at(b, args["lhs"], 8 * i), 8)
                for i, ty in enumerate((i8.as_pointer(), i64, i8.as_pointer()))
            )
            self.pieces = at(b, args["lhs"], 8 * LIST_HEAD)
            self.three = b.mul(args["lhs_stride"], const(i64, 3))
        vbytes = 4 * k.lanes
        self.cols = [
            load(b, vec(i32, k.lanes), at(b, args["col_compensation"], v * vbytes), 4) for v in range(nv)
        ]

    def _loop(self, mr: int, row_in: ir.Value, body: Any) -> ir.Value:
        b, fn = self.b, self.b.function
        head, tile, after = (
            fn.append_basic_block(f"{name}_{mr}x{self.nv}") for name in ("rows", "tile", "after")
        )
        before_loop = b.block
        b.branch(head)
        b.position_at_end(head)
        row = b.phi(i64)
        row.add_incoming(row_in, before_loop)
        b.cbranch(b.icmp_signed("<=", b.add(row, const(i64, mr)), self.count), tile, after)
        b.position_at_end(tile)
        body(row)
        next_index = b.add(row, const(i64, mr))
        row.add_incoming(next_index, b.block)
        b.branch(head)
        b.position_at_end(after)
        return row

    def _of_result(self, base: ir.Value, stride: int | ir.Value, row: ir.Value) -> Addresses:
        """Addresses of something of the result's rows, `stride` bytes apart from `base` on, for the tile from
        `row` on.
        """
        b = self.b
        apart = const(i64, stride) if isinstance(stride, int) else stride
        if self.scattered:
            places = at(b, self.places, b.shl(row, const(i64, 3)))

            def listed(r: int | ir.Value) -> ir.Value:
                place = load(
                    b, i64, at(b, places, 8 * r if isinstance(r, int) else b.shl(r, const(i64, 3))), 8
                )
                return at(b, base, b.mul(apart, place))

            return listed
        start = at(b, base, b.mul(row, apart))
        if isinstance(stride, int):
            return lambda r: at(b, start, stride * r)
        return lambda r: at(b, start, b.mul(apart, const(i64, r) if isinstance(r, int) else r))

    def _accumulate(self, mr: int, row: ir.Value, begin: Any = None) -> dict:
        k, b, args = self.k, self.b, self.args
        hooks = k.at_height(mr)
        if self.scattered:
            first = at(b, self.first, b.mul(row, args["lhs_stride"]))
            rows = _listed_rows(first, args["lhs_stride"], self.three, self.pieces)
        else:
            panel, within = b.udiv(row, const(i64, k.mr)), b.urem(row, const(i64, k.mr))
            lhs = at(b, args["lhs"], b.mul(panel, args["lhs_stride"]))
            rows = _panel_rows(hooks, at(b, lhs, b.mul(within, const(i64, k.kr * k.element_bytes))))
        accs = _tile(hooks, b, mr, self.nv, args["groups"], rows, args["rhs"], args["rhs_stride"], begin)
        return _sums(hooks, b, mr, accs, self.cols, self._of_result(args["row_compensation"], 4, row))

    def int32(self, row: ir.Value, add_c: ir.Value) -> None:
        """Tiles of every height from `row` on, stored as int32."""
        k, b, args = self.k, self.b, self.args
        ldc_bytes = b.mul(args["ldc"], const(i64, 4))
        # Heights fall, so each of the smaller ones runs at most once where they halve; the loop form costs
        # nothing and needs no such assumption.
        for mr in k.row_tiles:

            def tile(row: ir.Value, mr: int = mr) -> None:
                place_of = self._of_result(args["c"], ldc_bytes, row)
                _prefetch_c(b, place_of, mr, 4 * k.lanes * self.nv)
                _store_sums(k, b, self._accumulate(mr, row), place_of, add_c)

            row = self._loop(mr, row, tile)

    def bytes(self, deferred: Deferred) -> None:
        """The same, scaled and stored as bytes; where registers allow, each full tile while the next one
        multiplies.
        """
        k, b, args = self.k, self.b, self.args
        ldc = args["ldc"]
        deferred.prepare(b, self.nv, args["col"])
        zero, full = const(i64, 0), k.row_tiles[0]
        registers = const(i64, full * self.nv)

        def waiting(row: ir.Value) -> tuple[Addresses, ir.Value]:
            """Where the rows of the tile before go, and the registers of it that are done: all, if there is
            no such tile.
            """
            before = self._of_result(args["c"], ldc, b.sub(row, const(i64, full)))
            return before, b.select(b.icmp_signed("==", row, zero), registers, zero)

        def tile(row: ir.Value) -> None:
            before, done = waiting(row)
            fewer = b.select(b.icmp_signed("<", args["groups"], registers), args["groups"], registers)
            steps = b.select(b.icmp_signed("==", done, zero), fewer, zero)
            scale = lambda b, step: deferred.scale(b, step, self.nv, before)  # noqa: E731
            values = self._accumulate(full, row, (steps, scale))
            deferred.scale_rest(b, b.add(done, steps), self.nv, before)
            deferred.keep(b, values)

        row, heights = zero, k.row_tiles
        if k.defers_requantize:
            row, heights = self._loop(full, zero, tile), heights[1:]
            before, _ = waiting(row)
            deferred.scale_tile(b, b.icmp_signed("==", row, zero), full, self.nv, before)
        for mr in heights:

            def small(row: ir.Value, mr: int = mr) -> None:
                deferred.keep(b, self._accumulate(mr, row))
                deferred.scale_tile(b, None, mr, self.nv, self._of_result(args["c"], ldc, row))

            row = self._loop(mr, row, small)


def emit_microkernel(
    k: Kernel,
    b: ir.IRBuilder,
    args: dict[str, ir.Value],
    lhs_signed: bool = False,
    scaling: Any = FIXED_POINT,
    scattered: bool = False,
) -> None:
    """Emit the whole microkernel: row loop, one depth loop per tile shape, stores. `lhs_signed` is for
    kernels that take both signs, `scaling` the scale of those that can do one, `scattered` for those that
    find the depth steps of the lhs through a list.
    """
    if k.emit(b, args, lhs_signed, scaling, scattered):
        return
    fn = b.function
    end = fn.append_basic_block("end")
    deferred = Deferred(k, b, args["requant"], scaling) if k.fuses_requantize else None
    fused = b.icmp_unsigned("!=", b.ptrtoint(args["requant"], i64), const(i64, 0))
    add_c = b.icmp_signed("!=", args["add_c"], const(i64, 0))
    for n in range(k.max_nv, 0, -1):
        taken, not_taken = fn.append_basic_block(f"nv{n}"), fn.append_basic_block(f"not_nv{n}")
        b.cbranch(b.icmp_signed("==", args["nv"], const(i64, n)), taken, not_taken)
        b.position_at_end(taken)
        rows = _Rows(k, b, args, n, scattered)
        if deferred is not None:
            scaling, plain = fn.append_basic_block(f"bytes_nv{n}"), fn.append_basic_block(f"int32_nv{n}")
            b.cbranch(fused, scaling, plain)
            b.position_at_end(scaling)
            rows.bytes(deferred)
            b.branch(end)
            b.position_at_end(plain)
        rows.int32(const(i64, 0), add_c)
        b.branch(end)
        b.position_at_end(not_taken)
    b.branch(end)
    b.position_at_end(end)
