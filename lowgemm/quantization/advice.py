"""The cases that `range_report` knows: each a rule with its limit, and a text with the tensor's figures.

Limits are in bits lost: an integer range that is 2**n times too wide costs n bits, or 6 n dB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lowgemm.quantization.affine import fake_quantize
from lowgemm.quantization.findings import Finding, TensorReport
from lowgemm.quantization.qparams import choose_qparams
from lowgemm.quantization.sqnr import decibels

#: Part of the integers that may stay unused before `not normalised` is reported. A quarter is 0.4 of a bit.
UNUSED = 0.25
#: Loss of a channel to the common scale from which on it is reported: 12 dB, or two bits.
CHANNEL_LOSS_DB = 12.0
#: Ratio of the ranges of two groups of channels from which on they count as different quantities: three bits.
GROUP_RATIO = 8.0
#: Ratio of the largest value to the 99.9th percentile from which on it is an outlier: 99.9% of the values
#: lose two bits.
OUTLIER_RATIO = 4.0
#: Part of a channel's values at its bound from which on it counts as clipped. 1% is no coincidence.
CLIPPED_FRACTION = 0.01
#: Precision below which a tensor is reported: at 20 dB the noise is a tenth of the signal.
LOW_DB = 20.0


def advise(report: TensorReport, x: np.ndarray, options: dict[str, Any]) -> Iterator[Finding]:
    """All findings for one tensor."""
    outliers = list(_outliers(report, x, options))
    found = [
        *_not_normalised(report, options),
        *_channels(report, _lost(report, x, options, bool(outliers))),
        *outliers,
        *_dead(report),
        *_clipped(report, x),
    ]
    if not found and report.sqnr < LOW_DB:
        text = f"{report.sqnr:.1f} dB in spite of a well used range: use more bits here."
        found.append(Finding(report.name, "low precision", text))
    yield from found


def listed(channels: np.ndarray, limit: int = 8) -> str:
    """Channel numbers as text, ranges as 3-7, at most `limit` parts."""
    parts: list[list[int]] = []
    for c in channels.tolist():
        if parts and parts[-1][1] == c - 1:
            parts[-1][1] = c
        else:
            parts.append([c, c])
    names = [str(a) if a == b else f"{a}-{b}" for a, b in parts]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _not_normalised(r: TensorReport, options: dict[str, Any]) -> Iterator[Finding]:
    if r.role == "weight" or r.low == r.high:
        return
    whole = max(r.high, 0.0) - min(r.low, 0.0)
    span = 2 * max(abs(r.low), abs(r.high)) if options["symmetric"] else whole
    unused = 1 - (r.high - r.low) / span
    if unused > UNUSED:
        if options["symmetric"] and (r.low >= 0 or r.high <= 0):
            why = "all values have one sign, and a symmetric range has both"
            cure = "Use an asymmetric range, or subtract the mean"
        elif r.low > 0 or r.high < 0:
            why = "the range must hold 0, and the values lie away from it"
            cure = "Subtract the mean (it folds into the next layer's bias)"
        else:
            why, cure = "one side of 0 reaches further than the other", "Use an asymmetric range"
        text = f"{unused:.0%} of the integers are never used: {why} ({r.low:.4g} to {r.high:.4g}). {cure}."
        yield Finding(r.name, "not normalised", text)
    live = r.channel_magnitude > 0
    if r.role == "input" and live.sum() > 1:
        spread = (r.channel_high - r.channel_low)[live]
        spread = spread[spread > 0]
        if spread.size > 1 and spread.max() / spread.min() >= 2 ** (CHANNEL_LOSS_DB / 6):
            lost = np.log2(spread.max() / spread.min())
            text = (
                f"Its channels span from {spread.min():.4g} to {spread.max():.4g}; the narrowest loses "
                f"{lost:.1f} bits. "
                "Standardise each channel (divide by its standard deviation; it folds into the first layer's "
                "weights)."
            )
            yield Finding(r.name, "not normalised", text)


def _groups(magnitude: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Channels in two groups with a wide gap between their magnitudes, if each group keeps together."""
    live = np.flatnonzero(magnitude > 0)
    if live.size < 2:
        return None
    order = live[np.argsort(magnitude[live], kind="stable")]
    logs = np.log2(magnitude[order])
    gaps = np.diff(logs)
    i = int(np.argmax(gaps))
    inner = max(logs[i] - logs[0], logs[-1] - logs[i + 1])
    if gaps[i] < np.log2(GROUP_RATIO) or inner > gaps[i]:
        return None
    return np.sort(order[: i + 1]), np.sort(order[i + 1 :])


