"""Every kernel between guard pages: operands, results, packed panels and scratch memory.

    python -m tests.reliability.guard_pages --rounds 40

Run in a process of its own, as a wrong access ends it. Prints the number of products.
"""

from __future__ import annotations

import argparse
import itertools
import random
from typing import Any

import numpy as np

import lowgemm as lg
import lowgemm.nn
import lowgemm.quantization
from lowgemm import kernels, reference
from lowgemm.jit import scratch

from . import compiled, guard
from .small_machine import small_machine

try:
    import dask.array as da

    from . import chunks
except ImportError:
    chunks = None  # type: ignore[assignment]
try:
    from . import graphs
except ImportError:
    graphs = None  # type: ignore[assignment]

#: Sizes around the tiles of the kernels: 1, odd, one less and one more than powers of two, 48, 64.
SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 63, 65, 130)


def guarded_scratch(nbytes: int) -> np.ndarray:
    """`scratch.aligned_empty` with a guard page right behind (at most 63 bytes away) and the page before."""
    return guard.region(nbytes, at_end=True, align=scratch.ALIGNMENT)


def one(
    r: random.Random, g: np.random.Generator, layouts: tuple[str, str, str], at_end: bool, limit: int
) -> int:
    """A product, its packed form, and the pipeline on it, all between guard pages."""
    m, k, n = (r.choice(SIZES[:limit]) for _ in range(3))
    dtypes = [r.choice((np.uint8, np.int8)) for _ in range(2)]
    a, b = (
        g.integers(np.iinfo(d).min, np.iinfo(d).max, s, dtype=d, endpoint=True)
        for d, s in zip(dtypes, ((m, k), (k, n)), strict=True)
    )
    zeros = r.choice(
        ({}, {"lhs_zero_point": 7, "rhs_zero_point": -9}, {"rhs_zero_point": g.integers(-99, 99, n)})
    )
    output = r.choice((
        None,
        [lg.SaturatingCast(np.uint8)],
        [lg.BiasAddition(g.integers(-9, 9, n)), lg.Requantize(1e-3, 3, np.int8)],
        [lg.Requantize(g.random(m) * 1e-3, 0, np.uint8, axis=0)],
        [lg.Requantize(1e-3, 3, np.int16, rounding="onnx")],
        [lg.Dequantize(g.random(n))],
        [lg.Dequantize(g.random(n), row_scale=g.random(m), bias=g.random(n))],
    ))  # fmt: skip
    expected = reference.gemm(a, b, output=output, **zeros)
    lhs = guard.guarded(a, layouts[0], at_end=at_end)
    rhs = guard.guarded(b, layouts[1], at_end=at_end)
    out = guard.guarded(np.zeros((m, n), expected.dtype), layouts[2], at_end=at_end)
    count = r.choice((1, 2))
    for right in (rhs, lg.pack_rhs(rhs)):
        for _ in range(2):
            out[...] = 0
            lg.gemm(lhs, right, output=output, out=out, num_threads=count, **zeros)
            assert np.array_equal(out, expected), (lg.config.kernel, m, k, n, layouts, output)
    others(r, lhs, rhs, zeros, output)
    acc = guard.guarded(reference.gemm(a, b, **zeros), layouts[2], at_end=at_end)
    if output is not None:
        out[...] = 0
        lg.requantize(acc, output, out=out)
        assert np.array_equal(out, expected), ("requantize", m, n, layouts, output)
    return 4


