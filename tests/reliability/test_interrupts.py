"""Interrupts and signal handlers during calls: the library stays usable and right."""

from __future__ import annotations

import sys

import pytest

from lowgemm.jit import disk_cache

from . import child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs setitimer")

#: A timer interrupts calls of all kinds at random moments; after each interrupt the answers are compared.
INTERRUPTED = """
import random, signal, time, threading, numpy as np, lowgemm
from lowgemm.engine import threads
threads.MACS_PER_THREAD = 1000
g = np.random.default_rng(0)
a = g.integers(0, 256, (300, 300), dtype=np.uint8)
b = g.integers(-128, 128, (300, 300), dtype=np.int8)
exact = a.astype(np.int64) @ b.astype(np.int64)
w = lowgemm.pack_rhs(b)
r = random.Random(0)
calls = [
    lambda: lowgemm.gemm(a, b, num_threads=2), lambda: lowgemm.gemm(a, w, num_threads=1),
    lambda: lowgemm.gemm(a[::2], b, num_threads=2), lambda: lowgemm.gemm(a[:5], w),
    lambda: lowgemm.gemm(np.stack([a[:9]] * 3), b, num_threads=2),
]
rows = [slice(None), slice(None), slice(None, None, 2), slice(5), slice(9)]
for call in 2 * calls:  # the second of a kind compiles Python's way in
    call()
raised = wrong = 0
while raised < ROUNDS:
    try:
        came.clear()
        signal.setitimer(signal.ITIMER_REAL, r.random() * 2e-3 + 1e-6)
        while not came:  # one that hits a finaliser is swallowed by Python: the round is made again
            i = r.randrange(5)
            wrong += not (calls[i]() == exact[rows[i]]).all()
    except KeyboardInterrupt:
        raised += 1
    i = r.randrange(5)
    wrong += not (calls[i]() == exact[rows[i]]).all()
from lowgemm.engine import region
from lowgemm.jit.team import the_team, USED
assert not region._alone.locked() and len(region._running) <= 1, "an interrupt left something locked"
assert the_team() is None or the_team().numbers[USED] == 0, "an interrupt left threads counted as used"
print("interrupts", raised, "wrong", wrong)
"""

RAISE = """
import signal
came = []
def handler(*_):
    came.append(1)
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
"""

#: The handler itself multiplies, in the middle of another call, and is now and then interrupted by itself.
#: The timer counts CPU time and is set anew when the handler has returned: however slow the machine is,
#: something else is done in between.
REENTER = """
import random, signal, numpy as np, lowgemm
from lowgemm.engine import threads
import signal, time, numpy as np, lowgemm
from lowgemm.engine import threads
threads.MACS_PER_THREAD = 1000
g, r = np.random.default_rng(0), random.Random(0)
a = g.integers(0, 256, (200, 200), dtype=np.uint8)
exact = a.astype(np.int64) @ a.astype(np.int64)
w = lowgemm.pack_rhs(a)
seen, running, pending = [0, 0], [], []
def soon():
    pending.append(1)
    signal.setitimer(signal.ITIMER_VIRTUAL, r.random() * 1e-3 + 1e-6)
def handler(*_):
    seen[0] += 1
    running.append(1)
    if len(running) == 1 and seen[0] % 3 == 0:
        soon()
    bad = not (lowgemm.gemm(a[:77], a, num_threads=2) == exact[:77]).all()
    bad += not (lowgemm.gemm(a[:7], w) == exact[:7]).all()
    seen[1] += bad
    running.pop()
    pending.pop()
signal.signal(signal.SIGVTALRM, handler)
lowgemm.gemm(a[:77], a, num_threads=2); lowgemm.gemm(a[:7], w)
wrong = calls = 0
while calls < 300 or seen[0] < HANDLERS:
    if not pending:
        soon()
    wrong += not (lowgemm.gemm(a, a, num_threads=2) == exact).all()
    wrong += not (lowgemm.gemm(a[:7], w) == exact[:7]).all()
    wrong += not (lowgemm.gemm(a, w, num_threads=1) == exact).all()
    calls += 3
signal.setitimer(signal.ITIMER_VIRTUAL, 0)
print(calls, "calls and", seen[0], "handlers, wrong", wrong + seen[1])
"""

#: Ctrl-C while the first call compiles: the next call compiles what is missing. The timer counts CPU time, of
#: which compiling takes seconds on any machine, and comes again after the same time: an interrupt that hits a
#: finaliser is swallowed by Python. Each pause is longer than the last, until one is too long to interrupt
#: anything.
COMPILING = """
import signal, numpy as np, lowgemm
def handler(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGVTALRM, handler)
x = np.ones((30, 30), np.uint8)
def interrupted(pause):
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, pause, pause)
            lowgemm.gemm(x, x)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except KeyboardInterrupt:
        return True
    return False
interrupts, pause = 0, 0.05
while interrupted(pause):
    interrupts += 1
    pause *= 4
assert (lowgemm.gemm(x, x) == 30).all()
print("interrupts", interrupts)
"""

