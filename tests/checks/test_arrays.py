"""Arrays of other libraries: same results as NumPy arrays over the same memory, no copies, and clear refusals."""

from __future__ import annotations

import array
import ctypes
import mmap

import numpy as np
import pytest

import lowgemm
from lowgemm.checks.arrays import to_numpy, widened
from lowgemm.checks.values import as_array

RNG = np.random.default_rng(5)
LHS = RNG.integers(0, 256, (17, 23), dtype=np.uint8)
RHS = RNG.integers(-128, 128, (23, 9), dtype=np.int8)
WANT = LHS.astype(np.int64) @ RHS.astype(np.int64)


def same_memory(a: np.ndarray, address: int) -> bool:
    return a.__array_interface__["data"][0] == address


class OnlyDlpack:
    """A producer that has DLPack and nothing else, on a device of the test's choice."""

    def __init__(self, a, device=1):
        self.a, self.device = a, device

    def __dlpack__(self, **options):
        return self.a.__dlpack__()

    def __dlpack_device__(self):
        return (self.device, 0)


class OnlyInterface:
    """An object with `__array_interface__` and nothing else."""

    def __init__(self, a):
        self.keep = a
        self.__array_interface__ = a.__array_interface__


class OnlyArrayMethod:
    def __init__(self, a):
        self.keep = a

    def __array__(self, dtype=None, copy=None):
        return self.keep


class Subclass(np.ndarray):
    """A subclass whose arithmetic must not be used."""

    def __getitem__(self, index):
        raise AssertionError("the subclass's own indexing was used")


def buffer_like(a: np.ndarray, kind: str):
    """`a` as a one-dimensional buffer of `kind`."""
    code = "B" if a.dtype == np.uint8 else "b"
    if kind == "array":
        return array.array(code, a.tobytes())
    if kind == "ctypes":
        return ((ctypes.c_uint8 if code == "B" else ctypes.c_int8) * a.size).from_buffer_copy(a.tobytes())
    return memoryview(bytearray(a.tobytes())).cast(code, a.shape)


WRAP = {
    "dlpack": OnlyDlpack,
    "array interface": OnlyInterface,
    "array method": OnlyArrayMethod,
    "subclass": lambda a: a.view(Subclass),
    "memoryview": lambda a: buffer_like(a, "memoryview"),
}


@pytest.mark.parametrize("kind", WRAP)
def test_every_protocol_gives_the_same_product(kind):
    wrap = WRAP[kind]
    for _ in range(2):  # the second call is one of a kind that was seen before
        np.testing.assert_array_equal(lowgemm.gemm(wrap(LHS), wrap(RHS)), WANT)
    np.testing.assert_array_equal(lowgemm.gemm(LHS, lowgemm.pack_rhs(wrap(RHS))), WANT)
    stage = [lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 6), lowgemm.SaturatingCast(np.int8)]
    sums = WANT.astype(np.int32)
    if kind != "memoryview":
        np.testing.assert_array_equal(
            lowgemm.requantize(wrap(sums), stage), lowgemm.gemm(LHS, RHS, output=stage)
        )


@pytest.mark.parametrize("kind", ["dlpack", "array interface", "array method", "subclass"])
def test_no_copy(kind):
    a = LHS[::2, ::-1] if kind != "dlpack" else LHS[::2]
    seen = as_array(WRAP[kind](a), "lhs", "an array")
    assert type(seen) is np.ndarray and same_memory(seen, a.ctypes.data) and seen.strides == a.strides


def test_buffers_are_vectors_over_the_same_memory():
    memory = bytearray(LHS[0].tobytes())
    view = to_numpy(memory)
    memory[3] ^= 255
    assert view[3] == memory[3] and view.dtype == np.uint8
    for kind in ("array", "ctypes"):
        np.testing.assert_array_equal(lowgemm.gemm(buffer_like(LHS[0], kind), RHS), WANT[0])
        np.testing.assert_array_equal(lowgemm.gemm(LHS, buffer_like(RHS[:, 0], kind)), WANT[:, 0])
    with mmap.mmap(-1, 23) as pages:
        pages.write(LHS[1].tobytes())
        np.testing.assert_array_equal(lowgemm.gemm(pages, RHS), WANT[1])


def test_memmap_and_matrix(tmp_path):
    path = tmp_path / "a.bin"
    LHS.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=LHS.shape)
    got = lowgemm.gemm(mapped, RHS)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, WANT)
    np.testing.assert_array_equal(lowgemm.gemm(np.asmatrix(LHS), np.asmatrix(RHS)), WANT)


def test_other_devices_are_refused():
    with pytest.raises(TypeError, match=r"^lhs: .*cuda"):
        lowgemm.gemm(OnlyDlpack(LHS, 2), RHS)
    with pytest.raises(TypeError, match=r"^rhs: .*DLPack device 77"):
        lowgemm.pack_rhs(OnlyDlpack(RHS, 77))
    np.testing.assert_array_equal(lowgemm.gemm(OnlyDlpack(LHS, 3), RHS), WANT)  # pinned for CUDA, readable

    class Cuda(OnlyArrayMethod):
        __cuda_array_interface__ = property(lambda self: {"version": 3})

    with pytest.raises(TypeError, match=r"^lhs: .*GPU"):
        lowgemm.gemm(Cuda(LHS), RHS)


