"""ConvInteger and QLinearConv on NumPy arrays: ONNX's attributes and any number of spatial axes, on
`lowgemm.conv`.

Images have their channels last inside, so results are views: channels second as ONNX wants, last in memory,
and the next convolution need not copy. With more than three spatial axes, the sums of each offset along the
outer ones are added. `reference.conv_sums` says what the sums are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.checks.arguments import as_operand
from lowgemm.checks.onnx import result_zero_point, scale_argument, zero_point_argument
from lowgemm.checks.values import as_array, choice, integer
from lowgemm.conv import Prepared, pack_filters
from lowgemm.engine import filters as engine_filters
from lowgemm.jit.addresses import NotCopied
from lowgemm.onnx_run.geometry import Geometry, check_filters, geometry
from lowgemm.onnx_run.given_filters import arranged_filters, filters_last
from lowgemm.onnx_run.pipelines import pipeline
from lowgemm.onnx_run.tape import Recorder
from lowgemm.onnx_run.turned import brought_last
from lowgemm.output.stages.requantize import ROUNDINGS
from lowgemm.requantize import requantize

#: Shapes of images whose plans a convolution keeps.
SHAPES = 64
#: Spatial axes that `lowgemm.conv` knows.
INNER = 3


class GivenFilters:
    """The shape of filters that come with each run (`given_filters.py`).

    Parameters
    ----------
    shape : tuple of int
        (filters, channels / group, ...), with one to three sizes.
    dtype : dtype
        uint8 or int8.
    group : int
        Groups of channels.
    given_zero : bool
        Their zero point comes with them.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, group: int, given_zero: bool) -> None:
        self.shape, self.dtype, self.group = shape, np.dtype(dtype), check_filters(shape, group)
        inner = (*shape[2:], shape[1], shape[0])
        self.slices = [engine_filters.GivenFilters(inner, self.group, dtype, given_zero)]


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
        Offsets along all spatial axes but the last three, and the packed filters of each; none without
        filters or channels, which have no elements.

    Raises
    ------
    TypeError, ValueError
        If `w` is not 8-bit, has too few dimensions, or its filters do not divide into groups.
    """

    def __init__(self, w: ArrayLike, group: int = 1) -> None:
        w = as_operand(w, "w")
        group = check_filters(w.shape, group)
        self.shape, self.dtype, self.group = w.shape, w.dtype, group
        self.outer = list(itertools.product(*map(range, w.shape[2:-INNER])))
        self.slices = [
            pack_filters(w[(slice(None), slice(None), *at)], group, channels="first")
            for at in (self.outer if w.size else [])
        ]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(f.nbytes for f in self.slices)

    def to_array(self) -> np.ndarray:
        """The filters, in the order of `shape`."""
        w = np.empty(self.shape, self.dtype)
        for at, part in zip(self.outer, self.slices, strict=bool(self.slices)):
            plain = part.to_array()
            w[(slice(None), slice(None), *at)] = plain.transpose(
                plain.ndim - 1, plain.ndim - 2, *range(plain.ndim - 2)
            )
        return w


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Images with their channels last; if there is one, they lie so already."""
    if x.shape[1] == 1 and x.flags.c_contiguous:
        return x.reshape(x.shape[0], *x.shape[2:], 1)
    return x.transpose((0, *range(2, x.ndim), 1))


