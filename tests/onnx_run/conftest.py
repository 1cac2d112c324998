"""One thread and two for the passes between products."""

from __future__ import annotations

import pytest

from lowgemm.engine import parts


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch) -> int:
    """Threads of a model or a pass; with two, whatever has two pieces is shared, however short it is."""
    if request.param > 1:
        monkeypatch.setattr(parts, "NANOSECONDS", 1e-9)
    return request.param
