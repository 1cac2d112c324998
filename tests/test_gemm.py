"""`gemm` against its definition: shapes, strides, signs, zero points, kernels, threads."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE

import lowgemm
from lowgemm import reference
from lowgemm.compat import onnx as onnx_operators
from lowgemm.engine import entry
from lowgemm.engine.seen import Seen

INT32 = st.one_of(
    st.sampled_from([0, 1, -1, 127, 128, 255, -128, 2**31 - 1, -(2**31)]), st.integers(-(2**31), 2**31 - 1)
)
SIZE = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 64, 65]), st.integers(0, 300)
)
DTYPE = st.sampled_from([np.uint8, np.int8])
LAYOUT = st.sampled_from(["C", "F", "step", "negative", "offset", "broadcast"])
FILL = st.sampled_from(["random", "min", "max", "mixed"])

bounded = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def matrix(
    rng: np.random.Generator, rows: int, cols: int, dtype: type, layout: str, fill: str = "random"
) -> np.ndarray:
    """A (rows, cols) array of the given memory layout."""
    info = np.iinfo(dtype)
    shape = (2 * rows + 3, 2 * cols + 5)
    if fill == "random":
        a = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    elif fill == "mixed":
        a = rng.choice(np.array([info.min, info.max, 0, 1], dtype=dtype), shape)
    else:
        a = np.full(shape, info.min if fill == "min" else info.max, dtype=dtype)
    if layout == "C":
        return np.ascontiguousarray(a[:rows, :cols])
    if layout == "F":
        return np.asfortranarray(a[:rows, :cols])
    if layout == "step":
        return a[1 : 1 + 2 * rows : 2, 2 : 2 + 2 * cols : 2]
    if layout == "negative":
        return a[:rows, :cols][::-1, ::-1]
    if layout == "broadcast":
        return np.broadcast_to(a[:1, :cols], (rows, cols))
    return a[3 : 3 + rows, 5 : 5 + cols]


def _forget() -> None:
    """Drop what `gemm` remembers of earlier calls."""
    for seen in (sys.modules["lowgemm.engine.call"]._plans, sys.modules["lowgemm.gemm"]._calls):
        seen._entries.clear()


def zero_point(draw, rng: np.random.Generator, size: int):
    kind = draw(st.sampled_from(["none", "scalar", "vector", "small vector"]))
    if kind == "none":
        return 0
    if kind == "scalar":
        return draw(INT32)
    low, high = (-(2**31), 2**31) if kind == "vector" else (-128, 256)
    return rng.integers(low, high, size)


@bounded
@given(
    data=st.data(),
    m=SIZE,
    k=SIZE,
    n=SIZE,
    left=DTYPE,
    right=DTYPE,
    a=LAYOUT,
    b=LAYOUT,
    fill=FILL,
    seed=st.integers(0, 2**32),
)
def test_equals_the_definition(any_kernel, threads, data, m, k, n, left, right, a, b, fill, seed):
    rng = np.random.default_rng(seed)
    lhs, rhs = matrix(rng, m, k, left, a, fill), matrix(rng, k, n, right, b, fill)
    zeros = {
        "lhs_zero_point": zero_point(data.draw, rng, m),
        "rhs_zero_point": zero_point(data.draw, rng, n),
    }
    expected = reference.gemm(lhs, rhs, **zeros)
    got = lowgemm.gemm(lhs, rhs, num_threads=threads, **zeros)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(lowgemm.gemm(lhs, lowgemm.pack_rhs(rhs), **zeros), expected)


@bounded
@given(
    m=st.integers(1, 40), k=st.integers(0, 60), n=st.integers(1, 70),
    layout=st.sampled_from(["C", "F", "step", "negative", "offset"]),
    accumulate=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_out_of_any_strides(any_kernel, m, k, n, layout, accumulate, seed):
    rng = np.random.default_rng(seed)
    lhs, rhs = matrix(rng, m, k, np.uint8, "C"), matrix(rng, k, n, np.int8, "F")
    whole = np.full((2 * m + 7, 2 * n + 7), 77, dtype=np.int32)
    whole = whole.T.copy().T if layout == "F" else whole
    views = {
        "C": (slice(0, m), slice(0, n)), "F": (slice(0, m), slice(0, n)),
        "step": (slice(1, 1 + 2 * m, 2), slice(2, 2 + 2 * n, 2)),
        "negative": (slice(m, 0, -1), slice(n, 0, -1)), "offset": (slice(4, 4 + m), slice(3, 3 + n)),
    }  # fmt: skip
    out = whole[views[layout]]
    expected = reference.gemm(lhs, rhs)
    assert lowgemm.gemm(lhs, rhs, out=out, accumulate=accumulate) is out
    np.testing.assert_array_equal(out, expected + (77 if accumulate else 0))
    out[...] = 77
    assert (whole == 77).all(), "wrote outside out"


@pytest.mark.parametrize(
    ("left", "right"),
    [((5,), (5,)), ((3, 5), (5,)), ((5,), (5, 4)), ((2, 3, 5), (5, 4)), ((3, 5), (2, 5, 4)),
     ((2, 1, 3, 5), (4, 5, 6)),
     ((7, 5), (2, 0, 5, 4)), ((5,), (2, 5, 4)), ((2, 3, 5), (5,)), ((0, 5), (5, 3)), ((3, 0), (0, 3)),
     ((0,), (0,))],
)  # fmt: skip
def test_shapes_as_matmul(any_kernel, threads, left, right):
    rng = np.random.default_rng(1)
    lhs, rhs = rng.integers(0, 256, left, dtype=np.uint8), rng.integers(-128, 128, right, dtype=np.int8)
    expected = np.matmul(lhs.astype(np.int64), rhs.astype(np.int64))
    got = lowgemm.gemm(lhs, rhs, num_threads=threads)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(reference.gemm(lhs, rhs), expected)
    if rhs.ndim > 1:
        np.testing.assert_array_equal(lowgemm.gemm(lhs, lowgemm.pack_rhs(rhs)), expected)


def test_broadcast_batches_pack_each_distinct_rhs_once(kernel):
    rng = np.random.default_rng(2)
    lhs = rng.integers(0, 256, (6, 4, 9), dtype=np.uint8)
    rhs = np.broadcast_to(rng.integers(0, 256, (9, 5), dtype=np.uint8), (6, 9, 5))
    np.testing.assert_array_equal(lowgemm.gemm(lhs, rhs), np.matmul(lhs.astype(int), rhs.astype(int)))
    assert lowgemm.explain(lhs, rhs).plan.distinct_rhs == 1


@pytest.mark.parametrize("depth", [8191, 30000, 65536])
def test_depth_in_blocks(kernel, threads, depth):
    rng = np.random.default_rng(depth)
    lhs, rhs = (
        rng.integers(0, 256, (37, depth), dtype=np.uint8),
        rng.integers(0, 256, (depth, 75), dtype=np.uint8),
    )
    zeros = {"lhs_zero_point": 11, "rhs_zero_point": -3}
    expected = reference.gemm(lhs, rhs, **zeros)
    np.testing.assert_array_equal(lowgemm.gemm(lhs, rhs, num_threads=threads, **zeros), expected)
    stages = [
        lowgemm.BiasAddition(np.arange(75)),
        lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 20, 3),
        lowgemm.SaturatingCast(np.int16),
    ]
    got = lowgemm.gemm(lhs, rhs, num_threads=threads, output=stages, **zeros)
    np.testing.assert_array_equal(got, reference.gemm(lhs, rhs, output=stages, **zeros))


@bounded
@given(
    m=st.integers(1, 40), k=st.integers(40, 600), n=st.integers(1, 70), batch=st.sampled_from([(), (2,)]),
    packed=st.booleans(), accumulate=st.booleans(), seed=st.integers(0, 2**32), data=st.data(),
)  # fmt: skip
def test_depth_shared_among_threads(any_kernel, data, m, k, n, batch, packed, accumulate, seed):
    """Parts of the depth are added up exactly, with every kind of zero point, bias and stage."""
    from lowgemm.engine import blocking
    from lowgemm.engine import threads as module

    rng = np.random.default_rng(seed)
    lhs, rhs = (
        rng.integers(0, 256, (*batch, m, k), dtype=np.uint8),
        rng.integers(-128, 128, (k, n), dtype=np.int8),
    )
    zeros = {"lhs_zero_point": zero_point(data.draw, rng, m), "rhs_zero_point": zero_point(data.draw, rng, n)}
    stages = [
        lowgemm.BiasAddition(rng.integers(-99, 99, m), axis=0),
        lowgemm.BiasAddition(rng.integers(-99, 99, n)),
    ]
    right = lowgemm.pack_rhs(rhs) if packed else rhs
    _forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MACS_PER_THREAD", 1)
        patch.setattr(blocking, "SPLIT_DEPTH", 16)
        # an rhs array can be excluded by its values, and then this plan is not used
        plan = lowgemm.plan(lhs, right, num_threads=2).plan if packed else None
        for output in (None, stages):
            expected = reference.gemm(lhs, rhs, output=output, **zeros)
            for _ in range(2):  # as a new kind of call, and as one that is known
                got = lowgemm.gemm(lhs, right, output=output, num_threads=2, **zeros)
                np.testing.assert_array_equal(got, expected)
        if accumulate:
            out = np.full((*batch, m, n), 5, np.int32)
            lowgemm.gemm(lhs, right, out=out, accumulate=True, num_threads=2, **zeros)
            np.testing.assert_array_equal(out, reference.gemm(lhs, rhs, **zeros) + 5)
    # AMX reads 64 of the depth at once, so a depth of 64 has no parts
    if plan is not None and not batch and m <= plan.kernel.mr and n <= plan.kernel.nr and k > 64:
        assert plan.blocking.splits > 1
    # plans with so small parts are not for other tests
    _forget()


@bounded
@given(
    m=st.integers(1, 70), k=st.integers(1, 300), n=st.integers(1, 150), batch=st.sampled_from([(), (2,)]),
    layout=st.sampled_from(["C", "F", "step", "offset"]), l2=st.sampled_from([1 << 10, 1 << 12, 1 << 14]),
    scaled=st.booleans(), accumulate=st.booleans(), seed=st.integers(0, 2**32), data=st.data(),
)  # fmt: skip
def test_tiny_caches(any_kernel, threads, data, m, k, n, batch, layout, l2, scaled, accumulate, seed):
    """Sizes at which a large machine would split the depth, or pack and multiply an rhs block by block."""
    from lowgemm.engine import planner
    from lowgemm.jit.caches import CacheSizes

    rng = np.random.default_rng(seed)
    lhs, rhs = rng.integers(0, 256, (*batch, m, k), dtype=np.uint8), matrix(rng, k, n, np.int8, layout)
    if batch:
        rhs = np.stack([rhs, rhs[::-1]])
    zeros = {"lhs_zero_point": zero_point(data.draw, rng, m), "rhs_zero_point": zero_point(data.draw, rng, n)}
    output = [lowgemm.Requantize(1e-4, 3, np.int8)] if scaled else None
    _forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "cache_sizes", lambda: CacheSizes(l2 // 4, l2, 8 * l2))
        for right in (rhs, lowgemm.pack_rhs(rhs)):
            expected = reference.gemm(lhs, rhs, output=output, **zeros)
            for _ in range(2):
                got = lowgemm.gemm(lhs, right, output=output, num_threads=threads, **zeros)
                np.testing.assert_array_equal(got, expected)
            if accumulate:
                out = np.full((*batch, m, n), 5, np.int32)
                lowgemm.gemm(lhs, right, out=out, accumulate=True, num_threads=threads, **zeros)
                np.testing.assert_array_equal(out, reference.gemm(lhs, rhs, **zeros) + 5)
        blocks = lowgemm.explain(lhs, rhs, num_threads=1).plan.blocking
        assert blocks.on_the_fly or m > 32 or n * k <= l2 // 2
    _forget()


def test_several_blocks_each_way(kernel, threads):
    rng = np.random.default_rng(3)
    lhs, rhs = (
        rng.integers(0, 256, (517, 129), dtype=np.uint8),
        rng.integers(-128, 128, (129, 1031), dtype=np.int8),
    )
    zeros = {"lhs_zero_point": rng.integers(0, 255, 517), "rhs_zero_point": rng.integers(-9, 9, 1031)}
    np.testing.assert_array_equal(
        lowgemm.gemm(lhs, rhs, num_threads=threads, **zeros), reference.gemm(lhs, rhs, **zeros)
    )


def test_sums_wrap_as_gemmlowps_do(kernel):
    lhs, rhs = np.full((2, 40000), 255, np.uint8), np.full((40000, 3), 255, np.uint8)
    exact = 40000 * 255 * 255
    assert exact > 2**31
    assert (lowgemm.gemm(lhs, rhs) == exact - 2**32).all()
    with pytest.raises(OverflowError, match="depth 40000"):
        lowgemm.gemm(lhs, rhs, overflow="raise")
    rhs[:] = 1  # the dtypes would allow an overflow, the data does not
    assert (lowgemm.gemm(lhs, rhs, overflow="raise") == 40000 * 255).all()


def test_two_vectors_give_a_scalar_as_from_matmul():
    a, b = np.array([1, 2, 255], np.uint8), np.array([-3, 4, -128], np.int8)
    exact = -3 + 8 - 255 * 128
    expected = np.matmul(a.astype(np.int32), b.astype(np.int32))
    for _ in range(2):
        for got in (lowgemm.gemm(a, b), reference.gemm(a, b), lowgemm.gemm(a, b, num_threads=2)):
            assert type(got) is type(expected) is np.int32 and got == exact
    for stages, value in (
        ([lowgemm.Clamp(-7, 9), lowgemm.SaturatingCast(np.int8)], np.int8(-7)),
        ([lowgemm.Requantize(0.001, 128, np.uint8, rounding="onnx")], np.uint8(128 - 33)),
        ([lowgemm.Dequantize(0.5)], np.float32(exact / 2)),
    ):
        for got in (lowgemm.gemm(a, b, output=stages), reference.gemm(a, b, output=stages)):
            assert type(got) is type(value) and got == value
    none = lowgemm.gemm(a[:0], b[:0], output=lowgemm.BiasAddition([5]))
    assert type(none) is np.int32 and none == 5
    out = np.zeros((), np.int32)
    assert lowgemm.gemm(a, b, out=out) is out and out == exact
    assert lowgemm.gemm(a, b, out=out, accumulate=True) is out and out == 2 * exact
    # what has an axis stays an array, and a tensor of ONNX has none of Python's scalars
    assert lowgemm.gemm(a[None], b[:, None]).shape == (1, 1)
    assert lowgemm.gemm(a, b[:, None]).shape == lowgemm.gemm(a[None], b).shape == (1,)
    tensor = onnx_operators.matmul_integer(a, b)
    assert type(tensor) is np.ndarray and tensor.shape == () and tensor == exact


@pytest.mark.parametrize(
    ("left", "right", "depth"),
    [(np.uint8, np.uint8, 33025), (np.uint8, np.int8, 65793), (np.int8, np.int8, 131071)],
)
def test_documented_depth_bounds(left, right, depth):
    """The largest depth at which no product of these dtypes can wrap, and one more; the pages say so."""
    a, b = (255 if d is np.uint8 else -128 for d in (left, right))
    for k, fits in ((depth, True), (depth + 1, False)):
        x, w = np.full((1, k), a, left), np.full((k, 1), b, right)
        assert (int(lowgemm.gemm(x, w)[0, 0]) == k * a * b) == fits
        if fits:
            assert int(lowgemm.gemm(x, w, overflow="raise")[0, 0]) == k * a * b
        else:
            with pytest.raises(OverflowError):
                lowgemm.gemm(x, w, overflow="raise")
    names = f"{np.dtype(left)} by {np.dtype(right)}"
    page = (Path(__file__).parents[1] / "docs" / "arithmetic.md").read_text()
    assert f"| {names} | {abs(a)} * {abs(b)} | {depth:,} |" in page
    assert f"{depth:,} ({names})" in " ".join(lowgemm.gemm.__doc__.split())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3,), (3,)),
        ((3,), ()),
        ((), (3,)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((4,), "one"),
        ((2, 3), "columns"),
    ],
)
def test_batches_take_the_short_way_and_stay_right(any_kernel, threads, left, right):
    """Known kinds of batched calls: one rhs for each product, one for all, each in turn."""
    rng = np.random.default_rng(7)
    for m, k, n in ((5, 7, 9), (33, 70, 66)):
        for _ in range(3):
            lhs = rng.integers(0, 256, (*left, m, k), dtype=np.uint8)
            if right == "one":  # a stride of 0 is one rhs
                rhs = np.broadcast_to(rng.integers(-128, 128, (k, n), dtype=np.int8), (*left, k, n))
            elif (
                right == "columns"
            ):  # the first dimension repeats, so products with one rhs are not neighbours
                rhs = np.broadcast_to(rng.integers(-128, 128, (1, 3, k, n), dtype=np.int8), (2, 3, k, n))
            else:
                rhs = rng.integers(-128, 128, (*right, k, n), dtype=np.int8)
            expected = reference.gemm(lhs, rhs, lhs_zero_point=9, rhs_zero_point=-2)
            out = np.empty_like(expected)
            for operand in (rhs, lowgemm.pack_rhs(rhs)):
                zeros = {"lhs_zero_point": 9, "rhs_zero_point": -2}
                got = lowgemm.gemm(lhs, operand, num_threads=threads, **zeros)
                np.testing.assert_array_equal(got, expected)
                lowgemm.gemm(lhs, operand, num_threads=threads, out=out, **zeros)
                np.testing.assert_array_equal(out, expected)
            planned = lowgemm.plan(lhs, operand, num_threads=threads)
            np.testing.assert_array_equal(planned(lhs, operand, **zeros), expected)
            back = lhs[..., ::-1, :]
            np.testing.assert_array_equal(lowgemm.gemm(back, operand, **zeros), expected[..., ::-1, :])


def test_repeated_calls_take_the_short_way_and_stay_right(kernel):
    rng = np.random.default_rng(4)
    for _ in range(3):
        for left, right in (
            (np.uint8, np.uint8),
            (np.int8, np.uint8),
            (np.uint8, np.int8),
            (np.int8, np.int8),
        ):
            lhs, rhs = matrix(rng, 20, 30, left, "C"), matrix(rng, 30, 40, right, "C")
            frozen = lhs.copy()
            frozen.flags.writeable = False
            expected = reference.gemm(lhs, rhs, lhs_zero_point=3)
            for a in (lhs, frozen):
                np.testing.assert_array_equal(lowgemm.gemm(a, rhs, lhs_zero_point=3), expected)
                out = np.empty_like(expected)
                np.testing.assert_array_equal(lowgemm.gemm(a, rhs, lhs_zero_point=3, out=out), expected)


def test_a_pipeline_is_known_by_its_stages_not_by_its_list(kernel):
    """Lists come and go, and their memory is used again; the plan that is found must be that of the
    stages.
    """

    class Stages(list):
        pass

    x = np.full((4, 4), 3, np.uint8)
    for make in (list, Stages, tuple):
        for step in range(200):
            output = make([lowgemm.Clamp(step, step)])
            assert (lowgemm.gemm(x, x, output=output) == step).all()
    kept: list = [lowgemm.Clamp(1, 1)]
    assert (lowgemm.gemm(x, x, output=kept) == 1).all()
    kept[0] = lowgemm.Clamp(2, 2)
    assert (lowgemm.gemm(x, x, output=kept) == 2).all()
    table = np.arange(256, dtype=np.uint8)
    for first, second in (
        (lowgemm.Lut(table), lowgemm.Lut(table.view(np.int8))),
        (lowgemm.Dequantize(0.0), lowgemm.Dequantize(-0.0)),
    ):
        assert first != second
        kept[0] = first
        before = [lowgemm.gemm(x, x, output=kept) for _ in range(2)][1]
        kept[0] = second
        after = lowgemm.gemm(x, x, output=kept)
        assert before.dtype != after.dtype or (np.signbit(before) != np.signbit(after)).all()


def test_a_stage_is_not_known_by_its_address(monkeypatch):
    """Equal stages take each other's place in what is remembered; then one goes, and another stage comes to
    lie where it was.
    """
    monkeypatch.setattr(Seen, "LIMIT", 1)
    small, large = np.full((4, 4), 3, np.uint8), np.full((5, 5), 3, np.uint8)
    acc = np.zeros((2, 2), np.int32)
    filters = lowgemm.pack_filters(np.ones((1, 1, 4, 4), np.int8))
    calls = (
        lambda x, output: lowgemm.gemm(x, x, output=output),
        lambda x, output: lowgemm.requantize(acc[: len(x) - 3], output),
        lambda x, output: lowgemm.conv(np.ones((1, len(x), 4, 4), np.uint8), filters, output=output),
    )
    entry.enter()  # else `gemm` remembers a kind of call when it comes a second time
    found = 0  # how often a stage came to lie there
    for call in calls:
        for step in range(20):
            kept = [lowgemm.Clamp(step, step)]
            address = id(kept[0])
            call(small, kept)
            kept[:] = [lowgemm.Clamp(step, step)]
            call(large, kept)
            others = [lowgemm.Clamp(step + 1, step + 1)]
            while id(others[-1]) != address and len(others) < 1000:
                others.append(lowgemm.Clamp(step + 1, step + 1))
            found += id(others[-1]) == address
            assert (call(large, (others[-1],)) == step + 1).all()
    assert found or sys.implementation.name != "cpython"


def test_what_is_no_stage_is_refused_each_time():
    x = np.ones((4, 4), np.uint8)
    good = [lowgemm.Clamp(0, 1)]
    for output in (good, [lowgemm.Clamp(0, 1), "clamp"], "clamp", 3, [3], good, {}):
        for _ in range(3):
            if output is good:
                assert (lowgemm.gemm(x, x, output=output) == 1).all()
            else:
                with pytest.raises(TypeError, match=r"^output"):
                    lowgemm.gemm(x, x, output=output)


def test_planned_product(kernel, threads):
    rng = np.random.default_rng(5)
    lhs, rhs = matrix(rng, 33, 65, np.int8, "C"), matrix(rng, 65, 50, np.uint8, "F")
    for right in (rhs, lowgemm.pack_rhs(rhs)):
        planned = lowgemm.plan(lhs, right, output=[lowgemm.SaturatingCast(np.int16)], num_threads=threads)
        expected = reference.gemm(
            lhs, rhs, lhs_zero_point=-3, rhs_zero_point=130, output=[lowgemm.SaturatingCast(np.int16)]
        )
        np.testing.assert_array_equal(planned(lhs, right, lhs_zero_point=-3, rhs_zero_point=130), expected)
        out = np.empty_like(expected)
        assert planned(lhs, right, out, lhs_zero_point=-3, rhs_zero_point=130) is out
        np.testing.assert_array_equal(out, expected)
        with pytest.raises(ValueError, match=r"^lhs: expected shape \(33, 65\), as planned, got \(5, 65\)"):
            planned(lhs[:5], right)
        other = rhs[:, :5] if right is rhs else lowgemm.pack_rhs(rhs[:, :5])
        with pytest.raises(ValueError, match=r"^rhs: expected shape \(65, 50\), as planned, got \(65, 5\)"):
            planned(lhs, other)
        with pytest.raises(TypeError, match=r"^lhs: expected dtype int8"):
            planned(lhs.view(np.uint8), right)
        with pytest.raises(ValueError, match=r"^lhs: expected strides .* or call gemm"):
            planned(np.asfortranarray(lhs), right)
        with pytest.raises(ValueError, match="lhs_zero_point"):
            planned(lhs, right, lhs_zero_point=2**31)
        with pytest.raises(ValueError, match=r"^out: expected a C-contiguous array; gemm takes"):
            planned(lhs, right, np.asfortranarray(out))


@pytest.mark.parametrize("built_in", [True, False])
def test_planned_product_with_and_without_the_built_in(monkeypatch, threads, built_in):
    """The way in by one built-in function, and by addresses where arrays are laid out otherwise."""
    import sys

    from lowgemm.engine import entry
    from lowgemm.jit import team

    if not built_in:
        monkeypatch.setattr(entry, "enter", lambda: None)
    elif entry.enter() is None:
        pytest.skip("this interpreter keeps arrays in a way that lowgemm does not know")
    rng = np.random.default_rng(6)
    # a few multiplications, and enough of them to let other Python threads run
    for m, depth, n in ((7 + built_in, 19, 123), (81 + built_in, 90, 83)):
        lhs, rhs = matrix(rng, m, depth, np.int8, "C"), matrix(rng, depth, n, np.uint8, "C")
        lhs.flags.writeable = False
        for right in (rhs, lowgemm.pack_rhs(rhs)):
            planned = lowgemm.plan(lhs, right, num_threads=threads)
            # without a team of threads, Numba's parallel regions run what several threads do
            by_routine = threads == 1 or team.available()
            assert planned.plan.threads == threads and (planned.plan.enter is not None) == (
                built_in and by_routine
            )
            for zeros in ((0, 0), (-(2**31), 2**31 - 1), (5, -7)):
                zero = dict(zip(("lhs_zero_point", "rhs_zero_point"), zeros, strict=True))
                expected = reference.gemm(lhs, rhs, **zero)
                np.testing.assert_array_equal(planned(lhs, right, **zero), expected)
            out, result = np.empty((m, n), np.int32), planned(lhs, right)
            mine = np.empty(1)
            assert sys.getrefcount(result) == sys.getrefcount(mine)  # 2, and since Python 3.14 1
            counts = [sys.getrefcount(x) for x in (lhs, rhs, right, out, None)]
            for _ in range(1000):
                planned(lhs, right, out)
            after = [sys.getrefcount(x) for x in (lhs, rhs, right, out, None)]
            assert after[:4] == counts[:4] and abs(after[4] - counts[4]) < 100


@pytest.mark.parametrize("built_in", [True, False])
def test_planned_product_refuses_what_was_not_planned(monkeypatch, built_in):
    """Other dtypes, shapes and strides than planned, whichever way they are compared."""
    from lowgemm.engine import entry

    if not built_in:
        monkeypatch.setattr(entry, "enter", lambda: None)
    x, w = np.ones((4, 4), np.uint8), np.full((4, 4), 2, np.int8)
    packed = lowgemm.pack_rhs(w)
    others = [
        None, 3, "x", [[1]], (), object(), np.uint8(1), np.array(1, np.uint8), x[0], x[None], x[:, :3],
        x[::-1], x.T,
        np.ones((4, 8), np.uint8)[:, ::2], np.asfortranarray(x), x.view(np.int8), x.view(bool),
        x.astype(np.float32),
        np.ma.array(x, mask=x == 1),
    ]  # fmt: skip
    for right in (w, packed):
        planned = lowgemm.plan(x, right)
        assert (planned(x.copy(), right) == 8).all()
        for other in others:
            with pytest.raises((TypeError, ValueError), match=r"^lhs: (expected|masked elements)"):
                planned(other, right)
        wrong = [o for o in others if not (isinstance(o, np.ndarray) and o.dtype == np.int8)]
        for other in [
            *wrong,
            w[::-1],
            w.T,
            w.view(np.uint8),
            packed if right is w else w,
            lowgemm.pack_rhs(w[:, :3]),
        ]:
            with pytest.raises((TypeError, ValueError), match=r"^rhs: (expected|masked elements)"):
                planned(x, other)
    assert (lowgemm.plan(x, packed)(x, lowgemm.pack_rhs(w + 1)) == 12).all()


def test_a_plan_takes_what_gemm_takes(tmp_path, monkeypatch):
    """Out of a pickle, from a file, of a subclass, read-only, and packed for another kernel; planned with
    such, and called with such.
    """

    class Subclass(np.ndarray):
        def __getitem__(self, index):
            raise AssertionError("the subclass's own indexing was used")

    def mapped(a):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"  # one that nothing is mapped from
        np.save(path, a)
        return np.load(path, mmap_mode="r")

    def frozen(a):
        a = a.copy()
        a.flags.writeable = False
        return a

    rng = np.random.default_rng(2)
    x, w = matrix(rng, 6, 20, np.uint8, "C"), matrix(rng, 20, 9, np.int8, "C")
    ways = (
        lambda a: pickle.loads(pickle.dumps(a)), mapped, frozen, np.ma.array, lambda a: a.view(Subclass),
        lambda a: memoryview(a), lambda a: a.astype(np.dtype(a.dtype, metadata={"a": 1})),
    )  # fmt: skip
    loaded = ways[0](x)
    assert loaded.dtype is not x.dtype and loaded.dtype == x.dtype  # what `is` does not see
    expected = reference.gemm(x, w, rhs_zero_point=3)
    for way in ways:
        for planned in (lowgemm.plan(way(x), way(w)), lowgemm.plan(x, w)):
            for _ in range(2):
                np.testing.assert_array_equal(planned(way(x), way(w), rhs_zero_point=3), expected)
                np.testing.assert_array_equal(planned(x, w, rhs_zero_point=3), expected)
            out = np.zeros(expected.shape, np.int32)
            assert planned(way(x), way(w), out, rhs_zero_point=3) is out
            np.testing.assert_array_equal(out, expected)
        right = lowgemm.pack_rhs(way(w))
        np.testing.assert_array_equal(lowgemm.plan(way(x), right)(way(x), right, rhs_zero_point=3), expected)
        assert lowgemm.plan(way(x), way(w))._pattern.tolist() == lowgemm.plan(x, w)._pattern.tolist()
    # a stride along an axis of length 1 leads nowhere
    row, tall = x[:1], np.zeros((4, 20), np.uint8)
    tall[::2] = row
    assert row.strides != tall[::2][:1].strides
    np.testing.assert_array_equal(lowgemm.plan(row, w)(tall[::2][:1], w), reference.gemm(row, w))
    # panels of another kernel are packed again, in a plan that was made before as in one that is made then
    packed, planned = lowgemm.pack_rhs(w), lowgemm.plan(x, lowgemm.pack_rhs(w))
    monkeypatch.setattr(lowgemm.config, "kernel", "portable")
    np.testing.assert_array_equal(lowgemm.plan(x, packed)(x, packed, rhs_zero_point=3), expected)
    np.testing.assert_array_equal(planned(x, lowgemm.pack_rhs(w), rhs_zero_point=3), expected)


def test_without_the_compiler(tmp_path):
    """NUMBA_DISABLE_JIT=1 computes by the definition."""
    import os
    import subprocess
    import sys

    code = (
        "import numpy as np, lowgemm\n"
        "x = np.arange(6, dtype=np.uint8).reshape(2, 3)\n"
        "w = np.array([[1, -2], [3, 4], [5, -128]], np.int8)\n"
        "print(lowgemm.gemm(x, w, lhs_zero_point=1, output=[lowgemm.SaturatingCast(np.int8)]).tolist())\n"
        "print(lowgemm.explain(x, w))\n"
    )
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "[[4, -126], [31, -128]]" in done.stdout and "DISABLE_JIT" in done.stdout


@pytest.mark.parametrize("value", [0, 3, -7])
def test_zero_points_that_are_equal_are_one(value, monkeypatch):
    """A vector of one value takes the way of the number; one that differs in a single place does not."""
    rng, seen = np.random.default_rng(1), []
    gemm = sys.modules["lowgemm.gemm"]  # `lowgemm.gemm` is the function
    kept = gemm.one_for_all
    monkeypatch.setattr(gemm, "one_for_all", lambda *a: seen.append(kept(*a)) or seen[-1])
    lhs, rhs = (
        rng.integers(0, 256, (9, 40), dtype=np.uint8),
        rng.integers(-128, 128, (40, 11)).astype(np.int8),
    )
    for dtype in (np.int8, np.int32, np.int64):
        left, right = np.full(9, value, dtype), np.full(11, value, dtype)
        for place in (None, 0, 3, 5, 10):
            if place is not None:
                right[:] = value
                right[place] += 1
            expected = reference.gemm(lhs, rhs, lhs_zero_point=left, rhs_zero_point=right)
            got = lowgemm.gemm(lhs, rhs, lhs_zero_point=left, rhs_zero_point=right)
            np.testing.assert_array_equal(got, expected)
            assert type(seen[-1]) is int and type(seen[-2]) is (int if place is None else np.ndarray)


@pytest.mark.parametrize(
    "zero", [np.zeros(10, int), np.zeros(11), np.full(11, 2**40), np.full(11, 2**31, np.uint64)]
)
def test_equal_zero_points_that_do_not_fit_are_refused(zero):
    with pytest.raises((TypeError, ValueError), match="rhs_zero_point"):
        lowgemm.gemm(np.ones((9, 40), np.uint8), np.ones((40, 11), np.uint8), rhs_zero_point=zero)
