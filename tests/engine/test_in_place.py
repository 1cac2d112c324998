"""A few rows by an rhs that is read where it lies, against the definition; which calls go that way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm import config, kernels, reference
from lowgemm.engine import in_place, planner, threads

ABLE = [k for k in kernels.all_kernels() if in_place.rows_in_place(k) and not kernels.why_not(k)]
DTYPES = (np.uint8, np.int8)


def numbers(rng, dtype, shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def laid_out(a: np.ndarray, layout: str) -> np.ndarray:
    """The same matrix with contiguous rows or columns, also with gaps between them, or with neither."""
    k, n = a.shape
    if layout == "columns":
        return np.asfortranarray(a)
    if layout == "rows apart":
        wide = np.zeros((k, n + 7), a.dtype)
        wide[:, 3 : n + 3] = a
        return wide[:, 3 : n + 3]
    if layout == "columns apart":
        return laid_out(np.ascontiguousarray(a.T), "rows apart").T
    if layout == "rows backwards":
        return np.ascontiguousarray(a[::-1])[::-1]
    if layout == "neither":
        wide = np.zeros((k, 2 * n), a.dtype)
        wide[:, ::2] = a
        return wide[:, ::2]
    return a


LAYOUTS = ("rows", "columns", "rows apart", "columns apart", "rows backwards", "neither")


@pytest.fixture
def always(monkeypatch):
    """Small products too, by a plan made anew."""
    monkeypatch.setattr(planner, "IN_PLACE_LEAST", 0)
    monkeypatch.setattr(threads, "MACS_PER_THREAD", 1)


def explained(a, b, **options) -> str:
    return str(lowgemm.explain(a, b, **options))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_shape(data):
    draw = data.draw
    kernel = draw(st.sampled_from(ABLE)) if ABLE else None
    m, k, n = draw(st.integers(1, 5)), draw(st.integers(1, 200)), draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    a = numbers(rng, draw(st.sampled_from(DTYPES)), (m, 2 * k))[:, :: draw(st.sampled_from((1, 2)))][:, :k]
    b = laid_out(numbers(rng, draw(st.sampled_from(DTYPES)), (k, n)), draw(st.sampled_from(LAYOUTS)))
    zeros = draw(
        st.sampled_from((
            {}, {"lhs_zero_point": 131}, {"lhs_zero_point": -(2**31), "rhs_zero_point": 2**31 - 1},
            {"lhs_zero_point": np.arange(m) - 2, "rhs_zero_point": np.arange(n) * 7},
        ))
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "IN_PLACE_LEAST", 0)
        patch.setattr(threads, "MACS_PER_THREAD", 1)
        if kernel is not None:
            patch.setattr(config, "kernel", kernel.name)
        expected = reference.gemm(a, b, **zeros)
        for count in (1, 2, 3):
            np.testing.assert_array_equal(lowgemm.gemm(a, b, num_threads=count, **zeros), expected)


@pytest.mark.skipif(not ABLE, reason="no kernel here reads an rhs in place")
@pytest.mark.parametrize("kernel", [k.name for k in ABLE])
def test_which_calls(kernel, always, monkeypatch):
    monkeypatch.setattr(config, "kernel", kernel)
    most = in_place.rows_in_place(kernels.by_name(kernel))
    rng = np.random.default_rng(1)
    b = numbers(rng, np.int8, (96, 160))
    for m in (1, most, most + 1):
        a = numbers(rng, np.uint8, (m, 96))
        for layout in LAYOUTS:
            found = "where it lies" in explained(a, laid_out(b, layout))
            assert found == (m <= most and layout != "neither"), (m, layout)
        assert "where it lies" not in explained(a, lowgemm.pack_rhs(b))
    narrow = b[:, : 4 * kernels.by_name(kernel).lanes - 1]
    assert "where it lies" not in explained(b[:1, :96].view(np.uint8), np.ascontiguousarray(narrow))


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_stages_batches_and_results(layout, always):
    rng = np.random.default_rng(2)
    a, b = numbers(rng, np.uint8, (3, 2, 130)), laid_out(numbers(rng, np.int8, (130, 200)), layout)
    stack = np.stack([b, b[::-1], b[:, ::-1]])
    if layout == "columns":
        stack = np.ascontiguousarray(stack.transpose(0, 2, 1)).transpose(0, 2, 1)
    output = [lowgemm.BiasAddition(np.arange(200)), lowgemm.Requantize(1e-3, 3, np.int8)]
    options = {"lhs_zero_point": 128, "rhs_zero_point": -3}
    expected = reference.gemm(a, stack, output=output, **options)
    np.testing.assert_array_equal(lowgemm.gemm(a, stack, output=output, **options), expected)
    for x in (a[0], a[0, 0]):
        out = np.full((*x.shape[:-1], 200), 7, np.int32)
        lowgemm.gemm(x, b, out=out, accumulate=True, **options)
        np.testing.assert_array_equal(out, reference.gemm(x, b, **options) + 7)
    wide = np.zeros((2, 400), np.int32)
    lowgemm.gemm(a[1], b, out=wide[:, ::2])
    np.testing.assert_array_equal(wide[:, ::2], reference.gemm(a[1], b))
    assert not wide[:, 1::2].any()


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_large_one_on_every_number_of_threads(layout):
    rng = np.random.default_rng(3)
    b = laid_out(numbers(rng, np.uint8, (2000, 1571)), layout)
    for m in (1, 4):
        a = numbers(rng, np.int8, (m, 2000))
        expected = reference.gemm(a, b, lhs_zero_point=5, rhs_zero_point=9)
        for count in (1, 2):
            found = lowgemm.gemm(a, b, lhs_zero_point=5, rhs_zero_point=9, num_threads=count)
            np.testing.assert_array_equal(found, expected)
