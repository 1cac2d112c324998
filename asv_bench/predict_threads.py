"""How a product's blocks would be shared by more workers than this machine has: a simulation, not a
measurement.

    python asv_bench/predict_threads.py

Workers take blocks as `lowgemm/jit/both_ends.py` hands them out, each when it is done with its last one. A
block takes as long as its multiply-accumulates, rows rounded up to whole tiles and columns to whole vectors,
and its packing of the lhs unless the worker's last block was of the same rows. All cores are equally fast and
memory keeps up. Efficiency is all work over workers times the longest worker.
"""

from __future__ import annotations

import heapq
import math
import types

from lowgemm import kernels
from lowgemm.cli.bench import FULL
from lowgemm.cli.shapes import parse_shapes
from lowgemm.engine import blocking, threads
from lowgemm.jit.caches import cache_sizes

WORKERS = (8, 16, 32, 64)
#: Multiply-accumulates that a core does while it packs a byte of the lhs (500 GMAC/s, 50 GB/s).
MACS_PER_PACKED_BYTE = 10
#: Adding up a split's int32 sums (the same core, 4 bytes at 20 GB/s).
MACS_PER_SPLIT_SUM = 100


def simulated(kernel, shape: tuple[int, ...], workers: int) -> tuple[int, int, float, float]:
    """Workers used, blocks, megabytes that a worker reads at most, efficiency."""
    *batch, m, depth, n = shape
    items = math.prod(batch)
    work = items * m * n * depth
    reads = max(work, threads.MACS_PER_BYTE * items * depth * n)
    used = max(1, min(workers, reads // threads.MACS_PER_THREAD))
    most = zip(
        ("most_rows", "most_rows_with_stages", "most_columns"), blocking.block_limits(kernel), strict=True
    )
    own = {name: getattr(kernel, name) for name in ("mr", "nr", "element_bytes", "row_bytes")}
    limits = types.SimpleNamespace(**own, **dict(most), l2=cache_sizes().l2, l3=cache_sizes().l3)
    sizes = blocking.block_sizes(limits, m, n, depth, used, items, True, blocking.NOT_ON_THE_FLY)
    b = blocking.Blocking(*sizes)
    blocks = items * b.row_blocks * b.col_blocks * b.splits
    free, read, last_rows = [(0.0, w) for w in range(used)], [0] * used, [-1] * used
    alone = 0.0
    given, front, back = 0, 0, blocks
    while given < blocks:
        given += 1
        time, worker = heapq.heappop(free)
        if worker % 2 == 0:
            block, front = front, front + 1
        else:
            block = back = back - 1
        block, split = divmod(block, b.splits)
        row_of_blocks, j = divmod(block, b.col_blocks)
        i = row_of_blocks % b.row_blocks
        rows, cols = min(b.mc, m - i * b.mc), min(b.nc, n - j * b.nc)
        each = -(-b.depth_blocks // b.splits)
        k = min(depth, (split + 1) * each * b.kc) - split * each * b.kc
        macs = -(-rows // kernel.mr) * kernel.mr * -(-cols // kernel.lanes) * kernel.lanes * k
        macs = max(macs, threads.MACS_PER_BYTE * k * cols)
        packing = MACS_PER_PACKED_BYTE * rows * k
        alone += macs + (packing if j == 0 else 0)
        macs += MACS_PER_SPLIT_SUM * rows * cols if b.splits > 1 else 0
        packs = b.splits > 1 or b.depth_blocks > 1 or row_of_blocks != last_rows[worker]
        last_rows[worker] = row_of_blocks
        heapq.heappush(free, (time + macs + packs * packing, worker))
        read[worker] += (rows * packs + cols) * k
    longest = max(time for time, _ in free)
    return used, blocks, max(read) / 1e6, alone / (workers * longest)


def main() -> None:
    """The table."""
    kernel = kernels.by_name("x86_avx512vnni")
    columns = ["M x K x N"] + [f"{w} workers: blocks, MB a worker, efficiency" for w in WORKERS]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for shape in parse_shapes(FULL):
        cells = []
        for workers in WORKERS:
            used, blocks, megabytes, efficiency = simulated(kernel, shape, workers)
            cells.append(
                "1 thread" if used == 1 else f"{blocks}, {megabytes:.2f}, {100 * efficiency:.0f} %"
                + (f" ({used} used)" if used < workers else "")
            )  # fmt: skip
        print(f"| {' x '.join(map(str, shape))} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
