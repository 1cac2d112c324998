"""Calibration by search: the range with the least mean squared error, or the least loss of information."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowgemm.quantization.affine import quantize_reference
from lowgemm.quantization.histogram import Histogram
from lowgemm.quantization.observers import HistogramObserver
from lowgemm.quantization.qparams import QParams, choose_qparams

#: Clipping points tried first: fractions 2**0, 2**-0.25, ... 2**-12 of the extreme value.
COARSE = 2.0 ** (-np.arange(0, 12.01, 0.25))
#: Then so many between the neighbours of the best one.
FINE = 16

Score = Callable[[float, float], float]


def least(score: Score, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """The clipped range [low, high] with the least score.

    Both ends are shrunk together first, then each in turn until nothing improves. The mean squared error has
    one valley for all but contrived distributions, and each step only ever improves on the one before, so the
    result is never worse than not clipping.
    """
    if low == high:
        return low, high

    def line(make: Callable[[float], tuple[float, float]], best: tuple[float, tuple[float, float]]):
        scores = [score(*make(f)) for f in COARSE]
        i = int(np.argmin(scores))
        near = np.linspace(COARSE[min(i + 1, COARSE.size - 1)], COARSE[max(i - 1, 0)], FINE + 2)[1:-1]
        found = [(scores[i], make(COARSE[i]))] + [(score(*make(f)), make(f)) for f in near]
        return min([best, *found], key=lambda pair: pair[0])

    best = line(lambda f: (low * f, high * f), (score(low, high), (low, high)))
    if symmetric or low == 0 or high == 0:
        return best[1]
    for _ in range(4):
        before = best[0]
        l, h = best[1]
        best = line(lambda f, l=l: (l, high * f), best)
        l, h = best[1]
        best = line(lambda f, h=h: (low * f, h), best)
        if best[0] >= before:
            break
    return best[1]


class _Searched(HistogramObserver):
    """Tries clipped ranges and keeps the one with the least score."""

    def _range_of(self, histogram: Histogram) -> tuple[float, float]:
        def score(low: float, high: float) -> float:
            return self._score(histogram, choose_qparams(low, high, **self.options))

        low, high = histogram.low, histogram.high
        if self.options["symmetric"]:
            low, high = min(low, -high), max(high, -low)
        return least(score, low, high, self.options["symmetric"])

    def _score(self, histogram: Histogram, qparams: QParams) -> float:
        raise NotImplementedError


class MeanSquaredError(_Searched):
    """The range for which quantizing changes the values least, in the mean of squares.

    Parameters
    ----------
    dtype : dtype
        As for `Observer`.
    bins : int
        Bins of the histogram that is searched.
    **options :
        As for `Observer`.

    Notes
    -----
    Each candidate is scored by quantizing points that stand for the histogram's bins, so rounding and clipping
    both count as they happen. Bins are split into points a quarter of a step apart; exact zeros cost nothing.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.append(np.linspace(-1, 1, 100_000), 30.0)  # one outlier
    >>> low, high = MeanSquaredError(bits=4).observe(x).range()
    >>> bool(high < 3)
    True
    """

    def _score(self, histogram: Histogram, qparams: QParams) -> float:
        parts = int(np.clip(np.ceil(4 * histogram.width / float(qparams.scale)), 1, 64))
        x, weights = histogram.points(parts)
        back = qparams.scale * (quantize_reference(x, qparams).astype(np.float64) - qparams.zero_point)
        return float(weights @ (x - back) ** 2)


class Entropy(_Searched):
    """The range that keeps the shape of the distribution: least Kullback-Leibler divergence.

    Parameters
    ----------
    dtype : dtype
        As for `Observer`.
    bins : int
        Bins of the histogram. More bins than the data fill well make the divergence noise.
    **options :
        As for `Observer`.

    Notes
    -----
    After S. Migacz, "8-bit inference with TensorRT" (GTC 2017), for any zero point. For a candidate range, P is
    the histogram with what lies outside moved to the outermost bins in use inside. Q is the histogram inside,
    as the integers see it: the count of each integer spread evenly over its bins in use. The score is
    KL(P || Q). Exact zeros are left out, since no range changes them. Ranges with fewer bins than integers
    are not tried, because there Q is P whatever the range.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.append(np.random.default_rng(0).standard_normal(100_000), [40.0])  # one outlier
    >>> low, high = Entropy("int8", symmetric=True).observe(x).range()
    >>> bool(high < 20)
    True
    """

    bins_default = 2048

    def _score(self, histogram: Histogram, qparams: QParams) -> float:
        low, high = float(qparams.low), float(qparams.high)
        everything = high >= histogram.high and low <= histogram.low
        if (high - low) / histogram.width < qparams.qmax - qparams.qmin + 1 and not everything:
            return np.inf
        x, counts = histogram.points()
        inside = np.flatnonzero((x >= low) & (x <= high))
        if not inside.size:
            return np.inf if not everything else 0.0
        first, last = inside[0], inside[-1] + 1
        p = counts[first:last].copy()
        p[0] += counts[:first].sum()
        p[-1] += counts[last:].sum()
        level = quantize_reference(x[first:last], qparams).astype(np.int64) - qparams.qmin
        mass = np.bincount(level, counts[first:last])
        q = (mass / np.maximum(np.bincount(level), 1))[level]
        p, q = p / p.sum(), q / q.sum()
        return float(p @ np.log(p / q))
