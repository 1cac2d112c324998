"""Convolutions that read a padded copy of the image, beside the definition; and which ones do."""

from __future__ import annotations

import types

import numba
import numpy as np
import pytest

import lowgemm
from lowgemm import kernels, reference
from lowgemm.conv import Prepared
from lowgemm.engine import pixels, planner

RUNS = [k.name for k in kernels.all_kernels() if k.scatters and not kernels.why_not(k)]
pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="plans are of compiled code")


def integers(g, dtype, shape):
    info = np.iinfo(dtype)
    return g.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def problem(g, step):
    """An image, filters, groups and options: taps of a few steps of the depth, in windows that overlap
    or leave gaps, and that may see padding alone.
    """
    axes = int(g.integers(1, 3))
    groups = int(g.choice([1, 1, 2]))
    taps = tuple(g.integers(1, 5, axes).tolist())
    stride, dilation = (tuple(g.integers(1, 4, axes).tolist()) for _ in range(2))
    padding = tuple((int(a), int(b)) for a, b in g.integers(0, 5, (axes, 2)))
    size = tuple(
        max(1, d * (k - 1) + 1 - sum(p), int(g.integers(1, 19)))
        for d, k, p in zip(dilation, taps, padding, strict=True)
    )
    channels, outputs = (
        step * int(g.integers(1, 3 if step == 64 else 20)),
        groups * int(g.choice([1, 16, 17, 33, 48])),
    )
    dtypes = g.choice(["uint8", "int8"], 2)
    image = integers(g, dtypes[0], (int(g.integers(1, 4)), *size, channels * groups))
    filters = integers(g, dtypes[1], (*taps, channels, outputs))
    zeros = [0, int(integers(g, dtypes[1], ())), integers(g, dtypes[1], outputs).astype(int)]
    options = {
        "image_zero_point": int(integers(g, dtypes[0], ())), "filter_zero_point": zeros[g.integers(3)],
        "stride": stride, "padding": padding, "dilation": dilation,
    }  # fmt: skip
    return image, filters, groups, options


def stages(g, rows, outputs):
    """No stages; those that the kernel does itself; and those that run on a tile, one of them by rows."""
    scale = 2.0 ** -g.uniform(4, 12, outputs)
    bias = lowgemm.BiasAddition(g.integers(-3000, 3000, outputs))
    by_row = lowgemm.BiasAddition(g.integers(-9000, 9000, rows), axis=0)
    requantize = lowgemm.Requantize(scale, 3, g.choice(["uint8", "int8"]), rounding="onnx")
    return [None, [bias, requantize], [bias, lowgemm.Dequantize(scale)], [by_row, bias]][g.integers(4)]


