"""Arrays of other libraries: same results as NumPy arrays over the same memory, no copies, and clear
refusals.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import re

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


def test_lists_of_integers_are_operands():
    """uint8 without negative values, int8 with; the two ends of each, and one beyond."""
    cases = (
        ([[0, 255]], np.uint8), ([[0, 127]], np.uint8), ([[-1, 127]], np.int8), ([[-128, 0]], np.int8),
        ([[]], np.uint8),
        (((1, 2), (3, 4)), np.uint8), ([np.array([1, -2]), np.array([3, 4])], np.int8),
        ([[np.int64(3), np.uint16(4)]], np.uint8),
        ([np.array([1, 2], np.int8), np.array([3, 4], np.int8)], np.int8),
    )  # fmt: skip
    for value, dtype in cases:
        a = lowgemm.checks.arguments.as_operand(value, "lhs")
        assert a.dtype == dtype, value
        np.testing.assert_array_equal(a, np.array(value))
    for value in ([[0, 256]], [[-1, 128]], [[-129, 0]], [[2**40, 0]], [[-(2**31), 2**31]]):
        with pytest.raises(
            ValueError, match=r"^rhs: expected integers from 0 to 255 or from -128 to 127, got"
        ):
            lowgemm.gemm([[1]], value)
    for value, text in (
        ([[1.0, 2]], "float64; lowgemm.quantize"), ([[True, False]], "bool"), ([[1, None]], "object"),
        ([[1, 10**30]], "object"),
        ([["1"]], "<U1"), (np.array([[1, 2]], np.int64),
                           "int64; .astype(numpy.int8) or .astype(numpy.uint8), if all"),
        ([[1, 2.5]], "float64; lowgemm.quantize"), ([[1j]], "complex128"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=re.escape(f"lhs: expected dtype uint8 or int8, got {text}")):
            lowgemm.gemm(value, RHS)
    assert lowgemm.gemm([], []) == 0 and lowgemm.gemm(
        [[]], lowgemm.pack_rhs(np.zeros((0, 2), np.int8))
    ).shape == (1, 2)


#: Each takes one array argument of a library function: name -> (the array, a function of it).
def arguments_that_take_arrays():
    from lowgemm import blockwise, nn, onnx_run, quantization
    from lowgemm.compat import onnx as ox

    g = np.random.default_rng(6)
    u, s = LHS[:6, :8].copy(), RHS[:8, :4].copy()
    f, w = g.standard_normal((6, 8)).astype(np.float32), g.standard_normal((8, 4)).astype(np.float32)
    four, factors = np.array([1, -2, 300, 4], np.int32), np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    images = g.integers(0, 256, (1, 2, 5, 5), dtype=np.uint8)
    filters = g.integers(-128, 128, (3, 2, 3, 3), dtype=np.int8)
    half, none = np.float32(0.5), np.uint8(0)
    p, q = (quantization.choose_qparams(-1.0, 1.0, d) for d in (np.uint8, np.int8))
    sums = (u.astype(int) @ s).astype(np.int32)

    def staged(stage):
        return lowgemm.gemm(u, s, output=[stage])

    def linear(weight=s, bias=four, x=u):
        return nn.QuantizedLinear(weight, bias, p, q, p)(x)

    conv = (images, half, none, filters, half, np.int8(0), half, none)
    return {
        "gemm lhs": (u, lambda v: lowgemm.gemm(v, s)),
        "gemm rhs": (s, lambda v: lowgemm.gemm(u, v)),
        "pack_rhs": (s, lambda v: lowgemm.gemm(u, lowgemm.pack_rhs(v))),
        "explain lhs": (u, lambda v: str(lowgemm.explain(v, s))),
        "gemm lhs_zero_point": (np.arange(6, dtype=np.int32), lambda v: lowgemm.gemm(u, s, lhs_zero_point=v)),
        "gemm rhs_zero_point": (four, lambda v: lowgemm.gemm(u, s, rhs_zero_point=v)),
        "BiasAddition": (four, lambda v: staged(lowgemm.BiasAddition(v))),
        "multiplier": (
            np.abs(four) << 20,
            lambda v: staged(lowgemm.ScaleInt32ByFixedPointAndExponent(v, -3)),
        ),
        "exponent": (
            -np.abs(four) % 5,
            lambda v: staged(lowgemm.ScaleInt32ByFixedPointAndExponent(2**30, v)),
        ),
        "legacy offset": (four, lambda v: staged(lowgemm.QuantizeDownInt32ToUint8Scale(v, 1, 3))),
        "Requantize": (factors, lambda v: staged(lowgemm.Requantize(v, 3, np.int8))),
        "Dequantize": (factors, lambda v: staged(lowgemm.Dequantize(v))),
        "requantize": (sums, lambda v: lowgemm.requantize(v, lowgemm.SaturatingCast(np.int8))),
        "MatMulInteger A": (u, lambda v: ox.matmul_integer(v, s)),
        "MatMulInteger b_zero_point": (s[0], lambda v: ox.matmul_integer(u, s, None, v)),
        "QLinearMatMul b_scale": (
            factors,
            lambda v: ox.qlinear_matmul(u, half, none, s, v, np.int8(0), half, none),
        ),
        "QuantizeLinear x": (f, lambda v: ox.quantize_linear(v, half)),
        "QuantizeLinear y_scale": (factors, lambda v: ox.quantize_linear(f[:, :4], v)),
        "DequantizeLinear x_zero_point": (s[0], lambda v: ox.dequantize_linear(s, factors, v)),
        "DynamicQuantizeLinear x": (f, lambda v: ox.dynamic_quantize_linear(v)[0]),
        "ConvInteger x": (images, lambda v: onnx_run.conv_integer(v, filters)),
        "ConvInteger w": (filters, lambda v: onnx_run.conv_integer(images, v)),
        "QLinearConv bias": (four[:3], lambda v: onnx_run.qlinear_conv(*conv, v)),
        "quantize x": (f, lambda v: quantization.quantize(v, p)),
        "dequantize q": (u, lambda v: quantization.dequantize(v, p)),
        "QuantizedLinear weight": (s, lambda v: linear(weight=v)),
        "QuantizedLinear bias": (four, lambda v: linear(bias=v)),
        "QuantizedLinear x": (u, lambda v: linear(x=v)),
        "dynamic_linear x": (f, lambda v: nn.dynamic_linear(v, s, factors)),
        "dynamic_linear weight": (s, lambda v: nn.dynamic_linear(f, v, factors)),
        "dynamic_linear scale": (factors, lambda v: nn.dynamic_linear(f, s, v)),
        "weight_only_linear weight": (s, lambda v: nn.weight_only_linear(f, v, factors)),
        "mixed_linear x": (f, lambda v: blockwise.mixed_linear(v, w)),
        "mixed_linear weight": (w, lambda v: blockwise.mixed_linear(f, v)),
        "quantize_vectorwise": (f, lambda v: blockwise.quantize_vectorwise(v)[0]),
        "quantize_blockwise": (f, lambda v: blockwise.quantize_blockwise(v).codes),
    }


@pytest.mark.parametrize("name", arguments_that_take_arrays())
def test_every_argument_takes_every_kind(name):
    array_, function = arguments_that_take_arrays()[name]
    want = function(array_)
    kinds = {
        "list": array_.tolist(), "tuple": tuple(array_.tolist()), "dlpack": OnlyDlpack(array_),
        "host memory": OnlyDlpack(array_, 11),
        "interface": OnlyInterface(array_), "array method": OnlyArrayMethod(array_),
        "subclass": array_.view(Subclass),
        "memoryview": memoryview(array_),
    }  # fmt: skip
    if array_.ndim == 1:
        kinds["array"] = array.array(array_.dtype.char, array_.tolist())
        kinds["ctypes"] = np.ctypeslib.as_ctypes(array_.copy())
    for kind, value in kinds.items():
        got = function(value)
        assert isinstance(got, str) or got.dtype == want.dtype, kind
        np.testing.assert_array_equal(got, want, err_msg=kind)


def test_lists_where_only_one_dtype_makes_sense():
    """Their values must fit it; a float is never cut to an integer, and an array never cast."""
    from lowgemm import onnx_run
    from lowgemm.compat import onnx as ox

    bias = lowgemm.SaturatingCast(np.int8)
    for call, error, text in (
        (
            lambda: lowgemm.requantize([[1, 2**31]], bias),
            ValueError,
            r"acc: expected int32 \(-2147483648 to 2147483647\)",
        ),
        (lambda: lowgemm.requantize([[1, 2.0]], bias), TypeError, "acc: expected dtype int32, got float64"),
        (
            lambda: lowgemm.requantize(np.array([[1, 2]], np.int64), bias),
            TypeError,
            "acc: expected dtype int32, got int64",
        ),
        (lambda: lowgemm.requantize([[True]], bias), TypeError, "acc: expected dtype int32, got bool"),
        (lambda: ox.matmul_integer(LHS, RHS, [256]), ValueError, "a_zero_point: expected uint8"),
        (lambda: ox.matmul_integer(LHS, RHS, None, [128] * 9), ValueError, "b_zero_point: expected int8"),
        (
            lambda: ox.matmul_integer(LHS, RHS, None, [0.5] * 9),
            TypeError,
            "b_zero_point: expected dtype int8",
        ),
        (
            lambda: onnx_run.conv_integer(LHS[None, None], RHS[None, None, :3], [-1]),
            ValueError,
            "x_zero_point: expected uint8",
        ),
    ):
        with pytest.raises(error, match=f"^{text}"):
            call()
    assert lowgemm.requantize([[]], bias).shape == (1, 0)


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
