"""Remembered calls: every form of call, again and again with other values between, against the definition and
a call of a new kind.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

import lowgemm
from lowgemm import reference
from lowgemm.engine import entry
from lowgemm.jit import team

if not entry.usable():
    pytest.skip("this interpreter keeps arrays in a way that lowgemm does not know", allow_module_level=True)

M, K, N = 5, 9, 7
CALLS = sys.modules["lowgemm.gemm"]._calls
SUMS = sys.modules["lowgemm.requantize"]._calls


class Subclass(np.ndarray):
    """Its own indexing and its own word for its shape must not matter."""

    shape = property(lambda self: (1000, 1000))

    def __getitem__(self, index):
        raise AssertionError("the subclass's own indexing was used")


class SpacedOut(np.ndarray):
    pass


def forget() -> None:
    for seen in (sys.modules["lowgemm.engine.call"]._plans, CALLS, SUMS):
        seen._entries.clear()


def numbers(rng, dtype, shape):
    info = np.iinfo(dtype)
    low, high = max(info.min, -(2**31)), min(info.max, 2**31 - 1)
    return rng.integers(low, high, shape, dtype=dtype, endpoint=True)


#: Zero points of `size` values, of every kind that a caller may bring.
ZEROS = {
    "int": lambda r, size: int(r.integers(-(2**31), 2**31)),
    "minus one": lambda r, size: -1,
    "NumPy's int8": lambda r, size: np.int8(r.integers(-128, 128)),
    "NumPy's uint64": lambda r, size: np.uint64(r.integers(0, 2**31)),
    "without dimensions": lambda r, size: np.array(r.integers(-9, 9)),
    "one value": lambda r, size: r.integers(-9, 9, 1),
    **{
        np.dtype(code).name: (lambda r, size, code=code: numbers(r, code, size))
        for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
    },
    "every other": lambda r, size: numbers(r, "i4", 2 * size)[::2],
    "backwards": lambda r, size: numbers(r, "i2", size)[::-1],
    "repeated": lambda r, size: np.broadcast_to(numbers(r, "i4", 1), size),
    "other byte order": lambda r, size: numbers(r, "i4", size).astype(">i4"),
    "not aligned": lambda r, size: np.frombuffer(b"x" + numbers(r, "i4", size).tobytes(), "i4", offset=1),
    "list": lambda r, size: numbers(r, "i4", size).tolist(),
    "tuple": lambda r, size: tuple(numbers(r, "i1", size).tolist()),
    "subclass": lambda r, size: numbers(r, "i4", size).view(Subclass),
    "read-only": lambda r, size: np.frombuffer(numbers(r, "i8", size).tobytes(), "i8"),
}
#: Arrays to write a result to, all 7.
OUTS = {
    "none": lambda shape, dtype: None,
    "plain": lambda shape, dtype: np.full(shape, 7, dtype),
    "strided": lambda shape, dtype: np.full((*shape, 3), 7, dtype)[..., 1],
    "transposed": lambda shape, dtype: np.full(shape[::-1], 7, dtype).T,
    "backwards": lambda shape, dtype: np.full(shape, 7, dtype)[::-1] if shape else np.full(shape, 7, dtype),
    "subclass": lambda shape, dtype: np.full(shape, 7, dtype).view(SpacedOut),
}
OPERANDS = {
    "plain": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "subclass": lambda a: a.view(Subclass),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "list": lambda a: a.tolist(),
}
SHAPES = {
    "matrices": ((M, K), (K, N)), "lhs vector": ((K,), (K, N)), "rhs vector": ((M, K), (K,)),
    "two vectors": ((K,), (K,)),
    "stacks": ((3, M, K), (3, K, N)), "one rhs": ((3, M, K), (K, N)), "in turn": ((2, 1, M, K), (4, K, N)),
}  # fmt: skip
#: Whether a stack in which each rhs meets several lhs, one after the other, is remembered if its zero points
#: are vectors: only a team of threads takes such a stack as it is.
IN_TURN = team.available()
OUTPUTS = {
    "sums": None,
    "bytes": [lowgemm.Requantize(1e-3, 3, np.int8)],
    "function": lowgemm.Custom(lambda acc, row, col: acc % 100 + row - col),
}


def remembered(call, expected, times: int = 3) -> None:
    """Repeat a call that makes its own arguments; the last answer of a kind that is known, and one of a kind
    that is not.
    """
    forget()
    for _ in range(times):
        arguments, options, want = call()
        got = lowgemm.gemm(*arguments, **options)
        assert got.dtype == np.asarray(want).dtype
        np.testing.assert_array_equal(np.asarray(got), want)
        if options.get("out") is not None:
            assert got is options["out"]
    assert (len(CALLS._entries) == 1) == expected, CALLS._entries.keys()
    before = dict(CALLS._entries)
    arguments, options, want = call()
    lowgemm.gemm(*arguments, **options)
    assert CALLS._entries == before, "it was checked and planned again"


def made(rng, shapes=((M, K), (K, N)), zeros=(None, None), out="none", operand="plain", **options):
    """Arguments of one call, and what the definition gives for them."""
    accumulate = options.get("accumulate", False)
    a = rng.integers(0, 256, shapes[0], dtype=np.uint8)
    b = rng.integers(-128, 128, shapes[1], dtype=np.int8)
    a.flat[0], b.flat[0] = 255, -1  # lists that are uint8 and int8 again
    m = 1 if a.ndim == 1 else a.shape[-2]
    n = 1 if b.ndim == 1 else b.shape[-1]
    named = {
        f"{side}_zero_point": ZEROS[kind](rng, size)
        for side, kind, size in zip(("lhs", "rhs"), zeros, (m, n), strict=True)
        if kind is not None
    }
    plain = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in named.items()}
    plain.update({k: v for k, v in options.items() if k == "output" and v is not None})
    want = reference.gemm(a, b, **plain)
    to = OUTS[out](np.shape(want), np.asarray(want).dtype)
    if to is not None:
        options["out"] = to
    if accumulate:
        want = want + np.int32(7)
    return (OPERANDS[operand](a), OPERANDS[operand](b)), {**named, **options}, want


@pytest.mark.parametrize("right", ZEROS)
@pytest.mark.parametrize("left", [None, "int", "int32", "uint8", "list"])
def test_zero_points(left, right):
    rng = np.random.default_rng(1)
    read = right not in ("other byte order", "not aligned")
    if right == "not aligned":  # its layout is that of an aligned one: looked at every time
        for _ in range(3):
            arguments, options, want = made(rng, zeros=(left, right))
            np.testing.assert_array_equal(lowgemm.gemm(*arguments, **options), want)
        return
    remembered(lambda: made(rng, zeros=(left, right)), read)


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_results(shapes, out):
    rng = np.random.default_rng(2)
    for output in OUTPUTS.values():
        remembered(lambda output=output: made(rng, SHAPES[shapes], out=out, output=output), True)
    if out != "none":
        for flag in (True, np.True_):
            remembered(lambda flag=flag: made(rng, SHAPES[shapes], out=out, accumulate=flag), True)


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_operands(shapes, operand):
    rng = np.random.default_rng(3)
    for zeros in ((None, None), ("int16", "int64")):
        known = zeros == (None, None) or shapes != "in turn" or IN_TURN
        remembered(lambda zeros=zeros: made(rng, SHAPES[shapes], zeros, operand=operand), known)


@pytest.mark.parametrize("threads", [1, 2, np.int64(2)])
def test_threads(threads, monkeypatch):
    monkeypatch.setattr("lowgemm.engine.threads.MACS_PER_THREAD", 100)
    rng = np.random.default_rng(4)
    for zeros in ((None, "int"), ("uint8", "list"), ("int64", "int32")):
        for output in OUTPUTS.values():
            remembered(lambda z=zeros, o=output: made(rng, zeros=z, output=o, num_threads=threads), True)
    forget()


@pytest.mark.parametrize("left", [(), (3, 1), (3, M), (1, M), (2, 3, M), (2, 1, M)])
@pytest.mark.parametrize("right", [(), (3, 1), (3, N), (1, N), (2, 3, N), (2, 3, 1)])
def test_zero_points_of_each_matrix(left, right):
    rng = np.random.default_rng(5)

    def call():
        a = rng.integers(0, 256, (2, 3, M, K), dtype=np.uint8)
        b = rng.integers(-128, 128, (3, K, N), dtype=np.int8)
        lz, rz = rng.integers(-(2**31), 2**31, left), rng.integers(-(2**31), 2**31, right)
        named = {
            "lhs_zero_point": lz[..., None] if left else int(lz),
            "rhs_zero_point": rz[..., None, :] if right else int(rz),
        }
        return (a, b), named, reference.gemm(a, b, **named)

    vectors = {left, right} <= {(), (1, M), (1, N)} and left != right
    remembered(call, IN_TURN or not vectors)


def test_values_that_do_not_fit_are_refused_by_a_known_call_too():
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 256, (M, K), dtype=np.uint8), rng.integers(0, 256, (K, N), dtype=np.uint8)
    for name, size in (("lhs_zero_point", M), ("rhs_zero_point", N)):
        for dtype, bad in (
            ("i8", 2**31),
            ("i8", -(2**31) - 1),
            ("u4", 2**31),
            ("u8", 2**31),
            ("u8", 2**64 - 1),
        ):
            good, out = np.ones(size, dtype), np.full((M, N), 7, np.int32)
            for _ in range(2):
                lowgemm.gemm(a, b, out=out, **{name: good})
            out[...] = 7
            good[-1] = bad
            with pytest.raises(ValueError, match=rf"^{name}: expected"):
                lowgemm.gemm(a, b, out=out, **{name: good})
            assert (out == 7).all()
            with pytest.raises(ValueError, match=rf"^{name}: expected .* got {bad}"):
                lowgemm.gemm(a, b, **{name: bad})
        for other in (
            True,
            np.bool_(1),
            1.0,
            None,
            "1",
            np.timedelta64(1),
            np.ones(size + 1, int),
            np.ones(size),
            [[1]],
            [True],
        ):
            lowgemm.gemm(a, b, **{name: 1})
            lowgemm.gemm(a, b, **{name: np.ones(size, int)})
            with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected"):
                lowgemm.gemm(a, b, **{name: other})


def test_an_out_that_does_not_fit_is_refused_by_a_known_call_too():
    memory = np.zeros(4 * 64 + 1, np.uint8)
    lhs, rhs = memory[:16].reshape(4, 4), np.ones((4, 4), np.uint8)
    elsewhere = memory[64:128].view(np.int32).reshape(4, 4)
    frozen, odd = elsewhere.copy(), memory[65:129].view(np.int32).reshape(4, 4)
    frozen.flags.writeable = False
    refused = {
        "writable": frozen, "aligned": odd, "overlap": memory[:64].view(np.int32).reshape(4, 4),
    }  # fmt: skip

    def over(out):
        return lowgemm.gemm(lhs, rhs, out=out), lowgemm.gemm(rhs, lhs, out=out, accumulate=True)

    sums = np.ones((4, 4), np.int32)
    planned = lowgemm.plan(lhs, rhs)
    ways = {
        "lhs": lambda out: lowgemm.gemm(lhs, rhs, out=out),
        "rhs": lambda out: lowgemm.gemm(rhs, lhs, out=out),
        "added": lambda out: lowgemm.gemm(lhs, rhs, out=out, accumulate=True),
        "planned": lambda out: planned(lhs, rhs, out),
        "subclass": lambda out: lowgemm.gemm(lhs, rhs, out=out.view(SpacedOut)),
        "sums": lambda out: lowgemm.requantize(
            memory[:64].view(np.int32).reshape(4, 4), lowgemm.Clamp(0, 9), out=out
        ),
    }
    assert over(elsewhere) and sums.all()
    for way in ways.values():
        way(elsewhere)
        way(elsewhere)
        for word, out in refused.items():
            before = memory.tobytes()
            with pytest.raises(ValueError, match=rf"^out: expected .*{word}"):
                way(out)
            assert memory.tobytes() == before
    # beside an operand is not in it
    lowgemm.gemm(lhs, rhs, out=memory[16:80].view(np.int32).reshape(4, 4))


def test_zero_points_in_the_memory_of_the_result():
    rng = np.random.default_rng(7)
    a = rng.integers(0, 256, (3, M, K), dtype=np.uint8)
    b = rng.integers(0, 256, (3, K, N), dtype=np.uint8)
    for _ in range(3):
        out = rng.integers(-9, 9, (3, M, N)).astype(np.int32)
        zeros = out[:, -1:, :]
        want = reference.gemm(a, b, rhs_zero_point=zeros.copy())
        np.testing.assert_array_equal(lowgemm.gemm(a, b, rhs_zero_point=zeros, out=out), want)


def test_a_function_that_fails_now_and_then():
    def picky(acc, row, col):
        if acc == 9:
            raise ValueError("nine")
        return acc

    stage, x = lowgemm.Custom(picky), np.full((3, 3), 1, np.uint8)
    sums = np.ones((3, 3), np.int32)
    for _ in range(3):
        assert (lowgemm.gemm(x, x, output=stage) == 3).all()
        assert (lowgemm.requantize(sums, stage) == 1).all()
        for call in (
            lambda: lowgemm.gemm(x, x * 3, output=stage),
            lambda: lowgemm.requantize(sums * 9, stage),
        ):
            with pytest.raises(ValueError, match="nine"):
                call()


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 17, 300)])
def test_requantize(shape, out):
    rng = np.random.default_rng(8)
    for layout in (
        lambda a: a,
        lambda a: a[..., ::-1],
        lambda a: a.view(Subclass),
        lambda a: a.astype(">i4"),
    ):
        for output in OUTPUTS.values():
            forget()
            for _ in range(3):
                acc = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
                want = lowgemm.reference.apply_pipeline(
                    np.atleast_2d(np.array(layout(acc).tolist(), np.int32)),
                    () if output is None else tuple(output) if isinstance(output, list) else (output,),
                ).reshape(shape)
                want = want.astype(np.int8 if isinstance(output, list) else np.int32)
                to = OUTS[out](shape, want.dtype)
                got = lowgemm.requantize(layout(acc), output, out=to)
                assert (to is None or got is to) and got.dtype == want.dtype
                np.testing.assert_array_equal(np.asarray(got), want)
            assert len(SUMS._entries) == 1


def test_a_plan_takes_vectors_of_one_value_as_a_number():
    rng = np.random.default_rng(0)
    lhs, rhs = numbers(rng, "u1", (M, K)), numbers(rng, "i1", (K, N))
    for right in (rhs, lowgemm.pack_rhs(rhs)):
        planned = lowgemm.plan(lhs, right)
        for dtype in (np.int8, np.int32, np.int64):
            rows, cols = np.full(M, 7, dtype), np.full(N, -3, dtype)
            expected = reference.gemm(lhs, rhs, lhs_zero_point=7, rhs_zero_point=-3)
            for _ in range(2):
                np.testing.assert_array_equal(
                    planned(lhs, right, lhs_zero_point=rows, rhs_zero_point=cols), expected
                )
        cols[N // 3] = 4
        with pytest.raises((TypeError, ValueError), match=r"^rhs_zero_point: expected"):
            planned(lhs, right, rhs_zero_point=cols)
        with pytest.raises((TypeError, ValueError), match=r"^lhs_zero_point: expected"):
            planned(lhs, right, lhs_zero_point=np.zeros(M + 1, np.int32))
