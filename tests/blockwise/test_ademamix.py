"""AdEMAMix with its schedules: against bitsandbytes' steps, and what they refuse."""

from __future__ import annotations

import math

import blockdata
import numpy as np
import pytest

from lowgemm.blockwise import AdEMAMix

SCHEDULES = {"both": (8, 8), "alpha": (20, None), "beta3": (None, 5)}
HYPER = {"lr": 0.003, "betas": (0.9, 0.99, 0.9995), "alpha": 4.0, "eps": 1e-8, "weight_decay": 0.02}
P = np.ones(10, np.float32)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("bits", [8, 32])
def test_golden_steps(name, bits):
    z, (t_alpha, t_beta3) = blockdata.arrays("ademamix"), SCHEDULES[name]
    p0 = z["p0"]
    p = p0.copy()
    optimizer = AdEMAMix(
        p, **HYPER, t_alpha=t_alpha, t_beta3=t_beta3, min_8bit_size=0 if bits == 8 else p.size + 1
    )
    state = optimizer._states[0]
    for t, g in enumerate(z["g"]):
        optimizer.step(g)
        expected = z[f"{name}_p" if bits == 8 else f"{name}_p32"][t]
        bound = 4e-6 * np.maximum(np.abs(expected), np.abs(expected - p0))
        if bits == 32:
            assert (np.abs(p - expected) <= bound + 1e-7).all()
            continue
        codes = np.concatenate([z[f"{name}_s1"][t], z[f"{name}_s2"][t][None]])
        scales = np.concatenate([z[f"{name}_am1"][t], z[f"{name}_am2"][t][None]])
        different = np.stack(state.values) != codes
        assert different.mean() <= 0.001
        np.testing.assert_allclose(np.stack(state.scales), scales, rtol=2e-7, atol=1e-38)
        assert (np.abs(p - expected) <= bound)[~different.any(axis=0)].all()
        p[...] = expected  # go on from the golden state, so that one neighbouring code does not add up
        for k in range(3):
            state.values[k][...], state.scales[k][...] = codes[k], scales[k]


def test_warm_up():
    """Alpha rises evenly; beta3 so that the half-life of the slow mean does."""
    optimizer = AdEMAMix(P, betas=(0.9, 0.99, 0.9999), alpha=5, t_alpha=100, t_beta3=1000)
    first, last = (math.log(0.5) / math.log(b) for b in (0.9, 0.9999))
    for step in (1, 17, 99, 100, 500, 999, 1000, 1001, 10**15):
        alpha, beta3 = optimizer.warmed_up(step)
        assert alpha == pytest.approx(5 * min(step / 100, 1), rel=1e-15)
        done = min(step / 1000, 1)
        assert math.log(0.5) / math.log(beta3) == pytest.approx((1 - done) * first + done * last, rel=1e-9)
    assert optimizer.warmed_up(1000) == (5, 0.9999)
    assert AdEMAMix(P).warmed_up(1) == (5, 0.9999)


def test_a_schedule_goes_on_after_loading():
    first, second = np.ones(10, np.float32), np.ones(10, np.float32)
    one = AdEMAMix(first, t_alpha=6, t_beta3=6)
    for _ in range(3):
        one.step(P)
    second[...] = first
    other = AdEMAMix(second, t_alpha=6, t_beta3=6)
    other.load_state_dict(one.state_dict())
    for _ in range(4):
        one.step(P)
        other.step(P)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "error", "argument"),
    [
        ({"t_alpha": 0}, ValueError, "t_alpha"),
        ({"t_beta3": 2.0}, TypeError, "t_beta3"),
        ({"t_beta3": True}, TypeError, "t_beta3"),
        ({"t_beta3": 5, "betas": (0.0, 0.9, 0.99)}, ValueError, "betas"),
        ({"t_beta3": 5, "betas": (0.9, 0.9, 0.0)}, ValueError, "betas"),
    ],
)
def test_bad_arguments(options, error, argument):
    with pytest.raises(error, match=f"^{argument}:"):
        AdEMAMix(P, **options)
    AdEMAMix(P, betas=(0.0, 0.0, 0.0)).step(np.zeros(10, np.float32))  # no logarithm without a schedule
