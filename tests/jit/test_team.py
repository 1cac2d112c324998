"""The standing team: all work once, nobody waited for who has not begun, sleep, fair shares, forks."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest

from lowgemm.jit import team
from lowgemm.jit.memory import (
    atomic_add,
    atomic_load,
    load_i64,
    pause,
    pointer_at,
    store_64,
)
from lowgemm.jit.routine import signature
from lowgemm.jit.team import (
    DOES,
    HEAD,
    INSIDE,
    LOOKS,
    OWNED,
    PLACE,
    SEAT,
    SLEEPS,
    SLOT,
    SLOTS,
    STARTED,
    USED,
    WORD,
    WORK,
    Team,
    _look,
)

if not team.available() or numba.config.DISABLE_JIT:
    pytest.skip("no team of threads on this system", allow_module_level=True)

#: What the test's jobs read: pieces of work to take, how many there are, and who has come in.
TAKEN, COUNT, CAME, GATE, DONE_AT = 0, 1, 2, 3, 8


def job_of(count: int) -> np.ndarray:
    """Numbers of a job of so many pieces; behind its head how often each was done, then by whom."""
    numbers = np.zeros(DONE_AT + 2 * count, np.int64)
    numbers[COUNT] = count
    return numbers


@numba.cfunc(signature("pnn"), nopython=True)
def counting(job, _, worker):
    """Count each piece, and note whose it was."""
    atomic_add(job, CAME, 1)
    count = load_i64(job, COUNT)
    while True:
        piece = atomic_add(job, TAKEN, 1)
        if piece >= count:
            break
        store_64(job, DONE_AT + piece, load_i64(job, DONE_AT + piece) + 1)
        store_64(job, DONE_AT + count + piece, worker)


@numba.cfunc(signature("pnn"), nopython=True)
def meeting(job, _, worker):
    """Wait until as many workers are inside as there are pieces."""
    atomic_add(job, CAME, 1)
    store_64(job, DONE_AT + worker, 1)
    while atomic_load(job, CAME) < load_i64(job, COUNT):
        pause()


@numba.cfunc(signature("pnn"), nopython=True)
def held(job, _, worker):
    """A helper inside stays until the gate opens; the caller leaves as soon as one is inside."""
    if worker == 0:
        while atomic_load(job, CAME) == 0:
            pause()
    else:
        atomic_add(job, CAME, 1)
        while atomic_load(job, GATE) == 0:
            pause()
        store_64(job, DONE_AT, 1)


@pytest.fixture
def four():
    return Team(4)


def wait_until(condition) -> None:
    """Poll; a failure is a hang, which the test's time limit ends."""
    while not condition():
        time.sleep(0.001)


def does(of: Team) -> list[int]:
    return [int(of.numbers[HEAD + SEAT * seat + DOES]) for seat in range(of.seats)]


def slots(of: Team) -> np.ndarray:
    return of.numbers[HEAD + SEAT * of.seats :: team.SLOT]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 10_000])
@pytest.mark.parametrize("workers", [1, 2, 4, 9])
def test_all_pieces_are_done_once(four, count, workers):
    for _ in range(50):
        job = job_of(count)
        four.run(counting.address, job.ctypes.data, 0, workers)
        assert (job[DONE_AT : DONE_AT + count] == 1).all()
        assert set(job[DONE_AT + count :].tolist()) <= set(range(min(workers, 4)))
        assert 1 <= job[CAME] <= min(workers, 4)
    assert four.numbers[USED] == 0 and not slots(four).any()
    assert four.started == min(workers, 4) - 1


def test_workers_have_different_numbers(four):
    """All four are inside at once, so each has come as another one."""
    for _ in range(50):
        job = job_of(4)
        four.run(meeting.address, job.ctypes.data, 0, 4)
        assert job[DONE_AT : DONE_AT + 4].tolist() == [1, 1, 1, 1]


def test_a_team_has_no_threads_before_a_job_wants_them():
    before = len(os.listdir("/proc/self/task"))
    new = Team(3)
    job = job_of(5)
    new.run(counting.address, job.ctypes.data, 0, 1)
    assert len(os.listdir("/proc/self/task")) == before and new.started == 0
    new.run(counting.address, job.ctypes.data, 0, 3)
    assert new.started == 2


