"""Fuzz steps for `quantization` and `blockwise`: sound calls against plain NumPy, and calls with arguments
that do not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowgemm import blockwise as bw
from lowgemm import quantization as qn
from lowgemm.blockwise import reference as definition

from .arrays import JUNK, Subclass, broken, dressed, integers, spaced

#: FloatingPointError: documented by optimizers for states that would become infinite.
DOCUMENTED = (TypeError, ValueError, MemoryError, FloatingPointError)


def floats(s: Any, size: int | None = None) -> np.ndarray:
    """Ordinary values with outliers, of any number of dimensions."""
    shape = (s.size(), s.size()) if size is None else (size,)
    x = s.g.normal(size=shape) * s.r.choice((1e-3, 1.0, 100.0))
    return np.asarray(np.where(s.g.random(shape) < 0.02, x * 50, x), dtype=np.float32)


def affine(s: Any) -> None:
    """quantize, dequantize, fake_quantize."""
    r = s.r
    x = floats(s)
    low, high = (float(x.min()), float(x.max())) if x.size else (-1.0, 1.0)
    options = {"symmetric": r.random() < 0.5, "bits": r.choice((None, None, 4, 7))}
    p = s.call("quantization", qn.choose_qparams, low, high, r.choice((np.int8, np.uint8)), **options)
    given = spaced(r, x)[0] if r.random() < 0.5 else x.view(Subclass)
    q = s.call("quantization", qn.quantize, given, p)
    back = s.call("quantization", qn.dequantize, q, p)
    info = np.iinfo(p.dtype)
    s.expect(
        q.dtype == p.dtype and q.shape == x.shape and bool(((q >= info.min) & (q <= info.max)).all()),
        "quantize",
    )
    exact = (q.astype(np.float64) - float(p.zero_point)) * float(p.scale)
    s.expect(bool(np.allclose(back, exact, rtol=1e-6, atol=0)), "dequantize")
    fake = s.call("quantization", qn.fake_quantize, given, p)
    s.expect(
        bool((np.asarray(fake) == np.asarray(back)).all()), "fake_quantize is not dequantize of quantize"
    )
    # the range always takes in 0, so nothing but rounding is lost where no bits were asked for
    if options["bits"] is None and x.size:
        error = np.abs(back.astype(np.float64) - x)
        s.expect(bool((error <= 1.01 * float(p.scale)).all()), "quantize: further off than one step")


def blocks(s: Any) -> None:
    """quantize_blockwise against the nearest entry of the code book, block by block."""
    r = s.r
    x = floats(s, r.choice((0, 1, s.size(), 64, 300)))
    size = r.choice((8, 64, 256))
    name = r.choice(("dynamic", "nf4"))
    coded = s.call(
        "blockwise", bw.quantize_blockwise, x, name, blocksize=size, num_threads=r.choice((None, 1, 2))
    )
    back = s.call("blockwise", bw.dequantize_blockwise, coded)
    values = np.asarray(bw.as_codebook(name).values, dtype=np.float64)
    s.expect(back.shape == x.shape and back.dtype == np.float32, "dequantize_blockwise: shape")
    for start in range(0, x.size, size):
        part = x[start : start + size].astype(np.float64)
        scale = float(np.abs(part).max())
        best = np.abs(part[:, None] - values[None, :] * scale).min(axis=1)
        error = np.abs(back[start : start + size] - part)
        s.expect(bool((error <= best + 1e-6 * scale).all()), f"quantize_blockwise: not the nearest of {name}")


def _coded_weight(s: Any, weight: np.ndarray) -> Any:
    """A weight in 4 or 2 bits, by any of the functions that make one, with or without zero points."""
    r, group = s.r, s.r.choice((None, 8, 33))
    which = r.randrange(4)
    if which == 0:
        return s.call(
            "blockwise", bw.pack_rhs_4bit, spaced(r, weight)[0], r.choice(("nf4", "int4")), group=group
        )
    if which == 1:
        name = r.choice(("fp4", "ternary", "int2", "af4"))
        return s.call("blockwise", bw.pack_rhs_lowbit, spaced(r, weight)[0], name, group=group)
    if which == 2:
        name = r.choice(("int4", "int2"))
        return s.call(
            "blockwise", bw.pack_rhs_lowbit, spaced(r, weight)[0], name, group=group, zero_points=True
        )
    (k, n), bits, size = weight.shape, r.choice((2, 4)), group or 64
    shape = -(-k // min(size, k)), n
    codes, zeros = (s.g.integers(0, 2**bits, of, dtype=np.uint8) for of in ((k, n), shape))
    scales = s.g.standard_normal(shape).astype(np.float32)
    zeros = r.choice((None, zeros))
    return s.call("blockwise", bw.pack_rhs_codes, spaced(r, codes)[0], scales, zeros, group=size, bits=bits)


def four_bit(s: Any) -> None:
    """`gemm_lowbit` and `mixed_linear`, bit for bit as defined."""
    r = s.r
    m, k, n = (max(1, s.size()) for _ in range(3))
    weight, threads = floats(s, k * n).reshape(k, n), r.choice((None, 1, 2))
    bias = r.choice((None, floats(s, n)))
    if r.random() < 0.5:
        w = _coded_weight(s, weight)
        coded = floating = None
        zero, scale = 0, None
        if r.random() < 0.5:
            floating = floats(s, m * k).reshape(m, k)
            coded, scale, _ = definition.vectorwise(floating)
            scale = scale / np.float32(127)
        else:
            coded = integers(r, s.g, r.choice((np.int8, np.uint8)), (m, k))
            zero, scale = (
                r.choice((0, 128, -77)),
                r.choice((None, s.g.uniform(0.01, 1, m).astype(np.float32))),
            )
        out = r.choice((None, spaced(r, np.zeros((m, n), np.float32))[0]))
        got = s.call(
            "blockwise", r.choice((bw.gemm_4bit, bw.gemm_lowbit)),
            dressed(r, coded if floating is None else floating), w,
            lhs_zero_point=zero, lhs_scale=scale if floating is None else None, bias=bias, out=out,
            num_threads=threads,
        )  # fmt: skip
        expected = definition.gemm_4bit(coded, w.integers(), w.group_scales(), w.group, zero, scale, bias)
        s.expect(bool(np.array_equal(got, expected)) and got.dtype == np.float32, "gemm_lowbit")
        s.expect(out is None or got is out, "gemm_lowbit: out")
        return
    x = floats(s, m * k).reshape(m, k)
    mixed = s.call("blockwise", bw.MixedWeight, weight)
    got = s.call(
        "blockwise", bw.mixed_linear, spaced(r, x)[0], mixed, bias, threshold=6.0, num_threads=threads
    )
    expected = definition.mixed_linear(x, mixed.codes(), mixed.scales, bias, 6.0)
    s.expect(bool(np.array_equal(got, expected)) and got.dtype == np.float32, "mixed_linear")


def optimizer(s: Any) -> None:
    """Optimizers: a step changes the parameters and nothing else, and a refused one changes nothing."""
    r = s.r
    cls = r.choice((bw.Adam, bw.AdamW, bw.Lion, bw.RMSprop, bw.Adagrad))
    p = floats(s, r.choice((3, 300)))
    before = p.copy()
    opt = s.call("blockwise", cls, [p], min_8bit_size=r.choice((0, 10**6)))
    grad: Any = floats(s, p.size)
    odd = r.random() < 0.5
    if odd:
        grad = r.choice((broken(r, grad.astype(np.int8)), grad * np.nan, grad[:-1], None, *JUNK))
    try:
        s.call("blockwise", opt.step, [grad])
    except DOCUMENTED as error:
        s.expect(odd, f"a sound step was refused: {error!r:.200}")
        s.expect(bool((p == before).all()), "a refused step changed the parameters")
        s.refused("blockwise", error)
        return
    s.expect(bool(np.isfinite(p).all()), "a step made parameters that are not finite")


def _calls(s: Any) -> list[tuple[str, Callable[..., Any], list[Any], dict[str, Any]]]:
    x = floats(s)
    w = np.ones((4, 4), np.float32)
    v = np.ones(4, np.float32)
    p = qn.QParams(0.1, 3, np.int8)
    coded = bw.quantize_blockwise(np.ones(9, np.float32))
    return [
        ("quantization", qn.QParams, [0.1, 0, np.int8], {"axis": None, "qmin": None, "qmax": None}),
        ("quantization", qn.choose_qparams, [-1.0, 1.0, np.int8],
         {"bits": None, "symmetric": False, "axis": None}),
        ("quantization", qn.quantize, [x, p], {}),
        ("quantization", qn.dequantize, [np.ones(3, np.int8), p], {}),
        ("quantization", qn.fake_quantize, [x, p], {}),
        ("quantization", qn.quantize_multiplier, [0.5], {}),
        ("quantization", qn.sqnr, [x, p], {"axis": None}),
        ("quantization", qn.fold_batch_norm, [w, v, v, v, v, v], {"epsilon": 1e-5, "axis": -1}),
        ("quantization", qn.correct_bias, [v, w, w, v], {"out_axis": -1, "in_axis": 0}),
        ("quantization", qn.equalize_ranges, [[w, w]], {"biases": None, "max_rounds": 3, "tolerance": 1e-3}),
        ("quantization", qn.MinMax, [np.int8], {"bits": None, "symmetric": False, "axis": None}),
        ("quantization", qn.Percentile, [np.int8], {"percentile": 99.0, "bins": None}),
        ("quantization", qn.MovingAverage, [np.int8], {"momentum": 0.1}),
        ("blockwise", bw.quantize_blockwise, [x, "dynamic"],
         {"blocksize": None, "nested": False, "num_threads": None}),
        ("blockwise", bw.dequantize_blockwise, [coded], {"dtype": None, "out": None, "num_threads": None}),
        ("blockwise", bw.pack_rhs_4bit, [w, "nf4"], {"group": None}),
        ("blockwise", bw.gemm_4bit, [np.ones((2, 4), np.int8), bw.pack_rhs_4bit(w)],
         {"lhs_zero_point": 0, "lhs_scale": None, "bias": None, "num_threads": None}),
        ("blockwise", bw.pack_rhs_lowbit, [w, "int4"], {"group": None, "zero_points": False}),
        ("blockwise", bw.pack_rhs_codes, [np.ones((4, 4), np.uint8), w[:2], np.ones((2, 4), np.uint8)],
         {"group": 2, "bits": 4}),
        ("blockwise", bw.gemm_lowbit, [w, bw.pack_rhs_lowbit(w, "ternary")],
         {"bias": None, "out": None, "num_threads": None}),
        ("blockwise", bw.mixed_linear, [w, w],
         {"bias": None, "threshold": 6.0, "scale_without": "elements", "num_threads": None}),
        ("blockwise", bw.quantize_vectorwise, [w],
         {"threshold": 0.0, "scale_without": "elements", "num_threads": None}),
        ("blockwise", bw.block_scales, [coded], {}),
        ("blockwise", bw.as_codebook, ["dynamic"], {}),
        ("blockwise", bw.CodeBook, [np.linspace(-1, 1, 16)], {}),
        ("blockwise", bw.Adam, [[v.copy()]],
         {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "blocksize": 64}),
        ("blockwise", bw.SGD, [[v.copy()], 0.1], {"momentum": 0.9, "weight_decay": 0.0, "min_8bit_size": 0}),
    ]  # fmt: skip


def packages_odd(s: Any) -> None:
    """Any public function of both packages with one or two arguments that do not fit: documented exceptions
    only.
    """
    r = s.r
    family, function, args, named = r.choice(_calls(s))
    junk = (
        *JUNK,
        broken(r, np.ones((3, 2), np.int8)),
        np.full(3, np.nan, np.float32),
        np.zeros((0, 3), np.float32),
    )
    for _ in range(r.choice((1, 1, 2))):
        where = r.randrange(len(args) + len(named))
        if where < len(args):
            args[where] = r.choice(junk)
        else:
            named[list(named)[where - len(args)]] = r.choice(junk)
    try:
        s.call(family, function, *args, **named)
    except DOCUMENTED as error:
        s.refused(family, error)


STEPS = (("affine", 3), ("blocks", 3), ("four_bit", 3), ("optimizer", 3), ("packages_odd", 8))
