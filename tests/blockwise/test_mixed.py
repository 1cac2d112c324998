"""LLM.int8() against its golden cases and against the definition."""

from __future__ import annotations

import pickle

import blockdata
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm.blockwise import MixedWeight, mixed_linear, quantize_vectorwise, reference

CASES = blockdata.manifest()["llm_int8"]["cases"]


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_golden(case):
    z, t = blockdata.arrays("llm_int8"), case["id"]
    a, w = z[f"{t}_A"], MixedWeight(z[f"{t}_W"].T)
    codes, scales, outliers = quantize_vectorwise(a, threshold=case["threshold"])
    np.testing.assert_array_equal(codes, z[f"{t}_CA"])
    np.testing.assert_array_equal(scales, z[f"{t}_SCA"])
    np.testing.assert_array_equal(outliers, z[f"{t}_outlier_cols"])
    np.testing.assert_array_equal(w.codes(), z[f"{t}_CB"].T)
    np.testing.assert_array_equal(w.scales, z[f"{t}_SCB"])
    np.testing.assert_array_equal(lowgemm.gemm(codes, w.packed), z[f"{t}_acc"])
    out = z[f"{t}_out"].astype(np.float32)
    found = mixed_linear(a, w, z[f"{t}_bias"], threshold=case["threshold"])
    np.testing.assert_allclose(found, z[f"{t}_exact"], rtol=1e-5)
    np.testing.assert_allclose(found, out, rtol=0, atol=1e-3 * np.abs(out).max())


def test_golden_large_sums():
    z = blockdata.arrays("llm_int8")
    np.testing.assert_array_equal(lowgemm.gemm(z["acc_A8"], z["acc_B8"].T), z["acc_exact"])
    assert (z["acc_float32_fallback"] != z["acc_exact"]).any()


