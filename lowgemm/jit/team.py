"""A standing team of threads that runs compiled jobs. `share` runs a job on this thread and on those of the
team that come in time.

A job is a routine ``work(a, b, worker)``. Each of its workers calls it once, the caller of `share` as worker
0, a helper of the team as another number below the `workers` that `share` was given. It takes pieces of work
from a counter of its own until none is left, so any number of workers does all the work.

**Nobody is waited for who has not begun.** The caller opens the job and begins at once. A helper enters a job
that is open and has places left. When the caller finds no more work it closes the job and waits for the
helpers inside. A helper that is late finds the job closed. So what the job reads must live until `share`
returns, and no longer.

**Memory of the team.** It is never freed, so a helper may look at it however late it is. `HEAD` comes first,
then a seat for each helper, then slots for jobs that are open at once. All that decides about a job is one
number, its slot's first: whether a caller owns it, the places left, the helpers inside. A helper enters by
exchanging that number for one with a place less and a helper more, and reads only then what the job is. While
it is inside, the caller waits.

**Cores that others hold.** OpenBLAS's threads keep all cores busy for 0.1 s after a product, and do not give
way. So:

* Linux wakes a thread on the core it slept on if that is idle, and else often on the waker's, where it stops
  the waker: 200 of 200 times on two cores. So a helper avoids its waker's core: that is taken from its cores
  before it is woken, and stays so until somebody wakes it from another core. (To give it back and to take it
  again at each waking cost 14 us of a call after NumPy's.)
* A helper asks for short time slices (`SLICE`; Linux 6.12 and later), which lets it run at once when it
  wakes.
* A helper may lose its core in the middle of a piece. A caller that has nothing else to do sees that by the
  helper's own clock, which stands still, and takes it over to its own core, which is free.
* A helper with nothing to do looks for open jobs for `AWAKE` nanoseconds, or for an eighth of what its last
  work took if that is longer. Then it sleeps on a futex. The time does not run while a caller is still busy
  with the last piece of its job, unless that lasts longer than `AWAKE_IN_LOOP`. A helper does not give its
  core away while it looks (``sched_yield``): it would come back only long after the next job.
* It looks for `AWAKE_IN_LOOP` once so many jobs as `LOOP` came one after the other with less than that
  between them, so that a loop with some Python between its products does not wake a helper for each. If
  another library's thread waits for the core meanwhile, that library's call takes longer than
  `AWAKE_IN_LOOP`, which ends the loop. So of its calls at most one of `LOOP` waits.
* Who opens many short jobs with other work in between, such as a model's run, holds the team (`hold`): its
  helpers look for `AWAKE_HELD` meanwhile. It lets go before it calls another library that has threads.
* Waking takes longer than some jobs last. Whoever opens a job says whether it is worth it. For another one
  sleeping helpers are woken only in a loop of jobs that has lasted for `WAKE_AFTER` already: if it goes on
  for as long once more, the waking is paid for.

Who opens a job wakes up to two helpers, and each of these two more.

Threads are started by the first job that wants them. A forked child has none of them: `forget` makes an empty
team of the same memory, which starts threads anew.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

import numba
import numpy as np

from lowgemm.jit import host
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import (
    as_address,
    atomic_add,
    atomic_and,
    atomic_load,
    atomic_or,
    atomic_replace,
    atomic_store,
    load_i64,
    load_u32,
    offset,
    pause,
    pointer_at,
    stack,
    store_32,
    store_64,
)
from lowgemm.jit.routine import call_address, call_for_address, inner, routine
from lowgemm.jit.scratch import ALIGNMENT

#: Nanoseconds for which a helper looks for work before it sleeps, from the end of the last job. Another
#: library whose thread waits for the core waits as long. Waking costs the caller 7 to 40 us, and the helper
#: comes 15 to 45 us later on an idle core of a virtual machine. With 15 us, 196 x 2304 x 256 with AMX took
#: 0.84 to 1.05 of one thread's speed, with 40 us 1.10 to 1.21; NumPy's products in turn with ours took the
#: same time (from 256 cubed on).
AWAKE = 40_000
#: After long work it looks for this part of what that took. Python itself is slow between two products whose
#: operands have taken its place in the caches: 18 to 40 us where it takes 2 otherwise.
AWAKE_SHARE = 8
#: The same in a loop of jobs, and how many jobs make a loop.
AWAKE_IN_LOOP, LOOP = 100_000, 32
#: The same while a caller holds the team because it is about to open many short jobs (`hold`).
AWAKE_HELD = 1_000_000
#: Nanoseconds of work in a loop of short jobs after which helpers are woken for it. Their waking costs the
#: caller 40 us, and they save a third to a half of the time. With the second job of each loop instead, the
#: second of two products of 128 x 768 x 768, 256 or 512 cubed with AMX took 1.2 to 1.3 times one thread's
#: time.
WAKE_AFTER = 150_000
#: Nanoseconds for which a caller that has no more work looks whether the helpers are done before it sleeps,
#: and after which it looks at their clocks. To read a clock takes up to 25 us after another library's call,
#: when nothing of it is in a cache; a helper that lost its core is away for 3 ms.
PATIENCE, CHECK = 1_000_000, 50_000
#: Nanoseconds of the time slices that helpers ask for: the shortest that Linux has.
SLICE = 100_000
#: Pauses between two looks at the clock: about 1 us.
PAUSES = 32

#: Numbers of the head. First what does not change: addresses of C functions, numbers of system calls, seats.
#: Those that change have cache lines of their own: threads started; threads that calls are using, when the
#: last job ended, how many jobs came soon after the one before, how many callers hold the team, and how long
#: those jobs took together.
(
    PTHREAD_CREATE, PTHREAD_SIGMASK, SYSCALL, CLOCK_GETTIME, SCHED_GETCPU, SCHED_GETAFFINITY,
    SCHED_SETAFFINITY, HELPER, FUTEX, GETTID, GETATTR, SETATTR, SEATS,
) = range(13)  # fmt: skip
STARTED, USED, ENDED, FOLLOWED, HELD, LASTED, HEAD = 16, 24, 25, 26, 27, 28, 32
#: Numbers of a seat: what the helper does (a futex), its thread's number, the address of the team, whether
#: a caller took it over, the address of the slot that it works for, its clock when a caller last looked, the
#: core that it avoids (and 1; 0: none), and two sets of cores: those to go back to, and all that it may use.
DOES, THREAD, TEAM, MOVED, INSIDE_OF, CLOCK, AVOIDS, CORES, ALL, SEAT = 0, 1, 2, 3, 4, 5, 6, 8, 24, 40
#: Values of `MOVED`: no, a caller is about to, yes.
STAYED, MOVING, AWAY = range(3)
#: What a helper does. It is `CALLED` while a caller prepares its waking.
WORKS, LOOKS, SLEEPS, CALLED = range(4)
#: Numbers of a slot: its word (a futex), the job's routine and the two arguments, whether sleeping helpers
#: are woken.
WORD, WORK, A, B, WAKES, SLOT = 0, 1, 2, 3, 4, 8
#: Jobs that are open at once; a caller that finds no free slot works alone.
SLOTS = 16
#: Bits of a slot's word: helpers inside, places left, the caller sleeps, the slot is some caller's.
INSIDE, PLACE, PLACES, CALLER_SLEEPS, OWNED = 0x7FFF, 1 << 15, 0x7FFF << 15, 1 << 30, 1 << 32
#: Bytes of a set of cores.
CORES_BYTES = 128
_CORE_WORDS = CORES_BYTES // 8
_LOW_HALF = 0xFFFFFFFF
#: Constants of Linux: operations of a futex of one process, how a mask of signals is set, a clock, and the
#: signals that tell a thread of its own fault, which none may block (SIGILL, SIGTRAP, SIGABRT, SIGBUS,
#: SIGFPE, SIGSEGV).
_WAIT, _WAKE, _SETMASK, _MONOTONIC = 128, 129, 2, 1
_FAULTS = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10
#: Bytes and fields, in 32-bit and in 64-bit words, of the first version of Linux's ``struct sched_attr``.
_ATTR_BYTES, _ATTR_POLICY, _ATTR_RUNTIME = 48, 1, 3
#: Numbers of futex, gettid, sched_getattr, sched_setattr.
_SYSTEM_CALLS = {"x86_64": (202, 186, 315, 314), "aarch64": (98, 178, 275, 274)}


# ---- compiled ---------------------------------------------------------------------------------------------
# `team` is a pointer to the team's memory, `seat` and `slot` to one of its seats and slots.
@inner
def _clock(team, which):
    """Nanoseconds of one of Linux's clocks."""
    at = stack(16)
    call_address(load_i64(team, CLOCK_GETTIME), (which, at))
    return load_i64(at, 0) * 1_000_000_000 + load_i64(at, 1)


