"""Optimizers on arrays of other libraries, and on bfloat16."""

from __future__ import annotations

import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm.blockwise import (
    Adam,
    AdamW,
    MixedWeight,
    dequantize_blockwise,
    gemm_4bit,
    mixed_linear,
    pack_rhs_4bit,
    quantize_blockwise,
)
from lowgemm.checks.arrays import bfloat16_bits, from_bfloat16, to_bfloat16

RNG = np.random.default_rng(3)
START, GRAD = RNG.standard_normal((2, 30, 20)).astype(np.float32)


class OnlyDlpack:
    def __init__(self, a):
        self.a = a

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return (1, 0)


class OnlyInterface:
    def __init__(self, a):
        self.a, self.__array_interface__ = a, a.__array_interface__


class OnlyArrayMethod:
    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a


class Copies(OnlyArrayMethod):
    def __array__(self, dtype=None, copy=None):
        return self.a.copy()


def stepped(dtype=np.float32):
    """What two steps make of `START`, on a plain array."""
    p = START.astype(dtype)
    optimizer = Adam(p, lr=0.1)
    optimizer.step(GRAD)
    optimizer.step([GRAD * 2])
    return p


WRAP = {
    "dlpack": OnlyDlpack,
    "array interface": OnlyInterface,
    "array method": OnlyArrayMethod,
    "memoryview": memoryview,
    "matrix": lambda a: a.view(np.matrix),
}


@pytest.mark.parametrize("kind", WRAP)
@pytest.mark.parametrize("by", ["one", "list", "generator"])
def test_every_protocol_is_changed_in_place(kind, by):
    p = START.copy()
    wrapped = WRAP[kind](p)
    if kind == "dlpack" and not np.from_dlpack(wrapped).flags.writeable:  # older NumPy
        with pytest.raises(ValueError, match=r"^params\[0\]: expected a writable array"):
            Adam(wrapped)
        return
    optimizer = Adam({"one": wrapped, "list": [wrapped], "generator": (w for w in [wrapped])}[by], lr=0.1)
    optimizer.step([WRAP[kind](GRAD.copy())])
    optimizer.step(WRAP[kind](GRAD * 2))
    np.testing.assert_array_equal(p, stepped())


def test_memmap_and_buffers(tmp_path):
    START.tofile(tmp_path / "p")
    mapped = np.memmap(tmp_path / "p", np.float32, "r+", shape=START.shape)
    optimizer = Adam(mapped, lr=0.1)
    optimizer.step(GRAD)
    optimizer.step(GRAD * 2)
    mapped.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "p", np.float32), stepped().ravel())
    with pytest.raises(ValueError, match=r"^params\[0\]: expected a writable array"):
        Adam(np.memmap(tmp_path / "p", np.float32, "r"))
    buffer = array.array("f", [1.0, 2.0])
    Adam(buffer, lr=0.5).step(array.array("d", [1.0, -1.0]))
    assert buffer.tolist() == [0.5, 2.5]


def test_what_cannot_be_written_into():
    for bad, error in (
        (Copies(START), TypeError), (OnlyArrayMethod(START.astype(np.uint16)), TypeError),
        (b"abcd", TypeError),
        (memoryview(b"abcd").cast("f"), ValueError), (np.ma.array(START, mask=False), TypeError),
        ("p", TypeError),
        (np.float32(3), TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match=r"^params\[0\]: expected"):
            Adam([bad])
    with pytest.raises(TypeError, match=r"^params: expected"):
        Adam("p")
    p = START.copy()
    for bad in (np.ma.array(GRAD, mask=GRAD > 0), GRAD.astype(int), GRAD.tolist(), "g"):
        with pytest.raises(TypeError, match=r"^grads\[0\]: "):
            Adam([p]).step([bad])
    for bad in ("g", 3):
        with pytest.raises(TypeError, match=r"^grads: "):
            Adam([p]).step(bad)
    np.testing.assert_array_equal(p, START)


# ---- bfloat16 ----------------------------------------------------------------------------------------------
ANY_FLOAT = st.integers(0, 2**32 - 1)
NEAR_A_TIE = st.builds(
    lambda upper, lower: upper << 16 | lower,
    st.integers(0, 2**16 - 1),
    st.sampled_from([0x7FFF, 0x8000, 0x8001]),
)


@given(st.lists(ANY_FLOAT | NEAR_A_TIE, min_size=1, max_size=50))
@settings(deadline=None)
def test_rounding_to_bfloat16(words):
    """Against the definition in float64: the nearest, the even one on a tie; and ml_dtypes."""
    a = np.uint32(words).view(np.float32)
    bits = to_bfloat16(a)
    back = from_bfloat16(bits)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(a))
    fine = np.isfinite(a) & np.isfinite(back)
    for x, b in zip(a[fine].astype(float), bits[fine], strict=True):
        low = np.uint32(int(b) - 1 if b & 0x7FFF else int(b)) << np.uint32(16)
        near = [np.uint32(int(b) << 16), low, np.uint32((int(b) + 1) << 16 & 0xFFFFFFFF)]
        values = [float(np.uint32(w).view(np.float32)) for w in near]
        gap = [abs(x - v) for v in values if np.isfinite(v)]
        assert abs(x - values[0]) == min(gap)
        assert gap.count(min(gap)) == 1 or b % 2 == 0 or values[0] in values[1:]
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    with np.errstate(invalid="ignore", over="ignore"):
        right = a.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(bits[~np.isnan(a)], right[~np.isnan(a)])


