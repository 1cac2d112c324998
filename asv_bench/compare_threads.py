"""Two threads in a program that also uses NumPy, beside other libraries and beside a busy process.

    python asv_bench/compare_threads.py --sizes 512 1024 2048 --peers torch onnxruntime --busy
    python asv_bench/compare_threads.py --sweep
    python asv_bench/compare_threads.py --threshold

Cubes, prepacked rhs, `out=` given; milliseconds, median (95th percentile). "After NumPy" is one float32
product and then the call, in turn. NumPy's own time is taken in the same rounds. A peer runs in a process of
its own, so that its threads are not awake while others are timed.

`--sweep` compares two threads with one in every shape of docs/performance.md, with a prepacked and with a
fresh rhs, `out=` given. `--threshold` does so for small products, where lowgemm would take one thread: this
is where `MACS_PER_THREAD` in `lowgemm/engine/threads.py` comes from. Both print one thread's time over two
threads', and take the two in turn, some calls of the one and then some of the other.

The last column says how much of a core other programs took meanwhile (the busy process aside), where Linux
tells. With more than a few percent there was no second core to be had, and the row says little.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time

import numpy as np

#: Seconds after which the threads of all libraries sleep.
SLEEP = 0.3
#: Calls of one kind that follow one another where two kinds are taken in turn. The first are not counted:
#: they find the other kind's traces, and threads asleep.
BUNCH, UNCOUNTED = 16, 4


class Others:
    """What other processes take of the CPU."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), self.seconds()

    @staticmethod
    def seconds() -> float:
        """CPU seconds of all processes but this one, of some beginning; NaN where that is not known."""
        try:
            with open("/proc/stat") as f:
                user, nice, system, _, _, irq, softirq, *_ = (int(x) for x in f.readline().split()[1:])
        except OSError:
            return math.nan
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - time.process_time()

    def share(self) -> str:
        """Of a core, since this was made."""
        start, before = self.start
        return f"{100 * max(0.0, (self.seconds() - before) / (time.perf_counter() - start)):.0f} %"


def seconds_of(call) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(calls, rounds: int) -> list[list[float]]:
    """Seconds of each call, taken in turn."""
    for call in calls:
        call()
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for own, call in zip(times, calls, strict=True):
            own.append(seconds_of(call))
    time.sleep(SLEEP)
    return times


def in_bunches(calls, seconds: float) -> list[float]:
    """Median seconds of each call; some calls of each in turn, for so many seconds in all, and three times at
    least.
    """
    times: list[list[float]] = [[] for _ in calls]
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        for own, call in zip(times, calls, strict=True):
            once = max(seconds_of(call) for _ in range(2))
            count = BUNCH if once < 0.02 else UNCOUNTED + 1
            own += [seconds_of(call) for _ in range(count)][UNCOUNTED:]
    return [statistics.median(own) for own in times]


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


def operands(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A uint8 lhs and an int8 rhs."""
    *batch, m, k, n = shape
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (*batch, m, k), dtype=np.uint8),
        rng.integers(-128, 128, (*batch, k, n), dtype=np.int8),
    )


def report(name: str, sizes: list[int], rounds: int, busy: bool) -> None:
    """Rows of the table for one library: alone, after NumPy, and perhaps beside a busy process."""
    rng = np.random.default_rng(0)
    for n in sizes:
        others = Others()
        a, b = operands((n, n, n))
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
        disturbed = others.share()
        if busy:
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
                try:
                    time.sleep(SLEEP)
                    row += [shown(in_turn([call], rounds)[0]) for call in (one, two)]
                finally:
                    other.kill()
        print(f"| {name} | {n} | {' | '.join(row)} | {disturbed} |", flush=True)


def compared(shape: tuple[int, ...], seconds: float) -> list[str]:
    """One thread's time over two threads', with a prepacked and with a fresh rhs."""
    import lowgemm

    a, b = operands(shape)
    out = np.empty((*shape[:-2], shape[-1]), np.int32)
    cells = []
    for rhs in (lowgemm.pack_rhs(b), b):
        one, two = in_bunches(
            [lambda rhs=rhs, t=t: lowgemm.gemm(a, rhs, out=out, num_threads=t) for t in (1, 2)], seconds
        )
        used = lowgemm.explain(a, rhs, num_threads=2).threads
        cells.append(f"{one / two:.2f}" + ("" if used > 1 else " (1 thread)"))
    return cells


def sweep(shapes: list[tuple[int, ...]], seconds: float) -> None:
    """The table of `compared`."""
    print("| M x K x N | million products | prepacked | fresh | others |\n|---|---|---|---|---|", flush=True)
    for shape in shapes:
        others = Others()
        macs = math.prod(shape) / 1e6
        cells = " | ".join(compared(shape, seconds))
        print(f"| {' x '.join(map(str, shape))} | {macs:.3g} | {cells} | {others.share()} |", flush=True)


def threshold(seconds: float) -> None:
    """`sweep` of small products, with a second thread for each."""
    from lowgemm.engine import threads

    threads.MACS_PER_THREAD = 1
    cubes = [(n, n, n) for n in (64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)]
    sweep([*cubes, (16, 1024, 256), (64, 768, 64), (784, 64, 64), (1, 1024, 1024), (1, 512, 512)], seconds)


def main() -> None:
    """Each library in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--peers", nargs="*", choices=["torch", "onnxruntime"], default=[])
    parser.add_argument("--busy", action="store_true", help="also beside a process that keeps one core busy")
    parser.add_argument("--sweep", action="store_true", help="two threads over one in all shapes instead")
    parser.add_argument(
        "--threshold", action="store_true", help="the same in small shapes, with two threads for each"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure of a sweep")
    parser.add_argument("--here", choices=["lowgemm", "torch", "onnxruntime"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        report(arguments.here, arguments.sizes, arguments.rounds, arguments.busy)
        return
    if arguments.threshold:
        threshold(arguments.seconds)
        return
    if arguments.sweep:
        from lowgemm.cli.bench import FULL
        from lowgemm.cli.shapes import parse_shapes

        sweep(parse_shapes(FULL), arguments.seconds)
        return
    columns = [
        "library", "N", "alone, 1 thread", "alone, 2 threads", "after NumPy, 1", "NumPy beside that",
        "after NumPy, 2", "NumPy beside that",
    ]  # fmt: skip
    columns += ["beside a busy process, 1", "beside a busy process, 2"] if arguments.busy else []
    columns.append("others")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name in ["lowgemm", *arguments.peers]:
        command = [sys.executable, __file__, "--here", name, "--rounds", str(arguments.rounds)]
        command += ["--busy"] * arguments.busy + ["--sizes", *map(str, arguments.sizes)]
        subprocess.run(command, check=True, env=os.environ)


if __name__ == "__main__":
    main()
