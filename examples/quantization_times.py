"""Times of `lowgemm.quantization`: the NumPy definitions beside the compiled loops, taken in turn, least of
all.

``python examples/quantization_times.py`` (about ten seconds) prints the tables of `docs/quantization.md`.
"""

import time

import numpy as np

from lowgemm import quantization as lq
from lowgemm.quantization import affine, loops, scores
from lowgemm.quantization.histogram import Histogram, count_reference

ROUNDS = 15


def least(*functions):
    """Milliseconds of each function: one call to warm up, then the least of `ROUNDS`, in turn."""
    for function in functions:
        function()
    times = np.empty((ROUNDS, len(functions)))
    for row in times:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            row[i] = (time.perf_counter() - start) * 1e3
    return times.min(axis=0)


def line(name, numpy_ms, compiled_ms):
    print(f"| {name} | {numpy_ms:.3g} | {compiled_ms:.3g} | {numpy_ms / compiled_ms:.1f} |")


def main():
    x = np.random.default_rng(0).standard_normal((4096, 256)).astype(np.float32)
    print("| 2^20 float32 values, 256 channels | NumPy, ms | compiled, ms | ratio |")
    print("|---|---:|---:|---:|")
    for name, p in (
        ("one scale", lq.MinMax().observe(x).qparams()),
        ("a scale per channel (last axis)", lq.MinMax(axis=1).observe(x).qparams()),
    ):
        q = lq.quantize(x, p)
        line(
            f"`quantize`, {name}",
            *least(lambda p=p: affine.quantize_reference(x, p), lambda p=p: lq.quantize(x, p)),
        )
        line(f"`dequantize`, {name}",
             *least(lambda p=p, q=q: affine.dequantize_reference(q, p),
                    lambda p=p, q=q: lq.dequantize(q, p)))  # fmt: skip
        line(
            f"`fake_quantize`, {name}",
            *least(
                lambda p=p: affine.dequantize_reference(affine.quantize_reference(x, p), p),
                lambda p=p: lq.fake_quantize(x, p),
            ),
        )
    h = Histogram(8192)
    h.observe(x)
    slow, fast = least(
        lambda: count_reference(x.ravel(), h.exponent, h.first, h.counts.copy()),
        lambda: loops.run_count(x.ravel(), h.exponent, h.first, h.counts.copy()),
    )
    line("counting in a histogram of 8192 bins", slow, fast)
    h = Histogram(2048)
    h.observe(x)
    f = np.linspace(0.5, 1, 10)
    candidates = lq.choose_qparams(h.low * f, h.high * f, axis=0)
    for name in ("squared_error", "divergence"):
        slow, fast = least(
            lambda name=name: scores.scores_reference(name, *h.points(), h.width, candidates),
            lambda name=name: scores.scores(name, *h.points(), h.width, candidates),
        )
        line(f"ten candidate ranges, 2048 bins, {name.replace('_', ' ')}", slow, fast)

    print(
        "\n| observer | observe 2^20 values, ms | `qparams`, ms | per channel: observe, ms | `qparams`, ms |"
    )
    print("|---|---:|---:|---:|---:|")
    for kind in (lq.MinMax, lq.MovingAverage, lq.Percentile, lq.MeanSquaredError, lq.Entropy):
        figures = []
        for axis in (None, 1):
            observer = kind(axis=axis)
            observe = least(lambda o=observer: o.observe(x))[0]
            start = time.perf_counter()
            observer.qparams()
            figures += [observe, (time.perf_counter() - start) * 1e3]
        print(f"| `{kind.__name__}` | " + " | ".join(f"{v:.2g}" for v in figures) + " |")


if __name__ == "__main__":
    main()
