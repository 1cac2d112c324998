"""Block-wise coding against the golden cases and against the definition."""

from __future__ import annotations

import copy
import pickle

import blockdata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowgemm.blockwise import (
    BlockwiseArray,
    CodeBook,
    as_codebook,
    block_scales,
    codebooks,
    coding,
    dequantize_blockwise,
    quantize_blockwise,
    reference,
)
from lowgemm.blockwise import job as jobs

CASES8 = blockdata.manifest()["blockwise8"]["cases"]
ALL4 = blockdata.manifest()["blockwise4"]["cases"]
NESTED8 = [c for c in ALL4 if c["type"] == "dynamic8_nested"]
CASES4 = [c for c in ALL4 if c not in NESTED8]


@pytest.fixture(params=[1, 2])
def two_threads(request, monkeypatch):
    """One and two threads, with tasks of few elements."""
    monkeypatch.setattr(jobs, "ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(jobs, "ELEMENTS_PER_TASK", 300)
    return request.param


def check_codes(codes, expected, border, values):
    """Equal codes, but for elements next to a mid-point, where either neighbour is right."""
    wrong = np.flatnonzero(codes != expected)
    wrong = wrong[values[codes[wrong]] != values[expected[wrong]]]  # zeros of FP4
    assert np.isin(wrong, border).all()
    assert (np.abs(codes[wrong].astype(int) - expected[wrong]) <= 1).all()


def check_values(case, q, values, codes, expected_codes, z):
    """The decoded values: those of the golden codes, and of ours where they differ."""
    key = f"{case['id']}_dq"
    if (codes == expected_codes).all() and not case.get("has_zero_block"):
        assert blockdata.digest(values) == case["dq_sha256"]
    if key in z:
        same = (codes == expected_codes) & (np.repeat(block_scales(q), q.blocksize)[: q.size] != 0)
        np.testing.assert_array_equal(values.reshape(-1)[same], z[key].reshape(-1)[same])
    zero = np.repeat(block_scales(q) == 0, q.blocksize)[: q.size]
    if not q.nested:
        assert (values.reshape(-1)[zero] == 0).all()


@pytest.mark.parametrize("case", CASES8, ids=[c["id"] for c in CASES8])
def test_golden_8_bit(case):
    z = blockdata.arrays("blockwise8")
    x, book = z[case["x"]], blockdata.made(case["codebook"])
    if not case["defined"]:
        with pytest.raises(ValueError, match=r"^x: expected finite"):
            quantize_blockwise(x, book, blocksize=case["blocksize"])
        return
    q = quantize_blockwise(x, book, blocksize=case["blocksize"])
    expected = z[f"{case['id']}_codes"]
    np.testing.assert_array_equal(q.scales, z[f"{case['id']}_absmax"])
    check_codes(q.codes, expected, z[f"{case['id']}_border"], book)
    check_values(case, q, dequantize_blockwise(q), q.codes, expected, z)


@pytest.mark.parametrize("case", CASES4, ids=[c["id"] for c in CASES4])
def test_golden_4_bit(case):
    z, name = blockdata.arrays("blockwise4"), case["id"]
    x = z[case["x"]].reshape(case["shape"])
    q = quantize_blockwise(x, case["type"], blocksize=case["blocksize"])
    n = x.size
    codes, expected = (reference.unpack4(p, n + n % 2) for p in (q.codes, z[f"{name}_packed"]))
    check_codes(codes, expected, z[f"{name}_border"], q.book.values)
    if case["type"] == "nf4" and z[f"{name}_border"].size == 0:
        np.testing.assert_array_equal(q.codes, z[f"{name}_packed"])
    np.testing.assert_array_equal(q.scales, z[f"{name}_absmax"])
    if not case["nested"]:
        values = dequantize_blockwise(q)
        if np.array_equal(codes, expected):
            assert blockdata.digest(values) == case["dq_sha256"]
        if f"{name}_dq" in z:
            np.testing.assert_array_equal(values.reshape(-1), z[f"{name}_dq"].reshape(-1))
        return
    nested = quantize_blockwise(x, case["type"], blocksize=case["blocksize"], nested=True)
    check_nested(nested, q.scales, z, name)
    # with exactly the golden scales, the values are the golden ones
    inner = BlockwiseArray(z[f"{name}_qabsmax"], z[f"{name}_nabsmax"], 256, "dynamic", q.scales.shape)
    golden = BlockwiseArray(
        z[f"{name}_packed"], inner, q.blocksize, q.book, x.shape, offset=z[f"{name}_offset"].item()
    )
    np.testing.assert_array_equal(block_scales(golden), z[f"{name}_absmax_dq"])
    assert blockdata.digest(dequantize_blockwise(golden)) == case["dq_sha256"]


def check_nested(q, absmax, z, name):
    assert q.nested
    offset = np.float32(z[f"{name}_offset"].item())
    assert abs(q.offset - offset) <= np.spacing(abs(offset))
    # The inner scales are the largest |absmax - offset| of a block. That difference is rounded, so it moves
    # by more than the offset where it is larger: by a unit of the larger of both, by two at a tie. No bound
    # is needed: from our offset must come our scales, and from the producer's its own (which has 1e-38 for an
    # all-zero tail).
    firsts = np.arange(0, absmax.size, q.scales.blocksize)
    for own, scales in ((np.float32(q.offset), q.scales.scales), (offset, z[f"{name}_nabsmax"])):
        expected = np.maximum.reduceat(np.abs(absmax - own), firsts)
        np.testing.assert_allclose(scales, expected, rtol=0, atol=1e-38)
    apart = np.abs(q.scales.codes.astype(int) - z[f"{name}_qabsmax"])
    assert apart.max() <= (0 if q.offset == offset else 1)


@pytest.mark.parametrize("case", NESTED8, ids=[c["id"] for c in NESTED8])
def test_golden_nested_8_bit(case):
    z, name = blockdata.arrays("blockwise4"), case["id"]
    q = quantize_blockwise(
        z[case["x"]], blocksize=case["blocksize"], nested=True, nested_blocksize=case["blocksize"]
    )
    np.testing.assert_array_equal(q.codes, z[f"{name}_q"])
    check_nested(q, quantize_blockwise(z[case["x"]], blocksize=case["blocksize"]).scales, z, name)


# ---- against the definition --------------------------------------------------------------------------------
def hostile(rng, n, book):
    """Values at and next to mid-points and table values, of mixed scales, zeros, subnormals."""
    values = np.unique(book.values).astype(np.float64)
    middles = (values[1:] + values[:-1]) / 2
    pool = np.concatenate([values, middles])
    x = rng.choice(pool, n) * np.float64(rng.choice([1.0, 0.75, 1.1754944e-38, 3e38, 1e-3, 2.0**-140]))
    x = x.astype(np.float32)
    steps = rng.integers(-2, 3, n)
    for _ in range(2):
        up = np.nextafter(x, np.where(steps > 0, np.float32(np.inf), np.float32(-np.inf)), dtype=np.float32)
        x = np.where(steps != 0, up, x)
        steps -= np.sign(steps)
    x[~np.isfinite(x)] = 1
    x[rng.random(n) < 0.05] = 0
    return x


@pytest.mark.parametrize("code", [*sorted(codebooks.BY_NAME), "exp3"])
def test_equals_the_definition(code, two_threads):
    book = CodeBook(codebooks.dynamic_tree(exponent_levels=3)) if code == "exp3" else as_codebook(code)
    rng = np.random.default_rng(len(code))
    for n, blocksize in (
        (1, 1),
        (63, 64),
        (1000, 1),
        (1001, 7),
        (3000, 64),
        (3001, 100),
        (5003, 256),
        (4099, 5000),
    ):
        for x in (hostile(rng, n, book), rng.standard_t(2, n).astype(np.float32)):
            q = quantize_blockwise(x, book, blocksize=blocksize, num_threads=two_threads)
            codes, scales = reference.quantize(x, book.values, blocksize)
            np.testing.assert_array_equal(q.scales, scales)
            np.testing.assert_array_equal(
                q.codes, reference.pack4(codes, book.zero_code) if q.packed else codes
            )
            np.testing.assert_array_equal(
                dequantize_blockwise(q, num_threads=two_threads),
                reference.dequantize(codes, scales, book.values, blocksize),
            )


@given(
    values=hnp.arrays(np.float32, st.integers(2, 256), elements=st.floats(-1, 1, width=32)),
    x=hnp.arrays(
        np.float32, st.integers(0, 300), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
    ),
    blocksize=st.integers(1, 310),
)
@settings(max_examples=200, deadline=None)
def test_any_book_and_data(values, x, blocksize):
    values[:2] = [0, 1]
    # neighbours within 24 binades, as CodeBook asks
    values[np.abs(values) < 2.0**-20] = 0
    book = CodeBook(values)
    q = quantize_blockwise(x, book, blocksize=blocksize)
    codes, scales = reference.quantize(x, book.values, blocksize)
    np.testing.assert_array_equal(q.scales, scales)
    np.testing.assert_array_equal(q.codes, reference.pack4(codes, book.zero_code) if q.packed else codes)
    np.testing.assert_array_equal(
        dequantize_blockwise(q), reference.dequantize(codes, scales, book.values, blocksize)
    )


def test_nearest_by_brute_force():
    """The definition itself, against every table value in rational numbers."""
    from fractions import Fraction

    rng = np.random.default_rng(5)
    for name in ("dynamic", "fp4", "linear_unsigned"):
        book = as_codebook(name)
        x = hostile(rng, 60, book)
        scale = np.abs(x).max()
        table = [Fraction(float(v)) * Fraction(float(scale)) for v in book.values]
        expected = [min(range(len(table)), key=lambda c: abs(table[c] - Fraction(float(v)))) for v in x]
        np.testing.assert_array_equal(reference.nearest_codes(x, scale, book.values), expected)


# ---- shapes, strides, dtypes -------------------------------------------------------------------------------
@pytest.mark.parametrize("code", ["dynamic", "nf4"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4"])
def test_dtypes_and_strides(code, dtype):
    rng = np.random.default_rng(1)
    base = rng.standard_normal((6, 8, 10)).astype(dtype)
    for x in (base, base[::2, ::-1, 1::3], base.transpose(2, 0, 1), base[0, 0, 0], base[:, :0]):
        q = quantize_blockwise(x, code, blocksize=16)
        plain = quantize_blockwise(np.ascontiguousarray(x, dtype=np.float32).reshape(-1), code, blocksize=16)
        np.testing.assert_array_equal(q.codes.reshape(-1), plain.codes)
        np.testing.assert_array_equal(q.scales, plain.scales)
        values = dequantize_blockwise(q)
        assert values.shape == x.shape and values.dtype == np.dtype(dtype).newbyteorder("=")
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(
                values.reshape(-1), dequantize_blockwise(plain).astype(values.dtype), strict=True
            )


def test_unaligned_input():
    raw = np.zeros(401, dtype=np.uint8)
    x = raw[1:].view(np.float32)
    x[:] = np.arange(100)
    np.testing.assert_array_equal(quantize_blockwise(x).codes, quantize_blockwise(np.arange(100.0)).codes)


def test_out_is_written_in_place():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 40, 30)).astype(np.float32)
    for code in ("dynamic", "nf4"):
        q = quantize_blockwise(x, code)
        again = quantize_blockwise(y, code, out=q)
        assert again is q
        np.testing.assert_array_equal(q.codes, quantize_blockwise(y, code).codes)
        for out in (
            np.empty((40, 30), np.float32),
            np.empty((30, 40), np.float64).T,
            np.empty((80, 30), np.float16)[::2],
        ):
            assert dequantize_blockwise(q, out=out) is out
            np.testing.assert_array_equal(out, dequantize_blockwise(q, dtype=out.dtype))


def test_unfinite_input_writes_nothing():
    x = np.ones(1000, np.float32)
    q = quantize_blockwise(x)
    before = q.codes.copy(), q.scales.copy()
    for bad in (np.nan, np.inf, -np.inf):
        y = np.zeros(1000, np.float32)
        y[777] = bad
        with pytest.raises(ValueError, match=r"^x: expected finite"):
            quantize_blockwise(y, out=q)
        with pytest.raises(ValueError, match=r"^x: expected finite.* block 3"):
            quantize_blockwise(y)
    np.testing.assert_array_equal(q.codes, before[0])
    np.testing.assert_array_equal(q.scales, before[1])
    with pytest.raises(ValueError, match=r"^x: expected finite"):
        quantize_blockwise(np.array([1e300]))


def test_copies_of_a_book_work():
    x = np.linspace(-1, 1, 300, dtype=np.float32)
    q = quantize_blockwise(x)
    for other in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        np.testing.assert_array_equal(dequantize_blockwise(other), dequantize_blockwise(q))
        np.testing.assert_array_equal(quantize_blockwise(x, other.book).codes, q.codes)


def test_sizes():
    q = quantize_blockwise(np.ones((10, 101), np.float32), "nf4", nested=True)
    assert q.nbytes == 505 + 16 + 4 + 4 and q.blocks == 16 and q.packed and q.nested
    assert quantize_blockwise(np.ones(1000, np.float32)).nbytes == 1000 + 16


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: quantize_blockwise(np.arange(3)), TypeError, "x"),
        (lambda: quantize_blockwise([1.0], blocksize=0), ValueError, "blocksize"),
        (lambda: quantize_blockwise([1.0], blocksize=2.0), TypeError, "blocksize"),
        (lambda: quantize_blockwise([1.0], "nf5"), ValueError, "code"),
        (lambda: quantize_blockwise([1.0], [0.0, 2.0]), ValueError, "code"),
        (lambda: quantize_blockwise([1.0], [0.0, np.nan]), ValueError, "code"),
        (lambda: quantize_blockwise([1.0], [0.5]), ValueError, "code"),
        (lambda: quantize_blockwise([1.0], [0.5, 0.5]), ValueError, "code"),
        (lambda: quantize_blockwise([1.0], num_threads=0), ValueError, "num_threads"),
        (lambda: quantize_blockwise([1.0], out=np.empty(1)), TypeError, "out"),
        (lambda: quantize_blockwise([1.0], out=quantize_blockwise([1.0, 2.0])), ValueError, "out"),
        (lambda: quantize_blockwise([1.0], out=quantize_blockwise([1.0], "linear")), ValueError, "out"),
        (lambda: dequantize_blockwise(np.empty(3)), TypeError, "q"),
        (lambda: dequantize_blockwise(quantize_blockwise([1.0]), dtype=np.int8), TypeError, "dtype"),
        (lambda: dequantize_blockwise(quantize_blockwise([1.0]), out=np.empty(2)), ValueError, "out"),
        (lambda: BlockwiseArray(np.zeros(3, np.int8), np.ones(1, np.float32), 64, "linear", (3,)), TypeError,
         "codes"),
        (lambda: BlockwiseArray(np.zeros(3, np.uint8), np.ones(1, np.float32), 64, "nf4", (3,)), ValueError,
         "codes"),
        (lambda: BlockwiseArray(np.zeros(3, np.uint8), np.ones(2, np.float32), 64, "linear", (3,)),
         ValueError, "scales"),
        (lambda: BlockwiseArray(np.zeros(3, np.uint8), np.ones(1), 64, "linear", (3,)), TypeError, "scales"),
        (lambda: BlockwiseArray(np.zeros(3, np.uint8), np.float32([np.nan]), 64, "linear", (3,)), ValueError,
         "scales"),
        (lambda: BlockwiseArray(np.zeros(3, np.uint8), np.float32([1, np.inf]), 2, "linear", (3,)),
         ValueError, "scales"),
        (lambda: BlockwiseArray(np.zeros(2, np.uint8), np.float32([-1]), 64, "nf4", (3,)), ValueError,
         "scales"),
        (lambda: BlockwiseArray(np.zeros(3, np.uint8), np.ones(1, np.float32), 64, "linear", (3,),
                                offset=1e39), ValueError, "offset"),
        (lambda: BlockwiseArray(np.zeros(3, np.uint8), np.ones(1, np.float32), 64, "linear", (3,),
                                offset="1"), TypeError, "offset"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, argument):
    with pytest.raises(error, match=f"^{argument}:"):
        call()


def test_no_jit_gives_the_same(monkeypatch):
    """The path that NUMBA_DISABLE_JIT=1 takes."""
    import numba

    x = np.random.default_rng(3).standard_normal(777).astype(np.float32)
    fast = [quantize_blockwise(x, code, nested=True) for code in ("dynamic", "nf4")]
    values = [dequantize_blockwise(q) for q in fast]
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    for q, v in zip(fast, values, strict=True):
        slow = quantize_blockwise(x, q.book, nested=True)
        np.testing.assert_array_equal(slow.codes, q.codes)
        np.testing.assert_array_equal(dequantize_blockwise(slow), v)
        with pytest.raises(ValueError, match=r"^x: expected finite"):
            quantize_blockwise([np.nan], q.book)


def test_checks_magnitude():
    flat = np.float32([1, -5, 2])
    coding.refuse_unfinite(flat, "g", 1, 5.5)
    with pytest.raises(ValueError, match=r"^g: expected absolute values below 5, got 5"):
        coding.refuse_unfinite(flat, "g", 1, 5.0)
