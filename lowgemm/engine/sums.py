"""The output stages on int32 sums that exist already, ready to run: for `requantize` what `ready.py` is for `gemm`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lowgemm.engine import entry
from lowgemm.engine.array_objects import ALIGNED, HEAD, WRITEABLE, apart, data_of, has
from lowgemm.engine.batch import offsets
from lowgemm.engine.ready import fits
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import as_address, load_i64, offset, pointer_at
from lowgemm.jit.routine import call_address, call_for_address, routine
from lowgemm.jit.scratch import borrow, borrowed, give_back
from lowgemm.output.apply import TILE_COLS, TILE_ROWS
from lowgemm.output.apply import apply as apply_tiles
from lowgemm.output.pipeline import compile_pipeline, raise_failures

#: Fields behind those of every record (`entry.functions`): the routine, its stages, where sums and results lie.
(
    APPLY, TABLE, STAGES, ROWS, COLS, SUMS_ROW, SUMS_COL, OUT_ROW, OUT_COL, COUNT, MATRICES,
) = range(entry.RECORD_SIZE, entry.RECORD_SIZE + 11)  # fmt: skip
#: Sums from which other Python threads may run meanwhile (about 2 us).
RELEASE_SUMS = 1 << 13


@routine(entry.BUILT_IN)
def _apply(_self, args, _count):
    record = pointer_at(pointer_at(args, 0), HEAD)
    sums, out = pointer_at(args, 1), pointer_at(args, 2)
    fit = has(sums, ALIGNED) and has(out, ALIGNED | WRITEABLE)
    if not fit or not apart(sums, 4, out, load_i64(record, entry.OUT_BYTES)):
        return entry.given(record, args, -1)
    source, to = data_of(sums), data_of(out)
    tile = as_address(pointer_at(pointer_at(args, 3), HEAD))
    release, state = load_i64(record, entry.RELEASE), 0
    if release != 0:
        state = call_for_address(load_i64(record, entry.SAVE), ())
    for i in range(load_i64(record, COUNT)):
        at = offset(record, 8 * (MATRICES + 2 * i))
        call_address(
            load_i64(record, APPLY),
            (
                load_i64(record, TABLE), load_i64(record, STAGES), source + load_i64(at, 0), load_i64(record, SUMS_ROW),
                load_i64(record, SUMS_COL), load_i64(record, ROWS), load_i64(record, COLS), to + load_i64(at, 1),
                load_i64(record, OUT_ROW), load_i64(record, OUT_COL), tile,
            ),
        )  # fmt: skip
    if release != 0:
        call_address(load_i64(record, entry.RESTORE), (state,))
    return entry.given(record, args, 2)


@functools.cache
def apply() -> Any:
    """``apply(record, sums, out, tile) -> out``, or None if one is not aligned or they are not apart; None where it is not `entry.usable`."""
    return entry.built_in(b"apply", _apply)


class ReadySums(NotCopied):
    """A pipeline compiled for int32 sums and a result of one memory layout.

    Parameters
    ----------
    stages : tuple of stages
        Checked pipeline.
    sums, out : ndarray
        Plain arrays of at least two dimensions, with elements, of the layout of those to come. They are not kept.
    shape : tuple of int
        Of the result, which may be a vector.
    """

    instead = "copy the output stages"

    def __init__(
        self, stages: tuple[Any, ...], sums: np.ndarray, out: np.ndarray, shape: tuple[int, ...]
    ) -> None:
        self._shape, self._result = shape, out.dtype
        self._program = compile_pipeline(
            stages,
            out.dtype,
            fold_bias=False,
            size=sums.shape[-2:],
            contiguous=out.strides[-1] == out.itemsize,
        )
        self._stages = stages
        self._numbers = np.array(self._program.table(), dtype=np.int64)
        lead = sums.shape[:-2]
        starts = [offsets(lead, lead, a.strides[:-2]) for a in (sums, out)]
        record = np.zeros(MATRICES, dtype=np.int64)
        for field, number in entry.functions().items():
            record[field] = number
        record[entry.RELEASE], record[entry.OUT_BYTES] = sums.size >= RELEASE_SUMS, out.itemsize
        record[APPLY:MATRICES] = (
            apply_tiles.address, self._numbers.ctypes.data, self._numbers.size // 2, *sums.shape[-2:],
            *sums.strides[-2:], *out.strides[-2:], starts[0].size,
        )  # fmt: skip
        self._record = np.concatenate([record, np.stack(starts, axis=1).ravel()])
        self._customs = bool(self._program.customs)
        #: Records whose status words no other call writes to, of calls that are over.
        self._lent: list[Any] = []

    def run(self, sums: np.ndarray, out: np.ndarray | None) -> np.ndarray | None:
        """The result; None, and nothing written, if `out` may not be written, shares memory with the sums or is not aligned."""
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
            numbers, watches = self._program.watched(self._numbers, 0)
            record = self._record.copy()
            record[TABLE] = numbers.ctypes.data
            return record, numbers, watches

    def _by_addresses(self, sums: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        """The same for an interpreter that keeps arrays in a way that compiled code does not know."""
        if not (sums.flags.aligned and fits(out, sums)):
            return None
        numbers, watches = self._program.watched(self._numbers, 0)
        tile = np.empty(TILE_ROWS * TILE_COLS, dtype=np.int32)
        layout = [int(v) for v in self._record[ROWS:COUNT]]
        rows, cols, sums_row, sums_col, out_row, out_col = layout
        for sums_at, out_at in self._record[MATRICES:].reshape(-1, 2).tolist():
            apply_tiles.ctypes(
                numbers.ctypes.data, numbers.size // 2, sums.ctypes.data + sums_at, sums_row, sums_col, rows, cols,
                out.ctypes.data + out_at, out_row, out_col, tile.ctypes.data,
            )  # fmt: skip
        raise_failures(watches)
        return out
