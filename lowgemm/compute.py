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

The problem is described by two int64 arrays: `p`, indexed by the constants below and made by `plan.py`, and one
row of addresses for each matrix of the batch.

Next file to open: `output/routines.py`, what happens to a finished tile.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
from numba import prange, types

from lowgemm._jit import call_address, compile_c, source_stamp
from lowgemm.memory import fetch_add, load_i32, store_32

# ---- p: the plan as numbers -------------------------------------------------------------------------------
_FIELDS = """
counter0 counter1 workers
m n depth batch jobs
kernel pack_lhs pack_rhs col_terms_routine row_terms_routine
kr element_bytes lhs_width lanes nr
lhs_row_stride lhs_k_stride lhs_flip lhs_panel_bytes
rhs_k_stride rhs_n_stride rhs_flip rhs_panel_bytes rhs_group_bytes pack_chunk
mc nc kc row_blocks col_blocks depth_blocks
lhs_zero rhs_zero bilinear rhs_zero_vector
col_bias row_bias has_col_bias has_row_bias
direct accumulate out_row_stride out_col_stride
workspace workspace_stride row_sums_at row_terms_at tile_at zeros
stages
""".split()
F = {name: i for i, name in enumerate(_FIELDS)}
#: Where the list of (routine, parameters) pairs of the output stages begins.
STAGES_AT = len(_FIELDS)
MAX_STAGES = 24
PLAN_SIZE = STAGES_AT + 2 * MAX_STAGES

(
    COUNTER0, COUNTER1, WORKERS,
    M, N, DEPTH, BATCH, JOBS,
    KERNEL, PACK_LHS, PACK_RHS, COL_TERMS_ROUTINE, ROW_TERMS_ROUTINE,
    KR, ELEMENT_BYTES, LHS_WIDTH, LANES, NR,
    LHS_ROW_STRIDE, LHS_K_STRIDE, LHS_FLIP, LHS_PANEL_BYTES,
    RHS_K_STRIDE, RHS_N_STRIDE, RHS_FLIP, RHS_PANEL_BYTES, RHS_GROUP_BYTES, PACK_CHUNK,
    MC, NC, KC, ROW_BLOCKS, COL_BLOCKS, DEPTH_BLOCKS,
    LHS_ZERO, RHS_ZERO, BILINEAR, RHS_ZERO_VECTOR,
    COL_BIAS, ROW_BIAS, HAS_COL_BIAS, HAS_ROW_BIAS,
    DIRECT, ACCUMULATE, OUT_ROW_STRIDE, OUT_COL_STRIDE,
    WORKSPACE, WORKSPACE_STRIDE, ROW_SUMS_AT, ROW_TERMS_AT, TILE_AT, ZEROS,
    STAGES,
) = range(STAGES_AT)  # fmt: skip

# ---- columns of the address tables ------------------------------------------------------------------------
#: One row of `batch` for each product: lhs, packed rhs, column terms, column factors, result.
LHS_ADDRESS, RHS_PANELS, COL_TERMS, COL_FACTORS, OUT_ADDRESS = range(5)
#: One row of `jobs` for each distinct rhs: source (0: packed already), panels, column sums, terms, factors.
JOB_SOURCE, JOB_PANELS, JOB_SUMS, JOB_TERMS, JOB_FACTORS = range(5)


