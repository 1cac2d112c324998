"""Bad input: the right exception, the argument's name in it, and nothing written."""

from __future__ import annotations

import numpy as np
import pytest

import lowgemm

A = np.ones((3, 5), np.uint8)
B = np.ones((5, 4), np.int8)
STACK = np.ones((2, 3, 5), np.uint8)


def overlapping():
    """A result that would lie on top of the lhs."""
    memory = np.zeros(200, np.uint8)
    return memory[:15].reshape(3, 5), memory[:48].view(np.int32).reshape(3, 4)


LHS, OUT_ON_LHS = overlapping()
SELF = np.lib.stride_tricks.as_strided(np.zeros(40, np.int32), (3, 4), (8, 4))
FROZEN = np.zeros((3, 4), np.int32)
FROZEN.flags.writeable = False
UNALIGNED = np.frombuffer(bytearray(49), np.uint8)[1:].view(np.int32).reshape(3, 4)

BAD = {
    "float lhs": ((A.astype(float), B), {}, TypeError, "lhs"),
    "int16 rhs": ((A, B.astype(np.int16)), {}, TypeError, "rhs"),
    "bool lhs": ((A.astype(bool), B), {}, TypeError, "lhs"),
    "object rhs": ((A, B.astype(object)), {}, TypeError, "rhs"),
    "list of floats": (([[1.0, 2, 3, 4, 5]], B), {}, TypeError, "lhs"),
    "list of bools": (([[True, False, True, True, True]], B), {}, TypeError, "lhs"),
    "list of large ints": (([[1, 2, 3, 4, 256]], B), {}, ValueError, "lhs"),
    "list of ints of both signs": (([[1, 2, 3, -1, 128]], B), {}, ValueError, "lhs"),
    "list of huge ints": (([[1, 2, 3, 4, 10**30]], B), {}, TypeError, "lhs"),
    "ragged list": (([[1, 2], [3]], B), {}, ValueError, "lhs"),
    "string": (("abc", B), {}, TypeError, "lhs"),
    "none": ((A, None), {}, TypeError, "rhs"),
    "scalar lhs": ((np.uint8(3), B), {}, ValueError, "lhs"),
    "scalar rhs": ((A, np.int8(3)), {}, ValueError, "rhs"),
    "masked": ((np.ma.masked_array(A, A > 0), B), {}, TypeError, "lhs"),
    "depth": ((A, B[:4]), {}, ValueError, "rhs"),
    "vector depth": ((A[0, :4], B), {}, ValueError, "rhs"),
    "batch": ((np.ones((2, 3, 5), np.uint8), np.ones((3, 5, 4), np.uint8)), {}, ValueError, "rhs"),
    "float zero point": ((A, B), {"lhs_zero_point": 1.0}, TypeError, "lhs_zero_point"),
    "bool zero point": ((A, B), {"rhs_zero_point": True}, TypeError, "rhs_zero_point"),
    "nan zero point": ((A, B), {"rhs_zero_point": float("nan")}, TypeError, "rhs_zero_point"),
    "large zero point": ((A, B), {"lhs_zero_point": 2**31}, ValueError, "lhs_zero_point"),
    "small zero point": ((A, B), {"rhs_zero_point": -(2**31) - 1}, ValueError, "rhs_zero_point"),
    "zero points of lhs": ((A, B), {"lhs_zero_point": [1, 2]}, ValueError, "lhs_zero_point"),
    "zero points of rhs": ((A, B), {"rhs_zero_point": [1, 2, 3]}, ValueError, "rhs_zero_point"),
    "zero point values": ((A, B), {"rhs_zero_point": [1, 2, 3, 2**40]}, ValueError, "rhs_zero_point"),
    "zero point matrix": ((A, B), {"lhs_zero_point": [[1], [2], [3]]}, ValueError, "lhs_zero_point"),
    "zero points of matrices": (
        (A, B),
        {"lhs_zero_point": np.ones((2, 3, 1), int)},
        ValueError,
        "lhs_zero_point",
    ),
    "zero points along the depth": (
        (STACK, B),
        {"lhs_zero_point": np.ones((2, 1, 5), int)},
        ValueError,
        "lhs_zero_point",
    ),
    "zero points of three matrices": (
        (STACK, B),
        {"rhs_zero_point": np.ones((3, 1, 4), int)},
        ValueError,
        "rhs_zero_point",
    ),
    "zero points of too many axes": (
        (STACK, B),
        {"rhs_zero_point": np.ones((1, 2, 1, 4), int)},
        ValueError,
        "rhs_zero_point",
    ),
    "float zero points": ((STACK, B), {"rhs_zero_point": np.ones((2, 1, 4))}, TypeError, "rhs_zero_point"),
    "large zero points": (
        (STACK, B),
        {"rhs_zero_point": np.full((2, 1, 4), 2**31)},
        ValueError,
        "rhs_zero_point",
    ),
    "ragged zero point": ((A, B), {"lhs_zero_point": [[1], [2, 3]]}, ValueError, "lhs_zero_point"),
    "out list": ((A, B), {"out": [[0] * 4] * 3}, TypeError, "out"),
    "out dtype": ((A, B), {"out": np.zeros((3, 4), np.int64)}, TypeError, "out"),
    "out byte order": ((A, B), {"out": np.zeros((3, 4), ">i4")}, TypeError, "out"),
    "out shape": ((A, B), {"out": np.zeros((4, 3), np.int32)}, ValueError, "out"),
    "out read-only": ((A, B), {"out": FROZEN}, ValueError, "out"),
    "out unaligned": ((A, B), {"out": UNALIGNED}, ValueError, "out"),
    "out on lhs": ((LHS, B), {"out": OUT_ON_LHS}, ValueError, "out"),
    "out on itself": ((A, B), {"out": SELF}, ValueError, "out"),
    "out broadcast": ((A, B), {"out": np.broadcast_to(np.zeros(4, np.int32), (3, 4))}, ValueError, "out"),
    "accumulate without out": ((A, B), {"accumulate": True}, ValueError, "accumulate"),
    "accumulate into uint8": (
        (A, B),
        {"accumulate": True, "output": [lowgemm.SaturatingCast(np.uint8)], "out": np.zeros((3, 4), np.uint8)},
        ValueError,
        "accumulate",
    ),
    "accumulate number": (
        (A, B),
        {"accumulate": 1, "out": np.zeros((3, 4), np.int32)},
        TypeError,
        "accumulate",
    ),
    "no threads": ((A, B), {"num_threads": 0}, ValueError, "num_threads"),
    "negative threads": ((A, B), {"num_threads": -1}, ValueError, "num_threads"),
    "float threads": ((A, B), {"num_threads": 1.5}, TypeError, "num_threads"),
    "bool threads": ((A, B), {"num_threads": True}, TypeError, "num_threads"),
    "list of threads": ((A, B), {"num_threads": [1]}, TypeError, "num_threads"),
    "overflow": ((A, B), {"overflow": "ignore"}, ValueError, "overflow"),
    "output": ((A, B), {"output": "relu"}, TypeError, "output"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name):
    args, options, error, argument = BAD[name]
    lowgemm.gemm(A, B)  # so that the short way of repeated calls is open
    options = dict(options)
    watched = options.setdefault("out", np.full((3, 4), 5, np.int32)) if argument != "accumulate" else None
    before = np.array(watched, copy=True) if isinstance(watched, np.ndarray) else None
    for call in (lowgemm.gemm, lowgemm.explain):
        with pytest.raises(error, match=rf"^{argument}\b"):
            call(*args, **options)
    if before is not None:
        np.testing.assert_array_equal(watched, before)


def test_unknown_kernel_and_lacking_features(monkeypatch):
    monkeypatch.setitem(vars(lowgemm.config), "kernel", "nonsense")  # as from the environment, unchecked
    with pytest.raises(ValueError, match="kernel: no kernel is called 'nonsense'"):
        lowgemm.gemm(A, B)


def test_pack_rhs_checks():
    with pytest.raises(TypeError, match="rhs"):
        lowgemm.pack_rhs(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="rhs"):
        lowgemm.pack_rhs(np.uint8(1))


def test_array_likes_are_welcome():
    class Like:
        def __array__(self, dtype=None, copy=None):
            return A

    expected = lowgemm.gemm(A, B)
    for lhs in (Like(), np.asmatrix(A), np.ma.masked_array(A), memoryview(A), A.tolist() and A):
        np.testing.assert_array_equal(lowgemm.gemm(lhs, B), expected)
    one = lowgemm.gemm(A, B, lhs_zero_point=np.array([1]), rhs_zero_point=np.int64(2))
    np.testing.assert_array_equal(one, lowgemm.gemm(A, B, lhs_zero_point=1, rhs_zero_point=2))
