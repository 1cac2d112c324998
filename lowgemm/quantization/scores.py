"""Scores of candidate ranges over a histogram: definitions in NumPy, and the same loops compiled by Numba.

A search scores some hundred candidates for each channel. On a histogram of 2048 bins NumPy takes 50 to 65
microseconds for each, mostly call overhead; the compiled loops take 6 (``examples/quantization_times.py``).
They add up in another order, so they agree to rounding.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from lowgemm.jit import disk_cache
from lowgemm.quantization.affine import quantize_reference
from lowgemm.quantization.qparams import QParams

#: Most points that a bin is split into. Points a quarter of a step apart are enough, if that is fewer.
PARTS = 64


def squared_error(places: np.ndarray, counts: np.ndarray, width: float, qparams: QParams) -> float:
    """Sum of squares that quantizing costs; each bin inside the range is split into even points."""
    inside = (places + width / 2 > qparams.low) & (places - width / 2 < qparams.high)
    parts = int(np.clip(np.ceil(4 * width / float(qparams.scale)), 1, PARTS))
    offsets = ((np.arange(parts) + 0.5) / parts - 0.5) * width
    split = (places[inside, None] + offsets).ravel()
    x = np.concatenate([places[~inside], split])
    weights = np.concatenate([counts[~inside], np.repeat(counts[inside] / parts, parts)])
    back = qparams.scale * (quantize_reference(x, qparams).astype(np.int64) - qparams.zero_point)
    return float(weights @ (x - back) ** 2)


def divergence(places: np.ndarray, counts: np.ndarray, width: float, qparams: QParams) -> float:
    """KL(P || Q) of `lowgemm.quantization.Entropy`; infinite for fewer bins than integers, or none in use."""
    low, high = float(qparams.low), float(qparams.high)
    inside = np.flatnonzero((places >= low) & (places <= high))
    whole = inside.size == places.size
    if not inside.size or (not whole and high - low < width * (qparams.qmax - qparams.qmin + 1)):
        return np.inf
    first, last = inside[0], inside[-1] + 1
    p = counts[first:last].copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    level = quantize_reference(places[first:last], qparams).astype(np.int64) - qparams.qmin
    mass = np.bincount(level, counts[first:last])
    q = (mass / np.maximum(np.bincount(level), 1))[level]
    p, q = p / p.sum(), q / q.sum()
    return float(p @ np.log(p / q))


@disk_cache.njit(nogil=True, error_model="numpy")
def _squared_error_of_each(places, counts, width, scale, zero_point, qmin, qmax, out):
    """The squared error of each scale on a histogram of `counts` in bins of `width` around `places`."""
    for k in range(scale.size):
        s, z = scale[k], zero_point[k]
        low, high = s * (qmin - z), s * (qmax - z)
        parts = min(max(int(min(math.ceil(4 * width / s), 1e9)), 1), PARTS)
        total = 0.0
        for b in range(places.size):
            x = places[b]
            if x + width / 2 <= low:
                total += counts[b] * (x - low) ** 2
            elif x - width / 2 >= high:
                total += counts[b] * (x - high) ** 2
            else:
                bin_error = 0.0
                for j in range(parts):
                    v = x + ((j + 0.5) / parts - 0.5) * width
                    q = min(max(np.rint(v / s) + z, float(qmin)), float(qmax))
                    bin_error += (v - s * (q - z)) ** 2
                total += bin_error * counts[b] / parts
        out[k] = total


@disk_cache.njit(nogil=True, error_model="numpy")
def _divergence_of_each(places, counts, width, scale, zero_point, qmin, qmax, out):
    """The divergence of each scale on a histogram of `counts` in bins of `width` around `places`."""
    levels = qmax - qmin + 1
    mass, used = np.empty(levels), np.empty(levels)
    level = np.empty(places.size, np.int64)
    logs = np.log(counts)  # KL = sum(p log p - p log q) / total - log(total / inside), p and q as counts
    for k in range(scale.size):
        s, z = scale[k], zero_point[k]
        low, high = s * (qmin - z), s * (qmax - z)
        first, last, total = places.size, -1, 0.0
        mass[:], used[:] = 0, 0
        inside = 0.0
        for b in range(places.size):
            total += counts[b]
            if low <= places[b] <= high:
                first, last = min(first, b), b
                inside += counts[b]
                level[b] = int(min(max(np.rint(places[b] / s) + z, float(qmin)), float(qmax))) - qmin
                mass[level[b]] += counts[b]
                used[level[b]] += 1
        whole = first == 0 and last == places.size - 1
        if last < 0 or (not whole and high - low < width * levels):
            out[k] = np.inf
            continue
        result, before, after = 0.0, 0.0, 0.0
        for b in range(first):
            before += counts[b]
        for b in range(last + 1, places.size):
            after += counts[b]
        for v in range(levels):
            mass[v] = math.log(mass[v] / used[v]) if used[v] else 0.0
        for b in range(first, last + 1):
            p, log = counts[b], logs[b]
            if b in (first, last):
                p += (before if b == first else 0.0) + (after if b == last else 0.0)
                log = math.log(p)
            result += p * (log - mass[level[b]])
        out[k] = result / total - math.log(total / inside)


#: The definition of a score, and the loop over candidates.
_SCORES = {
    "squared_error": (squared_error, _squared_error_of_each),
    "divergence": (divergence, _divergence_of_each),
}


def scores(name: str, places: np.ndarray, counts: np.ndarray, width: float, qparams: QParams) -> np.ndarray:
    """Score of each of the candidates that are the channels of `qparams`."""
    if numba.config.DISABLE_JIT:
        return scores_reference(name, places, counts, width, qparams)
    out = np.empty(qparams.scale.size)
    zero_point = qparams.zero_point.astype(np.float64)
    _SCORES[name][1](places, counts, width, qparams.scale, zero_point, qparams.qmin, qparams.qmax, out)
    return out


def scores_reference(
    name: str, places: np.ndarray, counts: np.ndarray, width: float, qparams: QParams
) -> np.ndarray:
    """The same by the definitions."""
    each = zip(qparams.scale, qparams.zero_point, strict=True)
    ones = [QParams(s, z, qparams.dtype, None, qparams.qmin, qparams.qmax) for s, z in each]
    return np.array([_SCORES[name][0](places, counts, width, one) for one in ones])
