"""Fuzz steps for `gemm` inside functions that the user compiles: compiled once, called with any arrays."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import numpy as np

import lowgemm as lg
from lowgemm import reference

from . import pipelines
from .arrays import integers, spaced
from .by_path import load
from .outcomes import same

#: Kinds that are compiled (seconds each, once a machine): every dtype on both sides, each pair of signs once.
PLAIN, PACKED = ("ui", "iu"), ("uu", "ii")

#: Numba's cache on disk keeps the name of the module, which is another one under pytest than under ``python
#: -m``.
callers = load("reliability_callers", pathlib.Path(__file__).with_name("callers.py")).callers


def operands(s: Any, m: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Matrices of a kind that is compiled, and whether the second is to be packed."""
    packed = s.r.random() < 0.5
    left, right = (np.dtype(f"{kind}1") for kind in s.r.choice(PACKED if packed else PLAIN))
    return integers(s.r, s.g, left, (m, k)), integers(s.r, s.g, right, (k, n)), packed


def placed(s: Any, a: np.ndarray) -> np.ndarray:
    """Any strides, or what came out of a pickle, or what may not be written: all are arrays for Numba."""
    kind = s.r.randrange(4)
    if kind == 0:
        return pickle.loads(pickle.dumps(a, 5))
    if kind == 1:
        b = a.copy()
        b.flags.writeable = False
        return b
    return spaced(s.r, a)[0] if kind == 2 else a


def inside(s: Any) -> None:
    """Sound: the reference's answer, with nothing written outside of `out`."""
    r = s.r
    m, k, n = (s.size() for _ in range(3))
    a, b, packed = operands(s, m, k, n)
    product, into = callers(a.dtype.kind, b.dtype.kind, packed)
    lhs, rhs = placed(s, a), lg.pack_rhs(b) if packed else placed(s, b)
    zeros = [s.g.integers(-(2**31), 2**31, size) * r.choice((0, 1)) for size in (r.choice((1, m)), n)]
    expected = reference.gemm(a, b, lhs_zero_point=zeros[0], rhs_zero_point=zeros[1])
    s.expect(same(s.call("njit", product, lhs, rhs, *zeros), expected), "gemm in compiled code")
    x_zero, w_zero = pipelines.int32(r), pipelines.int32(r)
    start = integers(r, s.g, np.int32, (m, n))
    out, buffer = spaced(r, start)
    add = r.random() < 0.5
    s.call("njit", into, lhs, rhs, x_zero, w_zero, out, add)
    expected = reference.gemm(a, b, lhs_zero_point=x_zero, rhs_zero_point=w_zero)
    if add:
        expected = reference.wrap32(expected.astype(np.int64) + start).astype(np.int32)
    s.expect(same(out, expected), f"gemm in compiled code: out, accumulate={add}")
    out[...] = 77
    s.expect(bool((buffer == 77).all()), "gemm in compiled code: wrote outside of out")


def inside_odd(s: Any) -> None:
    """What only the values can show: refused by name, with `out` as it was."""
    r = s.r
    m, k, n = (s.size() + 1 for _ in range(3))
    a, b, packed = operands(s, m, k, n)
    x_zero, w_zero, zeros = 0, 0, [np.zeros(m, np.int64), np.zeros(n, np.int64)]
    memory = np.full(4 * m * n + 64, 5, np.uint8)
    out = memory[: 4 * m * n].view(np.int32).reshape(m, n)
    far = r.choice((2**31, -(2**31) - 1, 2**62, -(2**63)))
    what = r.randrange(8)
    if what == 0:
        b = integers(r, s.g, b.dtype, (k + r.choice((-1, 1, 5)), n))
    elif what == 1:
        x_zero = far
    elif what == 2:
        w_zero = far
    elif what == 3:
        zeros[0] = np.zeros(m + 1, np.int64)
    elif what == 4:
        zeros[1] = np.full(n, far)
    elif what == 5:
        out = np.full((m + 1, n), 5, np.int32)
    elif what == 6:
        out = np.lib.stride_tricks.as_strided(np.full((m, n + 9), 5, np.int32), (m, n + 1), (4, 4))[:, :n]
        out = out if m > 1 and n > 1 else np.full((m, n + 1), 5, np.int32)
    else:
        raw = memory[: m * k].view(a.dtype) if m * k <= memory.size else memory[:0].view(a.dtype)
        if raw.size != m * k:
            return
        a = raw.reshape(m, k)
    product, into = callers(a.dtype.kind, b.dtype.kind, packed)
    rhs = lg.pack_rhs(b) if packed else b
    before = out.copy()
    try:
        if what in (3, 4):
            s.call("njit", product, a, rhs, *zeros)
        else:
            s.call("njit", into, a, rhs, x_zero, w_zero, out, r.random() < 0.5)
    except ValueError as error:
        s.expect(np.array_equal(before, out), "gemm in compiled code: refused but wrote")
        s.refused("njit", error)
        return
    s.expect(False, f"gemm in compiled code took odd arguments ({what})")


STEPS = (("inside", 4), ("inside_odd", 3))
