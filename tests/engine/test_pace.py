"""One thread for a while after a call on several that took too long, and back again."""

from __future__ import annotations

import numpy as np
import pytest

import lowgemm
from lowgemm.engine import drivers, pace, threads
from lowgemm.engine.pace import FACTOR, IN_TIME, LATE, LONGEST, SHORTEST, WORTH_KNOWING, Pace


@pytest.fixture(autouse=True)
def company(monkeypatch):
    """Nothing known of other threads."""
    monkeypatch.setattr(pace, "company", pace._Company())
    return pace.company


def test_a_late_call_is_followed_by_one_thread_for_longer_each_time(company):
    plan, now, pause = Pace(10**9), 100.0, SHORTEST
    plan.took(2, 0.5 * LATE, now)
    for _ in range(6):
        assert plan.team(2, now) == 2
        plan.took(2, 10 * LATE, now)
        assert plan.team(2, now) == plan.team(2, now + 0.99 * pause) == 1
        now += 1.01 * pause
        pause = min(pause * FACTOR, LONGEST)
    for _ in range(10 * IN_TIME):
        plan.took(2, 0.5 * LATE, now)
    assert company.pause == SHORTEST


def test_what_is_not_late(company):
    plan = Pace(10**9)
    plan.took(2, 50 * LATE, 0.0)  # a first call loads code and touches new memory
    assert company.until == 0
    plan = Pace(WORTH_KNOWING + 1)
    for seconds in (1.0, 1.2, 0.9, 1.3):  # a long one, as always
        plan.took(2, seconds, 0.0)
        assert company.until == 0 and plan.team(2, 0.0) == 2
    plan = Pace(10**6)
    for seconds in (1e-5, 9e-4):  # noise of a short one
        plan.took(2, seconds, 0.0)
        assert company.until == 0


def test_a_slow_first_call_is_followed_by_one_on_one_thread():
    plan = Pace(10**9)
    plan.took(2, 5 * LATE, 0.0)
    assert plan.team(2, 0.0) == 1
    plan.took(1, 0.3 * LATE, 0.0)
    assert plan.team(2, 0.0) == 2 and plan.alone == 0.3 * LATE
    plan.took(2, 5 * LATE, 0.0)
    assert plan.team(2, 0.0) == 1
    long = Pace(WORTH_KNOWING + 1)
    long.took(2, 5 * LATE, 1.0)
    assert long.team(2, 1.0) == 2


def test_products_take_one_thread_meanwhile(monkeypatch):
    monkeypatch.setattr(threads, "MACS_PER_THREAD", 1000)
    a = np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)
    exact, used = a.astype(np.int64) @ a.astype(np.int64), []
    inside, serial = drivers.run_parallel.dispatcher, drivers.run_serial.dispatcher
    monkeypatch.setattr(drivers.run_parallel, "dispatcher", lambda *args: (used.append(2), inside(*args)))
    monkeypatch.setattr(drivers.run_serial, "dispatcher", lambda *args: (used.append(1), serial(*args)))
    planned = lowgemm.plan(a, a, num_threads=2)
    clock = iter([10.0, 10.001, 20.0, 20.001, 30.0, 30.001])
    monkeypatch.setattr(threads, "perf_counter", lambda: next(clock))
    for _ in range(3):
        assert (planned(a, a) == exact).all()
    assert used == [2, 2, 2]
    clock = iter([50.0, 60.0, 60.0, 60.001, 70.0, 70.001])
    for _ in range(3):  # ten seconds; right after that; when all is over
        assert (planned(a, a) == exact).all()
    assert used == [2, 2, 2, 2, 1, 2]
