"""Zero points of each matrix of a stack: `gemm` against the definition, and every way in and out of it."""

from __future__ import annotations

import numba
import numpy as np
import pytest

import lowgemm
from lowgemm import kernels, reference

STAGES = [lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 4, 3), lowgemm.SaturatingCast(np.int8)]


def operands(g, trial):
    """Operands whose stacks broadcast, and zero points of some of their matrices, rows and columns."""
    lead = [(2,), (3, 2), (1, 4), (2, 1, 3)][trial % 4]
    m, depth, n = (int(v) for v in g.integers(1, 34, 3))
    kinds = [np.uint8, np.int8]
    right = [lead, lead[1:], tuple(1 for _ in lead)][trial % 3]
    a = g.integers(0, 256, (*lead, m, depth)).astype(kinds[trial % 2])
    b = g.integers(0, 256, (*right, depth, n)).astype(kinds[trial // 2 % 2])
    some = [lead, lead[-1:], (1,) * (len(lead) - 1) + lead[-1:]][trial // 3 % 3]
    zeros = [
        g.integers(-(2**31), 2**31, (*some, [m, 1][trial // 2 % 2], 1)),
        g.integers(-300, 300, (*lead, 1, [n, 1][trial // 4 % 2])),
    ]
    if trial % 5 == 0:
        zeros[trial // 5 % 2] = [7, g.integers(-9, 9, m), g.integers(-9, 9, n)][
            0 if trial % 2 else 1 + trial // 5 % 2
        ]
    return a, b, {"lhs_zero_point": zeros[0], "rhs_zero_point": zeros[1]}


def exact(a, b, lhs_zero_point, rhs_zero_point):
    """NumPy's rule for the difference, but for a vector of rows."""
    if np.ndim(lhs_zero_point) == 1:
        lhs_zero_point = np.asarray(lhs_zero_point)[:, None]
    sums = (a.astype(np.int64) - lhs_zero_point) @ (b.astype(np.int64) - rhs_zero_point)
    return sums.astype(np.int32)  # modulo 2**32


@pytest.mark.parametrize("kernel", [None, *(k.name for k in kernels.all_kernels())])
def test_each_matrix_has_its_own(kernel, monkeypatch):
    if kernel is not None and kernels.why_not(kernels.by_name(kernel)):
        pytest.skip(f"this machine cannot run {kernel}")
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    g = np.random.default_rng(0)
    for trial in range(60 if kernel is None else 12):
        a, b, zeros = operands(g, trial)
        want = exact(a, b, **zeros)
        np.testing.assert_array_equal(reference.gemm(a, b, **zeros), want)
        for rhs in (b, lowgemm.pack_rhs(b)):
            np.testing.assert_array_equal(lowgemm.gemm(a, rhs, **zeros), want)
        scaled = lowgemm.gemm(a, b, output=STAGES, **zeros)
        np.testing.assert_array_equal(scaled, lowgemm.requantize(want, STAGES))


def test_results_of_any_strides_and_sums_to_add_to():
    g = np.random.default_rng(1)
    for trial in range(20):
        a, b, zeros = operands(g, trial)
        want = exact(a, b, **zeros)
        memory = np.full((*want.shape[::-1], 2), 7, np.int32)
        out = memory[..., 1].T
        before = g.integers(-(2**31), 2**31, want.shape).astype(np.int32)
        assert lowgemm.gemm(a, b, out=out, **zeros) is out
        np.testing.assert_array_equal(out, want)
        assert (memory[..., 0] == 7).all()
        out[...] = before
        lowgemm.gemm(a, b, out=out, accumulate=True, num_threads=2, **zeros)
        np.testing.assert_array_equal(out, before + want)


def test_without_compiled_code(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    g = np.random.default_rng(2)
    for trial in range(8):
        a, b, zeros = operands(g, trial)
        np.testing.assert_array_equal(lowgemm.gemm(a, b, **zeros), exact(a, b, **zeros))


def test_vectors_and_empty_stacks():
    g = np.random.default_rng(3)
    v, b = g.integers(0, 256, 5, dtype=np.uint8), g.integers(-128, 128, (3, 5, 4), dtype=np.int8)
    left, right = g.integers(-9, 9, (3, 1, 1)), g.integers(-9, 9, (3, 1, 4))
    got = lowgemm.gemm(v, b, lhs_zero_point=left, rhs_zero_point=right)
    np.testing.assert_array_equal(got, ((v - left) @ (b.astype(int) - right))[:, 0])
    none = lowgemm.gemm(
        np.zeros((0, 2, 5), np.uint8), b[:1], rhs_zero_point=right[:1] + np.zeros((0, 1, 4), int)
    )
    assert none.shape == (0, 2, 4)


def test_sums_that_do_not_fit_are_seen():
    """Only the second matrix's zero points reach beyond int32."""
    a, b = np.full((2, 1, 4), 255, np.uint8), np.full((2, 4, 1), 127, np.int8)
    zeros = np.array([0, -(2**24)]).reshape(2, 1, 1)
    assert (
        lowgemm.gemm(a, b, lhs_zero_point=zeros // 2**10, overflow="raise").max() == (255 + 2**14) * 127 * 4
    )
    with pytest.raises(OverflowError):
        lowgemm.gemm(a, b, lhs_zero_point=zeros, overflow="raise")


def test_explained():
    a, b = np.zeros((2, 3, 5), np.uint8), np.zeros((2, 5, 4), np.int8)
    assert "one after the other" in str(lowgemm.explain(a, b, rhs_zero_point=np.arange(2).reshape(2, 1, 1)))
    assert "one after the other" not in str(lowgemm.explain(a, b, rhs_zero_point=np.full((1, 1, 1), 3)))
