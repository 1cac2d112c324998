"""The tile loop: who computes which block of the result, in which order, on which thread.

    phase 0   pack the rhs into panels, with column sums and column compensation     (shared, all threads)
    phase 1   for each block of mc rows x nc columns, as a thread asks for one:
                  for each depth block of kc:
                      pack the lhs block (the thread's own buffer, stays in its L2)
                      for each tile of nr columns: microkernel over the mc rows
                  output stages on each finished tile while it is in L1, the last of which stores it

Blocks whose depth has several blocks, or whose rhs is not packed before, are in `deep_block.py`.

Where the result has too few blocks for all threads, the depth blocks are shared too (split-K). Each split of
a block's depth has an int32 tile of its own, and the thread that finishes the last split adds them up. That
is exact in any order.

Nothing here reads or writes matrix memory: addresses are integers, and each piece that touches memory is a C
function called through its address (see `jit/routine.py`). So this file is compiled once for all kernels and
all output pipelines. Blocks are handed out one by one (`jit/both_ends.py`): a thread may come late, or not at
all.

A call is described by two records (`records.py`): the plan `p`, made by `planner.py` and never written here,
so that Python threads may share it, with the layout of the batch behind it; and the state `s` of this call.

Arguments with the same name mean the same everywhere: `p` and `s` are these records, `a` is a batch item's
`ItemAddresses`, `space` the address of scratch memory. `sums`, `compensation`, `factors` and `tile` are
addresses of int32. `row`, `col` and `k` count elements of the result and of the depth, what ends in `0` is
where a block begins, and (`i`, `j`) is a block's place.

Next files to open: `deep_block.py`; `drivers.py`, who calls this; `output/tile_routine.py`, what happens to a
finished tile.
"""

from __future__ import annotations

import numpy as np

from lowgemm.engine.records import (
    ITEM_LHS_AT,
    ITEM_OUT_AT,
    ITEM_RHS,
    ITEM_SIZE,
    LISTED,
    NEVER,
    RHS_AT,
    RHS_SIZE,
    RHS_SUMS_AT,
    WHERE_ALIGNED,
    ItemAddresses,
    RhsAddresses,
)
from lowgemm.jit.both_ends import next_number
from lowgemm.jit.memory import (
    arrive_field,
    atomic_add,
    field_address,
    load_behind,
    load_field,
    pause,
    pointer_field,
    record_address,
    smaller,
)
from lowgemm.jit.routine import call_address, inner
from lowgemm.jit.scratch import ALIGNMENT
from lowgemm.kernels.framework.kernel import LIST_HEAD

#: Looks at a thread that still packs before a waiting one gives way: about 10 us.
_LOOKS = 300
#: Depth from which on a single whole panel and the rest of a second one are multiplied together, to the tile:
#: one panel alone runs slower. 1600 rows by 24 or 72 columns with AVX512-VNNI, the new time over the old one
#: to bytes and to int32: 0.86 and 0.84, 0.91 and 0.88 at a depth of 864; 0.88 and 0.92, 0.91 and 0.96 at 192;
#: 0.95 and 1.15, 1.06 and 1.06 at 64. AVX-VNNI and AVX2 gain or lose nothing.
DEEP_EDGE = 192


#: 0 and 1 as arguments. For plain ones, which are literals to Numba, and for booleans it would compile a
#: function once more.
NONE, ONE = np.int64(0), np.int64(1)


# ---- where things are -------------------------------------------------------------------------------------
@inner
def rhs_addresses(p, s, number, space):
    """The `RhsAddresses` of distinct rhs number `number`, whose scratch memory is at `space`."""
    first = ITEM_SIZE * p.batch + RHS_SIZE * number
    rhs = s.rhs + load_behind(p, first + RHS_AT)
    compensation, factors = space, space + p.col_bytes
    channel = number * p.channels_apart
    if p.packed:
        return RhsAddresses(
            np.int64(0), rhs, s.rhs_sums + load_behind(p, first + RHS_SUMS_AT), compensation, factors, channel
        )
    sums = factors + p.col_bytes
    return RhsAddresses(rhs, sums + p.col_bytes, sums, compensation, factors, channel)


@inner
def rhs_scratch(p, s, number, worker):
    """Address of the scratch memory of distinct rhs number `number` for a worker; see
    `records.RhsAddresses`.
    """
    each = 2 * p.col_bytes if p.packed else 3 * p.col_bytes + p.rhs_bytes
    return s.scratch_of_rhs + (worker if p.own_rhs != 0 else number) * each