# ---- zero-point terms -------------------------------------------------------------------------------------
def _make_col_terms(stamp: int):
    @compile_c(
        types.void(
            types.intp, types.intp, types.voidptr, types.intp, types.intp, types.intp, types.voidptr,
            types.voidptr, types.intp, types.voidptr, types.voidptr,
        )  # fmt: skip
    )
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
    @compile_c(
        types.void(
            types.intp, types.voidptr, types.intp, types.intp, types.voidptr, types.intp, types.voidptr
        )
    )
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
def _prepare(p, jobs):
    """Pack the rhs and make the column terms, `pack_chunk` columns at a time."""
    n, chunk = p[N], p[PACK_CHUNK]
    chunks = (n + chunk - 1) // chunk
    total = chunks * p[JOBS]
    while True:
        task = fetch_add(p, COUNTER0, 1)
        if task >= total:
            break
        job = task // chunks
        col = (task - job * chunks) * chunk
        cols = min(chunk, n - col)
        if jobs[job, JOB_SOURCE] != 0:
            call_address(
                p[PACK_RHS],
                (
                    jobs[job, JOB_SOURCE] + col * p[RHS_N_STRIDE], p[RHS_N_STRIDE], p[RHS_K_STRIDE], cols,
                    p[DEPTH], p[RHS_FLIP], jobs[job, JOB_PANELS] + col // p[LANES] * p[RHS_PANEL_BYTES],
                    p[RHS_PANEL_BYTES], jobs[job, JOB_SUMS] + 4 * col,
                ),
            )  # fmt: skip
        if jobs[job, JOB_TERMS] != 0:
            call_address(
                p[COL_TERMS_ROUTINE],
                (
                    cols, p[DEPTH], jobs[job, JOB_SUMS] + 4 * col, p[LHS_ZERO], p[RHS_ZERO], p[BILINEAR],
                    p[RHS_ZERO_VECTOR] + 4 * col, p[COL_BIAS] + 4 * col, p[HAS_COL_BIAS],
                    jobs[job, JOB_TERMS] + 4 * col, jobs[job, JOB_FACTORS] + 4 * col,
                ),
            )  # fmt: skip


# ---- phase 1 ----------------------------------------------------------------------------------------------
@numba.njit(nogil=True)
def _finish(p, tile, ld, rows, cols, row, col, row_sums, col_factors, out):
    """Put a finished tile through the output stages; the last one stores it."""
    for s in range(p[STAGES]):
        call_address(
            p[STAGES_AT + 2 * s],
            (
                tile, ld, rows, cols, row, col, p[STAGES_AT + 2 * s + 1], row_sums, col_factors + 4 * col,
                out + row * p[OUT_ROW_STRIDE] + col * p[OUT_COL_STRIDE],
                p[OUT_ROW_STRIDE], p[OUT_COL_STRIDE],
            ),
        )  # fmt: skip


@numba.njit(nogil=True)
def _multiply(p, a, row0, rows, col0, cols, groups, lhs, row_terms, add_rows, rhs_depth_at, c, ldc, add_c):
    """Microkernel calls for `rows` x `cols` (whole panels) of one depth block, nr columns at a time."""
    lanes = p[LANES]
    col_terms = a[COL_TERMS] + 4 * col0 if add_rows else p[ZEROS]
    call_address(
        p[KERNEL],
        (
            rows, (cols + lanes - 1) // lanes, groups, lhs, p[LHS_PANEL_BYTES],
            a[RHS_PANELS] + col0 // lanes * p[RHS_PANEL_BYTES] + rhs_depth_at, p[RHS_PANEL_BYTES],
            c, ldc, row_terms if add_rows else p[ZEROS], col_terms, add_c,
        ),
    )  # fmt: skip


