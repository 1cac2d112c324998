"""ConvInteger and QLinearConv on NumPy arrays: windows copied to columns in bounded blocks, products by `lowgemm.gemm`.

The filters are the packed right-hand side (depth = channels x offsets), the windows the left, and the result is written
through its strides into images x filters x positions. `reference.conv_sums` says what the sums are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lowgemm.arguments import as_operand
from lowgemm.compat.onnx import _scale, _zero_point
from lowgemm.gemm import gemm
from lowgemm.onnx_run.geometry import Geometry, geometry
from lowgemm.output.requantize import Requantize
from lowgemm.output.requantizing import requantize
from lowgemm.output.stages import BiasAddition, Stage
from lowgemm.packed import pack_rhs
from lowgemm.values import as_array

#: Bytes of window columns that one product takes at most, unless one row of windows has more. Of 256 KiB, 1 and 4 MiB the last
#: was as fast or faster on every layer tried (AMD Zen 4, 64 x 56 x 56 to 512 x 28 x 28).
BLOCK_BYTES = 1 << 22


class PackedFilters:
    """Filters of a convolution, packed once for many images.

    Parameters
    ----------
    w : array_like of uint8 or int8, shape (filters, channels / group, ...)
        Filters.
    group : int
        Groups of channels that the model's node will use.

    Attributes
    ----------
    shape, dtype, group
        Of `w`.
    packed : PackedRhs
        Shape (channels / group * offsets, filters), stacked once a group where there are several.

    Raises
    ------
    TypeError, ValueError
        If `w` is not 8-bit, has too few dimensions, or its filters do not divide into groups.
    """

    def __init__(self, w: Any, group: int = 1) -> None:
        w = as_operand(w, "w")
        if w.ndim < 3:
            raise ValueError(
                f"w: expected filters, channels and at least one spatial axis, got shape {w.shape}"
            )
        if group < 1 or w.shape[0] % group:
            raise ValueError(f"group: expected a divisor of the {w.shape[0]} filters, got {group}")
        self.shape, self.dtype, self.group = w.shape, w.dtype, group
        depth = math.prod(w.shape[1:])
        per_group = w.shape[0] // group
        stack = w.reshape(group, per_group, depth).transpose(0, 2, 1)
        self.packed = pack_rhs(stack[0] if group == 1 else stack)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.packed.nbytes


def _blocks(g: Geometry, images: int, channels: int) -> Iterator[tuple[slice, slice]]:
    """Images, and rows of the first spatial axis, whose columns fit in `BLOCK_BYTES` together."""
    row = max(1, channels * math.prod(g.kernel) * math.prod(g.out[1:]))
    rows = max(1, min(g.out[0], BLOCK_BYTES // row))
    together = max(1, BLOCK_BYTES // (row * g.out[0])) if rows == g.out[0] else 1
    for i in range(0, images, together):
        for r in range(0, g.out[0], rows):
            yield slice(i, min(i + together, images)), slice(r, min(r + rows, g.out[0]))


def _columns(x: np.ndarray, g: Geometry, zero: int, images: slice, rows: slice) -> np.ndarray:
    """Windows of a block as (images, group, channels / group * offsets, positions); a view for 1 x 1 kernels."""
    part = x[images]
    count, channels = part.shape[:2]
    plain = all(v == 1 for v in (*g.kernel, *g.strides)) and not any((*g.begin, *g.end))
    if plain:
        return part[:, :, rows].reshape(count, g.group, channels // g.group, -1)
    # only the input rows that these windows touch are padded
    reach = (g.kernel[0] - 1) * g.dilations[0] + 1
    first, last = rows.start * g.strides[0], (rows.stop - 1) * g.strides[0] + reach
    top = max(0, g.begin[0] - first)
    used = part[:, :, max(0, first - g.begin[0]) : max(0, min(g.size[0], last - g.begin[0]))]
    spatial = [last - first, *(n + b + e for n, b, e in zip(g.size[1:], g.begin[1:], g.end[1:], strict=True))]
    padded = used
    if spatial != list(used.shape[2:]):
        padded = np.full((count, channels, *spatial), zero, dtype=x.dtype)
        inside = [slice(b, b + n) for b, n in zip(g.begin[1:], g.size[1:], strict=True)]
        padded[(slice(None), slice(None), slice(top, top + used.shape[2]), *inside)] = used
    out = (rows.stop - rows.start, *g.out[1:])
    columns = np.empty((count, channels, math.prod(g.kernel), *out), dtype=x.dtype)
    for place, offset in enumerate(itertools.product(*map(range, g.kernel))):
        window = [
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, g.dilations, out, g.strides, strict=True)
        ]
        columns[:, :, place] = padded[(slice(None), slice(None), *window)]
    return columns.reshape(count, g.group, channels // g.group * math.prod(g.kernel), -1)


def _convolve(
    x: np.ndarray,
    filters: PackedFilters,
    g: Geometry,
    x_zero: int,
    w_zero: int | np.ndarray,
    stages: Callable[[int], list[Stage]],
    dtype: Any,
    num_threads: int | None,
) -> np.ndarray:
    """The blocks' products; `stages(axis)` is the output pipeline with one channel a column (1) or row (0)."""
    count = filters.shape[0]
    y = np.empty((x.shape[0], count, *g.out), dtype=dtype)
    if y.size == 0:
        return y
    flat = y.reshape(x.shape[0], count, -1)
    rest = math.prod(g.out[1:])
    if isinstance(w_zero, np.ndarray) and (w_zero == w_zero[0]).all():
        w_zero = int(w_zero[0])
    for images, rows in _blocks(g, x.shape[0], x.shape[1]):
        columns = _columns(x, g, x_zero, images, rows)
        target = flat[images, :, rows.start * rest : rows.stop * rest]
        lhs = columns.swapaxes(2, 3)
        if g.group == 1:
            gemm(
                lhs[:, 0], filters.packed, lhs_zero_point=x_zero, rhs_zero_point=w_zero, output=stages(1) or None,
                out=target.swapaxes(1, 2), num_threads=num_threads,
            )  # fmt: skip
            continue
        # a stage's vectors run along one matrix, and each group has its own: sums first, then the stages over all rows
        plain = not isinstance(w_zero, np.ndarray)
        shape = (lhs.shape[0], g.group, count // g.group, lhs.shape[2])
        sums = np.empty(shape, dtype=np.int32)
        gemm(
            lhs, filters.packed, lhs_zero_point=x_zero, rhs_zero_point=w_zero if plain else 0,
            out=sums.swapaxes(2, 3), num_threads=num_threads,
        )  # fmt: skip
        if not plain:
            # sum (x - zx) (w - zw) = sum (x - zx) w  -  zw sum (x - zx), modulo 2**32
            windows = columns.sum(axis=2, dtype=np.int32) - np.int32(columns.shape[2] * x_zero)
            sums -= windows[:, :, None] * w_zero.astype(np.int32).reshape(1, g.group, -1, 1)
        sums = sums.reshape(lhs.shape[0], count, -1)
        if pipeline := stages(0):
            requantize(sums, pipeline, out=target)
        else:
            target[...] = sums
    return y


def _filters(w: Any, group: Any) -> PackedFilters:
    group = 1 if group is None else group
    if not isinstance(w, PackedFilters):
        return PackedFilters(w, group)
    if w.group != group:
        raise ValueError(f"w: expected filters packed for {group} groups, got {w.group}")
    return w


def conv_integer(
    x: Any,
    w: Any,
    x_zero_point: Any = None,
    w_zero_point: Any = None,
    *,
    auto_pad: str | None = None,
    dilations: Any = None,
    group: int | None = None,
    kernel_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """ConvInteger: exact int32 convolution of 8-bit images, modulo 2**32.

    Parameters
    ----------
    x : array_like of uint8 or int8, shape (images, channels, ...)
        One spatial axis or more.
    w : array_like of uint8 or int8, shape (filters, channels / group, ...), or PackedFilters
        Filters.
    x_zero_point : array_like of x's dtype, optional
        Scalar; also what padding counts as.
    w_zero_point : array_like of w's dtype, optional
        Scalar or one per filter.
    auto_pad, dilations, group, kernel_shape, pads, strides
        ONNX's attributes.
    num_threads : int, optional
        As in `lowgemm.gemm`.

    Returns
    -------
    ndarray of int32, shape (images, filters, ...)

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or attribute does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    >>> conv_integer(x, np.ones((1, 1, 2, 2), np.uint8), np.uint8(1))
    array([[[[ 4,  8],
             [16, 20]]]], dtype=int32)
    """
    x, filters = as_operand(x, "x"), _filters(w, group)
    g = geometry(
        x.shape, filters.shape, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip
    x_zero = _zero_point(x_zero_point, "x_zero_point", x, 1)
    w_zero = _zero_point(w_zero_point, "w_zero_point", filters, filters.shape[0])
    return _convolve(x, filters, g, x_zero, w_zero, lambda axis: [], np.int32, num_threads)


def qlinear_conv(
    x: Any,
    x_scale: Any,
    x_zero_point: Any,
    w: Any,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: Any = None,
    *,
    auto_pad: str | None = None,
    dilations: Any = None,
    group: int | None = None,
    kernel_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
    rounding: str = "onnx",
    num_threads: int | None = None,
) -> np.ndarray:
    """QLinearConv: 8-bit convolution of 8-bit images.

    Parameters
    ----------
    x, w, x_zero_point, w_zero_point
        As in `conv_integer`.
    x_scale, y_scale : array_like of float
        Scalars.
    w_scale : array_like of float
        Scalar or one per filter.
    y_zero_point : array_like of uint8 or int8
        Scalar; its dtype is the result's.
    bias : array_like of int32, shape (filters,), optional
        Added to the sums: in units of ``x_scale * w_scale``.
    auto_pad, dilations, group, kernel_shape, pads, strides
        ONNX's attributes.
    rounding : str
        "onnx" (onnxruntime's arithmetic) or "onnx_reference" (the onnx package's); see `lowgemm.Requantize`.
    num_threads : int, optional
        As in `lowgemm.gemm`.

    Returns
    -------
    ndarray of uint8 or int8, shape (images, filters, ...)

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or attribute does not fit.

    Notes
    -----
    The scale is ``x_scale * w_scale / y_scale`` in float32, in this order.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.full((1, 1, 3), 100, np.uint8), np.array([[[1, 2]]], np.int8)
    >>> half, none = np.float32(0.5), np.uint8(0)
    >>> qlinear_conv(x, half, none, w, half, np.int8(0), np.float32(1), none)
    array([[[75, 75]]], dtype=uint8)
    """
    x, filters = as_operand(x, "x"), _filters(w, group)
    g = geometry(
        x.shape, filters.shape, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip
    count = filters.shape[0]
    x_zero = _zero_point(x_zero_point, "x_zero_point", x, 1)
    w_zero = _zero_point(w_zero_point, "w_zero_point", filters, count)
    zero = as_array(y_zero_point, "y_zero_point", "one value")
    if zero.dtype not in (np.uint8, np.int8) or zero.size != 1:
        raise TypeError(
            f"y_zero_point: expected one uint8 or int8 value, got {zero.dtype}, shape {zero.shape}"
        )
    scale = _scale(x_scale, "x_scale", 1) * _scale(w_scale, "w_scale", count) / _scale(y_scale, "y_scale", 1)
    bias = None if bias is None else as_array(bias, "bias", "a vector")
    if bias is not None and (bias.dtype != np.int32 or bias.shape != (count,)):
        raise ValueError(f"bias: expected {count} int32 values, got {bias.dtype}, shape {bias.shape}")

    def stages(axis: int) -> list[Stage]:
        added: list[Stage] = [] if bias is None else [BiasAddition(bias, axis=axis)]
        return [*added, Requantize(scale, int(zero.reshape(())), zero.dtype, rounding=rounding, axis=axis)]

    return _convolve(x, filters, g, x_zero, w_zero, stages, zero.dtype, num_threads)