def _lost(r: TensorReport, x: np.ndarray, options: dict[str, Any], outliers: bool) -> np.ndarray:
    """Decibels that each channel loses to the common scale, if its range is narrower by as much.

    A channel that is wide only because of a few outliers is measured without them. Outliers are a case of
    their own.
    """
    if r.axis is None:
        return np.zeros(1)
    shared, own = r.channel_sqnr, r.channel_sqnr_own
    low, high = r.channel_low, r.channel_high
    if outliers:
        others = tuple(i for i in range(x.ndim) if i != r.axis)
        common = np.quantile(np.abs(x[x != 0]), 0.999)
        few = (np.abs(x) > common).mean(others, keepdims=True) < 0.1
        x = np.where(few, np.clip(x, -common, common), x)
        low, high = x.min(others), x.max(others)
        for_all = choose_qparams(low.min(), high.max(), **options)
        for_each = choose_qparams(low, high, axis=r.axis, **options)
        shared, own = (
            decibels(x, fake_quantize(x, p).astype(np.float64), r.axis) for p in (for_all, for_each)
        )
    spans = np.maximum(high, 0) - np.minimum(low, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        narrower = 6 * np.log2((max(high.max(), 0) - min(low.min(), 0)) / spans)
        lost = np.minimum(own - shared, narrower)
    return np.where(np.isinf(shared) | (low == high), 0.0, lost)


def _channels(r: TensorReport, lost: np.ndarray) -> Iterator[Finding]:
    if r.axis is None or r.role == "input":
        return
    bad = np.flatnonzero(lost >= CHANNEL_LOSS_DB)
    if not bad.size:
        return
    worst = int(bad[np.argmin(r.channel_sqnr[bad])])
    magnitude = r.channel_magnitude
    live = magnitude[magnitude > 0]
    gone = int((r.channel_sqnr[bad] <= 0.1).sum())
    figures = (
        f"{bad.size} of {magnitude.size} channels ({listed(bad)}) lose at least {CHANNEL_LOSS_DB / 6:.0f} "
        "bits to the "
        f"common scale; ranges differ by a factor of {live.max() / live.min():.3g}. Channel {worst}: "
        f"{r.channel_sqnr[worst]:.1f} dB instead of {r.channel_sqnr_own[worst]:.1f} dB."
    )
    if gone:
        figures += f" In {gone} of them every value becomes 0."
    if r.role == "weight":
        cure = "Use a scale per channel; or equalize_ranges with the layer before."
        yield Finding(r.name, "channel ranges differ", f"{figures} {cure}", tuple(bad.tolist()))
        return
    groups = _groups(magnitude)
    if groups is None or (r.role != "output" and min(g.size for g in groups) < 2):
        cure = "Activations have one scale: divide the channels' ranges into the weights by equalize_ranges."
        yield Finding(r.name, "channel ranges differ", f"{figures} {cure}", tuple(bad.tolist()))
        return
    small, large = groups
    cure = (
        f"Two kinds of values share this tensor: channels {listed(large)} reach "
        f"{magnitude[large].max():.4g}, channels "
        f"{listed(small)} only {magnitude[small].max():.4g} (as boxes and class scores would). Give them "
        "separate outputs, "
        "or scale one kind inside the network."
    )
    yield Finding(r.name, "mixed ranges", f"{figures} {cure}", tuple(small.tolist()))


def _outliers(r: TensorReport, x: np.ndarray, options: dict[str, Any]) -> Iterator[Finding]:
    magnitude = np.abs(x)
    nonzero = magnitude[magnitude > 0]
    if nonzero.size < 1000:
        return  # a thousandth of them is not one value
    common = float(np.quantile(nonzero, 0.999))
    ratio = float(nonzero.max()) / common
    if ratio < OUTLIER_RATIO:
        return
    bulk = x[magnitude <= common]

    def of_bulk(low: float, high: float) -> float:
        p = choose_qparams(low, high, **options)
        return float(decibels(bulk, fake_quantize(bulk, p).astype(np.float64)))

    kept, gained = of_bulk(r.low, r.high), of_bulk(float(bulk.min()), float(bulk.max()))
    if r.sqnr_clipped >= r.sqnr + 1:
        cure = (
            f"Calibrate by MeanSquaredError (it chose {r.clipped[0]:.4g} to {r.clipped[1]:.4g}: "
            f"{r.sqnr_clipped:.1f} dB instead of "
            f"{r.sqnr:.1f} dB in all), by Percentile or by Entropy"
        )
    else:
        cure = (
            "They carry so much of the power that MeanSquaredError keeps them: "
            "calibrate by Percentile or Entropy"
        )
    text = (
        f"{(magnitude > common).sum()} of {x.size} values lie beyond {common:.4g} and reach "
        f"{nonzero.max():.4g}, {ratio:.3g} "
        f"times as far. The others have {kept:.1f} dB, and would have {gained:.1f} dB if these were clipped. "
        f"{cure}; "
        "and look at where they come from."
    )
    yield Finding(r.name, "outliers", text)


def _dead(r: TensorReport) -> Iterator[Finding]:
    if r.axis is None:
        return
    zero = np.flatnonzero(r.channel_magnitude == 0)
    if zero.size:
        text = (
            f"{zero.size} of {r.channel_low.size} channels ({listed(zero)}) are always 0. They cost time and "
            "give "
            "nothing: remove them and what reads them."
        )
        yield Finding(r.name, "dead channels", text, tuple(zero.tolist()))
    constant = np.flatnonzero((r.channel_low == r.channel_high) & (r.channel_low != 0))
    if constant.size and r.role != "weight" and r.low != r.high:
        text = (
            f"{constant.size} of {r.channel_low.size} channels ({listed(constant)}) never change: fold them "
            "into "
            "the next layer's bias and remove them."
        )
        yield Finding(r.name, "dead channels", text, tuple(constant.tolist()))


def _clipped(r: TensorReport, x: np.ndarray) -> Iterator[Finding]:
    if r.role in ("weight", "input") or r.low == r.high:
        return
    axis = 0 if r.axis is None else r.axis
    table = (
        np.moveaxis(x, axis, 0).reshape(r.channel_low.size, -1) if r.axis is not None else x.reshape(1, -1)
    )
    for bound in (r.low, r.high):
        if bound == 0:  # what a ReLU cuts off is meant to be cut off
            continue
        at = table == bound
        often = (at.sum(1) >= 2) & (at.mean(1) >= CLIPPED_FRACTION) & (r.channel_low != r.channel_high)
        bad = np.flatnonzero(often)
        if not bad.size:
            continue
        worst = int(bad[np.argmax(at.mean(1)[bad])])
        where = (
            f"{bad.size} of {often.size} channels ({listed(bad)}) sit" if r.axis is not None else "It sits"
        )
        text = (
            f"{where} at the bound {bound:.4g} in up to {at.mean(1)[worst]:.0%} of the values: what a ReLU6 "
            "or another "
            "bound cut off is lost before quantizing. Raise or drop the bound for them; equalizing across a "
            "bound "
            "changes the function."
        )
        yield Finding(r.name, "clipped channels", text, tuple(bad.tolist()))
