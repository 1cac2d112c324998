"""Times of dynamic_linear beside its parts and float32, interleaved: python examples/dynamic_linear_times.py
(threadpoolctl).
"""

import statistics
import time

import numpy as np
from threadpoolctl import threadpool_limits

import lowgemm
from lowgemm.nn import dynamic

SHAPES = ((1, 4096, 4096), (16, 1024, 1024), (256, 1024, 1024), (1024, 1024, 1024))


def main():
    g = np.random.default_rng(0)
    for m, k, n in SHAPES:
        x = g.standard_normal((m, k)).astype(np.float32)
        w = g.integers(-127, 128, (k, n)).astype(np.int8)
        packed, real, scale = lowgemm.pack_rhs(w), w.astype(np.float32), np.full(n, 0.01)
        q, row_scale = np.empty((m, k), np.int8), np.empty(m, np.float32)
        bits, scale_bits = x.view(np.int32), row_scale.view(np.int32)
        calls = {
            "dynamic_linear": lambda x=x, p=packed, s=scale: dynamic.dynamic_linear(x, p, s, num_threads=1),
            "rows to int8": lambda a=(x, bits, q, row_scale, scale_bits): dynamic.rows_to_int8(*a),
            "int8 product": lambda q=q, p=packed: lowgemm.gemm(q, p, num_threads=1),
            "float32 x @ w": lambda x=x, w=real: x @ w,
        }
        times = {name: [] for name in calls}
        for _ in range(31):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        cells = ", ".join(f"{name} {1e6 * statistics.median(t):.0f} us" for name, t in times.items())
        print(f"{m} x {k} x {n}: {cells}", flush=True)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
