"""What a call of the fuzz may come to: the reference's answer, or a documented exception."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

import lowgemm as lg

from .arrays import Dlpack, Interface

#: What a public function may raise: its docstring says so. OverflowError only with ``overflow="raise"``.
DOCUMENTED = (TypeError, ValueError, MemoryError)
#: A message begins with the name of the argument or field.
NAMED = re.compile(r"^[a-zA-Z_][\w\[\].]*(, [a-zA-Z_][\w.]*)*: ")


class Wrong(AssertionError):
    """An outcome that is neither the reference's answer nor a documented exception."""


def same(got: Any, expected: Any) -> bool:
    """Equal values, shape and dtype; NaN equals NaN."""
    got, expected = np.asarray(got), np.asarray(expected)
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    return np.array_equal(got, expected, equal_nan=got.dtype.kind == "f")


def snapshot(x: Any) -> Any:
    """What `x` holds now."""
    if isinstance(x, lg.PackedRhs):
        return x
    if isinstance(x, (Dlpack, Interface)):  # NumPy by itself makes an object of the first
        x = x.values
    try:
        return np.array(x, subok=False)
    except Exception:  # no array, which the call will say
        return x