@inner
def item_addresses(p, s, b, r):
    """The `ItemAddresses` of batch item number `b`, given the `RhsAddresses` of its rhs."""
    first = ITEM_SIZE * b
    lhs, out = s.lhs + load_behind(p, first + ITEM_LHS_AT), s.out + load_behind(p, first + ITEM_OUT_AT)
    return ItemAddresses(lhs, out, r.source, r.panels, r.sums, r.compensation, r.factors, r.channel)


# ---- phase 0 ----------------------------------------------------------------------------------------------
@inner
def compensate_columns(p, s, r, col, cols):
    """Make the compensation of `cols` columns from `col` on of an rhs, by its `RhsAddresses` or an item's
    `ItemAddresses`.
    """
    channel = r.channel + col
    call_address(
        p.compensation_routine,
        (
            cols, p.depth, r.sums + 4 * col, s.lhs_zero, s.rhs_zero, p.bilinear, s.rhs_zeros + 4 * channel,
            p.col_bias + 4 * channel, p.has_col_bias, r.compensation + 4 * col, r.factors + 4 * col,
        ),
    )  # fmt: skip


@inner
def prepare_columns(p, s, r, col, cols):
    """Pack `cols` columns from column `col` on of one rhs, and make their compensation; `r` is its
    `RhsAddresses`.
    """
    if r.source != 0:
        call_address(
            p.pack_rhs,
            (
                r.source + col * p.rhs_n_stride, p.rhs_n_stride, p.rhs_k_stride, cols, p.depth,
                p.rhs_flip, r.panels + col // p.lanes * p.rhs_panel_bytes, p.rhs_panel_bytes,
                r.sums + 4 * col,
            ),
        )  # fmt: skip
    compensate_columns(p, s, r, col, cols)


@inner
def prepare(p, s, worker):
    """Pack the rhs and make the column compensation: all of it for this worker alone, or `pack_chunk` columns
    at a time, until no columns are left and those that other threads took are done.
    """
    if p.on_the_fly_at != 0:
        return
    if p.own_rhs != 0:
        prepare_columns(p, s, rhs_addresses(p, s, NONE, rhs_scratch(p, s, NONE, worker)), NONE, p.n)
        return
    n, chunk = p.n, p.pack_chunk
    chunks = (n + chunk - 1) // chunk
    total, counters = p.distinct_rhs * chunks, field_address(s, "columns")
    while True:
        task = next_number(counters, worker, total)
        if task < 0:
            break
        number = task // chunks
        col = (task - number * chunks) * chunk
        r = rhs_addresses(p, s, number, rhs_scratch(p, s, number, worker))
        prepare_columns(p, s, r, col, smaller(chunk, n - col))
        arrive_field(s, "columns_done", 1)
    looks = 0
    while load_field(s, "columns_done") < total:
        looks += 1
        if looks % _LOOKS != 0:
            pause()
        elif p.give_way != 0:
            call_address(p.give_way, ())


# ---- phase 1 ----------------------------------------------------------------------------------------------
@inner
def _finish(p, s, a, tile, ld, rows, cols, row, col, row_sums):
    """Put a finished tile through the output stages; the last one stores it.

    `tile` is the address of `rows` x `cols` int32, whose rows are `ld` elements apart; its corner is element
    (`row`, `col`) of the result. `row_sums` is the address of the sums of these rows of the lhs.
    """
    channel = a.channel + col
    for i in range(p.stages):
        call_address(
            p.stage[i, 0],
            (
                tile, ld, rows, cols, row, channel, p.stage[i, 1],
                row_sums, a.factors + 4 * col, s.lhs_zeros + 4 * row, s.rhs_zeros + 4 * channel,
                a.out + row * p.out_row_stride + col * p.out_col_stride,
                p.out_row_stride, p.out_col_stride,
            ),
        )  # fmt: skip


