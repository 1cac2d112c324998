"""From a description to a microkernel: the framework that unrolls the tile hooks into loops over rows and
depth.

The contract is in `kernel.py`; `deferred.py` has the stores that overlap with the next tile.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir

from lowgemm.kernels.framework.deferred import Deferred
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i32, i64, load, splat, store, vec
from lowgemm.kernels.framework.kernel import Kernel
from lowgemm.kernels.framework.requant import FIXED_POINT

#: Accumulators of a tile, below which the depth has two sets of them in turn: each product waits for the one
#: before, 5 cycles, and one row by three panels has three of them in flight.
FEW = 5


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
    sets,
    extra=None,
) -> list[dict]:
    """Emit ``for step in range(start, stop, count)`` over depth groups, `count` of them in each turn.

    Each of a turn's groups has the next of the `sets` of accumulators, in turn. `extra`, a function of
    (builder, step), emits what else each turn does.
    """
    fn = b.function
    lhs, rhs = addresses
    entry, body, done = b.block, fn.append_basic_block("depth"), fn.append_basic_block("depth_done")
    b.cbranch(b.icmp_signed("<", start, stop), body, done)
    b.position_at_end(body)
    step = b.phi(i64)
    step.add_incoming(start, entry)
    phis = [{key: tuple(b.phi(a.type) for a in regs) for key, regs in one.items()} for one in sets]
    now = list(phis)
    for u in range(count):
        lhs_at = at(b, at(b, lhs, b.mul(step, const(i64, k.lhs_group_bytes))), u * k.lhs_group_bytes)
        rhs_off = b.mul(step, const(i64, k.rhs_group_bytes))
        panels = [at(b, at(b, rhs[v], rhs_off), u * k.rhs_group_bytes) for v in range(nv)]
        right = [partial(k.load_rhs, b, p) if k.reloads_rhs else k.load_rhs(b, p) for p in panels]
        following, before = {}, now[u % len(sets)]
        for r in sorted({r for r, _ in before}):
            left = k.load_lhs(b, at(b, lhs_at, r * k.kr * k.element_bytes))
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


def _tile(k: Kernel, b: ir.IRBuilder, mr: int, nv: int, groups, lhs, rhs, rhs_stride, begin=None) -> dict:
    """Emit the depth loop of an `mr` x `nv` tile; gives its accumulators by (first row, panel).

    `begin`, if given, is a pair of a number of depth groups and what else each of these first groups does.
    """
    addresses = lhs, [at(b, rhs, b.mul(rhs_stride, const(i64, v))) if v else rhs for v in range(nv)]
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


def _sums(k: Kernel, b: ir.IRBuilder, mr: int, accs, cols, rows) -> dict:
    """Emit: a tile's sums with the compensation added, by (row, panel)."""
    values = {}
    for (head, v), acc in accs.items():
        for r, x in enumerate(k.finalize(b, acc), head):
            if r < mr:  # a register of several rows may reach past an odd last one
                of_row = splat(b, load(b, i32, at(b, rows, 4 * r), 4), k.lanes)
                values[r, v] = b.add(x, b.add(of_row, cols[v]))
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
        b.cbranch(b.icmp_signed("<=", b.add(row, const(i64, mr)), self.args["m"]), tile, after)
        b.position_at_end(tile)
        body(row)
        next_index = b.add(row, const(i64, mr))
        row.add_incoming(next_index, b.block)
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
        return _sums(
            hooks, b, mr, accs, self.cols, at(b, args["row_compensation"], b.mul(row, const(i64, 4)))
        )

    def int32(self, row: ir.Value, add_c: ir.Value) -> None:
        """Tiles of every height from `row` on, stored as int32."""
        k, b, args = self.k, self.b, self.args
        ldc_bytes = b.mul(args["ldc"], const(i64, 4))
        # Heights fall, so each of the smaller ones runs at most once where they halve; the loop form costs
        # nothing and needs no such assumption.
        for mr in k.row_tiles:

            def tile(row: ir.Value, mr: int = mr) -> None:
                c = at(b, args["c"], b.mul(row, ldc_bytes))
                _prefetch_c(b, c, ldc_bytes, mr, 4 * k.lanes * self.nv)
                _store_sums(k, b, self._accumulate(mr, row), c, ldc_bytes, add_c)

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

        def waiting(row: ir.Value) -> tuple[ir.Value, ir.Value]:
            """Where the tile before goes, and the registers of it that are done: all, if there is no such
            tile.
            """
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
        b.position_at_end(not_taken)
    b.branch(end)
    b.position_at_end(end)
