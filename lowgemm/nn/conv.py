"""The convolution, channels last. Next file to open: `program.py`; large products on threads: `filters.py`."""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np

from lowgemm.checks.values import integer
from lowgemm.engine import threads
from lowgemm.engine.packed import PackedRhs, pack_rhs
from lowgemm.engine.packing import CHUNK_BYTES
from lowgemm.nn import reference, routines
from lowgemm.nn.filters import Filters
from lowgemm.nn.layer import four, pair, window_shape
from lowgemm.nn.program import BETWEEN, FIXED, Place, Program
from lowgemm.nn.weighted import Weighted
from lowgemm.output.apply import TILE_COLS, TILE_ROWS, apply
from lowgemm.output.check import check_pipeline
from lowgemm.output.pipeline import compile_pipeline
from lowgemm.quantization import QParams

#: Bytes of patches at a time: a part of level 2 of the caches of common CPUs.
BLOCK_BYTES = 1 << 17
#: Bytes of the depthwise convolution's sums at a time.
SUMS_BYTES = 1 << 15


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
        self.filters = Filters(self.weight, self.groups)
        #: The pixels themselves are the rows of the product.
        self.in_place = self.size == self.stride == (1, 1) and not any(self.padding)
        self.row_bytes = -(-kh * kw * self.depth // CHUNK_BYTES) * CHUNK_BYTES
        self.part_stages = [self.make_stages(part) for part in self.filters.parts]

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
        """As for every layer; a large product runs on several threads."""
        if numba.config.DISABLE_JIT or threads.choose_threads(None, self.maccs(x.shape)) == 1:
            return super().forward(x)
        out = np.empty(self.output_shape(x.shape), self.result_dtype)
        self.filters.run(
            x, out, self.part_stages, input_zero=self.input_zero, weight_zero=self.weight_zero, stride=self.stride,
            padding=self.padding, dilation=self.dilation,
        )  # fmt: skip
        return out

    @functools.cached_property
    def _packed(self) -> list[PackedRhs]:
        """Weights of each group, with as many rows as `routines.patches` writes columns."""
        flat = self.weight.reshape(-1, self.outputs)
        if not self.in_place:  # what a patch holds behind its end meets weights that stand for 0
            more = np.broadcast_to(self.weight_zero, (self.row_bytes - len(flat), self.outputs))
            flat = np.concatenate([flat, more.astype(flat.dtype)])
        return [pack_rhs(flat[:, part]) for part in self.filters.parts]

    def _zeros(self, group: int) -> tuple[int, int | np.ndarray]:
        zero = self.weight_zero
        return self.input_zero, zero[self.filters.parts[group]] if isinstance(zero, np.ndarray) else zero

    def _patch_params(self, shape: tuple[int, ...], first: int, count: int, group: int) -> list[int]:
        """Parameters of `routines.patches`."""
        _, oh, ow, _ = self.output_shape(shape)
        top, bottom, left, right = self.padding
        (kh, kw), (dy, dx) = self.size, self.dilation
        # taps of a row that lie side by side in the image are copied as one
        together = dx == 1 and self.groups == 1
        taps_x, run = (1, kw * self.depth) if together else (kw, self.depth)
        return [
            first, count, shape[1] + top + bottom, shape[2] + left + right, self.channels, oh, ow, kh, taps_x, run,
            *self.stride, dy, dx, group * self.depth, self.row_bytes,
        ]  # fmt: skip

    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """As for every layer."""
        last = program.take_last()
        out = self.output_shape(shape)
        item = self.result_dtype.itemsize
        to = program.result(math.prod(out) * item, last)
        if self.filters.depthwise:
            self._emit_depthwise(program, x, to, shape)
            return to
        pixels, stride, kind = math.prod(out[:3]), self.outputs * item, self.input_qparams.dtype.kind

        def product(lhs: Place, rows: int, depth: int, step: int, g: int, first: int) -> None:
            place = to.part(first * stride + self.filters.parts[g].start * item)
            stages = self.part_stages[g]
            program.product(
                lhs, kind, (rows, depth), step, self._packed[g], self._zeros(g), stages, place, stride
            )

        if self.in_place:
            for g in range(self.groups):
                product(x.part(g * self.depth), pixels, self.depth, self.channels, g, 0)
            return to
        source = x
        if any(self.padding) or x.base != BETWEEN:  # what lies between layers has room behind it
            top, bottom, left, right = self.padding
            height, width = shape[1] + top + bottom, shape[2] + left + right
            source = program.place(shape[0] * height * width * self.channels)
            bytes_of = [n * self.channels for n in (shape[2], left, right)]
            zero = self.input_zero & 255
            program.op(
                "pad",
                [shape[0], shape[1], bytes_of[0], top, bottom, bytes_of[1], bytes_of[2], zero],
                x,
                source,
            )
        blocks = -(-pixels * self.row_bytes // BLOCK_BYTES)
        block = -(-pixels // blocks)
        patches = program.place(block * self.row_bytes)
        for first in range(0, pixels, block):
            count = min(block, pixels - first)
            for g in range(self.groups):
                program.op("patches", self._patch_params(shape, first, count, g), source, patches)
                product(patches, count, self.row_bytes, self.row_bytes, g, first)
        program.release(patches)
        if source is not x:
            program.release(source)
        return to

    def _emit_depthwise(self, program: Program, x: Place, to: Place, shape: tuple[int, ...]) -> None:
        n, oh, ow, channels = self.output_shape(shape)
        lines = n * oh
        # filters repeated for so many pixels that the inner loop is at least TILE long
        real = (self.weight.astype(np.int32) - self.weight_zero).reshape(-1, channels)
        taps = np.tile(real.astype(np.int32), (1, -(-routines.TILE // channels)))
        block = min(lines, max(1, SUMS_BYTES // (4 * ow * channels)))
        checked, result = check_pipeline(self.stages, block * ow, channels)
        pipeline = compile_pipeline(
            checked, result, fold_bias=False, size=(block * ow, channels), contiguous=True
        )
        table = np.array(pipeline.table(), np.int64)
        program.hold((pipeline, checked))
        flip = 128 if self.input_qparams.dtype == np.int8 else 0
        params = [
            lines, block, shape[1], shape[2], channels, oh, ow, *self.size, *self.stride, *self.dilation,
            self.padding[0], self.padding[2], flip, self.input_zero + flip, apply.address,
            program.keep(table), table.size // 2, result.itemsize,
        ]  # fmt: skip
        space = 4 * (block * ow * channels + TILE_ROWS * TILE_COLS)
        program.op("depthwise", params, x, to, Place(FIXED, program.keep(taps), 0), space=space)

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
