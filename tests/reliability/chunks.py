"""Fuzz steps for `lowgemm.dask`: products in chunks, sound and odd."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

import lowgemm as lg
import lowgemm.dask
from lowgemm import reference
from lowgemm.engine.overflow_check import leading_bias
from lowgemm.output.check import check_pipeline

from . import pipelines
from .arrays import JUNK, broken, dressed, foreign
from .outcomes import DOCUMENTED, same


def cuts(s: Any, size: int) -> tuple[int, ...]:
    """Sizes of chunks, empty ones among them."""
    at = sorted(s.r.randrange(size + 1) for _ in range(s.r.choice((0, 1, 1, 2, 3))))
    return tuple(int(d) for d in np.diff([0, *at, size]))


def without_custom(s: Any, m: int, n: int) -> Any:
    """A pipeline of stages that chunks can have: `Custom` may depend on the place and is refused."""
    while True:
        output = pipelines.sound(s.r, s.g, m, n)
        stages = output if isinstance(output, (list, tuple)) else [output]
        if not any(isinstance(stage, lg.Custom) for stage in stages):
            return output


def operands(s: Any) -> tuple[np.ndarray, np.ndarray, Any, Any]:
    """Matrices, and the same as Dask arrays or as arrays of any kind."""
    a, b = s.operand(s.size(), s.size()), None
    b = s.operand(a.shape[1], s.size())
    given = []
    for x in (a, b):
        memory = foreign(s.r, x) if s.r.random() < 0.2 else x
        memory = memory if isinstance(memory, np.ndarray) else x
        chunked = da.from_array(memory, chunks=tuple(cuts(s, n) for n in x.shape))
        given.append(chunked if s.r.random() < 0.8 else dressed(s.r, x))
    return a, b, given[0], given[1]


def chunked(s: Any) -> None:
    """Sound: the bits of the reference, whatever the chunks."""
    r = s.r
    a, b, lhs, rhs = operands(s)
    m, n = a.shape[0], b.shape[1]
    options: dict[str, Any] = {"output": without_custom(s, m, n)}
    if r.random() < 0.5:
        options.update(lhs_zero_point=s.zero(m), rhs_zero_point=s.zero(n))
    expected = reference.gemm(a, b, **options)
    product = s.call("dask", lg.dask.gemm, lhs, rhs, overflow="wrap", **options)
    s.expect(product.dtype == expected.dtype and product.shape == expected.shape, "dask: dtype or shape")
    s.expect(same(product.compute(scheduler="synchronous"), expected), "dask: wrap")
    careful = s.call("dask", lg.dask.gemm, lhs, rhs, num_threads=r.choice((1, 2)), **options)
    try:
        got = careful.compute(scheduler="synchronous")
    except OverflowError:
        # without zero points or a bias, which may be as large as they like, so small a product has room
        far = (
            "lhs_zero_point" in options
            or leading_bias(check_pipeline(options["output"], m, n)[0]) is not None
        )
        s.expect(far, "dask: small products cannot pass int32")
        return
    s.expect(same(got, expected), "dask: raise")


def chunked_odd(s: Any) -> None:
    """One argument that does not fit: refused at once, by name, or the reference's answer."""
    r = s.r
    a, b, lhs, rhs = operands(s)
    m, n = a.shape[0], b.shape[1]
    options: dict[str, Any] = {"overflow": "wrap"}
    left, right = a, b
    what = r.randrange(8)
    try:
        if what == 0:
            lhs = left = broken(r, a)
        elif what == 1:
            rhs = right = broken(r, b)
        elif what == 2:
            options["lhs_zero_point"] = r.choice((*JUNK, np.zeros(m + 1, int)))
        elif what == 3:
            options["rhs_zero_point"] = r.choice((*JUNK, np.zeros(n + 1, int)))
        elif what == 4:
            options["output"] = pipelines.odd(r, s.g, m, n)
        elif what == 5:
            options[r.choice(("overflow", "num_threads"))] = r.choice(JUNK)
        elif what == 6:
            rhs = lg.pack_rhs(b)
        else:
            lhs, left = rhs, right
        product = s.call("dask", lg.dask.gemm, lhs, rhs, **options)
    except DOCUMENTED as error:
        s.refused("dask", error)
        return
    for name in ("overflow", "num_threads"):
        options.pop(name, None)
    try:
        got = product.compute(scheduler="synchronous")
    except OverflowError:
        return
    expected = reference.gemm(np.asarray(left), np.asarray(right), **options)
    s.expect(same(got, expected), f"dask: took odd arguments and lied ({what})")


STEPS = (("chunked", 1), ("chunked_odd", 2))
