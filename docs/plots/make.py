"""The plots of the documentation, into docs/img/.

    python docs/plots/make.py

Throughput and roofline draw the figures that `python -m lowgemm bench --json` wrote, kept in bench_zen5.json
with the machine's name added; the error by bit width is computed here.
"""

from __future__ import annotations

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import lowgemm

DOCS = pathlib.Path(__file__).parents[1]


BENCH = json.loads((DOCS / "plots" / "bench_zen5.json").read_text())
PEAK, BANDWIDTH = BENCH["limits"]["register_gmacs"], BENCH["limits"]["read_gbytes"]
#: GMAC/s of each series by (m, k, n); not of batches.
ROWS = {tuple(row["shape"]): row["gmacs"] for row in BENCH["shapes"] if len(row["shape"]) == 3}


def throughput() -> None:
    """GMAC/s by size."""
    rows = {size[0]: v for size, v in ROWS.items() if len(set(size)) == 1}
    fig, ax = plt.subplots(figsize=(7, 4))
    names = {
        "float32": "float32 NumPy (OpenBLAS)",
        "lowgemm": "lowgemm, both packed in the call",
        "lowgemm packed": "lowgemm, rhs packed",
    }
    for series, name in names.items():
        ax.plot(list(rows), [v[series] for v in rows.values()], "o-", ms=4, label=name)
    ax.axhline(PEAK, color="grey", ls="--", lw=1, label="vpdpbusd on registers alone")
    ax.set(xscale="log", xlabel="m = k = n", ylabel="GMAC/s, one core", ylim=(0, None))
    ax.set_xticks([32, 64, 128, 256, 512, 1024, 2048], [32, 64, 128, 256, 512, 1024, 2048])
    ax.minorticks_off()
    ax.set_title(BENCH["cpu"], fontsize=9)
    ax.legend(loc="center right", fontsize=8)
    ax.grid(alpha=0.3)
    save(fig, "throughput.png")


#: Products that the roofline names, and where the name stands beside the point: x and y in points, and its
#: end there.
NAMES = {
    (1, 4096, 4096): (8, -4, "left"),
    (1, 1024, 1024): (0, 8, "center"),
    (4, 4096, 4096): (-8, 2, "right"),
    (100000, 16, 64): (4, -14, "left"),
    (8, 4096, 1024): (-8, 2, "right"),
    (32, 32, 32): (8, -4, "left"),
    (64, 64, 64): (8, -1, "left"),
    (128, 128, 128): (8, -6, "left"),
    (2048, 2048, 2048): (0, -16, "center"),
}


def roofline() -> None:
    """GMAC/s by arithmetic intensity, under the machine's limits."""
    fig, ax = plt.subplots(figsize=(8, 5))
    x = np.logspace(-0.5, 3.3, 200)
    name = f"limits: {PEAK:.0f} GMAC/s, {BANDWIDTH:.1f} GB/s from memory"
    ax.plot(x, np.minimum(PEAK, x * BANDWIDTH), color="grey", label=name)
    for vector, colour, name in (
        (True, "tab:orange", "vector by matrix"),
        (False, "tab:green", "matrix by matrix"),
    ):
        points = [
            (m * k * n / (m * k + k * n + 4 * m * n), values["lowgemm packed"])
            for (m, k, n), values in ROWS.items()
            if (m == 1) == vector
        ]
        ax.plot(*zip(*points, strict=True), "o", color=colour, ms=5, label=name)
    for (m, k, n), (right, up, end) in NAMES.items():
        ax.annotate(
            f"{m} x {k} x {n}",
            (m * k * n / (m * k + k * n + 4 * m * n), ROWS[m, k, n]["lowgemm packed"]),
            fontsize=9,
            xytext=(right, up),
            textcoords="offset points",
            ha=end,
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(0.3, 1000),
        ylim=(15, 800),
        xlabel="multiply-accumulates per byte of operands and result",
        ylabel="GMAC/s, one core",
    )
    ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    ax.set_yticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
    ax.yaxis.set_minor_formatter("")
    ax.set_title(BENCH["cpu"], fontsize=10)
    ax.legend(loc="lower right", fontsize=9)
    ax.grid(alpha=0.3)
    save(fig, "roofline.png")


def error_by_bits() -> None:
    """Relative error of a product whose operands were rounded to b bits, against float64."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((64, 1024)), rng.standard_normal((1024, 64))
    exact = x @ w
    bits = range(2, 9)
    fig, ax = plt.subplots(figsize=(7, 4))
    for per_channel in (False, True):
        errors = []
        spread = np.logspace(-1, 1, 64)  # columns of different sizes, as weights have
        wide, product = w * spread, exact * spread
        for b in bits:
            top = 2 ** (b - 1) - 1
            sx = np.abs(x).max() / top
            sw = np.abs(wide).max(axis=0) / top if per_channel else np.abs(wide).max() / top
            qx, qw = np.rint(x / sx).astype(np.int8), np.rint(wide / sw).astype(np.int8)
            got = lowgemm.gemm(qx, qw) * (sx * sw)
            columns = np.sqrt(((got - product) ** 2).mean(axis=0) / (product**2).mean(axis=0))
            errors.append(np.median(columns))
        ax.plot(
            bits,
            errors,
            "o-",
            label="one scale for each column" if per_channel else "one scale for the matrix",
        )
    ax.set(yscale="log", xlabel="bits of both operands", ylabel="relative error of a column, median")
    ax.legend()
    ax.grid(alpha=0.3, which="both")
    save(fig, "error_by_bits.png")


def save(fig, name: str) -> None:
    """Write a figure into docs/img."""
    fig.tight_layout()
    fig.savefig(DOCS / "img" / name, dpi=110)
    print(DOCS.name + "/img/" + name)


if __name__ == "__main__":
    throughput()
    roofline()
    error_by_bits()
