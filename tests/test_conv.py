"""The convolution against its definition: every kernel that runs here, one to three axes, all kinds of
filters.
"""

from __future__ import annotations

import enum
import pickle

import numba
import numpy as np
import pytest

import lowgemm
from lowgemm import kernels, reference

RUNS = [k.name for k in kernels.all_kernels() if not kernels.why_not(k)]
KINDS = ["plain", "point", "groups", "depthwise", "grouped"]
compiled = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="plans are of compiled code")


def integers(g, dtype, shape):
    info = np.iinfo(dtype)
    return g.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def problem(g, kind, axes):
    """An image, filters, their groups and the options of a sound call."""
    groups = {
        "plain": 1,
        "point": int(g.integers(1, 3)),
        "groups": int(g.integers(2, 4)),
        "depthwise": int(g.choice([2, 15, 16, 17, 33, 70])),
        "grouped": 0,
    }[kind]
    depth, per_group = int(g.choice([1, 2, 3, 5, 16, 21, 64, 70])), int(g.choice([1, 2, 17, 33]))
    if kind == "depthwise":
        depth, per_group = 1, 1
    elif kind == "grouped":  # what has a loop of its own: 64 channels and more
        depth = int(g.choice([4, 8, 16]))
        groups = 64 // depth + int(g.integers(0, 20))
        per_group = int(g.choice(range(4, depth + 1, 4)))
    taps = (1,) * axes if kind == "point" else tuple(g.integers(1, 6 if axes < 3 else 3, axes).tolist())
    stride, dilation = tuple(g.integers(1, 4, axes).tolist()), tuple(g.integers(1, 3, axes).tolist())
    padding = tuple((int(a), int(b)) for a, b in g.integers(0, 3, (axes, 2)))
    if kind == "point" and g.integers(2):
        stride, padding = (1,) * axes, ((0, 0),) * axes
    longest = 14 if axes < 3 else 6
    size = tuple(
        max(1, d * (k - 1) + 1 - sum(p), int(g.integers(1, longest)))
        for d, k, p in zip(dilation, taps, padding, strict=True)
    )
    if axes == 1:
        size = (size[0] + int(g.choice([0, 60])),)  # more windows than a block of the loops has
    dtypes = g.choice(["uint8", "int8"], 2)
    image = integers(g, dtypes[0], (int(g.integers(1, 4)), *size, depth * groups))
    filters = integers(g, dtypes[1], (*taps, depth, per_group * groups))
    outputs, info = filters.shape[-1], np.iinfo(dtypes[1])
    zeros = [0, int(g.integers(info.min, info.max + 1)), integers(g, dtypes[1], outputs).astype(int)]
    scale = 2.0 ** -g.uniform(4, 12, outputs)
    bias = lowgemm.BiasAddition(g.integers(-3000, 3000, outputs))
    requantize = lowgemm.Requantize(
        scale, 3, g.choice(["uint8", "int8"]), rounding=str(g.choice(["gemmlowp", "onnx"]))
    )
    options = {
        "image_zero_point": int(integers(g, dtypes[0], ())), "filter_zero_point": zeros[g.integers(3)],
        "stride": stride, "padding": padding, "dilation": dilation,
        "output": [None, [bias, requantize], [requantize], [bias, lowgemm.Dequantize(scale)]][g.integers(4)],
    }  # fmt: skip
    return image, filters, groups, options


