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

A call is described by two things: the plan `p`, int64 numbers made by `plan.py` and never written here, so that
Python threads may share it, with a table of where the matrices of a batch begin; and the state `s` of this call (`layout.py`).

Next files to open: `drivers.py`, who calls this; `output/tile_routine.py`, what happens to a finished tile.
"""

from __future__ import annotations

import numba

from lowgemm.engine.layout import (
    ACCUMULATE,
    BATCH,
    BILINEAR,
    COL_BIAS,
    COL_BLOCKS,
    COL_BYTES,
    COL_FACTORS,
    COL_SUMS,
    COL_TERMS,
    COL_TERMS_ROUTINE,
    COUNTER0,
    COUNTER1,
    DEPTH,
    DEPTH_BLOCKS,
    DIRECT,
    FOR_PARTS,
    FOR_SLOTS,
    FOR_WORKERS,
    FUSED,
    HAS_COL_BIAS,
    HAS_ROW_BIAS,
    KC,
    KERNEL,
    KR,
    LANES,
    LHS,
    LHS_ADDRESS,
    LHS_FLIP,
    LHS_K_STRIDE,
    LHS_PANEL_BYTES,
    LHS_ROW_STRIDE,
    LHS_ZERO,
    LHS_ZEROS,
    MC,
    NC,
    NR,
    OUT,
    OUT_ADDRESS,
    OUT_COL_STRIDE,
    OUT_ROW_STRIDE,
    PACK_CHUNK,
    PACK_LHS,
    PACK_RHS,
    PACKED,
    PART_BYTES,
    PARTS,
    PLAN_SIZE,
    PRODUCT,
    RHS,
    RHS_FLIP,
    RHS_GROUP_BYTES,
    RHS_K_STRIDE,
    RHS_N_STRIDE,
    RHS_PANEL_BYTES,
    RHS_PANELS,
    RHS_SUMS,
    RHS_ZERO,
    RHS_ZEROS,
    ROW_BIAS,
    ROW_BLOCKS,
    ROW_SUMS_AT,
    ROW_TERMS_AT,
    ROW_TERMS_ROUTINE,
    SLOT,
    SLOT_BYTES,
    SLOT_FACTORS,
    SLOT_PANELS,
    SLOT_SOURCE,
    SLOT_SUMS,
    SLOT_TERMS,
    SLOTS,
    SOURCE,
    STAGES,
    STAGES_AT,
    STATE_SIZE,
    STREAM_AT,
    TILE_AT,
    WORKER_BYTES,
    ZEROS,
    M,
    N,
)
from lowgemm.jit.memory import arrive, take
from lowgemm.jit.routine import call_address


# ---- where things are -------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def slot_addresses(p, s, j, space):
    """Addresses of distinct rhs number `j`, whose scratch memory is at `space`."""
    at = PLAN_SIZE + PRODUCT * p[BATCH] + SLOT * j
    terms, factors = space, space + p[COL_BYTES]
    if p[PACKED]:
        return 0, s[RHS] + p[at], s[RHS_SUMS] + p[at + 1], terms, factors
    sums = factors + p[COL_BYTES]
    return s[RHS] + p[at], sums + p[COL_BYTES], sums, terms, factors


@numba.njit(nogil=True)
def slot_space(p, s, j):
    """Scratch memory of distinct rhs number `j`."""
    each = 2 * p[COL_BYTES] if p[PACKED] else 3 * p[COL_BYTES] + p[SLOT_BYTES]
    return s[FOR_SLOTS] + j * each


@numba.njit(nogil=True)
def product_addresses(p, s, b, slot):
    """Addresses of product number `b`, given those of its rhs."""
    at = PLAN_SIZE + PRODUCT * b
    return (
        s[LHS] + p[at], slot[SLOT_PANELS], slot[SLOT_TERMS], slot[SLOT_FACTORS], s[OUT] + p[at + 1],
        slot[SLOT_SOURCE], slot[SLOT_SUMS],
    )  # fmt: skip


# ---- phase 0 ----------------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def _col_terms(p, s, sums, terms, factors, col, cols):
    call_address(
        p[COL_TERMS_ROUTINE],
        (
            cols, p[DEPTH], sums + 4 * col, s[LHS_ZERO], s[RHS_ZERO], p[BILINEAR], s[RHS_ZEROS] + 4 * col,
            p[COL_BIAS] + 4 * col, p[HAS_COL_BIAS], terms + 4 * col, factors + 4 * col,
        ),
    )  # fmt: skip


@numba.njit(nogil=True)
def prepare_columns(p, s, slot, col, cols):
    """Pack `cols` columns of one rhs, and make their terms."""
    if slot[SLOT_SOURCE] != 0:
        call_address(
            p[PACK_RHS],
            (
                slot[SLOT_SOURCE] + col * p[RHS_N_STRIDE], p[RHS_N_STRIDE], p[RHS_K_STRIDE], cols, p[DEPTH],
                p[RHS_FLIP], slot[SLOT_PANELS] + col // p[LANES] * p[RHS_PANEL_BYTES], p[RHS_PANEL_BYTES],
                slot[SLOT_SUMS] + 4 * col,
            ),
        )  # fmt: skip
    _col_terms(p, s, slot[SLOT_SUMS], slot[SLOT_TERMS], slot[SLOT_FACTORS], col, cols)


@numba.njit(nogil=True)
def prepare(p, s):
    """Pack the rhs and make the column terms, `pack_chunk` columns at a time, as long as there are any left."""
    if p[STREAM_AT] != 0:
        return
    n, chunk = p[N], p[PACK_CHUNK]
    chunks = (n + chunk - 1) // chunk
    while True:
        task = take(s, COUNTER0, 1)
        j = task // chunks
        if j >= p[SLOTS]:
            break
        col = (task - j * chunks) * chunk
        prepare_columns(p, s, slot_addresses(p, s, j, slot_space(p, s, j)), col, min(chunk, n - col))


# ---- phase 1 ----------------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def _finish(p, s, a, tile, ld, rows, cols, row, col, row_sums):
    """Put a finished tile through the output stages; the last one stores it."""
    for i in range(p[STAGES]):
        call_address(
            p[STAGES_AT + 2 * i],
            (
                tile, ld, rows, cols, row, col, p[STAGES_AT + 2 * i + 1],
                row_sums, a[COL_FACTORS] + 4 * col, s[LHS_ZEROS] + 4 * row, s[RHS_ZEROS] + 4 * col,
                a[OUT_ADDRESS] + row * p[OUT_ROW_STRIDE] + col * p[OUT_COL_STRIDE],
                p[OUT_ROW_STRIDE], p[OUT_COL_STRIDE],
            ),
        )  # fmt: skip


@numba.njit(nogil=True)
def _tile_width(p, left):
    """Columns of the next tile: nr, but two halves for the last nr + 1 panel, since one panel alone runs slower."""
    nr, lanes = p[NR], p[LANES]
    if left == nr + lanes:
        return (nr // lanes + 2) // 2 * lanes
    return min(nr, left)


@numba.njit(nogil=True)
def _multiply(p, a, rows, col, cols, groups, lhs, terms, col_terms, rhs_at, c, ldc, add_c, requant):
    """One microkernel call: `rows` x `cols` of one depth block, at most nr columns.

    `terms` and `col_terms` are the addresses of the terms of the first row and column; zeros leave them out.
    """
    lanes = p[LANES]
    call_address(
        p[KERNEL],
        (
            rows, (cols + lanes - 1) // lanes, groups, lhs, p[LHS_PANEL_BYTES],
            a[RHS_PANELS] + col // lanes * p[RHS_PANEL_BYTES] + rhs_at, p[RHS_PANEL_BYTES], c, ldc,
            terms, col_terms, add_c, requant, col,
        ),
    )  # fmt: skip


@numba.njit(nogil=True)
def _pack_lhs(p, a, row0, rows, k0, depth, space, sums):
    call_address(
        p[PACK_LHS],
        (
            a[LHS_ADDRESS] + row0 * p[LHS_ROW_STRIDE] + k0 * p[LHS_K_STRIDE], p[LHS_ROW_STRIDE],
            p[LHS_K_STRIDE], rows, depth, p[LHS_FLIP], space, p[LHS_PANEL_BYTES], sums,
        ),
    )  # fmt: skip


@numba.njit(nogil=True)
def _row_terms(p, s, row0, rows, sums, biased, terms):
    call_address(
        p[ROW_TERMS_ROUTINE],
        (
            rows,
            sums,
            s[RHS_ZERO],
            p[BILINEAR],
            p[ROW_BIAS] + 4 * row0,
            p[HAS_ROW_BIAS] if biased else 0,
            terms,
        ),
    )


@numba.njit(nogil=True)
def _add(p, count, values, to):
    """Add int32 at one address to those at another: as row terms with zero point -1 and the sums so far as bias."""
    call_address(p[ROW_TERMS_ROUTINE], (count, values, -1, 0, to, 1, to))


@numba.njit(nogil=True)
def _block(p, s, a, row0, rows, col0, cols, space):
    """One block of the result, rows x cols at (row0, col0), when the depth is not split."""
    sums, terms, tile = space + p[ROW_SUMS_AT], space + p[ROW_TERMS_AT], space + p[TILE_AT]
    nr, lanes = p[NR], p[LANES]
    _pack_lhs(p, a, row0, rows, 0, p[DEPTH], space, sums)
    _row_terms(p, s, row0, rows, sums, 1, terms)
    groups = (p[DEPTH] + p[KR] - 1) // p[KR]
    col, end = col0, col0 + cols
    while col < end:
        width = _tile_width(p, end - col)
        if p[DIRECT]:
            # whole panels go straight to the result, as int32 or, with a fused scale, as bytes; what is left of
            # the last one takes the tile
            full = width // lanes * lanes
            size = 4 if p[FUSED] == 0 else 1
            if full > 0:
                _multiply(
                    p, a, rows, col, full, groups, space, terms, a[COL_TERMS] + 4 * col, 0,
                    a[OUT_ADDRESS] + row0 * p[OUT_ROW_STRIDE] + size * col, p[OUT_ROW_STRIDE] // size,
                    p[ACCUMULATE], p[FUSED],
                )  # fmt: skip
            col += full
            width -= full
        if width > 0:
            _multiply(p, a, rows, col, width, groups, space, terms, a[COL_TERMS] + 4 * col, 0, tile, nr, 0, 0)
            _finish(p, s, a, tile, nr, rows, width, row0, col, sums)
        col += width


@numba.njit(nogil=True)
def _stream(p, s, a, col0, cols, k0, depth, space):
    """Pack one depth block of some columns of an rhs that is not packed as a whole; gives `a` with the block's panels."""
    lanes = p[LANES]
    panels = space + p[STREAM_AT]
    wide = (cols + lanes - 1) // lanes * lanes
    sums = a[COL_SUMS] + 4 * col0
    more = panels + wide * p[RHS_PANEL_BYTES] // lanes
    call_address(
        p[PACK_RHS],
        (
            a[SOURCE] + col0 * p[RHS_N_STRIDE] + k0 * p[RHS_K_STRIDE], p[RHS_N_STRIDE], p[RHS_K_STRIDE], cols, depth,
            p[RHS_FLIP], panels, p[RHS_PANEL_BYTES], sums if k0 == 0 else more,
        ),
    )  # fmt: skip
    if k0 > 0:
        _add(p, cols, more, sums)
    if k0 + depth == p[DEPTH]:
        _col_terms(p, s, a[COL_SUMS], a[COL_TERMS], a[COL_FACTORS], col0, cols)
    first = panels - col0 // lanes * p[RHS_PANEL_BYTES]
    return a[0], first, a[2], a[3], a[4], a[5], a[6]


