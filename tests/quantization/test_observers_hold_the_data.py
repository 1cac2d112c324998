"""No observer is ever far worse than MinMax, whatever the data look like, but for outliers: few values,
clipped on purpose.
"""

import numpy as np
import pytest

from lowgemm.quantization import Entropy, MeanSquaredError, MinMax, MovingAverage, Percentile, sqnr

KINDS = [MovingAverage, Percentile, MeanSquaredError, Entropy]
#: Values other than 0 that may be clipped: 1%, and what the middle of a bin or a rank is off.
CLIPPED = 0.0105
#: Decibels (two bits) that may be lost in all, where there are no outliers.
LOST = 12.0
#: Decibels that the values may lose which are not clipped: chance, as steps of another size hit a spike or
#: not.
KEPT = 4.0


def shapes(seed, n=20_000):
    """Data without outliers."""
    g = np.random.default_rng(seed)
    normal = g.standard_normal(n)
    half = g.random(n) < 0.5
    return {
        "normal": normal,
        "uniform": g.uniform(-1, 3, n),
        "shifted": normal * 0.5 + 3,
        "shifted far": normal * 0.01 + 100,
        "shifted down": normal * 0.3 - 7,
        "two clusters": np.where(half, -5, 4) + 0.1 * normal,
        "two values": np.where(half, -5.0, 4.0),
        "a cluster at 0 and one away": np.where(g.random(n) < 0.3, 0.01 * normal, 0.5 * normal + 9),
        "a spike below a cluster": np.where(
            g.random(n) < 0.4, 1.0, np.where(half, g.uniform(0, 1, n), normal + 10)
        ),
        "one-sided": np.maximum(normal, 0),
        "one-sided, away from 0": g.exponential(1, n) + 1,
        "negative": -np.abs(normal),
        "few levels": g.integers(0, 17, n) / 16,
        "two levels": half * 1.0,
        "constant": np.full(n, 3.0),
        "constant, small": np.full(n, -1e-3),
        "few values": np.array([1.0, 2.0, 5.0, -3.0]),
        "a small sample": normal[:200] + 3,
    }


def sparse(seed, n=20_000):
    """Nearly all zeros."""
    g = np.random.default_rng(seed)
    normal = g.standard_normal(n)
    return {
        "sparse": normal * (g.random(n) < 0.01),
        "very sparse": normal * (np.arange(n) % 4000 == 0),
        "one value": 7.0 * (np.arange(n) == n // 2),
        "sparse and shifted": (normal * 0.1 + 3) * (g.random(n) < 0.002),
    }


def heavy(seed, n=20_000):
    """Data with outliers."""
    g = np.random.default_rng(seed)
    return {
        "laplace": g.laplace(size=n),
        "student": g.standard_t(3, n),
        "cauchy": g.standard_cauchy(n),
        "log-normal": g.lognormal(0, 2, n),
        "one outlier": np.append(g.standard_normal(n), 60.0),
    }


def observed(kind, x, options, batches):
    observer = kind(**options)
    for part in np.array_split(x, batches):
        observer.observe(part)
    return observer.qparams()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_no_observer_is_far_worse_than_min_max(kind, bits, symmetric, per_channel):
    options = {"bits": bits, "symmetric": symmetric}
    for seed in range(1 if per_channel else 3):
        for family in (shapes, sparse, heavy):
            for name, x in family(seed).items():
                # a moving average of batches is about batches that look like the data, so they are large here
                batches = 4 if family is shapes and x.size > 1000 else 1
                more = {"axis": 1} if per_channel else {}
                p, plain = (
                    observed(k, x[:, None] if per_channel else x, options | more, batches)
                    for k in (kind, MinMax)
                )
                column = x[:, None] if per_channel else x
                case = f"{name}, seed {seed}: {p.low} to {p.high}"
                inside = (x >= p.low - p.scale / 2) & (x <= p.high + p.scale / 2)
                of_min_max, got = sqnr(column, plain), sqnr(column, p)
                if kind is MeanSquaredError:  # judged by what it promises
                    assert got > min(of_min_max - 0.3, 100), case
                    continue
                if kind is not MovingAverage or family is sparse:
                    assert 1 - inside[x != 0].mean() <= CLIPPED, case
                if family is not heavy:
                    assert got > min(of_min_max - LOST, 100), case
                else:
                    kept = column[inside]
                    assert sqnr(kept, p) > min(sqnr(kept, plain) - KEPT, 100), case


def test_entropy_keeps_data_away_from_zero():
    """Ranges of a few bins, onto whose ends nearly all values were moved, had a divergence near 0 and were
    chosen.
    """
    for seed in range(20):
        g = np.random.default_rng(seed)
        for x in (
            g.standard_normal(20_000) * 0.5 + 3,
            np.where(g.random(20_000) < 0.5, -5, 4) + g.standard_normal(20_000),
        ):
            for dtype in ("int8", "uint8"):
                p = Entropy(dtype).observe(x).qparams()
                assert sqnr(x, p) > 40
                assert ((x < p.low - p.scale) | (x > p.high + p.scale)).mean() < 0.01


def test_percentile_of_many_zeros_keeps_the_others():
    x = np.zeros(100_000)
    x[:5] = [1, 2, -3, 4, 5]
    low, high = Percentile().observe(x).range()
    assert low < -2.9 and high > 4.9
    asked = np.concatenate(
        [np.zeros(1000), np.arange(1, 1001)]
    )  # half zeros: the percentile is of all values
    assert abs(Percentile(percentile=90).observe(asked).range()[1] - 900) < 1.5
