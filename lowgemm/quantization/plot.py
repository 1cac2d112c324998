"""The picture of a `RangeReport`. Matplotlib is imported here and nowhere else, when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.quantization.findings import TensorReport


def plot_report(
    tensors: Sequence[TensorReport], bits: int, path: str | os.PathLike[str] | None = None
) -> Any:
    """Channel ranges on top, signal-to-noise ratios below; see `RangeReport.plot`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot: needs matplotlib (pip install matplotlib)") from error
    names = [t.name for t in tensors]
    at = np.arange(len(names))
    figure = Figure(figsize=(max(6.0, 1.3 * len(names) + 2), 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    ranges, ratios = figure.subplots(2, 1, sharex=True)

    for i, t in enumerate(tensors):
        live = t.channel_magnitude[t.channel_magnitude > 0]
        shift = np.linspace(-0.3, 0.3, live.size) if live.size > 1 else np.zeros(live.size)
        color = "tab:red" if t.findings else "tab:blue"
        ranges.plot(i + shift, live, ".", color=color, markersize=5)
    ranges.set_yscale("log")
    ranges.set_ylabel("largest magnitude of each channel")
    ranges.set_title("Channels of each tensor, in order (red: see the findings)", fontsize=10)

    worst = [t.channel_sqnr.min() for t in tensors]
    series = [
        ("one scale, whole range", [t.sqnr for t in tensors], "tab:blue"),
        ("one scale, clipped", [t.sqnr_clipped for t in tensors], "tab:cyan"),
        ("a scale per channel", [t.sqnr_per_channel for t in tensors], "tab:green"),
    ]
    ceiling = max([v for _, values, _ in series for v in values if np.isfinite(v)] + [50.0]) * 1.05
    for k, (label, values, color) in enumerate(series):
        ratios.bar(at + (k - 1) * 0.25, np.minimum(values, ceiling), 0.23, label=label, color=color)
    ratios.plot(at - 0.25, np.minimum(worst, ceiling), "kv", label="worst channel, one scale", markersize=6)
    ratios.axhline(0, color="gray", linewidth=0.8)
    ratios.set_ylabel(f"SQNR at {bits} bits, dB")
    ratios.set_ylim(min(-3.0, *worst), ceiling * 1.3)
    ratios.legend(fontsize=8, ncols=2, loc="upper center")
    ratios.set_xticks(at, names, rotation=20, ha="right")
    for axes in (ranges, ratios):
        axes.grid(axis="y", alpha=0.3)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure
