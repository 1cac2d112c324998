"""Filters of a convolution, packed, and the product with images: channels last, any output pipeline.

A 1x1 filter is a plain product over the pixels, without a copy. A filter per channel (depthwise) has a loop of its
own: a product with one column would waste the tile. Everything else copies patches into a buffer of
`BLOCK_BYTES` and multiplies that, block by block, so memory stays bounded and the patches in cache.
Next file to open: `windows.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.gemm import gemm
from lowgemm.nn import windows
from lowgemm.nn.weighted import packed
from lowgemm.requantize import requantize

#: Bytes of patches (or of depthwise sums) held at a time: a part of level 2 of the caches of common CPUs.
BLOCK_BYTES = 1 << 18
#: Elements of the depthwise convolution's inner loop: a few vectors of 16, so that its start does not dominate.
TILE = 256


class Filters:
    """Filters of a two-dimensional convolution.

    Parameters
    ----------
    weight : ndarray of int8 or uint8, shape (filter height, filter width, channels / groups, outputs)
        Outputs are ordered by group. It was checked.
    groups : int
        Divides the outputs.

    Attributes
    ----------
    parts : list of slice
        Outputs that one product gives: a group's, or all of a depthwise convolution's. `run` wants a pipeline for each.
    depthwise : bool
        Whether each channel has one filter of its own.
    nbytes : int
        Bytes of packed weights.
    """

    def __init__(self, weight: np.ndarray, groups: int = 1) -> None:
        kh, kw, self.depth, self.outputs = weight.shape
        self.size, self.groups, self.channels = (kh, kw), groups, self.depth * groups
        self.depthwise = groups > 1 and self.depth == 1 and self.outputs == groups
        if self.depthwise:
            self.parts = [slice(0, self.outputs)]
            self._weight, self._taps = weight.reshape(kh * kw, self.outputs).astype(np.int32), (None, weight)
            # filters repeated for so many pixels that the inner loop is at least TILE long
            self._tile = -(-TILE // self.outputs)
            self.nbytes = self._weight.nbytes * (1 + self._tile)
            return
        per_group = self.outputs // groups
        self.parts = [slice(g * per_group, (g + 1) * per_group) for g in range(groups)]
        flat = weight.reshape(-1, self.outputs)
        self._packed = [packed(flat[:, part]) for part in self.parts]
        self.nbytes = sum(p.nbytes for p in self._packed)

    def run(
        self,
        x: np.ndarray,
        out: np.ndarray,
        stages: Sequence[Any],
        *,
        input_zero: int,
        weight_zero: int | np.ndarray,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        num_threads: int | None = None,
    ) -> None:
        """Convolve.

        Parameters
        ----------
        x : ndarray of int8 or uint8, shape (n, height, width, channels)
            Images.
        out : ndarray, shape (n, out height, out width, outputs)
            Where to: contiguous, of the pipeline's dtype.
        stages : sequence of pipelines
            One for each of `parts`; None or empty for the int32 sums.
        input_zero : int
            Zero point of `x`; what padding (top, bottom, left, right) stands for.
        weight_zero : int or ndarray of shape (outputs,)
            Zero point of the weights.
        stride, padding, dilation : tuple
            Checked, and `out` has the shape that follows.
        num_threads : int, optional
            For each product.
        """
        if out.size == 0:
            return
        geometry = (*out.shape[1:3], *self.size, *stride, padding[0], padding[2], *dilation)
        if self.depthwise:
            self._depthwise(x, out, stages[0], input_zero, weight_zero, geometry)
            return
        vector = isinstance(weight_zero, np.ndarray)

        def multiply(lhs: np.ndarray, g: int, to: np.ndarray) -> None:
            zero = weight_zero[self.parts[g]] if vector else weight_zero  # type: ignore[index]
            gemm(
                lhs, self._packed[g], lhs_zero_point=input_zero, rhs_zero_point=zero, output=stages[g] or None, out=to,
                num_threads=num_threads,
            )  # fmt: skip

        if self.size == (1, 1) and not any(padding):
            self._pointwise(x, out, stride, multiply)
        else:
            self._patches(x, out, input_zero, geometry, multiply)

    def _pointwise(self, x: np.ndarray, out: np.ndarray, stride: tuple[int, int], multiply: Any) -> None:
        # with a stride the rows of pixels stay separate matrices of a batch: still no copy
        if stride == (1, 1) and x.flags.c_contiguous:
            lhs, to = x.reshape(-1, self.channels), out.reshape(-1, self.outputs)
        else:
            lhs, to = x[:, :: stride[0], :: stride[1]], out
        for g, part in enumerate(self.parts):
            multiply(lhs[..., g * self.depth : (g + 1) * self.depth], g, to[..., part])

    def _patches(
        self, x: np.ndarray, out: np.ndarray, input_zero: int, geometry: tuple[int, ...], multiply: Any
    ) -> None:
        x = np.ascontiguousarray(x)
        flat, to = x.reshape(-1).view(np.uint8), out.reshape(-1, self.outputs)
        row = math.prod(self.size) * self.depth
        pixels = to.shape[0]
        block = min(pixels, max(1, BLOCK_BYTES // row))
        buffer = np.empty(block * row, np.uint8)
        matrix = buffer.view(x.dtype).reshape(block, row)
        copy, zero = windows.patches(), input_zero & 255
        for g, part in enumerate(self.parts):
            for first in range(0, pixels, block):
                count = min(block, pixels - first)
                copy(flat, buffer, first, count, *x.shape[1:], *geometry, g * self.depth, self.depth, zero)
                multiply(matrix[:count], g, to[first : first + count, part])

    def _depthwise(
        self,
        x: np.ndarray,
        out: np.ndarray,
        stages: Any,
        input_zero: int,
        weight_zero: int | np.ndarray,
        geometry: tuple[int, ...],
    ) -> None:
        x = np.ascontiguousarray(x)
        flat, to = x.reshape(-1).view(np.uint8), out.reshape(-1, self.outputs)
        ow = out.shape[2]
        lines = out.shape[0] * out.shape[1]
        block = min(lines, max(1, BLOCK_BYTES // (4 * ow * self.outputs)))
        acc = np.empty((block * ow, self.outputs), np.int32)
        flip = 128 if x.dtype == np.int8 else 0
        taps, loop = self._taps_of(weight_zero), windows.depthwise()
        for first in range(0, lines, block):
            count = min(block, lines - first)
            loop(
                flat, taps, self._tile, acc.reshape(-1), first, count, *x.shape[1:3], *geometry, flip, input_zero + flip
            )  # fmt: skip
            target = to[first * ow : (first + count) * ow]
            if stages:
                requantize(acc[: count * ow], stages, out=target)
            else:
                target[...] = acc[: count * ow]

    def _taps_of(self, weight_zero: int | np.ndarray) -> np.ndarray:
        """Weights less their zero point, repeated; those of the last zero point are kept."""
        key = weight_zero.tobytes() if isinstance(weight_zero, np.ndarray) else weight_zero
        known, taps = self._taps
        if known != key:
            taps = np.tile((self._weight - weight_zero).astype(np.int32), (1, self._tile))
            self._taps = (key, taps)  # one assignment, so threads see a pair that fits
        return taps
