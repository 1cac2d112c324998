"""The layers' loops as C functions: ``routine(params, src, src2, dst, space)``, run one after another by `program.py`.

int8 is taken as uint8 with the top bit flipped (``v = (u ^ flip) - flip``), so each is compiled once. Parameters are
int64 numbers. Loops count in unsigned integers: Numba wraps signed indices around, and such loops do not vectorise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from lowgemm.jit.memory import as_address, copy_bytes, load_f64, load_i64, offset, pointer_at, store_32
from lowgemm.jit.routine import call_address, compile_c, signature
from lowgemm.jit.stamp import source_stamp

_SIGNATURE = signature("ppppp")
#: Bytes behind a buffer that `patches` may read or write: its copies are whole vectors.
SLACK = 64
#: Elements of the depthwise convolution's inner loop: a few vectors of 16, so that its start does not dominate.
TILE = 256
_u64 = np.uint64


@numba.njit(nogil=True)
def _copy(a, source, b, to, count):
    s, t = _u64(source), _u64(to)
    for i in range(_u64(count)):
        b[t + i] = a[s + i]


@numba.njit(nogil=True)
def _fill(b, to, count, value):
    t = _u64(to)
    for i in range(_u64(count)):
        b[t + i] = value


@numba.njit(nogil=True, error_model="numpy")
def _quantize(x, scale, zero_point, low, high, out):
    """As `lowgemm.quantization.quantize`; returns the number of NaNs."""
    nans = 0
    for i in range(x.size):
        v = np.float64(x[i])
        t = np.rint(v / scale) + zero_point
        t = t if t < high else high  # a NaN becomes `high`: the conversion below is always defined
        t = t if t > low else low
        nans += v != v
        out[i] = np.uint8(np.int32(t) & 255)
    return nans


@numba.njit(nogil=True)
def _add_up(x, at, sums, count, flip):
    s = _u64(at)
    for c in range(_u64(count)):
        sums[c] += np.int32(x[s + c]) ^ flip


@numba.njit(nogil=True)
def _largest(x, at, sums, count, flip):
    s = _u64(at)
    for c in range(_u64(count)):
        sums[c] = max(sums[c], np.int32(x[s + c]) ^ flip)


@numba.njit(nogil=True, error_model="numpy")
def _means(sums, count, area, flip, out, at):
    """Nearest integers to ``sum / area - flip``, ties away from zero; float64 holds every sum exactly."""
    t, wide = _u64(at), 1.0 / np.float64(2 * area)
    for c in range(_u64(count)):
        twice = np.float64(2 * (sums[c] - area * flip))
        # floor((2 |sum| + area) / (2 area)): the quotient is no closer to the next integer than 1 / (2 area)
        v = np.floor((abs(twice) + area + 0.5) * wide)
        out[t + c] = np.uint8(np.int32(v if twice >= 0 else -v) & 255)


@numba.njit(nogil=True)
def _tap(x, source, weight, at_weight, acc, to, count, flip, zero):
    s, w, t = _u64(source), _u64(at_weight), _u64(to)
    for c in range(_u64(count)):
        v = (np.int32(x[s + c]) ^ flip) - zero
        acc[t + c] += np.int32(v * weight[w + c])


def _make_multiply(stamp: int) -> Any:
    @compile_c(_SIGNATURE)
    def multiply(params, src, src2, dst, space):
        """A planned product: routine, plan, panels, sums, zero points, addresses of vectors of zero points."""
        _ = stamp
        p = numba.carray(params, (8,), np.int64)
        call_address(
            p[0],
            (p[1], as_address(src), p[2], p[3], as_address(dst), as_address(space), p[4], p[5], p[6], p[7]),
        )

    return multiply


def _make_quantize(stamp: int) -> Any:
    @compile_c(_SIGNATURE)
    def quantize(params, src, src2, dst, space):
        """Real numbers to integers; the number of NaNs goes to `src2`. Parameters are float64."""
        _ = stamp
        count = int(load_f64(params, 0))
        x, out = numba.carray(src, (count,), np.float32), numba.carray(dst, (count,), np.uint8)
        nans = _quantize(
            x, load_f64(params, 1), load_f64(params, 2), load_f64(params, 3), load_f64(params, 4), out
        )
        store_32(src2, 0, min(nans, 1 << 30))

    return quantize


def _make_pad(stamp: int) -> Any:
    @compile_c(_SIGNATURE)
    def pad(params, src, src2, dst, space):
        """Images with a margin: images, height, bytes of a row, top, bottom, bytes left, right, what it holds."""
        _ = stamp
        p = numba.carray(params, (8,), np.int64)
        images, height, row, top, bottom, left, right, zero = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
        width = left + row + right
        size = images * (top + height + bottom) * width
        x, out = numba.carray(src, (images * height * row,), np.uint8), numba.carray(dst, (size,), np.uint8)
        value = np.uint8(zero)
        at = 0
        for i in range(images):
            _fill(out, at, top * width, value)
            at += top * width
            for y in range(height):
                _fill(out, at, left, value)
                _copy(x, (i * height + y) * row, out, at + left, row)
                _fill(out, at + left + row, right, value)
                at += width
            _fill(out, at, bottom * width, value)
            at += bottom * width

    return pad


#: Parameters of `patches`, in order.
PATCHES = [
    "first",
    "count",
    "height",
    "width",
    "channels",
    "oh",
    "ow",
    "taps_y",
    "taps_x",
    "run",
    "sy",
    "sx",
    "dy",
    "dx",
    "channel",
    "row_bytes",
]


def _make_patches(stamp: int) -> Any:
    fields = len(PATCHES)

    @compile_c(_SIGNATURE)
    def patches(params, src, src2, dst, space):
        """Rows `first` ... of the matrix of patches of padded images.

        Each tap (or row of taps, where they lie side by side) is copied in vectors that may write too much: what
        comes next overwrites it, and behind a row's end it meets weights that are zero.
        """
        _ = stamp
        p = numba.carray(params, (fields,), np.int64)
        first, count, height, width, channels, oh, ow = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
        taps_y, taps_x, run, sy, sx, dy, dx, channel, row_bytes = (
            p[7], p[8], p[9], p[10], p[11], p[12], p[13], p[14], p[15],
        )  # fmt: skip
        image = first // (oh * ow)
        oy = (first - image * oh * ow) // ow
        ox = first - (image * oh + oy) * ow
        for r in range(count):
            corner = ((image * height + oy * sy) * width + ox * sx) * channels + channel
            at = r * row_bytes
            for ky in range(taps_y):
                for kx in range(taps_x):
                    source = corner + (ky * dy * width + kx * dx) * channels
                    if run <= 16:
                        copy_bytes(offset(dst, at), offset(src, source), 16)
                    else:
                        j = 0
                        while j < run:
                            copy_bytes(offset(dst, at + j), offset(src, source + j), 32)
                            j += 32
                    at += run
            ox += 1
            if ox == ow:
                ox = 0
                oy += 1
                if oy == oh:
                    oy = 0
                    image += 1

    return patches


#: Parameters of `depthwise`, in order.
DEPTHWISE = [
    "lines",
    "block",
    "height",
    "width",
    "channels",
    "oh",
    "ow",
    "taps_y",
    "taps_x",
    "sy",
    "sx",
    "dy",
    "dx",
    "top",
    "left",
    "flip",
    "zero",
    "apply",
    "stages",
    "count",
    "item",
]


def _make_depthwise(stamp: int) -> Any:
    fields = len(DEPTHWISE)

    @compile_c(_SIGNATURE)
    def depthwise(params, src, src2, dst, space):
        """A convolution in which each channel has a filter of its own, and the output pipeline on its sums.

        The weights are (taps, tile * channels) int32, each filter repeated for `tile` pixels. With a stride of 1
        neighbouring pixels of a tap lie side by side in x and in the sums, so the inner loop runs over them at once.
        """
        _ = stamp
        p = numba.carray(params, (fields,), np.int64)
        lines, block, height, width, channels, oh, ow = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
        kh, kw, sy, sx, dy, dx, top, left = p[7], p[8], p[9], p[10], p[11], p[12], p[13], p[14]
        flip, zero, item = np.int32(p[15]), np.int32(p[16]), p[20]
        tile = (TILE + channels - 1) // channels
        x = numba.carray(src, (lines // oh * height * width * channels,), np.uint8)
        acc = numba.carray(space, (block * ow * channels,), np.int32)
        weight = numba.carray(src2, (kh * kw * tile * channels,), np.int32)
        step = tile if sx == 1 else 1
        for first in range(0, lines, block):
            rows = min(block, lines - first)
            for i in range(rows * ow * channels):
                acc[i] = 0
            for r in range(rows):
                image = (first + r) // oh
                oy = first + r - image * oh
                for ky in range(kh):
                    y = oy * sy - top + ky * dy
                    if y < 0 or y >= height:
                        continue
                    for kx in range(kw):
                        shift = kx * dx - left
                        begin = 0 if shift >= 0 else (-shift + sx - 1) // sx
                        end = 0 if width <= shift else min(ow, (width - shift - 1) // sx + 1)
                        for ox in range(begin, end, step):
                            _tap(
                                x, ((image * height + y) * width + ox * sx + shift) * channels, weight,
                                (ky * kw + kx) * tile * channels, acc, (r * ow + ox) * channels,
                                min(step, end - ox) * channels, flip, zero,
                            )  # fmt: skip
            sums, line = as_address(space), 4 * channels
            out = as_address(dst) + first * ow * channels * item
            tile_at = sums + 4 * block * ow * channels
            call_address(
                p[17],
                (p[18], p[19], sums, line, 4, rows * ow, channels, out, channels * item, item, tile_at),
            )

    return depthwise


#: Parameters of `pool`, in order.
POOL = [
    "images",
    "height",
    "width",
    "channels",
    "oh",
    "ow",
    "kh",
    "kw",
    "sy",
    "sx",
    "top",
    "left",
    "flip",
    "average",
]


def _make_pool(stamp: int) -> Any:
    fields = len(POOL)

    @compile_c(_SIGNATURE)
    def pool(params, src, src2, dst, space):
        """Largest value or mean of windows."""
        _ = stamp
        p = numba.carray(params, (fields,), np.int64)
        n, height, width, channels, oh, ow = p[0], p[1], p[2], p[3], p[4], p[5]
        kh, kw, sy, sx, top, left, average = p[6], p[7], p[8], p[9], p[10], p[11], p[13]
        flip = np.int32(p[12])
        x = numba.carray(src, (n * height * width * channels,), np.uint8)
        out = numba.carray(dst, (n * oh * ow * channels,), np.uint8)
        sums = numba.carray(space, (channels,), np.int32)
        at = 0
        for i in range(n):
            for oy in range(oh):
                y0, y1 = max(oy * sy - top, 0), min(oy * sy - top + kh, height)
                for ox in range(ow):
                    x0, x1 = max(ox * sx - left, 0), min(ox * sx - left + kw, width)
                    for c in range(channels):
                        sums[c] = 0
                    for y in range(y0, y1):
                        for xx in range(x0, x1):
                            source = ((i * height + y) * width + xx) * channels
                            if average:
                                _add_up(x, source, sums, channels, flip)
                            else:
                                _largest(x, source, sums, channels, flip)
                    if average:
                        _means(sums, channels, (y1 - y0) * (x1 - x0), flip, out, at)
                    else:
                        for c in range(channels):
                            out[at + c] = sums[c] ^ flip
                    at += channels

    return pool


def _make_add(stamp: int) -> Any:
    @compile_c(_SIGNATURE)
    def add(params, src, src2, dst, space):
        """Sums of 8-bit integers from a table of all pairs: address of the table, number of elements."""
        _ = stamp
        count = load_i64(params, 1)
        a, b = numba.carray(src, (count,), np.uint8), numba.carray(src2, (count,), np.uint8)
        out, table = (
            numba.carray(dst, (count,), np.uint8),
            numba.carray(pointer_at(params, 0), (1 << 16,), np.uint8),
        )
        for i in range(count):
            out[i] = table[(np.int64(a[i]) << 8) | np.int64(b[i])]

    return add


_FACTORIES: dict[str, Callable[[int], Any]] = {
    "multiply": _make_multiply,
    "quantize": _make_quantize,
    "pad": _make_pad,
    "patches": _make_patches,
    "depthwise": _make_depthwise,
    "pool": _make_pool,
    "add": _make_add,
}


@functools.cache
def routine(name: str) -> Any:
    """Compiled C function of that name."""
    return _FACTORIES[name](source_stamp("nn"))
