"""Side by side with bitsandbytes on the CPU and torch's fused Adam, in one process, calls taken in turn.

    pip install torch==2.13.0 && pip install bitsandbytes==0.50.2 --no-deps
    python asv_bench/compare_blockwise.py --threads 1 2

Figures are medians in milliseconds. bitsandbytes has no way to write into existing arrays on the CPU; both
kinds of lowgemm calls are shown, with fresh arrays and with ``out=``. One row states what the bytes of the
step need at the bandwidth that a copy of a large array reaches here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

MILLION = 1 << 20


def in_turn(calls: dict[str, Callable[[], object]], seconds: float, least: int = 5) -> dict[str, float]:
    """Median milliseconds of each call; all are called in turn, so that a slow spell hits every one."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def coding(threads: int, elements: int, seconds: float) -> dict[str, dict[str, float]]:
    """8-bit (blocks of 256) and NF4 (blocks of 64), quantize and dequantize."""
    import bitsandbytes.functional as bnb
    import torch

    from lowgemm.blockwise import dequantize_blockwise, quantize_blockwise

    x = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
    tensor, values = torch.from_numpy(x), np.zeros_like(x)
    bnb8, bnb8_state = bnb.quantize_blockwise(tensor, blocksize=256)
    bnb4, bnb4_state = bnb.quantize_4bit(tensor, blocksize=64, quant_type="nf4")
    ours8, ours4 = quantize_blockwise(x), quantize_blockwise(x, "nf4")
    t = {"num_threads": threads}
    return {
        "8-bit quantize": in_turn(
            {
                "bitsandbytes": lambda: bnb.quantize_blockwise(tensor, blocksize=256),
                "lowgemm": lambda: quantize_blockwise(x, **t),
                "lowgemm, out=": lambda: quantize_blockwise(x, out=ours8, **t),
            },
            seconds,
        ),
        "8-bit dequantize": in_turn(
            {
                "bitsandbytes": lambda: bnb.dequantize_blockwise(bnb8, bnb8_state),
                "lowgemm": lambda: dequantize_blockwise(ours8, **t),
                "lowgemm, out=": lambda: dequantize_blockwise(ours8, out=values, **t),
                "fill the result": lambda: values.fill(1),
            },
            seconds,
        ),
        "NF4 quantize": in_turn(
            {
                "bitsandbytes": lambda: bnb.quantize_4bit(tensor, blocksize=64, quant_type="nf4"),
                "lowgemm": lambda: quantize_blockwise(x, "nf4", **t),
                "lowgemm, out=": lambda: quantize_blockwise(x, "nf4", out=ours4, **t),
            },
            seconds,
        ),
        "NF4 dequantize": in_turn(
            {
                "bitsandbytes": lambda: bnb.dequantize_4bit(bnb4, bnb4_state),
                "lowgemm": lambda: dequantize_blockwise(ours4, **t),
                "lowgemm, out=": lambda: dequantize_blockwise(ours4, out=values, **t),
                "fill the result": lambda: values.fill(1),
            },
            seconds,
        ),
    }


def adam(threads: int, elements: int, seconds: float) -> dict[str, float]:
    """One step of Adam."""
    import bitsandbytes
    import torch

    from lowgemm.blockwise import Adam

    rng = np.random.default_rng(0)
    start, gradient = rng.standard_normal((2, elements), dtype=np.float32)
    gradient *= np.float32(0.01)

    def torch_parameter() -> torch.nn.Parameter:
        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        p.grad = torch.from_numpy(gradient)
        return p

    ours = Adam(start.copy(), lr=1e-3, num_threads=threads)
    unchecked = Adam(start.copy(), lr=1e-3, num_threads=threads, check_first=False)
    eight = bitsandbytes.optim.Adam8bit([torch_parameter()], lr=1e-3)
    fused = torch.optim.Adam([torch_parameter()], lr=1e-3, fused=True)
    found = in_turn(
        {
            "bitsandbytes Adam8bit": eight.step,
            "torch fused Adam, 32-bit": fused.step,
            "lowgemm Adam": lambda: ours.step(gradient),
            "check_first=False": lambda: unchecked.step(gradient),
        },
        seconds,
        least=3,
    )
    return found | {"bytes of the 8-bit step": 16e-6 * elements / bandwidth(threads)}


def bandwidth(threads: int) -> float:
    """GB/s (read and write together) of copying 256 MB, by torch's threads."""
    import torch

    a, b = torch.zeros(64 * MILLION), torch.zeros(64 * MILLION)
    return 2 * 4e-6 * 64 * MILLION / in_turn({"copy": lambda: b.copy_(a)}, 0.5)["copy"]


def report(threads: int, seconds: float) -> None:
    """Print all tables for this number of threads."""
    import bitsandbytes
    import numba
    import torch

    torch.set_num_threads(threads)
    print(
        f"\n## {threads} thread(s); torch {torch.__version__}, bitsandbytes {bitsandbytes.__version__}, "
        f"numba {numba.__version__}, numpy {np.__version__}\n"
    )
    print("| what | elements | ms | bitsandbytes / lowgemm |\n|---|---|---|---|")
    for elements in (4 * MILLION, 64 * MILLION):
        for what, found in coding(threads, elements, seconds).items():
            line(what, elements, found, "bitsandbytes", ("lowgemm", "lowgemm, out="))
    for elements in (4 * MILLION, 64 * MILLION):
        found = adam(threads, elements, seconds)
        line("Adam step", elements, found, "bitsandbytes Adam8bit", ("lowgemm Adam", "check_first=False"))
        limit = max(found["torch fused Adam, 32-bit"], found["bytes of the 8-bit step"])
        times = "; ".join(
            f"{name} {found[name] / limit:.2f}" for name in ("lowgemm Adam", "check_first=False")
        )
        print(f"| times the larger of torch and bytes | {elements >> 20} M | {times} | |")


def line(what: str, elements: int, found: dict[str, float], base: str, ours: tuple[str, ...]) -> None:
    """Print one row."""
    times = "; ".join(f"{name} {ms:.2f}" for name, ms in found.items())
    gains = ", ".join(f"{found[base] / found[name]:.1f}" for name in ours)
    print(f"| {what} | {elements >> 20} M | {times} | {gains} |", flush=True)


def by_threads(
    script: str, title: str, report: Callable[[int, float], None], seconds: float, **settings: str
) -> None:
    """Report for each number of threads in a process of its own: thread pools take their size when they
    start.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=seconds, help="for each comparison")
    parser.add_argument("--here", action="store_true", help="in this process; for one number of threads")
    arguments = parser.parse_args()
    if arguments.here:
        report(arguments.threads[0], arguments.seconds)
        return
    # OpenMP's threads would otherwise go on spinning after a call and take a core from the next one's
    settings |= {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    for threads in arguments.threads:
        command = [sys.executable, script, "--here", "--threads", str(threads)]
        command += ["--seconds", str(arguments.seconds)]
        counts = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=os.environ | counts | settings)


if __name__ == "__main__":
    by_threads(__file__, __doc__.splitlines()[0], report, 1.0)
