"""The public functions inside the user's own compiled code."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import errors
from numba.extending import overload

from lowgemm.fixedpoint.checks import WIDE
from lowgemm.fixedpoint.ufuncs import ufunc


def integer_type(like: types.Type, dtypes: tuple[type, ...]) -> int:
    """Width of an argument's type in compiled code."""
    scalar = like.dtype if isinstance(like, types.Array) else like
    if scalar not in [numba.from_dtype(np.dtype(t)) for t in dtypes]:
        raise errors.NumbaTypeError(f"expected {' or '.join(t.__name__ for t in dtypes)}, got {scalar}")
    return scalar.bitwidth


def inside_njit(public: Any, name: str, second: str | None, dtypes: tuple[type, ...] = WIDE) -> None:
    """Make `public` callable in compiled code; ranges are not checked there."""
    if second is None:

        @overload(public)
        def unary(a):
            call = ufunc(name, integer_type(a, dtypes))
            return lambda a: call(a)

    elif second == "b":

        @overload(public)
        def binary(a, b):
            call = ufunc(name, integer_type(a, dtypes))
            integer_type(b, dtypes)
            return lambda a, b: call(a, b)

    elif second == "exponent":

        @overload(public)
        def by_exponent(x, exponent):
            call = ufunc(name, integer_type(x, dtypes))
            return lambda x, exponent: call(x, exponent)

    else:

        @overload(public)
        def with_integer_bits(a, integer_bits):
            call = ufunc(name, integer_type(a, dtypes))
            return lambda a, integer_bits: call(a, integer_bits)
