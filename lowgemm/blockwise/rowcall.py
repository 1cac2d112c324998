"""Python's way into a product with coded weights of a kind that came before: one built-in function.

After a product of one row, the core's caches hold the weights that it read. What Python does for the next
call must then come from memory too, line by line: looking at the arguments, filling the job, and handing it
on took 85 us, where a product of 4096 x 4096 takes 530 (2 cores of an Intel Xeon with AMX, INT4 in groups of
128). In compiled code it touches a few lines: `engine/entry.py` says how it is called.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from lowgemm.blockwise import job as jobs
from lowgemm.blockwise.rowjob import ROWS_PRODUCT, Ready
from lowgemm.engine import entry
from lowgemm.engine.array_objects import ALIGNED, DATA, WRITEABLE, alike, apart, data_of, has
from lowgemm.engine.records import record_type
from lowgemm.jit import team
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import pointer_at, pointer_field, record_at
from lowgemm.jit.routine import call_address, call_for_address, routine

#: First argument of `multiply_again`.
ROWS_CALL = record_type(
    *entry.EVERY_CALL.descr,
    ("pattern", np.uint64),  # what `entry.pattern_of` says of the rows, the result and the bias
    "biased",
    ("job", np.uint64),  # a `RowsProductJob` that was run before
    "busy",  # whether a call is using it
    "team run",  # addresses of the team and of `team.run`; 0: there is no team
    "work workers",  # address of a worker's loop, and threads at most
)
rows_call_at = record_at(ROWS_CALL)
#: Numbers of the arguments of `multiply_again`.
_CALL, _LHS, _OUT, _BIAS = range(4)
_EMPTY, _FLOAT32 = np.empty, np.dtype(np.float32)
_FLOAT_BYTES = np.int64(4)


@routine(entry.BUILT_IN)
def _multiply_again(_self, args, _count):
    """What `multiply_again` gives."""
    call = rows_call_at(pointer_at(pointer_at(args, _CALL), DATA))
    lhs, out, bias = pointer_at(args, _LHS), pointer_at(args, _OUT), pointer_at(args, _BIAS)
    # Python's lock is held here, so that no two calls find it idle.
    if call.busy != 0 or not alike(pointer_field(call, "pattern"), args):
        return entry.new_reference(call, args, entry.NONE)
    fit = has(lhs, ALIGNED) and has(out, ALIGNED | WRITEABLE) and apart(out, _FLOAT_BYTES, lhs, _FLOAT_BYTES)
    if fit and call.biased != 0:
        fit = has(bias, ALIGNED) and apart(out, _FLOAT_BYTES, bias, _FLOAT_BYTES)
    if not fit:
        return entry.new_reference(call, args, entry.NONE)
    at = pointer_field(call, "job")
    job = numba.carray(at, (1,), ROWS_PRODUCT)[0]
    job.source, job.out = data_of(lhs), data_of(out)
    job.bias = data_of(bias) if call.biased != 0 else 0
    job.bad = job.given = job.from_front = job.from_back = job.copying = job.copied = 0
    call.busy = 1
    release, state = call.release, 0
    if release != 0:
        state = call_for_address(call.save_thread, ())
    if call.workers > 1:
        call_address(call.run, (call.team, call.work, at, 0, call.workers, 1))
    else:
        call_address(call.work, (at, 0, 0))
    if release != 0:
        call_address(call.restore_thread, (state,))
    call.busy = 0
    if job.bad != 0:
        return entry.new_reference(call, args, entry.NONE)
    return entry.new_reference(call, args, _OUT)


@functools.cache
def multiply_again() -> Any:
    """``multiply_again(call, lhs, out, bias) -> out``; None, and nothing written, if the arrays are not as
    the record in `call` says, if they share memory, if a row is not finite, or while another thread's call
    uses the same record. None instead of a function where it is not `entry.usable`.
    """
    return entry.built_in(b"multiply_again", _multiply_again)


def is_made() -> bool:
    """Whether `multiply_again` was asked for before, so that asking again takes no time."""
    return multiply_again.cache_info().currsize > 0


class Again(NotCopied):
    """A product that was made before, for more of its kind: float32 rows one after another, the same shape,
    threads and kernel, with a bias or without.

    Parameters
    ----------
    ready : Ready
        The job, made and run. It belongs to this object from now on.
    lhs, out, bias : ndarray or None
        Arrays of the layout of those to come. They are not kept.
    workers : int
        Threads at most.
    made_for : tuple or None
        Thread settings that `workers` depends on; None: it depends on none.
    """

    instead = "copy the weight that keeps it, which leaves it out"

    __slots__ = ("_enter", "_pattern", "_ready", "_record", "_shape", "made_for")

    def __init__(
        self, ready: Ready, lhs: np.ndarray, out: np.ndarray, bias: np.ndarray | None, workers: int,
        made_for: tuple[Any, ...] | None,
    ) -> None:  # fmt: skip
        self._ready, self._shape, self.made_for = ready, out.shape, made_for
        workers = ready.room_for(workers)
        self._pattern = entry.pattern_of(lhs, out) if bias is None else entry.pattern_of(lhs, out, bias)
        macs = lhs.size * out.shape[-1]
        standing = team.the_team()
        self._record = entry.filled(
            ROWS_CALL, release=workers > 1 or macs >= entry.RELEASE_MACS, out_bytes=4,
            pattern=self._pattern.ctypes.data, biased=bias is not None, job=ready.job.address,
            team=0 if standing is None else standing.address, run=0 if standing is None else team.run.address,
            work=jobs.work.address, workers=workers if standing is not None else 1,
        )  # fmt: skip
        self._enter = multiply_again()

    def run(self, lhs: np.ndarray, bias: Any, out: np.ndarray | None) -> np.ndarray | None:
        """Multiply; None, and nothing written, if the call is of another kind after all or its rows are not
        finite.
        """
        to = _EMPTY(self._shape, _FLOAT32) if out is None else out
        return self._enter(self._record, lhs, to, bias)
