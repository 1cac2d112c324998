"""A user's function as an output routine.

The routine is compiled in memory only: a closure over another compiled function never hits Numba's disk cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import errors

from lowgemm.jit.memory import load_i32, load_i64, offset, pointer_at, store_32

_compiled: dict[Any, Any] = {}


def python_function(function: Any) -> Any:
    """The function as plain Python, for the reference."""
    return getattr(function, "py_func", function)


def custom_routine(stage: Any) -> Any:
    """Compiled routine of a `Custom` stage.

    Raises
    ------
    TypeError
        If Numba cannot compile the function.
    """
    if numba.config.DISABLE_JIT:
        return None
    shape = tuple((a.dtype.str, a.ndim) for a in stage.arrays)
    key = (stage.function, shape)
    if key not in _compiled:
        function = stage.function
        if not hasattr(function, "py_func"):
            function = numba.njit(function)
        try:
            _compiled[key] = _make(function, [a.dtype for a in stage.arrays], [a.ndim for a in stage.arrays])
        except errors.NumbaError as error:
            reason = str(error).strip()
            raise TypeError(
                f"function: Numba cannot compile it as (acc, row, col, *arrays): {reason}"
            ) from None
    return _compiled[key]


def _make(function: Any, dtypes: list[np.dtype], ndims: list[int]) -> Any:
    from lowgemm.output.routines import SIGNATURE

    reader = _READERS[len(dtypes)](*(numba.from_dtype(d) for d in dtypes), *(n == 2 for n in ndims))

    @numba.cfunc(SIGNATURE, nopython=True)
    def custom(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs):
        arrays = reader(params)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            for c in range(cols):
                store_32(line, c, np.int64(function(load_i32(line, c), row + r, col + c, *arrays)))

    return custom


@numba.njit
def _shape(params, i):
    return load_i64(params, 3 * i + 1), load_i64(params, 3 * i + 2)


def _reader(dtype: Any, matrix: bool, i: int) -> Any:
    """A compiled function that makes array number `i` out of the parameters."""
    if matrix:

        @numba.njit
        def read(params):
            return numba.carray(pointer_at(params, 3 * i), _shape(params, i), dtype)

    else:

        @numba.njit
        def read(params):
            return numba.carray(pointer_at(params, 3 * i), (_shape(params, i)[0],), dtype)

    return read


def _read0() -> Any:
    return numba.njit(lambda params: ())


def _read1(d0, m0):
    r0 = _reader(d0, m0, 0)
    return numba.njit(lambda params: (r0(params),))


def _read2(d0, d1, m0, m1):
    r0, r1 = _reader(d0, m0, 0), _reader(d1, m1, 1)
    return numba.njit(lambda params: (r0(params), r1(params)))


def _read3(d0, d1, d2, m0, m1, m2):
    r0, r1, r2 = _reader(d0, m0, 0), _reader(d1, m1, 1), _reader(d2, m2, 2)
    return numba.njit(lambda params: (r0(params), r1(params), r2(params)))


def _read4(d0, d1, d2, d3, m0, m1, m2, m3):
    r0, r1, r2, r3 = _reader(d0, m0, 0), _reader(d1, m1, 1), _reader(d2, m2, 2), _reader(d3, m3, 3)
    return numba.njit(lambda params: (r0(params), r1(params), r2(params), r3(params)))


_READERS = (_read0, _read1, _read2, _read3, _read4)


def custom_params(stage: Any) -> list[int]:
    """Address and shape of each array."""
    flat: list[int] = []
    for a in stage.arrays:
        flat += [a.ctypes.data, a.shape[0], a.shape[1] if a.ndim == 2 else 1]
    return flat