def others(r: random.Random, lhs: np.ndarray, rhs: np.ndarray, zeros: dict[str, Any], output: Any) -> None:
    """The same operands in chunks, in a model, and in compiled code, which makes its own scratch memory."""
    m, n = lhs.shape[0], rhs.shape[1]
    if chunks is not None and r.random() < 0.2:
        cut = [max(1, size // 2) for size in (*lhs.shape, n)]
        parts = da.from_array(lhs, chunks=tuple(cut[:2])), da.from_array(rhs, chunks=tuple(cut[1:]))
        got = lg.dask.gemm(*parts, output=output, overflow="wrap", **zeros).compute(scheduler="synchronous")
        assert np.array_equal(got, reference.gemm(lhs, rhs, output=output, **zeros)), ("dask", m, n)
    sums = reference.gemm(lhs, rhs)
    if graphs is not None and r.random() < 0.2:
        proto = graphs.graph_of("MatMulInteger", {"a": lhs, "b": rhs}, {}, ["a", "b"])
        assert np.array_equal(graphs.Model(proto).run({"a": lhs, "b": rhs})[0], sums), ("onnx", m, n)
    kind = lhs.dtype.kind + rhs.dtype.kind
    for packed in (False, True):
        if kind in (compiled.PACKED if packed else compiled.PLAIN):
            product, into = compiled.callers(*kind, packed)
            right = lg.pack_rhs(rhs) if packed else rhs
            x_zero, w_zero = (
                guard.guarded(np.full((1, size), z, np.int64), "c", at_end=True)[0]
                for size, z in ((m, 3), (n, -5))
            )
            got = product(lhs, right, x_zero, w_zero)
            assert np.array_equal(got, reference.gemm(lhs, rhs, lhs_zero_point=3, rhs_zero_point=-5)), (
                "njit",
                m,
                n,
            )
            out = guard.guarded(np.zeros((m, n), np.int32), r.choice(guard.LAYOUTS), at_end=r.random() < 0.5)
            into(lhs, right, 0, 0, out, True)
            assert np.array_equal(out, sums), ("njit, out", m, n)


def convolutions(r: random.Random, g: np.random.Generator) -> None:
    """Images that end at a guard page, whose patches are copied in whole vectors."""
    height, width, depth, groups = (
        r.randrange(3, 12),
        r.randrange(3, 12),
        r.choice((1, 3, 4, 8, 17, 20, 64)),
        r.choice((1, 2)),
    )
    size, padding = r.choice(((1, 1), (2, 3), (3, 3), (5, 7))), r.choice((0, 1, 2))
    padding = max(padding, size[0] - 3, size[1] - 3)
    images = g.integers(0, 256, (height, width * depth * groups), np.uint8)
    weight = g.integers(-128, 128, (*size, depth, 3 * groups), np.int8)
    one = lg.quantization.QParams
    layer = lg.nn.QuantizedConv2d(
        weight, None, one(0.1, 3, "uint8"), one(0.1), one(9.0), padding=padding, groups=groups
    )
    for at_end in (False, True):
        x = guard.guarded(images, "c", at_end=at_end).reshape(1, height, width, depth * groups)
        expected = layer.reference(x)
        assert np.array_equal(layer(x), expected), ("conv2d", x.shape, size, padding)
        out = guard.guarded(np.zeros((expected.size, 1), np.int8), "c", at_end=at_end).reshape(expected.shape)
        lg.conv(x, layer.filters, image_zero_point=3, padding=padding, output=layer.stages, out=out)
        assert np.array_equal(out, expected), ("conv", x.shape, size, padding)
        depthwise = weight.reshape(*size, 1, -1)[..., : x.shape[-1]]
        options = {
            "image_zero_point": 3, "filter_zero_point": r.choice((0, -3)), "padding": ((padding,) * 2,) * 2,
            "stride": (r.choice((1, 2)),) * 2, "dilation": (1, 1), "groups": x.shape[-1],
        }  # fmt: skip
        got = lg.conv(x, depthwise, **options)
        assert np.array_equal(got, reference.conv(x, depthwise, **options)), ("depthwise", x.shape, options)
        channels, of_group = r.choice((64, 80, 128)), r.choice((4, 8, 16))
        wide = guard.guarded(g.integers(0, 256, (height, width * channels), np.uint8), "c", at_end=at_end)
        wide = wide.reshape(1, height, width, channels)
        grouped = g.integers(-128, 128, (*size, of_group, channels), np.int8)
        options.update({"filter_zero_point": 0, "groups": channels // of_group})
        got = lg.conv(wide, grouped, **options)
        assert np.array_equal(got, reference.conv(wide, grouped, **options)), ("grouped", wide.shape, options)


def low_bits(r: random.Random, g: np.random.Generator, layout: str, at_end: bool, limit: int) -> int:
    """A product with coded weights, whose codes, scales and sums lie between guard pages too."""
    from lowgemm.blockwise import gemm_lowbit, pack_rhs_lowbit, reference, rowjob, rowtile

    rowjob.aligned_empty = guarded_scratch
    m, k, n = (r.choice(SIZES[:limit]) for _ in range(3))
    book, zero_points = r.choice((("int4", False), ("int4", True), ("nf4", False), ("ternary", False)))
    w = pack_rhs_lowbit(g.standard_normal((k, n)), book, group=r.choice((8, 32, k)), zero_points=zero_points)
    for name in ("panels", "scales", "sums", "zeros"):
        old = getattr(w, name)
        if old is None:
            continue
        new = guard.region(old.nbytes, at_end=True, align=64).view(old.dtype).reshape(old.shape)
        new[...] = old
        setattr(w, name, new)
    levels = w.integers()
    x = g.integers(0, 256, (m, k), dtype=np.uint8)
    floats = g.standard_normal((m, k)).astype(np.float32)
    codes, scales, _ = reference.vectorwise(floats)
    out = guard.guarded(np.zeros((m, n), np.float32), layout, at_end=at_end)
    for lhs, zero, expected in (
        (x, 0, reference.gemm_4bit(x, levels, w.group_scales(), w.group)),
        (x, 128, reference.gemm_4bit(x, levels, w.group_scales(), w.group, 128)),
        (
            floats,
            0,
            reference.gemm_4bit(codes, levels, w.group_scales(), w.group, 0, scales / np.float32(127)),
        ),
    ):
        lhs = guard.guarded(lhs, layout, at_end=at_end)
        gemm_lowbit(lhs, w, lhs_zero_point=zero, out=out, num_threads=r.choice((1, 2)))
        assert np.array_equal(out, expected), (
            lg.config.kernel,
            rowtile.decodes(kernels.selected()),
            m,
            k,
            n,
            w,
        )
    return 3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", type=int, default=len(SIZES), help="how many of the sizes to use")
    args = parser.parse_args()
    r, g = random.Random(args.seed), np.random.default_rng(args.seed)
    scratch.aligned_empty = guarded_scratch
    scratch.borrow = guarded_scratch
    scratch.borrowed = guarded_scratch
    from lowgemm.engine import planner, ready, sums
    from lowgemm.in_numba import planning

    ready.borrow = ready.borrowed = sums.borrow = sums.borrowed = guarded_scratch
    names = [k.name for k in kernels.all_kernels() if not kernels.why_not(k)]
    # compiled code has this number in it, and stays on disk: it is compiled before
    assert planning.write_plan.address
    planner.IN_PLACE_LEAST = 0  # small ones too are read where they lie
    products = 0
    for name, small in itertools.product(names, (False, True)):
        lg.config.kernel = name
        for _ in range(args.rounds):
            for layout, at_end in itertools.product(guard.LAYOUTS, (False, True)):
                layouts = (layout, r.choice(guard.LAYOUTS), r.choice(guard.LAYOUTS))
                with small_machine(small):
                    products += one(r, g, layouts, at_end, args.large)
                    convolutions(r, g)
                products += low_bits(r, g, layout, at_end, args.large)
                guard.release()
    print(
        f"{len(names)} kernels, {products} products between guard pages, half of them with small caches, 0 "
        "wrong"
    )


if __name__ == "__main__":
    main()
