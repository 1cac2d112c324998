"""Calibration by search: the range with the least mean squared error, or the least loss of information."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowgemm.quantization.histogram import Histogram
from lowgemm.quantization.observers import MOST_CLIPPED, HistogramObserver
from lowgemm.quantization.qparams import QParams, choose_qparams
from lowgemm.quantization.scores import scores

#: Clipping points tried first: fractions 2**0, 2**-0.25, ... 2**-12 of the extreme value.
COARSE = 2.0 ** (-np.arange(0, 12.01, 0.25))
#: Then so many between the neighbours of the best one.
FINE = 16
#: Rounds in which each end is moved in turn; the search mostly stops after two.
ROUNDS = 4

#: Scores of ranges [low, high], given as vectors.
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def least(score: Score, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """The clipped range [low, high] with the least score.

    Both ends are shrunk together first, then each in turn until nothing improves. Each step only ever
    improves on the one before, so the result never scores worse than the whole range.
    """
    if low == high:
        return low, high

    def line(best: tuple[float, float, float], move_low: bool, move_high: bool) -> tuple[float, float, float]:
        """`best` or something better, with one end or both at fractions of the extreme value."""

        def tried(f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            lows = low * f if move_low else np.full(f.size, best[1])
            highs = high * f if move_high else np.full(f.size, best[2])
            return score(lows, highs), lows, highs

        coarse = tried(COARSE)
        i = int(np.argmin(coarse[0]))
        ends = COARSE[min(i + 1, COARSE.size - 1)], COARSE[max(i - 1, 0)]
        fine = tried(np.linspace(*ends, FINE + 2)[1:-1])
        for found in (coarse, fine):
            i = int(np.argmin(found[0]))
            if found[0][i] < best[0]:
                best = float(found[0][i]), float(found[1][i]), float(found[2][i])
        return best

    whole = float(score(np.array([low]), np.array([high]))[0])
    best = line((whole, low, high), True, True)
    if not (symmetric or low == 0 or high == 0):
        for _ in range(ROUNDS):
            before = best[0]
            best = line(line(best, False, True), True, False)
            if best[0] >= before:
                break
    return best[1:]


class _Searched(HistogramObserver):
    """Tries clipped ranges and keeps the one with the least score."""

    score: str

    def _range_of(self, histogram: Histogram) -> tuple[float, float]:
        places, counts = histogram.points()

        def score(lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
            candidates = choose_qparams(lows, highs, axis=0, **self.options)
            found = scores(self.score, places, counts, histogram.width, candidates)
            return np.where(self._fair(places, counts, candidates), found, np.inf)

        low, high = histogram.low, histogram.high
        if self.options["symmetric"]:
            low, high = min(low, -high), max(high, -low)
        return least(score, low, high, self.options["symmetric"])

    def _fair(self, places: np.ndarray, counts: np.ndarray, candidates: QParams) -> np.ndarray:
        """Which candidates the score can judge."""
        return np.ones(candidates.scale.size, bool)


class MeanSquaredError(_Searched):
    """The range for which quantizing changes the values least, in the mean of squares.

    Parameters
    ----------
    dtype : dtype
        As for `Observer`.
    bins : int, optional
        Bins of the histogram that is searched: 8192, or 2048 for each channel.
    bits, symmetric, narrow_range, axis, power_of_two, nonfinite :
        As for `Observer`.

    Notes
    -----
    Each candidate is scored by quantizing points that stand for the histogram's bins, so rounding and
    clipping both count as they happen. Bins are split into points a quarter of a step apart; exact zeros cost
    nothing.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.append(np.linspace(-1, 1, 100_000), 30.0)  # one outlier
    >>> low, high = MeanSquaredError(bits=4).observe(x).range()
    >>> bool(high < 3)
    True
    """

    score = "squared_error"


class Entropy(_Searched):
    """The range that keeps the shape of the distribution: least Kullback-Leibler divergence.

    Parameters
    ----------
    dtype : dtype
        As for `Observer`.
    bins : int, optional
        Bins of the histogram that is searched: 32768, or 2048 for each channel. At 8 bits, ranges down to
        512 / bins of the whole range can be chosen: 1/64, or 1/4 per channel. So more bins cope with larger
        outliers.
    bits, symmetric, narrow_range, axis, power_of_two, nonfinite :
        As for `Observer`.

    Notes
    -----
    After S. Migacz, "8-bit inference with TensorRT" (GTC 2017), for any zero point. For a candidate range, P
    is the histogram with what lies outside moved to the outermost bins in use inside. Q is the histogram
    inside, as the integers see it: the count of each integer spread evenly over its bins in use. The score is
    KL(P || Q). Exact zeros are left out, since no range changes them.

    Two kinds of ranges are not tried, because the divergence cannot judge them. One kind holds fewer bins in
    use than there are integers: Q is then equal to P, whatever the range. The other kind clips more than 1%
    of the values: the divergence does not see how far they are moved.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.append(np.random.default_rng(0).standard_normal(100_000), [40.0])  # one outlier
    >>> low, high = Entropy("int8", symmetric=True).observe(x).range()
    >>> bool(high < 20)
    True
    """

    score = "divergence"
    bins_default = (32768, 2048)

    def _fair(self, places: np.ndarray, counts: np.ndarray, candidates: QParams) -> np.ndarray:
        half = candidates.scale / 2  # what is closer to the end than this is not clipped but rounded
        first = np.searchsorted(places, candidates.low - half)
        last = np.searchsorted(places, candidates.high + half, "right")
        sums = np.append(0.0, np.cumsum(counts))
        enough = last - first > candidates.qmax - candidates.qmin
        return enough & (sums[last] - sums[first] >= (1 - MOST_CLIPPED) * sums[-1])