@numba.njit(nogil=True)
def _block(p, a, row0, rows, col0, cols, space):
    """One block of the result: rows x cols at (row0, col0)."""
    row_sums, row_terms = space + p[ROW_SUMS_AT], space + p[ROW_TERMS_AT]
    tile, out = space + p[TILE_AT], a[OUT_ADDRESS]
    depth_blocks, kc, nr, lanes = p[DEPTH_BLOCKS], p[KC], p[NR], p[LANES]
    whole = depth_blocks > 1  # the block's int32 sums stay in `tile` until the last depth block
    ld = nr
    if whole:
        ld = (cols + lanes - 1) // lanes * lanes
    sums_now = space + p[ROW_SUMS_AT]
    for d in range(max(depth_blocks, 1)):
        k0 = d * kc
        depth = min(kc, p[DEPTH] - k0)
        last = d + 1 >= depth_blocks
        if whole and d > 0:
            sums_now = row_sums + 4 * p[MC]
        call_address(
            p[PACK_LHS],
            (
                a[LHS_ADDRESS] + row0 * p[LHS_ROW_STRIDE] + k0 * p[LHS_K_STRIDE], p[LHS_ROW_STRIDE],
                p[LHS_K_STRIDE], rows, depth, p[LHS_FLIP], space, p[LHS_PANEL_BYTES], sums_now,
            ),
        )  # fmt: skip
        if whole and d > 0:
            call_address(p[ROW_TERMS_ROUTINE], (rows, sums_now, -1, 0, row_sums, 1, row_sums))
        if last:
            call_address(
                p[ROW_TERMS_ROUTINE],
                (rows, row_sums, p[RHS_ZERO], p[BILINEAR], p[ROW_BIAS] + 4 * row0, p[HAS_ROW_BIAS], row_terms),
            )
        groups = (depth + p[KR] - 1) // p[KR]
        rhs_at = k0 // p[KR] * p[RHS_GROUP_BYTES]
        j = 0
        while j < cols:
            width = min(nr, cols - j)
            col = col0 + j
            if whole:
                _multiply(
                    p, a, row0, rows, col, width, groups, space, row_terms, last, rhs_at,
                    tile + 4 * j, ld, d > 0,
                )  # fmt: skip
            else:
                if p[DIRECT]:
                    full = width // lanes * lanes
                    if full > 0:
                        _multiply(
                            p, a, row0, rows, col, full, groups, space, row_terms, True, rhs_at,
                            out + row0 * p[OUT_ROW_STRIDE] + 4 * col, p[OUT_ROW_STRIDE] // 4, p[ACCUMULATE],
                        )  # fmt: skip
                    j += full
                    width -= full
                    col += full
                if width > 0:
                    _multiply(
                        p, a, row0, rows, col, width, groups, space, row_terms, True, rhs_at, tile, ld, 0
                    )
                    _finish(p, tile, ld, rows, width, row0, col, row_sums, a[COL_FACTORS], out)
            j += width
    if whole:
        _finish(p, tile, ld, rows, cols, row0, col0, row_sums, a[COL_FACTORS], out)


@numba.njit(nogil=True)
def _compute(p, batch, worker):
    """Blocks of the result, as long as there are any left."""
    m, n, mc, nc = p[M], p[N], p[MC], p[NC]
    row_blocks, col_blocks = p[ROW_BLOCKS], p[COL_BLOCKS]
    total = p[BATCH] * row_blocks * col_blocks
    space = p[WORKSPACE] + worker * p[WORKSPACE_STRIDE]
    while True:
        task = fetch_add(p, COUNTER1, 1)
        if task >= total:
            break
        j = task % col_blocks
        rest = task // col_blocks
        i = rest % row_blocks
        b = rest // row_blocks
        row0, col0 = i * mc, j * nc
        _block(p, batch[b], row0, min(mc, m - row0), col0, min(nc, n - col0), space)


# ---- drivers ----------------------------------------------------------------------------------------------
_DRIVER = types.void(types.int64[::1], types.int64[:, ::1], types.int64[:, ::1])


def _make_serial(stamp: int):
    @numba.njit(nogil=True, cache=True)
    def run_serial(p, jobs, batch):
        _ = stamp
        p[COUNTER0] = 0
        p[COUNTER1] = 0
        _prepare(p, jobs)
        _compute(p, batch, 0)

    return run_serial


def _make_parallel(stamp: int):
    @numba.njit(nogil=True, cache=True, parallel=True)
    def run_parallel(p, jobs, batch):
        _ = stamp
        p[COUNTER0] = 0
        p[COUNTER1] = 0
        for phase in range(2):
            for worker in prange(p[WORKERS]):
                if phase == 0:
                    _prepare(p, jobs)
                else:
                    _compute(p, batch, worker)

    return run_parallel


@functools.cache
def serial_driver() -> Any:
    """Compile or load the one-thread driver: ``run(p, jobs, batch)``."""
    fn = _make_serial(source_stamp())
    fn.compile(_DRIVER.args)
    return fn


@functools.cache
def parallel_driver() -> Any:
    """Compile or load the `prange` driver; `p[WORKERS]` iterations, one for each thread."""
    fn = _make_parallel(source_stamp())
    fn.compile(_DRIVER.args)
    return fn
