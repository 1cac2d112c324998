"""Block sizes from cache sizes.

The microkernel streams one tile of the packed rhs (nr columns) and the packed lhs block past each other. Both
come from L2 at no loss (per group of 4 depth steps an 8 x 48 tile loads 224 bytes in 24 cycles, where L2 gives
32 bytes a cycle), so the depth is not split until an rhs tile outgrows half of L2, and mc only has to keep the
lhs block in the rest.
"""

from __future__ import annotations

from typing import NamedTuple

from lowgemm.caches import cache_sizes
from lowgemm.kernels import Kernel
from lowgemm.packing import CHUNK_BYTES

#: Rows of a block at most: with stages to run, a tile of mc x nr int32 should stay in L1.
MAX_MC = 128
MAX_MC_WITH_STAGES = 64
#: Columns of a block whose sums must wait for later depth blocks (mc x nc int32 stay in L2).
NC_DEPTH_BLOCKED = 480
#: Blocks for each thread, so that a late thread costs a fraction of its share.
BLOCKS_PER_THREAD = 4


class Blocking(NamedTuple):
    """Block sizes (mc rows, nc columns, kc depth) and how many blocks there are each way."""

    mc: int
    nc: int
    kc: int
    row_blocks: int
    col_blocks: int
    depth_blocks: int


def _up(x: int, step: int) -> int:
    return -(-x // step) * step


def choose_blocking(
    kernel: Kernel, m: int, n: int, depth: int, *, threads: int = 1, batch: int = 1, direct: bool = True
) -> Blocking:
    """Block sizes for one product.

    Examples
    --------
    >>> from lowgemm.kernels import by_name
    >>> b = choose_blocking(by_name("portable"), 1000, 1000, 1000)
    >>> b.mc * b.row_blocks >= 1000 and b.nc * b.col_blocks >= 1000 and b.depth_blocks
    1
    """
    l2 = cache_sizes().l2
    size = kernel.element_bytes
    chunk = CHUNK_BYTES // size
    kc = max(l2 // 2 // (kernel.nr * size) // chunk * chunk, chunk)
    depth_blocks = max(1, -(-depth // kc))
    kc = _up(-(-depth // depth_blocks), chunk) if depth_blocks > 1 else max(depth, 1)
    depth_blocks = max(1, -(-depth // kc))

    most = MAX_MC if direct and depth_blocks == 1 else MAX_MC_WITH_STAGES
    mc = max(min(l2 // 4 // (kc * size), most) // kernel.mr * kernel.mr, kernel.mr)
    mc = min(mc, _up(m, kernel.mr))
    nc = n if depth_blocks == 1 else min(n, _up(NC_DEPTH_BLOCKED, kernel.nr))
    wanted = threads * BLOCKS_PER_THREAD if threads > 1 else 1

    def blocks() -> int:
        return batch * -(-m // mc) * -(-n // nc)

    while blocks() < wanted and mc > 4 * kernel.mr:
        mc = max(_up(mc // 2, kernel.mr), 4 * kernel.mr)
    if blocks() < wanted:
        split = -(-wanted // (batch * -(-m // mc)))
        nc = min(nc, _up(-(-n // split), kernel.nr))
    # even blocks: 1000 rows as 8 x 128 would leave a last block of 104
    mc = _up(-(-m // -(-m // mc)), kernel.mr)
    return Blocking(mc, nc, kc, -(-m // mc), -(-n // nc), depth_blocks)
