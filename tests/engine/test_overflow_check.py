"""``overflow="raise"``: a sum that could leave int32 is refused, whatever it is added to, and `out` stays as
it was.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowgemm

MAX, MIN = 2**31 - 1, -(2**31)
#: The deepest product of uint8 by uint8 that fits by itself.
DEEP = np.full((2, 33025), 255, np.uint8), np.full((33025, 3), 255, np.uint8)


def add(lhs, rhs, out, **more):
    return lowgemm.gemm(lhs, rhs, out=out, accumulate=True, overflow="raise", **more)


@pytest.mark.parametrize("packed", [False, True])
def test_second_of_two_products_that_fit_one_by_one(packed):
    lhs, rhs = DEEP
    out = np.zeros((2, 3), np.int32)
    right = lowgemm.pack_rhs(rhs) if packed else rhs
    assert (add(lhs, right, out) == 33025 * 255 * 255).all()
    with pytest.raises(OverflowError, match="and what it is added to"):
        add(lhs, right, out)
    assert (out == 33025 * 255 * 255).all()
    lowgemm.gemm(lhs, right, out=out, accumulate=True)
    assert (out == 2 * 33025 * 255 * 255 - 2**32).all()


def test_both_ends_and_each_row():
    lhs, rhs = np.array([[1], [10], [0]], np.uint8), np.array([[1, -1]], np.int8)
    for fits in ([MAX - 1, MIN + 1], [0, 0]):
        out = np.array([fits, [0, 0], [MAX, MIN]], np.int32)
        expected = out + lhs.astype(np.int32) @ rhs
        assert np.array_equal(add(lhs, rhs, out), expected)
    for row in ([MAX, 0], [0, MIN]):  # 1 more, or 1 less, would wrap
        out = np.array([row, [0, 0], [0, 0]], np.int32)
        before = out.copy()
        with pytest.raises(OverflowError, match="lhs, rhs"):
            add(lhs, rhs, out)
        assert np.array_equal(out, before)


def test_batches():
    lhs, rhs = np.ones((2, 1, 1, 1), np.uint8), np.ones((3, 1, 1), np.int8)
    out = np.zeros((2, 3, 1, 1), np.int32)
    out[1, 2] = MAX - 1
    assert add(lhs, rhs, out)[1, 2] == MAX
    with pytest.raises(OverflowError):
        add(lhs, rhs, out)
    assert out.sum(dtype=np.int64) == MAX + 5
    vector = np.array(MAX - 3, np.int32)  # 1-D operands: the result has no axes
    assert add(np.ones(3, np.uint8), np.ones(3, np.int8), vector) == MAX
    with pytest.raises(OverflowError):
        add(np.ones(3, np.uint8), np.ones(3, np.int8), vector)
    empty = np.zeros((0, 3), np.int32)
    assert add(np.zeros((0, 4), np.uint8), np.zeros((4, 3), np.int8), empty) is empty


def test_depth_0_adds_nothing():
    out = np.array([[MAX, MIN]], np.int32)
    assert add(np.zeros((1, 0), np.uint8), np.zeros((0, 2), np.int8), out).tolist() == [[MAX, MIN]]


def test_leading_biases_count():
    lhs, rhs = np.array([[1], [0]], np.uint8), np.array([[2, 2]], np.uint8)
    fits, wraps = lowgemm.BiasAddition([MAX - 2, 0]), lowgemm.BiasAddition([MAX - 1, 0])
    assert lowgemm.gemm(lhs, rhs, output=[fits], overflow="raise").tolist() == [[MAX, 2], [MAX - 2, 0]]
    with pytest.raises(OverflowError):
        lowgemm.gemm(lhs, rhs, output=[wraps], overflow="raise")
    rows = lowgemm.BiasAddition([-1, 0], axis=0)  # both biases are one sum
    assert (
        lowgemm.gemm(lhs[:1], rhs, output=[lowgemm.BiasAddition([-1], axis=0), fits], overflow="raise")[0, 0]
        == MAX - 1
    )
    with pytest.raises(OverflowError):
        lowgemm.gemm(lhs, rhs, output=[rows, lowgemm.BiasAddition([MAX, 0])], overflow="raise")
    # a later bias belongs to the pipeline, whose equations wrap
    late = lowgemm.gemm(lhs, rhs, output=[lowgemm.Clamp(0, 5), wraps], overflow="raise")
    assert late.tolist() == [[MIN, 2], [MAX - 1, 0]]


NUMBER = st.one_of(
    st.sampled_from([0, 1, -1, MAX, MIN, 128, 255]), st.integers(-300, 300), st.integers(MIN, MAX)
)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.tuples(*[st.integers(1, 5)] * 3),
    zeros=st.tuples(NUMBER, NUMBER),
    start=st.lists(NUMBER, min_size=1, max_size=4),
)  # fmt: skip
def test_what_is_let_through_is_exact(seed, shape, zeros, start):
    """Never a wrapped number: either the exact sums come, by Python's integers, or an error, and then `out`
    is untouched.
    """
    m, k, n = shape
    rng = np.random.default_rng(seed)
    lhs, rhs = rng.integers(0, 256, (m, k), dtype=np.uint8), rng.integers(-128, 128, (k, n), dtype=np.int8)
    out = rng.choice(np.array(start), (m, n)).astype(np.int32)
    before = out.copy()
    exact = (lhs.astype(object) - zeros[0]) @ (rhs.astype(object) - zeros[1]) + before.astype(object)
    try:
        add(lhs, rhs, out, lhs_zero_point=zeros[0], rhs_zero_point=zeros[1])
    except OverflowError:
        assert np.array_equal(out, before)
    else:
        assert (out.astype(object) == exact).all()
