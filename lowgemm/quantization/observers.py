"""Calibration by smallest and largest value, by their moving average, and by percentiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lowgemm.checks.values import integer, number
from lowgemm.quantization.histogram import Histogram
from lowgemm.quantization.observer import Observer

#: Part of the values that may be clipped as outliers without being asked for. Exact zeros do not count,
#: because no range changes them.
MOST_CLIPPED = 0.01


def fraction(value: Any, name: str, low: float, high: float) -> float:
    """`value` as a float in (low, high]."""
    found = number(value, name)
    if not low < found <= high:
        raise ValueError(f"{name}: expected more than {low:g} and at most {high:g}, got {value}")
    return found


class MinMax(Observer):
    """The range from the smallest to the largest value seen.

    Nothing is clipped, and one outlier decides the scale. Right for weights.

    Parameters
    ----------
    dtype, bits, symmetric, narrow_range, axis, power_of_two, nonfinite :
        As for `Observer`.

    Examples
    --------
    >>> observer = MinMax("uint8").observe([1.0, 2.0]).observe([-0.5])
    >>> observer.qparams() == MinMax("uint8").observe([1.0, 2.0, -0.5]).qparams()
    True
    """

    #: Of each channel; replaced, never written to.
    low = high = np.empty(0)

    def _take(self, x: np.ndarray, finite: np.ndarray | None, low: np.ndarray, high: np.ndarray) -> None:
        if self.low.size:
            low, high = np.minimum(low, self.low), np.maximum(high, self.high)
        self.low, self.high = low, high

    def _merge(self, other: MinMax) -> None:
        self._take(np.empty(0), None, other.low, other.high)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        return self.low, self.high


class MovingAverage(Observer):
    """The exponential moving average of each batch's smallest and largest value.

    One odd batch changes little, and a slow drift is followed. Training with simulated quantization uses
    this.

    Parameters
    ----------
    dtype : dtype
        As for `Observer`.
    momentum : float
        Weight of the newest batch, in (0, 1].
    bits, symmetric, narrow_range, axis, power_of_two, nonfinite :
        As for `Observer`.

    Notes
    -----
    After n batches, batch i of low values l has the weight ``momentum * (1 - momentum)**(n - i)``, and the
    sum is divided by the sum of the weights. (Others start the average at the first batch, which then counts
    for 1/momentum batches.) In this form the average of two streams is that of one after the other: the sums
    of the first are multiplied by ``(1 - momentum)**m`` for the m batches of the second, and added.
    So `merge` takes the other's batches as coming after its own, and equals one pass up to the rounding of
    float64.

    Values that are so rare that most batches have none of their size are mostly clipped. Give such data in
    large batches, or to another observer.

    Examples
    --------
    >>> observer = MovingAverage(momentum=0.5).observe([0.0, 1.0]).observe([0.0, 4.0])
    >>> float(observer.range()[1])  # (0.25 * 1 + 0.5 * 4) / 0.75
    3.0
    """

    def __init__(
        self,
        dtype: DTypeLike = "int8",
        *,
        momentum: float = 0.01,
        bits: int | None = None,
        symmetric: bool = False,
        narrow_range: bool = False,
        axis: int | None = None,
        power_of_two: bool = False,
        nonfinite: str = "raise",
    ) -> None:
        super().__init__(
            dtype,
            bits=bits,
            symmetric=symmetric,
            narrow_range=narrow_range,
            axis=axis,
            power_of_two=power_of_two,
            nonfinite=nonfinite,
        )
        self.momentum = fraction(momentum, "momentum", 0, 1)
        #: Per channel: the weighted sums of low and high, the sum of weights, the number of batches.
        self.sums = np.empty((4, 0))

    def settings(self) -> dict[str, Any]:
        """Everything that has to be the same for two observers to merge."""
        return {**super().settings(), "momentum": self.momentum}

    def _take(self, x: np.ndarray, finite: np.ndarray | None, low: np.ndarray, high: np.ndarray) -> None:
        seen = low <= high  # a channel with nothing finite has no batch
        c = np.full(low.shape, self.momentum)
        with np.errstate(invalid="ignore"):
            self._append(np.where(seen, [low * c, high * c, c, np.ones_like(c)], 0.0))

    def _append(self, new: np.ndarray) -> None:
        if self.sums.shape[1]:
            fade = (1 - self.momentum) ** new[3]
            new = np.concatenate([self.sums[:3] * fade, self.sums[3:]]) + new
        self.sums = new

    def _merge(self, other: MovingAverage) -> None:
        self._append(other.sums)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = self.sums[:2] / self.sums[2]
        return low, high


class HistogramObserver(Observer):
    """An observer that keeps a `Histogram` for each channel.

    Merging is exact, in any order. See `lowgemm.quantization.histogram`.

    Parameters
    ----------
    dtype : dtype
        As for `Observer`.
    bins : int, optional
        Most bins, each of 8 bytes: by default 8192 for a tensor, 2048 for each channel.
    bits, symmetric, narrow_range, axis, power_of_two, nonfinite :
        As for `Observer`.
    """

    #: For one range per tensor, and for one per channel.
    bins_default = (8192, 2048)

    def __init__(
        self,
        dtype: DTypeLike = "int8",
        *,
        bins: int | None = None,
        bits: int | None = None,
        symmetric: bool = False,
        narrow_range: bool = False,
        axis: int | None = None,
        power_of_two: bool = False,
        nonfinite: str = "raise",
    ) -> None:
        super().__init__(
            dtype,
            bits=bits,
            symmetric=symmetric,
            narrow_range=narrow_range,
            axis=axis,
            power_of_two=power_of_two,
            nonfinite=nonfinite,
        )
        default = self.bins_default[self.axis is not None]
        self.bins = default if bins is None else integer(bins, "bins", 16, 2**24)
        self.histograms: list[Histogram] = []

    def settings(self) -> dict[str, Any]:
        """Everything that has to be the same for two observers to merge."""
        return {**super().settings(), "bins": self.bins}

    def _all(self) -> list[Histogram]:
        if not self.histograms:
            self.histograms = [Histogram(self.bins) for _ in range(self.channels or 0)]
        return self.histograms

    def _take(self, x: np.ndarray, finite: np.ndarray | None, low: np.ndarray, high: np.ndarray) -> None:
        for histogram, row in zip(self._all(), self.rows(x, finite), strict=True):
            histogram.observe(row)

    def _merge(self, other: HistogramObserver) -> None:
        for histogram, counted in zip(self._all(), other.histograms, strict=True):
            histogram.merge(counted)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        pairs = [self._range_of(h) if h.total else (np.inf, -np.inf) for h in self.histograms]
        return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])

    def _range_of(self, histogram: Histogram) -> tuple[float, float]:
        raise NotImplementedError


class Percentile(HistogramObserver):
    """The range that holds the middle `percentile` of all values; the rest is clipped.

    Parameters
    ----------
    dtype : dtype
        As for `Observer`.
    percentile : float
        In (0, 100]. Half of the rest is cut off at each end; with `symmetric`, all of it from the largest
        absolute values. Zeros lose nothing by being cut off. Of the other values at most ten times the
        rest is cut off, and at most 1% (or twice the rest, if that is more).
    bins : int, optional
        Bins of the histogram (8192, or 2048 for each channel); the result is off by a bin's width at most,
        which is between 1/bins and 2/bins of the whole range (with 0).
    bits, symmetric, narrow_range, axis, power_of_two, nonfinite :
        As for `Observer`.

    Examples
    --------
    >>> import numpy as np
    >>> observer = Percentile(percentile=98).observe(np.arange(-100, 101))
    >>> low, high = observer.range()
    >>> round(float(low)), round(float(high))
    (-98, 98)
    """

    def __init__(
        self,
        dtype: DTypeLike = "int8",
        *,
        percentile: float = 99.99,
        bins: int | None = None,
        bits: int | None = None,
        symmetric: bool = False,
        narrow_range: bool = False,
        axis: int | None = None,
        power_of_two: bool = False,
        nonfinite: str = "raise",
    ) -> None:
        super().__init__(
            dtype,
            bins=bins,
            bits=bits,
            symmetric=symmetric,
            narrow_range=narrow_range,
            axis=axis,
            power_of_two=power_of_two,
            nonfinite=nonfinite,
        )
        self.percentile = fraction(percentile, "percentile", 0, 100)

    def settings(self) -> dict[str, Any]:
        """Everything that has to be the same for two observers to merge."""
        return {**super().settings(), "percentile": self.percentile}

    def _range_of(self, histogram: Histogram) -> tuple[float, float]:
        rest = 1 - self.percentile / 100
        others = 1 - histogram.zeros / histogram.total
        most = others * min(10 * rest, max(2 * rest, MOST_CLIPPED))
        if self.options["symmetric"]:
            high = histogram.quantile(1 - min(rest, most), magnitude=True)
            return max(-high, histogram.low), min(high, histogram.high)
        sides = (histogram.low < 0) + (histogram.high > 0)
        tail = min(rest / 2, most / max(sides, 1))
        return histogram.quantile(tail), histogram.quantile(1 - tail)