@numba.njit(nogil=True)
def _deep_block(p, s, a, row0, rows, col0, cols, part, space, sums, tile):
    """Part of the depth of a block, when the depth is split: its int32 sums stay in `tile`, the row sums in `sums`."""
    terms, more = space + p[ROW_TERMS_AT], space + p[ROW_SUMS_AT] + 4 * p[MC]
    nr, lanes, kc = p[NR], p[LANES], p[KC]
    ld = (cols + lanes - 1) // lanes * lanes
    each = (p[DEPTH_BLOCKS] + p[PARTS] - 1) // p[PARTS]
    first, end = part * each, min((part + 1) * each, p[DEPTH_BLOCKS])
    for d in range(first, end):
        k0 = d * kc
        depth = min(kc, p[DEPTH] - k0)
        _pack_lhs(p, a, row0, rows, k0, depth, space, sums if d == first else more)
        if d > first:
            _add(p, rows, more, sums)
        rhs_at = k0 // p[KR] * p[RHS_GROUP_BYTES]
        if p[STREAM_AT] != 0:
            a = _stream(p, s, a, col0, cols, k0, depth, space)
            rhs_at = 0
        here = p[ZEROS]
        if (
            d + 1 == end
        ):  # the row terms of this part; what does not depend on the depth comes with the last part
            _row_terms(p, s, row0, rows, sums, d + 1 == p[DEPTH_BLOCKS], terms)
            here = terms
        groups = (depth + p[KR] - 1) // p[KR]
        for j in range(0, cols, nr):
            width = min(nr, cols - j)
            there = a[COL_TERMS] + 4 * (col0 + j) if d + 1 == p[DEPTH_BLOCKS] else p[ZEROS]
            _multiply(
                p, a, rows, col0 + j, width, groups, space, here, there, rhs_at, tile + 4 * j, ld, d > first, 0
            )  # fmt: skip


