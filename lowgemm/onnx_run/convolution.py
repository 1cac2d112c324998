"""ConvInteger and QLinearConv on NumPy arrays: ONNX's attributes and any number of spatial axes, on `lowgemm.nn.filters`.

Images have their channels last inside, so results are views: channels second as ONNX wants, last in memory, and the next
convolution need not copy. One spatial axis is two with a height of 1. With three or more, the two-dimensional sums of each
offset along the outer axes are added. `reference.conv_sums` says what the sums are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lowgemm.checks.arguments import as_operand
from lowgemm.checks.onnx import result_zero_point, scale_argument, zero_point_argument
from lowgemm.checks.values import as_array
from lowgemm.nn.filters import Filters
from lowgemm.onnx_run.geometry import Geometry, check_filters, geometry
from lowgemm.onnx_run.pipelines import pipeline
from lowgemm.requantize import requantize


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
    outer, slices : list
        Offsets along all spatial axes but the last two, and the packed two-dimensional filters of each.
    flat : bool
        Whether there is one spatial axis.

    Raises
    ------
    TypeError, ValueError
        If `w` is not 8-bit, has too few dimensions, or its filters do not divide into groups.
    """

    def __init__(self, w: Any, group: int = 1) -> None:
        w = as_operand(w, "w")
        group = check_filters(w.shape, group)
        if not w.shape[1]:
            raise ValueError(f"w: expected filters with elements, got shape {w.shape}")
        self.shape, self.dtype, self.group, self.flat = w.shape, w.dtype, group, w.ndim == 3
        flat = w[:, :, None] if w.ndim == 3 else w
        self.outer = list(itertools.product(*map(range, flat.shape[2:-2])))
        self.slices = [
            Filters(np.ascontiguousarray(flat[(slice(None), slice(None), *at)].transpose(2, 3, 1, 0)), group)
            for at in (self.outer if w.shape[0] else [])
        ]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(f.nbytes for f in self.slices)


class _Checked(NamedTuple):
    """Operands that fit, and where the windows lie."""

    x: np.ndarray
    filters: PackedFilters
    geometry: Geometry
    x_zero: int
    w_zero: int | np.ndarray


def _checked(x: Any, w: Any, x_zero_point: Any, w_zero_point: Any, group: Any, **attributes: Any) -> _Checked:
    x, group = as_operand(x, "x"), 1 if group is None else group
    filters = w if isinstance(w, PackedFilters) else PackedFilters(w, group)
    if filters.group != group:
        raise ValueError(f"w: expected filters packed for {group} groups, got {filters.group}")
    return _Checked(
        x,
        filters,
        geometry(x.shape, filters.shape, group=group, **attributes),
        zero_point_argument(x_zero_point, "x_zero_point", x, 1),
        zero_point_argument(w_zero_point, "w_zero_point", filters, filters.shape[0]),
    )


def _convolve(
    checked: _Checked,
    stages: Callable[[slice], Any],
    dtype: Any,
    num_threads: int | None,
) -> np.ndarray:
    """The sums through the output pipeline; `stages` gives that of some of the filters."""
    x, filters, g, x_zero, w_zero = checked
    if len(g.size) == 1:
        x, g = x[:, :, None], g.with_height()
    outer = len(g.size) - 2
    y = np.empty((x.shape[0], *g.out, filters.shape[0]), dtype=dtype)
    result = np.moveaxis(y, -1, 1)[:, :, 0] if filters.flat else np.moveaxis(y, -1, 1)
    if y.size == 0:
        return result
    if isinstance(w_zero, np.ndarray) and (w_zero == w_zero[0]).all():
        w_zero = int(w_zero[0])
    how: dict[str, Any] = {
        "input_zero": x_zero, "weight_zero": w_zero, "stride": g.strides[outer:], "dilation": g.dilations[outer:],
        "padding": (g.begin[outer], g.end[outer], g.begin[outer + 1], g.end[outer + 1]), "num_threads": num_threads,
    }  # fmt: skip
    images = np.moveaxis(x, 1, -1)
    target = y.reshape(-1, *y.shape[outer + 1 :])
    parts = filters.slices[0].parts
    if not outer:
        filters.slices[0].run(images, target, [stages(p) for p in parts], **how)
        return result
    around = [(0, 0), *zip(g.begin[:outer], g.end[:outer], strict=True), (0, 0), (0, 0), (0, 0)]
    images = np.pad(images, around, constant_values=x_zero)
    total, sums = np.zeros(target.shape, np.int32), np.empty(target.shape, np.int32)
    for offset, part in zip(filters.outer, filters.slices, strict=True):
        place = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, g.dilations, g.out, g.strides, strict=False)
        )
        seen = images[(slice(None), *place)]
        part.run(seen.reshape(-1, *seen.shape[outer + 1 :]), sums, [None] * len(parts), **how)
        total += sums
    rows, pipeline = total.reshape(-1, filters.shape[0]), stages(slice(None))
    if pipeline:
        requantize(rows, pipeline, out=y.reshape(rows.shape))
    else:
        y.reshape(rows.shape)[...] = rows
    return result


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
    checked = _checked(
        x, w, x_zero_point, w_zero_point, group, auto_pad=auto_pad, dilations=dilations, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip
    return _convolve(checked, lambda part: [], np.int32, num_threads)


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
    checked = _checked(
        x, w, x_zero_point, w_zero_point, group, auto_pad=auto_pad, dilations=dilations, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip
    count = checked.filters.shape[0]
    zero, dtype = result_zero_point(y_zero_point)
    scale = (
        scale_argument(x_scale, "x_scale", 1)
        * scale_argument(w_scale, "w_scale", count)
        / scale_argument(y_scale, "y_scale", 1)
    )
    bias = None if bias is None else as_array(bias, "bias", "a vector", np.int32)
    if bias is not None and (bias.dtype != np.int32 or bias.shape != (count,)):
        raise ValueError(f"bias: expected {count} int32 values, got {bias.dtype}, shape {bias.shape}")

    def stages(part: slice) -> Any:
        own = scale[part] if scale.ndim else scale
        part_bias = None if bias is None else bias[part]
        return pipeline(own, zero, dtype, rounding, bias=part_bias)

    return _convolve(checked, stages, dtype, num_threads)
