"""The convolution, channels last.

A 1x1 filter is a plain product over the pixels, without a copy. A filter per channel (depthwise) has a loop of its
own: a product with one column would waste the tile. Everything else copies patches into a buffer of
`BLOCK_BYTES` and multiplies that, block by block, so memory stays bounded and the patches in cache.
Next file to open: `windows.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowgemm.gemm import gemm
from lowgemm.nn import reference, windows
from lowgemm.nn.layer import four, pair, window_shape
from lowgemm.nn.weighted import Weighted, packed
from lowgemm.output.requantizing import requantize
from lowgemm.quantization import QParams
from lowgemm.values import integer

#: Bytes of patches (or of depthwise sums) held at a time: a part of level 2 of the caches of common CPUs.
BLOCK_BYTES = 1 << 18
#: Elements of the depthwise convolution's inner loop: a few vectors of 16, so that its start does not dominate.
TILE = 256


class QuantizedConv2d(Weighted):
    """Convolution in integers: input (n, height, width, channels), result (n, out height, out width, outputs).

    Parameters
    ----------
    weight : array_like of int8 or uint8, shape (filter height, filter width, channels / groups, outputs)
        Outputs are ordered by group.
    bias, input_qparams, weight_qparams, output_qparams
        As in `lowgemm.nn.weighted.Weighted`.
    stride, dilation : int or (int, int)
        For height and width.
    padding : int, (int, int) or (top, bottom, left, right)
        Pixels that stand for 0.0.
    groups : int
        Divides channels and outputs. With as many groups as channels and outputs it is a depthwise convolution.
    **more
        `activation`, `rounding`: as in `lowgemm.nn.weighted.Weighted`.

    Notes
    -----
    Jacob et al. 2017 (arXiv:1712.05877), section 2.4, with the product taken over patches.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.quantization import QParams
    >>> layer = QuantizedConv2d(np.ones((2, 2, 1, 1), np.int8), None, QParams(1.0, 0, "uint8"), QParams(1.0), QParams(1.0))
    >>> layer(np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1))[0, ..., 0]
    array([[ 8, 12],
           [20, 24]], dtype=int8)
    """

    kind = "conv2d"
    weight_ndim = 4

    def __init__(
        self,
        weight: Any,
        bias: Any,
        input_qparams: QParams,
        weight_qparams: QParams,
        output_qparams: QParams | None = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        **more: Any,
    ) -> None:
        super().__init__(weight, bias, input_qparams, weight_qparams, output_qparams, **more)
        self.stride, self.dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        self.padding = four(padding, "padding")
        self.groups = integer(groups, "groups", 1)
        kh, kw, self.depth, outputs = self.weight.shape
        if outputs % self.groups:
            raise ValueError(f"groups: expected a divisor of {outputs} outputs, got {self.groups}")
        self.size = (kh, kw)
        self.channels = self.depth * self.groups
        self.depthwise = self.groups > 1 and self.depth == 1 and outputs == self.groups
        self.pointwise = self.size == (1, 1) and not any(self.padding)
        per_group = outputs // self.groups
        self.parts = [slice(g * per_group, (g + 1) * per_group) for g in range(self.groups)]
        if self.depthwise:
            w = (self.weight.astype(np.int32) - self.weight_zero).astype(np.int32)
            # filters repeated for so many pixels that the inner loop is at least TILE long
            self.tile = -(-TILE // outputs)
            self.taps = np.tile(w.reshape(kh * kw, outputs), (1, self.tile))
            return
        flat = self.weight.reshape(-1, outputs)
        self.packed = [packed(flat[:, part]) for part in self.parts]
        self.part_stages = [self.make_stages(part) for part in self.parts]
        zero = self.weight_zero
        self.part_zeros = [zero[part] if isinstance(zero, np.ndarray) else zero for part in self.parts]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As for every layer."""
        oh, ow = window_shape(shape, self.size, self.stride, self.padding, self.dilation)
        if shape[3] != self.channels:
            raise ValueError(f"x: expected {self.channels} channels, got shape {shape}")
        return (shape[0], oh, ow, self.outputs)

    def maccs(self, shape: tuple[int, ...]) -> int:
        """As for every layer; taps on padding are counted."""
        return math.prod(self.output_shape(shape)) * math.prod(self.size) * self.depth

    def forward(self, x: np.ndarray) -> np.ndarray:
        """As for every layer."""
        out = np.empty(self.output_shape(x.shape), self.result_dtype)
        if out.size == 0:
            return out
        if self.depthwise:
            self._depthwise(x, out)
        elif self.pointwise:
            self._pointwise(x, out)
        else:
            self._patches(x, out)
        return out

    def _multiply(self, lhs: np.ndarray, group: int, out: np.ndarray) -> None:
        gemm(
            lhs,
            self.packed[group],
            lhs_zero_point=self.input_zero,
            rhs_zero_point=self.part_zeros[group],
            output=self.part_stages[group],
            out=out,
        )

    def _pointwise(self, x: np.ndarray, out: np.ndarray) -> None:
        # with a stride the rows of pixels stay separate matrices of a batch: still no copy
        if self.stride == (1, 1) and x.flags.c_contiguous:
            lhs, to = x.reshape(-1, self.channels), out.reshape(-1, self.outputs)
        else:
            lhs, to = x[:, :: self.stride[0], :: self.stride[1]], out
        for g, part in enumerate(self.parts):
            self._multiply(lhs[..., g * self.depth : (g + 1) * self.depth], g, to[..., part])

    def _geometry(self, out: np.ndarray) -> tuple[int, ...]:
        return (*out.shape[1:3], *self.size, *self.stride, self.padding[0], self.padding[2], *self.dilation)

    def _patches(self, x: np.ndarray, out: np.ndarray) -> None:
        x = np.ascontiguousarray(x)
        flat, to = x.reshape(-1).view(np.uint8), out.reshape(-1, self.outputs)
        row = math.prod(self.size) * self.depth
        pixels = to.shape[0]
        block = min(pixels, max(1, BLOCK_BYTES // row))
        buffer = np.empty(block * row, np.uint8)
        matrix = buffer.view(x.dtype).reshape(block, row)
        copy, zero = windows.patches(), self.input_zero & 255
        for g, part in enumerate(self.parts):
            for first in range(0, pixels, block):
                count = min(block, pixels - first)
                copy(
                    flat, buffer, first, count, *x.shape[1:], *self._geometry(out), g * self.depth, self.depth, zero
                )  # fmt: skip
                self._multiply(matrix[:count], g, to[first : first + count, part])

    def _depthwise(self, x: np.ndarray, out: np.ndarray) -> None:
        x = np.ascontiguousarray(x)
        flat, to = x.reshape(-1).view(np.uint8), out.reshape(-1, self.outputs)
        ow = out.shape[2]
        lines = out.shape[0] * out.shape[1]
        block = min(lines, max(1, BLOCK_BYTES // (4 * ow * self.outputs)))
        acc = np.empty((block * ow, self.outputs), np.int32)
        flip = 128 if x.dtype == np.int8 else 0
        loop = windows.depthwise()
        for first in range(0, lines, block):
            count = min(block, lines - first)
            loop(
                flat, self.taps, self.tile, acc.reshape(-1), first, count, *x.shape[1:3], *self._geometry(out), flip,
                self.input_zero + flip,
            )  # fmt: skip
            requantize(acc[: count * ow], self.stages, out=to[first * ow : (first + count) * ow])

    def reference(self, x: np.ndarray) -> np.ndarray:
        """As for every layer."""
        y = reference.conv2d(
            x, self.weight, self.input_zero, self.weight_zero, self.stages, stride=self.stride,
            padding=self.padding, dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        return y.astype(self.result_dtype)

    def state(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("stride", "padding", "dilation", "groups")
        return super().state() | {name: getattr(self, name) for name in names}