@given(
    st.integers(0, 12), st.integers(1, 90), st.integers(1, 40), st.sampled_from([0.0, 1e-3, 2.0, 6.0]),
    st.booleans(), st.sampled_from(["elements", "columns"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_equals_the_definition(m, k, n, threshold, with_bias, without, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, (m, 2 * k)).astype(rng.choice([np.float16, np.float32, np.float64]))[:, ::2]
    x[rng.random(m) < 0.2] = 0
    weight = rng.standard_normal((n, k)).T
    bias = rng.standard_normal(n) if with_bias else None
    w = MixedWeight(weight)
    codes, scales, _ = reference.vectorwise(np.float32(weight.T))
    np.testing.assert_array_equal(w.codes(), codes.T)
    np.testing.assert_array_equal(w.scales, scales)
    expected = reference.mixed_linear(
        np.float32(x), codes.T, scales, None if bias is None else np.float32(bias), threshold, without
    )
    rows = reference.vectorwise(np.float32(x), threshold, without)
    for threads in (1, 2):
        options = {"threshold": threshold, "scale_without": without, "num_threads": threads}
        np.testing.assert_array_equal(mixed_linear(x, w, bias, **options), expected)
        for found, right in zip(quantize_vectorwise(x, **options), rows, strict=True):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("plain", [0, 1])
def test_a_scale_leaves_out_what_it_says(plain, monkeypatch):
    """The scale of row 1 is an element below the threshold in a column that is an outlier column by row 0."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", plain or numba.config.DISABLE_JIT)
    x = np.float32(np.arange(4 * 32).reshape(4, 32) % 7 - 3) / 2  # within 1.5
    x[0, 5], x[1, 5], x[3, 5] = -6, 5.5, -np.nextafter(np.float32(6), np.float32(0))
    codes, scales, outliers = quantize_vectorwise(x, threshold=6)
    np.testing.assert_array_equal(outliers, [5])
    np.testing.assert_array_equal(scales, [1.5, 5.5, 1.5, -x[3, 5]])
    assert (codes[:, 5] == 0).all() and np.abs(codes[1]).max() == 35 and np.abs(codes[0]).max() == 127
    codes, scales, outliers = quantize_vectorwise(x, threshold=6, scale_without="columns")
    np.testing.assert_array_equal(outliers, [5])
    np.testing.assert_array_equal(scales, [1.5] * 4)
    assert (codes[:, 5] == 0).all() and (np.abs(codes).max(axis=1) == 127).all()


@pytest.mark.parametrize(("threshold", "columns"), [(1e-60, [0, 2]), (1e60, []), (2.0**-149, [0, 2])])
def test_a_threshold_beyond_float32_keeps_its_meaning(threshold, columns):
    """A tiny one takes out every column that is not all zeros; it does not round to 0, which takes
    out none.
    """
    x = np.float32([[1, 0, -3e30], [2.0**-149, 0, 0]])
    codes, scales, outliers = quantize_vectorwise(x, threshold=threshold)
    np.testing.assert_array_equal(outliers, columns)
    np.testing.assert_array_equal(scales, [0, 0] if columns else [np.float32(3e30), 0])
    assert (codes[:, columns] == 0).all()
    w = MixedWeight(np.eye(3))
    np.testing.assert_allclose(mixed_linear(x, w, threshold=threshold)[0, [1, 2]], x[0, [1, 2]], rtol=1e-6)


def test_leaving_columns_out_loses_less():
    """What the option is for: the table in docs/blockwise.md."""
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((64, 256)), rng.standard_normal((256, 32))
    x[:, [3, 70, 111]] *= 5
    w = MixedWeight(weight)
    exact = x @ (w.codes() * (w.scales / 127.0))
    errors = [np.abs(mixed_linear(x, w, scale_without=s) - exact).mean() for s in ("elements", "columns")]
    assert errors[1] < 0.9 * errors[0]


def test_blocks_of_rows_and_threads(monkeypatch):
    from lowgemm.blockwise import job, mixed

    monkeypatch.setattr(mixed, "BLOCK_BYTES", 4 * 50 * 7)
    monkeypatch.setattr(job, "ELEMENTS_PER_THREAD", 1)
    rng = np.random.default_rng(0)
    x, w = rng.standard_t(2, (3, 11, 64)), MixedWeight(rng.standard_normal((64, 50)))
    expected = reference.mixed_linear(np.float32(x.reshape(33, 64)), w.codes(), w.scales)
    np.testing.assert_array_equal(mixed_linear(x, w, num_threads=2), expected.reshape(3, 11, 50))
    # threshold 0: which columns are outliers would depend on the other rows
    w2 = pickle.loads(pickle.dumps(w))
    expected = reference.mixed_linear(np.float32(x[0]), w.codes(), w.scales, threshold=0)
    np.testing.assert_array_equal(mixed_linear(x[0, 0], w2, threshold=0), expected[0])


def test_outliers_are_worth_it():
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((32, 256)), rng.standard_normal((256, 64))
    x[:, [3, 70]] *= 40
    right = x @ weight
    errors = [np.abs(mixed_linear(x, weight, threshold=t) - right).mean() for t in (6.0, 0.0)]
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("row", [[0.0, -0.0], [2.0**-130, 2.0**-149], [2.0**-119, 1e-38], [3e38, 1.0]])
def test_extreme_rows(row):
    x = np.float32([row])
    codes, scales, _ = quantize_vectorwise(x)
    expected, expected_scales, _ = reference.vectorwise(x)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(scales, expected_scales)


W = np.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: quantize_vectorwise([[1, 2]]), TypeError, "x"),
        (lambda: quantize_vectorwise(1.0), ValueError, "x"),
        (lambda: quantize_vectorwise([[np.nan, 1.0]]), ValueError, "x"),
        (lambda: quantize_vectorwise([[1.0], [1e300]], threshold=6), ValueError, "x"),
        (lambda: quantize_vectorwise([[1.0]], threshold=-1), ValueError, "threshold"),
        (lambda: quantize_vectorwise([[1.0]], threshold=np.inf), ValueError, "threshold"),
        (lambda: quantize_vectorwise([[1.0]], threshold="6"), TypeError, "threshold"),
        (lambda: quantize_vectorwise([[1.0]], scale_without="rows"), ValueError, "scale_without"),
        (lambda: quantize_vectorwise([[1.0]], scale_without=None), TypeError, "scale_without"),
        (lambda: mixed_linear([[1.0, 2.0, 3.0]], W, scale_without=b"columns"), TypeError, "scale_without"),
        (lambda: mixed_linear([[1.0, 2.0]], W), ValueError, "x"),
        (lambda: mixed_linear([[1.0, 2.0, np.inf]], W), ValueError, "x"),
        (lambda: mixed_linear([[1.0, 2.0, 3.0]], np.ones(3)), ValueError, "weight"),
        (lambda: mixed_linear([[1.0, 2.0, 3.0]], np.ones((3, 2), int)), TypeError, "weight"),
        (lambda: mixed_linear([[1.0, 2.0, 3.0]], W * np.nan), ValueError, "weight"),
        (lambda: mixed_linear([[1.0, 2.0, 3.0]], W, [1.0]), ValueError, "bias"),
        (lambda: mixed_linear([[1.0, 2.0, 3.0]], W, ["a", "b"]), TypeError, "bias"),
        (lambda: mixed_linear([[1.0, 2.0, 3.0]], W, num_threads=0), ValueError, "num_threads"),
    ],
)
def test_bad_arguments(call, error, argument):
    with pytest.raises(error, match=f"^{argument}:"):
        call()
