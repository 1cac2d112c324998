"""The output stages on int32 sums that exist already, ready to run: for `requantize` what `ready.py` is for
`gemm`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lowgemm.engine import entry
from lowgemm.engine.array_objects import ALIGNED, DATA, WRITEABLE, apart, data_of, has
from lowgemm.engine.batch import offsets
from lowgemm.engine.ready import fits
from lowgemm.engine.records import record_type
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import as_address, pointer_at, record_at, record_behind
from lowgemm.jit.routine import call_address, call_for_address, routine
from lowgemm.jit.scratch import borrow, borrowed, give_back
from lowgemm.output.apply import TILE_COLS, TILE_ROWS
from lowgemm.output.apply import apply as apply_tiles
from lowgemm.output.pipeline import compile_pipeline, raise_failures

#: First argument of `apply`. Behind it, for each matrix of a stack, a `MATRIX`.
SUMS_CALL = record_type(
    *entry.EVERY_CALL.descr,
    "routine",  # address of `output.apply.apply`
    "stages count",  # address of the stages' addresses, and how many stages there are
    "rows cols",  # of a matrix
    "sums_row_stride sums_col_stride out_row_stride out_col_stride",
    "matrices",  # how many there are
)
#: Byte offsets of a matrix of sums, and of its result.
MATRIX = record_type("sums_at out_at")
sums_call_at, matrix_at = record_at(SUMS_CALL), record_behind(MATRIX)
#: Numbers of the arguments of `apply`.
_CALL, _SUMS, _OUT, _TILE = range(4)
#: Sums from which other Python threads may run meanwhile (about 2 us).
RELEASE_SUMS = 1 << 13


@routine(entry.BUILT_IN)
def _apply(_self, args, _count):
    """As in `entry.py`; the arguments behind the record are the sums, the result and a tile of scratch
    memory.
    """
    call = sums_call_at(pointer_at(pointer_at(args, _CALL), DATA))
    sums, out = pointer_at(args, _SUMS), pointer_at(args, _OUT)
    fit = has(sums, ALIGNED) and has(out, ALIGNED | WRITEABLE)
    if not fit or not apart(sums, 4, out, call.out_bytes):
        return entry.new_reference(call, args, entry.NONE)
    source, to = data_of(sums), data_of(out)
    tile = as_address(pointer_at(pointer_at(args, _TILE), DATA))
    release, state = call.release, 0
    if release != 0:
        state = call_for_address(call.save_thread, ())
    for i in range(call.matrices):
        matrix = matrix_at(call, i)
        call_address(
            call.routine,
            (
                call.stages, call.count, source + matrix.sums_at, call.sums_row_stride, call.sums_col_stride,
                call.rows, call.cols, to + matrix.out_at, call.out_row_stride, call.out_col_stride, tile,
            ),
        )  # fmt: skip
    if release != 0:
        call_address(call.restore_thread, (state,))
    return entry.new_reference(call, args, _OUT)


@functools.cache
def apply() -> Any:
    """``apply(call, sums, out, tile) -> out``, or None if one is not aligned or they are not apart; None
    where it is not `entry.usable`.
    """
    return entry.built_in(b"apply", _apply)


class ReadySums(NotCopied):
    """A pipeline compiled for int32 sums and a result of one memory layout.

    Parameters
    ----------
    stages : tuple of stages
        Checked pipeline.
    sums, out : ndarray
        Plain arrays of at least two dimensions, with elements, of the layout of those to come. They are not
        kept.
    shape : tuple of int
        Of the result, which may be a vector.
    """

    instead = "copy the output stages"

    def __init__(
        self, stages: tuple[Any, ...], sums: np.ndarray, out: np.ndarray, shape: tuple[int, ...]
    ) -> None:
        self._shape, self._result = shape, out.dtype
        self._pipeline = compile_pipeline(
            stages,
            out.dtype,
            fold_bias=False,
            size=sums.shape[-2:],
            contiguous=out.strides[-1] == out.itemsize,
        )
        self._stages = stages
        self._addresses = np.array(self._pipeline.addresses(), dtype=np.int64)
        lead = sums.shape[:-2]
        starts = np.stack([offsets(lead, lead, a.strides[:-2]) for a in (sums, out)], axis=1)
        record = entry.filled(
            SUMS_CALL,
            release=sums.size >= RELEASE_SUMS,
            out_bytes=out.itemsize,
            routine=apply_tiles.address,
            stages=self._addresses.ctypes.data,
            count=self._addresses.size // 2,
            rows=sums.shape[-2],
            cols=sums.shape[-1],
            sums_row_stride=sums.strides[-2],
            sums_col_stride=sums.strides[-1],
            out_row_stride=out.strides[-2],
            out_col_stride=out.strides[-1],
            matrices=len(starts),
        )
        self._record = np.concatenate([record.view(np.int64), starts.ravel()])
        self._customs = bool(self._pipeline.customs)
        #: Records whose status words no other call writes to, of calls that are over.
        self._lent: list[Any] = []

    def run(self, sums: np.ndarray, out: np.ndarray | None) -> np.ndarray | None:
        """The result; None, and nothing written, if `out` may not be written, shares memory with the sums or
        is not aligned.
        """
        to = np.empty(self._shape, self._result) if out is None else out
        call = apply()
        if call is None:
            return self._by_addresses(sums, to)
        size = 4 * TILE_ROWS * TILE_COLS
        if not self._customs:
            return call(self._record, sums, to, borrowed(size))
        lent = self._borrowed_record()
        space = borrow(size)
        result = call(lent[0], sums, to, space)
        give_back(space)
        raise_failures(lent[2])
        self._lent.append(lent)
        return result

    def _borrowed_record(self) -> Any:
        try:
            return self._lent.pop()
        except IndexError:
            addresses, watches = self._pipeline.watched(self._addresses, 0)
            record = self._record.copy()
            _call_of(record).stages = addresses.ctypes.data
            return record, addresses, watches

    def _by_addresses(self, sums: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        """The same for an interpreter that keeps arrays in a way that compiled code does not know."""
        if not (sums.flags.aligned and fits(out, sums)):
            return None
        addresses, watches = self._pipeline.watched(self._addresses, 0)
        tile = np.empty(TILE_ROWS * TILE_COLS, dtype=np.int32)
        call = _call_of(self._record)
        for sums_at, out_at in self._record[SUMS_CALL.itemsize // 8 :].reshape(-1, 2).tolist():
            apply_tiles.ctypes(
                addresses.ctypes.data, addresses.size // 2, sums.ctypes.data + sums_at, call.sums_row_stride,
                call.sums_col_stride, call.rows, call.cols, out.ctypes.data + out_at, call.out_row_stride,
                call.out_col_stride, tile.ctypes.data,
            )  # fmt: skip
        raise_failures(watches)
        return out


def _call_of(record: np.ndarray) -> Any:
    """The `SUMS_CALL` that an array of int64 begins with, in the same memory."""
    return record[: SUMS_CALL.itemsize // 8].view(SUMS_CALL)[0]
