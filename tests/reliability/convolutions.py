"""Fuzz steps for `conv` and `pack_filters`: sound calls against the definition, and calls with arguments that
do not fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import lowgemm as lg
from lowgemm import reference

from . import pipelines
from .arrays import JUNK, broken, dressed, integers
from .outcomes import DOCUMENTED, same


def _problem(s: Any) -> tuple[np.ndarray, np.ndarray, int, dict[str, Any]]:
    r = s.r
    axes, groups = r.choice((1, 2, 2, 3)), r.choice((1, 1, 2, 3, 8, 18, 70))
    depth, each = (
        (1, 1)
        if groups > 8 or r.random() < 0.2
        else (r.choice((1, 2, 4, 5, 17, 40, 64)), r.choice((1, 3, 4, 18)))
    )
    taps = tuple(r.randrange(1, 4 if axes > 2 else 7) for _ in range(axes))
    apart, stride = (tuple(r.randrange(1, 3) for _ in range(axes)) for _ in range(2))
    around = tuple((r.randrange(3), r.randrange(3)) for _ in range(axes))
    least = [max(1, (k - 1) * d + 1 - sum(p)) for k, d, p in zip(taps, apart, around, strict=True)]
    dtypes = [r.choice((np.uint8, np.int8)) for _ in range(2)]
    image = integers(
        r, s.g, dtypes[0], (r.randrange(3), *(n + r.randrange(8) for n in least), depth * groups)
    )
    filters = integers(r, s.g, dtypes[1], (*taps, depth, each * groups))
    outputs = filters.shape[-1]
    info = np.iinfo(dtypes[0])
    out = [
        (n + sum(p) - (k - 1) * d - 1) // t + 1
        for n, p, k, d, t in zip(image.shape[1:-1], around, taps, apart, stride, strict=True)
    ]
    rows = image.shape[0] * int(np.prod(out))
    zero = r.choice((0, r.randrange(-300, 300), s.g.integers(-200, 200, outputs), pipelines.int32(r)))
    options = {
        "image_zero_point": r.randrange(info.min, info.max + 1), "filter_zero_point": zero, "stride": stride,
        "padding": around, "dilation": apart,
        "output": pipelines.sound(r, s.g, rows, outputs) if rows and r.random() < 0.5 else None,
    }  # fmt: skip
    return image, filters, groups, options


def conv(s: Any) -> None:
    """Sound calls, each made twice, as the second takes a shorter way."""
    r = s.r
    image, filters, groups, options = _problem(s)
    expected = reference.conv(image, filters, groups=groups, **options)
    given = {"groups": groups}
    if r.random() < 0.3:
        axes = image.ndim - 2
        turn = 0, axes + 1, *range(1, axes + 1)
        image, filters = (
            np.ascontiguousarray(a)
            for a in (image.transpose(turn), filters.transpose(axes + 1, axes, *range(axes)))
        )
        expected, given["channels"] = expected.transpose(turn), "first"
    x, w = dressed(r, image), dressed(r, filters)
    if r.random() < 0.5:
        del given["groups"]
        w = s.call("pack_filters", lg.pack_filters, w, groups, **given)
    if r.random() < 0.3:
        given["num_threads"] = r.choice((1, 2, None))
    for _ in range(2):
        s.expect(same(s.call("conv", lg.conv, x, w, **given, **options), expected), "conv")


def conv_odd(s: Any) -> None:
    """One argument that does not fit: refused by name, or taken as what it is."""
    r = s.r
    image, filters, groups, options = _problem(s)
    given = {"image": image, "filters": filters, "groups": groups, **options}
    name = r.choice(
        (
            "image",
            "filters",
            "groups",
            "image_zero_point",
            "filter_zero_point",
            "stride",
            "padding",
            "dilation",
            "num_threads",
            "channels",
            "out",
        )
    )
    given[name] = broken(r, given[name]) if name in ("image", "filters") else r.choice(JUNK)
    try:
        s.call("conv odd", lg.conv, **given)
    except DOCUMENTED as error:
        s.refused("conv odd", error)


STEPS = (("conv", 8), ("conv_odd", 4))