@pytest.mark.parametrize("tall", [32, 1024])
@pytest.mark.parametrize("kernel", RUNS)
def test_equals_its_definition(kernel, tall, monkeypatch):
    """In blocks of few lines and of many."""
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    monkeypatch.setattr(planner, "pays_as_grids", lambda *args: True)
    monkeypatch.setattr(pixels, "TALL", tall)
    read_so = 0
    for seed in range(60):
        g = np.random.default_rng([seed, tall])
        image, filters, groups, options = problem(g, 64 if seed % 3 == 0 else 4)
        sums = reference.conv(image, filters, groups=groups, **options)
        output = stages(g, sums.size // sums.shape[-1], sums.shape[-1])
        expected = reference.conv(image, filters, groups=groups, output=output, **options)
        for threads in (1, 2):
            packed = lowgemm.pack_filters(filters, groups)
            for _ in range(2):  # the second is entered another way
                got = lowgemm.conv(image, packed, output=output, num_threads=threads, **options)
                np.testing.assert_array_equal(got, expected, strict=True)
        zeros = options.pop("image_zero_point"), options.pop("filter_zero_point")
        known = Prepared(packed, image.shape, image.dtype, zeros, **options, output=output, num_threads=1)
        read_so += known.plan(image.strides).p.steps_at != 0
    # another kernel takes what would not pay
    assert read_so > (5 if kernels.by_name(kernel).fallback else 30)


@pytest.mark.parametrize("kernel", RUNS)
def test_blocks_may_begin_within_a_line(kernel, monkeypatch):
    """As they do where columns are shared out among threads, too."""
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    monkeypatch.setattr(planner, "pays_as_grids", lambda *args: True)

    def cut(k, m, n, depth, *others):
        return 32, 64, depth, -(-m // 32), -(-n // 64), 1, 1, 0

    monkeypatch.setattr(planner, "block_sizes", cut)
    inside_lines = 0
    for seed in range(8):
        g = np.random.default_rng(seed)
        image, filters = integers(g, "uint8", (2, 13, 9, 64)), integers(g, "int8", (3, 3, 64, 128))
        stride, padding = (1, int(g.integers(1, 3))), ((1, 1), tuple(g.integers(0, 3, 2).tolist()))
        options = {"stride": stride, "padding": padding, "dilation": (1, 1), "filter_zero_point": 5}
        sums = reference.conv(image, filters, **options)
        output = stages(g, sums.size // 128, 128)
        expected = reference.conv(image, filters, output=output, **options)
        packed = lowgemm.pack_filters(filters)
        for threads in (1, 2):
            known = Prepared(packed, image.shape, image.dtype, (0, 5), stride, padding, 1, output, threads)
            p = known.plan(image.strides).p
            assert p.steps_at and p.mc == 32 and p.plane_blocks > 1
            inside_lines += p.mc % p.line_rows > 0
            np.testing.assert_array_equal(known.run(image), expected, strict=True)
    assert inside_lines > 4


@pytest.mark.parametrize("kernel", RUNS)
def test_images_that_are_parts_of_others(kernel, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    monkeypatch.setattr(planner, "pays_as_grids", lambda *args: True)
    g = np.random.default_rng(0)
    whole = integers(g, "uint8", (3, 20, 19, 150))
    filters = integers(g, "int8", (3, 3, 128, 32))
    parts = [whole[::2, 2:17:2, 3:15, 1:129], whole[:, ::3, ::2, 20:148], whole[:1, :, 1:, :128]]
    parts += [np.broadcast_to(whole[:1, :1, :1, :128], (2, 7, 9, 128))]  # one pixel
    parts += [np.broadcast_to(whole[:1, :1, :, :128], (2, 7, 19, 128))]  # one line
    for part in parts:
        np.testing.assert_array_equal(
            lowgemm.conv(part, filters, padding=1, stride=(1, 2), image_zero_point=77),
            reference.conv(
                part, filters, padding=((1, 1),) * 2, stride=(1, 2), dilation=(1, 1), image_zero_point=77
            ),
        )


def plan(images, size, channels, taps, outputs, *, stride=1, padding=1, dilation=1, output=None):
    filters = lowgemm.pack_filters(np.ones((taps, taps, channels, outputs), np.int8))
    shape = (images, size, size, channels)
    known = Prepared(filters, shape, np.dtype(np.uint8), (0, 0), stride, padding, dilation, output, 1)
    return known.plan((size * size * channels, size * channels, channels, 1))


@pytest.mark.parametrize("kernel", RUNS)
def test_a_step_must_lie_in_one_tap_and_be_seen_again(kernel, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    for channels in (128, 64, 96, 8):
        assert plan(1, 28, channels, 3, 32).p.steps_at
    assert not plan(1, 28, 6, 3, 32).p.steps_at  # one step and a half
    assert not plan(1, 28, 128, 2, 512, stride=2, padding=0).p.steps_at  # each pixel is seen once
    assert not plan(1, 28, 128, 1, 128, stride=2, padding=0).p.steps_at  # one tap


def test_others_gather_patches(monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", "portable")
    assert not plan(1, 28, 128, 3, 128).p.steps_at


def asked(images, size, taps, channels, outputs, dilation=1, direct=1, piece=64):
    """What the rules ask of a plan, for padding that keeps the size."""
    ahead = (taps - 1) * dilation
    return types.SimpleNamespace(
        m=images * size * size, n=outputs, depth=taps * taps * channels, plane_rows=size * size,
        line_rows=size, grid_width=size + ahead, grids=1, lines_ahead=ahead,
        pixel_bytes=channels, piece_bytes=piece, batch=1, direct=direct,
    )  # fmt: skip


#: What the rules ask of a kernel's template.
AMX, VNNI = types.SimpleNamespace(mr=32, row_bytes=64), types.SimpleNamespace(mr=8, row_bytes=0)
#: Rows of a block at most, and whether it pays; new time by old, from one core of a Xeon.
MEASURED = [
    (asked(1, 28, 3, 128, 128), 1024, True),  # 0.65
    (asked(1, 28, 3, 128, 512, dilation=2), 1024, True),  # 0.85
    (asked(1, 14, 3, 256, 1024), 1024, True),  # 0.90
    (asked(8, 14, 3, 256, 256), 1024, True),  # 0.80
    (asked(4, 10, 3, 128, 128), 1024, True),  # 0.80
    (asked(1, 7, 3, 512, 512), 1024, True),  # 0.90
    (asked(8, 7, 3, 512, 512), 1024, False),  # 1.12
    (asked(8, 4, 3, 512, 512), 1024, False),  # 2.0
    (asked(1, 14, 3, 256, 256, dilation=4), 1024, False),  # 1.10
    # narrow pieces
    (asked(1, 80, 3, 96, 24, piece=48), 1024, True),  # 0.67
    (asked(1, 28, 3, 100, 64, piece=20), 1024, True),  # 0.81
    # stages on tiles
    (asked(1, 28, 3, 128, 128, direct=0), 64, True),  # 0.92
    (asked(1, 56, 3, 64, 128, direct=0), 64, True),  # 0.90
    (asked(1, 14, 3, 256, 1024, direct=0), 64, False),  # 1.07
    (asked(8, 14, 3, 256, 256, direct=0), 64, False),  # 1.04
]


#: The same for kernels of panels, with AVX512-VNNI.
OF_PANELS = [
    (asked(1, 56, 3, 64, 64), True),  # 0.93
    (asked(1, 80, 3, 32, 32), True),  # 0.76
    (asked(1, 20, 3, 24, 40), True),  # 0.86
    (asked(1, 112, 3, 16, 16), True),  # 0.61
    (asked(1, 28, 3, 128, 128), False),  # 1.01
    (asked(1, 14, 3, 256, 256), False),  # 1.12
    (asked(1, 7, 3, 512, 512), False),  # 1.9
]


@pytest.mark.parametrize(("p", "pays"), OF_PANELS)
def test_which_kernels_of_panels_read_from_grids(p, pays):
    lines = pixels.lines_of_a_block(p, 1, 1, 256, VNNI)
    blocks = -(-p.plane_rows // (lines * p.line_rows))
    assert pixels.pays_as_grids(p, blocks, 1, lines * p.line_rows, p.n, VNNI) == pays


@pytest.mark.parametrize(("p", "most", "pays"), MEASURED)
def test_which_are_read_from_grids(p, most, pays):
    planes = p.m // p.plane_rows
    lines = pixels.lines_of_a_block(p, planes, 1, most, AMX)
    blocks = planes * -(-p.plane_rows // (lines * p.line_rows))
    assert pixels.pays_as_grids(p, blocks, 1, lines * p.line_rows, p.n, AMX) == pays


def test_threads_get_equal_lines():
    whole = asked(1, 28, 3, 128, 128)
    assert pixels.lines_of_a_block(whole, 1, 1, 1024, AMX) == 28
    assert pixels.lines_of_a_block(whole, 1, 2, 1024, AMX) == 7
    assert pixels.lines_of_a_block(whole, 1, 2, 100, AMX) == 2  # 3 would give one thread 15 of 28
    assert pixels.lines_of_a_block(whole, 1, 1, 27, AMX) == 0


@pytest.mark.parametrize("kernel", RUNS)
def test_explain_says_so(kernel, monkeypatch):
    monkeypatch.setattr(lowgemm.config, "kernel", kernel)
    x, w = np.zeros((1, 28, 28, 64), np.uint8), lowgemm.pack_filters(np.ones((3, 3, 64, 32), np.int8))
    text = str(lowgemm.explain(x, w, padding=1))
    assert "each pixel copied once for a block" in text and "2 of 30 rows are computed in vain" in text
    assert "grids of pixels" in text and "patches" not in text
