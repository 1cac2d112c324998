"""Integer matrix products for NumPy users: the same numbers as `@`, without its wrapping and its slow loop.

    python examples/integer_matmul.py [--quick]

NumPy multiplies integer matrices without BLAS, in the operands' own type: uint8 @ uint8 wraps at 256.
Widening to int32 gives the right sums and takes long; float32 is fast and exact up to 2**24, float64 beyond
it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import lowgemm


def milliseconds(call, repeats: int) -> float:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller matrix, few repetitions")
    size, repeats = (128, 2) if parser.parse_args().quick else (768, 5)
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (size, size), dtype=np.uint8)
    b = rng.integers(0, 256, (size, size), dtype=np.uint8)

    right = a.astype(np.int32) @ b.astype(np.int32)
    print(f"uint8 @ uint8 is right in {np.mean((a @ b) == right):.1%} of the elements: it wraps at 256")
    assert (lowgemm.gemm(a, b) == right).all()

    w = lowgemm.pack_rhs(b)
    calls = {
        "a @ b (wraps)": lambda: a @ b,
        "int32 @ int32": lambda: a.astype(np.int32) @ b.astype(np.int32),
        "float64 @ float64": lambda: (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32),
        "float32 @ float32 (exact to 2**24)": lambda: (
            (a.astype(np.float32) @ b.astype(np.float32)).astype(np.int32)
        ),
        "lowgemm.gemm(a, b)": lambda: lowgemm.gemm(a, b),
        "lowgemm.gemm(a, pack_rhs(b))": lambda: lowgemm.gemm(a, w),
    }  # fmt: skip
    print(f"{size} x {size} x {size}, best of {repeats}:")
    for name, call in calls.items():
        call()
        slow = name in ("a @ b (wraps)", "int32 @ int32")
        print(f"{name:>36} {milliseconds(call, 1 if slow else repeats):9.2f} ms")

    # Sums of counts, distances, correlations: any product of 8-bit integers. Squared distances of 8-bit
    # pixels:
    x, y = a[:50, :64], b[:40, :64]
    squares = (x.astype(np.int32) ** 2).sum(1)[:, None] + (y.astype(np.int32) ** 2).sum(1)
    distances = squares - 2 * lowgemm.gemm(x, y.T)
    assert (distances == ((x[:, None].astype(int) - y[None].astype(int)) ** 2).sum(-1)).all()
    print("squared distances of 50 x 40 vectors of bytes: exact")


if __name__ == "__main__":
    main()