@inner
def tile_width(p, left):
    """Columns of the next kernel call: nr, but two halves for the last nr + 1 panel, since one panel alone
    runs slower; or more, for a kernel that takes any number of panels.
    """
    most, lanes = p.call_columns, p.lanes
    if left == most + lanes:
        return (most // lanes + 2) // 2 * lanes
    return smaller(most, left)


@inner
def multiply(
    p,
    a,
    rows,
    col,
    cols,
    groups,
    lhs,
    lhs_stride,
    row_compensation,
    col_compensation,
    rhs_at,
    c,
    ldc,
    add_c,
    requant,
):
    """One microkernel call: `rows` x `cols` of one depth block, at most `p.call_columns` columns.

    `lhs` is the address of the lhs block, with `lhs_stride` bytes from one panel to the next, and `rhs_at`
    the byte offset of the depth block in the rhs panels. The other arguments are those of the kernel
    (`kernels/framework/kernel.py`). Where nothing is to be added, the compensation is at `p.no_compensation`.
    """
    lanes = p.lanes
    call_address(
        p.kernel,
        (
            rows, (cols + lanes - 1) // lanes, groups, lhs, lhs_stride,
            a.panels + col // lanes * p.rhs_panel_bytes + rhs_at, p.rhs_panel_bytes, c, ldc,
            row_compensation, col_compensation, add_c, requant, a.channel + col,
        ),
    )  # fmt: skip


@inner
def pack_lhs_block(p, s, a, row0, rows, k0, depth, space, sums, kept):
    """Pack `rows` x `depth` of the lhs from (`row0`, `k0`) on to `space`, and its row sums to `sums`, unless
    they are `kept` there from the last time.

    Gives the address that the kernel reads, and the bytes from one panel, or row, to the next. An lhs that
    stays in place is summed only where its sums count. One that is an image is gathered (`image.py`), or its
    pixels are copied, and the kernel reads a list (`pixels.py`).
    """
    summed = p.bilinear != 0 or s.rhs_zero != 0
    if p.image != 0:
        if p.steps_at != 0:
            if kept == 0:
                call_address(
                    p.pack_image,
                    (
                        a.lhs, p.image, row0, rows, p.piece_bytes, p.lhs_flip,
                        s.lhs_zero + p.lhs_shift * (1 + p.bilinear), s.lhs_zeros, p.pack_lhs, space,
                        p.lhs_panel_bytes, space + p.steps_at, p.list_size, space + p.pixel_sums_at, sums,
                        summed,
                    ),
                )  # fmt: skip
            return space + p.steps_at, p.lhs_panel_bytes
        if kept == 0:
            call_address(
                p.pack_image,
                (
                    a.lhs, p.image, row0, rows, k0, depth, p.lhs_flip,
                    s.lhs_zero + p.lhs_shift * (1 + p.bilinear), s.lhs_zeros, p.pack_lhs, space,
                    p.lhs_panel_bytes, space + p.patches_at, sums, summed,
                ),
            )  # fmt: skip
        return space, p.lhs_panel_bytes
    source = a.lhs + row0 * p.lhs_row_stride + k0 * p.lhs_k_stride
    in_place = p.lhs_in_place
    if in_place == LISTED:
        if kept == 0:
            call_address(p.list_lhs, (space, source, rows, p.in_order, p.kr, p.list_size - LIST_HEAD))
            if summed:
                call_address(p.pack_lhs, (source, p.lhs_row_stride, 1, rows, depth, 0, 0, 0, sums))
        return space, p.lhs_row_stride
    if in_place == WHERE_ALIGNED and (source % ALIGNMENT != 0 or p.lhs_row_stride % ALIGNMENT != 0):
        in_place = NEVER
    if kept == 0 and (in_place == NEVER or summed):
        call_address(
            p.pack_lhs,
            (
                source, p.lhs_row_stride, p.lhs_k_stride, rows, depth, p.lhs_flip,
                space if in_place == NEVER else 0, p.lhs_panel_bytes, sums,
            ),
        )  # fmt: skip
    if in_place == NEVER:
        return space, p.lhs_panel_bytes
    return source, p.lhs_row_stride


@inner
def compensate_rows(p, s, row0, rows, sums, biased, compensation):
    """Make the compensation of `rows` rows from `row0` on, whose sums are at `sums`; with the bias of the
    rows if `biased`.
    """
    call_address(
        p.compensation_routine,
        (
            rows, 0, sums, s.rhs_zero if p.bilinear == 0 else 0, 0, 0, NONE,
            p.row_bias + 4 * row0, p.has_row_bias if biased else 0, compensation, NONE,
        ),
    )  # fmt: skip


@inner
def add_sums(p, count, values, to):
    """Add `count` int32 at `values` to those at `to`: as compensation with zero point -1, and with what is at
    `to` as the bias.
    """
    call_address(p.compensation_routine, (count, 0, values, -1, 0, 0, NONE, to, 1, to, NONE))


@inner
def _block(p, s, a, row0, rows, col0, cols, space, kept):
    """One block of the result, rows x cols at (row0, col0), in one depth block.

    `space` is the thread's scratch memory, where the packed rows may be `kept` from the block before.
    """
    sums, row_compensation, tile = space + p.row_sums_at, space + p.row_compensation_at, space + p.tile_at
    nr, lanes = p.nr, p.lanes
    lhs, lhs_stride = pack_lhs_block(p, s, a, row0, rows, NONE, p.depth, space, sums, kept)
    if kept == 0:
        compensate_rows(p, s, row0, rows, sums, ONE, row_compensation)
    groups = (p.depth + p.kr - 1) // p.kr
    col, end = col0, col0 + cols
    while col < end:
        width = tile_width(p, end - col)
        if p.direct:
            # whole panels go straight to the result, as int32 or, with a fused scale, as bytes; what is left
            # of the last one takes the tile, and so does a single panel before it
            full = width // lanes * lanes
            if full == lanes and lanes < width <= nr and p.depth >= DEEP_EDGE:
                full = 0
            size = 4 if p.fused == 0 else 1
            if full > 0:
                multiply(
                    p, a, rows, col, full, groups, lhs, lhs_stride, row_compensation,
                    a.compensation + 4 * col, NONE,
                    a.out + row0 * p.out_row_stride + size * col, p.out_row_stride // size,
                    p.accumulate, p.fused,
                )  # fmt: skip
            col += full
            width -= full
        if width > 0:
            multiply(
                p, a, rows, col, width, groups, lhs, lhs_stride, row_compensation, a.compensation + 4 * col,
                NONE, tile, nr, NONE, NONE,
            )  # fmt: skip
            _finish(p, s, a, tile, nr, rows, width, row0, col, sums)
        col += width


@inner
def _deep_sums(p, s, a, row0, rows, col0, cols, split, space, sums, tile):
    """Have `deep_block` compute the int32 sums of a block; the arguments are its own."""
    call_address(
        p.deep_block,
        (
            record_address(p), record_address(s),
            a.lhs, a.out, a.source, a.panels, a.sums, a.compensation, a.factors, a.channel,
            row0, rows, col0, cols, split, space, sums, tile,
        ),
    )  # fmt: skip


@inner
def whole_block(p, s, a, i, j, space, kept):
    """Block (i, j), the whole depth; `kept` (0 or 1): the last block in `space` was of the same rows and
    batch item.
    """
    plane, col0 = i // p.plane_blocks, j * p.nc
    row0, end = plane * p.plane_rows + (i - plane * p.plane_blocks) * p.mc, (plane + 1) * p.plane_rows
    rows, cols = smaller(p.mc, end - row0), smaller(p.nc, p.n - col0)
    if p.deep_block == 0:
        _block(p, s, a, row0, rows, col0, cols, space, kept)
    else:
        sums, tile = space + p.row_sums_at, space + p.tile_at
        _deep_sums(p, s, a, row0, rows, col0, cols, NONE, space, sums, tile)
        ld = (cols + p.lanes - 1) // p.lanes * p.lanes
        if p.stream != 0:
            to = a.out + row0 * p.out_row_stride + 4 * col0
            call_address(p.stream, (tile, ld, rows, cols, to, p.out_row_stride))
        else:
            _finish(p, s, a, tile, ld, rows, cols, row0, col0, sums)


@inner
def _split(p, s, a, i, j, number, split, space):
    """One of the splits of block (i, j), the `number`-th block; the last thread to come adds them up and
    finishes the block.
    """
    row0, col0 = i * p.mc, j * p.nc
    rows, cols = smaller(p.mc, p.m - row0), smaller(p.nc, p.n - col0)
    first = s.scratch_of_splits + number * p.splits * p.split_bytes
    sums = first + split * p.split_bytes
    ld = (cols + p.lanes - 1) // p.lanes * p.lanes
    _deep_sums(p, s, a, row0, rows, col0, cols, split, space, sums, sums + 4 * p.mc)
    # the last one reads what others wrote
    if atomic_add(pointer_field(s, "splits_done"), number, 1) + 1 == p.splits:
        for other in range(1, p.splits):
            add_sums(
                p, p.mc + rows * ld, first + other * p.split_bytes, first
            )  # sums, and the tile behind them
        _finish(p, s, a, first + 4 * p.mc, ld, rows, cols, row0, col0, first)


@inner
def compute_blocks(p, s, worker):
    """Blocks of the result, until none are left, by thread number `worker`."""
    row_blocks, col_blocks, splits = p.row_blocks, p.col_blocks, p.splits
    total = p.batch * row_blocks * col_blocks * splits
    space = s.scratch_of_workers + worker * p.worker_bytes
    counters, last_rows = field_address(s, "blocks"), np.int64(-1)
    while True:
        task = next_number(counters, worker, total)
        if task < 0:
            break
        block = task // splits
        row_of_blocks = block // col_blocks
        b = row_of_blocks // row_blocks
        i, j = row_of_blocks % row_blocks, block % col_blocks
        rhs = load_behind(p, ITEM_SIZE * b + ITEM_RHS)
        a = item_addresses(p, s, b, rhs_addresses(p, s, rhs, rhs_scratch(p, s, rhs, worker)))
        if splits == 1:
            whole_block(p, s, a, i, j, space, np.int64(row_of_blocks == last_rows))
            last_rows = row_of_blocks
        else:
            _split(p, s, a, i, j, block, task % splits, space)
