"""Two threads in a program that also uses NumPy, beside other libraries and beside a busy process.

    python asv_bench/compare_threads.py --sizes 512 1024 2048 --peers torch onnxruntime

Cubes, prepacked rhs, `out=` given; milliseconds, median (95th percentile). "After NumPy" is one float32 product and
then the call, in turn. NumPy's own time is taken in the same rounds. A peer runs in a process of its own, so that its
threads are not awake while others are timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import numpy as np

#: Seconds after which the threads of all libraries sleep.
SLEEP = 0.3


def in_turn(calls, rounds: int) -> list[list[float]]:
    """Seconds of each call, taken in turn."""
    for call in calls:
        call()
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for own, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    time.sleep(SLEEP)
    return times


def shown(seconds: list[float]) -> str:
    """Median and 95th percentile."""
    return f"{1e3 * statistics.median(seconds):.3f} ({1e3 * sorted(seconds)[len(seconds) * 95 // 100]:.3f})"


def maker(name: str, threads: int):
    """``make(lhs, rhs, out) -> call`` of a library."""
    from lowgemm.cli import peers

    if name == "torch":
        return lambda a, b, out: peers.torch_int_mm(a.view(np.int8), b, threads)
    if name == "onnxruntime":
        return lambda a, b, out: peers.onnxruntime_matmul_integer(a, b, threads)
    import lowgemm

    def make(a, b, out):
        packed = lowgemm.pack_rhs(b)
        return lambda: lowgemm.gemm(a, packed, out=out, num_threads=threads)

    return make


def report(name: str, sizes: list[int], rounds: int, busy: bool) -> None:
    """Rows of the table for one library: alone, after NumPy, and perhaps beside a busy process."""
    rng = np.random.default_rng(0)
    for n in sizes:
        a, b = rng.integers(0, 256, (n, n), dtype=np.uint8), rng.integers(-128, 128, (n, n), dtype=np.int8)
        x, y = rng.standard_normal((2, n, n), dtype=np.float32)
        out, result = np.empty((n, n), np.int32), np.empty((n, n), np.float32)
        one, two = (maker(name, threads)(a, b, out) for threads in (1, 2))

        def product(x=x, y=y, result=result):
            np.matmul(x, y, out=result)

        # torch's number of threads is that of the process: its one-thread time is not taken
        alone_1 = in_turn([one], rounds)[0] if name != "torch" else None
        two = maker(name, 2)(a, b, out)
        (alone_2,) = in_turn([two], rounds)
        row = [shown(alone_1) if alone_1 else "-", shown(alone_2)]
        if name != "torch":
            numpy_1, after_1 = in_turn([product, one], rounds)
            row += [shown(after_1), shown(numpy_1)]
        else:
            row += ["-", "-"]
        numpy_2, after_2 = in_turn([product, two], rounds)
        row += [shown(after_2), shown(numpy_2)]
        if busy:
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
                try:
                    time.sleep(SLEEP)
                    row += [shown(in_turn([call], rounds)[0]) for call in (one, two)]
                finally:
                    other.kill()
        print(f"| {name} | {n} | {' | '.join(row)} |", flush=True)


def main() -> None:
    """Each library in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--peers", nargs="*", choices=["torch", "onnxruntime"], default=[])
    parser.add_argument("--busy", action="store_true", help="also beside a process that keeps one core busy")
    parser.add_argument("--here", choices=["lowgemm", "torch", "onnxruntime"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        report(arguments.here, arguments.sizes, arguments.rounds, arguments.busy)
        return
    columns = [
        "library", "N", "alone, 1 thread", "alone, 2 threads", "after NumPy, 1", "NumPy beside that", "after NumPy, 2",
        "NumPy beside that",
    ]  # fmt: skip
    columns += ["beside a busy process, 1", "beside a busy process, 2"] if arguments.busy else []
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name in ["lowgemm", *arguments.peers]:
        command = [sys.executable, __file__, "--here", name, "--rounds", str(arguments.rounds)]
        command += ["--busy"] * arguments.busy + ["--sizes", *map(str, arguments.sizes)]
        subprocess.run(command, check=True, env=os.environ)


if __name__ == "__main__":
    main()
