"""`lowgemm.gemm` inside a compiled function: a two-layer network, a batch in `prange`, and what a call costs.

python examples/inside_numba.py [--quick]
"""

from __future__ import annotations

import argparse
import time

import numba
import numpy as np

import lowgemm
from lowgemm import in_numba

in_numba.init()  # not needed where lowgemm is installed with its entry point


@numba.njit(nogil=True)
def repeat(x, w, times):
    for _ in range(times):
        y = lowgemm.gemm(x, w)
    return y


@numba.njit(nogil=True)
def repeat_into(x, w, out, times):
    for _ in range(times):
        lowgemm.gemm(x, w, out=out)


@numba.njit(parallel=True)
def two_layers(batch, w1, w2):
    """Each sample of a batch through two layers, the samples spread over threads."""
    out = np.empty((batch.shape[0], batch.shape[1], w2.shape[1]), np.int32)
    for i in numba.prange(batch.shape[0]):
        hidden = lowgemm.gemm(batch[i], w1, lhs_zero_point=128)
        small = np.empty(hidden.shape, np.uint8)
        for r in range(hidden.shape[0]):
            for c in range(hidden.shape[1]):
                small[r, c] = min(max(hidden[r, c] >> 8, 0), 255)
        lowgemm.gemm(small, w2, out=out[i])
    return out


def best(call, times: int) -> float:
    """Microseconds for one of `times` products, best of 7 runs."""
    found = []
    for _ in range(7):
        start = time.perf_counter()
        call(times)
        found.append(time.perf_counter() - start)
    return min(found) / times * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    times = 50 if parser.parse_args().quick else 5000
    rng = np.random.default_rng(0)

    batch = rng.integers(0, 256, (16, 8, 64), dtype=np.uint8)
    w1, w2 = (rng.integers(-128, 128, (64, 64), dtype=np.int8) for _ in range(2))
    got = two_layers(batch, lowgemm.pack_rhs(w1), lowgemm.pack_rhs(w2))
    for x, y in zip(batch, got, strict=True):
        hidden = np.clip(lowgemm.gemm(x, w1, lhs_zero_point=128) >> 8, 0, 255).astype(np.uint8)
        assert (lowgemm.gemm(hidden, w2) == y).all()
    print("two layers in prange: the same bits as outside")

    print("microseconds a product, packed rhs, one thread, result in out=")
    print(f"{'m=k=n':>8} {'gemm()':>9} {'plan()':>9} {'@njit':>9} {'@njit, new result':>18}")
    for size in (4, 8, 16, 32, 64, 128):
        x = rng.integers(0, 256, (size, size), dtype=np.uint8)
        w = lowgemm.pack_rhs(rng.integers(-128, 128, (size, size), dtype=np.int8))
        out = np.empty((size, size), np.int32)
        planned = lowgemm.plan(x, w, num_threads=1)

        def by_gemm(n, x=x, w=w, out=out):
            for _ in range(n):
                lowgemm.gemm(x, w, out=out, num_threads=1)

        def by_plan(n, x=x, w=w, out=out, planned=planned):
            for _ in range(n):
                planned(x, w, out)

        calls = (
            by_gemm,
            by_plan,
            lambda n, x=x, w=w, out=out: repeat_into(x, w, out, n),
            lambda n, x=x, w=w: repeat(x, w, n),
        )
        for call in calls:
            call(2)
        a, b, c, d = (best(call, times) for call in calls)
        print(f"{size:>8} {a:>9.2f} {b:>9.2f} {c:>9.2f} {d:>18.2f}")


if __name__ == "__main__":
    main()