@inner
def _now(team):
    """Nanoseconds of a clock."""
    return _clock(team, _MONOTONIC)


@inner
def _time_of(team, seat):
    """Nanoseconds for which a helper has run."""
    return _clock(team, ~load_i64(seat, THREAD) << 3 | 6)


@inner
def _seat(team, number):
    return offset(team, 8 * (HEAD + SEAT * number))


@inner
def _slot(team, number):
    return offset(team, 8 * (HEAD + SEAT * load_i64(team, SEATS) + SLOT * number))


@inner
def _wait(team, word, value):
    """Sleep as long as the low half of the number at `word` is `value`, or less long."""
    call_address(load_i64(team, SYSCALL), (load_i64(team, FUTEX), word, _WAIT, value & _LOW_HALF, 0, 0, 0))


@inner
def _wake(team, word):
    call_address(load_i64(team, SYSCALL), (load_i64(team, FUTEX), word, _WAKE, 1, 0, 0, 0))


@inner
def _core(team):
    """Number of the core that this thread runs on; -1: too large for a set of cores."""
    core = call_for_address(load_i64(team, SCHED_GETCPU), ()) & _LOW_HALF
    return core if core < 8 * CORES_BYTES else -1


@inner
def _bit(core, i):
    """What stands for a core in word `i` of a set of cores."""
    return 1 << (core % 64) if i == core // 64 else 0


