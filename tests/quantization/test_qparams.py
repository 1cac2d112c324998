"""Choice of scale and zero point."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm.quantization import QParams, choose_qparams, quantize_multiplier
from lowgemm.quantization.qparams import integer_range

bounds = st.floats(-1e30, 1e30, allow_nan=False)


@settings(deadline=None)
@given(bounds, bounds, st.sampled_from(["int8", "uint8"]), st.integers(2, 8), st.booleans())
def test_symmetric_scale_is_the_smallest_float32_that_covers(a, b, dtype, bits, narrow):
    low, high = min(a, b), max(a, b)
    p = choose_qparams(low, high, dtype, bits=bits, symmetric=True, narrow_range=narrow)
    low, high = min(low, 0.0), max(high, 0.0)
    assert p.scale == np.float32(p.scale)
    assert p.low <= low and high <= p.high
    assert p.zero_point == (0 if dtype == "int8" else 2 ** (bits - 1))
    if p.scale > np.finfo(np.float32).tiny and low < high:
        less = np.float64(np.nextafter(np.float32(p.scale), np.float32(0)))
        exact = np.maximum(low / (p.qmin - p.zero_point), high / (p.qmax - p.zero_point))
        assert less < exact


@settings(deadline=None)
@given(bounds, bounds, st.sampled_from(["int8", "uint8"]), st.booleans())
def test_asymmetric_range_is_nudged_by_half_a_step_at_most(a, b, dtype, narrow):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    p = choose_qparams(min(a, b), max(a, b), dtype, narrow_range=narrow)
    assert p.scale == np.float32(p.scale)
    slack = p.scale * (0.5 + 1e-9)
    assert p.low <= low + slack and high <= p.high + slack
    if low < high and p.scale > np.finfo(np.float32).tiny:
        assert p.scale * (p.qmax - p.qmin) <= (high - low) * (1 + 2**-23)


@settings(deadline=None)
@given(bounds, bounds, st.booleans())
def test_power_of_two_scale_is_less_than_twice_the_plain_one(a, b, symmetric):
    low, high = min(a, b), max(a, b)
    p = choose_qparams(low, high, symmetric=symmetric, power_of_two=True)
    plain = choose_qparams(low, high, symmetric=symmetric)
    assert np.frexp(p.scale)[0] == 0.5
    assert plain.scale / 2 < p.scale * (1 + 2**-23) and p.scale < 2 * plain.scale


def test_known_choices():
    p = choose_qparams(-1, 1, symmetric=True, narrow_range=True)
    assert (p.qmin, p.qmax, int(p.zero_point)) == (-127, 127, 0)
    assert 1 / 127 <= p.scale <= np.nextafter(np.float32(1 / 127), np.float32(1))
    assert choose_qparams(0, 6, "uint8").zero_point == 0
    assert choose_qparams(-6, 0, "uint8").zero_point == 255
    assert choose_qparams(2, 6, "uint8") == choose_qparams(0, 6, "uint8")  # widened to hold zero
    assert choose_qparams(0, 0) == QParams(1.0, -128, "int8")
    assert choose_qparams(-1, 1, bits=4).qmax == 7
    assert choose_qparams(0, 0, symmetric=True) == QParams(1.0)
    assert choose_qparams(-1, 1, power_of_two=True, symmetric=True).scale == 2.0**-6
    assert choose_qparams(-1, 127 / 128, power_of_two=True, symmetric=True).scale == 2.0**-7
    assert choose_qparams(0, 1e-44).scale == np.finfo(np.float32).tiny  # not a scale that float32 loses


def test_channels_are_chosen_one_by_one():
    low, high = np.array([-1, 0, -3.0]), np.array([2.0, 0.5, 0])
    p = choose_qparams(low, high, "uint8", axis=-1)
    assert p.axis == -1 and p.per_channel and p.scale.shape == p.zero_point.shape == (3,)
    for i in range(3):
        one = choose_qparams(low[i], high[i], "uint8")
        assert p.scale[i] == one.scale and p.zero_point[i] == one.zero_point


def test_integer_ranges():
    assert integer_range("int32") == (-(2**31), 2**31 - 1)
    assert integer_range("uint8", 4, narrow_range=True) == (1, 15)
    assert integer_range("int8", 2, narrow_range=True) == (-1, 1)


def test_qparams_are_frozen_hashable_values():
    p, same = QParams([1, 2], 0, axis=0), QParams(np.array([1.0, 2]), [0, 0], np.int8, 0, -128, 127)
    assert p == same and hash(p) == hash(same) and p != QParams([1, 2], 0, axis=1) and p != 3
    with pytest.raises(ValueError, match="read-only"):
        p.scale[0] = 3
    with pytest.raises(AttributeError):
        p.axis = 1


@settings(deadline=None)
@given(st.floats(2.0**-31, 2.0**29))
def test_multiplier_is_normalised_and_nearest(scale):
    multiplier, exponent = quantize_multiplier(scale)
    assert 2**30 <= multiplier < 2**31
    assert abs(multiplier * 2.0 ** (exponent - 31) - scale) <= 2.0 ** (exponent - 32)


def test_multiplier_rounding_carry_and_vectors():
    assert quantize_multiplier(1 - 2.0**-33) == (2**30, 1)
    assert quantize_multiplier(0.0) == (0, 0)
    scales = [0.75, 1 - 2.0**-33, 0.0, 3.0]
    multiplier, exponent = quantize_multiplier(scales)
    assert multiplier.dtype == exponent.dtype == np.int32
    assert list(zip(multiplier, exponent, strict=True)) == [quantize_multiplier(s) for s in scales]
    acc = np.array([[1000, -1000, 5, 7]], np.int32)
    stage = lowgemm.ScaleInt32ByFixedPointAndExponent(multiplier, exponent)
    assert lowgemm.requantize(acc, [stage]).tolist() == [[750, -1000, 0, 21]]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: choose_qparams(1, 0), ValueError, "high: expected at least low"),
        (lambda: choose_qparams(np.nan, 0), ValueError, "low: expected finite"),
        (lambda: choose_qparams(0, np.inf), ValueError, "high: expected finite"),
        (lambda: choose_qparams(0, 1e39), ValueError, "high: expected numbers that float32"),
        (lambda: choose_qparams("a", 1), TypeError, "low: expected a number"),
        (lambda: choose_qparams([[0]], [[1]]), ValueError, "low: expected a number or a vector"),
        (lambda: choose_qparams([0, 0], [1, 1, 1], axis=0), ValueError, "high: expected shape"),
        (lambda: choose_qparams([0, 0], [1, 1]), ValueError, "axis: expected an integer"),
        (lambda: choose_qparams(0, 1, axis=0), ValueError, "axis: expected None"),
        (lambda: choose_qparams(0, 1, "float32"), TypeError, "dtype: expected int8"),
        (lambda: choose_qparams(0, 1, "rubbish"), TypeError, "dtype: expected int8"),
        (lambda: choose_qparams(0, 1, bits=9), ValueError, "bits: expected 2 to 8"),
        (lambda: choose_qparams(0, 1, bits=1.5), TypeError, "bits: expected an integer"),
        (lambda: QParams(0.0), ValueError, "scale: expected positive"),
        (lambda: QParams(1.0, 128), ValueError, "zero_point: expected -128 to 127"),
        (lambda: QParams(1.0, 0.5), TypeError, "zero_point: expected integers"),
        (lambda: QParams([1.0, 2.0], [0, 0, 0], axis=0), ValueError, "zero_point: expected shape"),
        (lambda: QParams([1.0, 2.0]), ValueError, "axis: expected an integer"),
        (lambda: QParams(1.0, axis=0), ValueError, "axis: expected None"),
        (lambda: QParams(1.0, qmin=3, qmax=3), ValueError, "qmax: expected more than qmin"),
        (lambda: quantize_multiplier(-1), ValueError, "scale: expected a finite"),
        (lambda: quantize_multiplier([1.0, -1]), ValueError, "scale: expected a finite"),
        (lambda: quantize_multiplier("x"), TypeError, "real_scale: expected a number"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
