"""The loops over windows: copying patches for a product, and the depthwise convolution (see also `routines.py`).

All take int8 as uint8 with the top bit flipped (``v = (u ^ flip) - flip``), so each is compiled once.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lowgemm.jit import disk_cache
from lowgemm.jit.stamp import source_stamp


def _make_patches(stamp: int) -> Any:
    @disk_cache.njit(nogil=True)
    def patches(
        x, to, first, count, height, width, channels, oh, ow, kh, kw, sy, sx, top, left, dy, dx, c0, cg, zero
    ):
        """Rows `first` ... of the matrix of patches; what padding gives is `zero`. x and to are flat."""
        _ = stamp
        run = kw * cg
        for r in range(count):
            p = first + r
            image = p // (oh * ow)
            rest = p - image * oh * ow
            oy = rest // ow
            x0 = (rest - oy * ow) * sx - left
            inside = dx == 1 and cg == channels and x0 >= 0 and x0 + kw <= width
            for ky in range(kh):
                y = oy * sy - top + ky * dy
                at = (r * kh + ky) * run
                if y < 0 or y >= height:
                    for j in range(run):
                        to[at + j] = zero
                    continue
                line = (image * height + y) * width
                if inside:  # a patch's row is contiguous
                    source, start = np.uint64((line + x0) * channels), np.uint64(at)
                    for j in range(np.uint64(run)):
                        to[start + j] = x[source + j]
                    continue
                for kx in range(kw):
                    xx = x0 + kx * dx
                    if xx < 0 or xx >= width:
                        for j in range(cg):
                            to[at + kx * cg + j] = zero
                    else:
                        source, start = np.uint64((line + xx) * channels + c0), np.uint64(at + kx * cg)
                        for j in range(np.uint64(cg)):
                            to[start + j] = x[source + j]

    return patches


def _make_depthwise(stamp: int) -> Any:
    @disk_cache.njit(nogil=True)
    def depthwise(
        x,
        weight,
        tile,
        acc,
        first,
        rows,
        height,
        width,
        oh,
        ow,
        kh,
        kw,
        sy,
        sx,
        top,
        left,
        dy,
        dx,
        flip,
        zero,
    ):
        """Sums of `rows` output rows of a convolution in which each channel has a filter of its own.

        x and acc are flat; weight is (taps, tile * channels) int32, each filter repeated for `tile` pixels. With a
        stride of 1 neighbouring pixels of a tap lie side by side in x and in acc, so the inner loop runs over
        `tile` pixels at once.
        """
        _ = stamp
        channels = weight.shape[1] // tile
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
                    tap = ky * kw + kx
                    shift = kx * dx - left
                    begin = 0 if shift >= 0 else (-shift + sx - 1) // sx
                    end = 0 if width <= shift else min(ow, (width - shift - 1) // sx + 1)
                    step = tile if sx == 1 else 1
                    for ox in range(begin, end, step):
                        # unsigned, because Numba wraps signed indices around, and such loops do not vectorise
                        length = np.uint64(min(step, end - ox) * channels)
                        source = np.uint64(((image * height + y) * width + ox * sx + shift) * channels)
                        to = np.uint64((r * ow + ox) * channels)
                        for c in range(length):
                            v = (np.int32(x[source + c]) ^ flip) - zero
                            acc[to + c] += np.int32(v * weight[tap, c])

    return depthwise


@functools.cache
def patches() -> Any:
    """Compiled loop that copies patches."""
    return _make_patches(source_stamp("nn"))


@functools.cache
def depthwise() -> Any:
    """Compiled loop of the depthwise convolution."""
    return _make_depthwise(source_stamp("nn"))
