"""Packing routines: each takes any strides, and a plan has the one that is quick for its operand."""

import numpy as np
import pytest

import lowgemm
from lowgemm import kernels
from lowgemm.engine import packing
from lowgemm.engine.plan import Operand, Plan

RUNNING = [k for k in kernels.all_kernels() if not kernels.why_not(k)]
ORDERS = ["rows", "parts of rows", "reversed rows", "columns", "reversed columns", "steps"]


def in_order(a: np.ndarray, order: str) -> np.ndarray:
    """The same numbers, lying in memory in another order."""
    if order == "rows":
        return np.ascontiguousarray(a)
    if order == "parts of rows":
        return np.concatenate([a, a[:, ::-1], a], axis=1)[:, : a.shape[1]]
    if order == "reversed rows":
        return np.ascontiguousarray(a[::-1])[::-1]
    if order == "columns":
        return np.asfortranarray(a)
    if order == "reversed columns":
        return np.asfortranarray(a[::-1, ::-1])[::-1, ::-1]
    wide = np.zeros((2 * a.shape[0], 3 * a.shape[1]), a.dtype)
    wide[::2, ::3] = a
    return wide[::2, ::3]


def packed(kernel, side, by_depth, a):
    """Panels and sums of an operand whose rows are `mn`, as bytes."""
    mn, depth = a.shape
    width = kernel.mr if side == "lhs" else kernel.lanes
    if side == "lhs" and kernel.row_bytes:
        each, count = -(-depth // kernel.row_bytes) * kernel.row_bytes, mn
    else:
        each, count = packing.padded_depth_bytes(kernel, depth) * width, -(-mn // width)
    room = np.zeros(each * count + 64, np.uint8)
    to = room[-room.ctypes.data % 64 :][: each * count]
    sums = np.full(-(-mn // width) * width, 7, np.int32)
    flip, _ = packing.element_map(kernel, side, a.dtype.kind)
    packing.pack_routine(kernel, side, by_depth).ctypes(
        a.ctypes.data, a.strides[0], a.strides[1], mn, depth, flip, to.ctypes.data, each, sums.ctypes.data
    )
    return to.tobytes(), sums[:mn].tolist()


@pytest.mark.parametrize("kernel", RUNNING, ids=lambda k: k.name)
@pytest.mark.parametrize("side", ["lhs", "rhs"])
def test_both_routines_pack_every_order_alike(kernel, side):
    """Also those that are packed byte by byte, so each way is beside a plain one."""
    g = np.random.default_rng(5)
    if side == "rhs":
        kernel = kernels.rhs_packer(kernel)
    shapes = [(1, 1), (5, 7), (67, 130), (150, 33), (40, 3), (9, 1)]
    for mn, depth in [*shapes, *g.integers(1, 90, (20, 2)).tolist()]:
        a = g.integers(0, 256, (mn, depth), dtype=np.uint8)
        expected = packed(kernel, side, True, in_order(a, "rows"))
        for order in ORDERS:
            for by_depth in (True, False):
                assert packed(kernel, side, by_depth, in_order(a, order)) == expected, (order, by_depth)


@pytest.mark.parametrize("left", ORDERS)
@pytest.mark.parametrize("right", ORDERS)
def test_a_plan_packs_by_the_quick_routine(left, right):
    kernel = kernels.by_name("portable")
    g = np.random.default_rng(6)
    a = in_order(g.integers(0, 256, (9, 70), dtype=np.uint8), left)
    b = in_order(g.integers(-128, 128, (70, 40), dtype=np.int8), right)
    plan = Plan(
        kernel, Operand(a.shape, a.strides, "u"), Operand(b.shape, b.strides, "i"), result=np.dtype(np.int32),
        out_strides=(160, 4),
    )  # fmt: skip
    lhs, rhs = (
        {packing.pack_routine(kernel, side, by_depth).address: by_depth for by_depth in (True, False)}
        for side in ("lhs", "rhs")
    )
    assert len(lhs) == len(rhs) == 2
    assert lhs[int(plan.p.pack_lhs)] == ("rows" in left)
    assert rhs[int(plan.p.pack_rhs)] == (right == "columns")
    np.testing.assert_array_equal(lowgemm.gemm(a, b), a.astype(int) @ b)
