"""A histogram that streams and merges exactly: whatever the order of batches, the counts come out the same.

Bins are the intervals ``[i * width, (i + 1) * width)`` for integers i, and the width is the smallest power of
two for which the range seen so far (with 0) needs at most `bins` of them. When the range grows, neighbouring
bins are added up in pairs, quads, ..., which is exact because their edges coincide. So the state depends on
the values seen, not on how they were split into batches. PyTorch's ``HistogramObserver`` has free edges and
has to spread old counts over new bins, which is neither exact nor independent of the order.
"""

from __future__ import annotations

import numpy as np

from lowgemm.quantization.loops import EXPONENT_MIN, TINY, run_count, worthwhile
from lowgemm.quantization.qparams import REAL_MAX


def bin_exponent(low: float, high: float, bins: int) -> int:
    """Smallest e for which [low, high] touches at most `bins` intervals of width ``2**e``."""
    exponent = max(int(np.frexp((high - low) / bins)[1]) - 1, EXPONENT_MIN)
    while _index(high, exponent) - _index(low, exponent) >= bins:
        exponent += 1
    return exponent


def _index(value: float, exponent: int) -> int:
    return int(np.floor(np.ldexp(value, -exponent)))


def count_reference(x: np.ndarray, exponent: int, first: int, counts: np.ndarray) -> int:
    """The definition: one more in bin ``floor(v / 2**exponent) - first`` for each v; returns the zeros."""
    values = x.astype(np.float64)  # first, since TINY is no float32
    values = values[np.abs(values) >= TINY]
    index = np.floor(np.ldexp(values, -exponent)).astype(np.int64) - first
    counts += np.bincount(index, minlength=counts.size)
    return x.size - values.size


class Histogram:
    """Counts of real numbers; zeros (below 2**-160) are counted apart, because quantization keeps them exact.

    Parameters
    ----------
    bins : int
        Most bins to use.

    Examples
    --------
    >>> import numpy as np
    >>> h = Histogram(8)
    >>> h.observe(np.array([0.0, 0.1, 0.2, 0.9]))
    >>> h.observe(np.array([3.0]))
    >>> h.width, h.counts, h.zeros
    (0.5, array([2, 1, 0, 0, 0, 0, 1]), 1)
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.low = self.high = 0.0
        self.zeros = 0
        self.exponent = EXPONENT_MIN
        self.first = 0
        self.counts = np.zeros(1, np.int64)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(np.ldexp(1.0, self.exponent))

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum()) + self.zeros

    def observe(self, x: np.ndarray) -> None:
        """Count finite numbers."""
        if not x.size:
            return
        low, high = float(x.min()), float(x.max())
        if not max(-low, high) <= REAL_MAX:  # there is no bin, and the compiled loop would write anywhere
            raise ValueError("x: expected finite numbers that float32 can hold")
        low, high = low if low <= -TINY else 0.0, high if high >= TINY else 0.0
        self._grow(min(self.low, low), max(self.high, high))
        if worthwhile(x):
            self.zeros += run_count(x.ravel(), self.exponent, self.first, self.counts)
        else:
            self.zeros += count_reference(x, self.exponent, self.first, self.counts)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram with as many bins."""
        self._grow(min(self.low, other.low), max(self.high, other.high))
        self._add(other.counts, other.first, other.exponent)
        self.zeros += other.zeros

    def _grow(self, low: float, high: float) -> None:
        if low == self.low and high == self.high:
            return
        counts, first, exponent = self.counts, self.first, self.exponent
        self.low, self.high = low, high
        self.exponent = bin_exponent(low, high, self.bins)
        self.first = _index(low, self.exponent)
        self.counts = np.zeros(_index(high, self.exponent) - self.first + 1, np.int64)
        self._add(counts, first, exponent)

    def _add(self, counts: np.ndarray, first: int, exponent: int) -> None:
        """Add counts of bins that are as wide or narrower."""
        used = np.flatnonzero(counts)
        index = ((used + first) >> min(self.exponent - exponent, 62)) - self.first
        np.add.at(self.counts, index, counts[used])

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Middles of the bins in use and the number of values of each (without exact zeros), both float64."""
        used = np.flatnonzero(self.counts)
        return (used + self.first + 0.5) * self.width, self.counts[used].astype(np.float64)

    def quantile(self, fraction: float, magnitude: bool = False) -> float:
        """Value, or absolute value, below which a fraction (0 to 1) of all lie, up to a bin's width."""
        first, counts = self.first, self.counts
        if magnitude:
            used = np.arange(first, first + counts.size)
            counts = np.bincount(np.maximum(used, -used - 1), counts).astype(np.int64)
            first = 0
        edges = np.arange(first, first + counts.size + 1) * self.width
        edges = np.insert(edges, -first, 0.0)  # a bin without width for the exact zeros
        below = np.cumsum(np.insert(counts, -first, self.zeros))
        value = np.interp(fraction * below[-1], np.concatenate([[0], below]), edges)
        low, high = (0.0, max(-self.low, self.high)) if magnitude else (self.low, self.high)
        return float(np.clip(value, low, high))