@inner
def _read_cores(team, seat, cores):
    """The set of cores that a helper has now, to `cores`, and in its seat all that it may use; whether Linux
    told.

    That is what it has and the core that it avoids, unless somebody else changed its cores since.
    """
    for i in range(_CORE_WORDS):
        store_64(cores, i, 0)
    # returns an int, whose upper half is undefined
    thread = load_i64(seat, THREAD)
    if call_for_address(load_i64(team, SCHED_GETAFFINITY), (thread, CORES_BYTES, cores)) & _LOW_HALF != 0:
        return False
    avoided, everything = load_i64(seat, AVOIDS) - 1, offset(seat, 8 * ALL)
    as_we_left_it = avoided >= 0
    for i in range(_CORE_WORDS):
        if load_i64(cores, i) != load_i64(everything, i) & ~_bit(avoided, i):
            as_we_left_it = False
    if not as_we_left_it:
        for i in range(_CORE_WORDS):
            store_64(everything, i, load_i64(cores, i))
    return True


@inner
def _avoid(team, seat):
    """Let a helper that sleeps use any of its cores but this thread's, unless it has no others."""
    core = _core(team)
    if core < 0 or load_i64(seat, AVOIDS) == core + 1:
        return
    cores = stack(CORES_BYTES)
    if not _read_cores(team, seat, cores):
        return
    left = 0
    for i in range(_CORE_WORDS):
        word = load_i64(offset(seat, 8 * ALL), i) & ~_bit(core, i)
        store_64(cores, i, word)
        left |= word
    if left != 0:
        call_address(load_i64(team, SCHED_SETAFFINITY), (load_i64(seat, THREAD), CORES_BYTES, cores))
        store_64(seat, AVOIDS, core + 1)


@inner
def _move_here(team, seat):
    """Let a helper that does not run use this thread's core, if it may, and no other."""
    core, cores, new = _core(team), stack(CORES_BYTES), stack(CORES_BYTES)
    # one that another caller took over has that caller's core alone, which does not tell what it may use
    if core < 0 or not atomic_replace(seat, MOVED, STAYED, MOVING):
        return
    left = 0
    if _read_cores(team, seat, cores):
        for i in range(_CORE_WORDS):
            store_64(offset(seat, 8 * CORES), i, load_i64(cores, i))
            word = load_i64(offset(seat, 8 * ALL), i) & _bit(core, i)
            store_64(new, i, word)
            left |= word
    if left != 0:
        call_address(load_i64(team, SCHED_SETAFFINITY), (load_i64(seat, THREAD), CORES_BYTES, new))
    atomic_store(seat, MOVED, AWAY if left != 0 else STAYED)


@inner
def _move_back(team, seat):
    """Give this thread, a helper, its cores back; whether they were changed."""
    while atomic_load(seat, MOVED) == MOVING:
        pause()
    if atomic_load(seat, MOVED) == STAYED:
        return False
    call_address(load_i64(team, SCHED_SETAFFINITY), (0, CORES_BYTES, offset(seat, 8 * CORES)))
    atomic_store(seat, MOVED, STAYED)
    return True


