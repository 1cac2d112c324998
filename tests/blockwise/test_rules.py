"""The compiled rules, by the steps of every optimizer, against the same rules in NumPy: equal bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_optimizers import CLASSES, make

from lowgemm.blockwise import reference, reference_optimizers


class Plain:
    """The same optimizer, written with the reference functions only."""

    def __init__(self, optimizer, p):
        self.optimizer, self.p = optimizer, p.astype(np.float32).reshape(-1)
        self.wide = p.size < optimizer.min_8bit_size
        self.values = [book.values for book in optimizer._states[0].books]
        zeros = np.zeros(p.size, np.float32)
        self.states = [
            zeros if self.wide else reference.quantize(zeros, v, optimizer.blocksize) for v in self.values
        ]
        self.steps = 0

    def step(self, g):
        self.steps += 1
        size = self.optimizer.blocksize
        h = self.optimizer._constants(self.steps)
        old = self.states
        if not self.wide:
            old = [reference.dequantize(*s, v, size) for s, v in zip(old, self.values, strict=True)]
        self.p, new = reference_optimizers.update(
            self.optimizer.rule, self.p, g.astype(np.float32).reshape(-1), old, h
        )
        if not self.wide:
            new = [reference.quantize(s, v, size) for s, v in zip(new, self.values, strict=True)]
        self.states = new

    def check(self, p, state):
        np.testing.assert_array_equal(p.reshape(-1), self.p.astype(p.dtype))
        for k, s in enumerate(self.states):
            np.testing.assert_array_equal(state.values[k], s if self.wide else s[0])
            if not self.wide:
                np.testing.assert_array_equal(state.scales[k], s[1])


@pytest.mark.parametrize("cls", CLASSES)
@given(
    n=st.integers(1, 2500),
    blocksize=st.sampled_from([1, 7, 64, 100, 192, 256, 1000, 3000]),
    wide=st.booleans(),
    decay=st.sampled_from([0.0, 0.1]),
    exponent=st.integers(-30, 6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=12, deadline=None)
def test_equals_the_rules(cls, n, blocksize, wide, decay, exponent, seed):
    rng = np.random.default_rng(seed)
    p = rng.standard_normal(n).astype(np.float32)
    optimizer = make(cls, p, weight_decay=decay, blocksize=blocksize, min_8bit_size=n + wide)
    plain = Plain(optimizer, p)
    for _ in range(3):
        g = (rng.standard_t(2, n) * 10.0**exponent * (rng.random(n) < 0.9)).astype(np.float32)
        optimizer.step(g)
        plain.step(g)
        plain.check(p, optimizer._states[0])
