"""Short forms of the fuzz; the long one is ``python -m tests.reliability.fuzz --calls 1000000 --seed 1``."""

from __future__ import annotations

import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

import lowgemm
from lowgemm.engine import threads

from . import fuzz, session


def test_short_run():
    result = fuzz.run(3000, seed=0)
    assert not result["wrong"], result["wrong"][0][2]
    assert result["calls"] >= 3000 and result["refused"] > 500


def test_the_fuzz_notices_a_wrong_answer(monkeypatch):
    """One bit of one result in a hundred."""
    true = lowgemm.gemm
    calls = []

    def lying(*args, **kwargs):
        out = true(*args, **kwargs)
        calls.append(1)
        if len(calls) % 100 == 0 and out.size:
            out.flat[0] = out.flat[0] + 1
        return out

    monkeypatch.setattr(lowgemm, "gemm", lying)
    result = fuzz.run(1500, seed=0)
    assert any(kind == "wrong" for _, kind, _ in result["wrong"])


@pytest.fixture(autouse=True)
def settings_as_before(monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", None)
    monkeypatch.setattr(lowgemm.config, "num_threads", None)
    monkeypatch.setattr(threads, "MACS_PER_THREAD", 5000)


class Program(RuleBasedStateMachine):
    """A program that packs, plans, multiplies and changes settings in an order that hypothesis chooses and
    shrinks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.session = session.Session(0, largest=30)

    @rule(
        step=st.sampled_from(session.NAMES),
        seed=st.integers(0, 2**32 - 1),
    )
    def make(self, step: str, seed: int) -> None:
        program = self.session
        program.r.seed(seed)
        program.g = np.random.default_rng(seed)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            program.take(step)


TestProgram = Program.TestCase
TestProgram.settings = hypothesis.settings(max_examples=25, stateful_step_count=30, deadline=None)