def test_who_does_not_come_is_not_waited_for(four):
    """Threads that are never started: the caller does everything."""
    four.numbers[STARTED] = 3
    job = job_of(100)
    four.run(counting.address, job.ctypes.data, 0, 4)
    assert (job[DONE_AT:-100] == 1).all() and job[CAME] == 1 and not job[-100:].any()
    assert not slots(four).any()


def test_who_comes_late_finds_the_job_closed(four):
    """Helpers that begin only after the job is over; its memory is another's by then."""
    create, refused = int(four.numbers[team.PTHREAD_CREATE]), []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)

    @kind
    def late(thread, attributes, start, seat):
        refused.append((start, seat))
        return 0

    four.numbers[team.PTHREAD_CREATE] = ctypes.cast(late, ctypes.c_void_p).value
    job = job_of(100)
    four.run(counting.address, job.ctypes.data, 0, 3)
    assert job[CAME] == 1 and len(refused) == 2
    job[:] = 0
    four.numbers[team.PTHREAD_CREATE] = create
    thread = (ctypes.c_int64 * 2)()
    for start, seat in refused:
        assert kind(create)(thread, None, start, seat) == 0
    wait_until(lambda: does(four)[:2] == [SLEEPS, SLEEPS])
    assert not job.any()
    job = job_of(3)
    four.run(meeting.address, job.ctypes.data, 0, 3)  # and they work for the next
    assert job[CAME] == 3


def test_who_is_inside_is_waited_for(four):
    """However long that takes: longer than the caller looks, so it sleeps and is woken."""
    job = job_of(1)
    caller = threading.Thread(target=four.run, args=(held.address, job.ctypes.data, 0, 2))
    caller.start()
    wait_until(lambda: int(slots(four)[0]) & team.CALLER_SLEEPS or not caller.is_alive())
    time.sleep(0.05)
    waits, word = caller.is_alive(), int(slots(four)[0])
    job[GATE] = 1
    caller.join()
    assert waits and word & INSIDE == 1
    assert job[DONE_AT] == 1 and not slots(four).any()


@numba.cfunc(signature("pppp"), nopython=True)
def try_to_enter(members, seat, slot, entered):
    """What a helper does with a slot that it looks at."""
    store_64(entered, 0, team._help_with(members, seat, slot))


def test_a_closed_job_lets_nobody_in(four):
    """Its caller waits for two helpers inside. A job with one place lets in one helper."""
    job, entered = job_of(3), np.zeros(1, np.int64)
    seat, slot = (four.address + 8 * (HEAD + SEAT * n) for n in (0, four.seats))
    numbers = slots(four)
    four.numbers[HEAD + SEAT * four.seats + team.WORK] = counting.address
    four.numbers[HEAD + SEAT * four.seats + team.A] = job.ctypes.data
    for word, enters in ((OWNED + 2, 0), (OWNED, 0), (0, 0), (OWNED + team.PLACE + 2, 1), (OWNED + 2, 0)):
        numbers[0], entered[0] = word, -1
        try_to_enter.ctypes(four.address, seat, slot, entered.ctypes.data)
        assert entered[0] == enters
        assert numbers[0] == word - enters * team.PLACE
    assert job[CAME] == 1 and (job[DONE_AT : DONE_AT + 3] == 1).all()
    four.forget()


def test_helpers_sleep_and_wake(four):
    job = job_of(4)
    four.run(meeting.address, job.ctypes.data, 0, 4)
    for _ in range(20):
        wait_until(lambda: does(four) == [SLEEPS] * 3)
        job = job_of(4)
        four.run(meeting.address, job.ctypes.data, 0, 4)  # comes back only if all three wake
        assert job[CAME] == 4


@numba.cfunc(signature("pnn"), nopython=True)
def looking(memory, worked, result):
    """What `_look` says of the team at `memory`."""
    store_64(pointer_at(memory, result), 0, _look(memory, worked))


