"""`python -m lowgemm bench`: GMAC/s beside float32 NumPy, the machine's limits, and other libraries.

Shapes are rows x depth x columns (M x K x N), with the number of products before them for a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import lowgemm
from lowgemm import kernels
from lowgemm.cli import peers, weights
from lowgemm.cli.shapes import parse_shapes
from lowgemm.jit.target import target
from lowgemm.kernels.tools import limits
from lowgemm.kernels.tools.timing import (
    Progress,
    TableWriter,
    blas_threads,
    check_threads,
    interleave,
    text_table,
)

QUICK = "256,512,1024"
FULL = (
    "32,48,64,96,128,192,256,384,512,768,1024,1536,2048,"
    "1x4096x4096,1x1024x1024,4x4096x4096,8x4096x1024,16x4096x1024,"
    "128x768x768,128x3072x768,512x11008x4096,3136x576x64,784x1152x128,196x2304x256,49x4608x512,100000x16x64,"
    "64x64x64x64"
)
FLOAT, FRESH, PACKED, QUANTIZED = "float32", "lowgemm", "lowgemm packed", "lowgemm packed -> uint8"
REGISTERS = "registers"
#: Seconds to wait after a product of OpenBLAS. Its threads stay awake for a little less, and keep the cores
#: busy.
OTHERS_SLEEP = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--quick", action="store_true", help=f"the limits and the shapes {QUICK}, in half a minute"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of every library (default 1)")
    parser.add_argument(
        "--shapes", type=parse_shapes, default=None, help="MxKxN,...; N is a cube, BxMxKxN a batch"
    )
    parser.add_argument("--lhs", choices=["uint8", "int8"], default="uint8")
    parser.add_argument("--rhs", choices=["uint8", "int8"], default="uint8")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured time for each shape (default 1)")
    parser.add_argument(
        "--peers", action="store_true", help="also every other int8 library that is installed"
    )
    parser.add_argument(
        "--weights",
        choices=["int4", "nf4", "fp4", "af4", "ternary", "int2"],
        help="products of float32 rows with such weights instead, beside onnxruntime, bitsandbytes and "
        "float32",
    )
    parser.add_argument(
        "--group", type=int, default=None, help="with --weights: depth steps that share a scale"
    )
    parser.add_argument(
        "--rotate", type=int, default=None, metavar="MIB",
        help="with --weights: bytes of weights that are taken in turn (default: twice the last-level cache, "
        "at most 1024)",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file")
    parser.add_argument("--plot", metavar="FILE.png", help="draw them (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    check_threads(args.threads)
    if not 0 < args.seconds < math.inf:
        raise ValueError(f"--seconds: expected more than 0, got {args.seconds:g}")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        _check_writable(option, path)
    if args.plot:
        _check_picture(args.plot)
    if args.weights:
        if args.plot:
            raise ValueError("--plot: expected none with --weights")
        return weights.run(args)
    shapes = args.shapes or parse_shapes(QUICK if args.quick else FULL)
    kernel = kernels.selected()
    report: dict[str, Any] = {
        "lowgemm": lowgemm.__version__, "kernel": kernel.name, "target": target()[0], "threads": args.threads,
        "machine": platform.processor() or platform.machine(), "numpy": np.__version__, "shapes": [],
    }  # fmt: skip
    status = 0
    try:
        _measure(shapes, kernel, args, report)
    except KeyboardInterrupt:
        print("\ninterrupted: this is what was measured until then")
        status = 130
    if args.peers and report["shapes"]:
        print()
        print(_peer_table(report["shapes"]))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(report, f, indent=1)
    if args.plot and report["shapes"]:
        _plot(report, args.plot)
    return status


def _measure(
    shapes: list[tuple[int, ...]], kernel: kernels.Kernel, args: argparse.Namespace, report: dict[str, Any]
) -> None:
    """Fill the report, and print each row when it is measured."""
    two_threads = args.quick and args.threads == 1
    progress = Progress(len(shapes) + 1 + two_threads)
    with blas_threads(args.threads) as blas:
        print(f"kernel {kernel.name} (target {target()[0]}), {args.threads} thread(s); float32: {blas.text}")
        for note in blas.notes:
            print(f"note: {note}")
        progress.step("limits")
        report["limits"] = _limits(kernel)
        progress.clear()
        _print_limits(report["limits"])
        print()
        first = max(len(" x ".join(map(str, shape))) for shape in shapes)
        table = TableWriter(_header(args.threads), first)
        for shape in shapes:
            progress.step(" x ".join(map(str, shape)))
            report["shapes"].append(_shape(shape, kernel, args))
            progress.clear()
            table.row(_row(report["shapes"][-1], args.threads, blas.pinned))
        if two_threads:
            progress.step("two threads")
            rng = np.random.default_rng(0)
            lhs, rhs = (_operand(rng, "uint8", (1024, 1024)) for _ in range(2))
            report["scaling"] = _scaling({PACKED: lowgemm.pack_rhs(rhs)}, lhs, 2, 2.0)[PACKED]
            progress.clear()
            print(f"\n1024 cubed, rhs packed: 2 threads are {report['scaling']:.2f} times as fast as one")
        progress.close()


def _check_writable(option: str, path: str | None) -> None:
    """ValueError if a file cannot be written, before minutes are spent on what is to be in it."""
    if path is None:
        return
    try:
        there = os.path.exists(path)
        with open(path, "ab"):
            pass
        if not there:
            os.remove(path)
    except OSError as error:
        raise ValueError(f"{option}: cannot write {path} ({error.strerror})") from None


def _limits(kernel: kernels.Kernel) -> dict[str, float]:
    read, nbytes = limits.read_call()
    seconds = interleave({"read": read}, seconds=0.5)["read"]
    del read  # a quarter of a gigabyte; and it would sweep the caches between the other two
    calls: dict[str, tuple[Callable[[], Any], int]] = {"micro": limits.microkernel_call(kernel)}
    with contextlib.suppress(ValueError):  # plain loops have no hooks to put on registers
        calls["register"] = limits.register_call(kernel)
    times = interleave({name: call for name, (call, _) in calls.items()}, seconds=2.0)
    found = {
        "read_gbytes": nbytes / seconds / 1e9,
        "microkernel_gmacs": calls["micro"][1] / times["micro"] / 1e9,
    }
    if "register" in calls:
        found["register_gmacs"] = calls["register"][1] / times["register"] / 1e9
    return found


def _print_limits(found: dict[str, float]) -> None:
    micro = found["microkernel_gmacs"]
    if "register_gmacs" in found:
        peak = found["register_gmacs"]
        print(
            f"register-only product loop {peak:.1f} GMAC/s; microkernel in L1 {micro:.1f} "
            f"({100 * micro / peak:.1f} %)"
        )
    else:
        print(f"microkernel in L1 {micro:.1f} GMAC/s (no register-only loop: this kernel is plain loops)")
    print(f"memory read, one thread: {found['read_gbytes']:.1f} GB/s")


def _operand(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def _shape(shape: tuple[int, ...], kernel: kernels.Kernel, args: argparse.Namespace) -> dict[str, Any]:
    *batch, m, k, n = shape
    rng = np.random.default_rng(m + k + n)
    lhs, rhs = _operand(rng, args.lhs, (*batch, m, k)), _operand(rng, args.rhs, (*batch, k, n))
    f_lhs, f_rhs = lhs.astype(np.float32), rhs.astype(np.float32)
    packed = lowgemm.pack_rhs(rhs)
    output = [
        lowgemm.BiasAddition(np.zeros(n, dtype=np.int32)),
        lowgemm.ScaleInt32ByFixedPointAndExponent(1518500250, -11, 128),
        lowgemm.Clamp(0, 255),
        lowgemm.SaturatingCast(np.uint8),
    ]
    t = args.threads
    candidates: dict[str, Callable[[], Any]] = {
        FLOAT: lambda: f_lhs @ f_rhs,
        FRESH: lambda: lowgemm.gemm(lhs, rhs, num_threads=t),
        PACKED: lambda: lowgemm.gemm(lhs, packed, num_threads=t),
        QUANTIZED: lambda: lowgemm.gemm(lhs, packed, output=output, num_threads=t),
    }
    macs = {name: math.prod(shape) for name in candidates}
    with contextlib.suppress(ValueError):  # plain loops have no hooks to put on registers
        # measured again beside each shape: the clock falls by a few percent under other libraries' load
        candidates[REGISTERS], macs[REGISTERS] = limits.register_call(kernel)
    notes = {}
    if args.peers:
        for name, left, right, make in [*peers.EXACT_PEERS, *peers.REQUANTIZING_PEERS]:
            a, b = _operand(rng, left, (*batch, m, k)), _operand(rng, right, (*batch, k, n))
            try:
                call = make(a, b, t)
                got = np.asarray(call())
            except ImportError:
                notes[name] = "not installed"
                continue
            except Exception as error:
                notes[name] = f"{type(error).__name__}: {error}"[:60]
                continue
            notes[name] = _verdict(got, a, b, peers.ROUNDING.get(name))
            candidates[name] = call
            own = lowgemm.pack_rhs(b)
            stages = None if got.dtype == np.int32 else output
            candidates[f"{name} | lowgemm"] = lambda a=a, w=own, s=stages: lowgemm.gemm(
                a, w, output=s, num_threads=t
            )
    scaling = _scaling({FRESH: rhs, PACKED: packed}, lhs, t, args.seconds) if t > 1 else {}
    times = interleave(candidates, seconds=args.seconds)
    return {
        "shape": list(shape),
        "microseconds": {name: s * 1e6 for name, s in times.items()},
        "gmacs": {name: macs.get(name, math.prod(shape)) / s / 1e9 for name, s in times.items()},
        "scaling": scaling,
        "notes": notes,
    }


def _verdict(got: np.ndarray, a: np.ndarray, b: np.ndarray, rounding: str | None) -> str:
    """Whether a peer's numbers are those of the definition."""
    # exact: 53 bits hold any sum of a depth below 2**37
    sums = np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64).astype(np.int32)
    expected = sums
    if rounding is not None:
        stage = lowgemm.Requantize(scale=peers.SCALE, zero_point=0, dtype=got.dtype, rounding=rounding)
        expected = lowgemm.requantize(sums, stage)
    wrong = int(np.count_nonzero(got != expected))
    return "exact" if wrong == 0 else f"{wrong} of {got.size} WRONG"


