"""Timing that compares: candidates are run in turn, and the medians are set side by side."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, NamedTuple

from lowgemm.jit.target import target


def interleave(
    candidates: dict[str, Callable[[], Any]], *, seconds: float = 1.0, least: int = 5, most: int = 200
) -> dict[str, float]:
    """Median seconds of each candidate, taken in turn so that all see the same weather.

    The order is another one in each round: threads of some libraries keep a core busy for 0.1 s after a call,
    and it would always be the same candidate that meets them. Each is called once before, unmeasured. Calls
    shorter than 200 us are measured in bunches, because the clock and the switch between candidates cost
    about a microsecond.
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
    rounds, order, shuffle = 0, list(candidates.items()), random.Random(0).shuffle
    while rounds < least or (time.perf_counter() < end and rounds < most):
        shuffle(order)
        for name, call in order:
            count = bunch[name]
            call()  # the candidate before left its own data in the caches
            start = time.perf_counter()
            for _ in range(count):
                call()
            times[name].append((time.perf_counter() - start) / count)
        rounds += 1
    return {name: statistics.median(t) for name, t in times.items()}


#: OpenBLAS's names of code that uses at most 256-bit registers.
_NARROW = frozenset({"Haswell", "Zen", "Sandybridge", "Bulldozer", "Piledriver", "Steamroller", "Excavator",
                     "Nehalem",
                     "Barcelona", "Core2", "Penryn", "Dunnington", "Prescott", "Atom", "Bobcat",
                     "Generic"})  # fmt: skip


class Blas(NamedTuple):
    """NumPy's BLAS while it is compared with.

    Attributes
    ----------
    text : str
        Which it is, whose code runs, and how it was held to its threads.
    pinned : bool
        Whether it was held to as many threads as lowgemm: without that there is nothing to compare.
    notes : tuple of str
        What else the reader of a ratio should know.
    """

    text: str
    pinned: bool
    notes: tuple[str, ...] = ()


def blas_notes(
    architectures: Iterable[str], features: Container[str], core_type: str | None
) -> tuple[str, ...]:
    """Why a BLAS may be slower than this CPU allows.

    Parameters
    ----------
    architectures : iterable of str
        OpenBLAS's names of the code that runs.
    features : container of str
        The CPU's instruction sets.
    core_type : str or None
        The environment variable ``OPENBLAS_CORETYPE``.

    Examples
    --------
    >>> blas_notes(["Haswell"], {"avx512f"}, "Haswell")
    ('OPENBLAS_CORETYPE=Haswell is set, and this CPU has AVX-512, which that code does not use: float32 is
    slower than it could be',)
    >>> blas_notes(["SkylakeX"], {"avx512f"}, None)
    ()
    """
    narrow = sorted(_NARROW.intersection(architectures)) if "avx512f" in features else []
    if narrow:
        cause = (
            f"OPENBLAS_CORETYPE={core_type} is set"
            if core_type
            else f"OpenBLAS chose its code for {narrow[0]}"
        )
        return (
            f"{cause}, and this CPU has AVX-512, which that code does not use: float32 is slower than it "
            "could be",
        )
    return (
        (f"OPENBLAS_CORETYPE={core_type} is set: it decides which code of OpenBLAS runs",)
        if core_type
        else ()
    )


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[Blas]:
    """Hold NumPy's BLAS to `count` threads; yields what it is and how that was done, for the report."""
    core_type = os.environ.get("OPENBLAS_CORETYPE")
    try:
        import threadpoolctl
    except ImportError:
        advice = "pip install threadpoolctl"
        threads = f"{count} thread{'s' if count > 1 else ''}"
        text = f"not held to {threads}, since threadpoolctl is not installed ({advice}), so no ratios"
        yield Blas(text, False, blas_notes((), (), core_type))
        return
    with threadpoolctl.threadpool_limits(count, user_api="blas"):
        found = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas"]
        text = ", ".join(
            f"{i['internal_api']} {i.get('version')} {i.get('architecture', '')}".strip() for i in found
        )
        notes = blas_notes([i.get("architecture", "") for i in found], target()[1], core_type)
        how = (
            f"{count} thread{'s' if count > 1 else ''} by threadpoolctl"
            if found
            else "not held to its threads, so no ratios"
        )
        yield Blas(f"{text or 'unknown BLAS'}, {how}", bool(found), notes)


def check_threads(count: int, name: str = "--threads") -> int:
    """A number of threads to measure with: at least 1, and no more than there are CPUs to run them.

    Raises
    ------
    ValueError
        If it is not.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= count <= cpus:
        raise ValueError(f"{name}: expected 1 to {cpus}, the CPUs of this process, got {count}")
    return count


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

    def clear(self) -> None:
        """Clear the line, for output that is to stay."""
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is at the end: full, if every step was taken."""
        if self.shown:
            bar = "#" * (20 * self.done // max(self.total, 1))
            print(f"\r\033[K[{bar:<20}] {self.done}/{self.total}", file=sys.stderr, flush=True)


class TableWriter:
    """A table whose rows are printed as they come: columns are as wide as their headings, `least` characters
    at least.
    """

    def __init__(self, header: list[str], first: int, least: int = 8) -> None:
        self.widths = [max(first, len(header[0])), *(max(least, len(h)) for h in header[1:])]
        self.row(header)
        self.row(["-" * w for w in self.widths])

    def row(self, cells: list[str]) -> None:
        """Print a row."""
        padded = [
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, self.widths, strict=True))
        ]
        print("  ".join(padded).rstrip(), flush=True)


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """Rows as aligned text, the first column to the left."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = []
    for r in [header, *rows]:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
