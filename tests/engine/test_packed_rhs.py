"""`pack_rhs`: what is packed is the matrix, on every kernel, through pickles and kernel changes."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

import lowgemm
from lowgemm import kernels


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 3), (64, 48), (65, 49), (0, 3), (3, 0), (2, 7, 9), (3, 1, 4, 20), (133, 4101)]
)
def test_unpacks_to_the_same_matrix(any_kernel, dtype, shape):
    info = np.iinfo(dtype)
    rhs = np.random.default_rng(0).integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    for view in (rhs, np.asfortranarray(rhs), rhs[..., ::-1]):
        w = lowgemm.pack_rhs(view)
        back = w.to_array()
        assert back.dtype == dtype and w.shape == shape
        np.testing.assert_array_equal(back, view)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(w)).to_array(), view)


def test_panels_of_another_kernel_are_repacked(monkeypatch):
    rng = np.random.default_rng(1)
    lhs, rhs = rng.integers(0, 256, (9, 20), dtype=np.uint8), rng.integers(-128, 128, (20, 11), dtype=np.int8)
    expected = lhs.astype(int) @ rhs.astype(int)
    w = lowgemm.pack_rhs(rhs)
    for kernel in kernels.all_kernels():
        if not kernels.why_not(kernel):
            monkeypatch.setattr(lowgemm.config, "kernel", kernel.name)
            for _ in range(2):
                np.testing.assert_array_equal(lowgemm.gemm(lhs, w), expected)


def test_changing_the_source_afterwards_changes_nothing():
    rhs = np.ones((4, 4), np.int8)
    w = lowgemm.pack_rhs(rhs)
    rhs[:] = 7
    assert (lowgemm.gemm(np.ones((1, 4), np.uint8), w) == 4).all()


def test_says_what_it_is():
    w = lowgemm.pack_rhs(np.ones((4, 6), np.int8))
    assert "shape=(4, 6)" in repr(w) and w.ndim == 2 and w.nbytes >= 24


def test_at_sign_and_no_other_arithmetic():
    x, w = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    packed = lowgemm.pack_rhs(w)
    np.testing.assert_array_equal(x @ packed, x.astype(int) @ w.astype(int))
    np.testing.assert_array_equal(x[0] @ packed, x[0].astype(int) @ w.astype(int))
    np.testing.assert_array_equal(x.tolist() @ packed, x.astype(int) @ w.astype(int))
    for wrong in (lambda: packed @ x, lambda: x + packed, lambda: packed * 2, lambda: np.add(packed, 1)):
        with pytest.raises(TypeError):
            wrong()


def test_is_no_array_and_says_what_to_do():
    packed = lowgemm.pack_rhs(np.ones((3, 4), np.int8))
    for convert in (
        np.asarray,
        np.array,
        lambda p: np.asarray(p, dtype=np.int8),
        lambda p: lowgemm.gemm(p, p),
    ):
        with pytest.raises(TypeError, match=r"\.to_array\(\)"):
            convert(packed)


def test_transposed():
    rng = np.random.default_rng(3)
    w = rng.integers(-128, 128, (2, 17, 70)).astype(np.int8)
    x = rng.integers(0, 256, (9, 70)).astype(np.uint8)
    packed = lowgemm.pack_rhs(w)
    assert packed.mT.shape == (2, 70, 17)
    np.testing.assert_array_equal(packed.mT.to_array(), w.swapaxes(1, 2))
    np.testing.assert_array_equal(x @ packed.mT, lowgemm.gemm(x, w.swapaxes(1, 2)))
    one = lowgemm.pack_rhs(w[0])
    np.testing.assert_array_equal(one.T.to_array(), w[0].T)
    np.testing.assert_array_equal(one.T.T.to_array(), w[0])
    with pytest.raises(ValueError, match=r"^T: .*\.mT "):
        packed.T


def test_what_numpy_may_do_with_it():
    x, packed = np.ones((3, 4), np.uint8), lowgemm.pack_rhs(np.ones((4, 5), np.int8))
    assert (np.matmul(x, packed) == 4).all() and (x @ packed == 4).all() and ([[1] * 4] @ packed == 4).all()
    for wrong in (
        lambda: packed @ x,
        lambda: packed @ packed,
        lambda: x + packed,
        lambda: packed * np.float32(2),
        lambda: np.add.reduce(packed),
        lambda: np.matmul(x, packed, out=np.empty((3, 5), np.int32)),
        lambda: np.asarray(packed),
        lambda: np.asarray(packed, np.int8),
        lambda: np.array(packed, copy=True),
        lambda: np.save(io.BytesIO(), packed),
        lambda: np.dot(x, packed),
    ):
        with pytest.raises(TypeError, match="PackedRhs is"):
            wrong()
