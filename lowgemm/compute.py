"""The tile loop: who computes which block of the result, in which order, on which thread.

    phase 0   pack the rhs into panels, with column sums and column terms     (shared, all threads)
    phase 1   for each block of mc rows x nc columns, as a thread asks for one:
                  for each depth block of kc:
                      pack the lhs block (the thread's own buffer, stays in its L2)
                      for each tile of nr columns: microkernel over the mc rows
                  output stages on each finished tile while it is in L1, the last of which stores it

Nothing here reads or writes matrix memory: addresses are integers, and each piece that touches memory is a C
function called through its address (see `_jit.py`). So this file is compiled once for all kernels and all
output pipelines. Blocks are handed out by an atomic counter, because Numba's `prange` has a static schedule.

A call is described by three things: the plan `p`, int64 numbers made by `plan.py` and never written here, so that
Python threads may share it; the state `s` of this call; and for each matrix of a batch its addresses.

Next file to open: `output/routines.py`, what happens to a finished tile.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import prange, types

from lowgemm import disk_cache
from lowgemm._jit import call_address, compile_c, signature, source_stamp
from lowgemm.memory import fetch_add, load_i32, store_32

# ---- p: the plan as numbers -------------------------------------------------------------------------------
_FIELDS = tuple(
    """
    workers m n depth batch jobs packed
    kernel pack_lhs pack_rhs col_terms_routine row_terms_routine single
    kr lanes nr
    lhs_row_stride lhs_k_stride lhs_flip lhs_panel_bytes
    rhs_k_stride rhs_n_stride rhs_flip rhs_panel_bytes rhs_group_bytes pack_chunk
    mc nc kc row_blocks col_blocks depth_blocks
    lhs_shift rhs_shift bilinear
    col_bias row_bias has_col_bias has_row_bias
    direct accumulate fused out_row_stride out_col_stride
    worker_bytes col_bytes slot_bytes row_sums_at row_terms_at tile_at zeros
    stages
    """.split()  # noqa: SIM905 (one line for each subject)
)
F = {name: i for i, name in enumerate(_FIELDS)}
#: Where the (routine, parameters) pairs of the output stages begin.
STAGES_AT = len(_FIELDS)
MAX_STAGES = 24
PLAN_SIZE = STAGES_AT + 2 * MAX_STAGES

(
    WORKERS, M, N, DEPTH, BATCH, JOBS, PACKED,
    KERNEL, PACK_LHS, PACK_RHS, COL_TERMS_ROUTINE, ROW_TERMS_ROUTINE, SINGLE,
    KR, LANES, NR,
    LHS_ROW_STRIDE, LHS_K_STRIDE, LHS_FLIP, LHS_PANEL_BYTES,
    RHS_K_STRIDE, RHS_N_STRIDE, RHS_FLIP, RHS_PANEL_BYTES, RHS_GROUP_BYTES, PACK_CHUNK,
    MC, NC, KC, ROW_BLOCKS, COL_BLOCKS, DEPTH_BLOCKS,
    LHS_SHIFT, RHS_SHIFT, BILINEAR,
    COL_BIAS, ROW_BIAS, HAS_COL_BIAS, HAS_ROW_BIAS,
    DIRECT, ACCUMULATE, FUSED, OUT_ROW_STRIDE, OUT_COL_STRIDE,
    WORKER_BYTES, COL_BYTES, SLOT_BYTES, ROW_SUMS_AT, ROW_TERMS_AT, TILE_AT, ZEROS,
    STAGES,
) = range(STAGES_AT)  # fmt: skip

# ---- s: the state of one call -----------------------------------------------------------------------------
#: Zero points are those of the packed values (see `packing.element_map`); the vectors are addresses.
COUNTER0, COUNTER1, SPACE, LHS_ZERO, RHS_ZERO, LHS_ZEROS, RHS_ZEROS = range(7)
STATE_SIZE = 7

# ---- columns of the address tables ------------------------------------------------------------------------
#: One row of `batch` for each product: lhs, packed rhs, column terms, column factors, result.
LHS_ADDRESS, RHS_PANELS, COL_TERMS, COL_FACTORS, OUT_ADDRESS = range(5)
#: One row of `jobs` for each distinct rhs: source (0: packed already), panels, column sums, terms, factors.
JOB_SOURCE, JOB_PANELS, JOB_SUMS, JOB_TERMS, JOB_FACTORS = range(5)


# ---- zero-point terms -------------------------------------------------------------------------------------
def _make_col_terms(stamp: int):
    @compile_c(signature("nnpnnnppnpp"))
    def col_terms(n, depth, sums, lhs_zero, rhs_zero, bilinear, rhs_zeros, bias, has_bias, terms, factors):
        """Column terms of columns 0..n: everything in the result that depends on the column alone."""
        _ = stamp
        for i in range(n):
            term = 0
            if has_bias:
                term = load_i32(bias, i)
            if bilinear:
                store_32(factors, i, depth * load_i32(rhs_zeros, i) - load_i32(sums, i))
            else:
                term += lhs_zero * (depth * rhs_zero - load_i32(sums, i))
            store_32(terms, i, term)

    return col_terms


def _make_row_terms(stamp: int):
    @compile_c(signature("npnnpnp"))
    def row_terms(m, sums, rhs_zero, bilinear, bias, has_bias, terms):
        """Row terms of rows 0..m: everything in the result that depends on the row alone."""
        _ = stamp
        for i in range(m):
            term = 0
            if has_bias:
                term = load_i32(bias, i)
            if not bilinear:
                term -= rhs_zero * load_i32(sums, i)
            store_32(terms, i, term)

    return row_terms


@functools.cache
def term_routines() -> tuple[Any, Any]:
    """Compiled column-term and row-term routines."""
    return _make_col_terms(source_stamp()), _make_row_terms(source_stamp())


# ---- phase 0 ----------------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def _prepare_columns(p, s, job, col, cols):
    """Pack `cols` columns of one rhs, and make their terms."""
    if job[JOB_SOURCE] != 0:
        call_address(
            p[PACK_RHS],
            (
                job[JOB_SOURCE] + col * p[RHS_N_STRIDE], p[RHS_N_STRIDE], p[RHS_K_STRIDE], cols, p[DEPTH],
                p[RHS_FLIP], job[JOB_PANELS] + col // p[LANES] * p[RHS_PANEL_BYTES], p[RHS_PANEL_BYTES],
                job[JOB_SUMS] + 4 * col,
            ),
        )  # fmt: skip
    call_address(
        p[COL_TERMS_ROUTINE],
        (
            cols, p[DEPTH], job[JOB_SUMS] + 4 * col, s[LHS_ZERO], s[RHS_ZERO], p[BILINEAR],
            s[RHS_ZEROS] + 4 * col, p[COL_BIAS] + 4 * col, p[HAS_COL_BIAS],
            job[JOB_TERMS] + 4 * col, job[JOB_FACTORS] + 4 * col,
        ),
    )  # fmt: skip


@numba.njit(nogil=True)
def _prepare(p, s, jobs):
    """Pack the rhs and make the column terms, `pack_chunk` columns at a time, as long as there are any left."""
    n, chunk = p[N], p[PACK_CHUNK]
    chunks = (n + chunk - 1) // chunk
    while True:
        task = fetch_add(s, COUNTER0, 1)
        j = task // chunks
        if j >= p[JOBS]:
            break
        col = (task - j * chunks) * chunk
        job = (jobs[j, 0], jobs[j, 1], jobs[j, 2], jobs[j, 3], jobs[j, 4])
        _prepare_columns(p, s, job, col, min(chunk, n - col))


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
def _multiply(p, a, rows, col, cols, groups, lhs, terms, rhs_at, c, ldc, add_c, requant):
    """One microkernel call: `rows` x `cols` of one depth block, at most nr columns.

    `terms` is the address of the row terms, or 0 to leave out the terms (all but the last depth block).
    """
    lanes = p[LANES]
    call_address(
        p[KERNEL],
        (
            rows, (cols + lanes - 1) // lanes, groups, lhs, p[LHS_PANEL_BYTES],
            a[RHS_PANELS] + col // lanes * p[RHS_PANEL_BYTES] + rhs_at, p[RHS_PANEL_BYTES], c, ldc,
            terms if terms != 0 else p[ZEROS], a[COL_TERMS] + 4 * col if terms != 0 else p[ZEROS], add_c,
            requant, col,
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
def _row_terms(p, s, row0, rows, sums, terms):
    call_address(
        p[ROW_TERMS_ROUTINE],
        (rows, sums, s[RHS_ZERO], p[BILINEAR], p[ROW_BIAS] + 4 * row0, p[HAS_ROW_BIAS], terms),
    )


@numba.njit(nogil=True)
def _block(p, s, a, row0, rows, col0, cols, space):
    """One block of the result, rows x cols at (row0, col0), when the depth is not split."""
    sums, terms, tile = space + p[ROW_SUMS_AT], space + p[ROW_TERMS_AT], space + p[TILE_AT]
    nr, lanes = p[NR], p[LANES]
    _pack_lhs(p, a, row0, rows, 0, p[DEPTH], space, sums)
    _row_terms(p, s, row0, rows, sums, terms)
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
                    p, a, rows, col, full, groups, space, terms, 0,
                    a[OUT_ADDRESS] + row0 * p[OUT_ROW_STRIDE] + size * col, p[OUT_ROW_STRIDE] // size,
                    p[ACCUMULATE], p[FUSED],
                )  # fmt: skip
            col += full
            width -= full
        if width > 0:
            _multiply(p, a, rows, col, width, groups, space, terms, 0, tile, nr, 0, 0)
            _finish(p, s, a, tile, nr, rows, width, row0, col, sums)
        col += width


@numba.njit(nogil=True)
def _deep_block(p, s, a, row0, rows, col0, cols, space):
    """The same when the depth is split: the block's int32 sums stay in `tile` until the last depth block."""
    sums, terms, tile = space + p[ROW_SUMS_AT], space + p[ROW_TERMS_AT], space + p[TILE_AT]
    part = sums + 4 * p[MC]
    nr, lanes, kc = p[NR], p[LANES], p[KC]
    ld = (cols + lanes - 1) // lanes * lanes
    for d in range(p[DEPTH_BLOCKS]):
        k0 = d * kc
        depth = min(kc, p[DEPTH] - k0)
        _pack_lhs(p, a, row0, rows, k0, depth, space, sums if d == 0 else part)
        if d > 0:  # sums += part: as a row term with zero point -1 and the sums so far as bias
            call_address(p[ROW_TERMS_ROUTINE], (rows, part, -1, 0, sums, 1, sums))
        here = 0
        if d + 1 == p[DEPTH_BLOCKS]:
            _row_terms(p, s, row0, rows, sums, terms)
            here = terms
        groups = (depth + p[KR] - 1) // p[KR]
        for j in range(0, cols, nr):
            width = min(nr, cols - j)
            rhs_at = k0 // p[KR] * p[RHS_GROUP_BYTES]
            _multiply(p, a, rows, col0 + j, width, groups, space, here, rhs_at, tile + 4 * j, ld, d > 0, 0)
    _finish(p, s, a, tile, ld, rows, cols, row0, col0, sums)


