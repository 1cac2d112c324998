"""Cache sizes where the system tells all, some or none of them."""

from __future__ import annotations

import pytest

from lowgemm.jit import host
from lowgemm.jit.caches import FALLBACK, cache_sizes, complete


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, FALLBACK),
        ({1: 48 << 10}, (48 << 10, 256 << 10, 4 << 20)),
        ({1: 512 << 10}, (512 << 10, 512 << 10, 4 << 20)),
        ({1: 128 << 10, 2: 16 << 20}, (128 << 10, 16 << 20, 16 << 20)),
        ({1: 48 << 10, 2: 2 << 20, 3: 480 << 20}, (48 << 10, 2 << 20, 480 << 20)),
    ],
)
def test_guesses_for_what_is_not_told(found, expected):
    assert complete(found) == expected


def test_asks_the_system(monkeypatch):
    monkeypatch.setattr(host, "caches", lambda: {2: 3 << 20})
    assert cache_sizes.__wrapped__() == (32 << 10, 3 << 20, 4 << 20)
