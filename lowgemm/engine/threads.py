"""How many threads a call may use, and running a job on them: on the team of `jit/team.py`, or by `region.py`
where there is none. Either way Python threads that all call at once (Dask, joblib) share the threads.
"""

from __future__ import annotations

import os

import numba

from lowgemm import config
from lowgemm.checks.arguments import as_num_threads
from lowgemm.engine import region
from lowgemm.jit import team
from lowgemm.jit.routine import Routine

#: Multiply-accumulates for each thread at least. Measured on two cores of an Intel Xeon at 330 GMAC/s each:
#: two threads were 0.9 times as fast as one at 128 cubed (2 million), 1.26 at 192 (7 million), 1.5 at 256 (17
#: million).
MACS_PER_THREAD = 4_500_000
#: What one thread does in a nanosecond, by which times are reckoned.
MACS_PER_NANOSECOND = 330
#: The least while the team is held (`jit/team.py`), so that its threads look for work already: 2.3 us of one
#: thread. Products of one row of 1024 x 512 and of 9 of 512 x 1024, whose weights come from L3, take
#: two threads 0.80 and 0.63 of one thread's time then, 9 x 512 x 384 (1.8 million) 0.84, or 1.16 (0.5 us
#: more) with its weights in L2.
MACS_PER_THREAD_HELD = 750_000
#: Multiply-accumulates from which on it pays to wake a thread (0.1 ms at 330 GMAC/s): the caller spends 7 us
#: on it, and the thread begins 20 to 45 us later. After a NumPy product, on a virtual machine, they are 40
#: and 60; one thread and two took 116 and 110 us at 320 cubed then, 206 and 194 at 384, 324 and 246 at 448.
LONG_MACS = 1 << 25
#: What reading a byte of the rhs counts for (500 GMAC/s, and 60 GB/s from L3).
MACS_PER_BYTE = 8

config.check_with("num_threads", as_num_threads)


def _inherited_limit() -> int | None:
    """``OMP_NUM_THREADS``, unless Numba is told otherwise: Dask's workers are started with that, and only
    that, set.
    """
    if "NUMBA_NUM_THREADS" in os.environ:
        return None
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


_inherited = _inherited_limit()


def settings() -> tuple[int | None, int]:
    """Thread settings that a plan depends on."""
    return config.num_threads, numba.get_num_threads()


def _least(held: bool) -> int:
    """Multiply-accumulates for each thread at least."""
    return MACS_PER_THREAD_HELD if held else MACS_PER_THREAD


def worth_threads(requested: int | None, macs: int, held: bool = False) -> bool:
    """Whether the settings matter at all for a product of `macs` multiply-accumulates."""
    return requested != 1 and macs >= 2 * _least(held)


def default_threads() -> int:
    """Upper bound on the threads of a call that does not say ``num_threads=``."""
    configured, available = settings()
    limit = configured if configured is not None else _inherited
    return available if limit is None else max(1, min(limit, available))


def choose_threads(requested: int | None, macs: int, held: bool = False) -> int:
    """Threads for a product of `macs` multiply-accumulates; `held`: the team will be held meanwhile.

    Never more than asked for, than `config.num_threads` (or else ``OMP_NUM_THREADS``), than Numba's own
    setting, or than pays.
    """
    if not worth_threads(requested, macs, held):
        return 1
    return max(1, min(most_threads(requested), macs // _least(held)))


def most_threads(requested: int | None) -> int:
    """Threads of a call that asks for `requested`, if all of them pay."""
    return default_threads() if requested is None else min(requested, numba.get_num_threads())


def run(job: Routine, a: int, b: int, workers: int, long: bool = True) -> None:
    """Run a job (see `jit/team.py`) on at most `workers` threads; any number of them does all its work."""
    standing = team.the_team()
    if standing is not None:
        standing.run(job.address, a, b, workers, long)
    else:
        region.run(job, a, b, workers)


def helpers(num_threads: int | None) -> tuple[team.Team, int] | None:
    """The team, and how many of its threads a call that asks for `num_threads` may use beside its own; None
    for none.
    """
    standing = team.the_team() if num_threads != 1 else None
    count = 0 if standing is None else most_threads(num_threads) - 1
    return None if standing is None or count < 1 else (standing, count)
