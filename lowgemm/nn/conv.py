"""The convolution, channels last. Next file to open: `filters.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowgemm.nn import reference
from lowgemm.nn.filters import Filters
from lowgemm.nn.layer import four, pair, window_shape
from lowgemm.nn.weighted import Weighted
from lowgemm.quantization import QParams
from lowgemm.values import integer


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
        """As for every layer."""
        out = np.empty(self.output_shape(x.shape), self.result_dtype)
        self.filters.run(
            x, out, self.part_stages, input_zero=self.input_zero, weight_zero=self.weight_zero, stride=self.stride,
            padding=self.padding, dilation=self.dilation,
        )  # fmt: skip
        return out

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
