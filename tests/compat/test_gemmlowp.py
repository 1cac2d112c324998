"""The gemmlowp-named layer: all golden cases, its signs, orders and zero sizes."""

from __future__ import annotations

from collections import Counter

import golden
import numpy as np
import pytest

from lowgemm.compat import gemmlowp as g

#: NumPy 2 moved it.
byte_bounds = getattr(np.lib, "array_utils", np).byte_bounds
ORDER = {"row": g.MapOrder.ROW_MAJOR, "col": g.MapOrder.COL_MAJOR}


def mapped(ref, rows, cols, buffer):
    return g.MatrixMap(buffer, ORDER[ref["order"]], rows, cols, ref["stride"], ref["start"])


def run_gemm(case):
    """A `gemm` case by its own entry point, with offsets added and matrices mapped."""
    m, k, n = case["m"], case["k"], case["n"]
    buffer = np.full(case["result"]["buffer_len"], case["result"]["fill"], dtype=case["result"]["dtype"])
    lhs, rhs = (
        mapped(case["lhs"], m, k, golden.array(case["lhs"])),
        mapped(case["rhs"], k, n, golden.array(case["rhs"])),
    )
    result = mapped(case["result"], m, n, buffer)
    stages = [golden.stage(s) for s in case["pipeline"]]
    offsets = golden.array(case["lhs_offset"]), golden.array(case["rhs_offset"])
    expected = golden.array(case["expected"])
    vectors = isinstance(offsets[0], np.ndarray) or isinstance(offsets[1], np.ndarray)
    call = g.gemm_with_output_pipeline_pc if vectors else g.gemm_with_output_pipeline
    call(lhs, rhs, result, *offsets, stages)
    view = result.view()
    assert view.dtype == expected.dtype
    np.testing.assert_array_equal(view, expected)
    if view.size:
        view[...] = case["result"]["fill"]
    assert (buffer == case["result"]["fill"]).all(), "wrote outside the destination"
    return "vacuous" if 0 in (m, k, n) else "run"


def run_eight_bit(case):
    """An `eight_bit_int_gemm` case; the expected array is the whole buffer."""
    expected = golden.array(case["expected"])
    c = np.full(expected.size, case["c_fill"], dtype=case["c_dtype"])
    floats = case["c_dtype"] == "float32"
    g.eight_bit_int_gemm(
        case["transpose_a"], case["transpose_b"], case["transpose_c"], case["m"], case["n"], case["k"],
        golden.array(case["a"]), case["a_offset"], case["lda"], golden.array(case["b"]), case["b_offset"],
        case["ldb"],
        c, case["c_offset_float"] if floats else case["c_offset"], None if floats else case["c_mult_int"],
        None if floats else case["c_shift"], case["ldc"], g.BitDepthSetting(case["bit_depth"]),
    )  # fmt: skip
    assert c.dtype == expected.dtype
    np.testing.assert_array_equal(c, expected)
    return case["c_dtype"]


def test_every_gemm_case(any_kernel):
    counts = Counter(run_gemm(case) for case in golden.cases("gemm"))
    print(dict(counts))
    assert counts["run"] > 300 and counts["vacuous"] > 0 and counts.total() == len(golden.cases("gemm"))


def test_every_eight_bit_case(any_kernel):
    counts = Counter(run_eight_bit(case) for case in golden.cases("eight_bit_int_gemm"))
    print(dict(counts))
    assert counts["uint8"] > 0 and counts["float32"] > 0
    assert counts.total() == len(golden.cases("eight_bit_int_gemm"))


def test_first_interface():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (5, 7), dtype=np.uint8), rng.integers(0, 256, (7, 4), dtype=np.uint8)
    result = np.zeros((5, 4), np.uint8)
    g.gemm(a, b, result, -3, 5, 1000, 77, 12)
    acc = (a.astype(int) - 3) @ (b.astype(int) + 5)
    product = (acc + 1000) * 77
    expected = np.clip(np.sign(product) * ((np.abs(product) + 2048) >> 12), 0, 255)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_zero_sizes_leave_the_destination_alone(shape):
    m, k, n = shape
    result = np.full((m, n), 7, np.int32)
    g.gemm_with_output_pipeline(np.zeros((m, k), np.uint8), np.zeros((k, n), np.uint8), result, 1, 1)
    assert (result == 7).all()


