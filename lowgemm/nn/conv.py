"""The convolution, channels last.

Next file to open: `program.py`. The convolution itself is `lowgemm.conv`.
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
from lowgemm.conv import Prepared, pack_filters
from lowgemm.engine import threads
from lowgemm.engine.seen import Seen
from lowgemm.nn import reference
from lowgemm.nn.layer import four, pair, window_shape
from lowgemm.nn.program import Place, Program
from lowgemm.nn.weighted import Weighted
from lowgemm.quantization import QParams


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
    >>> pixels, one = QParams(1.0, 0, "uint8"), QParams(1.0)
    >>> layer = QuantizedConv2d(np.ones((2, 2, 1, 1), np.int8), None, pixels, one, one)
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
        self.filters = pack_filters(self.weight, self.groups)

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
            PyTorch keeps it as (outputs, inputs / groups, height, width): give ``weight.transpose(2, 3, 1,
            0)``.
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

    def _prepared(self, shape: tuple[int, ...], num_threads: int | None = None) -> Prepared:
        """The convolution of images of a shape."""
        top, bottom, left, right = self.padding
        return Prepared(
            self.filters, shape, self.input_qparams.dtype, (self.input_zero, self.weight_zero), self.stride,
            ((top, bottom), (left, right)), self.dilation, self.stages, num_threads,
        )  # fmt: skip

    def forward(self, x: np.ndarray) -> np.ndarray:
        """As for every layer; a large product runs on several threads."""
        if numba.config.DISABLE_JIT or threads.choose_threads(None, self.maccs(x.shape)) == 1:
            return super().forward(x)
        known = self._large.get(x.shape)
        if known is None:
            self.output_shape(x.shape)
            known = self._prepared(x.shape)
            self._large.add(x.shape, known)
        return known.run(x)

    @functools.cached_property
    def _large(self) -> Seen:
        """Convolutions of the shapes that came before."""
        return Seen()

    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """As for every layer."""
        last = program.take_last()
        out = self.output_shape(shape)
        to = program.result(math.prod(out) * self.result_dtype.itemsize, last)
        _, height, width, channels = shape
        strides = (height * width * channels, width * channels, channels, 1)
        known = self._prepared(shape, 1)
        plan = known.plan(strides)
        zeros = known.image_zero, known.filter_zero
        program.planned(plan, self.filters.rhs(plan.kernel, known.filter_zero), zeros, x, to)
        return to

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
