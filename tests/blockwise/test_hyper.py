"""Hyper-parameters are checked in the constructor and whenever they are set."""

from __future__ import annotations

import numpy as np
import pytest
from test_optimizers import CLASSES

from lowgemm.blockwise import Adagrad, Adam, AdEMAMix, RMSprop

P = np.ones(10, np.float32)
BAD = {
    "lr": [-1, np.nan, np.inf, 1e39, "1", None],
    "weight_decay": [-1e-9, np.inf, 1e300, True],
    "eps": [0, 0.0, -1e-8, 1e-46, 1e-39, np.nan, 1e39],
    "betas": [(0.9,) * 4, 0.9, (1.0, 0.9, 0.9), None],
    "momentum": [1, -0.1],
    "t_alpha": [0, 1.5],
}


@pytest.mark.parametrize("cls", CLASSES)
def test_all_of_every_optimizer(cls):
    p = P.copy()
    optimizer = cls(p, lr=0.1)
    checked = 0
    for name, values in BAD.items():
        if not hasattr(optimizer, name):
            continue
        before = getattr(optimizer, name)
        for value in values:
            with pytest.raises((TypeError, ValueError), match=f"^{name}:"):
                cls(p, **{"lr": 0.1, name: value})
            with pytest.raises((TypeError, ValueError), match=f"^{name}:"):
                setattr(optimizer, name, value)
            assert getattr(optimizer, name) == before
            checked += 1
    assert checked >= 10
    optimizer.step(P)  # the refused ones left no trace
    q = P.copy()
    cls(q, lr=0.1).step(P)
    np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("cls", [Adam, AdEMAMix, RMSprop, Adagrad])
@pytest.mark.parametrize("wide", [False, True])
def test_a_gradient_of_zero_is_no_step(cls, wide):
    """With the smallest eps, as with any: 0 / eps. With 0, which is refused, it would be 0 / 0."""
    p = np.linspace(1, 2, 600, dtype=np.float32)
    before = p.copy()
    optimizer = cls(p, lr=0.1, eps=2.0**-126, weight_decay=0, min_8bit_size=9999 if wide else 0)
    optimizer.step(np.zeros(600, np.float32))
    np.testing.assert_array_equal(p, before)


def test_a_rate_whose_step_overflows():
    p = P.copy()
    optimizer = Adam(p, lr=1e38, betas=(0.99, 0.9))
    with pytest.raises(ValueError, match=r"^lr: .*1e\+38"):
        optimizer.step(P)
    assert optimizer.steps_done == 0 and (p == 1).all()
