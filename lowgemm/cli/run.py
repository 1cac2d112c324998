"""`python -m lowgemm run model.onnx`: run a quantized ONNX model, its integer operators on lowgemm."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from lowgemm import npz
from lowgemm.kernels.tools.timing import text_table

_MAX_RANDOM_BYTES = 1 << 32

#: Runs after the first in which a model notes what its later runs repeat (`lowgemm/onnx_run/frame.py`).
RECORDED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="ONNX file")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="inputs: an .npz whose arrays have the inputs' names, or NAME=FILE.npy (FILE.npy alone for "
        "a single input); "
        "may be given more than once",
    )
    parser.add_argument(
        "--random",
        action="store_true",
        help="random values for inputs that are not given: floats in [0, 1), all 8-bit integers, zeros "
        "of other types",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random values (default 0)")
    parser.add_argument(
        "--dim",
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="size of a named axis for --random (default 1)",
    )
    parser.add_argument("--output", metavar="FILE.npz", help="write the outputs by name")
    parser.add_argument("--threads", type=int, default=None, help="threads for each product")
    parser.add_argument("--repeat", type=int, default=1, help="timed runs (default 1)")
    parser.add_argument(
        "--no-fuse",
        action="store_true",
        help="leave quantize-dequantize patterns in float32, by the onnx package",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also run onnxruntime, with and without its optimizer: how many values differ, by how "
        "much, and its time",
    )
    parser.add_argument(
        "--rounding",
        choices=["onnx", "onnx_reference"],
        default="onnx",
        help="onnxruntime's arithmetic (default) or the onnx package's",
    )


def _read_npy(path: str) -> np.ndarray:
    try:
        with open(path, "rb") as f:
            return np.load(f, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, SyntaxError) as error:
        raise ValueError(f"--input: expected an .npy file of numbers, got {path} ({error})") from None


def _given(values: list[str], inputs: list[Any]) -> dict[str, np.ndarray]:
    """Arrays of the files that were named."""
    feeds: dict[str, np.ndarray] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or os.path.exists(value):
            name, path = "", value
        if path.endswith(".npz"):
            arrays = npz.read(path)
            if name and len(arrays) != 1:
                raise ValueError(f"--input: expected one array in {path} for {name}, got {len(arrays)}")
            feeds |= {name: next(iter(arrays.values()))} if name else arrays
            continue
        if not name and len(inputs) != 1:
            raise ValueError(f"--input: expected NAME={path}: the model has {len(inputs)} inputs")
        feeds[name or inputs[0].name] = _read_npy(path)
    return feeds


def _dims(values: list[str]) -> dict[str, int]:
    found = {}
    for value in values:
        name, _, size = value.rpartition("=")
        if not name or not size.isdigit():
            raise ValueError(f"--dim: expected NAME=SIZE, got {value}")
        found[name] = int(size)
    return found


def _known(given: Iterable[str], known: list[str], option: str, what: str) -> None:
    """ValueError that names what the model does not have."""
    for name in given:
        if name not in known:
            raise ValueError(
                f"{option}: the model has no {what} {name!r}; it has {', '.join(known) or 'none'}"
            )


def _random(tensor: Any, dims: dict[str, int], g: np.random.Generator) -> np.ndarray:
    """Values for one input."""
    if tensor.shape is None:
        raise ValueError(
            f"--random: input {tensor.name} has no declared shape; pass --input {tensor.name}=FILE.npy"
        )
    shape = tuple(n if isinstance(n, int) else dims.get(n or "", 1) for n in tensor.shape)
    nbytes = tensor.dtype.itemsize
    for n in shape:
        nbytes *= n
    if min(shape, default=0) < 0 or nbytes > _MAX_RANDOM_BYTES:
        raise ValueError(f"--random: input {tensor.name} has shape {shape}, {nbytes} bytes; pass --input")
    if tensor.dtype.kind == "f":
        return g.random(shape, np.float32).astype(tensor.dtype)
    if tensor.dtype in (np.uint8, np.int8):
        return g.integers(0, 256, shape, dtype=np.uint8).view(tensor.dtype)
    return np.zeros(shape, tensor.dtype)


def _spent(seconds: float, runs: int, whole: float) -> tuple[str, str]:
    """Microseconds per run, and the share of all; dashes for nodes that are timed with others in the row
    `parts`.
    """
    if not runs or math.isnan(seconds):
        return "-", "-"
    return f"{seconds / runs * 1e6:.0f}", f"{seconds / whole:.0%}" if whole else "-"


def _times(count: int, call: Callable[[], Any], before: int = 0) -> list[float]:
    """Seconds of `count` calls, after some that do not count."""
    for _ in range(before):
        call()
    found = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def _their_times(
    model: str, options: Any, names: list[str], feeds: dict[str, np.ndarray], runs: int
) -> list[Any]:
    """Each kind of operator of onnxruntime's, as it says itself: name, nodes, seconds of all runs; slowest
    first.
    """
    import onnxruntime as ort

    seconds: dict[str, float] = {}
    nodes: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, os.path.join(folder, "times")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(names, feeds)
        with open(session.end_profiling(), encoding="utf-8") as f:
            events = json.load(f)
    seen: dict[str, int] = {}
    for event in events:
        op = event.get("args", {}).get("op_name")
        if not op or not event["name"].endswith("_kernel_time"):
            continue
        seen[event["name"]] = seen.get(event["name"], 0) + 1
        if seen[event["name"]] > 1:  # the first run is not like the others
            seconds[op] = seconds.get(op, 0.0) + event["dur"] / 1e6
            nodes.setdefault(op, set()).add(event["name"])
    return sorted(((op, len(nodes[op]), seconds[op]) for op in seconds), key=lambda row: -row[2])


def _compare(
    args: argparse.Namespace, feeds: dict[str, np.ndarray], names: list[str], ours: list[Any]
) -> None:
    """Print how far onnxruntime's outputs are from ours, and its time."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise ValueError("--compare: needs the package onnxruntime: pip install onnxruntime") from None
    rows = []
    for label, level in (("as written", "ORT_DISABLE_ALL"), ("optimized", "ORT_ENABLE_ALL")):
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, args.threads or 0
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        try:
            session = ort.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
            theirs = session.run(names, feeds)
        except Exception as error:  # its errors have no common base
            raise ValueError(f"--compare: onnxruntime does not run the model: {error}") from None
        times = _times(max(1, args.repeat), partial(session.run, names, feeds))
        for name, a, b in zip(names, ours, theirs, strict=True):
            if not isinstance(a, np.ndarray) or a.shape != b.shape or a.dtype.kind not in "fiub":
                rows.append([label, name, "not comparable", "-", f"{statistics.median(times) * 1e3:.2f}"])
                continue
            same = (a == b) | ((a != a) & (b != b))
            with np.errstate(invalid="ignore"):
                apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            worst = f"{apart[~same].max(initial=0):.3g}"
            differ = f"{np.count_nonzero(~same)} of {a.size}"
            rows.append([label, name, differ, worst, f"{statistics.median(times) * 1e3:.2f}"])
    runs = max(1, args.repeat)
    times_of_kinds = _their_times(args.model, options, names, feeds, runs)
    whole = sum(seconds for _, _, seconds in times_of_kinds)
    print()
    print(
        text_table(
            ["operator", "runs on", "nodes", "us per run", "share"],
            [[op, "onnxruntime alone", str(n), *_spent(s, runs, whole)] for op, n, s in times_of_kinds],
        )
    )
    print()
    print(text_table(["onnxruntime", "output", "values that differ", "by at most", "ms per run"], rows))