@inner
def _rouse(team, seat):
    """Wake a helper on another core than this one; whether it slept."""
    if not atomic_replace(seat, DOES, SLEEPS, CALLED):
        return False
    _avoid(team, seat)
    atomic_store(seat, DOES, WORKS)
    _wake(team, seat)
    return True


@inner
def _wake_helpers(team, wanted):
    """Wake sleeping helpers, two at most, unless `wanted` of them look for work already."""
    woken = 0
    for number in range(atomic_load(team, STARTED)):
        if wanted <= 0 or woken == 2:
            break
        seat = _seat(team, number)
        does = atomic_load(seat, DOES)
        if does == LOOKS:
            wanted -= 1
        elif does == SLEEPS and _rouse(team, seat):
            wanted -= 1
            woken += 1


@inner
def _start(team, wanted):
    """Start threads until there are as many as `wanted`. One that cannot be had is not asked for again."""
    wanted = min(wanted, load_i64(team, SEATS))
    old, blocked, thread = stack(128), stack(128), stack(16)
    while True:
        started = atomic_load(team, STARTED)
        if started >= wanted:
            break
        if atomic_replace(team, STARTED, started, started + 1):
            # signals are the program's own threads' business
            for i in range(16):
                store_64(blocked, i, ~0)
            store_64(blocked, 0, ~_FAULTS)
            call_address(load_i64(team, PTHREAD_SIGMASK), (_SETMASK, blocked, old))
            call_address(
                load_i64(team, PTHREAD_CREATE), (thread, 0, load_i64(team, HELPER), _seat(team, started))
            )
            call_address(load_i64(team, PTHREAD_SIGMASK), (_SETMASK, old, 0))


@inner
def _jobs(team):
    """The words of all slots in one: which of their bits any job has."""
    bits = 0
    for number in range(SLOTS):
        bits |= atomic_load(_slot(team, number), WORD)
    return bits


@inner
def _help_with(team, seat, slot):
    """Work for the job in a slot if it has places; whether it had."""
    while True:
        word = atomic_load(slot, WORD)
        places = (word & PLACES) // PLACE
        if places == 0:
            return False
        if atomic_replace(slot, WORD, word, word - PLACE + 1):
            break
    atomic_store(seat, INSIDE_OF, as_address(slot))
    if places > 1 and load_i64(slot, WAKES) != 0:
        _wake_helpers(team, places - 1)
    call_address(load_i64(slot, WORK), (load_i64(slot, A), load_i64(slot, B), places))
    atomic_store(seat, INSIDE_OF, 0)
    left = atomic_add(slot, WORD, -1) - 1
    if left & CALLER_SLEEPS != 0 and left & INSIDE == 0:
        _wake(team, slot)
    return True


