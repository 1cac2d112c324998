"""What compiled code reads of a plan and of a call: records of 64-bit numbers with named fields.

`planner.py` fills a plan from the `TEMPLATE` of its kernel, `entry.py`, `plan.py` or `drivers.py` the state
of a call; `tiles.py` reads both. Strides are in bytes, so is what ends in `_bytes` or `_at` (offsets from the
start of a thread's scratch memory); what is called a routine, and what ends in `_bias` or `zeros`, is an
address. Flags are 0 or 1.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from lowgemm.jit.memory import record_at

#: Stages of an output pipeline at most.
MAX_STAGES = 24

#: Whether the lhs stays where it lies: never, if its rows begin on cache lines, always, or always and the
#: kernel finds it through a list (`Kernel.scatters`).
NEVER, WHERE_ALIGNED, ALWAYS, LISTED = range(4)


def record_type(*fields: str | tuple[Any, ...]) -> np.dtype:
    """A record of int64 numbers; several names may stand in one string."""
    names = [name for f in fields for name in (f.split() if isinstance(f, str) else [f])]
    dtype = np.dtype([(f, np.int64) if isinstance(f, str) else f for f in names], align=True)
    return np.dtype((np.record, dtype))  # so that Python says `p.mc`, as compiled code does


#: The plan `p`: all that is known before addresses and zero points are.
PLAN = record_type(
    # What is asked for; the planner reads these.
    "m n depth",  # rows and columns of the result, and the depth
    "batch distinct_rhs",  # batch items, and distinct rhs matrices among them: items may share one
    "packed",  # the rhs is packed already
    "lhs_row_stride lhs_k_stride rhs_k_stride rhs_n_stride out_row_stride out_col_stride",
    "bilinear",  # zero points come as vectors, one for each row and column
    "accumulate",  # add to the result
    "fused",  # parameters of the scale that the kernel does itself, or 0
    "col_bias row_bias has_col_bias has_row_bias",  # int32 that the compensation begins with
    # where each rhs has its own columns of the bias, the zero points and the stages' parameters: how many;
    # else 0
    "channels_apart",
    # of an lhs that is gathered from an image: address of its `image.IMAGE`, and the routine that packs it;
    # else 0
    "image pack_image",
    # where such an lhs may be read from grids of pixels (`pixels.py`): windows of an image, which no block
    # crosses, and of a line; pixels of a grid's line; grids; their lines in addition to those of windows;
    # bytes of a pixel, and of a step of the depth; else 0
    "plane_rows line_rows grid_width grids lines_ahead pixel_bytes piece_bytes",
    "stages",  # output stages; for each, `stage` below has the routine and the address of its parameters
    # What the planner decides.
    "workers",  # threads at most
    "mc nc kc",  # rows, columns and depth of a block
    "row_blocks col_blocks depth_blocks",  # how many there are
    "plane_blocks",  # blocks of rows in `plane_rows` rows
    # in a thread's memory, the list that `pixels.pack_pixels` makes, and sums of pixels; 0: there are no
    # grids
    "steps_at pixel_sums_at",
    "list_size",  # numbers of that list
    # split-K: ranges of the depth that are computed apart and then added; 1: the depth is not split so
    "splits",
    "direct",  # the kernel stores whole panels into the result
    "lhs_flip rhs_flip lhs_shift rhs_shift",  # see `packing.element_map`
    "lhs_panel_bytes rhs_panel_bytes",  # from one packed panel to the next, or from row to row
    "lhs_in_place",  # whether the lhs stays where it lies: NEVER, WHERE_ALIGNED, ALWAYS or LISTED
    "list_lhs in_order",  # for LISTED: the routine `listed.list_rows`, and the places that it is given
    "row_sums_at row_compensation_at tile_at",  # in a thread's memory, which begins with its lhs panels
    "patches_at",  # likewise, rows of a panel that are gathered from an image
    # likewise, panels and sums of an rhs block that is packed on the fly; 0: the rhs is packed before
    "on_the_fly_at",
    # routine that multiplies an rhs where it lies, or 0, its memory being there; and that completes the tile
    "in_place in_place_compensation",
    # routine `deep_block.deep_block`, where blocks need it, or 0
    "deep_block",
    # routine that stores a block of int32 past the caches, whose tile has all its columns; 0: the microkernel
    # or stages store
    "stream",
    "worker_bytes",  # memory of a thread
    "split_bytes",  # memory of one of the splits of a block: row sums and a tile of int32
    "col_bytes",  # one int32 for each column
    "rhs_bytes",  # the panels of one rhs
    "own_rhs",  # each thread packs the whole rhs for itself
    "splits_bytes",  # memory of all splits
    "all_rhs_bytes scratch_bytes",  # memory of all rhs, and of the whole call
    # What it takes over from the kernel's template.
    "lanes nr kr rhs_group_bytes",  # as in `kernels/framework/kernel.py`
    "call_columns",  # columns of a kernel call at most
    "pack_chunk",  # columns that a thread packs at a time
    "kernel pack_lhs pack_rhs compensation_routine single",
    "no_compensation",  # address of int32 zeros, for what has none to add
    # how several threads run it
    ("team", np.uint64),  # see `jit/team.py`; 0: there is none
    "work",  # address of `drivers.work`
    "long",  # whether it is worth while to wake threads for it
    "give_way",  # address of a function that lets another thread run
    ("stage", np.int64, (MAX_STAGES, 2)),
)
#: What the planner needs to know of a kernel and of this machine.
TEMPLATE_FIELDS = (
    "mr nr element_bytes",
    "listed",  # whether there is a kernel for an lhs that is found through a list
    "row_bytes over_read any_panels",  # as in `kernels/framework/kernel.py`
    "l2 l3",  # bytes of cache
    "most_rows most_rows_with_stages most_columns",  # of a block; see `blocking.py`
    ("lhs_flip", np.int64, (2,)),  # each of an unsigned and of a signed operand
    ("lhs_shift", np.int64, (2,)),
    ("rhs_flip", np.int64, (2,)),
    ("rhs_shift", np.int64, (2,)),
    ("kernel", np.int64, (2,)),
    # as in the plan
    "lanes kr rhs_group_bytes pack_chunk compensation_routine single no_compensation",
    # of operands whose depth is not contiguous, and of those whose depth is; 0 where that is not wanted
    ("pack_lhs", np.int64, (2,)),
    ("pack_rhs", np.int64, (2,)),
    "in_place_rows",  # for how many rows at most an rhs may be multiplied where it lies
    (
        "in_place",
        np.int64,
        (2,),
    ),  # of an rhs whose rows and whose columns are contiguous; 0 where that is not wanted
    "in_place_compensation stream deep_block",  # routines, as in the plan
)
TEMPLATE = record_type(*TEMPLATE_FIELDS)
#: The state `s` of one call.
STATE = record_type(
    # counters of `jit/both_ends.py`, by which threads are given columns to pack, then blocks of the result
    "columns columns_from_front columns_from_back blocks blocks_from_front blocks_from_back",
    "columns_done",  # pieces of columns that are packed
    "lhs rhs rhs_sums out",  # addresses of the operands, of the sums of a packed rhs, and of the result
    # addresses of scratch memory: of all rhs, all threads, all splits
    "scratch_of_rhs scratch_of_workers scratch_of_splits",
    "lhs_zero rhs_zero",  # zero points of the packed values (see `packing.element_map`)
    "lhs_zeros rhs_zeros",  # addresses of such zero points, int32, one for each row and column
    (
        "splits_done",
        np.uint64,
    ),  # with split-K: address of a counter for each block of the result, splits that are done
)

#: Sizes, and where the stages begin, counted in numbers.
PLAN_SIZE, STATE_SIZE = PLAN.itemsize // 8, STATE.itemsize // 8
STAGES_AT = PLAN.fields["stage"][1] // 8  # type: ignore[index]
#: Behind the plan lies the layout of the batch. For each batch item: byte offsets of its lhs and of its
#: result, and the number of its rhs.
ITEM_LHS_AT, ITEM_OUT_AT, ITEM_RHS, ITEM_SIZE = range(4)
#: Then for each distinct rhs: byte offset of its elements (or of its panels), and of its column sums if it is
#: packed.
RHS_AT, RHS_SUMS_AT, RHS_SIZE = range(3)
#: Numbers of the layout of a single product.
ONE_ITEM_LAYOUT = ITEM_SIZE + RHS_SIZE

#: The records at an address, for compiled code.
plan_at, state_at = record_at(PLAN), record_at(STATE)


class RhsAddresses(NamedTuple):
    """Of a distinct rhs: its elements (0: packed already), panels, column sums, column compensation, column
    factors.

    The factors are what `output/bilinear.py` multiplies the lhs zero points by. `channel` is the number of
    column 0 in what is per column: bias, zero points, parameters of the stages.
    """

    source: int
    panels: int
    sums: int
    compensation: int
    factors: int
    channel: int


class ItemAddresses(NamedTuple):
    """Of a batch item: its lhs and result, and of its rhs what `RhsAddresses` has."""

    lhs: int
    out: int
    source: int
    panels: int
    sums: int
    compensation: int
    factors: int
    channel: int


_NUMBERS = [name for name in PLAN.names or () if name != "stage"]


def blank_plan(**asked: int) -> SimpleNamespace:
    """A plan for Python to fill, whose other fields are 0; attributes of it are set ten times faster than
    those of a record.
    """
    return SimpleNamespace(**{**dict.fromkeys(_NUMBERS, 0), **asked})


def plan_numbers(plan: SimpleNamespace, stages: list[int], layout: np.ndarray) -> np.ndarray:
    """The numbers of a plan, with its stages, and with the layout of the batch behind them."""
    numbers = np.zeros(PLAN_SIZE + layout.size, dtype=np.int64)
    numbers[:STAGES_AT] = [getattr(plan, name) for name in _NUMBERS]
    numbers[STAGES_AT : STAGES_AT + len(stages)] = stages
    numbers[PLAN_SIZE:] = layout
    return numbers


def plan_of(numbers: np.ndarray) -> np.record:
    """The plan that an array begins with, in the same memory."""
    return numbers[:PLAN_SIZE].view(PLAN)[0]
