"""Fuzz steps for `gemm` and `pack_rhs`: sound calls against the reference, and calls with arguments that do
not fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import lowgemm as lg
from lowgemm import reference

from . import pipelines
from .arrays import JUNK, broken, dressed, integers, spaced
from .outcomes import DOCUMENTED, same, snapshot


def gemm(s: Any) -> None:
    """Sound calls: nothing may be refused. Each is made twice, as the second takes a shorter way."""
    r = s.r
    a, b = s.problem()
    options, _, _ = s.options(a, b)
    expected = reference.gemm(a, b, **options)
    if r.random() < 0.3:
        options["num_threads"] = r.choice((1, 2, 5, None, np.int64(2)))
    lhs, rhs = dressed(r, a), dressed(r, b)
    if a.size and b.size and r.random() < 0.05:  # small integers in lists are as good as an array of them
        lhs, rhs = r.choice(((a.tolist(), rhs), (lhs, b.tolist()), (a.tolist(), b.tolist())))
    elif r.random() < 0.25 and b.ndim > 1:
        rhs = s.call("pack_rhs", lg.pack_rhs, rhs)
        s.expect(same(rhs.to_array(), b), "pack_rhs: to_array")
        if len(s.pool) < 50:
            s.pool.append((a, b, rhs, options))
        else:
            s.pool[r.randrange(50)] = (a, b, rhs, options)
    for _ in range(2):
        s.expect(same(s.call("gemm", lg.gemm, lhs, rhs, **options), expected), "gemm")
    if r.random() < 0.5:
        into(s, lhs, rhs, options, expected)
    if r.random() < 0.1:
        accumulated(s, lhs, rhs, a, b, options)
    if r.random() < 0.05:
        s.call("explain", lg.explain, lhs, rhs, **options)


def into(s: Any, lhs: Any, rhs: Any, options: dict[str, Any], expected: np.ndarray) -> None:
    out, buffer = s.result_array(expected.shape, expected.dtype)
    canary = buffer.copy()
    for _ in range(2):
        got = s.call("gemm", lg.gemm, lhs, rhs, out=out, **options)
        s.expect(got is out and same(np.asarray(out), expected), "gemm: out")
    out[...] = np.full(expected.shape, 55, expected.dtype)
    s.expect(buffer.tobytes() == canary.tobytes(), "gemm: wrote outside of out")


def accumulated(s: Any, lhs: Any, rhs: Any, a: np.ndarray, b: np.ndarray, options: dict[str, Any]) -> None:
    options = {k: v for k, v in options.items() if k != "output"}
    plain = {k: v for k, v in options.items() if k != "num_threads"}
    product = reference.gemm(a, b, **plain)
    start = np.asarray(integers(s.r, s.g, np.int32, product.shape))
    out, _ = spaced(s.r, start)
    s.call("gemm", lg.gemm, lhs, rhs, out=out, accumulate=True, **options)
    s.expect(
        same(out, reference.wrap32(product.astype(np.int64) + start).astype(np.int32)), "gemm: accumulate"
    )


def gemm_again(s: Any) -> None:
    """A packed matrix of long ago, under whatever kernel is in use now, with other operands in place."""
    if not s.pool:
        return
    a, b, rhs, options = s.r.choice(s.pool)
    plain = {k: v for k, v in options.items() if k != "num_threads"}
    if a.flags.writeable and a.size:
        a[...] = integers(s.r, s.g, a.dtype, a.shape)
    for lhs in (a, dressed(s.r, a)):
        got = s.call("gemm", lg.gemm, lhs, rhs, **options)
        s.expect(same(got, reference.gemm(a, b, **plain)), "gemm: packed before")


def gemm_overflow(s: Any) -> None:
    r = s.r
    depth = r.choice((1, 40, 70))
    a, b = s.operand(3, depth), s.operand(depth, 2)
    zeros = {
        "lhs_zero_point": r.choice((0, pipelines.int32(r), 10**5)),
        "rhs_zero_point": r.choice((0, 10**6, -3)),
    }
    wide = (a.astype(object) - int(zeros["lhs_zero_point"])) @ (
        b.astype(object) - int(zeros["rhs_zero_point"])
    )
    fits = all(abs(int(v)) < 2**31 for v in wide.ravel())
    try:
        got = s.call("gemm", lg.gemm, a, b, overflow="raise", **zeros)
    except OverflowError as error:
        s.refused("gemm", error)  # it may be careful, so `fits` is no contradiction
        return
    s.expect(fits and same(got, wide.astype(np.int64).astype(np.int32)), "gemm: overflow='raise'")


def gemm_odd(s: Any) -> None:
    """One or two arguments that do not fit: a documented refusal with `out` untouched, or the reference's
    answer.
    """
    r = s.r
    a, b = s.problem()
    options, m, n = s.options(a, b)
    lhs, rhs = dressed(r, a), dressed(r, b)
    dtype = np.int32
    out, buffer = None, np.zeros(1)
    if r.random() < 0.5:
        out, buffer = s.result_array((m, n), dtype)
    for what in r.sample(range(9), r.choice((1, 1, 2))):
        try:
            if what == 0:
                lhs = broken(r, a)
            elif what == 1:
                rhs = broken(r, b)
            elif what == 2:
                options["lhs_zero_point"] = r.choice((*JUNK, np.zeros(m + 1, int)))
            elif what == 3:
                options["rhs_zero_point"] = r.choice((*JUNK, np.zeros(n + 1, int)))
            elif what == 4:
                options["output"] = pipelines.odd(r, s.g, m, n)
            elif what == 5:
                options["num_threads"] = r.choice(JUNK)
            elif what == 6:
                options[r.choice(("accumulate", "overflow"))] = r.choice(JUNK)
            elif what == 7:
                out, buffer = s.odd_out(a, m, n)
            elif what == 8:
                lhs, rhs = rhs, lhs
        except DOCUMENTED as error:  # a stage that cannot be made
            s.refused("stage", error)
            return
    before = buffer.tobytes()
    start = out.copy() if isinstance(out, np.ndarray) else None
    left, right = snapshot(lhs), snapshot(rhs)  # `out` may lie in the memory of one of them
    try:
        got = s.call("gemm odd", lg.gemm, lhs, rhs, out=out, **options)
    except DOCUMENTED as error:
        s.expect(before == buffer.tobytes(), "gemm: refused but wrote")
        s.refused("gemm odd", error)
        return
    except OverflowError:
        s.expect(options.get("overflow") == "raise", "OverflowError without overflow='raise'")
        return
    for name in ("num_threads", "overflow"):
        options.pop(name, None)
    if bool(options.get("accumulate", False)):
        options["out"] = start
    expected = reference.gemm(left, right, **options)
    s.expect(same(got, expected), "gemm: took odd arguments and lied")


def pack_odd(s: Any) -> None:
    value = broken(s.r, s.operand(s.size(), s.size()))
    try:
        w = s.call("pack_rhs", lg.pack_rhs, value)
    except DOCUMENTED as error:
        s.refused("pack_rhs", error)
        return
    matrix = np.asarray(value)
    if (
        isinstance(value, list) and matrix.dtype.itemsize > 1
    ):  # integers, whose 8 bits follow from their signs
        matrix = matrix.astype(np.int8 if matrix.size and matrix.min() < 0 else np.uint8)
        s.expect(bool((matrix == np.asarray(value)).all()), "pack_rhs: took what does not fit")
    s.expect(
        same(w.to_array(), matrix[:, None] if matrix.ndim == 1 else matrix), "pack_rhs: took it and lied"
    )


STEPS = (("gemm", 20), ("gemm_again", 8), ("gemm_overflow", 2), ("gemm_odd", 25), ("pack_odd", 3))