@numba.njit(nogil=True)
def _task(p, s, a, i, j, space):
    row0, col0 = i * p[MC], j * p[NC]
    rows, cols = min(p[MC], p[M] - row0), min(p[NC], p[N] - col0)
    if p[DEPTH_BLOCKS] == 1:
        _block(p, s, a, row0, rows, col0, cols, space)
    else:
        _deep_block(p, s, a, row0, rows, col0, cols, space)


@numba.njit(nogil=True)
def _compute(p, s, batch, worker):
    """Blocks of the result, as long as there are any left."""
    row_blocks, col_blocks = p[ROW_BLOCKS], p[COL_BLOCKS]
    total = p[BATCH] * row_blocks * col_blocks
    space = s[SPACE] + worker * p[WORKER_BYTES]
    while True:
        task = fetch_add(s, COUNTER1, 1)
        if task >= total:
            break
        rest = task // col_blocks
        b = rest // row_blocks
        a = (batch[b, 0], batch[b, 1], batch[b, 2], batch[b, 3], batch[b, 4])
        _task(p, s, a, rest % row_blocks, task % col_blocks, space)


# ---- drivers ----------------------------------------------------------------------------------------------
_P = types.int64[::1]
_TABLE = types.int64[:, ::1]


def _make_serial(stamp: int):
    @disk_cache.njit([types.void(_P, _P, _TABLE, _TABLE)], nogil=True)
    def run_serial(p, s, jobs, batch):
        _ = stamp
        _prepare(p, s, jobs)
        _compute(p, s, batch, 0)

    return run_serial