def test_bad_input():
    x, out = np.zeros((2, 2), np.uint8), np.full((2, 2), 5, np.int32)
    with pytest.raises(TypeError, match="lhs"):
        g.gemm_with_output_pipeline(x.astype(np.int8), x, out, 0, 0)
    with pytest.raises(TypeError, match="lhs_offset"):
        g.gemm_with_output_pipeline(x, x, out, [1, 2], 0)
    with pytest.raises(ValueError, match="rhs"):
        g.gemm_with_output_pipeline(x, x[:1], out, 0, 0)
    with pytest.raises(ValueError, match="stride"):
        g.MatrixMap(np.zeros(9, np.uint8), g.MapOrder.ROW_MAJOR, 3, 3, 2)
    with pytest.raises(ValueError, match="data: expected at least 9"):
        g.MatrixMap(np.zeros(8, np.uint8), g.MapOrder.ROW_MAJOR, 3, 3)
    with pytest.raises(ValueError, match="c: expected at least 4"):
        g.eight_bit_int_gemm(
            True, True, True, 2, 2, 2, x.ravel(), 0, 2, x.ravel(), 0, 2, np.zeros(3, np.uint8), 0, 1, 1, 2
        )
    with pytest.raises(ValueError, match="c_mult_int"):
        g.eight_bit_int_gemm(
            True, True, True, 2, 2, 2, x.ravel(), 0, 2, x.ravel(), 0, 2, np.zeros(4, np.uint8), 0
        )
    assert (out == 5).all()


def test_orders_as_text(any_kernel):
    """By value, by name or as a member, an order is the same; a column-major result is written where it
    belongs.
    """
    a = np.arange(6, dtype=np.uint8)
    for order in ("row", "ROW_MAJOR", g.MapOrder.ROW_MAJOR):
        m = g.MatrixMap(a, order, 2, 3)
        assert m.order is g.MapOrder.ROW_MAJOR and m.view().tolist() == [[0, 1, 2], [3, 4, 5]]
    for order in ("col", "COL_MAJOR", g.MapOrder.COL_MAJOR):
        m = g.MatrixMap(a, order, 2, 3)
        assert m.order is g.MapOrder.COL_MAJOR and m.view().tolist() == [[0, 2, 4], [1, 3, 5]]
        buffer = np.full(20, -7, np.int32)
        one = np.eye(2, dtype=np.uint8)
        g.gemm_with_output_pipeline(one, m, g.MatrixMap(buffer, order, 2, 3, 4, 5), 0, 0)
        assert buffer.tolist() == [-7] * 5 + [0, 1, -7, -7, 2, 3, -7, -7, 4, 5] + [-7] * 5
    for order in ("diagonal", "", None, 0, ["row"], b"row"):
        with pytest.raises(ValueError, match=r"^order: expected 'row' or 'col', got"):
            g.MatrixMap(a, order, 2, 3)
    two = np.ones(1, np.uint8)
    for depth in ("A8B8", "A5B7", g.BitDepthSetting.A5B7):
        c = np.zeros(1, np.float32)
        g.eight_bit_int_gemm(True, True, True, 1, 1, 1, two, 0, 1, two, 0, 1, c, 0.5, bit_depth=depth)
        assert c[0] == 0.5
    with pytest.raises(ValueError, match=r"^bit_depth: expected 'A8B8' or 'A5B7', got 'A4B4'"):
        g.eight_bit_int_gemm(True, True, True, 1, 1, 1, two, 0, 1, two, 0, 1, c, 0.5, bit_depth="A4B4")
    with pytest.raises(TypeError, match=r"^transpose_b: expected a bool, got str"):  # "no" counts as true
        g.eight_bit_int_gemm(True, "no", True, 1, 1, 1, two, 0, 1, two, 0, 1, c, 0.5)


def test_a_view_ends_where_its_buffer_does():
    """Whatever the fields say: they can be set in spite of the frozen class, and a buffer can shrink."""
    rng = np.random.default_rng(8)
    for _ in range(3000):
        parent = np.arange(64, dtype=np.int16)[:: rng.choice([1, 2, 3, -1])][: rng.integers(1, 20)]
        m = g.MatrixMap(parent, rng.choice(["row", "col"]), 1, 1)
        for name in ("rows", "cols", "stride", "start"):
            object.__setattr__(m, name, int(rng.integers(0, 12)))
        try:
            view = m.view()
        except ValueError as error:
            assert str(error).startswith("data: expected at least")
            continue
        assert view.shape == (m.rows, m.cols)
        if view.size:
            (low, high), (first, last) = (byte_bounds(x) for x in (parent, view))
            assert low <= first and last <= high
    shrunk = np.arange(12, dtype=np.uint8)
    m = g.MatrixMap(shrunk, "row", 3, 4)
    shrunk.resize(5, refcheck=False)
    with pytest.raises(ValueError, match=r"^data: expected at least as many elements as before, got 5"):
        m.view()
    fixed = np.zeros(4, np.uint8)
    fixed.flags.writeable = False
    assert not g.MatrixMap(fixed, "row", 2, 2).view().flags.writeable
    with pytest.raises(TypeError, match=r"^data: masked"):
        g.MatrixMap(np.ma.array([1, 2], mask=[0, 1]), "row", 1, 2)