def test_producers_that_fail():
    class Broken:
        def __init__(self, error):
            self.error = error

        def __array__(self, dtype=None, copy=None):
            raise self.error

    for error, kind in (
        (RuntimeError("no"), TypeError),
        (BufferError("no"), TypeError),
        (ValueError("no"), ValueError),
    ):
        with pytest.raises(kind, match=r"^lhs: .*no"):
            lowgemm.gemm(Broken(error), RHS)
    with pytest.raises(TypeError, match=r"^lhs: expected dtype uint8 or int8"):
        lowgemm.gemm(OnlyDlpack(LHS.astype(np.float32)), RHS)
    with pytest.raises(TypeError, match=r"^lhs"):
        lowgemm.gemm(b"bytes are text to NumPy", RHS)


def test_torch():
    torch = pytest.importorskip(
        "torch", reason="torch is not installed (a wheel of gigabytes, never required)"
    )
    lhs, rhs = torch.from_numpy(LHS.copy()), torch.from_numpy(RHS.copy())
    assert same_memory(as_array(lhs, "lhs", ""), lhs.data_ptr())
    for _ in range(2):
        np.testing.assert_array_equal(lowgemm.gemm(lhs, rhs), WANT)
    np.testing.assert_array_equal(lowgemm.gemm(lhs, lowgemm.pack_rhs(rhs)), WANT)
    np.testing.assert_array_equal(lowgemm.gemm(rhs.T, lhs.T), WANT.T)  # strides as they are
    weight = torch.nn.Parameter(rhs, requires_grad=False)
    np.testing.assert_array_equal(lowgemm.gemm(lhs, weight), WANT)
    back = torch.from_numpy(lowgemm.gemm(lhs, rhs))
    assert back.dtype == torch.int32
    np.testing.assert_array_equal(
        lowgemm.gemm(lhs, rhs, lhs_zero_point=torch.tensor(3), rhs_zero_point=torch.arange(9)),
        (LHS.astype(int) - 3) @ (RHS.astype(int) - np.arange(9)),
    )
    sums = torch.from_numpy(WANT.astype(np.int32))
    stage = lowgemm.Requantize(0.01, 3, np.int8, rounding="torch")
    np.testing.assert_array_equal(lowgemm.requantize(sums, stage), lowgemm.gemm(LHS, RHS, output=stage))
    out = np.zeros(WANT.shape, np.int32)
    lowgemm.gemm(lhs, rhs, out=out)
    np.testing.assert_array_equal(out, WANT)
    with pytest.raises(ValueError, match=r"^out: expected no overlap"):
        square = torch.zeros(32, 32, dtype=torch.uint8)
        lowgemm.gemm(
            square[:8, :8],
            square[8:16, :8],
            out=square.numpy().reshape(-1)[:256].view(np.int32).reshape(8, 8),
        )


def test_torch_refusals():
    torch = pytest.importorskip(
        "torch", reason="torch is not installed (a wheel of gigabytes, never required)"
    )
    real = torch.ones(3, 23)
    cases = {
        "without gradient": real.clone().requires_grad_(),
        "on the CPU, got one on meta": torch.empty((3, 23), dtype=torch.uint8, device="meta"),
        "dense": torch.ones(3, 23, dtype=torch.int8).to_sparse(),
        "quantized": torch.quantize_per_tensor(real, 0.1, 3, torch.quint8),
        "uint8 or int8, got float32": real,
        "uint8 or int8, got int16": real.to(torch.int16),
        "BFloat16": real.to(torch.bfloat16),
    }
    for text, tensor in cases.items():
        with pytest.raises(TypeError, match=f"^lhs: .*{text}"):
            lowgemm.gemm(tensor, RHS)
        with pytest.raises(TypeError, match=f"^rhs: .*{text}"):
            lowgemm.pack_rhs(tensor)


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2"])
def test_ml_dtypes(name):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    dtype = getattr(ml_dtypes, name)
    raw = RNG.integers(0, 256, (23, 9), dtype=np.uint8)
    with_junk = raw.view(dtype)  # bits above the value, which ml_dtypes ignores
    clean = with_junk.astype(np.int8).astype(dtype)
    for a in (with_junk, clean, with_junk.T, clean[::2]):
        got = widened(a)
        assert got.dtype == (np.uint8 if name.startswith("u") else np.int8)
        np.testing.assert_array_equal(got, a.astype(np.int16))
    if name.startswith("u"):
        assert np.shares_memory(widened(clean), clean)
    assert widened(LHS) is LHS
    right = RNG.integers(0, 256, (9, 5), dtype=np.uint8).view(dtype)
    want = (with_junk.astype(np.int64) - 3) @ right.astype(np.int64)
    for _ in range(2):  # the second call is one of a kind that was seen before
        np.testing.assert_array_equal(lowgemm.gemm(with_junk, right, lhs_zero_point=3), want)
    np.testing.assert_array_equal(lowgemm.gemm(with_junk, lowgemm.pack_rhs(right), lhs_zero_point=3), want)
    with pytest.raises(ValueError, match=r"^lhs, rhs: expected"):
        lowgemm.plan(with_junk, right)


def test_the_plain_path_costs_nothing():
    assert as_array(LHS, "lhs", "") is LHS
