"""How a plan and a call are laid out as int64 numbers, for compiled code to read.

`plan.py` writes the plan, `entry.py` or `plan.py` the state of a call, and `tiles.py` reads both.
"""

from __future__ import annotations

# ---- p: the plan as numbers -------------------------------------------------------------------------------
_FIELDS = tuple(
    """
    workers m n depth batch slots packed
    kernel pack_lhs pack_rhs col_terms_routine row_terms_routine single
    kr lanes nr
    lhs_row_stride lhs_k_stride lhs_flip lhs_panel_bytes
    rhs_k_stride rhs_n_stride rhs_flip rhs_panel_bytes rhs_group_bytes pack_chunk
    mc nc kc row_blocks col_blocks depth_blocks parts stream_at
    lhs_shift rhs_shift bilinear
    col_bias row_bias has_col_bias has_row_bias
    direct accumulate fused out_row_stride out_col_stride
    worker_bytes col_bytes slot_bytes part_bytes row_sums_at row_terms_at tile_at zeros
    stages
    """.split()  # noqa: SIM905 (one line for each subject)
)
F = {name: i for i, name in enumerate(_FIELDS)}
#: Where the (routine, parameters) pairs of the output stages begin.
STAGES_AT = len(_FIELDS)
MAX_STAGES = 24
PLAN_SIZE = STAGES_AT + 2 * MAX_STAGES

(
    WORKERS, M, N, DEPTH, BATCH, SLOTS, PACKED,
    KERNEL, PACK_LHS, PACK_RHS, COL_TERMS_ROUTINE, ROW_TERMS_ROUTINE, SINGLE,
    KR, LANES, NR,
    LHS_ROW_STRIDE, LHS_K_STRIDE, LHS_FLIP, LHS_PANEL_BYTES,
    RHS_K_STRIDE, RHS_N_STRIDE, RHS_FLIP, RHS_PANEL_BYTES, RHS_GROUP_BYTES, PACK_CHUNK,
    MC, NC, KC, ROW_BLOCKS, COL_BLOCKS, DEPTH_BLOCKS, PARTS, STREAM_AT,
    LHS_SHIFT, RHS_SHIFT, BILINEAR,
    COL_BIAS, ROW_BIAS, HAS_COL_BIAS, HAS_ROW_BIAS,
    DIRECT, ACCUMULATE, FUSED, OUT_ROW_STRIDE, OUT_COL_STRIDE,
    WORKER_BYTES, COL_BYTES, SLOT_BYTES, PART_BYTES, ROW_SUMS_AT, ROW_TERMS_AT, TILE_AT, ZEROS,
    STAGES,
) = range(STAGES_AT)  # fmt: skip

#: Behind the plan's numbers: for each product byte offsets of its lhs and result, and which distinct rhs ("slot") it uses; then for
#: each slot byte offsets of the rhs (or its panels) and, if packed, of its column sums.
PRODUCT, SLOT = 3, 2
ONE_PRODUCT = PRODUCT + SLOT

# ---- s: the state of one call -----------------------------------------------------------------------------
#: Addresses of the operands, the sums of a packed rhs, the result and scratch memory: for slots, threads and parts. Zero points are
#: those of the packed values (see `packing.element_map`); the vectors are addresses. After these, with parts, a counter for each block.
(
    COUNTER0, COUNTER1, LHS, RHS, RHS_SUMS, OUT, FOR_SLOTS, FOR_WORKERS, FOR_PARTS,
    LHS_ZERO, RHS_ZERO, LHS_ZEROS, RHS_ZEROS, STATE_SIZE,
) = range(14)  # fmt: skip

# ---- tuples of addresses ----------------------------------------------------------------------------------
#: Of a distinct rhs: source (0: packed already), panels, column sums, column terms, column factors.
SLOT_SOURCE, SLOT_PANELS, SLOT_SUMS, SLOT_TERMS, SLOT_FACTORS = range(5)
#: Of a product: lhs, packed rhs, column terms, column factors, result; and of an rhs that is packed block by block its source and sums.
LHS_ADDRESS, RHS_PANELS, COL_TERMS, COL_FACTORS, OUT_ADDRESS, SOURCE, COL_SUMS = range(7)
