"""A long loop of mixed calls with the memory of the process sampled: no growth beyond a stated bound.

    python -m tests.reliability.soak --calls 10000000

Prints the resident set at the start, at each tenth and at the end. On glibc the loop runs in a child process
whose allocator gives freed blocks back at once: left alone it raises its own thresholds up to 32 MiB
(M_MMAP_THRESHOLD in mallopt(3)), and one freed block that it kept was taken for a leak at the 900,000th call
of a million.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np

import lowgemm as lg
from lowgemm.engine import threads

from .session import NAMES, Session, made

#: Growth of the resident set after the first tenth, in MiB, that is still no leak: the allocator's fragments.
BOUND_MIB = 16
#: So many steps in so many seconds, or the process ends with the traceback: some call does not come back.
#: (One did not: range equalization with a tolerance of minus infinity and 2**31 - 1 rounds.)
STEPS_WATCHED, HANG_SECONDS = 1000, 3600

#: How often each kind of step is taken before the resident set is looked at.
WARM = 40

#: glibc's thresholds held at fixed values (any value given stops the automatic raising); others ignore the
#: names.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


def resident() -> float:
    """Resident set of this process in MiB."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def busy(stop: threading.Event, counts: list[int]) -> None:
    """Another Python thread that multiplies all the while, starting a fresh thread of its own now and
    then.
    """
    a = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    exact = a.astype(np.int64) @ a.astype(np.int64)
    while not stop.is_set():
        ok = [(lg.gemm(a, a, num_threads=1 + i % 2) == exact).all() for i in range(20)]
        counts[0] += len(ok)
        counts[1] += ok.count(False)
        threading.Thread(target=lg.gemm, args=(a, a)).start()
        time.sleep(0.01)


def run(calls: int, seed: int = 0, samples: int = 10) -> dict[str, object]:
    """Fuzz steps, new threads and new kinds of calls without end, at most `calls` of them."""
    threads.MACS_PER_THREAD = 5000
    session, start = Session(seed), time.perf_counter()
    stop, counts = threading.Event(), [0, 0]
    other = threading.Thread(target=busy, args=(stop, counts))
    other.start()
    wrong, steps, taken = 0, 0, []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        # what a kind of step imports, compiles and loads at first, for each kernel, is no growth
        here = [k.name for k in lg.kernels.all_kernels() if not lg.kernels.why_not(k)]
        for kernel in [*here, None]:
            lg.config.kernel = kernel
            for name in (WARM // 8 if kernel else WARM) * NAMES:
                with contextlib.suppress(Exception):  # it comes again, and is counted then
                    session.take(name)
        for sample in range(samples):
            while made(session) < calls * (sample + 1) // samples:
                if steps % STEPS_WATCHED == 0:
                    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
                steps += 1
                try:
                    session.step()
                except Exception:
                    wrong += 1
            taken.append(round(resident(), 1))
            print(f"{made(session)} calls, resident {taken[-1]} MiB", file=sys.stderr, flush=True)
    faulthandler.cancel_dump_traceback_later()
    stop.set()
    other.join()
    lg.config.kernel = lg.config.num_threads = None
    growth = round(max(taken[1:]) - taken[0], 1)
    return {
        "calls": made(session) + counts[0], "wrong": wrong + counts[1],
        "seconds": round(time.perf_counter() - start),
        "resident MiB": taken, "growth MiB": growth, "bound MiB": BOUND_MIB,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if any(os.environ.get(name) is None for name in ALLOCATOR):
        command = [sys.executable, "-m", "tests.reliability.soak", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env={**ALLOCATOR, **os.environ}).returncode)
    result = run(args.calls, args.seed)
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]) or result["growth MiB"] > BOUND_MIB)


if __name__ == "__main__":
    main()