@pytest.mark.parametrize("worked", [0, 10_000_000])
@pytest.mark.parametrize(
    ("word", "found"), [(0, False), (OWNED, False), (OWNED + 1, False), (OWNED + PLACE, True)]
)
def test_a_helper_looks_for_places_only(word, found, worked):
    """It does not look for ever where a job has none left, however long the job's caller needs."""
    a_team = Team(2)
    result = np.full(1, -1)
    at = HEAD + SEAT * a_team.seats + SLOT * (SLOTS - 1)
    a_team.numbers[at + WORD] = word
    a_team.numbers[at + WORK] = result.ctypes.data
    looking.ctypes(a_team.address, worked, at + WORK)
    assert result[0] == found


def test_short_jobs_wake_nobody_but_in_a_loop(four):
    """Helpers that sleep are left asleep for a short job that comes alone; in a loop of them they are
    woken.
    """
    job = job_of(4)
    four.run(meeting.address, job.ctypes.data, 0, 4)
    wait_until(lambda: does(four) == [SLEEPS] * 3)
    # long ago; in the future, so that any time after it is soon, but the loop is young; the same in a longer
    # loop
    for ended, lasted, woken in ((0, 2**40, 0), (2**62, 0, 0), (2**62, team.WAKE_AFTER, 3)):
        four.numbers[team.ENDED], four.numbers[team.LASTED] = ended, lasted
        job = job_of(1)
        four.run(counting.address, job.ctypes.data, 0, 4, long=False)
        if woken:
            job = job_of(4)
            four.numbers[team.ENDED] = ended
            four.run(meeting.address, job.ctypes.data, 0, 4, long=False)  # comes back only if all three wake
        else:
            assert does(four) == [SLEEPS] * 3 and job[CAME] == 1
        assert four.numbers[team.LASTED] > (lasted if ended else 0)


def test_who_holds_the_team_starts_and_wakes_helpers(four):
    """As many as are wanted, and no more than there are; who holds it is counted."""
    four.hold(2)
    assert four.started == 2 and four.numbers[team.HELD] == 1
    four.hold(9)
    assert four.started == 3 and four.numbers[team.HELD] == 2
    for _ in range(2):
        four.let_go()
    assert four.numbers[team.HELD] == 0
    wait_until(lambda: does(four) == [SLEEPS] * 3)

    def looks():
        four.hold(3)
        seen = LOOKS in does(four)
        four.let_go()
        return seen

    wait_until(looks)
    wait_until(lambda: does(four) == [SLEEPS] * 3)


def test_jobs_that_follow_one_another_are_counted(four):
    """So that helpers look longer in a loop; a pause ends it."""
    first = time.monotonic_ns()
    for ended, expected in ((2**62, 1), (2**62, 2), (2**62, 3), (0, 0), (2**62, 1)):
        four.numbers[team.ENDED] = ended
        job = job_of(3)
        before = time.monotonic_ns()
        four.run(counting.address, job.ctypes.data, 0, 2)
        after = time.monotonic_ns()
        assert four.numbers[team.FOLLOWED] == expected
        assert before <= four.numbers[team.ENDED] <= after
        assert four.numbers[team.LASTED] <= after - (first if expected else before)
        first = first if expected else before


def cores_of(members, seat=0):
    return os.sched_getaffinity(int(members.numbers[HEAD + SEAT * seat + team.THREAD]))


def run_from(core, members):
    """Run a job of two workers from a thread on this core, with the helper asleep; it sleeps again
    after it.
    """

    def call():
        os.sched_setaffinity(0, {core})
        job = job_of(2)
        members.run(meeting.address, job.ctypes.data, 0, 2)

    wait_until(lambda: does(members)[0] == SLEEPS)
    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    wait_until(lambda: does(members)[0] == SLEEPS)


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a helper on a single core has no other to go to"
)
def test_a_helper_avoids_the_core_that_woke_it_last(four):
    allowed = os.sched_getaffinity(0)
    job = job_of(2)
    four.run(meeting.address, job.ctypes.data, 0, 2)
    for core in (*sorted(allowed)[:2] * 2, min(allowed)):
        run_from(core, four)
        assert cores_of(four) == allowed - {core}
        run_from(core, four)
        assert cores_of(four) == allowed - {core}


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a helper on a single core has no other to go to"
)
def test_cores_that_somebody_else_gave_a_helper_are_all_it_uses(four):
    allowed = sorted(os.sched_getaffinity(0))
    job = job_of(2)
    four.run(meeting.address, job.ctypes.data, 0, 2)
    run_from(allowed[0], four)
    thread = int(four.numbers[HEAD + team.THREAD])
    os.sched_setaffinity(thread, {allowed[0]})
    run_from(allowed[1], four)
    assert cores_of(four) == {allowed[0]}, "not the core that it had avoided before"
    run_from(allowed[0], four)
    assert cores_of(four) == {allowed[0]}, "it has no other"


