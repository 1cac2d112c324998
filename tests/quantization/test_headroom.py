"""No bias saturates, and no sum of bias and products can pass int32, whatever the channels' sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm.quantization import QParams, choose_qparams, fold_batch_norm, quantize, scale_for_bias

INT32_MAX = 2**31 - 1


def largest_sums(w, bias, p, inputs):
    """Largest |bias + products| that any inputs can give, per output; and the bias in units, not yet
    saturated.
    """
    info, zero = np.iinfo(inputs.dtype), int(inputs.zero_point)
    units = np.rint(np.abs(bias) / (float(inputs.scale) * p.scale))
    q = quantize(w, p).astype(object) - (p.zero_point.astype(object) if p.per_channel else int(p.zero_point))
    others = tuple(range(w.ndim - 1))
    return (
        np.array([abs(v) for v in q.reshape(-1)], object).reshape(w.shape).sum(others)
        * max(zero - info.min, info.max - zero)
        + units
    )


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.sampled_from([2, 4, 8]), st.booleans(),
    st.booleans()
)  # fmt: skip
def test_bias_and_products_fit(seed, per_channel, symmetric, bits, power_of_two, filters):
    g = np.random.default_rng(seed)
    outputs = int(g.integers(1, 6))
    shape = (3, 3, int(g.integers(1, 40)), outputs) if filters else (int(g.integers(1, 3000)), outputs)
    size = 10.0 ** g.uniform(-30, 3, outputs) * g.integers(0, 2, outputs)
    w = g.choice([g.standard_normal(shape), np.ones(shape)]) * size
    bias = g.standard_normal(outputs) * 10.0 ** g.uniform(-12, 8, outputs)
    dtype = str(g.choice(["uint8", "int8"]))
    inputs = QParams(10.0 ** g.uniform(-6, 3), int(g.integers(0, 128)), dtype)
    others = tuple(range(w.ndim - 1)) if per_channel else None
    chosen = choose_qparams(
        w.min(others), w.max(others), bits=bits, symmetric=symmetric, narrow_range=symmetric,
        power_of_two=power_of_two, axis=-1 if per_channel else None,
    )  # fmt: skip
    p, raised = scale_for_bias(chosen, w, bias, inputs)
    assert largest_sums(w, bias, p, inputs).max() <= INT32_MAX
    idle = (np.abs(w).sum(tuple(range(w.ndim - 1))) == 0) if per_channel else not w.any()
    assert (raised[~idle] >= 1).all() if per_channel else idle or raised >= 1
    np.testing.assert_allclose(p.scale, chosen.scale * raised, rtol=1e-15)
    # no higher than need be: at half the scale the bound would not hold (a power of two may be twice too
    # high)
    unit = p.scale * float(inputs.scale)
    higher = (raised > 1) & (unit > 1e-37)
    reach = max(int(inputs.zero_point) - np.iinfo(dtype).min, np.iinfo(dtype).max - int(inputs.zero_point))
    n, size = w.size // outputs, np.abs(w).sum(tuple(range(w.ndim - 1)))
    bound = (np.abs(bias) + reach * size * float(inputs.scale)) / unit * (
        4 if power_of_two else 2
    ) + reach * n
    assert (bound[higher] > INT32_MAX).all() if per_channel else bound.max() > INT32_MAX or not higher
    if power_of_two:
        assert (np.frexp(p.scale)[0] == 0.5).all()
    again, once_more = scale_for_bias(p, w, bias, inputs)
    assert again == p and (once_more == 1).all()


def test_scales_with_room_stay():
    g = np.random.default_rng(0)
    w, bias, inputs = g.standard_normal((64, 5)), g.standard_normal(5), QParams(0.01, 128, "uint8")
    for p in (choose_qparams(w.min(0), w.max(0), axis=1), choose_qparams(w.min(), w.max()), QParams(0.1)):
        for b in (bias, None):
            same, raised = scale_for_bias(p, w, b, inputs)
            assert same == p and (raised == 1).all() and raised.shape == p.scale.shape


def test_a_channel_of_zeros_keeps_its_bias_exactly_enough():
    """Its scale says nothing but how fine the bias is: with scale 1 a bias of 0.02 became 0.04 at an input
    scale of 0.04.
    """
    w, inputs = np.zeros((3, 2)), QParams(0.04, 0, "uint8")
    for axis in (None, 1):
        p = choose_qparams(w.min(0), w.max(0), axis=1) if axis else choose_qparams(0.0, 0.0)
        p, _ = scale_for_bias(p, w, [0.02, 1e-3], inputs)
        unit = np.broadcast_to(p.scale * 0.04, 2)
        np.testing.assert_allclose(np.rint([0.02, 1e-3] / unit) * unit, [0.02, 1e-3], rtol=1e-6)


def test_the_unit_of_the_sums_stays_a_normal_float32():
    w, inputs = np.full((4, 1), 1e-37), QParams(1e-5, 0, "uint8")
    p, raised = scale_for_bias(choose_qparams([0.0], [1e-37], axis=1), w, None, inputs)
    assert np.float32(p.scale[0] * 1e-5) >= np.finfo(np.float32).tiny and raised[0] > 1


def test_a_folded_batch_norm_with_a_tiny_gamma():
    g = np.random.default_rng(1)
    gamma = np.array([1.0, 1e-8, 1.0])
    w, b = fold_batch_norm(g.standard_normal((32, 3)), None, gamma, [0.5, 1.5, -0.3], np.zeros(3), np.ones(3))
    inputs = QParams(1 / 255, 0, "uint8")
    p, raised = scale_for_bias(choose_qparams(w.min(0), w.max(0), axis=1), w, b, inputs)
    assert raised[0] == raised[2] == 1 < raised[1]
    assert largest_sums(w, b, p, inputs).max() <= INT32_MAX


def test_errors_name_the_argument():
    p, w = QParams(0.1), np.ones((3, 2))
    for name, error, args in (
        ("weight_qparams", TypeError, (3, w, None, p)),
        ("weight_qparams", ValueError, (QParams([0.1, 0.1, 0.1], 0, "int8", 0), w, None, p)),
        ("input_qparams", TypeError, (p, w, None, 3)),
        ("input_qparams", ValueError, (p, w, None, QParams([0.1], 0, "int8", 0))),
        ("weight", ValueError, (p, [[np.nan]], None, p)),
        ("bias", ValueError, (p, w, [1.0], p)),
        ("bias", ValueError, (p, w, [1e38, 1.0], QParams(1e-30))),
        ("weight", ValueError, (QParams(1e-30), np.ones((2**24 + 2**19, 1), np.float32), None,
                                QParams(1.0, 0, "uint8"))),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{name}:"):
            scale_for_bias(*args)
