"""Python's way into a frame (`frame.py`): two built-in functions, as `engine/entry.py` makes them.

Between two calls of onnxruntime the caches hold little of Python, NumPy and ctypes. Each function of theirs
that a run needs has to come from memory then: an array's address took 10 us of a recurrent model's run, a new
array 9, and a view on it 6, against less than 1 us when asked again at once. These functions read what they
need out of the array objects, so that nothing else has to come.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.engine import entry
from lowgemm.engine.array_objects import DATA, alike
from lowgemm.engine.records import record_type
from lowgemm.jit.memory import (
    load_i64,
    load_u8,
    pointer_at,
    pointer_field,
    record_at,
    record_behind,
    store_8,
    store_64,
)
from lowgemm.jit.routine import call_address, call_for_address, inner, routine
from lowgemm.onnx_run.addresses import address

#: First argument of `put`. Behind it, for each array that is copied, a `MOVE`.
PUT_CALL = record_type(
    *entry.EVERY_CALL.descr,
    ("pattern", np.uint64),  # what `entry.pattern_of` says of the arrays
    "moves",  # how many of them are copied
)
#: Which argument is copied, to which address, and how many bytes of it.
MOVE = record_type("number", ("to", np.uint64), "nbytes")
#: First argument of `run_tape`.
TAPE_CALL = record_type(
    *entry.EVERY_CALL.descr,
    "run",  # address of `tape.run_tape`
    ("words", np.uint64),  # of a tape whose addresses are written into it
)
put_call_at, tape_call_at, move_at = record_at(PUT_CALL), record_at(TAPE_CALL), record_behind(MOVE)
_CALL = 0


@inner
def _copy(to, source, nbytes):
    """Copy `nbytes` bytes from `source` to another place."""
    for i in range(nbytes // 8):
        store_64(to, i, load_i64(source, i))
    for i in range(nbytes // 8 * 8, nbytes):
        store_8(to, i, load_u8(source, i))


@routine(entry.BUILT_IN)
def _put(_self, args, _count):
    """What `put` gives."""
    call = put_call_at(pointer_at(pointer_at(args, _CALL), DATA))
    if not alike(pointer_field(call, "pattern"), args):
        return entry.new_reference(call, args, entry.NONE)
    for i in range(call.moves):
        move = move_at(call, i)
        source = pointer_at(pointer_at(args, move.number), DATA)
        _copy(pointer_field(move, "to"), source, move.nbytes)
    return entry.new_reference(call, args, _CALL)


@routine(entry.BUILT_IN)
def _run_tape(_self, args, _count):
    """What `run_tape` gives."""
    call = tape_call_at(pointer_at(pointer_at(args, _CALL), DATA))
    state = call_for_address(call.save_thread, ())
    call_address(call.run, (call.words,))
    call_address(call.restore_thread, (state,))
    words = pointer_field(call, "words")
    if load_i64(words, 0) != 0:
        store_64(words, 0, 0)
        return entry.new_reference(call, args, entry.NONE)
    return entry.new_reference(call, args, _CALL)


@functools.cache
def put() -> Any:
    """``put(call, *arrays) -> call``, where `call` is of `put_call`; None, and nothing is copied, if the
    arrays are not as it says. None instead of a function where it is not `entry.usable`.
    """
    return None if numba.config.DISABLE_JIT else entry.built_in(b"put", _put)


@functools.cache
def run_tape() -> Any:
    """``run_tape(call) -> call``, where `call` is of `tape_call`; None if a pass failed. Other Python threads
    run meanwhile. None instead of a function where it is not `entry.usable`.
    """
    return None if numba.config.DISABLE_JIT else entry.built_in(b"run_tape", _run_tape)


def put_call(forms: Sequence[Any], places: Mapping[int, np.ndarray]) -> tuple[np.ndarray, Any]:
    """First argument of `put`, and what has to live as long as it.

    Parameters
    ----------
    forms : sequence of (shape, dtype, strides)
        Of all arrays that are given, in order; dtypes are NumPy's own.
    places : mapping of int to ndarray
        By an array's number: where it is copied to. Both are in C order.
    """
    pattern = [len(forms)]
    for shape, dtype, strides in forms:
        pattern += [id(np.ndarray), id(np.dtype(dtype.str)), len(shape), *shape, *strides]
    kept = np.array(pattern, np.int64)
    head = entry.filled(PUT_CALL, pattern=address(kept), moves=len(places))
    moves = np.zeros(len(places), MOVE)
    for i, (number, place) in enumerate(places.items()):
        moves[i] = 1 + number, address(place), place.nbytes
    return np.concatenate([head.view(np.uint8), moves.view(np.uint8)]), (kept, places)


def tape_call(run: int, words: np.ndarray) -> np.ndarray:
    """First argument of `run_tape`.

    Parameters
    ----------
    run : int
        Address of the routine `tape.run_tape`.
    words : ndarray of int64
        A tape with its addresses; it must outlive the call.
    """
    return entry.filled(TAPE_CALL, run=run, words=address(words))
