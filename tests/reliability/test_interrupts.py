"""Interrupts and signal handlers during calls: the library stays usable and right."""

from __future__ import annotations

import sys

import pytest

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

#: Ctrl-C while a call compiles, here of six kinds: the next call compiles what is missing. Each pause is
#: longer than the last, until one is too long to interrupt anything.
COMPILING = """
import os, signal, threading, numpy as np, lowgemm
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background program has none
g = np.random.default_rng(0)
a, b = g.integers(0, 256, (40, 70), dtype=np.uint8), g.integers(-128, 128, (70, 30), dtype=np.int8)
exact = a.astype(np.int64) @ b.astype(np.int64)
calls = [
    lambda: lowgemm.gemm(a, b) - exact, lambda: lowgemm.gemm(a.T, b[:40]) - a.T.astype(np.int64) @ b[:40],
    lambda: lowgemm.gemm(a[:1], b) - exact[:1],
    lambda: lowgemm.gemm(a, b, output=lowgemm.Clamp(0, 99)) - exact.clip(0, 99),
    lambda: lowgemm.fixedpoint.saturating_add(np.int32([2]), np.int32([3])) - 5,
    lambda: lowgemm.quantize(np.float32([-255, 0]), "uint8").codes - np.array([0, 255]),
]
ended = threading.Event()
def send(pause):
    if not ended.wait(pause):
        os.kill(os.getpid(), signal.SIGINT)
def interrupted(call, pause):
    ended.clear()
    sender = threading.Thread(target=send, args=(pause,))
    try:
        sender.start()
        call()
        ended.set()
        sender.join()
    except KeyboardInterrupt:
        return True
    return False
interrupts = 0
for call in calls:
    pause = 0.002
    while interrupted(call, pause):
        interrupts += 1
        pause *= 1.6
print("interrupts", interrupts, "wrong", sum(bool(np.any(call())) for call in calls))
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""

#: The handler multiplies while the first call of the process compiles.
COMPILING_REENTERED = """
import signal, numpy as np, lowgemm
x = np.ones((30, 30), np.uint8)
right = []
def handler(*_):
    right.append((lowgemm.gemm(x, x[:, :7].copy(), output=lowgemm.Clamp(3, 40)) == 30).all())
signal.signal(signal.SIGVTALRM, handler)
signal.setitimer(signal.ITIMER_VIRTUAL, 0.02, 0.03)
assert (lowgemm.gemm(x, x) == 30).all()
signal.setitimer(signal.ITIMER_VIRTUAL, 0)
assert all(right) and right, right
print("fine", len(right))
"""

#: Ctrl-C whenever LLVM calls back into Python, where no exception can be raised.
IN_CALLBACK = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background program has none
from numba.core import codegen
pieces = []
real = codegen.JITCodeLibrary._object_compiled_hook.__func__
def compiled(cls, module, code):
    pieces.append(1)
    if send:
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
came = []
for function in (one, two):
    send = True
    try:
        function(1)
    except KeyboardInterrupt:
        came.append(function.__name__)
    send = False
    function(1)
assert one(1) == 2 and two(1) == 3
print("interrupts", came, len(pieces))
"""

#: Ctrl-C while Numba takes its declarations off a list one by one, when it first compiles, and while a
#: generator gives it the new ones, whenever it compiles. Every kind of function that lowgemm compiles.
DECLARATIONS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background program has none
import numba
from numba import types
from lowgemm.jit import disk_cache
reads = 0
def noted(frame, event, argument):
    global reads
    if event == "call" and frame.f_code.co_name in ("stream_list", "new_registrations", "insert_attributes"):
        reads += 1
        signal.raise_signal(signal.SIGINT)
one = disk_cache.njit([types.int64(types.int64)])(lambda x: x + 1)
two = disk_cache.njit()(lambda x: x + 2)
three = disk_cache.vectorize(lambda x: x + 3)
kinds = [
    lambda: one(1) - 2, lambda: two(1) - 3, lambda: two(1.0) - 3, lambda: three(1) - 4,
    lambda: three(1.0) - 4,
    lambda: disk_cache.cfunc(lambda x: x + 4, types.int64(types.int64)).ctypes(1) - 5,
]
came = wrong = 0
for kind in kinds:
    sys.setprofile(noted)
    try:
        wrong += kind() != 0
    except KeyboardInterrupt:
        came += 1
    finally:
        sys.setprofile(None)
    wrong += kind() != 0
assert reads > 100
print("interrupts", came, "wrong", wrong)
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
    out = child.run(COMPILING, NUMBA_CACHE_DIR=str(tmp_path)).split()
    assert int(out[1]) >= 6 and out[2:] == ["wrong", "0"]


def test_an_interrupt_inside_llvms_callback_is_raised(tmp_path):
    out = child.run(IN_CALLBACK, NUMBA_CACHE_DIR=str(tmp_path))
    assert out.startswith("interrupts ['one', 'two'] ") and int(out.split()[-1]) > 3


def test_an_interrupt_while_numba_reads_its_declarations_loses_nothing(tmp_path):
    assert "interrupts 6 wrong 0" in child.run(DECLARATIONS, NUMBA_CACHE_DIR=str(tmp_path))


#: The first product of the process is inside a caller's function: Numba holds its lock while ours is
#: compiled.
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
