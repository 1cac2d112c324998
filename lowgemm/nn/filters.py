"""Filters of a convolution, packed, and the product with images: channels last, any output pipeline.

A 1x1 filter is a plain product over the pixels, without a copy. A filter per channel (depthwise) has a loop
of its own: a product with one column would waste the tile. Everything else copies patches into a buffer of
`BLOCK_BYTES` and multiplies that, block by block, so memory stays bounded and the patches in cache. Next file
to open: `routines.py`, the loops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

from lowgemm.gemm import gemm
from lowgemm.nn import reference, routines
from lowgemm.nn.weighted import packed
from lowgemm.nn.windows import Windows
from lowgemm.output.apply import TILE_COLS, TILE_ROWS, apply
from lowgemm.output.check import check_pipeline
from lowgemm.output.pipeline import compile_pipeline
from lowgemm.reference import apply_pipeline

#: Bytes of patches held at a time: a part of level 2 of the caches of common CPUs.
BLOCK_BYTES = 1 << 18
#: Bytes of the depthwise convolution's sums at a time.
SUMS_BYTES = 1 << 15
#: Bytes of padded images at a time, one image at least.
IMAGE_BYTES = 1 << 20
#: Where in the parameters of `routines.patches` the block is said, all of whose fields are int64.
_FIRST, _COUNT = ((routines.PATCHES.names or ()).index(name) for name in ("first", "count"))


class DepthwiseWork(NamedTuple):
    """What `routines.depthwise` needs beside images and result.

    Attributes
    ----------
    params : ndarray
        Its record.
    taps : ndarray of int32
        Its weights.
    space : int
        Bytes of scratch memory.
    held : tuple
        What the record's addresses point into.
    """

    params: np.ndarray
    taps: np.ndarray
    space: int
    held: tuple[Any, ...]


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
        Outputs that one product gives: a group's, or all of a depthwise convolution's. `run` wants a pipeline
        for each.
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
            self._tile = -(-routines.TILE // self.outputs)
            self.nbytes = self._weight.nbytes * (1 + self._tile)
            return
        per_group = self.outputs // groups
        self.parts = [slice(g * per_group, (g + 1) * per_group) for g in range(groups)]
        flat = weight.reshape(-1, self.outputs)
        self._packed = [packed(flat[:, part]) for part in self.parts]
        self._params: tuple[Windows | None, list[np.ndarray]] = (None, [])
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
        if numba.config.DISABLE_JIT:
            self._run_slowly(x, out, stages, input_zero, weight_zero, stride, padding, dilation)
            return
        windows = Windows(x.shape, out.shape[1:3], self.size, stride, padding, dilation)
        if self.depthwise:
            self._depthwise(x, out, stages[0], input_zero, weight_zero, windows)
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
            self._patches(x, out, input_zero, windows, multiply)

    def depthwise_work(
        self, windows: Windows, dtype: np.dtype, stages: Any, input_zero: int, weight_zero: int | np.ndarray
    ) -> DepthwiseWork:
        """What `routines.depthwise` needs for images of `dtype`. Without `stages` it gives the int32 sums."""
        row = windows.out[1] * self.outputs
        block = min(windows.shape[0] * windows.out[0], max(1, SUMS_BYTES // (4 * row)))
        size = (block * windows.out[1], self.outputs)
        checked, result = check_pipeline(stages or None, *size)
        pipeline = compile_pipeline(checked, result, fold_bias=False, size=size, contiguous=True)
        table = np.array(pipeline.addresses(), np.int64)
        flip = 128 if dtype == np.int8 else 0
        params = routines.depthwise.record(
            **windows.fields(), block=block, flip=flip, zero=input_zero + flip, apply=apply.address,
            stages=table.ctypes.data, count=table.size // 2, item=result.itemsize,
        )  # fmt: skip
        space = 4 * (block * row + TILE_ROWS * TILE_COLS)
        return DepthwiseWork(params, self._taps_of(weight_zero), space, (pipeline, checked, table))

    def _pointwise(self, x: np.ndarray, out: np.ndarray, stride: tuple[int, int], multiply: Any) -> None:
        # with a stride the rows of pixels stay separate matrices of a batch: still no copy
        if stride == (1, 1) and x.flags.c_contiguous:
            lhs, to = x.reshape(-1, self.channels), out.reshape(-1, self.outputs)
        else:
            lhs, to = x[:, :: stride[0], :: stride[1]], out
        for g, part in enumerate(self.parts):
            multiply(lhs[..., g * self.depth : (g + 1) * self.depth], g, to[..., part])

    def _patches(
        self, x: np.ndarray, out: np.ndarray, input_zero: int, windows: Windows, multiply: Any
    ) -> None:
        """Block by block of patches; images with padding, or in another order of memory, are copied some at a time."""
        number, height, width, channels = windows.shape
        top, bottom, left, right = windows.padding
        shape = (height + top + bottom, width + left + right, channels)
        copied = shape != x.shape[1:] or not (x.flags.c_contiguous or x.nbytes <= IMAGE_BYTES)
        if not copied:
            at_once, images = number, np.ascontiguousarray(x)
        else:
            at_once = min(number, max(1, IMAGE_BYTES // math.prod(shape)))
            images = np.full((at_once, *shape), input_zero, x.dtype)
            inside = images[:, top : top + height, left : left + width]
        row, pixels = self.size[0] * self.size[1] * self.depth, windows.out[0] * windows.out[1]
        block = min(at_once * pixels, max(1, BLOCK_BYTES // row))
        patches = np.empty(block * row + routines.SLACK, x.dtype)
        matrix = patches[: block * row].reshape(block, row)
        params = self._patches_of(windows, at_once)
        places = [p.ctypes.data for p in params]
        addresses, copy = (images.ctypes.data, 0, patches.ctypes.data, 0), routines.patches.ctypes
        for image in range(0, number, at_once):
            n = min(at_once, number - image)
            if copied:
                inside[:n] = x[image : image + n]
            to = out[image : image + n].reshape(-1, self.outputs)
            for first in range(0, n * pixels, block):
                count = min(block, n * pixels - first)
                for g, part in enumerate(self.parts):
                    params[g][_FIRST], params[g][_COUNT] = first, count
                    copy(places[g], *addresses)
                    multiply(matrix[:count], g, to[first : first + count, part])

    def _patches_of(self, windows: Windows, at_once: int) -> list[np.ndarray]:
        """Parameters of `routines.patches` for each group, as the int64 numbers that they are: NumPy sets fields of records slowly.

        Those of the last windows are kept, and copied: a call changes its own.
        """
        known, params = self._params
        if known != windows:
            row, padded = math.prod(self.size) * self.depth, windows.padded(at_once)
            params = [
                routines.patches.record(**padded.patches(0, 0, g * self.depth, self.depth, row)).view(
                    np.int64
                )
                for g in range(self.groups)
            ]
            self._params = (windows, params)  # one assignment, so threads see a pair that fits
        return [p.copy() for p in params]

    def _depthwise(
        self,
        x: np.ndarray,
        out: np.ndarray,
        stages: Any,
        input_zero: int,
        weight_zero: int | np.ndarray,
        windows: Windows,
    ) -> None:
        work = self.depthwise_work(windows, x.dtype, stages, input_zero, weight_zero)
        space = np.empty(work.space, np.uint8)
        routines.depthwise.run(work.params, np.ascontiguousarray(x), work.taps, out, space)

    def _taps_of(self, weight_zero: int | np.ndarray) -> np.ndarray:
        """Weights less their zero point, repeated; those of the last zero point are kept."""
        key = weight_zero.tobytes() if isinstance(weight_zero, np.ndarray) else weight_zero
        known, taps = self._taps
        if known != key:
            taps = np.tile((self._weight - weight_zero).astype(np.int32), (1, self._tile))
            self._taps = (key, taps)  # one assignment, so threads see a pair that fits
        return taps

    def _run_slowly(
        self, x: np.ndarray, out: np.ndarray, stages: Sequence[Any], input_zero: int, weight_zero: Any, stride: Any,
        padding: Any, dilation: Any,
    ) -> None:  # fmt: skip
        """By the definition, where nothing is compiled."""
        flat = self._weight if self.depthwise else np.concatenate(self._packed, axis=1)
        sums = reference.conv2d(
            x, flat.reshape(*self.size, self.depth, self.outputs), input_zero, weight_zero, (), stride=stride,
            padding=padding, dilation=dilation, groups=self.groups,
        )  # fmt: skip
        for part, own in zip(self.parts, stages, strict=True):
            rows = sums[..., part].reshape(-1, part.stop - part.start)
            out[..., part] = apply_pipeline(rows, own or ()).reshape(sums[..., part].shape)