def _header(threads: int) -> list[str]:
    header = ["M x K x N, GMAC/s", FLOAT, FRESH, PACKED, QUANTIZED, REGISTERS]
    header += ["fresh/f32", "packed/f32", "fresh/peak", "packed/peak"]
    if threads > 1:
        header += [f"{form} x{threads} threads" for form in ("fresh", "packed")]
    return header


def _row(s: dict[str, Any], threads: int, comparable: bool) -> list[str]:
    """Cells of one shape; `comparable`: float32 had as many threads."""
    g = s["gmacs"]
    peak = g[REGISTERS] * threads if REGISTERS in g else None
    scaling = [f"{ratio:.2f}" for ratio in s["scaling"].values()]
    shares = [f"{100 * g[name] / peak:.0f} %" if peak else "-" for name in (FRESH, PACKED)]
    ratios = [f"{g[name] / g[FLOAT]:.2f}" if comparable else "-" for name in (FRESH, PACKED)]
    speeds = [f"{g[name]:.1f}" if name in g else "-" for name in (FLOAT, FRESH, PACKED, QUANTIZED, REGISTERS)]
    return [" x ".join(map(str, s["shape"])), *speeds, *ratios, *shares, *scaling]


def _peer_table(shapes: list[dict[str, Any]]) -> str:
    rows = []
    for s in shapes:
        for name, note in s["notes"].items():
            g = s["gmacs"]
            if name not in g:
                rows.append([" x ".join(map(str, s["shape"])), name, "-", "-", "-", note])
                continue
            own = g[f"{name} | lowgemm"]
            ratio = f"{own / g[name]:.2f}"
            rows.append([" x ".join(map(str, s["shape"])), name, f"{g[name]:.1f}", f"{own:.1f}", ratio, note])
    return text_table(["M x K x N", "peer", "GMAC/s", "lowgemm", "ratio", "numbers"], rows)


