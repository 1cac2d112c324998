"""Compiled scores of candidate ranges agree with their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm.quantization import choose_qparams, scores
from lowgemm.quantization.histogram import Histogram
from lowgemm.quantization.search import least


@pytest.mark.parametrize("name", ["squared_error", "divergence"])
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.booleans(), st.sampled_from([50, 5000]))
def test_compiled_scores_agree_with_the_definitions(name, seed, bits, symmetric, count):
    rng = np.random.default_rng(seed)
    h = Histogram(600)
    h.observe(rng.standard_normal(count) * 3 + rng.integers(-4, 5))
    f = np.append(rng.uniform(0, 1, 6), [0, 1])
    p = choose_qparams(h.low * f, h.high * f[::-1], bits=bits, symmetric=symmetric, axis=0)
    expected = scores.scores_reference(name, *h.points(), h.width, p)
    got = scores.scores(name, *h.points(), h.width, p)
    assert np.array_equal(np.isinf(got), np.isinf(expected))
    finite = np.isfinite(expected)
    assert np.allclose(got[finite], expected[finite], rtol=1e-9, atol=1e-9)


def test_squared_error_of_a_known_case():
    p = choose_qparams([-8.0], [7.0], bits=4, axis=0)  # steps of 1
    places, counts = np.array([2.0, 2.25, 9.0]), np.array([10.0, 2.0, 3.0])
    got = scores.scores("squared_error", places, counts, 2.0**-20, p)
    assert np.isclose(got[0], 2 * 0.25**2 + 3 * 2.0**2, rtol=1e-4)


def test_divergence_of_a_known_case():
    p = choose_qparams([0.0], [3.0], "uint8", bits=2, axis=0)  # integers 0, 1, 2, 3
    places = np.arange(0.125, 4, 0.25)
    counts = np.ones(16)
    counts[3], counts[4] = 3, 1  # 0.875 and 1.125 both become 1: four bins, 3 + 1 + 1 + 1 = 6 in all
    got = scores.scores("divergence", places, counts, 0.25, p)[0]
    inside = places <= 3.0
    pp = counts[inside]
    pp[-1] += counts[~inside].sum()
    q = counts[inside].copy()
    q[2:6] = 6 / 4
    pp, q = pp / pp.sum(), q / q.sum()
    assert np.isclose(got, (pp * np.log(pp / q)).sum())


@settings(deadline=None)
@given(st.floats(-10, -0.1), st.floats(0.1, 10), st.floats(0.01, 1), st.floats(0.01, 1))
def test_search_finds_the_valley_of_a_simple_score(low, high, f, g):
    best = low * f, high * g

    def score(lows, highs):
        return (lows - best[0]) ** 2 + (highs - best[1]) ** 2

    found = least(score, low, high, False)
    assert abs(found[0] - best[0]) <= 0.03 * abs(low) and abs(found[1] - best[1]) <= 0.03 * abs(high)
    assert least(score, 0.0, 0.0, False) == (0.0, 0.0)