def run(args: argparse.Namespace) -> int:
    """Run the model and print what came out, how long it took, and who ran what."""
    if args.repeat < 0:
        raise ValueError(f"--repeat: expected at least 0, got {args.repeat}")
    dims = _dims(args.dim)
    try:
        from lowgemm.onnx_run import Model

        model = Model(args.model, fuse=not args.no_fuse, rounding=args.rounding, num_threads=args.threads)
        feeds = _given(args.input, model.inputs)
    except (ImportError, OSError, MemoryError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    _known(feeds, [t.name for t in model.inputs], "--input", "input")
    _known(
        dims,
        sorted({n for t in model.inputs for n in t.shape or () if isinstance(n, str)}),
        "--dim",
        "named axis",
    )
    g = np.random.default_rng(args.seed)
    for tensor in model.inputs:
        if tensor.name not in feeds and args.random:
            feeds[tensor.name] = _random(tensor, dims, g)
    missing = [t.name for t in model.inputs if t.name not in feeds]
    if missing:
        raise ValueError(f"inputs missing: {', '.join(missing)}; pass --input NAME=FILE.npy, or --random")
    start = time.perf_counter()
    outputs = model.run(None, feeds)
    first = time.perf_counter() - start
    for tensor in model.inputs:
        print(f"input   {tensor.name}: {feeds[tensor.name].dtype}, {feeds[tensor.name].shape}")
    for tensor, y in zip(model.outputs, outputs, strict=True):
        print(f"output  {tensor.name}: {y.dtype}, {y.shape}")
    later: list[float] = []
    if args.repeat:
        later = _times(args.repeat, partial(model.run, None, feeds), RECORDED)
        for _ in range(args.repeat):
            model.timed(None, feeds)
        outputs = model.run(None, feeds)  # those of a later run are what is compared
    print(f"\nfirst run {first * 1e3:.1f} ms (packs the weights, may compile)", end="")
    if later:
        print(f", then {statistics.median(later) * 1e3:.2f} ms, median of {len(later)}", end="")
    print()
    for pattern, count in sorted(model.rewritten.items()):
        print(f"rewritten to integers: {pattern}, {count}")
    whole = sum(r.seconds for r in model.profile if not math.isnan(r.seconds))
    rows = [[r.op, r.runs_on, str(r.nodes), *_spent(r.seconds, args.repeat, whole)] for r in model.profile]
    print()
    print(text_table(["operator", "runs on", "nodes", "us per run", "share"], rows))
    if args.compare:
        _compare(args, feeds, [t.name for t in model.outputs], outputs)
    if args.output:
        try:
            npz.write(args.output, **{t.name: y for t, y in zip(model.outputs, outputs, strict=True)})
        except OSError as error:
            raise ValueError(f"--output: {error}") from None
        print(f"\nwrote {args.output}")
    return 0
