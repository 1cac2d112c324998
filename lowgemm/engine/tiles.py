"""The tile loop: who computes which block of the result, in which order, on which thread.

    phase 0   pack the rhs into panels, with column sums and column terms     (shared, all threads)
    phase 1   for each block of mc rows x nc columns, as a thread asks for one:
                  for each depth block of kc:
                      pack the lhs block (the thread's own buffer, stays in its L2)
                      for each tile of nr columns: microkernel over the mc rows
                  output stages on each finished tile while it is in L1, the last of which stores it

An rhs that is not packed, has few rows to meet and does not fit L2 is not packed as a whole (which would write it to memory and read
it again) but one depth block at a time, right before that is multiplied.

Where the result has too few blocks for all threads, the depth blocks are shared too: each part of a block's depth has an int32 tile
of its own, and the thread that finishes the last part adds them up, which is exact in any order.

Nothing here reads or writes matrix memory: addresses are integers, and each piece that touches memory is a C
function called through its address (see `jit/routine.py`). So this file is compiled once for all kernels and all
output pipelines. Blocks are handed out by an atomic counter, because Numba's `prange` has a static schedule.

A call is described by two records (`records.py`): the plan `p`, made by `planner.py` and never written here, so that Python threads
may share it, with a table of where the matrices of a batch begin behind it; and the state `s` of this call.

Next files to open: `drivers.py`, who calls this; `output/tile_routine.py`, what happens to a finished tile.
"""

from __future__ import annotations

import numba
import numpy as np

from lowgemm.engine.records import PRODUCT, SLOT, ProductAddresses, RhsAddresses
from lowgemm.jit.memory import arrive_behind, load_behind, take_field
from lowgemm.jit.routine import call_address


# ---- where things are -------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def slot_addresses(p, s, j, space):
    """Addresses of distinct rhs number `j`, whose scratch memory is at `space`."""
    at = PRODUCT * p.batch + SLOT * j
    rhs = s.rhs + load_behind(p, at)
    terms, factors = space, space + p.col_bytes
    if p.packed:
        return RhsAddresses(np.int64(0), rhs, s.rhs_sums + load_behind(p, at + 1), terms, factors)
    sums = factors + p.col_bytes
    return RhsAddresses(rhs, sums + p.col_bytes, sums, terms, factors)


@numba.njit(nogil=True)
def slot_space(p, s, j):
    """Scratch memory of distinct rhs number `j`."""
    each = 2 * p.col_bytes if p.packed else 3 * p.col_bytes + p.slot_bytes
    return s.for_slots + j * each


@numba.njit(nogil=True)
def product_addresses(p, s, b, slot):
    """Addresses of product number `b`, given those of its rhs."""
    at = PRODUCT * b
    lhs, out = s.lhs + load_behind(p, at), s.out + load_behind(p, at + 1)
    return ProductAddresses(lhs, out, slot.source, slot.panels, slot.sums, slot.terms, slot.factors)


# ---- phase 0 ----------------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def _col_terms(p, s, sums, terms, factors, col, cols):
    call_address(
        p.col_terms_routine,
        (
            cols, p.depth, sums + 4 * col, s.lhs_zero, s.rhs_zero, p.bilinear, s.rhs_zeros + 4 * col,
            p.col_bias + 4 * col, p.has_col_bias, terms + 4 * col, factors + 4 * col,
        ),
    )  # fmt: skip


@numba.njit(nogil=True)
def prepare_columns(p, s, slot, col, cols):
    """Pack `cols` columns of one rhs, and make their terms."""
    if slot.source != 0:
        call_address(
            p.pack_rhs,
            (
                slot.source + col * p.rhs_n_stride, p.rhs_n_stride, p.rhs_k_stride, cols, p.depth,
                p.rhs_flip, slot.panels + col // p.lanes * p.rhs_panel_bytes, p.rhs_panel_bytes,
                slot.sums + 4 * col,
            ),
        )  # fmt: skip
    _col_terms(p, s, slot.sums, slot.terms, slot.factors, col, cols)


@numba.njit(nogil=True)
def prepare(p, s):
    """Pack the rhs and make the column terms, `pack_chunk` columns at a time, as long as there are any left."""
    if p.stream_at != 0:
        return
    n, chunk = p.n, p.pack_chunk
    chunks = (n + chunk - 1) // chunk
    while True:
        task = take_field(s, "next_columns", 1)
        j = task // chunks
        if j >= p.slots:
            break
        col = (task - j * chunks) * chunk
        prepare_columns(p, s, slot_addresses(p, s, j, slot_space(p, s, j)), col, min(chunk, n - col))


