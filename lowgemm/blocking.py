"""Block sizes from cache sizes.

The microkernel streams one tile of the packed rhs (nr columns) and the packed lhs block past each other. Both
come from L2 at no loss (per group of 4 depth steps an 8 x 48 tile loads 224 bytes in 24 cycles, where L2 gives
32 bytes a cycle), so the depth is not split until an rhs tile outgrows 5/8 of L2. The lhs block may be larger than L2: a tile of it takes 32
bytes in those cycles, which L3 gives too. It should be tall where the rhs is large, since the whole rhs passes by
once for each block: from L3, or from memory, which gives a third of what the microkernel can take.
"""

from __future__ import annotations

from typing import NamedTuple

from lowgemm.caches import cache_sizes
from lowgemm.kernels import Kernel
from lowgemm.packing import CHUNK_BYTES

#: Rows of a block at most: with stages to run, a tile of mc x nr int32 should stay in L1.
MAX_MC = 256
MAX_MC_WITH_STAGES = 64
#: The same where the rhs takes more than a quarter of L3 (512 x 11008 x 4096 on Zen 5: 463 GMAC/s with 128, 491 with 256).
MAX_MC_LARGE_RHS = 256
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
    _, l2, l3 = cache_sizes()
    size = kernel.element_bytes
    chunk = CHUNK_BYTES // size
    kc = max(l2 * 5 // 8 // (kernel.nr * size) // chunk * chunk, chunk)
    depth_blocks = max(1, -(-depth // kc))
    kc = _up(-(-depth // depth_blocks), chunk) if depth_blocks > 1 else max(depth, 1)
    depth_blocks = max(1, -(-depth // kc))

    most = MAX_MC if direct and depth_blocks == 1 else MAX_MC_WITH_STAGES
    if most == MAX_MC and n * depth * size > l3 // 4:
        most = MAX_MC_LARGE_RHS
    mc = max(min(max(l2 // 4, l3 // 8) // (kc * size), most) // kernel.mr * kernel.mr, kernel.mr)
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
