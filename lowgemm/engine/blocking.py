"""Block sizes from cache sizes.

The microkernel reads one tile of the packed rhs (nr columns) and the packed lhs block past each other. Both
come from L2 at no loss (per group of 4 depth steps an 8 x 48 tile loads 224 bytes in 24 cycles, where L2
gives 32 bytes per cycle), so the depth is not split until an rhs tile outgrows 5/8 of L2. The lhs block may
be larger than L2: a tile of it takes 32 bytes in those cycles, which L3 gives too. It should be tall where
the rhs is large, since the whole rhs passes by once for each block: from L3, or from memory, which gives a
third of what the microkernel can take.

Threads share rows first, then columns, and the depth where the result has too few blocks for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from numba.extending import register_jitable

from lowgemm.engine.packing import CHUNK_BYTES
from lowgemm.kernels import Kernel

#: Rows of a block at most; like the next two, for kernels that do not say it themselves (`block_rows` and so
#: on).
MAX_MC = 256
#: The same with stages to run: a tile of mc x nr int32 should stay in L1.
MAX_MC_WITH_STAGES = 64
#: Tiles side by side in a call of a kernel that takes any number of panels, at least. Their lhs is read from
#: L2 once for so many tiles, and the result is written in pieces of so many lines.
CALL_TILES = 1
#: Columns of such a call at most: so many zeros stand for the compensation of columns that have none.
MOST_CALL_COLUMNS = 2048
#: Columns of a block whose sums must wait for later depth blocks (mc x nc int32 stay in L2).
NC_DEPTH_BLOCKED = 480
#: Blocks for each thread at least, so that a late thread costs a fraction of its share. (Four: 512 cubed on
#: two threads 2 % slower.)
BLOCKS_PER_THREAD = 2
#: Rows of a block at least, or four tiles if that is less, before blocks are cut between columns. Two threads
#: that write parts of the same rows wait for each other's cache lines: 384 cubed with AMX, in blocks of 128 x
#: 192, took 5 to 15 us longer of 44.
FEW_ROWS = 64
#: Multiply-accumulates of a block at most where several threads work (0.4 ms of a core at 330 GMAC/s), as
#: long as it keeps so many rows and columns. The last thread to finish keeps the others waiting for one block
#: at most, and longer if another program takes its core.
BLOCK_MACS, BLOCK_ROWS, BLOCK_COLUMNS = 1 << 27, 128, 512
#: Depth of one split at least, where the depth is shared among threads (split-K). In 256 depth groups a tile
#: takes long enough for the addition of the splits to be little beside it.
SPLIT_DEPTH = 1024
#: Rows up to which an rhs that comes unpacked and is larger than L2 is packed on the fly: each block right
#: before it is multiplied.
ON_THE_FLY_ROWS = 32
#: Depth of such a block at least, where rows of the rhs are contiguous: they are read from one end to the
#: other.
ON_THE_FLY_DEPTH = 128
#: How an rhs may be packed on the fly: not at all (it is packed already, or several batch items share it), by
#: rows or by columns, whichever are contiguous.
NOT_ON_THE_FLY, BY_ROWS, BY_COLUMNS = range(3)
#: Instead of packing it: it is multiplied where it lies (`in_place.py`), in blocks of whole columns. Where
#: its rows are contiguous each thread gets one block, since shorter pieces of rows are read more slowly.
IN_PLACE_BY_ROWS, IN_PLACE_BY_COLUMNS = 3, 4


#: Most rows of a product whose depth is split so that a large rhs passes by once. With AMX, 512 x 11008 x
#: 4096 on one thread was 723 GMAC/s with six blocks of rows, and is 801 so; on two threads 1,659 and 1,640,
#: and with other programs running 606 and 762. With two such blocks, 1024 rows, it was 801 and 815 on one
#: thread, but 1,849 and 1,655 on two.
TALL_ROWS = 512


class Blocking(NamedTuple):
    """Block sizes (mc rows, nc columns, kc depth), how many blocks there are each way, and how the rhs is
    packed.

    `splits` is that of split-K. Each split has `depth_blocks / splits` depth blocks (rounded up). If there
    are several, any thread computes them, each apart, and they are added. `on_the_fly`, if not 0: each block
    of the rhs is packed right before it is multiplied.
    """

    mc: int
    nc: int
    kc: int
    row_blocks: int
    col_blocks: int
    depth_blocks: int
    splits: int
    on_the_fly: int


@register_jitable
def up(x, step):
    """`x` rounded up to a multiple of `step`."""
    return -(-x // step) * step


def block_limits(kernel: Kernel) -> tuple[int, int, int]:
    """Rows of a block at most, rows with stages to run, columns where the depth is split: the kernel's own,
    or those from here.
    """
    return (
        kernel.block_rows or MAX_MC,
        kernel.block_rows_with_stages or MAX_MC_WITH_STAGES,
        kernel.block_columns or NC_DEPTH_BLOCKED,
    )


@register_jitable
def columns_of_a_call(k, mc, kc, wide):
    """Columns that the kernel of template `k` gets in a call at most, in blocks of `mc` rows and depth `kc`.

    A kernel that takes any number of them should meet panels that are in L2, beside the lhs block, for it
    reads them all again for each tile of rows. `wide`: whether there is room for the sums of more than one
    tile; where stages run on each tile in L1 there is not.
    """
    if k.any_panels == 0 or not wide:
        return k.nr
    fit = max((k.l2 * 5 // 8 - mc * kc) // kc // k.nr, CALL_TILES) * k.nr
    return min(fit, MOST_CALL_COLUMNS // k.nr * k.nr)


@register_jitable
def deep_block(k, m, n, depth, mc):
    """Rows, columns and depth of blocks with which far fewer bytes come from L3, for a kernel that reads
    rows; 0, 0, 0 where there are none.

    With the whole depth in a block few rows fit L2, and the rhs passes by once for each block of rows. With a
    part of the depth all rows may fit, beside their sums; but then the lhs passes by once for each block of
    columns.
    """
    size = k.element_bytes
    rows, columns = up(m, k.mr), min(n, up(k.most_columns, k.nr))
    if rows > TALL_ROWS or n * depth * size <= k.l2:
        return 0, 0, 0
    kc = (k.l2 * 7 // 8 - 4 * rows * columns) // (rows * size) // k.row_bytes * k.row_bytes
    passing = -(-m // mc) * n + m  # times the depth
    passing_then = n + -(-n // columns) * m
    if kc < k.row_bytes or kc >= depth or 2 * passing_then > passing:
        return 0, 0, 0
    return rows, columns, up(-(-depth // -(-depth // kc)), k.row_bytes)


@register_jitable
def block_sizes(k, m, n, depth, threads, batch, direct, on_the_fly, tall=0):
    """The fields of `Blocking`. It runs in Python, and compiled as a part of the planner.

    `k` is the kernel's template (`records.TEMPLATE`). `threads` and `batch` are counts.
    `direct`: whether the kernel stores to the result itself. `on_the_fly`: how the rhs may be packed on the
    fly. `tall`: rows of a block that fit the caches, where that is not for the depth to say; else 0.
    """
    mr, nr, size, l2, l3 = k.mr, k.nr, k.element_bytes, k.l2, k.l3
    chunk = max(CHUNK_BYTES // size, k.row_bytes)
    kc = max(l2 * 5 // 8 // (nr * size) // chunk * chunk, chunk)
    depth_blocks = max(1, -(-depth // kc))
    kc = up(-(-depth // depth_blocks), chunk) if depth_blocks > 1 else max(depth, 1)
    depth_blocks = max(1, -(-depth // kc))

    most = k.most_rows if direct and depth_blocks == 1 else k.most_rows_with_stages
    # A kernel that reads rows takes twice the bytes per cycle, which L3 does not give.
    room = l2 * 5 // 8 if k.row_bytes else max(l2 // 4, l3 // 8)
    mc = max(min(room // (kc * size), most) // mr * mr, mr)
    mc = min(tall or mc, up(m, mr))
    nc = n if depth_blocks == 1 else min(n, up(k.most_columns, nr))
    deep = 0
    if k.row_bytes != 0 and depth_blocks == 1 and on_the_fly == NOT_ON_THE_FLY:
        deep, columns, part = deep_block(k, m, n, depth, mc)
    if deep != 0:
        mc, kc, depth_blocks = deep, part, -(-depth // part)
        # no thread gets one block more than another
        nc = up(-(-n // up(-(-n // columns), threads)), nr)
    wanted = threads * BLOCKS_PER_THREAD if threads > 1 else 1
    few = min(4 * mr, FEW_ROWS)
    while batch * -(-m // mc) * -(-n // nc) < wanted and mc > few:
        mc = max(up(mc // 2, mr), few)
    while deep == 0 and threads > 1 and mc >= 2 * max(BLOCK_ROWS, mr) and mc * nc * kc > BLOCK_MACS:
        mc = up(mc // 2, mr)
    while deep == 0 and threads > 1 and nc >= 2 * max(BLOCK_COLUMNS, nr) and mc * nc * kc > BLOCK_MACS:
        nc = up(nc // 2, nr)
    row_blocks = -(-m // mc)
    if row_blocks >= wanted > 1:
        # no thread gets one block more than another: 640 rows for two threads not as 5 x 128
        row_blocks = up(row_blocks, threads)
    # even blocks: 1000 rows as 8 x 128 would leave a last block of 104
    mc = up(-(-m // row_blocks), mr)
    row_blocks = -(-m // mc)

    splits = 1
    if batch * row_blocks * -(-n // nc) < wanted:
        splits = min(-(-wanted // (batch * row_blocks * -(-n // nc))), depth // SPLIT_DEPTH)
        if splits > 1 and nr * wanted > batch * row_blocks * n:
            # too few columns to go round: the depth is shared instead
            share = -(-depth // splits)
            each = -(-share // kc)  # depth blocks of a split
            kc = up(-(-depth // (splits * each)), chunk)
            depth_blocks = -(-depth // kc)
            splits = -(-depth_blocks // each)
            nc = min(n, up(k.most_columns, nr))
        else:
            splits = 1
            split = -(-wanted // (batch * row_blocks))
            nc = min(nc, up(-(-n // split), nr))
    if on_the_fly >= IN_PLACE_BY_ROWS:
        width = 4 * k.lanes  # a block has at least as many columns as a register has bytes
        each = max(1, -(-(threads if on_the_fly == IN_PLACE_BY_ROWS else wanted) // batch))
        nc = min(n, up(-(-n // min(each, max(n // width, 1))), width))
        while n - (-(-n // nc) - 1) * nc < min(width, n):
            nc = min(n, nc + width)
        mc, row_blocks, kc, depth_blocks, splits = up(m, mr), 1, max(depth, 1), 1, 1
    elif on_the_fly and splits == 1 and m <= ON_THE_FLY_ROWS and n * depth * size > l2 // 2:
        # panels in half of L2, sums in a quarter
        mc, row_blocks = up(m, mr), 1
        if on_the_fly == BY_ROWS:
            nc = min(nc, max(min(l2 // 2 // (ON_THE_FLY_DEPTH * size), l2 // 16 // mc) // nr * nr, nr))
            nc = up(-(-n // -(-n // nc)), nr)
            kc = max(l2 // 2 // (nc * size), ON_THE_FLY_DEPTH) // chunk * chunk
        else:
            nc = min(nc, max(l2 // 2 // (kc * size) // nr * nr, nr))
        depth_blocks = -(-depth // kc)
    else:
        on_the_fly = NOT_ON_THE_FLY
    return mc, nc, kc, row_blocks, -(-n // nc), depth_blocks, splits, on_the_fly