# ---- phase 1 ----------------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def _finish(p, s, a, tile, ld, rows, cols, row, col, row_sums):
    """Put a finished tile through the output stages; the last one stores it."""
    for i in range(p.stages):
        call_address(
            p.stage[i, 0],
            (
                tile, ld, rows, cols, row, col, p.stage[i, 1],
                row_sums, a.factors + 4 * col, s.lhs_zeros + 4 * row, s.rhs_zeros + 4 * col,
                a.out + row * p.out_row_stride + col * p.out_col_stride,
                p.out_row_stride, p.out_col_stride,
            ),
        )  # fmt: skip


@numba.njit(nogil=True)
def _tile_width(p, left):
    """Columns of the next tile: nr, but two halves for the last nr + 1 panel, since one panel alone runs slower."""
    nr, lanes = p.nr, p.lanes
    if left == nr + lanes:
        return (nr // lanes + 2) // 2 * lanes
    return min(nr, left)


@numba.njit(nogil=True)
def _multiply(p, a, rows, col, cols, groups, lhs, terms, col_terms, rhs_at, c, ldc, add_c, requant):
    """One microkernel call: `rows` x `cols` of one depth block, at most nr columns.

    `terms` and `col_terms` are the addresses of the terms of the first row and column; zeros leave them out.
    """
    lanes = p.lanes
    call_address(
        p.kernel,
        (
            rows, (cols + lanes - 1) // lanes, groups, lhs, p.lhs_panel_bytes,
            a.panels + col // lanes * p.rhs_panel_bytes + rhs_at, p.rhs_panel_bytes, c, ldc,
            terms, col_terms, add_c, requant, col,
        ),
    )  # fmt: skip


@numba.njit(nogil=True)
def _pack_lhs(p, a, row0, rows, k0, depth, space, sums):
    call_address(
        p.pack_lhs,
        (
            a.lhs + row0 * p.lhs_row_stride + k0 * p.lhs_k_stride, p.lhs_row_stride,
            p.lhs_k_stride, rows, depth, p.lhs_flip, space, p.lhs_panel_bytes, sums,
        ),
    )  # fmt: skip


@numba.njit(nogil=True)
def _row_terms(p, s, row0, rows, sums, biased, terms):
    call_address(
        p.row_terms_routine,
        (
            rows,
            sums,
            s.rhs_zero,
            p.bilinear,
            p.row_bias + 4 * row0,
            p.has_row_bias if biased else 0,
            terms,
        ),
    )


@numba.njit(nogil=True)
def _add(p, count, values, to):
    """Add int32 at one address to those at another: as row terms with zero point -1 and the sums so far as bias."""
    call_address(p.row_terms_routine, (count, values, -1, 0, to, 1, to))


@numba.njit(nogil=True)
def _block(p, s, a, row0, rows, col0, cols, space):
    """One block of the result, rows x cols at (row0, col0), when the depth is not split."""
    sums, terms, tile = space + p.row_sums_at, space + p.row_terms_at, space + p.tile_at
    nr, lanes = p.nr, p.lanes
    _pack_lhs(p, a, row0, rows, 0, p.depth, space, sums)
    _row_terms(p, s, row0, rows, sums, 1, terms)
    groups = (p.depth + p.kr - 1) // p.kr
    col, end = col0, col0 + cols
    while col < end:
        width = _tile_width(p, end - col)
        if p.direct:
            # whole panels go straight to the result, as int32 or, with a fused scale, as bytes; what is left of
            # the last one takes the tile
            full = width // lanes * lanes
            size = 4 if p.fused == 0 else 1
            if full > 0:
                _multiply(
                    p, a, rows, col, full, groups, space, terms, a.terms + 4 * col, 0,
                    a.out + row0 * p.out_row_stride + size * col, p.out_row_stride // size,
                    p.accumulate, p.fused,
                )  # fmt: skip
            col += full
            width -= full
        if width > 0:
            _multiply(p, a, rows, col, width, groups, space, terms, a.terms + 4 * col, 0, tile, nr, 0, 0)
            _finish(p, s, a, tile, nr, rows, width, row0, col, sums)
        col += width


@numba.njit(nogil=True)
def _stream(p, s, a, col0, cols, k0, depth, space):
    """Pack one depth block of some columns of an rhs that is not packed as a whole; gives `a` with the block's panels."""
    lanes = p.lanes
    panels = space + p.stream_at
    wide = (cols + lanes - 1) // lanes * lanes
    sums = a.sums + 4 * col0
    more = panels + wide * p.rhs_panel_bytes // lanes
    call_address(
        p.pack_rhs,
        (
            a.source + col0 * p.rhs_n_stride + k0 * p.rhs_k_stride, p.rhs_n_stride, p.rhs_k_stride, cols, depth,
            p.rhs_flip, panels, p.rhs_panel_bytes, sums if k0 == 0 else more,
        ),
    )  # fmt: skip
    if k0 > 0:
        _add(p, cols, more, sums)
    if k0 + depth == p.depth:
        _col_terms(p, s, a.sums, a.terms, a.factors, col0, cols)
    first = panels - col0 // lanes * p.rhs_panel_bytes
    return ProductAddresses(a.lhs, a.out, a.source, first, a.sums, a.terms, a.factors)


@numba.njit(nogil=True)
def _deep_block(p, s, a, row0, rows, col0, cols, part, space, sums, tile):
    """Part of the depth of a block, when the depth is split: its int32 sums stay in `tile`, the row sums in `sums`."""
    terms, more = space + p.row_terms_at, space + p.row_sums_at + 4 * p.mc
    nr, lanes, kc = p.nr, p.lanes, p.kc
    ld = (cols + lanes - 1) // lanes * lanes
    each = (p.depth_blocks + p.parts - 1) // p.parts
    first, end = part * each, min((part + 1) * each, p.depth_blocks)
    for d in range(first, end):
        k0 = d * kc
        depth = min(kc, p.depth - k0)
        _pack_lhs(p, a, row0, rows, k0, depth, space, sums if d == first else more)
        if d > first:
            _add(p, rows, more, sums)
        rhs_at = k0 // p.kr * p.rhs_group_bytes
        if p.stream_at != 0:
            a = _stream(p, s, a, col0, cols, k0, depth, space)
            rhs_at = 0
        here = p.zeros
        if (
            d + 1 == end
        ):  # the row terms of this part; what does not depend on the depth comes with the last part
            _row_terms(p, s, row0, rows, sums, d + 1 == p.depth_blocks, terms)
            here = terms
        groups = (depth + p.kr - 1) // p.kr
        for j in range(0, cols, nr):
            width = min(nr, cols - j)
            there = a.terms + 4 * (col0 + j) if d + 1 == p.depth_blocks else p.zeros
            _multiply(
                p, a, rows, col0 + j, width, groups, space, here, there, rhs_at, tile + 4 * j, ld, d > first, 0
            )  # fmt: skip


@numba.njit(nogil=True)
def whole_block(p, s, a, i, j, space):
    """Block (i, j), the whole depth."""
    row0, col0 = i * p.mc, j * p.nc
    rows, cols = min(p.mc, p.m - row0), min(p.nc, p.n - col0)
    if p.depth_blocks == 1 and p.stream_at == 0:
        _block(p, s, a, row0, rows, col0, cols, space)
    else:
        sums, tile = space + p.row_sums_at, space + p.tile_at
        _deep_block(p, s, a, row0, rows, col0, cols, 0, space, sums, tile)
        ld = (cols + p.lanes - 1) // p.lanes * p.lanes
        _finish(p, s, a, tile, ld, rows, cols, row0, col0, sums)


@numba.njit(nogil=True)
def _part(p, s, a, i, j, number, part, space):
    """One part of the depth of block (i, j), the `number`-th; the last to come adds them up and finishes the block."""
    row0, col0 = i * p.mc, j * p.nc
    rows, cols = min(p.mc, p.m - row0), min(p.nc, p.n - col0)
    first = s.for_parts + number * p.parts * p.part_bytes
    sums = first + part * p.part_bytes
    ld = (cols + p.lanes - 1) // p.lanes * p.lanes
    _deep_block(p, s, a, row0, rows, col0, cols, part, space, sums, sums + 4 * p.mc)
    # the last one reads the parts that others wrote
    if arrive_behind(s, number, 1) + 1 == p.parts:
        for other in range(1, p.parts):
            _add(p, p.mc + rows * ld, first + other * p.part_bytes, first)  # sums, and the tile behind them
        _finish(p, s, a, first + 4 * p.mc, ld, rows, cols, row0, col0, first)


@numba.njit(nogil=True)
def compute_blocks(p, s, worker):
    """Blocks of the result, as long as there are any left."""
    row_blocks, col_blocks, parts = p.row_blocks, p.col_blocks, p.parts
    total = p.batch * row_blocks * col_blocks * parts
    space = s.for_workers + worker * p.worker_bytes
    while True:
        task = take_field(s, "next_block", 1)
        if task >= total:
            break
        number = task // parts
        rest = number // col_blocks
        b = rest // row_blocks
        j = load_behind(p, PRODUCT * b + 2)
        a = product_addresses(p, s, b, slot_addresses(p, s, j, slot_space(p, s, j)))
        if parts == 1:
            whole_block(p, s, a, rest % row_blocks, number % col_blocks, space)
        else:
            _part(p, s, a, rest % row_blocks, number % col_blocks, number, task % parts, space)
