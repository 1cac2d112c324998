"""The histogram does not depend on how values are split into batches, and its quantiles are near the true
ones.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowgemm.quantization.histogram import Histogram, count_reference
from lowgemm.quantization.loops import EXPONENT_MIN, WORTHWHILE, run_count

values = hnp.arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.one_of(st.floats(-1e30, 1e30), st.floats(-4, 4), st.just(0.0)),
)


def state(h):
    return h.low, h.high, h.zeros, h.exponent, h.first, h.counts.tolist()


def direct(x, bins):
    """The definition: the smallest power-of-two width for which the range touches at most `bins`
    intervals.
    """
    x = np.where(np.abs(x) < 2.0**-160, 0.0, x)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    exponent = EXPONENT_MIN
    while np.floor(high / 2.0**exponent) - np.floor(low / 2.0**exponent) >= bins:
        exponent += 1
    first, last = (int(np.floor(v / 2.0**exponent)) for v in (low, high))
    index = np.floor(x[x != 0] / 2.0**exponent).astype(int)
    counts = [int((index == i).sum()) for i in range(first, last + 1)]
    return low, high, int((x == 0).sum()), exponent, first, counts


@settings(deadline=None)
@given(values, st.integers(16, 40), st.lists(st.integers(0, 60), max_size=4))
def test_batches_and_merges_give_the_definition(x, bins, cuts):
    expected = direct(x, bins)
    batches = np.split(x, sorted(min(c, x.size) for c in cuts))
    streamed, merged = Histogram(bins), Histogram(bins)
    for batch in batches:
        streamed.observe(batch)
        part = Histogram(bins)
        part.observe(batch)
        merged.merge(part)
    assert state(streamed) == state(merged) == expected
    assert streamed.total == x.size
    backwards = Histogram(bins)
    for batch in batches[::-1]:
        part = Histogram(bins)
        part.observe(batch)
        part.merge(backwards)
        backwards = part
    assert state(backwards) == expected


@settings(deadline=None)
@given(values, st.floats(0, 1), st.booleans())
def test_quantiles_are_within_a_bin(x, fraction, magnitude):
    h = Histogram(32)
    h.observe(x)
    value = h.quantile(fraction, magnitude)
    x = np.abs(x) if magnitude else x
    slack = h.width * (1 + 1e-9)
    count = x.size
    # Some value's neighbourhood of one bin holds the quantile: at most `fraction` of all lie clearly below
    # it, at least `fraction` do not lie clearly above it.
    assert (x < value - slack).sum() <= fraction * count + 1e-6
    assert (x <= value + slack).sum() >= fraction * count - 1e-6


def test_points_stand_for_the_values():
    h = Histogram(64)
    x = np.random.default_rng(0).uniform(-3, 5, 1000)
    h.observe(np.append(x, [0.0, 0.0]))
    places, weights = h.points()
    assert weights.sum() == 1000 and weights.min() >= 1
    assert np.abs(places[:, None] - x).min(axis=0).max() <= h.width / 2
    assert abs(places @ weights - x.sum()) <= 1000 * h.width / 2


def test_float32_and_tiny_values():
    h = Histogram(16)
    h.observe(np.array([1e-45, -1e-45], np.float32))
    assert h.total == 2 and h.counts.sum() == 2
    h.observe(np.array([1e-300]))
    h.observe(np.array([3e38], np.float32))
    assert h.total == 4 and h.high == np.float32(3e38) and h.zeros == 1
    h = Histogram(16)
    h.observe(np.array([-3e-306, 2e-200, 1.7e19]))  # as a bin's index, the first would underflow to bin 0
    assert h.zeros == 2 and h.low == 0.0 and h.counts.sum() == 1


def test_quantile_is_inside_the_range():
    h = Histogram(16)
    h.observe(np.array([-1e-310, 5.0, 5.0]))
    assert h.quantile(0.0) == 0.0 and h.quantile(1.0) == 5.0


@settings(deadline=None)
@given(values, st.sampled_from([np.float32, np.float64]))
def test_compiled_count_equals_the_definition(x, dtype):
    x = x.astype(dtype)
    h = Histogram(64)
    h.observe(x)
    counts = np.zeros_like(h.counts)
    zeros = run_count(x, h.exponent, h.first, counts)
    expected = np.zeros_like(h.counts)
    assert zeros == count_reference(x, h.exponent, h.first, expected) == h.zeros
    assert np.array_equal(counts, expected) and np.array_equal(counts, h.counts)


def test_large_batches_count_the_same():
    x = np.random.default_rng(0).standard_normal((WORTHWHILE // 64, 128)).astype(np.float32)[:, ::2]
    large, small = Histogram(256), Histogram(256)
    large.observe(x)
    for row in x:
        small.observe(row)
    assert state(large) == state(small)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("size", [4, WORTHWHILE])
def test_what_has_no_bin_is_refused(bad, size):
    x = np.ones(size)
    x[1] = bad
    with pytest.raises(ValueError, match="x: expected finite"):
        Histogram(16).observe(x)