@numba.cfunc(signature("ppn"), nopython=True)
def look_at_clocks(members, slot, first):
    """What a caller that waits does with the helpers inside its job."""
    team._take_over(members, slot, first != 0)


def test_a_helper_that_does_not_run_is_taken_over(four):
    """A sleeping helper stands for one that lost its core inside a job: its clock stands still."""
    job = job_of(4)
    four.run(meeting.address, job.ctypes.data, 0, 4)
    wait_until(lambda: does(four) == [SLEEPS] * 3)
    allowed = os.sched_getaffinity(0)
    slot = four.address + 8 * (HEAD + SEAT * four.seats)
    inside = HEAD + SEAT * 1
    four.numbers[inside + team.INSIDE_OF] = slot
    thread = int(four.numbers[inside + team.THREAD])
    look_at_clocks.ctypes(four.address, slot, 1)
    assert os.sched_getaffinity(thread) == allowed, "nothing is known before the second look"
    core = min(allowed)
    try:
        os.sched_setaffinity(0, {core})  # so that the caller's core is known
        look_at_clocks.ctypes(four.address, slot, 0)
    finally:
        os.sched_setaffinity(0, allowed)
    assert os.sched_getaffinity(thread) == {core}
    everything = four.numbers[inside + team.ALL : inside + team.SEAT].copy()
    look_at_clocks.ctypes(four.address, slot, 0)  # another caller that finds it taken over already
    assert (four.numbers[inside + team.ALL : inside + team.SEAT] == everything).all()
    assert os.sched_getaffinity(thread) == {core}
    others = [int(four.numbers[HEAD + SEAT * seat + team.THREAD]) for seat in (0, 2)]
    assert all(os.sched_getaffinity(other) == allowed for other in others)
    four.numbers[inside + team.INSIDE_OF] = 0
    # its next job over, it gives the core back, and avoids the one that woke it, if it was woken
    job = job_of(4)
    four.run(meeting.address, job.ctypes.data, 0, 4)
    wait_until(lambda: does(four) == [SLEEPS] * 3)
    assert os.sched_getaffinity(thread) >= allowed - {int(four.numbers[inside + team.AVOIDS]) - 1}
    assert len(os.sched_getaffinity(thread)) >= len(allowed) - 1


def test_a_helper_that_runs_is_left_where_it_is(four):
    job = job_of(1)
    caller = threading.Thread(target=four.run, args=(held.address, job.ctypes.data, 0, 2))
    caller.start()
    wait_until(lambda: job[CAME])
    slot = int(four.numbers[HEAD + team.INSIDE_OF])
    assert slot == four.address + 8 * (HEAD + SEAT * four.seats)
    clock = int(four.numbers[HEAD + team.CLOCK])
    thread = int(four.numbers[HEAD + team.THREAD])
    assert clock >= 0 and time.pthread_getcpuclockid  # the clock that is read is the thread's own
    ran = time.clock_gettime_ns(~thread << 3 | 6)
    wait_until(lambda: time.clock_gettime_ns(~thread << 3 | 6) > ran)
    job[GATE] = 1
    caller.join()
    assert four.numbers[HEAD + team.INSIDE_OF] == 0 and job[DONE_AT] == 1


