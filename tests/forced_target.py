"""Run by test_target.py in a process of its own: every kernel of the target that the environment forces."""

from __future__ import annotations

import sys

import nonfinite
import numpy as np
import test_golden_gemm

import lowgemm
from lowgemm import kernels
from lowgemm.jit.target import target
from lowgemm.kernels.tools import verify

SHAPES = [(64, 64, 64), (17, 130, 33), (1, 256, 128)]


def wrong_elements(rng: np.random.Generator) -> int:
    """Full-range random products of every sign pair at the shapes where capped peers fail."""
    wrong = 0
    for m, k, n in SHAPES:
        for left in (np.int8, np.uint8):
            for right in (np.int8, np.uint8):
                for smallest in (0, 1):  # with and without the smallest value
                    a, b = (
                        rng.integers(
                            np.iinfo(d).min + smallest, np.iinfo(d).max, shape, dtype=d, endpoint=True
                        )
                        for d, shape in ((left, (m, k)), (right, (k, n)))
                    )
                    exact = a.astype(np.int64) @ b.astype(np.int64)
                    for rhs in (b, lowgemm.pack_rhs(b)):
                        wrong += int(np.count_nonzero(lowgemm.gemm(a, rhs) != exact))
    return wrong


def main() -> None:
    """Print one line for each kernel; exit status 1 if anything is wrong."""
    name, features = target()
    print(f"target {name} ({len(features)} features), default kernel {kernels.selected().name}")
    failed = False
    for kernel in kernels.all_kernels():
        if kernels.why_not(kernel):
            continue
        lowgemm.config.kernel = kernel.name
        contract = verify.verify_native(kernel, count=60)
        wrong = wrong_elements(np.random.default_rng(0))
        counts = test_golden_gemm.run_all(lowgemm.gemm)
        test_golden_gemm.check(counts)
        unruly = nonfinite.wrong()  # some of them run on the kernel
        print(
            f"{kernel.name}: contract {contract} wrong, products {wrong} wrong, golden {counts['run']} run, "
            f"NaN and infinity: {unruly or 'as documented'}"
        )
        failed |= contract != 0 or wrong != 0 or bool(unruly)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
