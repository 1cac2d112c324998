"""How well `lowgemm.dask` uses 1, 2 and 4 worker processes, beside one `gemm` call on as many threads.

    python examples/dask_scaling.py [--quick]

Efficiency is speed relative to one worker, over the number of workers, or of cores where there are fewer
cores. The data are made on the workers before the clock starts; the time is from submission to the last chunk
of the result.
"""

from __future__ import annotations

import argparse
import os
import time

import dask
import dask.array as da
import numpy as np

import lowgemm
import lowgemm.dask


def bytes_of(shape, chunk, dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return da.random.default_rng(0).integers(low, high + 1, shape, dtype=dtype, chunks=chunk)


def main() -> None:
    from distributed import Client, LocalCluster, wait

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a small product, one repetition, at most 2 workers"
    )
    quick = parser.parse_args().quick
    size, chunk, repeats, counts = (1024, 512, 1, (1, 2)) if quick else (8192, 2048, 3, (1, 2, 4))
    cores = len(os.sched_getaffinity(0))
    macs = size**3

    x, w = (np.random.default_rng(0).integers(-128, 128, (size, size), dtype=np.int8) for _ in range(2))
    for threads in (1, 2):
        found = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            lowgemm.gemm(x, w, num_threads=threads)
            found.append(time.perf_counter() - start)
        print(f"one gemm() call, {threads} threads: {macs / min(found) / 1e9:6.0f} GMAC/s")
    del x, w

    print(f"{size} cubed, chunks of {chunk} cubed, {cores} cores:")
    print(f"{'workers':>8} {'seconds':>8} {'GMAC/s':>7} {'efficiency':>11}")
    first = None
    for workers in counts:
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
            ) as cluster,
            Client(cluster) as client,
        ):
            lhs = client.persist(bytes_of((size, size), (chunk, chunk), np.int8))
            rhs = client.persist(bytes_of((size, size), (chunk, chunk), np.int8))
            wait([lhs, rhs])
            found = []
            for turn in range(repeats + 1):  # the first loads the compiled code
                # another zero point each turn: the cluster would answer a product that it knows from memory
                product = lowgemm.dask.gemm(lhs, rhs, lhs_zero_point=turn)
                start = time.perf_counter()
                done = client.persist(product)
                wait(done)
                found.append(time.perf_counter() - start)
                del done, product
            seconds = min(found[1:])
            first = first or seconds
            share = first / seconds / min(workers, cores)
            print(f"{workers:>8} {seconds:>8.2f} {macs / seconds / 1e9:>7.0f} {share:>11.0%}")


if __name__ == "__main__":
    dask.config.set({"distributed.worker.memory.terminate": False})
    main()
