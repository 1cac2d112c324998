"""Quantized ONNX models beside onnxruntime: time, who takes it, values that differ, memory.

    python asv_bench/compare_onnx.py MODEL.onnx[=INPUTS.npz] ... [--repeat 15] [--memory]

Both run in turns in one process, on one and on two threads; the times are medians of CPU time, with two
threads of wall time. With two threads each also runs by itself, many times in a row: onnxruntime's threads
wait in a loop for some 25 ms after a run, on a core that the other then lacks. Memory is the largest that a
process of its own has grown by, from before the model is loaded to after three runs.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import time

import numpy as np

PRODUCTS = re.compile("MatMul|Conv|Gemm|LSTM|GRU|Attention")


def inputs_of(path: str, given: str) -> dict[str, np.ndarray]:
    """The arrays of a file, or random ones with all open sizes 1."""
    if given:
        return dict(np.load(given))
    import onnx

    g, graph = np.random.default_rng(0), onnx.load(path, load_external_data=False).graph
    held, found = {i.name for i in graph.initializer}, {}
    for info in graph.input:
        if info.name not in held:
            kind = info.type.tensor_type
            shape = [max(1, d.dim_value) for d in kind.shape.dim]
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
            real = g.standard_normal(shape) / 2 if dtype.kind == "f" else g.integers(0, 100, shape)
            found[info.name] = np.asarray(real).astype(dtype)
    return found


def session(path: str, threads: int, level: str = "ORT_ENABLE_ALL"):
    """onnxruntime's."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def alternate(calls, repeat: int, clock) -> list[float]:
    """Median milliseconds of each."""
    times = [[] for _ in calls]
    for _ in range(repeat):
        for call, own in zip(calls, times, strict=True):
            start = clock()
            call()
            own.append(clock() - start)
    return [statistics.median(t) * 1e3 for t in times]


def differing(ours, theirs) -> str:
    """How many values differ, and by how much of the range at most."""
    count = total = 0
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            return f"shapes {a.shape} and {b.shape}"
        count, total = count + int(np.count_nonzero(a != b)), total + a.size
        if a.size and a.dtype.kind in "fiu":
            span = float(np.ptp(b.astype(np.float64))) or 1.0
            worst = max(worst, float(np.abs(a.astype(np.float64) - b).max()) / span)
    return f"{count}/{total} ({worst:.0e})"


def peak(path: str, given: str, who: str) -> float:
    """MiB by which the largest resident set of a fresh process that loads a model and runs it three times
    passes what it has before: the libraries, and what lowgemm's first product compiles or loads.
    """
    code = f"""
import resource, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import numpy as np, onnx, onnxruntime, numba, lowgemm, lowgemm.onnx_run.model, compare_onnx
feeds = compare_onnx.inputs_of({path!r}, {given!r})
if {who!r} == "ours":
    x = np.ones((64, 64), np.uint8)
    lowgemm.gemm(x, lowgemm.pack_rhs(x), num_threads=1)
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
if {who!r} == "ours":
    model = lowgemm.onnx_run.model.Model({path!r}, num_threads=1)
else:
    model = compare_onnx.session({path!r}, 1)
for _ in range(3):
    model.run(None, feeds)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who}, exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    return float(done.stdout)


def in_a_row(calls, repeat: int, clock, turns: int = 3) -> list[float]:
    """Median milliseconds of each, where each runs many times in a row, behind a rest in which the threads of
    the others go to sleep.
    """
    times = [[] for _ in calls]
    for _ in range(turns):
        for call, own in zip(calls, times, strict=True):
            time.sleep(0.1)
            alternate([call], 10, clock)  # its own threads wake up
            for _ in range(repeat):
                own += alternate([call], 1, clock)
    return [statistics.median(t) for t in times]


def times_of(path: str, feeds: dict[str, np.ndarray], threads: int, repeat: int) -> list[tuple[float, float]]:
    """Median milliseconds of both, CPU time on one thread; on more wall time, each by itself and in turns."""
    from lowgemm.onnx_run import Model

    ours, theirs = Model(path, num_threads=threads), session(path, threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    calls = [lambda: ours.run(None, feeds), lambda: theirs.run(None, feeds)]
    for call in calls * 2:
        call()
    ways = [alternate] if threads == 1 else [in_a_row, alternate]
    return [tuple(way(calls, repeat, clock)) for way in ways]


def shares_of(model, feeds: dict[str, np.ndarray]) -> str:
    """Hundredths of the time that products, other operators of lowgemm's, and onnxruntime's float operators
    take.
    """
    for _ in range(5):
        model.timed(None, feeds)
    shares = {"products": 0.0, "elementwise": 0.0, "float": 0.0}
    for row in model.profile:
        if not np.isnan(row.seconds):
            ours = "products" if PRODUCTS.search(row.op) else "elementwise"
            shares["float" if row.runs_on != "lowgemm" else ours] += row.seconds
    whole = sum(shares.values()) or 1.0
    return " / ".join(f"{100 * s / whole:.0f}" for s in shares.values())


def compare(path: str, given: str, repeat: int) -> str:
    """A line of the table."""
    from lowgemm.onnx_run import Model

    feeds = inputs_of(path, given)
    model = Model(path, num_threads=1)
    first = model.run(None, feeds)
    written = differing(first, session(path, 1, "ORT_DISABLE_ALL").run(None, feeds))
    optimized = differing(first, session(path, 1).run(None, feeds))
    (one,), two = (times_of(path, feeds, threads, repeat) for threads in (1, 2))
    return (
        f"| {pathlib.Path(path).stem} | {one[0]:.2f} / {one[1]:.2f} | {one[0] / one[1]:.2f} | "
        f"{' / '.join(f'{ours / theirs:.2f}' for ours, theirs in two)} | "
        f"{shares_of(model, feeds)} | {written} | {optimized} |"
    )


def memory(path: str, given: str) -> str:
    """A line of the table of memory."""
    peak(path, given, "ours")  # so that what the model needs is compiled, which takes 40 MiB more
    ours, theirs = (peak(path, given, who) for who in ("ours", "theirs"))
    return f"| {pathlib.Path(path).stem} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--memory", action="store_true", help="the table of memory instead")
    args = parser.parse_args()
    if args.memory:
        print("| model | lowgemm, MiB | onnxruntime, MiB | ratio |\n|---|---:|---:|---:|")
    else:
        print(
            "| model | ms, lowgemm / onnxruntime, 1 thread | ratio | 2 threads, alone / in turns | % products / "
            "elementwise / float | "
            "differ from written | from optimized |\n|---|---:|---:|---:|---:|---|---|"
        )
    for model in args.models:
        path, _, given = model.partition("=")
        try:
            print(memory(path, given) if args.memory else compare(path, given, args.repeat), flush=True)
        except Exception as error:  # the other models are still worth a line
            print(f"| {pathlib.Path(path).name} | {type(error).__name__}: {str(error)[:300]} |", flush=True)


if __name__ == "__main__":
    main()
