"""Functions that call `gemm` in compiled code, as a user writes them; `compiled.py` loads this file, always
by the same name.
"""

from __future__ import annotations

import functools
from typing import Any

import numba

import lowgemm as lg
from lowgemm import in_numba
from lowgemm.in_numba.packed_type import PackedRhsType

_ELEMENT = {"u": numba.uint8, "i": numba.int8}


def _operand(kind: str) -> Any:
    return numba.types.Array(_ELEMENT[kind], 2, "A", readonly=True)


@functools.cache
def callers(left: str, right: str, packed: bool) -> tuple[Any, Any]:
    """A product with a vector of zero points for each side, and one into `out` with numbers."""
    in_numba.init()
    x, w = _operand(left), PackedRhsType(_ELEMENT[right]) if packed else _operand(right)
    zeros, out = numba.int64[:], numba.int32[:, :]

    @numba.njit(numba.int32[:, ::1](x, w, zeros, zeros), nogil=True, cache=True)
    def product(x, w, x_zero, w_zero):  # type: ignore[no-untyped-def]
        return lg.gemm(x, w, lhs_zero_point=x_zero, rhs_zero_point=w_zero)

    @numba.njit(numba.void(x, w, numba.int64, numba.int64, out, numba.boolean), nogil=True, cache=True)
    def into(x, w, x_zero, w_zero, out, add):  # type: ignore[no-untyped-def]
        lg.gemm(x, w, lhs_zero_point=x_zero, rhs_zero_point=w_zero, out=out, accumulate=add)

    return product, into
