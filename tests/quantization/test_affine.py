"""Quantize and dequantize: half a step, exact zero, channels, and compiled loops equal to the definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowgemm.quantization import QParams, affine, choose_qparams, dequantize, fake_quantize, loops, quantize

bounds = st.floats(-1e30, 1e30, allow_nan=False)
fractions = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1))


@st.composite
def ranges(draw):
    """Arguments of `choose_qparams` with any option, for one tensor."""
    low, high = sorted((draw(bounds), draw(bounds)))
    dtype = draw(st.sampled_from(["int8", "uint8", "int16"]))
    bits = draw(st.integers(2, 16 if dtype == "int16" else 8))
    flags = {k: draw(st.booleans()) for k in ("symmetric", "narrow_range", "power_of_two")}
    return low, high, {"dtype": dtype, "bits": bits, **flags}


@settings(deadline=None)
@given(ranges(), fractions)
def test_round_trip_is_within_half_a_step_inside_the_range(case, fraction):
    low, high, options = case
    p = choose_qparams(low, high, **options)
    low, high = min(low, 0.0), max(high, 0.0)
    x = np.clip(low + (high - low) * fraction, low, high)
    q = quantize(x, p)
    assert q.dtype == p.dtype
    assert (q.astype(int) >= p.qmin).all() and (q.astype(int) <= p.qmax).all()
    back = p.scale * (q.astype(np.int64) - p.zero_point)  # before rounding to float32
    # A nudge shifts the range by half a step at most; 1e-9 is for the float64 arithmetic of nudge and
    # quotient.
    assert (np.abs(back - x) <= p.scale * (0.5 + 1e-9)).all()
    assert np.array_equal(dequantize(q, p), back.astype(np.float32))


@settings(deadline=None)
@given(ranges())
def test_zero_is_exact(case):
    low, high, options = case
    p = choose_qparams(low, high, **options)
    assert p.qmin <= p.zero_point <= p.qmax
    q = quantize([0.0, -0.0], p)
    assert (q.astype(int) == p.zero_point).all()
    assert not dequantize(q, p).any()


@settings(deadline=None)
@given(ranges())
def test_integers_survive_a_round_trip(case):
    low, high, options = case
    p = choose_qparams(low, high, **options)
    every = np.unique(np.linspace(p.qmin, p.qmax, 256).astype(p.dtype))
    with np.errstate(over="ignore"):
        real = dequantize(every, p)
    kept = np.isfinite(real)  # near float32's largest number an end of the range may pass it
    assert np.array_equal(quantize(real, p)[kept], every[kept])


def test_values_outside_saturate():
    p = choose_qparams(-1, 1, symmetric=True, narrow_range=True)
    assert quantize([-np.inf, -9.0, -1.0, 1.0, 9.0, np.inf], p).tolist() == [-127, -127, -127, 127, 127, 127]


def test_ties_go_to_even():
    p = QParams(1.0, 1, "int8")
    assert quantize([0.5, 1.5, 2.5, -0.5, -1.5], p).tolist() == [1, 3, 3, 1, -1]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_each_channel_is_quantized_as_if_alone(axis, dtype):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 4, 5)).astype(np.float32) * 10.0 ** np.arange(5)
    other = tuple(i for i in range(3) if i != axis % 3)
    p = choose_qparams(x.min(other), x.max(other), dtype, axis=axis)
    q = quantize(x, p)
    for c in range(x.shape[axis]):
        one = QParams(p.scale[c], p.zero_point[c], dtype)
        assert np.array_equal(q.take(c, axis), quantize(x.take(c, axis), one))
        assert np.array_equal(dequantize(q, p).take(c, axis), dequantize(q.take(c, axis), one))
    assert np.array_equal(fake_quantize(x, p), dequantize(q, p))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 0, 1, 2, -1]),
    st.sampled_from(["int8", "uint8"]),
    st.sampled_from([np.float32, np.float64]),
)
def test_compiled_loops_equal_the_definitions(seed, axis, dtype, real):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 3))
    x = (rng.standard_normal(shape) * 4).astype(real)
    x.flat[rng.integers(0, x.size, 3)] = [np.inf, -np.inf, 1e30]
    x.flat[rng.integers(0, x.size, 4)] = [0.25, -0.75, 1.25, -0.0]  # ties at scale 0.5
    x = x.transpose(rng.permutation(3)) if rng.integers(2) else x
    count = () if axis is None else x.shape[axis]
    scale = rng.choice([0.5, 0.03, 1.7, 1e-30], count)
    p = QParams(scale, rng.integers(0, 100, count), dtype, axis)
    q = affine.quantize_reference(x, p)
    compiled, nans = loops.run_loop(loops.QUANTIZE, x, p, p.dtype)
    assert nans == 0 and compiled.dtype == q.dtype and np.array_equal(compiled, q)
    real = affine.dequantize_reference(q, p)
    assert loops.run_loop(loops.DEQUANTIZE, q, p, np.float32)[0].tobytes() == real.tobytes()
    assert loops.run_loop(loops.FAKE, x, p, np.float32)[0].tobytes() == real.tobytes()


@pytest.mark.parametrize("size", [10, loops.WORTHWHILE])
def test_large_and_small_arrays_take_the_same_checks(size):
    p = choose_qparams(-1, 1)
    x = np.linspace(-2, 2, size).astype(np.float32)
    q = quantize(x, p)
    assert np.array_equal(q, affine.quantize_reference(x, p))
    assert np.array_equal(dequantize(q, p), affine.dequantize_reference(q, p))
    assert np.array_equal(fake_quantize(x, p), dequantize(q, p))
    x[-1] = np.nan
    for function in (quantize, fake_quantize):
        with pytest.raises(ValueError, match="x: expected no NaN"):
            function(x, p)


def test_empty_and_scalar_arrays():
    p = choose_qparams(-1, 1)
    assert quantize(np.zeros((0, 3)), p).shape == (0, 3)
    assert quantize(0.0, p).shape == ()
    assert fake_quantize(0.0, p) == 0.0


def test_bad_input_is_named():
    p, rows = choose_qparams(-1, 1), choose_qparams([-1, -1], [1, 1], axis=1)
    with pytest.raises(TypeError, match="x: expected real numbers"):
        quantize(np.zeros(3, complex), p)
    with pytest.raises(TypeError, match="qparams: expected QParams"):
        quantize([1.0], 0.5)
    with pytest.raises(TypeError, match="q: expected integers"):
        dequantize([1.0], p)
    with pytest.raises(ValueError, match="x: expected 2 channels on axis 1"):
        quantize(np.zeros((2, 3)), rows)
    with pytest.raises(ValueError, match="x: expected an axis 1"):
        fake_quantize(np.zeros(2), rows)
