"""Timing that compares: candidates are run in turn, and the medians are set side by side."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


def interleave(
    candidates: dict[str, Callable[[], Any]], *, seconds: float = 1.0, least: int = 5, most: int = 200
) -> dict[str, float]:
    """Median seconds of each candidate, taken in turn so that all see the same weather.

    Each is called once before, unmeasured. Calls shorter than 200 us are measured in bunches, because the clock
    and the switch between candidates cost about a microsecond.
    """
    bunch = {}
    for name, call in candidates.items():
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        bunch[name] = max(1, min(1000, int(200e-6 / max(once, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or (time.perf_counter() < end and rounds < most):
        for name, call in candidates.items():
            count = bunch[name]
            call()  # the candidate before left its own data in the caches
            start = time.perf_counter()
            for _ in range(count):
                call()
            times[name].append((time.perf_counter() - start) / count)
        rounds += 1
    return {name: statistics.median(t) for name, t in times.items()}


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[str]:
    """Pin NumPy's BLAS to `count` threads; yields how that was done, for the report."""
    try:
        import threadpoolctl
    except ImportError:
        yield "not pinned (threadpoolctl is not installed; set OPENBLAS_NUM_THREADS)"
        return
    with threadpoolctl.threadpool_limits(count, user_api="blas"):
        found = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas"]
        text = ", ".join(
            f"{i['internal_api']} {i.get('version')} {i.get('architecture', '')}".strip() for i in found
        )
        yield f"{text or 'unknown BLAS'}, {count} thread{'s' if count > 1 else ''} by threadpoolctl"


class Progress:
    """A line on standard error that says how far a long command is; silent unless that is a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.shown = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Say what is being done now."""
        if self.shown:
            bar = "#" * (20 * self.done // max(self.total, 1))
            print(f"\r\033[K[{bar:<20}] {self.done}/{self.total} {text}", end="", file=sys.stderr, flush=True)
        self.done += 1

    def close(self) -> None:
        """Clear the line."""
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """Rows as aligned text, the first column to the left."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = []
    for r in [header, *rows]:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
