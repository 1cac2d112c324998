"""`python -m lowgemm demo`: a real network's product, checked bit for bit, then timed beside float32."""

from __future__ import annotations

import argparse

import numpy as np

import lowgemm
from lowgemm import kernels
from lowgemm.data import recorded_network
from lowgemm.kernels.tools.timing import blas_threads, check_threads, interleave, text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--threads", type=int, default=1, help="threads for both sides (default 1)")


def run(args: argparse.Namespace) -> int:
    """Run; the exit status is 1 if any element is wrong."""
    check_threads(args.threads)
    problem = recorded_network()
    lhs, rhs = problem["lhs"], problem["rhs"]
    output = [
        lowgemm.QuantizeDownInt32ToUint8Scale(
            problem["result_offset"], problem["result_mult_int"], problem["result_shift"]
        ),
        lowgemm.SaturatingCast(np.uint8),
    ]
    options = {
        "lhs_zero_point": problem["lhs_zero_point"],
        "rhs_zero_point": problem["rhs_zero_point"],
        "num_threads": args.threads,
    }
    (m, depth), n = lhs.shape, rhs.shape[1]
    print(f"Recorded problem of a real 8-bit network: {m} x {depth} by {depth} x {n}, uint8, zero point 84.")
    result = lowgemm.gemm(lhs, rhs, output=output, **options)
    wrong = int(np.count_nonzero(result != problem["expected"]))
    print(f"Compared with the recorded result: {wrong} of {result.size} elements differ.")

    left, right = lhs.astype(np.float32), rhs.astype(np.float32)
    packed = lowgemm.pack_rhs(rhs)
    with blas_threads(args.threads) as blas:
        medians = interleave(
            {
                "float32 NumPy": lambda: left @ right,
                "lowgemm -> uint8": lambda: lowgemm.gemm(lhs, rhs, output=output, **options),
                "lowgemm -> uint8, rhs packed once": lambda: lowgemm.gemm(
                    lhs, packed, output=output, **options
                ),
                "lowgemm -> int32": lambda: lowgemm.gemm(lhs, rhs, **options),
            },
            seconds=1.5,
        )
    macs, base = m * n * depth, medians["float32 NumPy"]
    rows = [
        [name, f"{t * 1e6:.0f}", f"{macs / t / 1e9:.1f}", f"{base / t:.2f}" if blas.pinned else "-"]
        for name, t in medians.items()
    ]
    print()
    print(text_table(["", "us", "GMAC/s", "x float32"], rows))
    print(f"\nkernel {kernels.selected().name}, {args.threads} thread(s); float32: {blas.text}")
    for note in blas.notes:
        print(f"note: {note}")
    return 1 if wrong else 0