def _make_parallel(stamp: int):
    @disk_cache.njit([types.void(_P, _P, _TABLE, _TABLE)], nogil=True, parallel=True)
    def run_parallel(p, s, jobs, batch):
        _ = stamp
        # With a packed rhs phase 0 is a few thousand additions: not worth waking the threads for.
        if p[PACKED]:
            _prepare(p, s, jobs)
        for phase in range(p[PACKED], 2):
            for worker in prange(p[WORKERS]):
                if phase == 0:
                    _prepare(p, s, jobs)
                else:
                    _compute(p, s, batch, worker)

    return run_parallel


def _make_single(stamp: int):
    @compile_c(signature("pnnnnnnnnn"))
    def single(plan, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
        """One product on one thread. `space` is the scratch memory; sums of 0: the rhs is not packed yet."""
        _ = stamp
        p = numba.carray(plan, (PLAN_SIZE,), np.int64)
        s = np.empty(STATE_SIZE, np.int64)
        s[LHS_ZERO], s[RHS_ZERO] = lhs_zero - p[LHS_SHIFT], rhs_zero - p[RHS_SHIFT]
        s[LHS_ZEROS], s[RHS_ZEROS] = lhs_zeros, rhs_zeros
        terms, factors = space, space + p[COL_BYTES]
        space += 2 * p[COL_BYTES]
        panels, source = rhs, 0
        if rhs_sums == 0:
            source, rhs_sums, panels = rhs, space, space + p[COL_BYTES]
            space += p[COL_BYTES] + p[SLOT_BYTES]
        _prepare_columns(p, s, (source, panels, rhs_sums, terms, factors), 0, p[N])
        a = (lhs, panels, terms, factors, out)
        for i in range(p[ROW_BLOCKS]):
            for j in range(p[COL_BLOCKS]):
                _task(p, s, a, i, j, space)

    return single


@functools.cache
def serial_driver() -> Any:
    """One-thread driver for batches: ``run(p, s, jobs, batch)``."""
    return _make_serial(source_stamp())


@functools.cache
def parallel_driver() -> Any:
    """Driver for several threads: the same arguments, ``p[WORKERS]`` iterations of a `prange`."""
    return _make_parallel(source_stamp())


@functools.cache
def single_routine() -> Any:
    """C function for one product on one thread; see `_make_single`."""
    return _make_single(source_stamp())