def _scaling(forms: dict[str, Any], lhs: np.ndarray, threads: int, seconds: float) -> dict[str, float]:
    """Speed of `threads` threads over one, for each form of the rhs, without other libraries in between."""
    time.sleep(OTHERS_SLEEP)
    calls = {
        (name, t): lambda right=right, t=t: lowgemm.gemm(lhs, right, num_threads=t)
        for name, right in forms.items()
        for t in (1, threads)
    }
    times = interleave({f"{name} {t}": call for (name, t), call in calls.items()}, seconds=seconds)
    return {name: times[f"{name} 1"] / times[f"{name} {threads}"] for name in forms}


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot: matplotlib is not installed (pip install matplotlib)") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _check_picture(path: str) -> None:
    """Refuse a name whose ending says no kind of picture, before anything is measured."""
    _pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    kind, known = os.path.splitext(path)[1][1:].lower(), sorted(FigureCanvasBase.get_supported_filetypes())
    if kind and kind not in known:  # without an ending it is a png
        raise ValueError(f"--plot: expected a name that ends in .{', .'.join(known)}, got {path}")


def _plot(report: dict[str, Any], path: str) -> None:
    plt = _pyplot()
    names = [FLOAT, FRESH, PACKED, QUANTIZED]
    labels = [" x ".join(map(str, s["shape"])) for s in report["shapes"]]
    x = np.arange(len(labels))
    figure, axes = plt.subplots(figsize=(max(6, 0.9 * len(labels)), 4.5), layout="constrained")
    for i, name in enumerate(names):
        axes.bar(x + 0.2 * (i - 1.5), [s["gmacs"][name] for s in report["shapes"]], 0.2, label=name)
    if "register_gmacs" in report["limits"]:
        axes.axhline(report["limits"]["register_gmacs"] * report["threads"], color="grey", linestyle="--")
    axes.set_xticks(x, labels, rotation=45, ha="right")
    axes.set_ylabel("GMAC/s")
    axes.set_title(f"{report['kernel']}, {report['threads']} thread(s); dashed: register-only peak")
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=150)
