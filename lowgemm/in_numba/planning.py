"""The plan of one product, made by compiled code: the same numbers as `plan.py`. Next file to open: `table.py`."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from lowgemm import kernels
from lowgemm.engine import blocking, packing
from lowgemm.engine import layout as c
from lowgemm.engine.blocking import BY_COLUMNS, BY_ROWS, NOT_AT_ALL, block_sizes, scratch_layout, up
from lowgemm.engine.terms import term_routines
from lowgemm.jit.caches import cache_sizes
from lowgemm.jit.memory import load_i64
from lowgemm.jit.routine import compile_c, signature
from lowgemm.jit.stamp import source_stamp

# ---- record: what the plan needs to know of a kernel ------------------------------------------------------
(
    R_MR, R_LANES, R_NR, R_KR, R_ELEMENT, R_GROUP,
    R_LHS_FLIP, R_LHS_SHIFT, R_LHS_FLIP_S, R_LHS_SHIFT_S, R_RHS_FLIP, R_RHS_SHIFT, R_RHS_FLIP_S, R_RHS_SHIFT_S,
    R_KERNEL, R_PACK_LHS, R_PACK_RHS, R_COL_TERMS, R_ROW_TERMS,
    R_ZEROS, R_STORE, R_SET, R_ADD, R_BILINEAR, R_NOTHING,
    RECORD_SIZE,
) = range(26)  # fmt: skip
#: Zeros that a microkernel reads as terms: one for each row of a block or column of a tile.
_ZEROS = np.zeros(4096, dtype=np.int32)
#: Parameters of the int32 store: bounds (unused) and whether to add.
_STORE_SET, _STORE_ADD = np.array([0, 0, 0], dtype=np.int64), np.array([0, 0, 1], dtype=np.int64)
_NOTHING = np.zeros(1, dtype=np.int64)
#: Where the plan routine leaves the bytes of scratch memory: behind the plan and its table of one product.
SCRATCH_AT = c.PLAN_SIZE + c.ONE_PRODUCT
PLAN_BYTES = 8 * (SCRATCH_AT + 1)


@functools.cache
def record_of(kernel: kernels.Kernel) -> np.ndarray:
    """Numbers of a kernel for the plan routine; compiles what they are addresses of."""
    from lowgemm.output.bilinear import bilinear
    from lowgemm.output.store import store32

    col_terms, row_terms = term_routines()
    sides = [v for side in ("lhs", "rhs") for kind in "ui" for v in packing.element_map(kernel, side, kind)]
    if max(kernel.nr, blocking.MAX_MC + kernel.mr, blocking.NC_DEPTH_BLOCKED + 2 * kernel.nr) > _ZEROS.size:
        raise ValueError(f"kernel: tile of {kernel.name!r} is too large to be called from compiled code")
    return np.array(
        [
            kernel.mr, kernel.lanes, kernel.nr, kernel.kr, kernel.element_bytes, kernel.rhs_group_bytes, *sides,
            kernels.microkernel(kernel).address,
            packing.pack_routine(kernel, "lhs").address, packing.pack_routine(kernel, "rhs").address,
            col_terms.address, row_terms.address,
            _ZEROS.ctypes.data, store32.address, _STORE_SET.ctypes.data, _STORE_ADD.ctypes.data,
            bilinear.address, _NOTHING.ctypes.data,
        ],
        dtype=np.int64,
    )  # fmt: skip


def _make_plan(l2: int, l3: int, stamp: int) -> Any:
    line = packing.LINE

    @compile_c(signature("pp" + "n" * 14))
    def plan(
        r, p, m, n, depth, lrs, lks, lhs_signed, rks, rns, rhs_signed, packed, bilinear, accumulate, ors, ocs
    ):
        """Fill in `p` as `plan.Plan` does for one product on one thread without output stages."""
        _ = stamp
        mr, lanes, nr, kr = load_i64(r, R_MR), load_i64(r, R_LANES), load_i64(r, R_NR), load_i64(r, R_KR)
        size = load_i64(r, R_ELEMENT)
        direct = not bilinear and ocs == 4 and ors % 4 == 0
        mc, nc, kc, row_blocks, col_blocks, depth_blocks, parts, stream = block_sizes(
            mr,
            nr,
            size,
            l2,
            l3,
            m,
            n,
            depth,
            1,
            1,
            direct,
            NOT_AT_ALL if packed else BY_COLUMNS if rks == 1 else BY_ROWS,
        )
        (
            rhs_panel_bytes, lhs_panel_bytes, row_sums_at, row_terms_at, tile_at, stream_at, worker_bytes, col_bytes, slot_bytes,
        ) = scratch_layout(mr, lanes, nr, size, n, depth, mc, nc, kc, depth_blocks, stream)  # fmt: skip
        q = numba.carray(p, (SCRATCH_AT + 1,), np.int64)
        q[:] = 0
        q[c.WORKERS] = 1
        q[c.M] = m
        q[c.N] = n
        q[c.DEPTH] = depth
        q[c.BATCH] = 1
        q[c.SLOTS] = 1
        q[c.PACKED] = packed
        q[c.KERNEL] = load_i64(r, R_KERNEL)
        q[c.PACK_LHS] = load_i64(r, R_PACK_LHS)
        q[c.PACK_RHS] = 0 if packed else load_i64(r, R_PACK_RHS)
        q[c.COL_TERMS_ROUTINE] = load_i64(r, R_COL_TERMS)
        q[c.ROW_TERMS_ROUTINE] = load_i64(r, R_ROW_TERMS)
        q[c.KR] = kr
        q[c.LANES] = lanes
        q[c.NR] = nr
        q[c.LHS_ROW_STRIDE] = lrs
        q[c.LHS_K_STRIDE] = lks
        q[c.LHS_FLIP] = load_i64(r, R_LHS_FLIP + 2 * lhs_signed)
        q[c.LHS_PANEL_BYTES] = lhs_panel_bytes
        q[c.RHS_K_STRIDE] = rks
        q[c.RHS_N_STRIDE] = rns
        q[c.RHS_FLIP] = load_i64(r, R_RHS_FLIP + 2 * rhs_signed)
        q[c.RHS_PANEL_BYTES] = rhs_panel_bytes
        q[c.RHS_GROUP_BYTES] = load_i64(r, R_GROUP)
        q[c.PACK_CHUNK] = 4 * up(line, lanes)
        q[c.MC] = mc
        q[c.NC] = nc
        q[c.KC] = kc
        q[c.ROW_BLOCKS] = row_blocks
        q[c.COL_BLOCKS] = col_blocks
        q[c.DEPTH_BLOCKS] = depth_blocks
        q[c.PARTS] = parts
        q[c.STREAM_AT] = stream_at if stream else 0
        q[c.LHS_SHIFT] = load_i64(r, R_LHS_SHIFT + 2 * lhs_signed)
        q[c.RHS_SHIFT] = load_i64(r, R_RHS_SHIFT + 2 * rhs_signed)
        q[c.BILINEAR] = bilinear
        q[c.DIRECT] = 1 if direct else 0
        q[c.ACCUMULATE] = accumulate
        q[c.OUT_ROW_STRIDE] = ors
        q[c.OUT_COL_STRIDE] = ocs
        q[c.WORKER_BYTES] = worker_bytes
        q[c.COL_BYTES] = col_bytes
        q[c.SLOT_BYTES] = slot_bytes
        q[c.ROW_SUMS_AT] = row_sums_at
        q[c.ROW_TERMS_AT] = row_terms_at
        q[c.TILE_AT] = tile_at
        q[c.ZEROS] = load_i64(r, R_ZEROS)
        stages = 0
        if bilinear:
            q[c.STAGES_AT] = load_i64(r, R_BILINEAR)
            q[c.STAGES_AT + 1] = load_i64(r, R_NOTHING)
            stages = 1
        q[c.STAGES_AT + 2 * stages] = load_i64(r, R_STORE)
        q[c.STAGES_AT + 2 * stages + 1] = load_i64(r, R_ADD if accumulate else R_SET)
        q[c.STAGES] = stages + 1
        scratch = 2 * col_bytes + worker_bytes
        if not packed:
            scratch += col_bytes + slot_bytes
        q[SCRATCH_AT] = scratch

    return plan


@functools.cache
def plan_routine() -> Any:
    """Compiled plan routine; see `_make_plan`."""
    sizes = cache_sizes()
    return _make_plan(sizes.l2, sizes.l3, source_stamp("in_numba"))
