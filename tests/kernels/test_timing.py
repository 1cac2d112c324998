"""Candidates that are timed in turn."""

from __future__ import annotations

import itertools

from lowgemm.kernels.tools.timing import interleave


def test_nobody_always_follows_the_same():
    seen: list[str] = []
    times = interleave({name: lambda name=name: seen.append(name) for name in "abcd"}, seconds=0, least=20)
    assert set(times) == set("abcd") and all(seconds > 0 for seconds in times.values())
    followed = {pair for pair in itertools.pairwise(seen) if pair[0] != pair[1]}
    assert len(followed) == 12, "of four candidates each should follow each other one in some round"
