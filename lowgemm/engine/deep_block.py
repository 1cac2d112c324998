"""Int32 sums of one block of the result whose depth has several blocks, or whose rhs is not packed before.

An rhs may be packed on the fly: one depth block at a time, right before that is multiplied. That is done
where it comes unpacked, does not fit L2 and meets few rows. To pack it as a whole would write it to memory
and read it again. With very few rows it is not packed at all but multiplied where it lies (`in_place.py`).

This is a routine of its own, since most plans never call it: then it is not compiled. The names are those of
`tiles.py`, which calls it.
"""

from __future__ import annotations

import numpy as np

from lowgemm.engine.records import ItemAddresses, plan_at, state_at
from lowgemm.engine.tiles import (
    NONE,
    ONE,
    add_sums,
    compensate_columns,
    compensate_rows,
    multiply,
    pack_lhs_block,
    tile_width,
)
from lowgemm.jit.memory import smaller
from lowgemm.jit.routine import call_address, inner, routine


@inner
def _pack_on_the_fly(p, s, a, col0, cols, k0, depth, space):
    """Pack columns `col0` on, depth `k0` on, right before they are multiplied; gives `a` with
    these panels.
    """
    lanes = p.lanes
    panels = space + p.on_the_fly_at
    wide = (cols + lanes - 1) // lanes * lanes
    sums = a.sums + 4 * col0
    sums_of_block = panels + wide * p.rhs_panel_bytes // lanes
    call_address(
        p.pack_rhs,
        (
            a.source + col0 * p.rhs_n_stride + k0 * p.rhs_k_stride, p.rhs_n_stride, p.rhs_k_stride, cols,
            depth, p.rhs_flip, panels, p.rhs_panel_bytes, sums if k0 == 0 else sums_of_block,
        ),
    )  # fmt: skip
    if k0 > 0:
        add_sums(p, cols, sums_of_block, sums)
    if k0 + depth == p.depth:
        compensate_columns(p, s, a, col0, cols)
    first = panels - col0 // lanes * p.rhs_panel_bytes
    return ItemAddresses(a.lhs, a.out, a.source, first, a.sums, a.compensation, a.factors, a.channel)


@inner
def _deep_block(p, s, a, row0, rows, col0, cols, split, space, sums, tile):
    """One of the splits of a block whose depth has several blocks: its int32 sums go to `tile`, its row sums
    to `sums` (addresses).
    """
    row_compensation, sums_of_block = space + p.row_compensation_at, space + p.row_sums_at + 4 * p.mc
    lanes, kc = p.lanes, p.kc
    ld = (cols + lanes - 1) // lanes * lanes
    each = (p.depth_blocks + p.splits - 1) // p.splits
    first, end = split * each, smaller((split + 1) * each, p.depth_blocks)
    for d in range(first, end):
        k0 = d * kc
        depth = smaller(kc, p.depth - k0)
        lhs, lhs_stride = pack_lhs_block(
            p, s, a, row0, rows, k0, depth, space, sums if d == first else sums_of_block, NONE
        )
        if d > first:
            add_sums(p, rows, sums_of_block, sums)
        rhs_at = k0 // p.kr * p.rhs_group_bytes
        if p.on_the_fly_at != 0:
            a = _pack_on_the_fly(p, s, a, col0, cols, k0, depth, space)
            rhs_at = 0
        for_rows = p.no_compensation
        # The row sums of a split are complete in its last block. What does not depend on the depth is added
        # with the last of all blocks.
        if d + 1 == end:
            compensate_rows(p, s, row0, rows, sums, np.int64(d + 1 == p.depth_blocks), row_compensation)
            for_rows = row_compensation
        groups = (depth + p.kr - 1) // p.kr
        j = 0
        while j < cols:
            width = tile_width(p, cols - j)
            for_cols = a.compensation + 4 * (col0 + j) if d + 1 == p.depth_blocks else p.no_compensation
            multiply(
                p, a, rows, col0 + j, width, groups, lhs, lhs_stride, for_rows, for_cols, rhs_at,
                tile + 4 * j, ld, np.int64(d > first), NONE,
            )  # fmt: skip
            j += width


@inner
def _block_in_place(p, s, a, row0, rows, col0, cols, space, sums, tile):
    """One block of the result, the whole depth, of an rhs that is read where it lies: int32 sums to `tile`,
    row sums to `sums` (addresses).
    """
    row_compensation = space + p.row_compensation_at
    ld = (cols + p.lanes - 1) // p.lanes * p.lanes
    call_address(
        p.in_place,
        (
            a.lhs + row0 * p.lhs_row_stride, p.lhs_row_stride, p.lhs_k_stride, rows, p.depth, p.lhs_flip,
            a.source + col0 * p.rhs_n_stride, p.rhs_k_stride, p.rhs_n_stride, cols, p.rhs_flip,
            space + p.on_the_fly_at, tile, ld, sums, a.sums + 4 * col0,
        ),
    )  # fmt: skip
    compensate_columns(p, s, a, col0, cols)
    compensate_rows(p, s, row0, rows, sums, ONE, row_compensation)
    call_address(p.in_place_compensation, (tile, ld, rows, cols, row_compensation, a.compensation + 4 * col0))


@routine("pp" + "n" * 16)
def deep_block(
    plan, state, lhs, out, source, panels, sums_of_rhs, compensation, factors, channel,
    row0, rows, col0, cols, split, space, sums, tile,
):  # fmt: skip
    """One of the splits of a block: int32 sums to `tile`, row sums to `sums`.

    After the addresses of the plan and of the state come the fields of the batch item's `ItemAddresses`.
    """
    p, s = plan_at(plan), state_at(state)
    a = ItemAddresses(lhs, out, source, panels, sums_of_rhs, compensation, factors, channel)
    if p.in_place != 0:
        _block_in_place(p, s, a, row0, rows, col0, cols, space, sums, tile)
    else:
        _deep_block(p, s, a, row0, rows, col0, cols, split, space, sums, tile)
