"""`python -m lowgemm bench --weights int4`: products with 4-bit and 2-bit weights beside what they have to
read, and beside others.

A model reads each of its weights once for a token, so no cache holds them. Here each candidate has as many
weights as it takes to outgrow the last-level cache twice, and takes them in turn.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lowgemm.blockwise import PackedRhsLowbit, gemm_lowbit, pack_rhs_lowbit
from lowgemm.jit.caches import cache_sizes
from lowgemm.kernels import selected
from lowgemm.kernels.tools import limits
from lowgemm.kernels.tools.timing import Progress, TableWriter, blas_threads, interleave

#: Shapes, if none are given: a decoding step, some sequences at once, and a prompt.
SHAPES = [
    (1, 4096, 4096),
    (1, 4096, 11008),
    (4, 4096, 4096),
    (8, 4096, 4096),
    (16, 4096, 4096),
    (256, 4096, 4096),
]
#: Groups, if none is given: those that the formats usually come with.
GROUPS = {"nf4": 64, "fp4": 64, "af4": 64}
#: Seconds of calls of one candidate, one after the other, before it is the next one's turn: as a model makes
#: them, whose threads need not be woken for each.
TURN = 0.05
#: Bytes of weights that are taken in turn, at most.
MOST_BYTES = 1 << 30

#: A candidate: what multiplies by weight number i, the bytes of a weight, and the matrix that weight 0 stands
#: for.
Candidate = tuple[Callable[[int], Any], int, np.ndarray]


def _twin(w: PackedRhsLowbit) -> PackedRhsLowbit:
    """The same weight in memory of its own; a copy by `copy` would pack it anew, which takes a second."""
    new = object.__new__(type(w))
    new.__dict__.update(w.__dict__)
    new.take_memory(w.panels.size, w.scales.shape)
    new.panels[...], new.scales[...], new.sums = w.panels, w.scales, w.sums.copy()
    new.forget()
    return new


def _lowgemm(x: np.ndarray, weight: np.ndarray, book: str, group: int, total: int, threads: int) -> Candidate:
    first = pack_rhs_lowbit(weight, book, group=group)
    weights = [first] + [_twin(first) for _ in range(total // max(first.nbytes, 1))]
    read = first.panels.nbytes + first.scales.nbytes  # the sums are for zero points
    return lambda i: gemm_lowbit(x, weights[i % len(weights)], num_threads=threads), read, first.to_array()


def _numpy(x: np.ndarray, weight: np.ndarray, book: str, group: int, total: int, threads: int) -> Candidate:
    weights = [weight.copy() for _ in range(1 + total // max(weight.nbytes, 1))]
    return lambda i: x @ weights[i % len(weights)], weight.nbytes, weight


def _int4(weight: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0 to 15 of shape (n, groups, group), which stand for -8 to 7, and their scales."""
    depth, n = weight.shape
    blocks = weight.T.reshape(n, depth // group, group)
    scales = (np.abs(blocks).max(axis=2) / 8).astype(np.float32)
    codes = np.clip(np.rint(blocks / np.where(scales, scales, 1)[:, :, None]) + 8, 0, 15).astype(np.uint8)
    return codes, scales


def _matrix(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What the codes of `_int4` stand for, of shape (depth, n)."""
    return ((codes.astype(np.float32) - 8) * scales[:, :, None]).reshape(codes.shape[0], -1).T


def _onnxruntime(
    x: np.ndarray, weight: np.ndarray, book: str, group: int, total: int, threads: int
) -> Candidate:
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    depth, n = weight.shape
    if book != "int4" or group not in (16, 32, 64, 128, 256) or depth % group:
        raise ValueError("onnxruntime's MatMulNBits is INT4 in groups of 16 to 256 that divide the depth")
    codes, scales = _int4(weight, group)
    packed = codes[:, :, ::2] | codes[:, :, 1::2] << 4
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=depth, N=n, bits=4, block_size=group,
        accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        [onnx.numpy_helper.from_array(packed, "b"), onnx.numpy_helper.from_array(scales.reshape(-1), "s")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    nbytes = packed.nbytes + scales.nbytes
    sessions = [
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(1 + total // nbytes)
    ]
    return lambda i: sessions[i % len(sessions)].run(None, {"x": x})[0], nbytes, _matrix(codes, scales)


def _torch(x: np.ndarray, weight: np.ndarray, book: str, group: int, total: int, threads: int) -> Candidate:
    import torch

    depth, n = weight.shape
    if book != "int4" or group not in (32, 64, 128, 256) or depth % group or n % 16:
        raise ValueError("torch's product is INT4 in groups of 32 to 256 that divide the depth")
    torch.set_num_threads(threads)
    codes, scales = _int4(weight, group)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.from_numpy(codes.reshape(n, depth).astype(np.int32)), 2
    )
    both = torch.zeros(depth // group, n, 2)  # scales and zero points, which are counted from the code 8
    both[:, :, 0] = torch.from_numpy(scales.T.copy())
    nbytes = packed.numel() + scales.nbytes * 2
    made = [(packed.clone(), both.clone()) for _ in range(1 + total // nbytes)]
    left, product = torch.from_numpy(x), torch.ops.aten._weight_int4pack_mm_for_cpu

    def call(i: int) -> np.ndarray:
        one, factors = made[i % len(made)]
        return product(left, one, group, factors).numpy()

    return call, nbytes, _matrix(codes, scales)


def _bitsandbytes(
    x: np.ndarray, weight: np.ndarray, book: str, group: int, total: int, threads: int
) -> Candidate:
    import bitsandbytes.functional as bnb
    import torch

    if book not in ("nf4", "fp4"):
        raise ValueError("bitsandbytes has NF4 and FP4")
    torch.set_num_threads(threads)
    made = [
        bnb.quantize_4bit(torch.from_numpy(weight.T.copy()), blocksize=group, quant_type=book)
        for _ in range(1 + total // max(weight.size // 2, 1))
    ]
    left = torch.from_numpy(x)

    def call(i: int) -> np.ndarray:
        return torch.nn.functional.linear(left, bnb.dequantize_4bit(*made[i % len(made)])).numpy()

    return call, weight.size // 2 + weight.size // group * 4, bnb.dequantize_4bit(*made[0]).numpy().T


CANDIDATES = {
    "lowgemm": _lowgemm, "onnxruntime MatMulNBits": _onnxruntime, "torch int4": _torch,
    "bitsandbytes": _bitsandbytes, "NumPy float32": _numpy,
}  # fmt: skip


def in_turn(calls: dict[str, Callable[[int], Any]], seconds: float) -> dict[str, float]:
    """Median seconds of each call; they take turns of `TURN` seconds, and each call has the next weight."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(0)
    rounds, end = 0, time.perf_counter() + seconds * len(calls)
    while rounds < 3 or time.perf_counter() < end:
        for name, call in calls.items():
            now = begun = time.perf_counter()
            while now < begun + TURN:
                call(len(times[name]) + 1)
                before, now = now, time.perf_counter()
                times[name].append(now - before)
        rounds += 1
    return {name: statistics.median(t) for name, t in times.items()}


def _error(y: np.ndarray, x: np.ndarray, real: np.ndarray) -> float:
    """Root mean square error against float64, over the root mean square of the result."""
    exact = x.astype(np.float64) @ real.astype(np.float64)
    size = float(np.sqrt(np.mean(exact**2)))
    return float(np.sqrt(np.mean((y.reshape(exact.shape) - exact) ** 2))) / (size or 1.0)


def _rotated(mebibytes: int | None) -> int:
    """Bytes of weights that are taken in turn."""
    if mebibytes is None:
        return min(2 * cache_sizes().l3, MOST_BYTES)
    if mebibytes < 0:
        raise ValueError(f"--rotate: expected at least 0, got {mebibytes}")
    return mebibytes << 20


def measure(shape: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    """One shape: milliseconds, bytes that are read, and error of each candidate."""
    *rest, m, depth, n = shape
    if rest:
        raise ValueError("--shapes: expected M x K x N with --weights, no batch")
    book, group = args.weights, args.group or GROUPS.get(args.weights, 128)
    total = _rotated(args.rotate)
    g = np.random.default_rng(m + depth + n)
    x, weight = (g.standard_normal(s, dtype=np.float32) for s in ((m, depth), (depth, n)))
    calls: dict[str, Callable[[int], Any]] = {}
    found: dict[str, Any] = {"shape": list(shape), "group": group, "notes": {}, "bytes": {}, "error": {}}
    for name, make in CANDIDATES.items():
        try:
            call, nbytes, real = make(x, weight, book, group, total, args.threads)
            found["error"][name] = _error(np.asarray(call(0)), x, real)
        except ImportError:
            found["notes"][name] = "not installed"
            continue
        except Exception as error:
            if name == "lowgemm":
                raise
            found["notes"][name] = f"{type(error).__name__}: {error}"[:60]
            continue
        calls[name], found["bytes"][name] = call, nbytes
    found["seconds"] = in_turn(calls, args.seconds)
    return found


def read_speed(mebibytes: int, threads: int) -> float:
    """Bytes a second that so many threads read, each from a part of a buffer that no cache holds."""
    calls = [limits.read_call(max(1, mebibytes // threads)) for _ in range(threads)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        seconds = interleave({"read": lambda: list(pool.map(lambda c: c[0](), calls))}, seconds=0.5)["read"]
    return sum(nbytes for _, nbytes in calls) / seconds


#: Headings of the table that is printed.
HEADER = ["M x K x N", "library", "ms", "GB/s", "of the read speed", "time / lowgemm", "error to float64"]


def _rows(one: dict[str, Any], bandwidth: float) -> list[list[str]]:
    """Rows of the table for what `measure` found."""
    rows = []
    shape, own = " x ".join(map(str, one["shape"])), one["seconds"]["lowgemm"]
    for name in CANDIDATES:
        if name not in one["seconds"]:
            rows.append([shape, name, "-", "-", "-", "-", one["notes"][name]])
            continue
        seconds, size = one["seconds"][name], one["bytes"][name]
        rows.append([
            shape, name, f"{seconds * 1e3:.3f}", f"{size / seconds / 1e9:.1f}",
            f"{100 * size / seconds / bandwidth:.0f} %", f"{seconds / own:.2f}", f"{one['error'][name]:.1e}",
        ])  # fmt: skip
    return rows


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    report: dict[str, Any] = {
        "weights": args.weights, "threads": args.threads, "kernel": selected().name, "shapes": [],
    }  # fmt: skip
    status = 0
    try:
        _measure_all(args, report)
    except KeyboardInterrupt:
        print("\ninterrupted: this is what was measured until then")
        status = 130
    if args.json:
        with open(args.json, "w") as f:
            json.dump(report, f, indent=1)
    return status


def _measure_all(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Fill the report, and print the rows of a shape when it is measured."""
    total = _rotated(args.rotate)
    shapes = args.shapes or (SHAPES[:1] if args.quick else SHAPES)
    progress = Progress(len(shapes) + 1)
    with blas_threads(args.threads) as blas:
        print(
            f"kernel {report['kernel']}, {args.threads} thread(s), weights {args.weights}; float32: "
            f"{blas.text}"
        )
        progress.step("read speed")
        bandwidth = read_speed(max(64, total >> 20), args.threads)  # no cache holds that either
        report["read_gbytes"] = bandwidth / 1e9
        progress.clear()
        print(f"memory read, {args.threads} thread(s): {bandwidth / 1e9:.1f} GB/s")
        print(f"weights taken in turn: {total >> 20} MiB\n")
        first = max(len(" x ".join(map(str, shape))) for shape in shapes)
        table = TableWriter([*HEADER[:1], HEADER[1].ljust(max(map(len, CANDIDATES))), *HEADER[2:]], first)
        for shape in shapes:
            progress.step(" x ".join(map(str, shape)))
            report["shapes"].append(measure(shape, args))
            progress.clear()
            for row in _rows(report["shapes"][-1], bandwidth):
                table.row(row)
        progress.close()
