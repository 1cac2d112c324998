"""Folded, equalized and corrected layers compute what they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm.quantization import (
    choose_qparams,
    clipped_normal_mean,
    correct_bias,
    correct_bias_from_outputs,
    equalize_ranges,
    fake_quantize,
    fold_batch_norm,
)

seeds = st.integers(0, 2**32 - 1)


def convolve(x, w):
    """Valid convolution, NHWC by (height, width, inputs, outputs), in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows, w)


def depthwise(x, w):
    """Valid depthwise convolution, NHWC by (height, width, channels), in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijc->nhwc", windows, w)


def per_tensor(w, bits=8):
    bound = np.abs(w).max()
    return fake_quantize(w, choose_qparams(-bound, bound, bits=bits, symmetric=True, narrow_range=True))


@settings(deadline=None)
@given(seeds, st.booleans(), st.booleans())
def test_folded_layer_equals_layer_and_normalisation(seed, with_bias, affine):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((2, 5, 5, 3)), rng.standard_normal((2, 3, 3, 4))
    bias = rng.standard_normal(4) if with_bias else None
    gamma, beta = (rng.standard_normal(4), rng.standard_normal(4)) if affine else (None, None)
    mean, variance = rng.standard_normal(4), rng.uniform(0, 3, 4)
    y = convolve(x, w) + (bias if with_bias else 0)
    y = (y - mean) / np.sqrt(variance + 1e-3)
    y = y * (gamma if affine else 1) + (beta if affine else 0)
    folded, b = fold_batch_norm(w, bias, gamma, beta, mean, variance, epsilon=1e-3)
    assert folded.dtype == b.dtype == np.float32 and folded.shape == w.shape
    assert np.allclose(convolve(x, folded) + b, y, rtol=1e-5, atol=1e-4)
    turned, b2 = fold_batch_norm(
        np.moveaxis(w, -1, 0), bias, gamma, beta, mean, variance, epsilon=1e-3, axis=0
    )
    assert np.array_equal(np.moveaxis(turned, 0, -1), folded) and np.array_equal(b, b2)


@settings(deadline=None)
@given(seeds)
def test_equalized_chain_computes_the_same(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 6, 6, 3))
    spreads = [10.0 ** rng.uniform(-2, 2, n) for n in (5, 5)]
    first = rng.standard_normal((2, 2, 3, 5)) * spreads[0]
    middle = rng.standard_normal((3, 3, 5)) * spreads[1]
    last = rng.standard_normal((9, 5, 4))  # linear, after flattening 3 x 3 pixels of 5 channels
    biases = [rng.standard_normal(5), rng.standard_normal(5), rng.standard_normal(4)]
    first[..., 2] = 0  # a dead channel

    def run(ws, bs):
        h = np.maximum(convolve(x, ws[0]) + bs[0], 0)
        h = np.maximum(depthwise(h, ws[1]) + bs[1], 0)
        return h.reshape(2, -1) @ ws[2].reshape(-1, 4) + bs[2]

    result = equalize_ranges([first, middle, last], biases, out_axis=[3, 2, 2], in_axis=[2, 2, 1])
    expected = run([first, middle, last], biases)
    scale = np.abs(expected).max()
    assert np.allclose(run(result.weights, result.biases), expected, rtol=1e-4, atol=1e-5 * scale)
    assert result.scales[0][2] == 1 and result.rounds < 50
    ranges = np.abs(result.weights[0]).max((0, 1, 2)), np.abs(result.weights[1]).max((0, 1))
    alive = np.arange(5) != 2
    assert np.allclose(ranges[0][alive], ranges[1][alive], rtol=0.05)
    assert np.allclose(result.biases[0], biases[0] / result.scales[0], rtol=1e-5)


def test_equalization_makes_per_tensor_weights_precise():
    rng = np.random.default_rng(0)
    spread = np.logspace(-2, 2, 16)
    x = rng.standard_normal((200, 8))
    first, second = rng.standard_normal((8, 16)) * spread, rng.standard_normal((16, 4)) / spread[:, None]

    def error(ws):
        expected = np.maximum(x @ first, 0) @ second
        got = np.maximum(x @ per_tensor(ws[0]), 0) @ per_tensor(ws[1])
        return np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean())

    before, after = error([first, second]), error(equalize_ranges([first, second]).weights)
    assert before > 0.2 and after < 0.02


def test_bias_correction_restores_the_mean():
    rng = np.random.default_rng(1)
    x, w, b = rng.uniform(0, 2, (5000, 12)), rng.standard_normal((12, 7)), rng.standard_normal(7)
    rounded = per_tensor(w, bits=3)
    expected = x @ w + b
    before = np.abs((x @ rounded + b - expected).mean(0)).max()
    corrected = correct_bias(b, w, rounded, x.mean(0))
    assert corrected.dtype == np.float32 and before > 0.05
    assert np.abs((x @ rounded + corrected - expected).mean(0)).max() < 1e-5
    also = correct_bias(b, w.T, rounded.T, x.mean(0), out_axis=0, in_axis=1)
    assert np.allclose(also, corrected, atol=1e-6)
    by_data = correct_bias_from_outputs(b, expected, x @ rounded + b)
    assert np.allclose(by_data, corrected, atol=1e-5)
    assert np.allclose(correct_bias(None, w, rounded, x.mean(0)), corrected - b, atol=1e-5)


@settings(deadline=None)
@given(seeds)
def test_bias_correction_of_convolutions(seed):
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(3)
    x = np.broadcast_to(mean, (1, 4, 4, 3))
    w, d = rng.standard_normal((2, 2, 3, 5)), rng.standard_normal((2, 2, 3))
    b = correct_bias(None, w, per_tensor(w, 3), mean, out_axis=3, in_axis=2)
    assert np.allclose(convolve(x, per_tensor(w, 3)) + b, convolve(x, w), atol=1e-4)
    b = correct_bias(None, d, per_tensor(d, 3), mean, out_axis=2, in_axis=2)
    assert np.allclose(depthwise(x, per_tensor(d, 3)) + b, depthwise(x, d), atol=1e-4)
    y, z = convolve(x, w), convolve(x, per_tensor(w, 3))
    b = correct_bias_from_outputs(np.ones(5), np.moveaxis(y, 3, 1), np.moveaxis(z, 3, 1), axis=1)
    assert np.allclose((z + b - 1 - y).mean((0, 1, 2)), 0, atol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(0, np.inf), (0, 6), (-1, 1), (-np.inf, 2), (-np.inf, np.inf)])
def test_mean_of_a_clipped_normal(low, high):
    mean, std = np.array([-3.0, 0.0, 2.0, 9.0]), np.array([1.0, 2.0, 0.5, 4.0])
    z = np.linspace(-9, 9, 400_001)
    weights = np.exp(-z * z / 2)
    expected = [
        np.average(np.clip(m + s * z, low, high), weights=weights) for m, s in zip(mean, std, strict=True)
    ]
    assert np.allclose(clipped_normal_mean(mean, std, low, high), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fold_batch_norm(np.ones((2, 3)), None, None, None, [0, 0], [1, 1]), ValueError, "mean: exp"),
        (
            lambda: fold_batch_norm(np.ones((2, 3)), [0] * 3, None, None, [0] * 3, [-1] * 3),
            ValueError,
            "variance",
        ),
        (lambda: fold_batch_norm([[1.0]], None, None, None, [0], [0], epsilon=0), ValueError, "variance"),
        (lambda: fold_batch_norm([[1.0]], None, None, None, [0], [0], epsilon=-1), ValueError, "epsilon"),
        (
            lambda: fold_batch_norm([[np.nan]], None, None, None, [0], [0]),
            ValueError,
            "weight: expected finite",
        ),
        (
            lambda: fold_batch_norm([[1.0]], None, None, None, [0], [0], axis=2),
            ValueError,
            "axis: expected -2",
        ),
        (lambda: fold_batch_norm([[1.0]], None, None, None, None, [0]), TypeError, "mean"),
        (lambda: equalize_ranges([np.ones((2, 3))]), ValueError, "weights: expected at least two"),
        (
            lambda: equalize_ranges([np.ones((2, 3)), np.ones((2, 3))]),
            ValueError,
            r"weights\[1\]: expected 3",
        ),
        (lambda: equalize_ranges([np.ones((2, 2))] * 2, [None]), ValueError, "biases: expected 2"),
        (
            lambda: equalize_ranges([np.ones((2, 2))] * 2, tolerance=-np.inf),
            ValueError,
            "tolerance: expected",
        ),
        (lambda: equalize_ranges([np.ones((2, 2))] * 2, tolerance=np.nan), ValueError, "tolerance: expected"),
        (
            lambda: equalize_ranges([np.ones((2, 2))] * 2, max_rounds=2**31 - 1),
            ValueError,
            "max_rounds: expected",
        ),
        (lambda: equalize_ranges([np.ones((2, 2))] * 2, [[0], None]), ValueError, r"biases\[0\]"),
        (lambda: equalize_ranges([np.ones((2, 2))] * 2, out_axis=[1]), ValueError, "out_axis: expected one"),
        (lambda: equalize_ranges([np.ones((2, 2))] * 2, max_rounds=0), ValueError, "max_rounds"),
        (lambda: correct_bias(None, np.ones((2, 2)), np.ones((2, 3)), [0, 0]), ValueError, "rounded_weight"),
        (lambda: correct_bias(None, np.ones((2, 2)), np.ones((2, 2)), [0]), ValueError, "input_mean"),
        (lambda: correct_bias_from_outputs(None, np.ones(2), np.ones(3)), ValueError, "got: expected shape"),
        (
            lambda: correct_bias_from_outputs(None, np.ones((0, 2)), np.ones((0, 2))),
            ValueError,
            "expected: exp",
        ),
        (lambda: clipped_normal_mean([0], [-1]), ValueError, "std: expected numbers"),
        (lambda: clipped_normal_mean([0], [1, 1]), ValueError, "std: expected a vector"),
        (lambda: clipped_normal_mean([0], [1], 3, 2), ValueError, "high: expected"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