class Convolution(NotCopied):
    """A convolution with everything that does not change from image to image checked and prepared.

    Parameters
    ----------
    filters : PackedFilters or GivenFilters
        For the groups that `attributes` say.
    dtype : dtype
        Of the images.
    zero_points : tuple
        Of the images and of the filters, as ONNX gives them.
    attributes : dict
        ONNX's: auto_pad, dilations, group, kernel_shape, pads, strides.
    stages : callable, optional
        ``stages(part)`` gives the output pipeline of some of the filters; without it the result is int32.
    result : dtype
        Of the result.
    num_threads : int, optional
        As in `lowgemm.gemm`.
    """

    instead = "copy its filters"

    def __init__(
        self,
        filters: PackedFilters | GivenFilters,
        dtype: DTypeLike,
        zero_points: tuple[Any, Any],
        attributes: dict[str, Any],
        stages: Callable[[slice], Any] | None = None,
        result: Any = np.int32,
        num_threads: int | None = None,
    ) -> None:
        group = 1 if attributes.get("group") is None else integer(attributes["group"], "group", 1)
        if filters.group != group:
            raise ValueError(f"w: expected filters packed for {group} groups, got {filters.group}")
        self.filters, self.dtype, self.attributes = filters, np.dtype(dtype), attributes
        self.result, self.num_threads = result, num_threads
        self.input_zero = zero_point_argument(zero_points[0], "x_zero_point", np.empty(0, dtype), 1)
        zero = zero_point_argument(zero_points[1], "w_zero_point", filters, filters.shape[0])
        if isinstance(zero, np.ndarray) and zero.size and (zero == zero[0]).all():
            zero = int(zero[0])
        self.weight_zero = zero
        self._stages = None if stages is None else stages(slice(None))
        self._plans: dict[tuple[int, ...], tuple[Geometry, Any]] = {}

    def _plan(self, shape: tuple[int, ...]) -> tuple[Geometry, Any]:
        """Where the windows lie on images of a shape, and what convolves along the inner axes."""
        known = self._plans.get(shape)
        if known is None:
            filters = self.filters
            g = geometry(shape, filters.shape, **self.attributes)
            outer = max(0, len(g.size) - INNER)
            made = None
            if filters.slices and math.prod((shape[0], *g.out)):
                images = math.prod((shape[0], *g.out[:outer]))
                around = tuple(zip(g.begin[outer:], g.end[outer:], strict=True))
                made = [
                    Prepared(
                        part, (images, *shape[2 + outer :], shape[1]), self.dtype,
                        (self.input_zero, self.weight_zero),
                        g.strides[outer:], around, g.dilations[outer:], None if outer else self._stages,
                        self.num_threads,
                    )
                    for part in filters.slices
                ]  # fmt: skip
            if len(self._plans) >= SHAPES:
                self._plans = {}
            known = self._plans[shape] = g, made
        return known

    def record(
        self,
        recorder: Recorder,
        x: np.ndarray,
        zero: np.ndarray | None = None,
        w: np.ndarray | None = None,
        w_zero: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Take `run` down, with the zero points that `zero` and `w_zero` stand for, and with the filters that
        `w` stands for where they are given; None if that cannot be.
        """
        g, made = self._plan(x.shape)
        if made is None or len(g.size) > INNER:
            return None
        made = made[0]
        found = made.in_one_call(_channels_last(x).strides)
        if found is None and x.flags.c_contiguous:
            x = brought_last(x, self.num_threads, recorder)
            found = made.in_one_call(_channels_last(x).strides)
        if found is None:
            return None
        plan, rhs = found
        y = np.empty(made.shape, self.result)
        weight_zero = made.left_zero if w_zero is None else w_zero
        if w is not None and rhs is None:
            rhs = filters_last(recorder, w, self.num_threads)
        elif w is not None:
            of_loop = self.weight_zero if w_zero is None else w_zero
            rhs, weight_zero = (
                arranged_filters(recorder, w, self.filters.group, rhs, of_loop, self.num_threads), 0
            )  # fmt: skip
            if rhs is None:
                return None
        zeros = self.input_zero if zero is None else zero, weight_zero
        if not recorder.run_plan(plan, x, rhs, y, zeros):
            return None
        return y.transpose((0, y.ndim - 1, *range(1, y.ndim - 1)))

    def _of_nothing(self, shape: tuple[int, ...]) -> np.ndarray:
        """The result, its channels last, of no channels, or a result without elements: sums of 0."""
        y = np.empty(shape, self.result)
        if y.size and self._stages:
            requantize(
                np.zeros((y.size // shape[-1], shape[-1]), np.int32),
                self._stages,
                out=y.reshape(-1, shape[-1]),
            )
        elif y.size:
            y[...] = 0
        return y.transpose((0, y.ndim - 1, *range(1, y.ndim - 1)))

    def run(self, x: np.ndarray, input_zero: int | None = None) -> np.ndarray:
        """Convolve images, shape (images, channels, ...); the result has its channels last in memory.

        `input_zero` replaces the zero point of the images.
        """
        filters = self.filters
        g, made = self._plan(x.shape)
        images = _channels_last(x)
        if made is None:
            return self._of_nothing((x.shape[0], *g.out, filters.shape[0]))
        outer = max(0, len(g.size) - INNER)
        if not outer:
            return made[0].run(images, first=True, image_zero=input_zero)
        zero = self.input_zero if input_zero is None else input_zero
        y = np.empty((x.shape[0], *g.out, filters.shape[0]), dtype=self.result)
        target = y.reshape(-1, *y.shape[outer + 1 :])
        around = [(0, 0), *zip(g.begin[:outer], g.end[:outer], strict=True), *[(0, 0)] * (INNER + 1)]
        images = np.pad(images, around, constant_values=zero)
        total = np.zeros(target.shape, np.int32)
        for offset, part in zip(filters.outer, made, strict=True):
            place = tuple(
                slice(o * d, o * d + (n - 1) * s + 1, s)
                for o, d, n, s in zip(offset, g.dilations, g.out, g.strides, strict=False)
            )
            seen = images[(slice(None), *place)]
            total += part.run(seen.reshape(-1, *seen.shape[outer + 1 :]), image_zero=zero)
        rows = total.reshape(-1, filters.shape[0])
        if self._stages:
            requantize(rows, self._stages, out=y.reshape(rows.shape))
        else:
            y.reshape(rows.shape)[...] = rows
        return y.transpose((0, y.ndim - 1, *range(1, y.ndim - 1)))


def conv_integer(
    x: ArrayLike,
    w: ArrayLike,
    x_zero_point: ArrayLike | None = None,
    w_zero_point: ArrayLike | None = None,
    *,
    auto_pad: str | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
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
    x = as_operand(x, "x")
    attributes = {
        "auto_pad": auto_pad, "dilations": dilations, "group": group, "kernel_shape": kernel_shape,
        "pads": pads, "strides": strides,
    }  # fmt: skip
    filters = w if isinstance(w, PackedFilters) else PackedFilters(w, 1 if group is None else group)
    points = x_zero_point, w_zero_point
    return Convolution(filters, x.dtype, points, attributes, num_threads=num_threads).run(x)


def qlinear_conv(
    x: ArrayLike,
    x_scale: ArrayLike,
    x_zero_point: ArrayLike,
    w: ArrayLike,
    w_scale: ArrayLike,
    w_zero_point: ArrayLike,
    y_scale: ArrayLike,
    y_zero_point: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    auto_pad: str | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
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
    x = as_operand(x, "x")
    attributes = {
        "auto_pad": auto_pad, "dilations": dilations, "group": group, "kernel_shape": kernel_shape,
        "pads": pads, "strides": strides,
    }  # fmt: skip
    filters = w if isinstance(w, PackedFilters) else PackedFilters(w, 1 if group is None else group)
    made = quantized_convolution(
        filters, x.dtype, (x_scale, w_scale, y_scale), (x_zero_point, w_zero_point, y_zero_point), bias,
        attributes, rounding, num_threads,
    )  # fmt: skip
    return made.run(x)


def quantized_convolution(
    filters: PackedFilters | GivenFilters,
    dtype: DTypeLike,
    scales: tuple[Any, Any, Any],
    zero_points: tuple[Any, Any, Any],
    bias: ArrayLike,
    attributes: dict[str, Any],
    rounding: str = "onnx",
    num_threads: int | None = None,
) -> Convolution:
    """What `qlinear_conv` runs, for many images; scales and zero points are of the images, the filters and
    the result.
    """
    rounding = choice(rounding, "rounding", ROUNDINGS)
    count = filters.shape[0]
    zero, result = result_zero_point(zero_points[2])
    names = (("x_scale", 1), ("w_scale", count), ("y_scale", 1))
    x_scale, w_scale, y_scale = (scale_argument(s, *n) for s, n in zip(scales, names, strict=True))
    scale = x_scale * w_scale / y_scale
    bias = None if bias is None else as_array(bias, "bias", "a vector", np.int32)
    if bias is not None and bias.shape in ((), (1,)) and bias.dtype == np.int32:
        bias = np.broadcast_to(bias.reshape(-1), (count,))
    if bias is not None and (bias.dtype != np.int32 or bias.shape != (count,)):
        raise ValueError(f"bias: expected {count} int32 values, got {bias.dtype}, shape {bias.shape}")

    def stages(part: slice) -> Any:
        own = scale[part] if scale.ndim else scale
        more = None if bias is None else bias[part]
        return pipeline(own, zero, result, rounding, bias=more)

    return Convolution(filters, dtype, zero_points[:2], attributes, stages, result, num_threads)
