"""The compiled step: a block whose new values are not all finite stays as it was, and no other does."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from test_optimizers import CLASSES, NO_JIT, make
from test_rules import Plain

from lowgemm.blockwise.optimizers import Adagrad, Adam, AdamW, AdEMAMix, RMSprop


@pytest.mark.parametrize("plain", [0, 1])
@pytest.mark.parametrize("wide", [False, True])
def test_overflow_leaves_the_block(wide, plain, monkeypatch):
    p = np.ones(1000, np.float32)
    p[300] = 1e25  # its square is beyond float32
    optimizer = RMSprop(p, weight_decay=1.0, blocksize=256, min_8bit_size=9999 if wide else 0)
    monkeypatch.setattr(numba.config, "DISABLE_JIT", plain or NO_JIT)
    before = p.copy()
    with pytest.raises(FloatingPointError, match=r"^1 blocks"):
        optimizer.step(np.ones(1000, np.float32))
    np.testing.assert_array_equal(p[256:512], before[256:512])
    assert (optimizer.state_of(0)["v"][256:512] == 0).all()
    assert (p[:256] < 1).all() and (p[512:] < 1).all()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("plain", [0, 1])
@pytest.mark.parametrize(
    ("wide", "blocksize"), [(False, 256), (False, 192), (False, 100), (True, 256), (True, 64)]
)
def test_a_parameter_that_overflows_leaves_its_block(cls, wide, blocksize, plain, monkeypatch):
    """States are fine here, but the new parameter is beyond float32: neither may change."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", plain or NO_JIT)
    p = np.ones(1152, np.float32)
    optimizer = make(cls, p, lr=2e35, weight_decay=0, blocksize=blocksize, min_8bit_size=9999 if wide else 0)
    g = np.full(1152, 1e-3, np.float32)
    optimizer.step(np.zeros_like(g))
    p[:], p[300] = 0, 3.4028e38  # in block 1 to 4
    g[300] = -1000
    before, state = p.copy(), optimizer.state_of(0)
    old = optimizer.state_dict()
    with pytest.raises(FloatingPointError, match=r"^1 blocks of parameters and states"):
        optimizer.step(g)
    first = 300 // blocksize * blocksize
    here = slice(first, first + blocksize)
    np.testing.assert_array_equal(p[here], before[here])
    for name, a in optimizer.state_of(0).items():
        np.testing.assert_array_equal(a[here], state[name][here])
    for key, a in optimizer.state_dict().items():
        if key.endswith("/codes"):
            np.testing.assert_array_equal(a[here], old[key][here])
    assert np.isfinite(p).all() and (np.delete(p, np.r_[here]) != 0).all()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("blocksize", [64, 100, 256])
def test_parameters_near_the_largest_of_float32_equal_the_rules(cls, wide, blocksize):
    """It is not certain beforehand that they stay finite, but they do."""
    rng = np.random.default_rng(blocksize)
    p = (rng.uniform(-3e38, 3e38, 1000)).astype(np.float32)
    optimizer = make(cls, p, weight_decay=0, blocksize=blocksize, min_8bit_size=9999 if wide else 0)
    plain = Plain(optimizer, p)
    for _ in range(3):
        g = rng.standard_normal(1000, np.float32)
        optimizer.step(g)
        plain.step(g)
        plain.check(p, optimizer._states[0])


@pytest.mark.parametrize("cls", [Adam, AdamW, AdEMAMix, RMSprop, Adagrad])
@pytest.mark.parametrize("wide", [False, True])
def test_a_quotient_that_overflows_leaves_its_block(cls, wide):
    """The square of the gradient is 0 in float32, and the divisor the smallest `eps`."""
    p = np.ones(1000, np.float32)
    optimizer = make(
        cls, p, lr=1e30, eps=1.2e-38, weight_decay=0, blocksize=256, min_8bit_size=9999 if wide else 0
    )
    g = np.zeros(1000, np.float32)
    g[300] = 1e-24
    with pytest.raises(FloatingPointError, match=r"^1 blocks"):
        optimizer.step(g)
    assert (p == 1).all() and all((s == 0).all() for s in optimizer.state_of(0).values())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unchecked_gradient_leaves_its_block(cls, wide, bad):
    p = np.ones(1000, np.float32)
    optimizer = make(cls, p, min_8bit_size=9999 if wide else 0, check_first=False)
    g = np.ones(1000, np.float32)
    g[300] = bad
    with pytest.raises(FloatingPointError, match=r"^1 blocks"):
        optimizer.step(g)
    assert (p[256:512] == 1).all() and (p[:256] < 1).all() and (p[512:] < 1).all()
    assert all((s[256:512] == 0).all() for s in optimizer.state_of(0).values())
