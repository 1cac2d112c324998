"""Parameters and gradients as the optimizers take them: arrays of any library, changed where they lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.blockwise.coded import FLOATS
from lowgemm.checks.arrays import (
    as_floats,
    bfloat16_bits,
    detached,
    from_bfloat16,
    in_place,
    is_array,
    to_bfloat16,
)
from lowgemm.checks.values import is_masked

#: Dtypes of parameters; the bits of bfloat16 are kept as uint16.
SINGLE, HALF, BITS = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint16)


def as_list(value: Any, name: str) -> list[Any]:
    """Several arrays; one by itself is a list of one."""
    if is_array(value):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise TypeError(f"{name}: expected an array or a sequence of arrays, got {type(value).__name__}")
    return list(value)


def check_parameters(params: ArrayLike | Iterable[ArrayLike]) -> list[np.ndarray]:
    """`params` as a list of arrays that can be changed in place and do not overlap."""
    found = []
    for i, p in enumerate(as_list(params, "params")):
        name = f"params[{i}]"
        if isinstance(p, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected an array without a mask, got {type(p).__name__}")
        p = detached(p)  # a tensor of a model requires a gradient; the step is no part of what it is taken of
        a = in_place(p, name, "an array")
        if a.dtype not in (SINGLE, HALF) and bfloat16_bits(p, name) is None:
            raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {a.dtype.str}")
        found.append(a)
    if not found:
        raise ValueError("params: expected at least one array")
    for i, p in enumerate(found):
        for j in range(i):
            if np.may_share_memory(p, found[j]) and np.shares_memory(p, found[j]):
                raise ValueError(f"params[{i}]: expected no overlap with params[{j}]")
    return found


def gradient_of(g: Any, p: np.ndarray, index: int) -> np.ndarray | None:
    """A gradient as float32 vector in C order that does not overlap the parameter."""
    if g is None:
        return None
    name = f"grads[{index}]"
    if is_masked(g):
        raise TypeError(f"{name}: masked elements have no value; fill them first")
    if not is_array(g):
        raise TypeError(
            f"{name}: expected an array of float32, float64, float16 or bfloat16, got {type(g).__name__}"
        )
    a = as_floats(g, name, "an array")
    if a.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"{name}: expected an array of float32, float64, float16 or bfloat16, got {a.dtype}")
    if a.shape != p.shape:
        raise ValueError(f"{name}: expected shape {p.shape}, got {a.shape}")
    with np.errstate(over="ignore"):  # refused as infinity
        flat = np.ascontiguousarray(a, dtype=np.float32).reshape(-1)
    return flat.copy() if not flat.flags.aligned or np.may_share_memory(flat, p) else flat


def single(p: np.ndarray) -> np.ndarray:
    """A parameter as float32 vector in C order: its own memory where it is that already."""
    if p.dtype == BITS:
        return from_bfloat16(p).reshape(-1)
    direct = p.dtype == SINGLE and p.flags.c_contiguous and p.flags.aligned
    return p.reshape(-1) if direct else p.astype(np.float32).reshape(-1)


def put(p: np.ndarray, flat: np.ndarray) -> int:
    """Round new values into a parameter. Those that its dtype cannot hold are left out; returns how many."""
    new = flat.reshape(p.shape)
    if p.dtype == BITS:
        rounded, finite = to_bfloat16(new), from_bfloat16
    else:
        with np.errstate(over="ignore"):
            rounded, finite = new.astype(p.dtype), np.asarray
    lost = np.isfinite(new) & ~np.isfinite(finite(rounded))
    np.copyto(p, rounded, where=~lost)
    return int(np.count_nonzero(lost))
