"""The 4-bit product against its definition, on every kernel that the machine can run."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm import config, kernels
from lowgemm.blockwise import (
    as_codebook,
    dequantize_blockwise,
    gemm_4bit,
    levels,
    pack_rhs_4bit,
    quantize_blockwise,
    reference,
)

RUNNABLE = [k.name for k in kernels.all_kernels() if not kernels.why_not(k)]


def definition(lhs, w, zero=0, scale=None, bias=None):
    scale = None if scale is None else np.broadcast_to(np.float32(scale), lhs.shape[:1])
    bias = None if bias is None else np.float32(bias)
    return reference.gemm_4bit(lhs, w.levels[w.codes()], w.group_scales(), w.group, zero, scale, bias)


@pytest.mark.parametrize("kernel", RUNNABLE)
def test_every_kernel(kernel, monkeypatch):
    monkeypatch.setattr(config, "kernel", kernel)
    rng = np.random.default_rng(0)
    for m, depth, n, group, code in (
        (1, 64, 16, 64, "nf4"), (5, 200, 50, 32, "int4"), (70, 130, 97, 17, "fp4"), (3, 1300, 7, 1100, "af4"),
        (2, 5, 3, 1, "nf4"), (66, 33, 49, 4096, "int4"),
    ):  # fmt: skip
        w = pack_rhs_4bit(rng.standard_normal((depth, n)), code, group=group)
        for dtype in (np.int8, np.uint8):
            info = np.iinfo(dtype)
            lhs = rng.integers(info.min, info.max, (m, depth), dtype=dtype, endpoint=True)
            lhs[0] = info.min
            zero = int(rng.integers(-300, 300))
            found = gemm_4bit(lhs, w, lhs_zero_point=zero)
            np.testing.assert_array_equal(found, definition(lhs, w, zero))


@given(
    st.integers(0, 70), st.integers(0, 150), st.integers(0, 60), st.integers(1, 160),
    st.sampled_from(["nf4", "int4", "fp4", "af4"]), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_shape(m, depth, n, group, code, more, seed):
    rng = np.random.default_rng(seed)
    w = pack_rhs_4bit(rng.standard_normal((n, depth)).T, code, group=group)
    lhs = rng.integers(-128, 128, (m, 2 * depth), dtype=np.int8)[:, ::2]
    zero = int(rng.integers(-(2**31), 2**31)) if more else 0
    scale, bias = (rng.random(m), rng.standard_normal(n)) if more else (None, None)
    expected = definition(lhs, w, zero, scale, bias)
    for threads in (1, 2):
        found = gemm_4bit(lhs, w, lhs_zero_point=zero, lhs_scale=scale, bias=bias, num_threads=threads)
        np.testing.assert_array_equal(found, expected)


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
