"""Checks of what a caller passes, before any memory is touched. Each error names the argument."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

_INT32 = np.iinfo(np.int32)


def as_operand(value: Any, name: str) -> np.ndarray:
    """`value` as a uint8 or int8 array of at least one dimension, without a copy where it is one."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(f"{name}: masked elements have no product; fill them first")
    try:
        a = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected a rectangular array ({error})") from None
    if a.dtype != np.uint8 and a.dtype != np.int8:
        raise TypeError(f"{name}: expected dtype uint8 or int8, got {a.dtype}")
    if a.ndim == 0:
        raise ValueError(f"{name}: expected at least one dimension, got a scalar")
    return a


def as_zero_point(value: Any, name: str, size: int, unit: str) -> int | np.ndarray:
    """Zero point as an int, or as an int32 copy of length `size` (one per `unit`)."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer or an array of integers, got a bool")
    if isinstance(value, numbers.Integral):
        x = int(value)
        if not _INT32.min <= x <= _INT32.max:
            raise ValueError(f"{name}: expected an int32 value, got {x}")
        return x
    try:
        a = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected a scalar or a vector ({error})") from None
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an integer or an array of integers, got {a.dtype}")
    if a.ndim > 1:
        raise ValueError(f"{name}: expected a scalar or one value per {unit}, got shape {a.shape}")
    if a.ndim == 1 and a.size != size and a.size != 1:
        raise ValueError(f"{name}: expected a scalar or {size} values (one per {unit}), got {a.size}")
    if a.size and (int(a.min()) < _INT32.min or int(a.max()) > _INT32.max):
        raise ValueError(f"{name}: expected int32 values, got {int(a.min())} to {int(a.max())}")
    if a.size == 1:
        return int(a.reshape(()))
    return a.astype(np.int32)


def as_num_threads(value: Any) -> int | None:
    """`num_threads` as an int of at least 1, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
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
