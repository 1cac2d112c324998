"""The planner: from what is asked of a product, and the template of a kernel, to the whole plan.

`fill_plan` runs as it is in Python, for `plan.py`, and compiled, for products inside of compiled code
(`in_numba/planning.py`). It takes anything with the fields of `records.PLAN` and `records.TEMPLATE`: records,
or in Python a namespace and a named tuple.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from typing import Any

import numpy as np
from numba.extending import register_jitable

from lowgemm.engine import compensation, drivers, packing
from lowgemm.engine.blocking import (
    BY_COLUMNS,
    BY_ROWS,
    IN_PLACE_BY_COLUMNS,
    IN_PLACE_BY_ROWS,
    MOST_CALL_COLUMNS,
    NOT_ON_THE_FLY,
    ON_THE_FLY_ROWS,
    block_limits,
    block_sizes,
    columns_of_a_call,
    up,
)
from lowgemm.engine.deep_block import deep_block
from lowgemm.engine.image import SLACK, patch_bytes, patch_rows
from lowgemm.engine.in_place import add_compensation, in_place_routine, rows_in_place, space_bytes
from lowgemm.engine.listed import is_listed
from lowgemm.engine.packing import CHUNK_BYTES, LINE
from lowgemm.engine.pixels import lines_of, lines_of_a_block, most_grid_rows, pays_as_grids, pixels_of
from lowgemm.engine.records import ALWAYS, LISTED, NEVER, TEMPLATE, WHERE_ALIGNED
from lowgemm.engine.stream import register_bytes, stream
from lowgemm.jit.caches import CacheSizes, cache_sizes
from lowgemm.jit.scratch import ALIGNMENT
from lowgemm.kernels import Kernel, microkernel
from lowgemm.kernels.framework.kernel import LIST_HEAD

#: Elements of an rhs from which on it is multiplied in place; below, packing it takes a few microseconds.
IN_PLACE_LEAST = 1 << 14
#: Of what a template has two of: both.
BOTH = (False, True)
#: Fields of `records.TEMPLATE`, for Python.
Template = namedtuple("Template", TEMPLATE.names or ())  # type: ignore[misc]
_kept: list[np.ndarray] = []


#: Rows for each thread at least where each packs the whole rhs for itself. Reading what another core has
#: packed takes longer than packing it, and nobody waits; but with few rows packing is much of the work. See
#: `docs/scaling.md`.
OWN_RHS_ROWS = 128
#: Depth up to which a result may be stored past the caches: that of 1000 x 64 x 1000 takes 0.4 ms to store
#: and 0.2 to compute.
STREAM_DEPTH = 128
#: Columns of a block of such a result, and columns from which its rows need not follow one another: the lines
#: at both ends of a row of a block are stored in parts.
STREAM_COLUMNS = 144
#: Bytes of L3 up to which it is near enough to keep a result that fits it. A larger one is that of many
#: cores, whose lines travel as long as memory's; then a result may be as large as this times L2.
NEAR_L3, STREAM_L2 = 1 << 26, 4
#: Columns up to which an lhs always stays in place: rows that straddle cache lines take two reads each, once
#: for every nr columns.
COLUMNS_IN_PLACE = 64


def template_of(
    kernel: Kernel, in_place: tuple[bool, ...] = (), streamed: bool = False,
    lhs_signs: tuple[bool, ...] = BOTH, scale: int = 0, deep: bool = False,
    lhs_by_depth: tuple[bool, ...] = BOTH, rhs_by_depth: tuple[bool, ...] = BOTH, listed: bool = False,
) -> Any:  # fmt: skip
    """What the planner needs to know of a kernel here; compiles the routines that every plan calls.

    `in_place`: for which rhs also those that multiply it where it lies, which few plans call: one whose rows
    are contiguous (False), whose columns are (True). `streamed`: likewise for the routine that stores past
    the caches; `deep`: for that of `deep_block.py`. The microkernel is compiled for an lhs of the signs in
    `lhs_signs` (a plan has one); its other address is 0. `scale` is the number of the scale that it does.
    `lhs_by_depth`, `rhs_by_depth`: which packing routines there are, likewise: of operands whose depth is not
    contiguous (False), whose depth is (True). `listed`: the caller has the microkernel for a scattered lhs,
    if the plan asks for it.
    """
    addresses = tuple(
        microkernel(kernel, signed, scale).address if signed in lhs_signs else 0 for signed in BOTH
    )
    fields = dict(zip(TEMPLATE.names or (), _template(kernel, cache_sizes()), strict=True))
    fields["kernel"] = addresses
    fields["listed"] = int(listed and kernel.scatters and kernel.row_bytes == 0)
    for side, kinds in (("lhs", lhs_by_depth), ("rhs", rhs_by_depth)):
        fields[f"pack_{side}"] = tuple(
            packing.pack_routine(kernel, side, by_depth).address if by_depth in kinds else 0
            for by_depth in BOTH
        )
    if in_place:
        fields["in_place"] = tuple(
            in_place_routine(kernel, by_columns).address if by_columns in in_place else 0
            for by_columns in BOTH
        )
        fields["in_place_compensation"] = add_compensation.address
    if streamed and register_bytes():
        fields["stream"] = stream.address
    if deep:
        fields["deep_block"] = deep_block.address
    return Template(**fields)


@functools.cache
def _template(kernel: Kernel, sizes: CacheSizes) -> Any:
    most_rows, most_rows_with_stages, most_columns = block_limits(kernel)
    maps = {side: [packing.element_map(kernel, side, kind) for kind in "ui"] for side in ("lhs", "rhs")}
    # one for each row of a block, or column of a call
    columns = MOST_CALL_COLUMNS if kernel.any_panels else kernel.nr
    zeros = np.zeros(
        max(most_rows, most_rows_with_stages, ON_THE_FLY_ROWS, 4 * kernel.mr, columns) + kernel.mr, np.int32
    )
    _kept.append(zeros)
    return Template(
        mr=kernel.mr,
        nr=kernel.nr,
        element_bytes=kernel.element_bytes,
        row_bytes=kernel.row_bytes,
        over_read=kernel.over_read,
        any_panels=int(kernel.any_panels),
        l2=sizes.l2,
        l3=sizes.l3,
        most_rows=most_rows,
        most_rows_with_stages=most_rows_with_stages,
        most_columns=most_columns,
        lhs_flip=tuple(flip for flip, _ in maps["lhs"]),
        lhs_shift=tuple(shift for _, shift in maps["lhs"]),
        rhs_flip=tuple(flip for flip, _ in maps["rhs"]),
        rhs_shift=tuple(shift for _, shift in maps["rhs"]),
        lanes=kernel.lanes,
        kr=kernel.kr,
        rhs_group_bytes=kernel.rhs_group_bytes,
        pack_chunk=4 * up(LINE, kernel.lanes),
        kernel=(0, 0),
        pack_lhs=(0, 0),
        pack_rhs=(0, 0),
        compensation_routine=compensation.compensate.address,
        single=drivers.single.address,
        no_compensation=zeros.ctypes.data,
        listed=0,
        in_place_rows=rows_in_place(kernel),
        in_place=(0, 0),
        in_place_compensation=0,
        stream=0,
        deep_block=0,
    )


@register_jitable
def reads_in_place(p, most, lanes):
    """Whether the rhs of a plan, whose asked fields are set, is multiplied where it lies: it comes unpacked,
    for at most `most` rows of an lhs that is no image, no two batch items share it, and one of its strides is
    that of a byte.
    """
    if (
        p.packed != 0
        or p.image != 0
        or p.m > most
        or p.batch != p.distinct_rhs
        or p.depth * p.n < IN_PLACE_LEAST
    ):
        return False
    return p.rhs_k_stride == 1 or (p.rhs_n_stride == 1 and p.n >= 4 * lanes)


@register_jitable
def streams(p, lanes, l2, l3, plain):
    """Whether the result of a plan, whose asked fields are set, is stored past the caches: int32 that no
    cache keeps, of so little depth that storing them takes longest, with whole lines to store.
    """
    if not plain or p.accumulate != 0 or p.depth > STREAM_DEPTH or p.m <= ON_THE_FLY_ROWS:
        return False
    kept = l3 if l3 <= NEAR_L3 else STREAM_L2 * l2
    if 4 * p.batch * p.m * p.n < kept or p.out_col_stride != 4:
        return False
    return p.n >= STREAM_COLUMNS or (p.n % lanes == 0 and p.out_row_stride == 4 * p.n)


@register_jitable
def has_deep_blocks(p):
    """Whether the blocks of a plan are those of `deep_block.py`: their sums stay in a tile until they are
    whole.
    """
    return p.depth_blocks > 1 or p.on_the_fly_at != 0 or p.stream != 0


def stores_past_caches(p: Any, kernel: Kernel, plain: bool) -> bool:
    """`streams` on this machine. It is for memory that was there before: pages that the system has just
    cleared lie in the caches.
    """
    sizes = cache_sizes()
    return bool(streams(p, kernel.lanes, sizes.l2, sizes.l3, plain))


@register_jitable
def _divide(p, k, threads, on_the_fly):
    """Blocks of the plan `p`: its fields `mc` to `splits`, `plane_rows`, `plane_blocks` and `workers`.

    An image whose tiles are read from grids of its pixels has blocks of whole lines of one plane; others have
    blocks of any rows. `on_the_fly` says how the rhs could be packed on the fly or multiplied where it lies
    (`blocking.py`). Returns how it is, and whether there are grids.
    """
    planes, tall = 1, 0
    if p.pixel_bytes != 0:
        planes = max(p.m // p.plane_rows, 1)
        tall = most_grid_rows(p, k)
    mc, nc, kc, row_blocks, col_blocks, depth_blocks, splits, kept_on_the_fly = block_sizes(
        k, p.m // planes, p.n, p.depth, threads, p.batch * planes, p.direct, on_the_fly, tall
    )
    grids = p.pixel_bytes != 0 and depth_blocks == 1 and p.stream == 0
    if grids and col_blocks == 1:
        lines = lines_of_a_block(p, p.batch * planes, threads, tall, k)
        mc = lines * p.line_rows
        grids = lines > 0
    if grids:
        row_blocks = -(-p.plane_rows // mc)
        blocks = p.batch * planes * row_blocks * col_blocks
        grids = pays_as_grids(p, -(-blocks // threads), threads, mc, nc, k)
    if p.pixel_bytes != 0 and not grids:
        planes = 1
        mc, nc, kc, row_blocks, col_blocks, depth_blocks, splits, kept_on_the_fly = block_sizes(
            k, p.m, p.n, p.depth, threads, p.batch, p.direct, on_the_fly
        )
    p.plane_rows, p.plane_blocks = p.m // planes, row_blocks
    row_blocks *= planes
    if splits > 1:
        p.stream = 0
    if p.stream != 0:
        nc = min(nc, up(STREAM_COLUMNS, k.nr))
        col_blocks = -(-p.n // nc)
    p.workers = min(threads, p.batch * row_blocks * col_blocks * splits)
    p.mc = mc
    p.nc = nc
    p.kc = kc
    p.row_blocks = row_blocks
    p.col_blocks = col_blocks
    p.depth_blocks = depth_blocks
    p.splits = splits
    return kept_on_the_fly, grids


@register_jitable
def _name_routines(p, k, lhs_signed, rhs_signed, on_the_fly):
    """What the plan `p` has from the template `k`: its routines, and how the kernel reads operands."""
    p.lhs_flip = k.lhs_flip[lhs_signed]
    p.rhs_flip = k.rhs_flip[rhs_signed]
    p.lhs_shift = k.lhs_shift[lhs_signed]
    p.rhs_shift = k.rhs_shift[rhs_signed]
    p.lanes = k.lanes
    p.nr = k.nr
    p.kr = k.kr
    p.rhs_group_bytes = k.rhs_group_bytes
    p.pack_chunk = k.pack_chunk
    p.kernel = k.kernel[lhs_signed]
    p.pack_lhs = k.pack_lhs[int(p.image != 0 or p.lhs_k_stride == 1)]
    p.pack_rhs = k.pack_rhs[int(p.rhs_k_stride == 1)] if p.packed == 0 else 0
    p.compensation_routine = k.compensation_routine
    p.single = k.single
    p.in_place = k.in_place[on_the_fly - IN_PLACE_BY_ROWS] if on_the_fly >= IN_PLACE_BY_ROWS else 0
    p.in_place_compensation = k.in_place_compensation if p.in_place != 0 else 0
    p.no_compensation = k.no_compensation


@register_jitable
def _place_lhs(p, k, grids, deep):
    """How a block of the lhs lies in a thread's memory, from its beginning; its bytes. `deep`: blocks are those
    of `deep_block.py`.
    """
    p.lhs_in_place = NEVER
    p.steps_at = p.pixel_sums_at = p.list_size = 0
    if grids:
        pixels = pixels_of(p, p.mc)
        p.lhs_panel_bytes = p.pixel_bytes
        p.steps_at = up(pixels * p.pixel_bytes + SLACK, LINE)
        p.list_size = LIST_HEAD + p.depth // p.piece_bytes
        p.pixel_sums_at = p.steps_at + 8 * (p.list_size + lines_of(p, p.mc) * p.grid_width)
        return up(p.pixel_sums_at + 4 * pixels, ALIGNMENT)
    if k.row_bytes == 0 and not deep and is_listed(p, k):
        p.lhs_in_place = LISTED
        p.list_size = LIST_HEAD + p.depth // k.kr
        return up(8 * p.list_size, ALIGNMENT)
    if k.row_bytes == 0:
        p.lhs_panel_bytes = up(p.kc * k.element_bytes, CHUNK_BYTES) * k.mr
        return p.mc // k.mr * p.lhs_panel_bytes
    in_rows = p.lhs_k_stride == 1 and p.image == 0
    if in_rows and p.depth % k.row_bytes == 0 and p.kc % k.row_bytes == 0:
        p.lhs_in_place = WHERE_ALIGNED if p.nc > COLUMNS_IN_PLACE else ALWAYS
    elif in_rows and p.depth < k.row_bytes and p.depth % k.kr == 0:
        p.lhs_in_place = ALWAYS
    # an odd number of lines from row to row, so that the rows of a tile do not evict each other from L1
    p.lhs_panel_bytes = up(p.kc + (SLACK if p.image != 0 else 0), k.row_bytes)
    if p.lhs_panel_bytes % (2 * LINE) == 0:
        p.lhs_panel_bytes += LINE
    return p.mc * p.lhs_panel_bytes


@register_jitable
def _place_worker(p, k, lhs_bytes, tile_cols, on_the_fly):
    """Where everything lies in a thread's memory: the `lhs_bytes` of the lhs's panels, row sums twice, row
    compensation, a tile of `tile_cols` columns, and panels and sums of an rhs block packed on the fly.
    """
    p.row_sums_at = lhs_bytes
    p.row_compensation_at = p.row_sums_at + 8 * p.mc
    p.tile_at = up(p.row_compensation_at + 4 * p.mc, ALIGNMENT)
    end = up(p.tile_at + 4 * p.mc * tile_cols, ALIGNMENT)
    p.patches_at = end
    if p.image != 0 and k.row_bytes == 0:
        end = up(end + patch_rows(k.mr, p.kc) * patch_bytes(p.kc), ALIGNMENT)
    p.on_the_fly_at = 0
    if on_the_fly:
        p.on_the_fly_at = end
        if on_the_fly >= IN_PLACE_BY_ROWS:
            end = up(end + space_bytes(k.lanes, p.m, p.nc, p.depth), ALIGNMENT)
        else:
            end = up(end + up(p.nc, k.lanes) * (p.rhs_panel_bytes // k.lanes + 4), ALIGNMENT)
    p.worker_bytes = end + ALIGNMENT


@register_jitable
def _place_shared(p, k, on_the_fly, in_order):
    """What all threads share: each rhs with its compensation and factors, and the tiles of splits; and how
    much memory there is in all.
    """
    # of an rhs: compensation and factors, then sums and panels unless it came packed
    cols = up(p.n, k.lanes)
    p.col_bytes = up(4 * cols, ALIGNMENT)
    p.rhs_bytes = 0 if on_the_fly else up(cols // k.lanes * p.rhs_panel_bytes, ALIGNMENT)
    bytes_of_an_rhs = 2 * p.col_bytes if p.packed else 3 * p.col_bytes + p.rhs_bytes
    packs_once = p.distinct_rhs == 1 and not p.packed and not on_the_fly
    p.own_rhs = 0
    if packs_once and p.workers > 1 and p.rhs_bytes <= k.l2 // 2 and p.m >= OWN_RHS_ROWS * p.workers:
        p.own_rhs = 1
    # one thread that takes the batch items in order needs one rhs at a time; see `drivers.single`
    copies = p.workers if p.own_rhs != 0 else p.distinct_rhs
    p.all_rhs_bytes = bytes_of_an_rhs if p.workers == 1 and in_order else bytes_of_an_rhs * copies
    blocks = p.batch * p.row_blocks * p.col_blocks
    # of a split: row sums and a tile
    p.split_bytes = 0
    if p.splits > 1:
        p.split_bytes = up(4 * p.mc * (1 + up(p.nc, k.lanes)), ALIGNMENT)
    p.splits_bytes = blocks * p.splits * p.split_bytes
    p.scratch_bytes = p.all_rhs_bytes + p.workers * p.worker_bytes + p.splits_bytes + k.over_read
    if p.splits > 1:
        p.scratch_bytes += 8 * blocks  # how many splits are done


@register_jitable
def fill_plan(p, k, lhs_signed, rhs_signed, plain, threads, in_order):
    """Fill in what is decided of the plan `p`, whose asked fields are set, for the kernel of template `k`.

    `lhs_signed` and `rhs_signed` are 1 for int8, 0 for uint8. `plain`: nothing is left to do to the int32
    sums but to store them. `threads`: how many there are at most. `in_order`: batch items with one rhs follow
    one another.
    """
    p.direct = 0
    p.stream = k.stream if streams(p, k.lanes, k.l2, k.l3, plain) else 0
    if p.stream == 0 and (p.fused != 0 or (plain and p.out_col_stride == 4 and p.out_row_stride % 4 == 0)):
        p.direct = 1
    wanted = NOT_ON_THE_FLY
    if not p.packed and p.image == 0 and p.batch == p.distinct_rhs:
        by_columns = p.rhs_k_stride == 1
        wanted = BY_COLUMNS if by_columns else BY_ROWS
        if k.in_place[int(by_columns)] != 0 and reads_in_place(p, k.in_place_rows, k.lanes):
            wanted = IN_PLACE_BY_COLUMNS if by_columns else IN_PLACE_BY_ROWS
    on_the_fly, grids = _divide(p, k, threads, wanted)
    _name_routines(p, k, lhs_signed, rhs_signed, on_the_fly)
    # the tile holds the sums of a whole block
    whole_tile = p.depth_blocks > 1 or on_the_fly != NOT_ON_THE_FLY or p.stream != 0
    rows_held = pixels_of(p, p.mc) * p.pixel_bytes // p.kc if grids else p.mc
    p.call_columns = columns_of_a_call(k, rows_held, p.kc, p.direct != 0 or whole_tile)
    p.rhs_panel_bytes = up((p.kc if on_the_fly else p.depth) * k.element_bytes, CHUNK_BYTES) * k.lanes
    tile_cols = up(p.nc, k.lanes) if whole_tile else k.nr
    _place_worker(p, k, _place_lhs(p, k, grids, whole_tile), tile_cols, on_the_fly)
    _place_shared(p, k, on_the_fly, in_order)
    p.deep_block = k.deep_block if has_deep_blocks(p) else 0
