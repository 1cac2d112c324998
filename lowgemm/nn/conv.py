"""The convolution, channels last.

Next file to open: `program.py`. Large products on threads are in `filters.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import integer
from lowgemm.engine import threads
from lowgemm.engine.packed_rhs import PackedRhs, pack_rhs
from lowgemm.engine.packing import CHUNK_BYTES
from lowgemm.nn import reference, routines
from lowgemm.nn.filters import Filters
from lowgemm.nn.layer import four, pair, window_shape
from lowgemm.nn.program import FIXED, Place, Program
from lowgemm.nn.weighted import Weighted
from lowgemm.nn.windows import Windows
from lowgemm.quantization import QParams

#: Bytes of patches at a time: a part of the L2 cache of common CPUs.
BLOCK_BYTES = 1 << 17


class QuantizedConv2d(Weighted):
    """Convolution in integers, channels last.

    The input is (n, height, width, channels), the result (n, out height, out width, outputs).

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
        Divides channels and outputs. With as many groups as channels and outputs it is a depthwise
        convolution.
    activation, rounding
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
        weight: ArrayLike,
        bias: ArrayLike | None,
        input_qparams: QParams,
        weight_qparams: QParams,
        output_qparams: QParams | None = None,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        activation: str = "none",
        rounding: str = "gemmlowp",
    ) -> None:
        super().__init__(
            weight,
            bias,
            input_qparams,
            weight_qparams,
            output_qparams,
            activation=activation,
            rounding=rounding,
        )
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

    @classmethod
    def from_float(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None,
        input_qparams: QParams,
        weight_qparams: QParams,
        output_qparams: QParams | None = None,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        activation: str = "none",
        rounding: str = "gemmlowp",
    ) -> QuantizedConv2d:
        """Layer of real weights and a real bias.

        Parameters
        ----------
        weight : array_like of float, shape (kernel height, kernel width, inputs / groups, outputs)
            PyTorch keeps it as (outputs, inputs / groups, height, width): give ``weight.transpose(2, 3, 1, 0)``.
        bias : array_like of float, shape (outputs,), or None
            In real units.
        input_qparams, weight_qparams : QParams
            How to quantize; as in `QuantizedLinear.from_float`.
        output_qparams, stride, padding, dilation, groups, activation, rounding
            As for the class.

        Returns
        -------
        QuantizedConv2d
            Its `scale_raised` says what each scale was multiplied by.
        """
        quantized, raised = cls._quantized(weight, bias, input_qparams, weight_qparams)
        made = cls(
            *quantized,
            output_qparams,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            activation=activation,
            rounding=rounding,
        )
        made.scale_raised = raised
        return made

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
            zeros = np.broadcast_to(self.weight_zero, (self.row_bytes - len(flat), self.outputs))
            flat = np.concatenate([flat, zeros.astype(flat.dtype)])
        return [pack_rhs(flat[:, part]) for part in self.filters.parts]

    def _zeros(self, group: int) -> tuple[int, int | np.ndarray]:
        zero = self.weight_zero
        return self.input_zero, zero[self.filters.parts[group]] if isinstance(zero, np.ndarray) else zero

    def _windows(self, shape: tuple[int, ...]) -> Windows:
        out = self.output_shape(shape)[1:3]
        return Windows(shape, out, self.size, self.stride, self.padding, self.dilation)

    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """As for every layer."""
        last = program.take_last()
        out = self.output_shape(shape)
        item = self.result_dtype.itemsize
        to = program.result(math.prod(out) * item, last)
        windows = self._windows(shape)
        if self.filters.depthwise:
            self._emit_depthwise(program, x, to, windows)
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
        if any(self.padding):
            source = program.place(math.prod(windows.padded().shape))
            program.op(routines.pad, routines.pad.record(**windows.margins(self.input_zero)), x, source)
        windows = windows.padded()
        blocks = -(-pixels * self.row_bytes // BLOCK_BYTES)
        block = -(-pixels // blocks)
        patches = program.place(block * self.row_bytes)
        for first in range(0, pixels, block):
            count = min(block, pixels - first)
            for g in range(self.groups):
                params = windows.patches(first, count, g * self.depth, self.depth, self.row_bytes)
                program.op(routines.patches, routines.patches.record(**params), source, patches)
                product(patches, count, self.row_bytes, self.row_bytes, g, first)
        program.release(patches)
        if source is not x:
            program.release(source)
        return to

    def _emit_depthwise(self, program: Program, x: Place, to: Place, windows: Windows) -> None:
        dtype = self.input_qparams.dtype
        work = self.filters.depthwise_work(windows, dtype, self.stages, self.input_zero, self.weight_zero)
        program.hold(work)
        taps = Place(FIXED, work.taps.ctypes.data, 0)
        program.op(routines.depthwise, work.params, x, to, taps, space=work.space)

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
