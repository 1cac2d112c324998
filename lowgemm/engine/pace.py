"""When a second thread is not to be had: how long a plan's calls take, and one thread for a while after one that took too long.

A parallel region ends when its last thread does. If other threads take the cores, that thread may wait for a time slice, while this one
spins for it. OpenBLAS's threads do that for 100 ms after each NumPy product: on two cores (Zen 5) 512 cubed, 0.15 ms on two threads and
0.27 on one, took 3 to 8 ms right after one, and the product of NumPy that came next 4 instead of 0.6. No setting of GNU OpenMP
(`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`) is good with and without such company.
"""

from __future__ import annotations

import math

#: Seconds from which a call may be late at all: shorter ones are noise.
LATE = 1e-3
#: Seconds for which calls take one thread after a late one: few at first (a thread that had slept may wake on the wrong core, once), then
#: four times as many for each that follows, up to twice of what OpenBLAS's threads stay awake.
SHORTEST, LONGEST, FACTOR = 0.003, 0.2, 4
#: Calls in time, one after the other, that undo one late call.
IN_TIME = 50
#: Multiply-accumulates up to which a slow first call is followed by one on one thread, to know what to expect (4 ms at 500 GMAC/s).
WORTH_KNOWING = 2 << 30


class _Company:
    """What is known of other threads on these cores; Python threads share it, as any of their numbers will do."""

    def __init__(self) -> None:
        #: Calls take one thread until then; how long it will be next time; calls in time since the last late one.
        self.until, self.pause, self.in_time = 0.0, SHORTEST, 0

    def late(self, now: float) -> None:
        self.until = now + self.pause
        self.pause, self.in_time = min(self.pause * FACTOR, LONGEST), 0

    def on_time(self) -> None:
        self.in_time += 1
        if self.in_time >= IN_TIME:
            self.pause, self.in_time = max(self.pause / FACTOR, SHORTEST), 0


company = _Company()


class Pace:
    """What is known of the calls of one plan."""

    def __init__(self, macs: int) -> None:
        #: Seconds on one thread, at most.
        self.alone = math.inf
        self.calls = 0
        self.unknown = macs <= WORTH_KNOWING

    def team(self, wanted: int, now: float) -> int:
        """Threads for a call that begins now, where `wanted` could be had."""
        if wanted > 1 and (
            now < company.until or (self.unknown and self.calls == 1 and self.alone > 2 * LATE)
        ):
            return 1
        return wanted

    def took(self, workers: int, seconds: float, now: float) -> None:
        """Note a call that has just ended."""
        self.calls += 1
        if workers > 1:
            if self.calls > 1 and seconds > max(LATE, 1.5 * self.alone):
                company.late(now)
            else:
                company.on_time()
        self.alone = min(self.alone, seconds * workers)
