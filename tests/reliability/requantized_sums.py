"""Fuzz steps for `requantize`: int32 matrices through sound pipelines and through odd ones."""

from __future__ import annotations

from typing import Any

import numpy as np

import lowgemm as lg
from lowgemm import reference
from lowgemm.output.check import check_pipeline

from . import pipelines
from .arrays import Subclass, broken, integers, spaced
from .outcomes import DOCUMENTED, same


def requantize(s: Any) -> None:
    r = s.r
    shape = tuple(s.size() for _ in range(r.choice((1, 2, 2, 2, 3))))
    acc = integers(r, s.g, np.int32, shape)
    m, n = (1, *shape)[-2:]
    output = pipelines.sound(r, s.g, m, n)
    stages, dtype = check_pipeline(output, m, n)
    expected = (
        reference.apply_pipeline(acc[None] if acc.ndim == 1 else acc, stages).astype(dtype).reshape(shape)
    )
    value = r.choice(
        (acc, acc.astype(">i4"), spaced(r, acc)[0], acc.tolist() if 0 else acc, acc.view(Subclass))
    )
    s.expect(same(s.call("requantize", lg.requantize, value, output), expected), "requantize")
    out, buffer = s.result_array(shape, dtype)
    canary = buffer.copy()
    got = s.call("requantize", lg.requantize, value, output, out=out)
    s.expect(got is out and same(np.asarray(out), expected), "requantize: out")
    out[...] = np.full(shape, 55, dtype)
    s.expect(buffer.tobytes() == canary.tobytes(), "requantize: wrote outside of out")


def requantize_odd(s: Any) -> None:
    r = s.r
    acc = integers(r, s.g, np.int32, (s.size(), s.size()))
    m, n = acc.shape
    out = None
    try:
        s.counts["stage"] += 1
        output = pipelines.odd(r, s.g, m, n)
        value = broken(r, acc) if r.random() < 0.3 else acc
        if r.random() < 0.2:
            out = s.odd_out(acc, m, n)[0]
        got = s.call("requantize odd", lg.requantize, value, output, out=out)
    except DOCUMENTED as error:
        s.refused("requantize odd", error)
        return
    array = np.asarray(value)
    stages, dtype = check_pipeline(output, *array.shape[-2:] if array.ndim > 1 else (1, array.size))
    expected = reference.apply_pipeline(array[None] if array.ndim == 1 else array, stages)
    s.expect(
        same(got, expected.astype(dtype).reshape(array.shape)),
        f"requantize: took odd arguments and lied: {output}",
    )


STEPS = (("requantize", 6), ("requantize_odd", 12))