@inner
def _look(team, worked):
    """Look for an open job for a while; whether there is one. `worked`: nanoseconds that the last took."""
    begin = _now(team)
    awake = AWAKE_IN_LOOP
    if atomic_load(team, FOLLOWED) < LOOP:
        awake = min(max(AWAKE, worked // AWAKE_SHARE), AWAKE_IN_LOOP)
    last = begin  # when a job was under way
    while True:
        for _ in range(PAUSES):
            if _jobs(team) & PLACES != 0:
                return True
            pause()
        now = _now(team)
        if _jobs(team) != 0 and now < begin + AWAKE_IN_LOOP:
            last = now
        if now >= last + (AWAKE_HELD if atomic_load(team, HELD) > 0 else awake):
            return False


@inner
def _sleep(team, seat):
    """Sleep until somebody opens a job."""
    atomic_store(seat, DOES, SLEEPS)
    # whoever opened a job before this may have found this helper awake
    if _jobs(team) & PLACES == 0 or not atomic_replace(seat, DOES, SLEEPS, WORKS):
        while True:
            does = atomic_load(seat, DOES)
            if does == WORKS:
                break
            _wait(team, seat, does)


@inner
def _ask_for_short_slices(team):
    """Ask for the shortest time slices, if this thread is scheduled like most (``SCHED_OTHER``)."""
    attr = stack(64)
    system, size = load_i64(team, SYSCALL), _ATTR_BYTES
    failed = call_for_address(system, (load_i64(team, GETATTR), 0, attr, size, 0))
    if failed == 0 and load_u32(attr, _ATTR_POLICY) == 0:
        store_32(attr, 0, size)
        store_64(attr, _ATTR_RUNTIME, SLICE)
        call_address(system, (load_i64(team, SETATTR), 0, attr, 0))


@routine("p")
def _helper(seat):
    """What a thread of the team does, for ever."""
    team = pointer_at(seat, TEAM)
    store_64(seat, THREAD, call_for_address(load_i64(team, SYSCALL), (load_i64(team, GETTID),)))
    _ask_for_short_slices(team)
    worked = 0
    while True:
        helped, begin = False, _now(team)
        for number in range(SLOTS):
            if _help_with(team, seat, _slot(team, number)):
                helped = True
        if helped:
            worked = _now(team) - begin
        # on a core that a caller lent it, which the caller wants back, it does not look
        lent = _move_back(team, seat)
        if not helped or lent:
            atomic_store(seat, DOES, LOOKS)
            if lent or not _look(team, worked):
                _sleep(team, seat)
            atomic_store(seat, DOES, WORKS)


@inner
def _claim(team):
    """Number of a slot that is now the caller's; -1: none is free."""
    for number in range(SLOTS):
        if atomic_replace(_slot(team, number), WORD, 0, OWNED):
            return number
    return -1


@inner
def _take_over(team, slot, first):
    """Take helpers inside a job that do not run to this core; whether there are any. `first`: only note their
    clocks.
    """
    stand_still = False
    for number in range(atomic_load(team, STARTED)):
        seat = _seat(team, number)
        if atomic_load(seat, INSIDE_OF) == as_address(slot):
            time = _time_of(team, seat)
            if not first and time == load_i64(seat, CLOCK):
                _move_here(team, seat)
                stand_still = True
            store_64(seat, CLOCK, time)
    return stand_still


@inner
def _look_inside(team, slot):
    """Look for a while whether the helpers inside a job are done, or do not run; then take them over."""
    start = _now(team)
    check = start + CHECK
    first = True
    while True:
        for _ in range(PAUSES):
            if atomic_load(slot, WORD) & INSIDE == 0:
                return
            pause()
        now = _now(team)
        if now >= check:
            if _take_over(team, slot, first) or now >= start + PATIENCE:
                return
            check, first = now + CHECK, False


@inner
def _close(team, slot):
    """Let no more helpers in, wait for those inside, and give the slot back."""
    if atomic_and(slot, WORD, ~PLACES) & INSIDE != 0:
        _look_inside(team, slot)
        atomic_or(slot, WORD, CALLER_SLEEPS)
        while True:
            word = atomic_load(slot, WORD)
            if word & INSIDE == 0:
                break
            _wait(team, slot, word)
    atomic_store(slot, WORD, 0)


@inner
def _fair_share(team, wanted):
    """Threads that a call may use now, counted as used: what other calls leave over, at least its own.

    k calls at once on N threads run on N + k - 1 at most.
    """
    used = atomic_add(team, USED, wanted)
    share = max(1, min(wanted, load_i64(team, SEATS) + 1 - used))
    atomic_add(team, USED, share - wanted)
    return share


@inner
def _follows(team, begin):
    """Whether a job that begins now, at the time `begin`, is one of a loop that has lasted for a while. Jobs
    that come soon after the one before are counted.
    """
    soon = begin - atomic_load(team, ENDED) < AWAKE_IN_LOOP
    atomic_store(team, FOLLOWED, atomic_load(team, FOLLOWED) + 1 if soon else 0)
    if not soon:
        atomic_store(team, LASTED, 0)
    return atomic_load(team, LASTED) >= WAKE_AFTER


@inner
def share(team, work, a, b, workers, long):
    """Run a job on at most `workers` threads, this one among them.

    `work` is the address of a routine with the C signature of ``work(a, b, worker)``, `a` and `b` are 64-bit
    integers. `long`: whether sleeping helpers should be woken for it, if it is no part of a loop. The caller
    must not hold Python's lock if the job may need it.
    """
    workers = _fair_share(team, workers)
    mine = _claim(team) if workers > 1 else -1
    if mine < 0:
        call_address(work, (a, b, 0))
    else:
        slot = _slot(team, mine)
        store_64(slot, WORK, work)
        store_64(slot, A, a)
        store_64(slot, B, b)
        begin = _now(team)
        wakes = _follows(team, begin) or long != 0
        store_64(slot, WAKES, wakes)
        atomic_store(slot, WORD, OWNED + (workers - 1) * PLACE)
        if atomic_load(team, STARTED) < workers - 1:
            _start(team, workers - 1)
        if wakes:
            _wake_helpers(team, workers - 1)
        call_address(work, (a, b, 0))
        _close(team, slot)
        end = _now(team)
        atomic_store(team, ENDED, end)
        atomic_add(team, LASTED, end - begin)
    atomic_add(team, USED, -workers)


@routine("pnnnnn")
def run(team, work, a, b, workers, long):
    """`share`, for Python."""
    share(team, work, a, b, workers, long)


@inner
def keep(team, change, wanted):
    """Count one caller more, or one less, that holds the team; `wanted` helpers are started or woken."""
    atomic_add(team, HELD, change)
    wanted = min(wanted, load_i64(team, SEATS))
    if wanted > 0:
        if atomic_load(team, STARTED) < wanted:
            _start(team, wanted)
        _wake_helpers(team, wanted)


@routine("pnn")
def hold(team, change, wanted):
    """`keep`, for Python."""
    keep(team, change, wanted)


# ---- in Python --------------------------------------------------------------------------------------------
def available() -> bool:
    """Whether this system has what a team needs: Linux on a CPU whose system calls are known here."""
    return (
        sys.platform == "linux"
        and platform.machine() in _SYSTEM_CALLS
        and ctypes.sizeof(ctypes.c_void_p) == 8
    )


def zeroed_for_ever(nbytes: int) -> int:
    """Address of so many zeros, 64-byte aligned, that are never freed."""
    memory = np.zeros(nbytes + ALIGNMENT, dtype=np.uint8)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
    return int(-(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT)


class Team(NotCopied):
    """A team for at most `threads` workers of a job. It has no threads before a job wants them.

    Parameters
    ----------
    threads : int
        Workers of a job at most; the team has one thread less.

    Attributes
    ----------
    address : int
        Of its memory, for `share`.
    """

    instead = "make a team of as many threads"

    def __init__(self, threads: int) -> None:
        self.seats = max(0, threads - 1)
        self.size = HEAD + SEAT * self.seats + SLOT * SLOTS
        self.address = zeroed_for_ever(8 * self.size)
        #: The same memory.
        self.numbers = np.ctypeslib.as_array((ctypes.c_int64 * self.size).from_address(self.address))
        self.fill()

    def fill(self) -> None:
        """Write what does not change."""
        libc, numbers = ctypes.CDLL(None), self.numbers

        def of(name: str) -> int:
            return int(ctypes.cast(getattr(libc, name), ctypes.c_void_p).value or 0)

        numbers[PTHREAD_CREATE], numbers[PTHREAD_SIGMASK] = of("pthread_create"), of("pthread_sigmask")
        numbers[SYSCALL], numbers[CLOCK_GETTIME] = of("syscall"), of("clock_gettime")
        numbers[SCHED_GETCPU] = of("sched_getcpu")
        numbers[SCHED_GETAFFINITY], numbers[SCHED_SETAFFINITY] = (
            of("sched_getaffinity"),
            of("sched_setaffinity"),
        )
        numbers[HELPER], numbers[SEATS] = _helper.address, self.seats
        numbers[FUTEX], numbers[GETTID], numbers[GETATTR], numbers[SETATTR] = _SYSTEM_CALLS[
            platform.machine()
        ]
        for seat in range(self.seats):
            numbers[HEAD + SEAT * seat + TEAM] = self.address

    def forget(self) -> None:
        """In a forked child: there are no threads and no jobs. Memory stays where it was, for plans that know
        it.
        """
        self.numbers[:] = 0
        self.fill()

    @property
    def started(self) -> int:
        """Threads of the team."""
        return int(self.numbers[STARTED])

    def run(self, work: int, a: int, b: int, workers: int, long: bool = True) -> None:
        """Run a job on at most `workers` threads, this one among them; see `share`."""
        run.ctypes(self.address, work, a, b, workers, long)

    @property
    def last_end(self) -> int:
        """When the last job ended that several could share: another number after each."""
        return int(self.numbers[ENDED])

    def hold(self, helpers: int) -> None:
        """Keep so many helpers awake between jobs, until `let_go`."""
        hold.ctypes(self.address, 1, helpers)

    def let_go(self) -> None:
        """Undo a `hold`."""
        hold.ctypes(self.address, -1, 0)


@functools.cache
def the_team() -> Team | None:
    """The team of this process; None where there can be none."""
    return Team(numba.config.NUMBA_NUM_THREADS) if available() and not numba.config.DISABLE_JIT else None


def _after_fork_in_child() -> None:
    if the_team.cache_info().currsize and (team := the_team()) is not None:
        team.forget()


host.after_fork_in_child(_after_fork_in_child)
