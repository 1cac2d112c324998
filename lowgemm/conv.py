"""The convolution, beside `gemm` and like it: check the arguments, plan, run.

    conv.py -> engine/: filters.py -> image.py (patches), pixels.py (grids of pixels) or loop_plan.py (loops
    for depthwise and grouped filters) -> the tile loop and output stages of all products

`reference.conv` says what the result is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm import config, reference
from lowgemm.checks.arguments import as_num_threads, as_operand, as_zero_point, check_out
from lowgemm.checks.values import choice, integer
from lowgemm.engine import entry
from lowgemm.engine.channels_last import ChannelsLast
from lowgemm.engine.filters import Filters, GivenFilters, PackedFilters, convolution_plan
from lowgemm.engine.image import Windows
from lowgemm.engine.plan import Plan
from lowgemm.engine.ready import Ready, ready
from lowgemm.engine.seen import remember_list, stages_key
from lowgemm.jit.addresses import NotCopied
from lowgemm.output.base import Stage
from lowgemm.output.check import check_pipeline

#: Where the channels of images and filters are.
CHANNELS = ("last", "first")
_LARGE = 1 << 20
_settings = vars(config)


def pack_filters(filters: ArrayLike, groups: int = 1, *, channels: str = "last") -> PackedFilters:
    """Pack the filters of `conv` once, for many convolutions.

    Parameters
    ----------
    filters : array_like of uint8 or int8
        Shape (sizes along one to three axes ..., channels of a group, outputs), or with ``channels="first"``
        as in PyTorch and ONNX: (outputs, channels of a group, sizes ...). Outputs are ordered by group.
    groups : int
        Groups of channels. With one channel and one output each it is a depthwise convolution.
    channels : {"last", "first"}
        Where the channels of the filters are.

    Returns
    -------
    PackedFilters
        Accepted by `conv` in place of `filters`, with channels of images last or first. Pickle saves the
        plain filters.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.pack_filters(np.ones((3, 3, 8, 16), np.int8))
    PackedFilters(shape=(3, 3, 8, 16), dtype=int8, groups=1)
    """
    w = as_operand(filters, "filters")
    first = choice(channels, "channels", CHANNELS) == "first"
    if not 3 <= w.ndim <= 5:
        raise ValueError(f"filters: expected one to three sizes, channels and outputs, got shape {w.shape}")
    if first:
        w = w.transpose(*range(2, w.ndim), 1, 0)
    groups = integer(groups, "groups", 1)
    if 0 in w.shape:
        raise ValueError(f"filters: expected filters with elements, got shape {w.shape}")
    if w.shape[-1] % groups:
        raise ValueError(f"groups: expected a divisor of the {w.shape[-1]} outputs, got {groups}")
    return PackedFilters(w, groups)


def conv(
    image: ArrayLike,
    filters: ArrayLike | PackedFilters,
    *,
    image_zero_point: int = 0,
    filter_zero_point: ArrayLike = 0,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int | None = None,
    output: Stage | Sequence[Stage] | None = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
    channels: str = "last",
) -> np.ndarray:
    """Convolve 8-bit images with 8-bit filters exactly.

    A window's sum over its taps t and the channels c of its group is ``sum (image[i, window * stride + t *
    dilation - padding, c] - image_zero_point) * (filters[t, c, o] - filter_zero_point[o])`` in int32 modulo
    2**32, where pixels outside of the image add nothing. The sums go through the `output` stages.

    Parameters
    ----------
    image : array_like of uint8 or int8
        Shape (images, sizes along one to three axes ..., channels), or (images, channels, sizes ...) with
        ``channels="first"``.
    filters : array_like of uint8 or int8, or PackedFilters
        As in `pack_filters`, which makes the second.
    image_zero_point : int
        Subtracted from the image: a value of its dtype, which also fills the padding.
    filter_zero_point : int or array_like of int, shape (outputs,)
        Subtracted from the filters.
    stride, dilation : int or sequence of int
        Pixels from window to window, and from tap to tap; one for all axes or one for each.
    padding : int or sequence
        Pixels around the image: one number for all axes; or for each a number or a pair (before, after).
    groups : int, optional
        Groups of channels, for filters that are not packed; the default is 1.
    output, num_threads
        As in `gemm`, where a row of the result is a window and a column an output. A large convolution runs
        on several threads.
    out : ndarray, optional
        Array to write to: the result's shape and dtype, any strides, no overlap with the image.
    channels : {"last", "first"}
        Where the channels of the images, of the result, and of filters that are not packed, are.

    Returns
    -------
    ndarray
        Shape (images, windows along each axis ..., outputs), or (images, outputs, windows ...) with
        ``channels="first"``; then its memory has the channels last all the same, so that the next convolution
        need not copy it. `out` if that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    The patches are gathered from the image while the engine packs its left operand, so no matrix of patches
    is in memory. With AMX, tiles may be read from a padded copy of a part of the image instead. Filters of
    one pixel with a stride of 1 multiply the image where it lies. Depthwise convolutions have a loop of their
    own, and so have groups of 4, 8 or 16 channels. An image whose channels are first in memory is copied
    once.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
    >>> lowgemm.conv(image, np.ones((2, 2, 1, 1), np.int8))[0, ..., 0]
    array([[ 8, 12],
           [20, 24]], dtype=int32)
    >>> around = [(0, 1), (1, 0)]
    >>> lowgemm.conv(image, np.ones((2, 2, 1, 1), np.int8), image_zero_point=4, padding=around)[0, ..., 0]
    array([[-5, -8, -4],
           [ 1,  4,  8],
           [ 2,  5,  7]], dtype=int32)
    """
    key = known = None
    # text of another type (a member of an enumeration) is compared by `choice` alone
    if type(channels) is not str:
        channels = choice(channels, "channels", CHANNELS)
    if type(image) is np.ndarray and type(filters) is PackedFilters:
        key = _key(
            image,
            image_zero_point,
            filter_zero_point,
            stride,
            padding,
            dilation,
            groups,
            output,
            num_threads,
            channels,
        )
        known = filters.seen.get(key) if key is not None else None
    if known is None:
        first = choice(channels, "channels", CHANNELS) == "first"
        image = as_operand(image, "image")
        if not isinstance(filters, PackedFilters):
            filters = pack_filters(filters, 1 if groups is None else groups, channels=channels)
        elif groups is not None and integer(groups, "groups", 1) != filters.groups:
            raise ValueError(
                f"groups: expected {filters.groups}, as the filters were packed for, got {groups}"
            )
        shape = _last(image).shape if first else image.shape
        zeros = image_zero_point, filter_zero_point
        known = Prepared(filters, shape, image.dtype, zeros, stride, padding, dilation, output, num_threads)
        if key is not None:
            filters.seen.add((stages_key(known.stages), *key[1:]), known)  # as in `gemm`
            remember_list(output, known.stages)
    first = channels == "first"
    return known.run(_last(image) if first else image, out, first)


def _last(x: np.ndarray) -> np.ndarray:
    """Images whose channels come first, seen with their channels last."""
    return x.transpose(0, *range(2, x.ndim), 1) if x.ndim > 1 else x


#: Types of a number of a kind of call that is remembered. Equal keys must mean equal treatment, and 1 ==
#: True, so no other.
_NUMBER = (int, type(None))


def _key(
    image: np.ndarray, image_zero: Any, filter_zero: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, output: Any, num_threads: Any, channels: Any,
) -> Any:  # fmt: skip
    """What is remembered of a call with packed filters: all but addresses. None: such a call is checked each
    time.
    """
    if type(image_zero) is not int or type(num_threads) not in _NUMBER or type(groups) not in _NUMBER:
        return None
    if type(filter_zero) is not int:
        if type(filter_zero) is not np.ndarray:
            return None
        filter_zero = filter_zero.dtype, filter_zero.shape, filter_zero.tobytes()
    geometry = stride, padding, dilation
    for value in geometry:
        if type(value) is not int:
            if type(value) not in (tuple, list):
                return None
            geometry = repr(geometry)  # type: ignore[assignment]  # a list has no hash
    try:
        stages = stages_key(output)
    except (AttributeError, TypeError):  # something is no stage
        return None
    return (
        stages, image.shape, image.strides, image.dtype, image_zero, filter_zero, geometry, groups,
        num_threads, channels,
    )  # fmt: skip


class _Way:
    """What runs for images of one kind, with one setting of the kernel."""

    __slots__ = ("copied", "plan", "ready", "rhs", "runs", "setting", "strides")

    def __init__(
        self, strides: tuple[int, ...], setting: Any, plan: Plan, rhs: Any, copied: ChannelsLast | None
    ) -> None:
        self.strides, self.setting, self.plan, self.rhs, self.copied = strides, setting, plan, rhs, copied
        self.ready: Ready | None = None
        self.runs = 0


class Prepared(NotCopied):
    """A convolution of one kind with its arguments checked, for any number of images of one shape.

    Parameters
    ----------
    filters : PackedFilters
        The filters.
    shape : tuple of int
        Of the images, channels last.
    dtype : dtype
        Of the images.
    zero_points : (int, int or ndarray)
        Of the images and of the filters.
    others
        As in `conv`.

    Attributes
    ----------
    shape : tuple of int
        Of the result, channels last.
    windows : Windows
        Where the windows lie.
    size : tuple of int
        Of an image, without channels.
    """

    instead = "copy its filters"

    def __init__(
        self, filters: PackedFilters | GivenFilters, shape: tuple[int, ...], dtype: np.dtype,
        zero_points: tuple[Any, Any], stride: Any, padding: Any, dilation: Any, output: Any, num_threads: Any,
    ) -> None:  # fmt: skip
        self.filters, self.dtype = filters, np.dtype(dtype)
        if self.dtype not in (np.uint8, np.int8):
            as_operand(np.empty(1, dtype), "image")
        self.windows, self.geometry = windows_of(filters, shape, stride, padding, dilation)
        info = np.iinfo(self.dtype)
        self.image_zero = integer(zero_points[0], "image_zero_point", int(info.min), int(info.max))
        zero = as_zero_point(zero_points[1], "filter_zero_point", filters.outputs, "output")
        if isinstance(zero, np.ndarray) and (zero == zero[0]).all():
            zero = int(zero[0])
        self.filter_zero = zero
        #: What is left of it for the plan to subtract; loops of their own have it subtracted beforehand.
        self.left_zero = 0 if filters.in_loop(zero) else zero
        self.num_threads, self.output = as_num_threads(num_threads), output
        axes = filters.axes
        self.size = shape[1:-1]
        self.shape = (shape[0], *self.windows.out[3 - axes :], filters.outputs)
        self.stages, self.result = check_pipeline(output, math.prod(self.shape[:-1]), filters.outputs)
        self._way: _Way | None = None

    def plan(self, strides: tuple[int, ...]) -> Plan:
        """The plan for images with these strides, channels last; they are copied first where they must be."""
        return self._way_for(strides).plan

    def _way_for(self, strides: tuple[int, ...]) -> _Way:
        """What runs for images with these strides; that of the last strides is kept."""
        way, setting = self._way, _settings["kernel"]
        if way is not None and way.strides == strides and way.setting == setting and way.plan.serves():
            return way
        shape, seen = (*self.shape[:1], *self.size, self.filters.channels), strides
        copied = None
        if strides[-1] != 1 or min(strides) < 0:
            copied = ChannelsLast(shape, strides)
            seen = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        inner = seen[1:-1]
        wide = (seen[0], *[seen[0]] * (3 - len(inner)), *inner)
        plan = convolution_plan(
            self.filters, self.windows, wide, self.dtype.kind, stages=self.stages, result=self.result,
            out_row_stride=self.filters.outputs * self.result.itemsize, filter_zero=self.filter_zero,
            num_threads=self.num_threads,
        )  # fmt: skip
        way = _Way(strides, setting, plan, self.filters.rhs(plan.kernel, self.filter_zero), copied)
        self._way = way
        return way

    def in_one_call(self, strides: tuple[int, ...]) -> tuple[Plan, Any] | None:
        """The plan and the packed filters, or what filters that are given become, for images with these
        strides, channels last, if a call of the plan's `way` with addresses and zero points is all that runs;
        else None.
        """
        way = self._way_for(strides)
        plain = way.copied is None and way.plan.way is not None
        if not plain or way.plan.pipeline.customs or not math.prod(self.shape):
            return None
        return way.plan, way.rhs

    def _ready(self, way: _Way) -> Ready | None:
        """Python's way into compiled code. It is made at the second call: a program that convolves once does
        not wait for it.
        """
        if way.runs == 0 and not entry.is_made():
            return None
        call = SimpleNamespace(
            out=SimpleNamespace(shape=self.shape),
            lhs_zero=self.image_zero,
            rhs_zero=self.left_zero,
            own_zeros=False,
        )
        return ready(call, way.plan, self.image_zero, self.left_zero)  # type: ignore[arg-type]

    def run(
        self, x: np.ndarray, out: np.ndarray | None = None, first: bool = False, image_zero: int | None = None
    ) -> np.ndarray:
        """Convolve images of the shape and dtype, channels last; with `first` the result is seen with its
        channels first.
        """
        zero = self.image_zero if image_zero is None else image_zero
        y = to = None
        if out is not None:
            to = check_out(out, _seen(self.shape, first), self.result, {"image": x})
            to = to.transpose(0, *range(2, to.ndim), 1) if first else to
            if to.flags.c_contiguous and type(to) is np.ndarray:
                y = to
        if y is None:
            y = np.empty(self.shape, self.result)
        if y.size:
            if numba.config.DISABLE_JIT:
                self._run_slowly(x, y, zero)
            else:
                self._run(x, y, zero)
        if out is not None:
            if y is not to:
                to[...] = y  # type: ignore[index]
            return out
        return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1)) if first else y

    def _run(self, x: np.ndarray, y: np.ndarray, zero: int) -> None:
        """Convolve to `y`, which is contiguous."""
        way = self._way_for(x.strides)
        if way.runs < 2:
            if way.ready is None:
                way.ready = self._ready(way)
            way.runs += 1
        if way.copied is not None:
            x = way.copied.run(x, way.ready is not None, self.num_threads)
        rhs = way.rhs
        if way.ready is None or way.ready.run(x, rhs, y, zero, self.left_zero) is None:
            places = x.ctypes.data, rhs.panels_address, rhs.sums_address, y.ctypes.data
            way.plan.run(*places, zero, self.left_zero)

    def _run_slowly(self, x: np.ndarray, y: np.ndarray, zero: int) -> None:
        """By the definition, where nothing is compiled."""
        stride, padding, dilation = self.geometry
        y[...] = reference.conv(
            x, self.filters.to_array(), image_zero_point=zero, filter_zero_point=self.filter_zero,
            stride=stride,
            padding=padding, dilation=dilation, groups=self.filters.groups, output=list(self.stages) or None,
        )  # fmt: skip


def _seen(shape: tuple[int, ...], first: bool) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1]) if first else shape


def _is_list(value: Any) -> bool:
    """Whether it has elements to check one by one; NumPy is not asked, as it refuses lists of unlike ones."""
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _per_axis(value: Any, name: str, axes: int, low: int) -> tuple[int, ...]:
    """One integer for all axes, or one for each."""
    if _is_list(value):
        if len(value) != axes:
            raise ValueError(f"{name}: expected one integer or {axes}, got {len(value)}")
        return tuple(integer(v, name, low, _LARGE) for v in value)
    return (integer(value, name, low, _LARGE),) * axes


def _around(value: Any, axes: int) -> tuple[tuple[int, int], ...]:
    """Padding before and after, for each axis."""
    if not _is_list(value):
        value = (value,) * axes
    if len(value) != axes:
        raise ValueError(
            f"padding: expected one number, or a number or a pair for each of {axes} axes, got {value!r:.80}"
        )
    pairs = []
    for v in value:
        pair = tuple(v) if _is_list(v) else (v, v)
        if len(pair) != 2:
            raise ValueError(f"padding: expected pairs (before, after), got {v!r:.80}")
        pairs.append((integer(pair[0], "padding", 0, _LARGE), integer(pair[1], "padding", 0, _LARGE)))
    return tuple(pairs)


def windows_of(
    filters: Filters, shape: tuple[int, ...], stride: Any, padding: Any, dilation: Any
) -> tuple[Windows, tuple[Any, Any, Any]]:
    """Where the windows lie on images of a shape (channels last), and the checked stride, padding and
    dilation.
    """
    axes = filters.axes
    if len(shape) != axes + 2:
        raise ValueError(
            f"image: expected {axes + 2} dimensions for filters of {axes} axes, got shape {shape}"
        )
    if shape[-1] != filters.channels:
        raise ValueError(f"image: expected {filters.channels} channels, got shape {shape} (channels last)")
    steps, apart = _per_axis(stride, "stride", axes, 1), _per_axis(dilation, "dilation", axes, 1)
    around, size, taps = _around(padding, axes), shape[1:-1], filters.shape[:axes]
    out = []
    for n, k, s, d, (before, after) in zip(size, taps, steps, apart, around, strict=True):
        reach = d * (k - 1) + 1
        if n + before + after < reach:
            raise ValueError(
                f"image: expected at least a window of {reach} with padding, got shape {shape} (channels "
                "last)"
            )
        out.append((n + before + after - reach) // s + 1)

    def three(values: Any, fill: int) -> Any:
        return (*(fill,) * (3 - axes), *values)

    windows = Windows(
        shape[0], three(size, 1), three(out, 1), three(taps, 1), three(steps, 1), three(apart, 1),
        three((before for before, _ in around), 0), shape[-1],
    )  # fmt: skip
    return windows, (steps, around, apart)
