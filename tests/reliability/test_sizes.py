"""Sizes that overflow something: the right answer, or a MemoryError or ValueError that says so."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import lowgemm
from lowgemm import plan as plan_function  # noqa: F401 (the module of that name is shadowed)
from lowgemm.engine import packed_rhs, ready
from lowgemm.jit import scratch

from . import child

#: 3 GB of address space: what does not fit is refused by the system at once, whatever the machine has.
HUGE = """
import resource, numpy as np, lowgemm
x = np.ones((3, 3), np.uint8)
assert (lowgemm.gemm(x, x, num_threads=2) == 3).all()
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
one = np.ones((), np.uint8)
def wide(*shape):
    return np.broadcast_to(one, shape)  # all strides zero: no memory behind it
big = 2**31
refused = 0
for lhs, rhs, note in (
    (wide(big + 1, 2), wide(2, 2), "rows"),
    (wide(2, 2), wide(2, big + 1), "columns"),
    (wide(2, big + 5), wide(big + 5, 2), "depth"),
    (wide(big, big), wide(big, big), "everything"),
    (wide(2**40, 2), wide(2, 2**40), "the result's bytes overflow 64 bits"),
    (wide(2**30, 3, 3), wide(3, 3), "batch"),
    (wide(2**20, 1, 3, 3), wide(2**20, 3, 3), "batch of two axes"),
    (wide(2**33, 1), wide(1, 1), "vector"),
    (wide(3, 3), wide(2**31, 2**28, 3, 3), "batch of 2**59"),
):
    for call in (
        lambda: lowgemm.gemm(lhs, rhs),
        lambda: lowgemm.gemm(lhs, rhs, output=lowgemm.Requantize(0.5), num_threads=2),
        lambda: lowgemm.plan(lhs, rhs),
        lambda: lowgemm.pack_rhs(rhs),
        lambda: lowgemm.explain(lhs, rhs),
    ):
        try:
            call()
        except (MemoryError, ValueError) as error:
            refused += 1
            assert str(error), note
assert refused >= 12, refused
for view in (wide(big, 2), wide(2**40, 2, 2)):
    try:
        lowgemm.requantize(np.broadcast_to(np.int32(5), view.shape), lowgemm.Clamp(0, 3))
    except (MemoryError, ValueError):
        refused += 1
assert (lowgemm.gemm(x, x) == 3).all()
# a zero-stride operand that does fit: 2**31 - 1 elements behind one byte
tall = wide(1, 2**22)
assert lowgemm.gemm(tall, tall.T)[0, 0] == 2**22
# more rows than int16 and a batch of 2**16 through zero strides, with real results
batch = lowgemm.gemm(wide(2**16, 2, 3), x[:, :2])
assert batch.shape == (2**16, 2, 2) and (batch == 3).all()
deep = lowgemm.gemm(wide(1, 2**24), wide(2**24, 1), lhs_zero_point=-2**31, rhs_zero_point=2**31 - 1)
exact = (2**24 * (1 + 2**31) * (1 - (2**31 - 1)) + 2**31) % 2**32 - 2**31
assert deep[0, 0] == exact, (deep, exact)
print("refused", refused)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs an address space limit that holds")
def test_sizes_that_do_not_fit():
    assert "refused" in child.run(HUGE, NUMBA_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1")


def fail(*args, **kwargs):
    raise MemoryError("no memory (test)")


@pytest.mark.parametrize("threads_used", [1, 2])
def test_no_scratch_memory_leaves_out_alone(monkeypatch, threads_used):
    """Scratch memory is all taken before anything is written."""
    from lowgemm.engine import threads

    monkeypatch.setattr(threads, "MACS_PER_THREAD", 1000)
    a = np.ones((70, 41), np.uint8)
    b = np.ones((41, 53), np.int8)
    w = lowgemm.pack_rhs(b)
    for _ in range(2):
        lowgemm.gemm(a, b, num_threads=threads_used)
    out = np.full((70, 53), 7, np.int32)
    with monkeypatch.context() as patch:
        patch.setattr(scratch, "aligned_empty", fail)
        patch.setattr(scratch, "borrow", fail)
        patch.setattr(ready, "borrowed", fail)
        patch.setattr(ready, "borrow", fail)
        for right in (b, w):
            for _ in range(2):
                with pytest.raises(MemoryError):
                    lowgemm.gemm(a, right, out=out, num_threads=threads_used)
        assert (out == 7).all()
        with pytest.raises(MemoryError):
            packed_rhs.pack_rhs(b)
    assert (lowgemm.gemm(a, b, out=out, num_threads=threads_used) == 41).all()
    assert (w.to_array() == 1).all()
