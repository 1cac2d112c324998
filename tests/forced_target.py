"""Run by test_target.py in a process of its own: kernels of the target that the environment forces.

Each is compared with its contract, in whole products, and with the golden cases. Words may follow:
``default``, for the kernel that is chosen there and no other, ``choice``, to see which one that is and
whether it multiplies, and ``nonfinite``, for what quantizers make of NaN and infinity too, which is mostly
compiling (10 s) and hardly about kernels.
"""

from __future__ import annotations

import sys

import nonfinite
import numpy as np
import test_golden_gemm

import lowgemm
from lowgemm import blockwise, kernels
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
                    for rhs in (b, np.asfortranarray(b), lowgemm.pack_rhs(b)):
                        wrong += int(np.count_nonzero(lowgemm.gemm(a, rhs) != exact))
    return wrong


def wrong_coded(rng: np.random.Generator) -> int:
    """Wrong elements of products with 4-bit and 2-bit weights, of few and of many rows, against the
    definition.
    """
    wrong = 0
    for name, zero_points in (("nf4", False), ("int4", True), ("ternary", False)):
        w = blockwise.pack_rhs_lowbit(rng.standard_normal((200, 70)), name, group=64, zero_points=zero_points)
        for m in (1, 7, 40):
            x = rng.integers(0, 256, (m, 200), dtype=np.uint8)
            expected = blockwise.reference.gemm_4bit(x, w.integers(), w.group_scales(), w.group, 131)
            found = blockwise.gemm_lowbit(x, w, lhs_zero_point=131)
            wrong += int(np.count_nonzero(found.view(np.int32) != expected.view(np.int32)))
    return wrong


def main() -> None:
    """Print one line for each kernel; exit status 1 if anything is wrong."""
    wanted = sys.argv[1:]
    name, features = target()
    default = kernels.selected()
    print(f"target {name} ({len(features)} features), default kernel {default.name}")
    runnable = [k for k in kernels.all_kernels() if not kernels.why_not(k)]
    if "choice" in wanted:
        a = np.arange(64, dtype=np.uint8).reshape(8, 8)
        sys.exit(int((lowgemm.gemm(a, a) != a.astype(np.int64) @ a).any()))
    failed = False
    for kernel in [default] if "default" in wanted else runnable:
        lowgemm.config.kernel = kernel.name
        contract = verify.verify_native(kernel, count=60)
        wrong = wrong_elements(np.random.default_rng(0)) + wrong_coded(np.random.default_rng(1))
        counts = test_golden_gemm.run_all(lowgemm.gemm)
        test_golden_gemm.check(counts)
        print(f"{kernel.name}: contract {contract} wrong, products {wrong} wrong, golden {counts['run']} run")
        failed |= contract != 0 or wrong != 0
        if "nonfinite" in wanted:
            unruly = nonfinite.wrong()  # some of them run on the kernel
            print(f"{kernel.name}: NaN and infinity {unruly or 'as documented'}")
            failed |= bool(unruly)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
