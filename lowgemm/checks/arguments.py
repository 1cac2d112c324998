"""Checks of what a caller passes, before any memory is touched. Each error names the argument."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from lowgemm.checks.arrays import widened
from lowgemm.checks.values import as_array, integers, is_masked

#: What to do with an operand that is not 8-bit, by the kind of its dtype.
_ADVICE = {
    "f": "; lowgemm.quantize(x) gives codes and their scale, "
    ".astype(numpy.int8) is right if it holds small integers",
    "i": "; .astype(numpy.int8) or .astype(numpy.uint8), if all values fit",
    "u": "; .astype(numpy.uint8), if all values fit",
    "b": "; .astype(numpy.uint8)",
}


def as_operand(value: Any, name: str) -> np.ndarray:
    """`value` as a uint8 or int8 array of at least one dimension, without a copy where it is one.

    `ml_dtypes` integers of 4 and 2 bits are taken too; see `lowgemm.checks.arrays.widened`. So are lists and
    tuples of integers, whose dtype follows from their values.
    """
    if is_masked(value):
        raise TypeError(f"{name}: masked elements have no product; fill them first")
    if isinstance(value, tuple) and hasattr(value, "codes"):  # what `lowgemm.quantize` gives
        raise TypeError(
            f"{name}: expected an array, got {type(value).__name__}; give its .codes, and its .zero_point as "
            f"{name}_zero_point"
        )
    a = as_array(value, name, "a rectangular array")
    if a.dtype != np.uint8 and a.dtype != np.int8:
        a = _bytes_of_list(a, name) if isinstance(value, (list, tuple)) else widened(a)
        if a.dtype != np.uint8 and a.dtype != np.int8:
            got = value if value is None else a.dtype
            raise TypeError(f"{name}: expected dtype uint8 or int8, got {got}{_ADVICE.get(a.dtype.kind, '')}")
    if a.ndim == 0:
        raise ValueError(f"{name}: expected at least one dimension, got a scalar")
    return a


def _bytes_of_list(a: np.ndarray, name: str) -> np.ndarray:
    """What NumPy made of a list: integers as uint8, or as int8 if some are negative; anything else as it is.

    NumPy gives a list of integers 64 bits, so only the values can say which 8 bits are meant. An array has a
    dtype, and is never narrowed.
    """
    if a.size == 0:
        return a.astype(np.uint8)
    if a.dtype.kind not in "iu":
        return a
    low, high = int(a.min()), int(a.max())
    if low < -128 or high > (127 if low < 0 else 255):
        raise ValueError(f"{name}: expected integers from 0 to 255 or from -128 to 127, got {low} to {high}")
    return a.astype(np.int8 if low < 0 else np.uint8)


def as_zero_point(value: Any, name: str, size: int, unit: str) -> int | np.ndarray:
    """Zero point as an int, or as an int32 copy of length `size` (one per `unit`)."""
    checked = integers(value, name)
    if isinstance(checked, int):
        return checked
    if checked.size == 1:
        return int(checked[0])
    if checked.size != size:
        raise ValueError(f"{name}: expected a scalar or {size} values (one per {unit}), got {checked.size}")
    return checked


def as_zero_points(
    value: Any, name: str, size: int, unit: str, batch: tuple[int, ...], axis: int
) -> int | np.ndarray:
    """As `as_zero_point`; with three dimensions or more, one value per `unit` of each matrix of a stack.

    Those broadcast with the operand as in NumPy, except that the axis of the depth, which is not `axis`, must
    be 1. They come back as int32 of three dimensions or more, or as a scalar or vector where all matrices
    have the same.
    """
    if value is None or isinstance(value, (numbers.Integral, np.generic)):
        return as_zero_point(value, name, size, unit)
    a = as_array(value, name, "an integer or a vector")
    if a.ndim < 3:
        return as_zero_point(a, name, size, unit)
    across = (size, 1) if axis == -2 else (1, size)
    lead = a.shape[:-2]
    fits = a.shape[-2:] in (across, (1, 1)) and len(lead) <= len(batch)
    if not fits or any(n not in (1, m) for n, m in zip(lead[::-1], batch[::-1], strict=False)):
        stacked = f", or shape {(*batch, *across)}" if batch else ""
        raise ValueError(
            f"{name}: expected a scalar or {size} values (one per {unit}){stacked}, got shape {a.shape}"
        )
    flat = as_zero_point(a.reshape(-1), name, a.size, unit)
    if isinstance(flat, int) or a.size == max(a.shape[-2:]):
        return flat
    return flat.reshape(a.shape)


def as_num_threads(value: Any) -> int | None:
    """`num_threads` as an int of at least 1, or None."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_, np.timedelta64)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"num_threads: expected an integer or None, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"num_threads: expected at least 1, got {value}")
    return int(value)


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """`out` if the result can be written to it."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a NumPy array, got {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out: expected dtype {dtype} in native byte order, got {out.dtype.str}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writable array")
    if not out.flags.aligned:
        raise ValueError("out: expected an aligned array")
    reach = out.itemsize
    for stride, size in sorted(
        (abs(st), sz) for st, sz in zip(out.strides, out.shape, strict=True) if sz > 1
    ):
        if out.size and stride < reach:
            raise ValueError("out: expected distinct elements, but some overlap each other in memory")
        reach += stride * (size - 1)
    for name, a in inputs.items():
        if np.may_share_memory(out, a):
            try:
                shared = np.shares_memory(out, a, max_work=100_000)
            except np.exceptions.TooHardError:
                shared = True
            if shared:
                raise ValueError(f"out: expected no overlap with {name}")
    return out