#: The handler multiplies while the first call of the process compiles: the right answer or a refusal, no
#: crash.
COMPILING_REENTERED = """
import signal, numpy as np, lowgemm
x = np.ones((30, 30), np.uint8)
right, refused = [], []  # appended to: handlers nest, and += of a number can be lost
def handler(*_):
    try:
        right.append((lowgemm.gemm(x, x[:, :7].copy(), output=lowgemm.Clamp(3, 40)) == 30).all())
    except RuntimeError as error:
        assert "signal handler" in str(error)
        refused.append(1)
signal.signal(signal.SIGVTALRM, handler)
signal.setitimer(signal.ITIMER_VIRTUAL, 0.02, 0.03)
assert (lowgemm.gemm(x, x) == 30).all()
signal.setitimer(signal.ITIMER_VIRTUAL, 0)
assert all(right) and refused, (right, refused)
assert (lowgemm.gemm(x, x[:, :7].copy(), output=lowgemm.Clamp(3, 40)) == 30).all()
print("fine", len(right), len(refused))
"""


#: Ctrl-C while LLVM calls back into Python, where no exception can be raised: in the first and in the third
#: piece of code.
IN_CALLBACK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background of a shell starts without it
from numba.core import codegen
pieces = []
real = codegen.JITCodeLibrary._object_compiled_hook.__func__
def compiled(cls, module, code):
    pieces.append(1)
    if len(pieces) in (1, 3):
        signal.raise_signal(signal.SIGINT)
    real(cls, module, code)
codegen.JITCodeLibrary._object_compiled_hook = classmethod(compiled)
import numba
from lowgemm.jit import disk_cache
@disk_cache.njit([numba.int64(numba.int64)])
def one(x):
    return x + 1
@disk_cache.njit([numba.int64(numba.int64)])
def two(x):
    return x + 2
hook, came = sys.unraisablehook, []
for function in (one, one, two, two):
    try:
        function(1)
    except KeyboardInterrupt:
        came.append(function.__name__)
assert sys.unraisablehook is hook and one(1) == 2 and two(1) == 3
print("interrupts", came, len(pieces))
"""

#: Ctrl-C while Numba loads its declarations, which it takes off a list one by one: none may be lost.
LOADING = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background of a shell starts without it
from numba.core.typing import context, templates
taken, kept = [], set()
real, insert = templates.RegistryLoader.new_registrations, context.BaseContext.insert_attributes
def noted(self, name):
    for item in real(self, name):
        if name == "attributes":
            taken.append(item)
            if len(taken) in (5, 20, 40):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)  # the main thread takes the signal, whoever this is
        yield item
def inserted(self, at):
    kept.add(type(at))
    insert(self, at)
templates.RegistryLoader.new_registrations, context.BaseContext.insert_attributes = noted, inserted
import numba
from lowgemm.jit import disk_cache
came = 0
@disk_cache.njit([numba.int64(numba.int64)])
def one(x):
    return x + 1
while True:
    try:
        assert one(1) == 2
        break
    except KeyboardInterrupt:
        came += 1
assert len(taken) > 40
print("interrupts", came, "lost", len(set(taken) - kept))
"""


@pytest.mark.parametrize("system", child.systems())
def test_interrupts_between_and_inside_calls(system):
    code = child.use(system) + RAISE + INTERRUPTED.replace("ROUNDS", "300")
    out = child.run(code, NUMBA_THREADING_LAYER=child.numbas(system), NUMBA_NUM_THREADS="2")
    assert "interrupts 300 wrong 0" in out


@pytest.mark.parametrize("system", child.systems())
def test_a_signal_handler_that_multiplies(system):
    code = child.use(system) + REENTER.replace("HANDLERS", "100")
    out = child.run(code, NUMBA_THREADING_LAYER=child.numbas(system), NUMBA_NUM_THREADS="2")
    assert out.strip().endswith("wrong 0")


def test_interrupted_compilation(tmp_path):
    out = child.run(COMPILING, NUMBA_CACHE_DIR=str(tmp_path))
    assert int(out.split()[1]) >= 1


def test_an_interrupt_inside_llvms_callback_is_raised(tmp_path):
    out = child.run(IN_CALLBACK, NUMBA_CACHE_DIR=str(tmp_path))
    assert out.startswith("interrupts ['one', 'one'] ") and int(out.split()[-1]) > 3


def test_an_interrupt_while_numba_loads_loses_nothing(tmp_path):
    assert "interrupts 3 lost 0" in child.run(LOADING, NUMBA_CACHE_DIR=str(tmp_path))


#: The first product of the process is inside a caller's function: Numba holds its lock while ours is compiled.
INSIDE = """
import numba, numpy as np, lowgemm
@numba.njit
def product(a, b):
    return lowgemm.gemm(a, b)
a = np.ones((4, 4), np.uint8)
print("first", product(a, a)[0, 0])
"""


def test_the_first_product_may_be_inside_compiled_code(tmp_path):
    assert child.run(INSIDE, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "first 4"


def test_a_signal_handler_that_multiplies_during_compilation(tmp_path):
    assert "fine" in child.run(COMPILING_REENTERED, NUMBA_CACHE_DIR=str(tmp_path))


def test_other_unraisable_errors_are_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))

    class Bad:
        def __del__(self):
            raise ValueError("in a finaliser")

    with disk_cache._interrupts_kept():
        bad = Bad()
        del bad
    assert told == [ValueError]
