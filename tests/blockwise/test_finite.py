"""Steps at the end of what float32 holds: a block that would become NaN or infinite stays, all others step.

The compiled step looks at each new parameter only where it cannot know beforehand that all are finite
(`rules.certain`). Here the learning rate is chosen before every step so that the largest change, like the
largest parameter, is near the largest float32 in some blocks and far from it in others.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_optimizers import CLASSES, make

from lowgemm.blockwise import reference_optimizers
from lowgemm.blockwise.hyper import LARGEST, SMALLEST
from lowgemm.blockwise.optimizer import _plain_step
from lowgemm.blockwise.optimizers import LAMB, LARS, SGD, Adagrad, Adam, AdamW, AdEMAMix, Lion, RMSprop

BITS = np.uint32
#: Optimizers that divide by a root, and those that shrink the parameter by its decay.
DIVIDE = [Adam, AdamW, LAMB, AdEMAMix, RMSprop, Adagrad]
SHRINK = [Adam, AdamW, LAMB, AdEMAMix, Lion]
#: Decays with which these three take a rate of up to the largest float32: they divide it by ``1 - beta1``.
NO_MEAN = {cls: {"betas": (0, 0.999)} for cls in (Adam, AdamW, LAMB)}


class Definition:
    """The same steps by `reference_optimizers`, block by block: one that is not finite stays as it was."""

    def __init__(self, optimizer, p):
        self.optimizer, self.state = optimizer, deepcopy(optimizer._states[0])
        self.p = p.astype(np.float32).reshape(-1)

    def step(self, g):
        """Make the step; how many blocks stay."""
        h = self.optimizer._constants(self.optimizer.steps_done + 1)
        return _plain_step(self.optimizer.rule, self.p, g, self.state, h)

    def check(self, p):
        """Bits, so that NaN and the sign of 0 count."""
        np.testing.assert_array_equal(p.view(BITS), self.p.view(BITS))
        own = self.optimizer._states[0]
        for got, expected in zip(
            (*own.values, *own.scales), (*self.state.values, *self.state.scales), strict=True
        ):
            np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))


def step_both(optimizer, p, g, definition):
    """A step of both, compared; how many blocks stayed."""
    stay = definition.step(g)
    if stay:
        with pytest.raises(FloatingPointError, match=rf"^{stay} blocks"):
            optimizer.step(g)
    else:
        optimizer.step(g)
    definition.check(p)
    return stay


def change_of_unit_rate(optimizer, g):
    """The largest change of a parameter that a rate of 1 gives."""
    decay, optimizer.lr, optimizer.weight_decay = optimizer.weight_decay, 1, 0
    h = optimizer._constants(optimizer.steps_done + 1)
    optimizer.weight_decay = decay
    states = optimizer._states[0].decoded_flat()
    new, _ = reference_optimizers.update(optimizer.rule, np.zeros(g.size, np.float32), g, states, h)
    new = np.abs(new[np.isfinite(new)])
    return float(new.max(initial=0))


def set_rate(optimizer, g, exponent, shrink=None):
    """A rate with which the largest change is about ``2**exponent``, and a decay that gives `shrink`; whether
    float32 can hold them.
    """
    unit = change_of_unit_rate(optimizer, g)
    if unit == 0 or not 0 < 2.0**exponent / unit <= LARGEST:
        return False
    optimizer.lr, optimizer.weight_decay = 2.0**exponent / unit, 0
    if shrink is not None:
        decay = (1 - shrink) / optimizer.lr
        if not 0 <= decay <= LARGEST:
            return False
        optimizer.weight_decay = decay
    try:
        optimizer._constants(optimizer.steps_done + 1)
    except ValueError:
        return False
    return True


#: Exponents of numbers that are ordinary, or near the largest of float32 (128 is beyond).
EXPONENTS = st.one_of(st.floats(-60, 20), st.floats(121, 127.99))


@pytest.mark.parametrize("cls", CLASSES)
@given(
    n=st.integers(1, 700),
    blocksize=st.sampled_from([16, 64, 100, 128, 256]),
    wide=st.booleans(),
    mean=st.booleans(),
    blocks=st.lists(EXPONENTS, min_size=1, max_size=5),
    gradients=st.lists(st.floats(-70, 59), min_size=1, max_size=3),
    changes=st.lists(EXPONENTS, min_size=2, max_size=2),
    shrink=st.sampled_from([None, None, 0.5, 0.0, -0.75, -8.0]),
    eps=st.one_of(st.just(1e-8), st.floats(-37.9, 38).map(lambda x: 10.0**x)),
    odd=st.sampled_from([0.0, 0.0, np.nan, np.inf, -np.inf]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_extreme_steps_equal_the_definition(
    cls, n, blocksize, wide, mean, blocks, gradients, changes, shrink, eps, odd, seed
):
    rng = np.random.default_rng(seed)
    size = np.resize(np.exp2(blocks), -(-n // blocksize)).repeat(blocksize)[:n]
    p = (rng.uniform(-1, 1, n) * size).astype(np.float32)
    p[rng.integers(n)] *= 1 + odd  # NaN and infinity do not go away
    options = {} if mean else dict(NO_MEAN.get(cls, {}))
    if cls in DIVIDE:
        options["eps"] = max(eps, SMALLEST)
    optimizer = make(cls, p, weight_decay=0, blocksize=blocksize, min_8bit_size=n + wide, **options)
    definition = Definition(optimizer, p)
    for exponent in changes:
        sizes = np.resize(np.exp2(gradients), -(-n // blocksize)).repeat(blocksize)[:n]
        g = (rng.uniform(-1, 1, n) * sizes).astype(np.float32)
        assume(set_rate(optimizer, g, exponent, shrink))
        step_both(optimizer, p, g, definition)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("blocksize", [64, 100, 256])
def test_a_sum_just_beyond_float32(cls, wide, blocksize):
    """Neither parameter nor change is beyond 2**127, but their sum is beyond float32, in one block."""
    p = np.full(1000, 1, np.float32)
    p[300] = np.nextafter(np.float32(2**127), np.float32(0))
    optimizer = make(
        cls, p, weight_decay=0, blocksize=blocksize, min_8bit_size=9999 if wide else 0, **NO_MEAN.get(cls, {})
    )
    g = np.full(1000, -1, np.float32)
    assert set_rate(optimizer, g, 126.5)
    assert step_both(optimizer, p, g, Definition(optimizer, p)) == 0
    p[300] = np.nextafter(np.float32(2**127), np.float32(0))
    definition = Definition(optimizer, p)
    assert set_rate(optimizer, g, 127.0001)
    assert step_both(optimizer, p, g, definition) == 1


@pytest.mark.parametrize("cls", [SGD, LARS, Lion])
@pytest.mark.parametrize("wide", [False, True])
def test_a_sum_that_is_the_first_beyond_float32(cls, wide):
    """2**127 + 2**127: both are finite."""
    p = np.ones(1000, np.float32)
    p[300] = 2.0**127
    optimizer = make(cls, p, lr=2.0**127, weight_decay=0, min_8bit_size=9999 if wide else 0)
    assert step_both(optimizer, p, np.full(1000, -1, np.float32), Definition(optimizer, p)) == 1


@pytest.mark.parametrize("cls", SHRINK)
@pytest.mark.parametrize("wide", [False, True])
def test_a_decay_that_makes_a_parameter_too_large(cls, wide):
    """1 - lr * weight_decay is -2**70 here; the change by the gradient is small."""
    p = np.ones(1000, np.float32)
    p[300] = 2.0**60
    optimizer = make(cls, p, lr=1, weight_decay=2.0**70, min_8bit_size=9999 if wide else 0)
    assert step_both(optimizer, p, np.ones(1000, np.float32), Definition(optimizer, p)) == 1
    assert p[300] == 2.0**60 and p[0] < -(2.0**69)


@pytest.mark.parametrize("cls", DIVIDE)
@pytest.mark.parametrize("wide", [False, True])
def test_a_numerator_beyond_float32(cls, wide):
    """The rate times the gradient is infinite, and the quotient by a large `eps` would not have been."""
    p = np.zeros(1000, np.float32)
    optimizer = make(cls, p, lr=1e30, eps=1e37, weight_decay=0, min_8bit_size=9999 if wide else 0)
    g = np.ones(1000, np.float32)
    g[300] = 1e17
    if cls is AdEMAMix:
        optimizer.alpha, optimizer.lr = 1e36, 1e-30
    assert step_both(optimizer, p, g, Definition(optimizer, p)) == 1


@pytest.mark.parametrize("wide", [False, True])
def test_a_quotient_beyond_float32_times_a_small_rate(wide):
    """AdEMAMix takes its rate times a quotient. That is infinite here, although the product would not be."""
    p = np.zeros(1000, np.float32)
    optimizer = AdEMAMix(p, lr=1e-30, eps=1e-30, weight_decay=0, min_8bit_size=9999 if wide else 0)
    g = np.zeros(1000, np.float32)
    g[300] = 1e-23  # its square is 0 in float32
    optimizer.alpha = 1e36
    assert step_both(optimizer, p, g, Definition(optimizer, p)) == 1


@pytest.mark.parametrize(
    ("cls", "wide"), [*((cls, True) for cls in DIVIDE), (RMSprop, False), (Adagrad, False)]
)
@pytest.mark.parametrize("blocksize", [64, 256])
def test_a_negative_square(cls, wide, blocksize):
    """No state that can be loaded has one. If its memory was written to, no NaN gets into the parameters."""
    p = np.ones(1000, np.float32)
    optimizer = make(cls, p, weight_decay=0, blocksize=blocksize, min_8bit_size=9999 if wide else 0)
    g = np.ones(1000, np.float32)
    optimizer.step(g)
    before, state = p.copy(), optimizer._states[0]
    state.values[-1][300] = -5 if wide else np.argmin(state.books[-1].values)
    g[:] = 0
    assert step_both(optimizer, p, g, Definition(optimizer, p)) == 1
    np.testing.assert_array_equal(p[256:320], before[256:320])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("wide", [False, True])
def test_parameters_of_16_bits_at_the_end_of_their_range(cls, kind, wide):
    """They are computed as float32 by blocks; then an element that 16 bits cannot hold stays by itself."""
    if kind == "float16":
        dtype, largest, exponents = np.dtype(np.float16), 65504.0, (3, 14, 16.5, 127.0001)
    else:
        dtype = np.dtype(pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed").bfloat16)
        largest, exponents = float.fromhex("0x1.fep127"), (3, 126, 127.0001)
    rng = np.random.default_rng(5)
    start = rng.uniform(-1, 1, 1000) * np.float64([1, 2, largest, 5]).repeat(256)[:1000]
    start[600] = -largest
    p = start.astype(np.float32).astype(dtype)
    optimizer = make(cls, p, weight_decay=0, min_8bit_size=9999 if wide else 0, **NO_MEAN.get(cls, {}))
    definition = Definition(optimizer, p)
    seen = set()
    for exponent in exponents:
        g = rng.uniform(0.5, 1, 1000).astype(np.float32)
        assert set_rate(optimizer, g, exponent)
        before = p.copy()
        definition.p = before.astype(np.float32)
        stay = definition.step(g)
        with np.errstate(over="ignore"):
            expected = definition.p.astype(dtype)
        lost = np.isinf(expected.astype(np.float32)) & np.isfinite(definition.p)
        expected[lost] = before[lost]
        seen.add((stay > 0, bool(lost.any())))
        if stay or lost.any():
            match = rf"^{stay} blocks" if stay else rf"^{lost.sum()} parameters"
            with pytest.raises(FloatingPointError, match=match):
                optimizer.step(g)
        else:
            optimizer.step(g)
        np.testing.assert_array_equal(p.view(np.uint16), expected.view(np.uint16))
        definition.p = p.astype(np.float32)
        definition.check(definition.p)
    assert len(seen) > 1  # steps of more than one kind


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("largest", "change"), [(LARGEST, 110), (2.0**126, 127.9)])
def test_one_of_parameter_and_change_is_far_below(cls, wide, largest, change):
    """The other alone makes the sum infinite."""
    p = np.ones(1000, np.float32)
    p[300] = largest
    options = {
        **NO_MEAN.get(cls, {}),
        **({"eps": 1 / 16} if cls in DIVIDE else {}),
    }  # the bound divides by eps
    optimizer = make(cls, p, weight_decay=0, min_8bit_size=9999 if wide else 0, **options)
    g = np.full(1000, -1, np.float32)
    assert set_rate(optimizer, g, change)
    assert step_both(optimizer, p, g, Definition(optimizer, p)) == 1


@pytest.mark.parametrize("cls", DIVIDE)
@pytest.mark.parametrize("wide", [False, True])
def test_a_quotient_just_beyond_float32(cls, wide):
    """The square of the gradient is 0 in float32, so `eps` is the divisor. Corrections of the mean count."""
    p = np.zeros(1000, np.float32)
    optimizer = make(cls, p, eps=1.2e-38, weight_decay=0, min_8bit_size=9999 if wide else 0)
    if cls is AdEMAMix:
        optimizer.alpha = 0
    g = np.zeros(1000, np.float32)
    g[300] = 1e-23
    assert set_rate(optimizer, g, 128.3)
    assert step_both(optimizer, p, g, Definition(optimizer, p)) == 1


@pytest.mark.parametrize("cls", [RMSprop, Adagrad])
@pytest.mark.parametrize("wide", [False, True])
def test_a_change_by_decay_alone(cls, wide):
    """These two add the decay to the gradient, which is 0 here."""
    p = np.zeros(1000, np.float32)
    p[300] = 1e-24
    optimizer = make(cls, p, lr=1e25, eps=1.2e-38, weight_decay=1, min_8bit_size=9999 if wide else 0)
    assert step_both(optimizer, p, np.zeros(1000, np.float32), Definition(optimizer, p)) == 1
