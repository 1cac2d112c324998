"""Linear layers on float inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm.nn import dynamic_linear, reference, weight_only_linear


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_dynamic_linear_gives_the_bits_of_its_definition(seed, with_bias):
    g = np.random.default_rng(seed)
    rows, inputs, outputs = g.integers(0, 40), *g.integers(1, 100, 2)
    size = 2.0 ** g.uniform(-130, 60, (rows, 1))  # subnormal rows among them
    x = (g.standard_normal((rows, inputs)) * size * g.integers(0, 2, (rows, inputs))).astype(np.float32)
    w = g.integers(-128, 128, (inputs, outputs)).astype(np.int8)
    scale = 2.0 ** g.uniform(-10, 0, outputs)
    bias = g.standard_normal(outputs).astype(np.float32) if with_bias else None
    expected = reference.dynamic_linear(x, w, scale, bias)
    for weight in (w, lowgemm.pack_rhs(w)):
        np.testing.assert_array_equal(dynamic_linear(x, weight, scale, bias), expected)


def test_dynamic_linear_is_a_product_with_a_scale_of_the_row_and_one_of_the_column():
    g = np.random.default_rng(7)
    x, w = g.standard_normal((9, 50)).astype(np.float32), g.integers(-128, 128, (50, 20)).astype(np.int8)
    scale, bias = g.random(20), g.standard_normal(20)
    largest = np.abs(x).max(axis=1)
    codes = np.rint(x * (np.float32(127) / largest)[:, None]).astype(np.int8)
    stage = lowgemm.Dequantize(scale, row_scale=largest / np.float32(127), bias=bias)
    np.testing.assert_array_equal(lowgemm.gemm(codes, w, output=stage), dynamic_linear(x, w, scale, bias))


def test_dynamic_linear_in_blocks_and_close_to_float(monkeypatch):
    monkeypatch.setattr("lowgemm.nn.dynamic.BLOCK_BYTES", 1000)
    g = np.random.default_rng(0)
    x = g.standard_normal((3, 17, 300)).astype(np.float32)
    w = g.integers(-127, 128, (300, 20)).astype(np.int8)
    y = dynamic_linear(x, w, 0.01)
    np.testing.assert_array_equal(
        y.reshape(51, 20), reference.dynamic_linear(x.reshape(51, 300), w, np.full(20, 0.01), None)
    )
    real = x @ (w * 0.01)
    assert np.sqrt(((y - real) ** 2).mean() / (real**2).mean()) < 0.01


def test_out():
    g = np.random.default_rng(1)
    x, w = g.standard_normal((2, 3, 50)).astype(np.float32), g.integers(-128, 128, (50, 20)).astype(np.int8)
    expected = dynamic_linear(x, w, 0.25, np.arange(20))
    for out in (np.zeros((2, 3, 20), np.float32), np.zeros((2, 6, 20), np.float32)[:, ::2]):
        assert dynamic_linear(x, w, 0.25, np.arange(20), out=out) is out
        np.testing.assert_array_equal(out, expected)
    for wrong, error in ((np.zeros((6, 20), np.float32), ValueError), (np.zeros((2, 3, 20)), TypeError)):
        with pytest.raises(error, match=r"^out:"):
            dynamic_linear(x, w, 0.25, out=wrong)
    with pytest.raises(ValueError, match=r"^out: expected no overlap with x"):
        dynamic_linear(x[0], np.ones((50, 50), np.int8), 1.0, out=x[0])


@pytest.mark.parametrize("depth", [132_104, 132_105, 300_000])
def test_sums_that_int32_cannot_hold(depth):
    """132,104 products of 127 and -128 are the most that fit."""
    x, w = np.ones((2, depth), np.float32), np.full((depth, 2), -128, np.int8)
    w[:, 1] = 127
    x[1] = -1
    for weight in (w, lowgemm.pack_rhs(w)):
        y = dynamic_linear(x, weight, 1.0)
        np.testing.assert_array_equal(y, reference.dynamic_linear(x, w, np.ones(2), None))
    np.testing.assert_allclose(y, x[:, :1] * w[:1].astype(float) * depth, rtol=1e-6)


def test_weight_only_linear(monkeypatch):
    monkeypatch.setattr("lowgemm.nn.dynamic.BLOCK_BYTES", 1000)
    g = np.random.default_rng(1)
    x = g.integers(-50, 50, (2, 5, 30)).astype(np.float32)  # exact in float32
    w = g.integers(-128, 128, (30, 21)).astype(np.int8)
    scale, bias = 2.0 ** g.integers(-4, 4, 21), g.integers(-9, 9, 21)
    np.testing.assert_array_equal(weight_only_linear(x, w, scale, bias), (x @ w.astype(float)) * scale + bias)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = value
    with pytest.raises(ValueError, match=r"^x:"):
        dynamic_linear(x, np.ones((4, 2), np.int8), 1.0)


@pytest.mark.parametrize("function", [dynamic_linear, weight_only_linear])
def test_errors(function):
    x, w = np.zeros((3, 4)), np.ones((4, 2), np.int8)
    for name, error, args in (
        ("x", TypeError, (["a"], w, 1.0)),
        ("x", ValueError, (x[:, :3], w, 1.0)),
        ("weight", TypeError, (x, w.astype(np.uint8), 1.0)),
        ("weight_scale", ValueError, (x, w, [1.0, 2.0, 3.0])),
        ("weight_scale", ValueError, (x, w, -1.0)),
        ("bias", ValueError, (x, w, 1.0, [1.0])),
    ):
        with pytest.raises(error, match=f"^{name}:"):
            function(*args)