def test_a_program_that_may_use_one_core_only():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        small = Team(2)
        for _ in range(3):
            job = job_of(2)
            small.run(meeting.address, job.ctypes.data, 0, 2)
            assert job[CAME] == 2
            wait_until(lambda: does(small)[0] == SLEEPS)
    finally:
        os.sched_setaffinity(0, allowed)


def test_calls_share(four):
    """k callers on N threads run on N + k - 1 at most, and each on at least its own."""
    for used, wanted, expected in (
        (0, 4, 4),
        (0, 9, 4),
        (1, 4, 3),
        (3, 2, 1),
        (3, 4, 1),
        (4, 4, 1),
        (9, 4, 1),
    ):
        four.numbers[USED] = used
        job = job_of(expected)
        four.run(meeting.address, job.ctypes.data, 0, wanted)
        job = job_of(10_000)
        four.run(counting.address, job.ctypes.data, 0, wanted)
        assert job[CAME] <= expected and four.numbers[USED] == used
    four.numbers[USED] = 0


def test_without_a_free_slot_a_caller_works_alone(four):
    slots(four)[:] = OWNED
    job = job_of(100)
    four.run(counting.address, job.ctypes.data, 0, 4)
    assert (job[DONE_AT:-100] == 1).all() and job[CAME] == 1
    assert (slots(four) == OWNED).all()


def test_many_python_threads(four):
    """More callers than slots, jobs of all sizes."""
    wrong = []

    def call(seed: int) -> None:
        r = np.random.default_rng(seed)
        for _ in range(300):
            count = int(r.integers(0, 200))
            job = job_of(count)
            four.run(counting.address, job.ctypes.data, 0, int(r.integers(1, 5)))
            if not (job[DONE_AT : DONE_AT + count] == 1).all():
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(SLOTS + 8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong and four.numbers[USED] == 0 and not slots(four).any()


def test_signals_are_for_the_programs_own_threads(four):
    job = job_of(4)
    four.run(meeting.address, job.ctypes.data, 0, 4)
    wait_until(lambda: does(four) == [SLEEPS] * 3)
    for seat in range(3):
        thread = int(four.numbers[HEAD + SEAT * seat + team.THREAD])
        with open(f"/proc/self/task/{thread}/status") as f:
            blocked = int(next(line for line in f if line.startswith("SigBlk")).split()[1], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGVTALRM):
            assert blocked >> (number - 1) & 1
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
            assert not blocked >> (number - 1) & 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_team_of_its_own(four):
    job = job_of(4)
    four.run(meeting.address, job.ctypes.data, 0, 4)
    four.numbers[USED] = 3  # another Python thread of the parent is in the middle of a call
    slots(four)[0] = OWNED + team.PLACE
    child = os.fork()
    if child == 0:
        status = 1
        try:
            four.forget()
            assert four.started == 0
            job = job_of(4)
            four.run(meeting.address, job.ctypes.data, 0, 4)
            status = 0 if job[CAME] == 4 and four.started == 3 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    slots(four)[0] = four.numbers[USED] = 0
    job = job_of(4)
    four.run(meeting.address, job.ctypes.data, 0, 4)


EXIT = """
import atexit, threading
import numpy as np, lowgemm
from lowgemm.engine import threads
from lowgemm.jit.team import the_team
threads.MACS_PER_THREAD = 1000
a = np.ones((300, 300), np.uint8)
def call():
    while True:
        lowgemm.gemm(a, a, num_threads=2)
def last():
    assert (lowgemm.gemm(a, a, num_threads=2) == 300).all()
    print("last", the_team().started, flush=True)
atexit.register(last)
assert (lowgemm.gemm(a, a, num_threads=2) == 300).all()
if DAEMON:
    threading.Thread(target=call, daemon=True).start()
print("end", flush=True)
"""


@pytest.mark.parametrize("daemon", [0, 1])
def test_the_end_of_the_program(daemon):
    """Helpers that look or sleep, a thread in the middle of products, and a product while the program
    ends.
    """
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", EXIT.replace("DAEMON", str(daemon))],
            env={**os.environ, "NUMBA_NUM_THREADS": "2"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and "end" in done.stdout, (done.returncode, done.stderr[-1500:])
        assert "last 1" in done.stdout
