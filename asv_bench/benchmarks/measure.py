"""The suite's own ruler: it must not change with the commit that is measured, so it imports nothing of
lowgemm.
"""

import contextlib
import os
import statistics
import time

import numpy as np
import threadpoolctl

#: Share of the measuring time to spend; `check.py` sets a small one, because it wants errors and not figures.
SHARE = float(os.environ.get("LOWGEMM_BENCH_SHARE", "1"))


def _bunch(call):
    """How many calls to time at once: the clock costs a tenth of a microsecond, so at least 200 us."""
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    return max(1, min(1000, int(200e-6 / max(once, 1e-9))))


def in_turn(*calls, seconds=0.6, least=5):
    """Seconds of each call, taken in turn for `seconds` and at least `least` rounds: one array a call."""
    bunches = [_bunch(call) for call in calls]
    times = [[] for _ in calls]
    end = time.perf_counter() + SHARE * seconds
    while len(times[0]) < least or time.perf_counter() < end:
        for call, bunch, found in zip(calls, bunches, times, strict=True):
            call()  # the call before left its own data in the caches
            start = time.perf_counter()
            for _ in range(bunch):
                call()
            found.append((time.perf_counter() - start) / bunch)
    return [np.array(found) for found in times]


def ratio(call, base, seconds=0.6):
    """Median over rounds of time of `call` over time of `base`: a slow spell hits both of a round."""
    times, base_times = in_turn(call, base, seconds=seconds)
    return float(np.median(times / base_times))


def median_seconds(call, seconds=0.4):
    """Median time of one call."""
    return statistics.median(in_turn(call, seconds=seconds)[0])


@contextlib.contextmanager
def hold_blas():
    """One BLAS thread, or an error.

    asv loads NumPy before it loads the suite, so OPENBLAS_NUM_THREADS set in the suite comes too late.
    """
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        threads = [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
        if any(count != 1 for count in threads):
            raise RuntimeError(f"BLAS is not held to one thread: {threads}")
        yield


def ratio_to_float32(lhs, rhs, call, seconds=0.6):
    """Time of `call` over the time of ``lhs @ rhs`` in float32 (one BLAS thread): lower is better."""
    left, right = lhs.astype(np.float32), rhs.astype(np.float32)
    with hold_blas():
        return ratio(call, lambda: left @ right, seconds)


def named(unit, pretty_name):
    """Unit and title of a benchmark on the dashboard."""

    def mark(method):
        method.unit, method.pretty_name = unit, pretty_name
        return method

    return mark


float32_ratio = named("int8 time / float32 time", "Time relative to float32 BLAS")
throughput = named("GMAC/s (higher is better)", "Throughput (to read, not to judge by)")
