"""Output stages: fused in `gemm`, alone in `requantize`, against their equations."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm import reference
from lowgemm.output.check import check_pipeline
from lowgemm.output.stages.tanh import tanh_constants

SHIFT = st.integers(0, 31)
INT32 = st.one_of(
    st.sampled_from([0, 1, -1, 2**30, 2**31 - 1, -(2**31), -(2**31) + 1]), st.integers(-(2**31), 2**31 - 1)
)
AXIS = st.sampled_from([0, 1])
M, N = 19, 37


def per_channel(draw, values, axis):
    """One value, or one for each row or column."""
    if draw(st.booleans()):
        return draw(values)
    size = M if axis == 0 else N
    return np.array(draw(st.lists(values, min_size=size, max_size=size)))


#: How to draw a stage that may stand anywhere; a new stage gets a line. `axis` is for those that have one.
ANYWHERE = {
    "bias": lambda draw, axis: lowgemm.BiasAddition(vector(draw, axis), axis=axis),
    "fixed": lambda draw, axis: lowgemm.QuantizeDownInt32ByFixedPoint(draw(INT32), draw(SHIFT), draw(INT32)),
    "exponent": lambda draw, axis: lowgemm.ScaleInt32ByFixedPointAndExponent(
        per_channel(draw, INT32, axis), per_channel(draw, st.integers(-31, 30), axis), draw(INT32), axis=axis
    ),
    "legacy": lambda draw, axis: lowgemm.QuantizeDownInt32ToUint8Scale(
        per_channel(draw, INT32, axis), per_channel(draw, INT32, axis), draw(SHIFT), axis=axis
    ),
    "clamp": lambda draw, axis: lowgemm.Clamp(draw(INT32), draw(INT32)),
    "tanh": lambda draw, axis: lowgemm.Tanh(draw(INT32), draw(st.integers(1, 2**31 - 1))),
    "logistic": lambda draw, axis: lowgemm.Logistic(draw(st.integers(0, 29))),
}


def vector(draw, axis):
    """One int32 for each row or column."""
    size = M if axis == 0 else N
    return draw(st.lists(INT32, min_size=size, max_size=size))


@st.composite
def stage(draw):
    """Any stage that may stand anywhere."""
    return draw(st.sampled_from([*ANYWHERE.values()]))(draw, draw(AXIS))


CAST = st.sampled_from(
    [None, lowgemm.SaturatingCast(np.uint8), lowgemm.SaturatingCast(np.int8),
     lowgemm.SaturatingCast(np.int16),
     lowgemm.TruncatingCast(np.uint8)]
)  # fmt: skip


@st.composite
def pipeline(draw):
    """Up to five stages and perhaps a cast."""
    stages = draw(st.lists(stage(), max_size=5))
    cast = draw(CAST)
    return stages + ([cast] if cast else [])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(stages=pipeline(), seed=st.integers(0, 2**32), fortran=st.booleans())
def test_requantize_equals_the_equations(stages, seed, fortran):
    rng = np.random.default_rng(seed)
    acc = rng.integers(-(2**31), 2**31, (M, N)).astype(np.int32)
    acc[0, :3] = [-(2**31), 2**31 - 1, 0]
    acc = np.asfortranarray(acc) if fortran else acc
    checked, dtype = check_pipeline(stages, M, N)
    expected = reference.apply_pipeline(acc, checked)
    got = lowgemm.requantize(acc, stages)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected)
    out = np.full((2 * M, 3 * N), 5, dtype=dtype)
    assert np.shares_memory(lowgemm.requantize(acc, stages, out=out[::2, 1::3]), out)
    np.testing.assert_array_equal(out[::2, 1::3], expected)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(stages=pipeline(), seed=st.integers(0, 2**32), vectors=st.booleans())
def test_fused_equals_the_equations(any_kernel, threads, stages, seed, vectors):
    rng = np.random.default_rng(seed)
    lhs, rhs = rng.integers(0, 256, (M, 50), dtype=np.uint8), rng.integers(-128, 128, (50, N), dtype=np.int8)
    zeros = {"lhs_zero_point": 7, "rhs_zero_point": rng.integers(-99, 99, N) if vectors else -1}
    expected = reference.gemm(lhs, rhs, output=stages, **zeros)
    got = lowgemm.gemm(lhs, rhs, output=stages, num_threads=threads, **zeros)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(lowgemm.requantize(lowgemm.gemm(lhs, rhs, **zeros), stages), expected)


def test_large_result_through_tiles(kernel, threads):
    rng = np.random.default_rng(8)
    lhs, rhs = (
        rng.integers(0, 256, (301, 64), dtype=np.uint8),
        rng.integers(0, 256, (64, 333), dtype=np.uint8),
    )
    stages = [
        lowgemm.BiasAddition(rng.integers(-1000, 1000, 301), axis=0),
        lowgemm.ScaleInt32ByFixedPointAndExponent(
            rng.integers(2**30, 2**31, 333), rng.integers(-12, 1, 333), 3
        ),
        lowgemm.Clamp(10, 200),
        lowgemm.SaturatingCast(np.uint8),
    ]
    np.testing.assert_array_equal(
        lowgemm.gemm(lhs, rhs, output=stages, num_threads=threads), reference.gemm(lhs, rhs, output=stages)
    )


def test_batches_and_vectors():
    acc = np.arange(-12, 12, dtype=np.int32).reshape(2, 3, 4)
    bias = lowgemm.BiasAddition([1, 2, 3, 4])
    np.testing.assert_array_equal(lowgemm.requantize(acc, bias), acc + [1, 2, 3, 4])
    np.testing.assert_array_equal(lowgemm.requantize(acc[0, 0], bias), acc[0, 0] + [1, 2, 3, 4])
    assert lowgemm.requantize(acc[:0], bias).shape == (0, 3, 4)


def test_stages_are_values():
    one, same = lowgemm.BiasAddition([1, 2]), lowgemm.BiasAddition(np.array([1, 2], np.int16))
    assert one == same and hash(one) == hash(same) and one != lowgemm.BiasAddition([1, 3])
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(ValueError, match="read-only"):
        one.bias[0] = 5
    source = np.array([1, 2])
    copied = lowgemm.BiasAddition(source)
    source[0] = 9
    assert copied.bias[0] == 1


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: lowgemm.BiasAddition(3), TypeError, "bias"),
        (lambda: lowgemm.BiasAddition([1.5]), TypeError, "bias"),
        (lambda: lowgemm.BiasAddition([2**31]), ValueError, "bias"),
        (lambda: lowgemm.BiasAddition([[1], [2]]), ValueError, "bias"),
        (lambda: lowgemm.BiasAddition([1], axis=2), ValueError, "axis"),
        (lambda: lowgemm.QuantizeDownInt32ByFixedPoint(2**31, 0, 0), ValueError, "multiplier"),
        (lambda: lowgemm.QuantizeDownInt32ByFixedPoint(1, 32, 0), ValueError, "shift"),
        (lambda: lowgemm.QuantizeDownInt32ByFixedPoint(1, True, 0), TypeError, "shift"),
        (lambda: lowgemm.ScaleInt32ByFixedPointAndExponent(1, 31), ValueError, "exponent"),
        (
            lambda: lowgemm.ScaleInt32ByFixedPointAndExponent([1, 2], [1, 2, 3]),
            ValueError,
            "multiplier, exponent",
        ),
        (lambda: lowgemm.ScaleInt32ByFixedPointAndExponent(float("nan"), 0), TypeError, "multiplier"),
        (lambda: lowgemm.QuantizeDownInt32ToUint8Scale(0, 1, -1), ValueError, "shift"),
        (lambda: lowgemm.Clamp("a", 3), TypeError, "min"),
        (lambda: lowgemm.Tanh(0, 0), ValueError, "real_amplitude"),
        (lambda: lowgemm.SaturatingCast(np.int32), ValueError, "dtype"),
        (lambda: lowgemm.SaturatingCast("nonsense"), TypeError, "dtype"),
        (lambda: lowgemm.TruncatingCast(np.int8), ValueError, "dtype"),
    ],
)
def test_bad_stages_name_the_field(make, error, name):
    with pytest.raises(error, match=f"^{name}:"):
        make()


@pytest.mark.parametrize(
    ("output", "error", "text"),
    [
        (3, TypeError, "output: expected a stage"),
        ([3], TypeError, r"output\[0\]"),
        ([lowgemm.SaturatingCast(np.int8), lowgemm.Clamp(0, 1)], ValueError, r"output\[0\]: SaturatingCast"),
        ([lowgemm.BiasAddition([1, 2])], ValueError, "BiasAddition.bias: expected 4 values"),
        ([lowgemm.BiasAddition([1, 2, 3, 4], axis=0)], ValueError, "BiasAddition.bias: expected 3 values"),
    ],
)
def test_bad_pipelines(output, error, text):
    x = np.zeros((3, 5), np.uint8)
    out = np.full((3, 4), 9, np.int32)
    for call in (lambda: lowgemm.gemm(x, np.zeros((5, 4), np.uint8), output=output, out=out),
                 lambda: lowgemm.requantize(np.zeros((3, 4), np.int32), output, out=out)):  # fmt: skip
        with pytest.raises(error, match=text):
            call()
    assert (out == 9).all()


def test_bad_accumulators():
    with pytest.raises(TypeError, match="acc"):
        lowgemm.requantize(np.zeros((2, 2)), [])
    with pytest.raises(ValueError, match="acc"):
        lowgemm.requantize(np.int32(3), [])
    acc = np.zeros((2, 2), np.int32)
    with pytest.raises(ValueError, match="out: expected no overlap with acc"):
        lowgemm.requantize(acc, [], out=acc)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**32), dtype=st.sampled_from([np.uint8, np.int8, np.int16]))
def test_scale_and_store_in_one_pass(data, seed, dtype):
    """What `output/scale_and_store.py` does in one pass: ties, signs, offsets at the bound, edges of every
    width.
    """
    rng = np.random.default_rng(seed)
    m, n = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 70))
    axis = data.draw(AXIS)
    size = m if axis == 0 else n
    exponent = -data.draw(st.integers(1, 31))
    vectors = data.draw(st.booleans())
    multiplier = rng.choice([0, 1, 2**30, 2**31 - 1, int(rng.integers(0, 2**31))], size) if vectors else 2**30
    exponents = -rng.integers(1, -exponent + 1, size) if vectors else exponent
    offset = data.draw(
        st.sampled_from([0, 3, -128, 2**10, -(2**28), 2 ** (30 + exponent) if exponent > -31 else 0])
    )
    acc = rng.integers(-(2**31), 2**31, (m, n)).astype(np.int32)
    # halves after the shift: the ties
    acc[0] = (rng.integers(-8, 8, n) * 2 + 1) << min(-exponent, 26)
    stages = [
        lowgemm.ScaleInt32ByFixedPointAndExponent(multiplier, exponents, offset, axis=axis),
        lowgemm.Clamp(*sorted(rng.integers(-300, 300, 2).tolist())),
        lowgemm.SaturatingCast(dtype),
    ]
    checked, _ = check_pipeline(stages, m, n)
    np.testing.assert_array_equal(lowgemm.requantize(acc, stages), reference.apply_pipeline(acc, checked))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**32), dtype=st.sampled_from([np.uint8, np.int8, np.int16]))
def test_scale_in_float32_and_store_in_one_pass(data, seed, dtype):
    """Ties, zero points and bounds of either kind, edges of every width."""
    rng = np.random.default_rng(seed)
    m, n = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 70))
    axis, info = data.draw(AXIS), np.iinfo(dtype)
    size = m if axis == 0 else n
    scale = 2.0 ** rng.integers(-31, 10, size) * rng.choice([1, 0.75, 0.1], size)
    low, high = sorted(rng.integers(info.min, info.max, 2, endpoint=True).tolist())
    acc = rng.integers(-(2**31), 2**31, (m, n)).astype(np.int32)
    acc[0] = rng.integers(-600, 600, n)
    stages = [
        lowgemm.Requantize(
            scale if data.draw(st.booleans()) else float(scale[0]), int(rng.integers(info.min, info.max)),
            dtype, rounding=data.draw(st.sampled_from(["onnx", "torch"])), axis=axis, min=low, max=high,
        )
    ]  # fmt: skip
    checked, _ = check_pipeline(stages, m, n)
    np.testing.assert_array_equal(lowgemm.requantize(acc, stages), reference.apply_pipeline(acc, checked))


def test_which_pipelines_take_one_pass():
    x = np.zeros((4, 40), np.uint8)
    cast = lowgemm.SaturatingCast(np.uint8)

    def steps(stage):
        return [step.name for step in lowgemm.explain(x, x.T, output=[stage, cast]).plan.pipeline.steps]

    assert steps(lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 5, 3)) == ["requantize_store8"]
    assert steps(lowgemm.ScaleInt32ByFixedPointAndExponent([2**30] * 4, [-5] * 4, 3, axis=0)) == [
        "requantize_store8_by_row"
    ]
    assert steps(lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 0, 3)) == ["scale", "store8"]
    assert steps(lowgemm.QuantizeDownInt32ByFixedPoint(-1, 5, 3)) == ["scale", "store8"]
    assert steps(lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 25, 128)) == ["scale", "store8"]
    for axis, name in ((1, "float_requantize_store8"), (0, "float_requantize_store8_by_row")):
        scale = lowgemm.Requantize([0.5] * 4, 3, np.uint8, rounding="onnx", axis=axis)
        assert [s.name for s in lowgemm.explain(x, x.T, output=scale).plan.pipeline.steps] == [name]
    double = lowgemm.Requantize(0.5, 3, np.uint8, rounding="onnx_reference")
    assert len(lowgemm.explain(x, x.T, output=double).plan.pipeline.steps) == 2


@given(st.integers(1, 2**31 - 1))
def test_tanh_constants_are_those_of_the_definition(amplitude):
    """Both are worked out, each in its own way."""
    assert tanh_constants(amplitude) == reference.tanh_constants(amplitude)


@pytest.mark.parametrize("amplitude", [2**k + d for k in range(2, 31) for d in (-1, 0, 1)] + [1, 2])
def test_tanh_constants_beside_powers_of_two(amplitude):
    assert tanh_constants(amplitude) == reference.tanh_constants(amplitude)
