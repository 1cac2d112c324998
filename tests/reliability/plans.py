"""Fuzz steps for `plan`: plans are kept, and called again with new values in the same and in other arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

import lowgemm as lg
from lowgemm import reference

from . import pipelines
from .arrays import JUNK, Subclass, broken, foreign, integers
from .outcomes import DOCUMENTED, same


def plan(s: Any) -> None:
    r = s.r
    a, b = s.operand(s.size(), s.size()), None
    b = s.operand(a.shape[1], s.size())
    options, _, _ = s.options(a, b)
    output = options.get("output")
    rhs = lg.pack_rhs(b) if r.random() < 0.4 else b
    try:
        like = foreign(r, a) if r.random() < 0.3 else a
        planned = s.call("plan", lg.plan, like, rhs, output=output, num_threads=r.choice((None, 1, 2)))
    except ValueError as error:
        s.expect(0 in (a.shape[0], b.shape[1]), f"plan: refused a sound product: {error}")
        s.refused("plan", error)
        return
    entry = (planned, a, rhs, output, b)
    if len(s.plans) < 40:
        s.plans.append(entry)
    else:
        s.plans[r.randrange(40)] = entry


def planned(s: Any) -> None:
    if not s.plans:
        return
    r = s.r
    planned, a, rhs, output, b = r.choice(s.plans)
    zeros = {"lhs_zero_point": pipelines.int32(r), "rhs_zero_point": pipelines.int32(r)}
    if r.random() < 0.5:
        a[...] = integers(r, s.g, a.dtype, a.shape)
        expected = reference.gemm(a, b, output=output, **zeros)
        out = np.full(expected.shape, 9, expected.dtype) if r.random() < 0.5 else None
        lhs, right = a, rhs
        if r.random() < 0.4:  # a plan takes what gemm takes
            lhs = foreign(r, a)
            right = foreign(r, rhs) if isinstance(rhs, np.ndarray) else rhs
            out = out if out is None or r.random() < 0.5 else out.view(Subclass)
        got = s.call("planned", planned, lhs, right, out, **zeros)
        s.expect(same(got, expected) and (out is None or got is out), "planned")
        return
    lhs, right, out = a, rhs, None
    what = r.randrange(5)
    if what == 0:
        lhs = broken(r, a)
    elif what == 1:
        right = broken(r, b)
    elif what == 2:
        out = s.odd_out(a, *planned._shape)[0]
    else:
        zeros[r.choice(list(zeros))] = r.choice(JUNK)
    try:
        got = s.call("planned", planned, lhs, right, out, **zeros)
    except DOCUMENTED as error:
        s.refused("planned", error)
        return
    s.expect(
        same(got, reference.gemm(lhs, b if right is rhs else right, output=output, **zeros)),
        "planned: lied",
    )


def plan_odd(s: Any) -> None:
    a, b = s.problem()
    lhs, rhs = (broken(s.r, x) if s.r.random() < 0.5 else x for x in (a, b))
    try:
        s.call("plan", lg.plan, lhs, rhs, num_threads=s.r.choice((None, 1, *JUNK)))
    except DOCUMENTED as error:
        s.refused("plan", error)


STEPS = (("plan", 3), ("planned", 12), ("plan_odd", 2))
