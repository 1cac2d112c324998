"""Calibration: merging equals one pass, ranges are the ones promised, bad data is refused."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowgemm.quantization import (
    Entropy,
    MeanSquaredError,
    MinMax,
    MovingAverage,
    Percentile,
    calibrate,
    choose_qparams,
    fake_quantize,
    progress_bar,
)

KINDS = [MinMax, MovingAverage, Percentile, MeanSquaredError, Entropy]
batch = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.just(3)),
    elements=st.floats(-1000, 1000, width=32) | st.just(0.0),
)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make(kind, **options):
    if kind in (Percentile, MeanSquaredError, Entropy):
        options.setdefault("bins", 64)
    if kind is MovingAverage:
        options.setdefault("momentum", 0.3)
    return kind(**options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [None, 1])
@settings(max_examples=15, deadline=None)
@given(st.lists(batch, min_size=1, max_size=5), st.integers(0, 5), st.booleans())
def test_merge_equals_one_pass(kind, axis, batches, cut, symmetric):
    options = {"axis": axis, "symmetric": symmetric, "bits": 4}
    once, first, second = (make(kind, **options) for _ in range(3))
    for i, x in enumerate(batches):
        once.observe(x)
        (first if i < cut else second).observe(x)
    second = pickle.loads(pickle.dumps(second))  # as from another process
    assert first.merge(second) is first
    if once.channels is None:
        with pytest.raises(ValueError, match="nothing was observed"):
            first.qparams()
        return
    exact = kind is not MovingAverage
    for a, b in zip(once.range(), first.range(), strict=True):
        assert np.array_equal(a, b) if exact else np.allclose(a, b, rtol=1e-12, atol=1e-9)
    if exact:
        assert once.qparams() == first.qparams()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_observed_as_if_alone(kind):
    x = normal((50, 4, 3)) * np.array([1, 10, 0.1, 3], np.float32)[:, None]
    together = make(kind, axis=1).observe(x[:20]).observe(x[20:])
    low, high = together.range()
    assert low.shape == (4,) and together.qparams().axis == 1
    for c in range(4):
        alone = make(kind).observe(x[:20, c]).observe(x[20:, c])
        assert alone.range() == (low[c], high[c])
        assert alone.qparams().scale == together.qparams().scale[c]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [None, 1])
def test_nan_and_infinity_are_an_error_or_ignored(kind, bad, axis):
    x = normal((6, 3))
    spoilt = x.copy()
    spoilt[2, 1] = bad
    observer = make(kind, axis=axis).observe(x)
    before = observer.range()
    count = "1 NaN and 0 infinite" if np.isnan(bad) else "0 NaN and 1 infinite"
    with pytest.raises(ValueError, match=f"x: expected finite numbers, got {count}"):
        observer.observe(spoilt)
    assert np.array_equal(observer.range(), before)

    lenient = make(kind, axis=axis, nonfinite="ignore").observe(spoilt)
    assert lenient.ignored == 1
    if axis is None:
        assert lenient.range() == make(kind).observe(np.delete(x.ravel(), 7)).range()
    else:
        assert lenient.range()[0][1] == make(kind).observe(np.delete(x[:, 1], 2)).range()[0]
    lenient.merge(make(kind, axis=axis, nonfinite="ignore").observe(spoilt))
    assert lenient.ignored == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_without_any_finite_value_is_an_error_in_the_end(kind):
    x = normal((6, 3))
    x[:, 2] = np.nan
    observer = make(kind, axis=1, nonfinite="ignore").observe(x)
    with pytest.raises(ValueError, match="none in channel 2"):
        observer.qparams()
    observer.observe(normal((6, 3)))
    assert np.isfinite(observer.range()).all()


def test_min_max_is_the_smallest_and_largest():
    a, b = normal((3, 5)), normal((2, 5), 1)
    both = np.concatenate([a, b])
    observer = MinMax("uint8").observe(a).observe(b)
    assert observer.range() == (both.min(), both.max())
    assert observer.qparams() == choose_qparams(both.min(), both.max(), "uint8")


def test_moving_average_is_the_weighted_mean_of_batches():
    batches, c = [normal(50, i) * (i + 1) for i in range(5)], 0.2
    weights = c * (1 - c) ** np.arange(4, -1, -1)
    observer = MovingAverage(momentum=c)
    for x in batches:
        observer.observe(x)
    low, high = observer.range()
    assert np.isclose(low, weights @ [x.min() for x in batches] / weights.sum())
    assert np.isclose(high, weights @ [x.max() for x in batches] / weights.sum())
    assert MovingAverage(momentum=1.0).observe(batches[0]).observe(batches[1]).range()[1] == batches[1].max()


@pytest.mark.parametrize("symmetric", [False, True])
def test_percentile_is_near_numpys(symmetric):
    x = normal(20_000) - 0.3
    observer = Percentile(percentile=99, symmetric=symmetric).observe(x[:7000]).observe(x[7000:])
    low, high = observer.range()
    width = observer.histograms[0].width

    def near(value, x, percentile):
        """Within a bin of the neighbours in rank: values in the tail are further apart than bins."""
        below, above = np.percentile(x, [percentile - 100 / x.size, percentile + 100 / x.size])
        return below - width <= value <= above + width

    if symmetric:
        assert near(high, np.abs(x), 99) and low == -high
    else:
        assert near(low, x, 0.5) and near(high, x, 99.5)
    everything = Percentile(percentile=100).observe(x).range()
    assert everything == (x.min(), x.max())


def mse(x, qparams):
    return float(np.mean((x.astype(np.float64) - fake_quantize(x, qparams)) ** 2))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", ["normal", "laplace", "outliers", "relu", "uniform"])
def test_mean_squared_error_beats_a_scan_of_clipped_ranges(bits, symmetric, shape):
    rng = np.random.default_rng(3)
    x = {
        "normal": lambda: rng.standard_normal(20_000),
        "laplace": lambda: rng.laplace(size=20_000) + 0.5,
        "outliers": lambda: np.append(rng.standard_normal(20_000), [40, -25]),
        "relu": lambda: np.maximum(rng.standard_normal(20_000), 0),
        "uniform": lambda: rng.uniform(-1, 3, 20_000),
    }[shape]().astype(np.float32)
    options = {"bits": bits, "symmetric": symmetric}
    got = mse(x, MeanSquaredError(**options).observe(x).qparams())
    assert got <= mse(x, MinMax(**options).observe(x).qparams()) * 1.001
    for f in np.linspace(0.02, 1, 50):  # within 2%: the search scores a histogram, this scan the values
        assert got <= mse(x, choose_qparams(x.min() * f, x.max() * f, **options)) * 1.02


def test_entropy_clips_far_outliers_and_keeps_a_uniform_range():
    rng = np.random.default_rng(0)
    bulk = rng.standard_normal(200_000).astype(np.float32)
    low, high = Entropy(symmetric=True).observe(np.append(bulk, [60.0])).range()
    assert 2.5 < high < 15 and low == -high
    flat = rng.uniform(-1, 1, 200_000)
    low, high = Entropy(symmetric=True).observe(flat).range()
    assert high > 0.9
    relu = np.maximum(bulk, 0)
    low, high = Entropy("uint8").observe(np.append(relu, [60.0])).range()
    assert low == 0 and 2.5 < high < 15


@pytest.mark.parametrize("kind", KINDS)
def test_constant_and_zero_tensors(kind):
    assert make(kind).observe(np.zeros(5)).qparams().scale == 1.0
    p = make(kind, dtype="uint8").observe(np.full(9, 3.0)).qparams()
    assert p.zero_point == 0 and np.isclose(fake_quantize(3.0, p), 3.0, atol=float(p.scale) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_named(kind):
    observer = make(kind, axis=1).observe(normal((2, 3)))
    with pytest.raises(ValueError, match="x: expected 3 channels on axis 1"):
        observer.observe(normal((2, 4)))
    with pytest.raises(ValueError, match="x: expected an axis 1"):
        observer.observe(normal(3))
    with pytest.raises(TypeError, match="x: expected real numbers"):
        observer.observe(["a"])
    with pytest.raises(TypeError, match="x: expected no masked"):
        observer.observe(np.ma.array([[1.0, 2.0, 3.0]], mask=[[0, 1, 0]]))
    with pytest.raises(ValueError, match="x: expected numbers that float32 can hold"):
        observer.observe(np.array([[1e300, 1, 1]]))
    with pytest.raises(TypeError, match=f"other: expected a {kind.__name__}"):
        observer.merge(3)
    with pytest.raises(ValueError, match="other: expected the same options"):
        observer.merge(make(kind, axis=0))
    with pytest.raises(ValueError, match="other: expected 3 channels"):
        observer.merge(make(kind, axis=1).observe(normal((2, 4))))
    with pytest.raises(ValueError, match="nonfinite: expected 'raise' or 'ignore'"):
        kind(nonfinite="drop")
    with pytest.raises(ValueError, match="nothing was observed"):
        kind().observe(np.zeros((0, 3))).qparams()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="momentum: expected more than 0 and at most 1"):
        MovingAverage(momentum=0)
    with pytest.raises(ValueError, match="percentile: expected more than 0 and at most 100"):
        Percentile(percentile=101)
    with pytest.raises(TypeError, match="percentile: expected a number"):
        Percentile(percentile="all")
    with pytest.raises(ValueError, match="bins: expected 16"):
        Entropy(bins=3)
    with pytest.raises(TypeError, match="observer: expected an Observer"):
        calibrate("minmax", [])


def test_calibrate_runs_the_function_and_shows_progress(capsys):
    batches = [normal(10, i) for i in range(4)]
    expected = MinMax().observe(np.concatenate(batches) * 2).qparams()
    assert calibrate(MinMax(), batches, function=lambda x: 2 * x, progress=True) == expected
    assert capsys.readouterr().err.rstrip().startswith("calibrating [####################] 4/4")
    seen = []

    def wrap(items):
        for item in items:
            seen.append(len(item))
            yield item

    calibrate(MinMax(), iter(batches), progress=wrap)
    assert seen == [10] * 4
    assert list(progress_bar(iter("abc"), "letters", interval=0)) == ["a", "b", "c"]
    assert capsys.readouterr().err.endswith("s\n")
