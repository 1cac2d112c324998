"""Handing out the numbers of pieces of work to the workers of a job, each number once.

Workers with even numbers are given 0, 1, 2 and so on, the others the last number, the last but one and so on,
until both meet. So with two workers each does about the same pieces in every call, and finds in its core's L2
what it wrote and read there before. One counter for both gave a piece now to one core and now to the other:
at 256 cubed that was 7 % of the time with VNNI, and half of it with AMX (`docs/scaling.md`).
"""

from __future__ import annotations

from lowgemm.jit.memory import atomic_add
from lowgemm.jit.routine import inner

#: The counters that a job has for this, int64 and zero in the beginning: pieces given out, those from the
#: front, those from the back.
GIVEN, FROM_FRONT, FROM_BACK, COUNTERS = range(4)


@inner
def next_number(counters, worker, total):
    """A number from 0 to `total` - 1 that nobody was given yet; -1: there is none. `counters` is a
    pointer, and `worker` the number of who asks.
    """
    if atomic_add(counters, GIVEN, 1) >= total:
        return -1
    # Whoever comes here has one of `total` numbers, so front and back do not overlap.
    if worker % 2 == 0:
        return atomic_add(counters, FROM_FRONT, 1)
    return total - 1 - atomic_add(counters, FROM_BACK, 1)