@pytest.mark.parametrize("kernel", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_its_definition(kernel, kind, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    for seed in range(12):
        g = np.random.default_rng([seed, RUNS.index(kernel)])
        image, filters, groups, options = problem(g, kind, seed % 3 + 1)
        expected = reference.conv(image, filters, groups=groups, **options)
        for threads in (1, 2):
            got = lowgemm.conv(image, filters, groups=groups, num_threads=threads, **options)
            np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_first_strides_and_out(kind):
    for seed in range(9):
        g = np.random.default_rng(seed)
        axes = seed % 3 + 1
        image, filters, groups, options = problem(g, kind, axes)
        expected = reference.conv(image, filters, groups=groups, **options)
        packed = lowgemm.pack_filters(
            filters.transpose(axes + 1, axes, *range(axes)), groups, channels="first"
        )
        np.testing.assert_array_equal(packed.to_array(), filters)
        to_first = (0, axes + 1, *range(1, axes + 1))
        first = np.ascontiguousarray(image.transpose(to_first))
        for x in (first, image.transpose(to_first), first[:, ::-1].copy()[:, ::-1]):
            got = lowgemm.conv(x, packed, channels="first", **options)
            np.testing.assert_array_equal(got, expected.transpose(to_first), strict=True)
        wide = np.zeros((*expected.shape[:-1], 2 * expected.shape[-1]), expected.dtype)
        lowgemm.conv(image, packed, out=wide[..., ::2], **options)
        np.testing.assert_array_equal(wide[..., ::2], expected)
        assert not wide[..., 1::2].any(), "wrote beside out"
        out = np.empty(expected.shape, expected.dtype)
        assert lowgemm.conv(image, packed, out=out, **options) is out
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(
            lowgemm.conv(image, pickle.loads(pickle.dumps(packed)), **options), expected
        )


def test_the_image_may_be_a_part_of_another():
    g = np.random.default_rng(0)
    whole = integers(g, "uint8", (3, 20, 19, 8))
    for groups in (1, 5):
        filters = integers(g, "int8", (3, 3, 5 // groups, 5))
        part = whole[::2, 2:17:2, 3:15, 1:6]
        np.testing.assert_array_equal(
            lowgemm.conv(part, filters, groups=groups, padding=1),
            lowgemm.conv(part.copy(), filters, groups=groups, padding=1),
        )


@pytest.mark.parametrize("kernel", RUNS)
def test_patches_of_few_channels(kernel, monkeypatch):
    """Short lines of taps, side by side: windows over every edge, some that see no pixel, dilated upwards,
    and images that end with their memory or lie within others.
    """
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    g = np.random.default_rng(RUNS.index(kernel))
    for seed in range(30):
        depth, outputs = int(g.integers(1, 5)), int(g.choice([1, 8, 16]))
        taps = tuple(g.integers(1, 8, 2 + seed % 2).tolist()) if seed % 3 else (3, 3)
        axes = len(taps)
        size = tuple(g.integers(1, 20 if axes == 2 else 7, axes).tolist())
        padding = tuple(
            (int(a) + k, int(b) + k) for (a, b), k in zip(g.integers(0, 3, (axes, 2)), taps, strict=True)
        )
        stride, dilation = tuple(g.integers(1, 4, axes).tolist()), (*g.integers(1, 3, axes - 1).tolist(), 1)
        padding = tuple((a * d, b * d) for (a, b), d in zip(padding, dilation, strict=True))
        dtypes = g.choice(["uint8", "int8"], 2)
        whole = integers(g, dtypes[0], (3, *(n + 2 for n in size), depth))
        filters = integers(g, dtypes[1], (*taps, depth, outputs))
        inner = (slice(0, 3, 2), *(slice(1, n + 1) for n in size))
        options = {
            "image_zero_point": int(integers(g, dtypes[0], ())), "stride": stride, "padding": padding,
            "dilation": dilation, "filter_zero_point": int(integers(g, dtypes[1], ())),
        }  # fmt: skip
        for image in (whole[inner], whole[inner].copy()):
            expected = reference.conv(image, filters, **options)
            got = lowgemm.conv(image, filters, **options)
            np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("kernel", RUNS)
def test_loops_of_their_own_add_a_bias_of_each_window(kernel, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    g = np.random.default_rng(0)
    for channels, depth, width in ((2, 1, 3), (18, 1, 5), (70, 1, 50), (80, 4, 5), (80, 8, 50)):
        image, filters = (
            integers(g, "uint8", (2, 4, width, channels)),
            integers(g, "int8", (3, 2, depth, channels)),
        )
        rows = 2 * 2 * (width - 1)
        by_row = lowgemm.BiasAddition(g.integers(-9000, 9000, rows), axis=0)
        by_column = lowgemm.BiasAddition(g.integers(-9000, 9000, channels))
        options = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
        options["groups"] = channels // depth
        for stages in (
            [by_row],
            [by_row, by_column],
            [by_column, by_row],
            [by_row, by_row, lowgemm.SaturatingCast(np.int8)],
        ):
            expected = reference.conv(image, filters, output=stages, **options)
            for threads in (1, 2):
                got = lowgemm.conv(image, filters, output=stages, num_threads=threads, **options)
                np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("kernel", RUNS)
@pytest.mark.parametrize("depth", [4, 8, 16])
def test_extremes_of_groups_with_a_loop(kernel, depth, monkeypatch):
    """Filters at both ends of 8 bits, and just beyond them, where products take over."""
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    options = {"image_zero_point": 0, "stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    image = np.full((1, 5, 9, 96), 255, np.uint8)
    for dtype, zeros in (("int8", (0, -1, 1)), ("uint8", (127, 128, 129, 0))):
        info = np.iinfo(dtype)
        for value in (info.min, info.max):
            filters = np.full((3, 3, depth, 96), value, dtype)
            filters[1, :, 1, ::5] = info.max  # so that one zero point alone leaves 8 bits
            filters[2, :, 2, ::7] = info.min
            packed = lowgemm.pack_filters(filters, 96 // depth)
            for zero in (*zeros, np.arange(96) % 2 + zeros[0]):
                expected = reference.conv(
                    image, filters, groups=96 // depth, filter_zero_point=zero, **options
                )
                got = lowgemm.conv(image, packed, filter_zero_point=zero, **options)
                np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("kernel", RUNS)
def test_zero_points_of_filters_may_be_any_int32(kernel, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    g = np.random.default_rng(0)
    several = g.integers(-(2**31), 2**31, 20)
    zeros = (32512, 32513, -32640, -32641, 2**31 - 1, -(2**31), several, np.where(several > 0, 40000, 3))
    options = {"image_zero_point": 7, "stride": (1, 1), "padding": ((1, 0), (1, 1)), "dilation": (1, 1)}
    image = integers(g, "uint8", (2, 6, 5, 20))
    for groups, depth in ((20, 1), (4, 5), (1, 20)):
        for dtype in ("uint8", "int8"):
            filters = lowgemm.pack_filters(integers(g, dtype, (3, 3, depth, 20)), groups)
            for zero in zeros:
                expected = reference.conv(
                    image, filters.to_array(), groups=groups, filter_zero_point=zero, **options
                )
                got = lowgemm.conv(image, filters, filter_zero_point=zero, **options)
                np.testing.assert_array_equal(got, expected, strict=True)


def test_an_empty_batch():
    got = lowgemm.conv(
        np.empty((0, 5, 5, 3), np.uint8),
        np.ones((3, 3, 3, 2), np.int8),
        output=lowgemm.SaturatingCast(np.int8),
    )
    assert got.shape == (0, 3, 3, 2) and got.dtype == np.int8


def test_sums_wrap():
    x = np.full((1, 40, 40, 4), 255, np.uint8)
    w = np.full((40, 40, 4, 1), 255, np.uint8)
    assert lowgemm.conv(np.tile(x, (1, 1, 1, 8)), np.tile(w, (1, 1, 8, 1)))[0, 0, 0, 0] == np.int64(
        255 * 255 * 51200
    ).astype(np.int32)


X, W = np.zeros((1, 6, 6, 4), np.uint8), np.zeros((3, 3, 4, 2), np.int8)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image": X.astype(float)}, "^image: expected dtype"),
        ({"image": X[0]}, "^image: expected 4 dimensions"),
        ({"image": X[..., :3]}, "^image: expected 4 channels"),
        ({"image": X[:, :2]}, "^image: expected at least a window of 3"),
        ({"filters": W[0, 0]}, "^filters: expected one to three sizes"),
        ({"filters": W[..., :0]}, "^filters: expected filters with elements"),
        ({"groups": 3}, "^groups: expected a divisor of the 2"),
        ({"image_zero_point": 256}, "^image_zero_point: expected"),
        ({"filter_zero_point": [1, 2, 3]}, "^filter_zero_point: expected"),
        ({"stride": 0}, "^stride: expected"),
        ({"stride": (1, 2, 3)}, "^stride: expected one integer or 2"),
        ({"padding": (1, 2, 3)}, "^padding: expected one number"),
        ({"padding": [(1, 2, 3), 1]}, "^padding: expected pairs"),
        ({"padding": -1}, "^padding: expected"),
        ({"padding": [[1, 2], [3]]}, "^padding: expected pairs"),
        ({"padding": np.array(5)}, "^padding: expected an integer"),
        ({"stride": [[1, 2], [3]]}, "^stride: expected an integer"),
        ({"dilation": 1.5}, "^dilation: expected"),
        ({"channels": "middle"}, "^channels: expected"),
        ({"out": np.zeros((1, 4, 4, 2), np.int64)}, "^out: expected dtype"),
        ({"output": lowgemm.BiasAddition([1, 2, 3])}, "^output: BiasAddition"),
        ({"num_threads": 0}, "^num_threads: expected"),
    ],
)
def test_bad_arguments_are_named(change, match):
    with pytest.raises((TypeError, ValueError), match=match):
        lowgemm.conv(**{"image": X, "filters": W, **change})


@compiled
def test_explain_says_what_runs():
    w = lowgemm.pack_filters(W)
    three = lowgemm.pack_filters(W[:, :, :3])
    assert "patches gathered" in str(lowgemm.explain(X[..., :3].copy(), three, padding=1))
    assert "no copy" in str(lowgemm.explain(X, lowgemm.pack_filters(W[:1, :1])))
    assert "COPIED" in str(
        lowgemm.explain(np.ascontiguousarray(X.transpose(0, 3, 1, 2)), w, channels="first")
    )
    assert "depthwise" in str(lowgemm.explain(X, lowgemm.pack_filters(np.ones((3, 3, 1, 4), np.int8), 4)))
    wide = lowgemm.pack_filters(np.ones((3, 3, 4, 64), np.int8), 16)
    told = lowgemm.explain(np.zeros((1, 6, 6, 64), np.uint8), wide)
    assert told.kernel == "grouped" and "in vectors of groups" in str(told)
    # filters that have 8 bits no longer when their zero point is subtracted
    told = lowgemm.explain(np.zeros((1, 6, 6, 64), np.uint8), wide, filter_zero_point=-127)
    assert told.kernel != "grouped" and "in vectors of groups" not in str(told)


def test_a_remembered_call_is_for_equal_arguments_only():
    g = np.random.default_rng(0)
    image, packed = (
        integers(g, "uint8", (2, 9, 8, 6)),
        lowgemm.pack_filters(integers(g, "int8", (3, 3, 6, 4))),
    )
    plain = packed.to_array()
    stages = [lowgemm.BiasAddition(np.arange(4))]
    zeros = np.arange(4)

    def same(x=image, **options):
        expected = reference.conv(
            x, plain, **{"stride": (1, 1), "padding": ((0, 0),) * 2, "dilation": (1, 1), **options}
        )
        np.testing.assert_array_equal(lowgemm.conv(x, packed, **options), expected, strict=True)

    for _ in range(3):
        same()
        same(stride=(2, 1))
        same(padding=((1, 0), (0, 2)))
        same(output=stages)
        same(filter_zero_point=zeros)
        same(image.view(np.int8))
        same(image[:, ::2])
        same(image[:, ::-1])
        same(image.transpose(0, 2, 1, 3))
        with pytest.raises((TypeError, ValueError), match=r"^stride"):
            lowgemm.conv(image, packed, stride=True)
        with pytest.raises((TypeError, ValueError), match=r"^stride"):
            lowgemm.conv(image, packed, stride=(2.0, 1))
        with pytest.raises(ValueError, match=r"^groups"):
            lowgemm.conv(image, packed, groups=2)
        with pytest.raises(ValueError, match=r"^channels"):
            lowgemm.conv(image, packed, channels="second")
        zeros += 1
        stages[0] = lowgemm.BiasAddition(g.integers(-9, 9, 4))


def test_out_may_not_be_the_image():
    x, w = np.zeros((1, 4, 4, 2), np.uint8), lowgemm.pack_filters(np.ones((1, 1, 2, 2), np.int8))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"^out"):
            lowgemm.conv(x, w, output=lowgemm.SaturatingCast(np.uint8), out=x)
        frozen = np.zeros_like(x)
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match=r"^out"):
            lowgemm.conv(x, w, output=lowgemm.SaturatingCast(np.uint8), out=frozen)


def test_groups_are_put_together_where_the_kernel_gains_by_it():
    filters = lowgemm.pack_filters(np.ones((3, 3, 4, 32), np.int8), 8)
    for kernel in kernels.all_kernels():
        products, depth, columns = filters.packed_for(kernel, 0).shape if kernel.name in RUNS else (0, 0, 0)
        if products:
            assert columns == (32 if kernel.row_bytes else 16)
            assert products * columns == 32 and depth == 9 * columns


@pytest.mark.parametrize("kernel", RUNS)
def test_lines_of_a_depthwise_convolution_share_registers(kernel, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    g = np.random.default_rng(0)
    for taps, step, width in ((1, 1, 5), (2, 2, 6), (3, 1, 14), (5, 1, 40), (5, 2, 15), (5, 3, 9), (6, 2, 7)):
        image, filters = integers(g, "uint8", (2, 15, width, 20)), integers(g, "int8", (taps, taps, 1, 20))
        options = {"stride": (step, step), "padding": ((1, 2), (2, 1)), "dilation": (1, 1), "groups": 20}
        expected = reference.conv(image, filters, image_zero_point=9, **options)
        got = lowgemm.conv(image, filters, image_zero_point=9, **options)
        np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("kernel", RUNS)
@pytest.mark.parametrize("depth", [1, 4])
def test_loops_of_their_own_where_taps_are_apart(kernel, depth, monkeypatch):
    """Lines of windows that share lines of the image are as far from one another as taps are. Where the steps
    from window to window and from tap to tap have a common divisor, pixels between are left out, and the
    padding may end within them.
    """
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    g = np.random.default_rng([depth, RUNS.index(kernel)])
    for stride, dilation, taps in (
        ((1, 1), (2, 2), (3, 3)), ((2, 2), (2, 2), (3, 3)), ((1, 2), (3, 2), (3, 5)), ((4, 2), (2, 4), (2, 3)),
        ((3, 1), (2, 1), (3, 3)), ((6, 6), (3, 3), (3, 2)), ((2, 3), (2, 3), (1, 1)), ((2, 5), (4, 5), (5, 2)),
    ):  # fmt: skip
        channels = int(g.choice([64, 72, 80])) if depth > 1 else int(g.choice([5, 16, 50, 64, 70]))
        for size in ((13, 17), (7, 40), (1, 2)):
            padding = tuple(
                (int(g.integers(0, d * k)), d * k + int(g.integers(0, 3)))
                for d, k in zip(dilation, taps, strict=True)
            )
            image = integers(g, g.choice(["uint8", "int8"]), (2, *size, channels))
            filters = integers(g, "int8", (*taps, depth, channels))
            options = {
                "image_zero_point": int(g.integers(0, 128)), "filter_zero_point": 0, "stride": stride,
                "padding": padding, "dilation": dilation, "groups": channels // depth,
            }  # fmt: skip
            expected = reference.conv(image, filters, **options)
            for threads in (1, 2):
                got = lowgemm.conv(image, filters, num_threads=threads, **options)
                np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("kernel", RUNS)
def test_depthwise_convolutions_of_any_number_of_channels(kernel, monkeypatch):
    """The last of them may share a block of 64 with those before, or be a few registers; the image may be a
    part of another, so that nothing is behind its last pixel.
    """
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    g = np.random.default_rng(RUNS.index(kernel))
    for channels in (1, 15, 31, 48, 49, 63, 64, 65, 80, 96, 111, 112, 113, 120, 127, 128, 129, 192, 250):
        dtype = str(g.choice(["uint8", "int8"]))
        whole = integers(g, dtype, (1, 5, 9, channels + 7))
        filters = integers(g, "int8", (3, 2, 1, channels))
        options = {
            "image_zero_point": int(integers(g, dtype, ())), "stride": (1, int(g.integers(1, 3))),
            "padding": ((1, 1), (1, 0)), "dilation": (1, 1), "groups": channels,
            "filter_zero_point": int(g.choice([0, 0, 3, -128])),
        }  # fmt: skip
        for image in (whole[..., :channels].copy(), whole[..., 7:], whole[:, ::2, 1:, :channels]):
            got = lowgemm.conv(image, filters, **options)
            np.testing.assert_array_equal(got, reference.conv(image, filters, **options), strict=True)


def test_channels_may_be_a_member_of_an_enumeration():
    """Its value counts, in the first call and in those that are found again."""
    member = enum.Enum("Layout", {"FIRST": "first"}).FIRST
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 4, 6, 6), dtype=np.uint8)
    filters = lowgemm.pack_filters(rng.integers(-128, 128, (3, 3, 4, 5)).astype(np.int8))
    expected = lowgemm.conv(image, filters, channels="first")
    for _ in range(3):
        np.testing.assert_array_equal(lowgemm.conv(image, filters, channels=member), expected)
    with pytest.raises((TypeError, ValueError), match="channels"):
        lowgemm.conv(image, filters, channels=np.array([1, 2]))


@compiled
@pytest.mark.parametrize("kernel", RUNS)
def test_filters_are_held_packed_alone(kernel, monkeypatch):
    """Those that are packed at once; all are given back as they came, by another kernel's layout too, and
    filters that change later are not these.
    """
    g = np.random.default_rng(0)
    for axes in (1, 2, 3):
        for groups, depth, outputs in ((1, 3, 5), (1, 70, 33), (1, 1, 1), (3, 5, 6), (17, 1, 17), (8, 8, 64)):
            for dtype in ("uint8", "int8"):
                monkeypatch.setattr(lowgemm.config, "kernel", kernel)
                filters = integers(g, dtype, (*(1, 3, 2)[:axes], depth, outputs))
                given = filters.copy()
                packed = lowgemm.pack_filters(given, groups)
                given[...] = 0
                held = packed.packed_for(kernels.by_name(kernel), 0).nbytes
                assert packed.nbytes == (held if groups == 1 else filters.nbytes + held)
                monkeypatch.setattr(lowgemm.config, "kernel", RUNS[0])
                image = integers(g, "uint8", (1, *(4,) * axes, depth * groups))
                np.testing.assert_array_equal(
                    lowgemm.conv(image, packed, filter_zero_point=3),
                    lowgemm.conv(image, filters, groups=groups, filter_zero_point=3),
                )
                for same in (packed, pickle.loads(pickle.dumps(packed))):
                    np.testing.assert_array_equal(same.to_array(), filters, strict=True)