def test_bfloat16_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    start, grad = START.astype(ml_dtypes.bfloat16), GRAD.astype(ml_dtypes.bfloat16)
    wide = start.astype(np.float32)
    p, view = start.copy(), np.zeros((60, 40), ml_dtypes.bfloat16)[::2, ::-2]
    view[...] = start
    for params in (p, view, OnlyArrayMethod(p.copy())):
        AdamW(params, lr=0.1, min_8bit_size=0).step(grad)
    AdamW(wide, lr=0.1, min_8bit_size=0).step(grad.astype(np.float32))
    expected = wide.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(p.view(np.uint16), expected.view(np.uint16))
    np.testing.assert_array_equal(view, expected)
    assert (view.base[1::2] == 0).all()
    with pytest.raises(TypeError, match=r"^params\[0\]: .*float32, float16 or bfloat16"):
        Adam(START.astype(ml_dtypes.float8_e4m3fn))
    with pytest.raises(TypeError, match=r"^params\[0\]: .*float32, float16 or bfloat16"):
        Adam(start.view(np.uint16))
    # the other functions of the room
    x = start.astype(np.float32)
    np.testing.assert_array_equal(quantize_blockwise(start).codes, quantize_blockwise(x).codes)
    assert dequantize_blockwise(quantize_blockwise(start)).dtype == np.float32
    w, bias = MixedWeight(start), start[0]
    np.testing.assert_array_equal(
        mixed_linear(start.T, w, bias), mixed_linear(x.T, MixedWeight(x), bias.astype(np.float32))
    )
    np.testing.assert_array_equal(gemm_4bit(start.T, pack_rhs_4bit(start)), gemm_4bit(x.T, pack_rhs_4bit(x)))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_what_16_bits_cannot_hold_stays(kind):
    dtype, big = np.float16, 65504.0
    if kind == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed").bfloat16
        big = float(from_bfloat16(np.uint16([0x7F7F]))[0])
    p = np.array([big, 1.0, -big], dtype)
    optimizer = Adam(p, lr=big / 340)
    with pytest.raises(FloatingPointError, match=r"^2 parameters would have become infinite"):
        optimizer.step(np.float32([-1, 0, 1]))
    assert p.tolist() == [big, 1.0, -big] and optimizer.steps_done == 1


def test_bfloat16_bits_of_nothing_else():
    for value in (START, [1.0], 3, "x", None, bytearray(4), OnlyDlpack(START)):
        assert bfloat16_bits(value) is None


def test_torch():
    torch = pytest.importorskip(
        "torch", reason="torch is not installed (a wheel of gigabytes, never required)"
    )
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = torch.nn.Linear(20, 30).to(dtype)
        plain = [p.detach().float().numpy().copy() for p in model.parameters()]
        optimizer = AdamW(model.parameters(), lr=0.1, min_8bit_size=100)
        others = AdamW(plain, lr=0.1, min_8bit_size=100)
        for _ in range(3):
            model.zero_grad()
            (model(torch.ones(4, 20, dtype=dtype)).float() ** 2).sum().backward()
            grads = [p.grad for p in model.parameters()]
            optimizer.step(grads)
            others.step([g.float().numpy() for g in grads])
            for p, q in zip(model.parameters(), plain, strict=True):
                q[...] = torch.from_numpy(q).to(dtype).float().numpy()
                np.testing.assert_array_equal(p.detach().float().numpy(), q)
    strided = torch.zeros(40, 60, dtype=torch.bfloat16)
    view = strided.T[::2, ::2]
    Adam(view, lr=0.5).step(torch.ones_like(view))
    assert (view == -0.5).all() and (strided[1::2] == 0).all()
    with pytest.raises(TypeError, match=r"^grads\[0\]: .*pass .detach"):
        Adam(view).step(torch.ones(30, 20, requires_grad=True))
    with pytest.raises(TypeError, match=r"^params\[0\]: .*on meta"):
        Adam(torch.empty(3, device="meta"))
