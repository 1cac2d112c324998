"""The products with 4-bit and 2-bit weights against their definition, on every kernel that the machine can
run.
"""

from __future__ import annotations

import concurrent.futures
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowgemm
from lowgemm import config, kernels
from lowgemm.blockwise import (
    as_codebook,
    dequantize_blockwise,
    gemm_4bit,
    gemm_lowbit,
    levels,
    pack_rhs_4bit,
    pack_rhs_codes,
    pack_rhs_lowbit,
    quantize_blockwise,
    reference,
    rowtile,
)

RUNNABLE = [k.name for k in kernels.all_kernels() if not kernels.why_not(k)]


def definition(lhs, w, zero=0, scale=None, bias=None):
    if scale is not None:
        scale = np.float32(scale) if np.ndim(scale) > 1 else np.broadcast_to(np.float32(scale), lhs.shape[:1])
    bias = None if bias is None else np.float32(bias)
    return reference.gemm_4bit(lhs, w.integers(), w.group_scales(), w.group, zero, scale, bias)


@pytest.mark.parametrize("kernel", RUNNABLE)
def test_every_kernel(kernel, monkeypatch):
    monkeypatch.setattr(config, "kernel", kernel)
    rng = np.random.default_rng(0)
    for m, depth, n, group, code in (
        (1, 64, 16, 64, "nf4"), (5, 200, 50, 32, "int4"), (70, 130, 97, 17, "fp4"), (3, 1300, 7, 1100, "af4"),
        (2, 5, 3, 1, "nf4"), (66, 33, 49, 4096, "int4"), (9, 300, 65, 128, "ternary"),
        (23, 70, 90, 70, "int2"),
        (13, 257, 33, 64, [-1, 0.25, 0.5]), (7, 40, 31, 3, "ternary"), (1, 2048, 17, 2048, "int2"),
    ):  # fmt: skip
        w = pack_rhs_lowbit(rng.standard_normal((depth, n)), code, group=group)
        for dtype in (np.int8, np.uint8):
            info = np.iinfo(dtype)
            lhs = rng.integers(info.min, info.max, (m, depth), dtype=dtype, endpoint=True)
            lhs[0] = info.min
            zero = int(rng.integers(-300, 300))
            found = gemm_4bit(lhs, w, lhs_zero_point=zero)
            np.testing.assert_array_equal(found, definition(lhs, w, zero))
            scale = rng.standard_normal((m, w.groups)).astype(np.float32)
            found = gemm_4bit(lhs, w, lhs_zero_point=zero, lhs_scale=scale)
            np.testing.assert_array_equal(found, definition(lhs, w, zero, scale))


@given(
    st.integers(0, 70), st.integers(0, 150), st.integers(0, 60), st.integers(1, 160),
    st.sampled_from(["nf4", "int4", "fp4", "af4", "int2", "ternary"]), st.booleans(),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_shape(m, depth, n, group, code, more, seed):
    rng = np.random.default_rng(seed)
    w = pack_rhs_lowbit(rng.standard_normal((n, depth)).T, code, group=group)
    lhs = rng.integers(-128, 128, (m, 2 * depth), dtype=np.int8)[:, ::2]
    zero = int(rng.integers(-(2**31), 2**31)) if more else 0
    scale, bias = (rng.random(m), rng.standard_normal(n)) if more else (None, None)
    if seed % 3 == 0:
        scale = rng.standard_normal((m, w.groups))
    expected = definition(lhs, w, zero, scale, bias)
    for threads in (1, 2):
        found = gemm_4bit(lhs, w, lhs_zero_point=zero, lhs_scale=scale, bias=bias, num_threads=threads)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kernel", RUNNABLE)
def test_zero_points(kernel, monkeypatch):
    """Codes with a zero point for each group and column, against what they stand for, by both paths and from
    a pickle.
    """
    monkeypatch.setattr(config, "kernel", kernel)
    rng = np.random.default_rng(20)
    for m, depth, n, group in (
        (1, 256, 33, 128), (3, 100, 50, 32), (70, 40, 9, 7), (16, 2048, 5, 1024)
    ):  # fmt: skip
        bits, groups = 4, -(-depth // group)
        codes = rng.integers(0, 2**bits, (depth, n))
        scales = rng.standard_normal((groups, n)).astype(np.float32)
        zeros = rng.integers(0, 2**bits, (groups, n))
        w = pack_rhs_codes(codes, scales, zeros, group=group, bits=bits)
        each = np.repeat(np.arange(groups), group)[:depth]
        real = (codes - zeros[each]).astype(np.float32) * scales[each]
        np.testing.assert_array_equal(w.to_array(), real)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(w)).to_array(), real)
        u = rng.integers(0, 256, (m, depth), dtype=np.uint8)
        u[0] = 255
        x = rng.standard_normal((m, depth)).astype(np.float32)
        coded, factors, _ = reference.vectorwise(x)
        scale = rng.standard_normal((m, groups)).astype(np.float32)
        expected = (
            definition(u, w, 131),
            definition(u, w, 131, scale),
            reference.gemm_4bit(coded, w.integers(), w.group_scales(), w.group, 0, factors / np.float32(127)),
        )
        for able in (rowtile.decodes, lambda kernel: False):
            with monkeypatch.context() as patch:
                patch.setattr(rowtile, "decodes", able)
                for threads in (1, 2):
                    found = (
                        gemm_lowbit(u, w, lhs_zero_point=131, num_threads=threads),
                        gemm_lowbit(u, w, lhs_zero_point=131, lhs_scale=scale, num_threads=threads),
                        gemm_lowbit(x, w, num_threads=threads),
                    )
                    for one, other in zip(found, expected, strict=True):
                        np.testing.assert_array_equal(one, other)


