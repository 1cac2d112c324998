"""Integer sigmoid and tanh: tables near the real functions, pipelines equal to the tables, and the gain."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm.quantization import (
    QParams,
    choose_qparams,
    dequantize,
    s_shaped_gain,
    s_shaped_input,
    s_shaped_output,
    s_shaped_stages,
    s_shaped_table,
)

REAL = {"sigmoid": lambda x: 1 / (1 + np.exp(-np.float64(x))), "tanh": lambda x: np.tanh(np.float64(x))}
kinds = pytest.mark.parametrize("kind", ["sigmoid", "tanh"])
dtypes = pytest.mark.parametrize("dtype", ["int8", "uint8"])


@kinds
@dtypes
@settings(deadline=None)
@given(st.floats(-40, 40), st.floats(-40, 40), st.integers(3, 8))
def test_tables_are_within_a_step_of_the_real_function(kind, dtype, a, b, bits):
    p = choose_qparams(min(a, b), max(a, b), dtype, bits=bits)
    out = s_shaped_output(kind, dtype)
    lowest = np.iinfo(dtype).min
    x = dequantize(np.clip(np.arange(256) + lowest, p.qmin, p.qmax), p)
    with np.errstate(over="ignore"):
        real = np.clip(REAL[kind](x), out.low, out.high)
    exact, fixed = (s_shaped_table(kind, p, method=m) for m in ("float", "fixedpoint"))
    assert exact.dtype == fixed.dtype == np.dtype(dtype) and exact.shape == fixed.shape == (256,)
    assert np.abs(dequantize(exact, out) - real).max() <= out.scale * (0.5 + 1e-6)
    assert np.abs(exact.astype(int) - fixed).max() <= 1
    assert (np.diff(fixed.astype(int)) >= 0).all()
    zero = fixed[int(p.zero_point) - lowest]
    assert dequantize(zero, out) == (0.5 if kind == "sigmoid" else 0.0)


def test_fixed_point_tables_are_mostly_the_nearest_integers():
    for kind in ("sigmoid", "tanh"):
        p = s_shaped_input(kind, -50, 50)
        exact, fixed = (s_shaped_table(kind, p, method=m) for m in ("float", "fixedpoint"))
        assert (exact != fixed).mean() <= 0.02


@kinds
@dtypes
def test_pipeline_equals_requantizing_and_looking_up(kind, dtype):
    rng = np.random.default_rng(0)
    lhs, rhs = rng.integers(0, 255, (7, 40), np.uint8), rng.integers(-128, 128, (40, 5), np.int8)
    acc = lowgemm.gemm(lhs, rhs)
    scale = np.array([1e-4, 2e-4, 5e-4, 1e-3, 3e-3])
    p = s_shaped_input(kind, -30, 30, dtype)
    stages = s_shaped_stages(kind, scale, p)
    got = lowgemm.gemm(lhs, rhs, output=stages)
    q = lowgemm.requantize(acc, lowgemm.Requantize(scale / float(p.scale), int(p.zero_point), dtype))
    table = s_shaped_table(kind, p)
    assert got.dtype == np.dtype(dtype)
    assert np.array_equal(got, table[q.astype(int) - np.iinfo(dtype).min])
    out = s_shaped_output(kind, dtype)
    error = np.abs(dequantize(got, out) - REAL[kind](acc * scale))
    slope = 0.25 if kind == "sigmoid" else 1.0
    assert error.max() <= slope * float(p.scale) + 1.5 * float(out.scale)


@kinds
def test_clipping_gains_resolution(kind):
    x = np.random.default_rng(0).uniform(-25, 25, 20_000)
    gain = s_shaped_gain(kind, x)
    clip = {"sigmoid": 6, "tanh": 3}[kind]
    assert math.isclose(gain.resolution_gain, 25 / clip, rel_tol=0.01)
    assert gain.rms_error_clipped < 0.5 * gain.rms_error
    assert gain.max_error_clipped < 0.5 * gain.max_error
    assert kind in str(gain)
    inside = s_shaped_gain(kind, np.linspace(-2, 2, 1001))
    assert inside.step == inside.step_clipped and inside.rms_error == inside.rms_error_clipped


def test_input_range_by_choice():
    assert s_shaped_input("sigmoid", -1, 2, "uint8") == choose_qparams(-1, 2, "uint8")
    assert s_shaped_input("sigmoid", -10, 2) == choose_qparams(-6, 2)
    assert s_shaped_input("tanh", -10, 2, clip=4.0) == choose_qparams(-4, 2)
    assert s_shaped_input("tanh", -10, 2, clip=math.inf) == choose_qparams(-10, 2)
    assert s_shaped_input("tanh", 8, 9) == choose_qparams(0, 3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: s_shaped_input("relu", 0, 1), ValueError, "kind: expected 'sigmoid' or 'tanh'"),
        (lambda: s_shaped_input("tanh", 1, 0), ValueError, "high: expected at least low"),
        (lambda: s_shaped_input("tanh", 0, 1, clip=0), ValueError, "clip: expected a positive"),
        (lambda: s_shaped_input("tanh", 0, math.nan), ValueError, "high: expected"),
        (lambda: s_shaped_output("tanh", "int16"), TypeError, "dtype: expected int8 or uint8"),
        (lambda: s_shaped_table("tanh", 3), TypeError, "input_qparams: expected QParams"),
        (
            lambda: s_shaped_table("tanh", QParams(1.0, 0, "int16")),
            TypeError,
            "input_qparams: expected dtype",
        ),
        (
            lambda: s_shaped_table("tanh", QParams([1.0], 0, axis=0)),
            ValueError,
            "input_qparams: expected one",
        ),
        (lambda: s_shaped_table("tanh", QParams(1.0), method="x"), ValueError, "method: expected"),
        (lambda: s_shaped_gain("tanh", [np.nan]), ValueError, "x: expected at least one"),
        (lambda: s_shaped_gain("tanh", []), ValueError, "x: expected at least one"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
