"""A matrix larger than the memory it is given: from a file, through Dask, to a file.

    python examples/out_of_core.py [--quick] [--zarr]

The left matrix lies in a file and is larger than the stated limit. The process never holds more than the
limit: it is measured at the end (peak resident memory) and the program fails if it was passed. Needs
``lowgemm[dask]``; with ``--zarr`` the matrices lie in a Zarr store instead of plain files.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time

import dask
import dask.array as da
import numpy as np
from dask.diagnostics import ProgressBar

import lowgemm
import lowgemm.dask


class MatrixFile:
    """A matrix in a plain file. Each access maps the file anew, so that pages read are not kept in the
    process.
    """

    ndim = 2

    def __init__(self, path: pathlib.Path, shape: tuple[int, int], dtype: str, create: bool = False) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        if create:
            np.memmap(path, self.dtype, "w+", shape=shape)

    def __getitem__(self, index):
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[index])

    def __setitem__(self, index, value):
        m = np.memmap(self.path, self.dtype, "r+", shape=self.shape)
        m[index] = value
        m.flush()


def peak_megabytes() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small matrix, to see that it works")
    parser.add_argument("--zarr", action="store_true", help="Zarr stores instead of plain files")
    arguments = parser.parse_args()
    rows, depth, cols, limit = (40_000, 4096, 256, 500) if arguments.quick else (400_000, 4096, 512, 700)
    if arguments.quick:
        limit = 1000  # no claim: the matrix is smaller than what Python itself takes
    row_chunk, depth_chunk = 8192, 2048
    rng = np.random.default_rng(0)

    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)

        def new(name, shape, dtype, chunks):
            if arguments.zarr:
                import zarr

                return zarr.create_array(
                    place / f"{name}.zarr", shape=shape, dtype=dtype, chunks=chunks, compressors=None
                )
            return MatrixFile(place / name, shape, dtype, create=True)

        lhs = new("lhs", (rows, depth), "uint8", (row_chunk, depth_chunk))
        rhs = new("rhs", (depth, cols), "int8", (depth_chunk, cols))
        out = new("out", (rows, cols), "int8", (row_chunk, cols))
        for start in range(0, rows, row_chunk):
            lhs[start : start + row_chunk] = rng.integers(
                0, 256, (min(row_chunk, rows - start), depth), dtype=np.uint8
            )
        rhs[:] = rng.integers(-128, 128, (depth, cols), dtype=np.int8)
        size = rows * depth / 1e6
        print(
            f"lhs {rows} x {depth}: {size:.0f} MB on disk; memory limit {limit} MB; before: "
            f"{peak_megabytes():.0f} MB"
        )

        output = lowgemm.Requantize(scale=1 / 40_000, zero_point=0, dtype=np.int8, rounding="onnx")
        product = lowgemm.dask.gemm(
            da.from_array(lhs, chunks=(row_chunk, depth_chunk)),
            da.from_array(rhs, chunks=(depth_chunk, cols)),
            lhs_zero_point=128,
            output=output,
        )
        start = time.perf_counter()
        with ProgressBar(), dask.config.set(scheduler="threads", num_workers=os.cpu_count()):
            da.store(product, out, lock=True)
        seconds = time.perf_counter() - start
        peak = peak_megabytes()
        macs = rows * depth * cols
        print(
            f"{seconds:.1f} s, {macs / seconds / 1e9:.0f} GMAC/s, {size / seconds:.0f} MB/s read; peak "
            f"memory {peak:.0f} MB"
        )
        assert peak < limit, f"peak memory {peak:.0f} MB passes the limit of {limit} MB"
        assert arguments.quick or size > limit

        for start in (0, rows // 2 // row_chunk * row_chunk, rows - 100):
            x, y = lhs[start : start + 100], out[start : start + 100]
            assert (lowgemm.gemm(x, rhs[:], lhs_zero_point=128, output=output) == y).all()
        print("rows compared with one gemm() call: the same bits")


if __name__ == "__main__":
    main()