@given(
    st.integers(1, 9), st.integers(0, 90), st.integers(0, 40), st.integers(1, 100), st.sampled_from([2, 4]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_codes_of_others_in_any_shape(m, depth, n, group, bits, with_zeros, seed):
    rng = np.random.default_rng(seed)
    groups = -(-depth // min(group, max(depth, 1)))
    codes = rng.integers(0, 2**bits, (depth, n), dtype=np.uint8)
    zeros = rng.integers(0, 2**bits, (groups, n)) if with_zeros else None
    w = pack_rhs_codes(codes, rng.random((groups, n)), zeros, group=group, bits=bits)
    x = rng.integers(-128, 128, (m, depth), dtype=np.int8)
    zero = int(rng.integers(-(2**31), 2**31))
    np.testing.assert_array_equal(gemm_lowbit(x, w, lhs_zero_point=zero), definition(x, w, zero))


@pytest.mark.parametrize(("book", "bits"), [("int4", 4), ("int2", 2)])
def test_coding_with_zero_points(book, bits):
    """Each value is at most half a step off, and steps are those of the range of its group; 0 stays 0."""
    rng = np.random.default_rng(21)
    weight = rng.standard_normal((96, 20)).astype(np.float32) + np.float32(1.5)
    weight[:, 4] = -np.abs(weight[:, 4])
    weight[5], weight[:, 3] = 0, 0
    w = pack_rhs_lowbit(weight, book, group=32, zero_points=True)
    for g in range(3):
        part = weight[32 * g : 32 * g + 32]
        step = (np.maximum(part.max(axis=0), 0) - np.minimum(part.min(axis=0), 0)) / (2**bits - 1)
        np.testing.assert_allclose(w.group_scales()[g], step, rtol=1e-6)
    # a zero point is rounded, which moves both ends by up to half a step
    assert (np.abs(w.to_array() - weight) <= 1.001 * np.repeat(w.group_scales(), 32, axis=0)).all()
    assert not w.to_array()[5].any() and not w.to_array()[:, 3].any()
    plain = pack_rhs_lowbit(weight, book, group=32)
    assert np.abs(w.to_array() - weight).mean() < np.abs(plain.to_array() - weight).mean()


def test_threads(monkeypatch):
    from lowgemm.blockwise import job

    monkeypatch.setattr(job, "ELEMENTS_PER_THREAD", 1)
    rng = np.random.default_rng(3)
    w = pack_rhs_4bit(rng.standard_normal((700, 300)), group=128)
    x = rng.standard_normal((2, 100, 700)).astype(np.float32)
    codes, scales, _ = reference.vectorwise(x.reshape(200, 700))
    expected = definition(codes, w, 0, scales / np.float32(127))
    np.testing.assert_array_equal(gemm_4bit(x, w, num_threads=2), expected.reshape(2, 100, 300))
    np.testing.assert_array_equal(gemm_4bit(x[0, 0], w, num_threads=1), expected[0])


@pytest.mark.parametrize("kernel", RUNNABLE)
def test_both_paths(kernel, monkeypatch):
    """Levels from registers and levels from memory: the same bits, with float rows and zero points, below and
    above a block of rows.
    """
    monkeypatch.setattr(config, "kernel", kernel)
    rng = np.random.default_rng(8)
    for m, depth, n, group, code in (
        (1, 384, 100, 128, "int4"),
        (70, 96, 33, 32, "nf4"),
        (6, 200, 49, 64, "ternary"),
    ):
        w = pack_rhs_lowbit(rng.standard_normal((depth, n)), code, group=group)
        x = rng.standard_normal((m, depth)).astype(np.float32)
        x[m // 2] = 0
        u = rng.integers(0, 256, (m, depth), dtype=np.uint8)
        bias = rng.standard_normal(n).astype(np.float32)
        found = []
        for able in (None, lambda kernel: False):
            if able is not None:
                monkeypatch.setattr(rowtile, "decodes", able)
            found.append(
                (gemm_lowbit(x, w, bias=bias), gemm_lowbit(u, w, lhs_zero_point=131, lhs_scale=0.25))
            )
        monkeypatch.undo()
        monkeypatch.setattr(config, "kernel", kernel)
        codes, scales, _ = reference.vectorwise(x)
        np.testing.assert_array_equal(found[0][0], definition(codes, w, 0, scales / np.float32(127), bias))
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one.view(np.int32), other.view(np.int32))


def test_which_kernels_decode_in_registers():
    names = {
        k.name for k in kernels.all_kernels() if k.name in RUNNABLE and rowtile.decodes(kernels.rhs_packer(k))
    }
    assert "portable" not in names
    assert names >= {n for n in RUNNABLE if n.startswith("x86_avx")}


def test_out():
    rng = np.random.default_rng(10)
    w = pack_rhs_lowbit(rng.standard_normal((64, 20)), "int4")
    x = rng.standard_normal((2, 3, 64)).astype(np.float32)
    expected = gemm_lowbit(x, w, bias=np.arange(20))
    for out in (
        np.full((2, 3, 20), np.nan, np.float32),
        np.full((20, 3, 2), np.nan, np.float32).T,
        np.empty((2, 6, 20), np.float32)[:, ::2],
    ):
        out = out.reshape(2, 3, 20) if out.shape != (2, 3, 20) else out
        assert gemm_lowbit(x, w, bias=np.arange(20), out=out) is out
        np.testing.assert_array_equal(out, expected)
    for out, error in (
        (np.empty((2, 3, 20)), TypeError), (np.empty((3, 20), np.float32), ValueError), ([0.0], TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match=r"^out:"):
            gemm_lowbit(x, w, out=out)
    both = np.zeros((20, 20), np.float32)
    square = pack_rhs_lowbit(rng.standard_normal((20, 20)), "int4")
    with pytest.raises(ValueError, match=r"^out: expected no overlap with lhs"):
        gemm_lowbit(both, square, out=both)


def test_calls_at_once_and_after_an_error():
    """A weight keeps what a call needs; two calls at once, or one after a bad one, do not share it."""
    rng = np.random.default_rng(11)
    w = pack_rhs_lowbit(rng.standard_normal((512, 96)), "nf4")
    xs = rng.standard_normal((64, 2, 512)).astype(np.float32)
    expected = [gemm_lowbit(x, w) for x in xs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, right in zip(
            pool.map(lambda x: gemm_lowbit(x, w), np.concatenate([xs] * 8)), expected * 8, strict=True
        ):
            np.testing.assert_array_equal(found, right)
    bad = xs[0].copy()
    bad[1, 5] = np.inf
    with pytest.raises(ValueError, match=r"^lhs: .*row 1"):
        gemm_lowbit(bad, w)
    np.testing.assert_array_equal(gemm_lowbit(xs[0], w), expected[0])


def test_explain(monkeypatch):
    w = pack_rhs_lowbit(np.ones((64, 32)), "int4", group=32)
    x = np.zeros((3, 64), np.float32)
    for kernel in RUNNABLE:
        monkeypatch.setattr(config, "kernel", kernel)
        found = lowgemm.explain(x, w, num_threads=1)
        packer = kernels.rhs_packer(kernels.by_name(kernel))
        able = rowtile.decodes(packer)
        assert found.kernel == packer.name and found.threads == 1
        assert ("in registers" in str(found)) == able and ("in cache" in str(found)) != able
        assert ("REPACKED" in str(found)) == (packer.name != w.kernel)
    with pytest.raises(ValueError, match=r"^lhs:"):
        lowgemm.explain(x[:, 1:], w)
    assert lowgemm.explain(x[:0], w).kernel == "reference"


def test_two_bits():
    """A ternary matrix is kept exactly, in 2 bits each; what was pickled before there were 2 bits has 4."""
    rng = np.random.default_rng(12)
    weight = (rng.integers(-1, 2, (256, 64)) * 0.375).astype(np.float32)
    w, four = pack_rhs_lowbit(weight, "ternary"), pack_rhs_4bit(weight, "ternary")
    assert (w.bits, four.bits) == (2, 4) and 2 * w.panels.nbytes == four.panels.nbytes
    assert w.panels.nbytes >= weight.size // 4
    np.testing.assert_array_equal(w.to_array(), weight)
    np.testing.assert_array_equal(four.to_array(), weight)
    x = rng.integers(-128, 128, (3, 256), dtype=np.int8)
    np.testing.assert_array_equal(gemm_lowbit(x, w), gemm_4bit(x, four))
    q = quantize_blockwise(weight.T.copy(), "ternary", blocksize=64)
    assert pack_rhs_lowbit(q).bits == 2 and pack_rhs_4bit(q).bits == 4
    np.testing.assert_array_equal(pack_rhs_lowbit(q).to_array(), weight)
    state = four.__getstate__()
    del state["bits"]
    old = object.__new__(type(four))
    old.__setstate__(state)
    assert old.bits == 4
    np.testing.assert_array_equal(old.codes(), four.codes())


def test_coded_weights_and_pickle():
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((40, 256)).astype(np.float32)
    x = rng.integers(-128, 128, (9, 256), dtype=np.int8)
    for nested in (False, True):
        for blocksize in (64, 256, 512):
            q = quantize_blockwise(weight, "int4", blocksize=blocksize, nested=nested)
            w = pack_rhs_4bit(q)
            # INT4 has exact levels: the matrix is that of `dequantize_blockwise`
            np.testing.assert_allclose(w.to_array(), dequantize_blockwise(q).T, rtol=1e-6, atol=1e-7)
            again = pickle.loads(pickle.dumps(w))
            np.testing.assert_array_equal(gemm_4bit(x, again), gemm_4bit(x, w))
            np.testing.assert_array_equal(again.codes(), w.codes())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("n", "depth", "blocksize", "group"),
    [
        (40, 96, 64, 32), (7, 100, 64, 4), (9, 33, 64, 1), (3, 20, 64, 20), (5, 30, 45, 15), (4, 64, 48, 16),
        (5, 12, 4096, 12), (1, 70, 64, 2), (3, 5, 14, 1), (0, 5, 64, 5), (5, 0, 64, 1), (2, 65, 130, 65),
    ],
)  # fmt: skip
def test_blocks_that_run_across_rows(n, depth, blocksize, group, nested):
    """The matrix is that of `dequantize_blockwise`, element by element (INT4 has exact levels)."""
    rng = np.random.default_rng(depth)
    weight = (rng.standard_normal((n, depth)) * 10.0 ** rng.integers(-3, 4, (n, depth))).astype(np.float32)
    q = quantize_blockwise(weight, "int4", blocksize=blocksize, nested=nested)
    w = pack_rhs_4bit(q)
    assert w.group == group and w.shape == (depth, n)
    np.testing.assert_allclose(w.to_array(), dequantize_blockwise(q).T, rtol=3e-7)
    x = rng.integers(-128, 128, (3, depth), dtype=np.int8)
    np.testing.assert_array_equal(gemm_4bit(x, w), definition(x, w))
    again = pickle.loads(pickle.dumps(w))
    np.testing.assert_array_equal(again.to_array(), w.to_array())


def test_levels_are_as_close_as_promised():
    for name, limit in (("nf4", 0.0036), ("fp4", 0.0029), ("af4", 0.0032), ("int4", 0)):
        book = as_codebook(name)
        found, denominator = levels.integer_levels(book)
        assert np.abs(found / denominator - book.values.astype(np.float64)).max() <= limit
        assert np.abs(found.astype(int)).max() <= 127


W = np.ones((4, 2))
PACKED = pack_rhs_4bit(W)


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: pack_rhs_4bit(np.ones(4)), ValueError, "weight"),
        (lambda: pack_rhs_4bit(np.ones((4, 2), int)), TypeError, "weight"),
        (lambda: pack_rhs_4bit(W * np.inf), ValueError, "weight"),
        (lambda: pack_rhs_4bit(W, "dynamic"), ValueError, "code"),
        (lambda: pack_rhs_4bit(W, "nf5"), ValueError, "code"),
        (lambda: pack_rhs_4bit(W, group=0), ValueError, "group"),
        (lambda: pack_rhs_4bit(W, group=1.5), TypeError, "group"),
        (lambda: pack_rhs_4bit(quantize_blockwise(W)), ValueError, "weight"),
        (lambda: pack_rhs_4bit(quantize_blockwise(W[0], "nf4")), ValueError, "weight"),
        (lambda: pack_rhs_4bit(quantize_blockwise(W, "nf4"), group=4), ValueError, "code, group"),
        (lambda: pack_rhs_lowbit(W, "dynamic"), ValueError, "format"),
        (lambda: pack_rhs_lowbit(quantize_blockwise(W, "nf4"), "nf4"), ValueError, "format, group"),
        (lambda: pack_rhs_lowbit(W, "nf4", zero_points=True), ValueError, "zero_points"),
        (lambda: pack_rhs_lowbit(W, "int4", zero_points=1), TypeError, "zero_points"),
        (lambda: pack_rhs_lowbit(W * np.inf, "int4", zero_points=True), ValueError, "weight"),
        (lambda: pack_rhs_lowbit(W * np.nan, "int4", zero_points=True), ValueError, "weight"),
        (lambda: pack_rhs_codes(W, W, group=1), TypeError, "codes"),
        (lambda: pack_rhs_codes([[16]], [[1.0]], group=1), ValueError, "codes"),
        (lambda: pack_rhs_codes([4], [1.0], group=1), ValueError, "codes"),
        (lambda: pack_rhs_codes([[4]], [[1.0]], group=1, bits=2), ValueError, "codes"),
        (lambda: pack_rhs_codes([[4]], [[1.0]], group=1, bits=3), ValueError, "bits"),
        (lambda: pack_rhs_codes([[4]], [[1.0]], group=0), ValueError, "group"),
        (lambda: pack_rhs_codes([[4]], [1.0], group=1), ValueError, "scales"),
        (lambda: pack_rhs_codes([[4]], [[1e39]], group=1), ValueError, "scales"),
        (lambda: pack_rhs_codes([[4]], [["x"]], group=1), TypeError, "scales"),
        (lambda: pack_rhs_codes([[4]], [[1.0]], [[-1]], group=1), ValueError, "zero_points"),
        (lambda: pack_rhs_codes([[4]], [[1.0]], [[1], [2]], group=1), ValueError, "zero_points"),
        (lambda: pack_rhs_codes([[4]], [[1.0]], [[1.5]], group=1), TypeError, "zero_points"),
        (lambda: gemm_4bit(np.ones((1, 4), np.int8), W), TypeError, "rhs"),
        (lambda: gemm_4bit(np.ones((1, 3), np.int8), PACKED), ValueError, "lhs"),
        (lambda: gemm_4bit(np.ones((1, 4), np.int16), PACKED), TypeError, "lhs"),
        (lambda: gemm_4bit(np.full((1, 4), np.nan), PACKED), ValueError, "lhs"),
        (
            lambda: gemm_4bit(np.ones((1, 4)), PACKED, lhs_zero_point=1),
            ValueError,
            "lhs_zero_point, lhs_scale",
        ),
        (
            lambda: gemm_4bit(np.ones((1, 4), np.int8), PACKED, lhs_zero_point=0.5),
            TypeError,
            "lhs_zero_point",
        ),
        (lambda: gemm_4bit(np.ones((1, 4), np.int8), PACKED, lhs_scale=[1, 2]), ValueError, "lhs_scale"),
        (lambda: gemm_4bit(np.ones((1, 4), np.int8), PACKED, bias=[1.0]), ValueError, "bias"),
        (lambda: gemm_4bit(np.ones((1, 4), np.int8), PACKED, num_threads=0), ValueError, "num_threads"),
    ],
)
def test_bad_arguments(call, error, argument):
    with pytest.raises(error, match=f"^{argument}:"):
        call()