@numba.njit(nogil=True)
def whole_block(p, s, a, i, j, space):
    """Block (i, j), the whole depth."""
    row0, col0 = i * p[MC], j * p[NC]
    rows, cols = min(p[MC], p[M] - row0), min(p[NC], p[N] - col0)
    if p[DEPTH_BLOCKS] == 1 and p[STREAM_AT] == 0:
        _block(p, s, a, row0, rows, col0, cols, space)
    else:
        sums, tile = space + p[ROW_SUMS_AT], space + p[TILE_AT]
        _deep_block(p, s, a, row0, rows, col0, cols, 0, space, sums, tile)
        ld = (cols + p[LANES] - 1) // p[LANES] * p[LANES]
        _finish(p, s, a, tile, ld, rows, cols, row0, col0, sums)


@numba.njit(nogil=True)
def _part(p, s, a, i, j, number, part, space):
    """One part of the depth of block (i, j), the `number`-th; the last to come adds them up and finishes the block."""
    row0, col0 = i * p[MC], j * p[NC]
    rows, cols = min(p[MC], p[M] - row0), min(p[NC], p[N] - col0)
    first = s[FOR_PARTS] + number * p[PARTS] * p[PART_BYTES]
    sums = first + part * p[PART_BYTES]
    ld = (cols + p[LANES] - 1) // p[LANES] * p[LANES]
    _deep_block(p, s, a, row0, rows, col0, cols, part, space, sums, sums + 4 * p[MC])
    # the last one reads the parts that others wrote
    if arrive(s, STATE_SIZE + number, 1) + 1 == p[PARTS]:
        for other in range(1, p[PARTS]):
            _add(p, p[MC] + rows * ld, first + other * p[PART_BYTES], first)  # sums, and the tile behind them
        _finish(p, s, a, first + 4 * p[MC], ld, rows, cols, row0, col0, first)


@numba.njit(nogil=True)
def compute_blocks(p, s, worker):
    """Blocks of the result, as long as there are any left."""
    row_blocks, col_blocks, parts = p[ROW_BLOCKS], p[COL_BLOCKS], p[PARTS]
    total = p[BATCH] * row_blocks * col_blocks * parts
    space = s[FOR_WORKERS] + worker * p[WORKER_BYTES]
    while True:
        task = take(s, COUNTER1, 1)
        if task >= total:
            break
        number = task // parts
        rest = number // col_blocks
        b = rest // row_blocks
        j = p[PLAN_SIZE + PRODUCT * b + 2]
        a = product_addresses(p, s, b, slot_addresses(p, s, j, slot_space(p, s, j)))
        if parts == 1:
            whole_block(p, s, a, rest % row_blocks, number % col_blocks, space)
        else:
            _part(p, s, a, rest % row_blocks, number % col_blocks, number, task % parts, space)
