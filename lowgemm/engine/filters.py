"""Filters of a convolution that are packed once, and plans of convolutions with them.

A convolution is a product of patches and filters, and runs on the engine of all products (`image.py` and
`pixels.py` say how the patches come in). Groups are the items of a batch. Where a window is a pixel the image
itself is the lhs. Where each channel has a filter of its own, a product would have a single column, and where
groups have a few channels, few columns: such convolutions run on loops of their own, `depthwise.py` and
`grouped.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from lowgemm.engine.batch import Batch
from lowgemm.engine.image import Windows
from lowgemm.engine.line_loop import dot_bits
from lowgemm.engine.loop_plan import LoopPlan, LoopShape, LoopWeights, has_loop
from lowgemm.engine.packed_rhs import PackedRhs, packed_by
from lowgemm.engine.plan import Operand, Plan
from lowgemm.engine.seen import Seen
from lowgemm.kernels import Kernel, selected

#: Columns up to which groups are put together in one product: a panel of the widest kernels of vectors. A
#: kernel that reads rows (AMX) takes as many columns as a row's step has bytes: 28x28x128 in 32 groups of 4
#: took 131, 84 and 77 us there with 16, 32 and 64 columns, and 176, 189 and 271 with VNNI, before such groups
#: had a loop.
COLUMNS = 16


class _Products(NamedTuple):
    """The filters as the rhs of a batch of products.

    Attributes
    ----------
    shape : tuple of int
        (products, depth, columns).
    strides : tuple of int
        Bytes along depth and columns; of panels they do not matter.
    apart, sums : int
        Bytes from one product's filters, and from its column sums, to the next one's.
    packed : bool
        Whether these are panels.
    """

    shape: tuple[int, int, int]
    strides: tuple[int, int]
    apart: int
    sums: int
    packed: bool


class Filters:
    """Filters of a convolution, or their shape alone: plans are made for these.

    Attributes
    ----------
    shape : tuple of int
        (sizes along the spatial axes ..., channels of a group, outputs).
    groups : int
        Groups of channels.
    dtype : dtype
        uint8 or int8.
    """

    def __init__(self, shape: tuple[int, ...], groups: int, dtype: Any) -> None:
        self.shape, self.groups, self.dtype = shape, groups, np.dtype(dtype)

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.shape) - 2

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.shape[-2] * self.groups

    @property
    def outputs(self) -> int:
        """Channels of the result."""
        return self.shape[-1]

    @property
    def depth(self) -> int:
        """Depth of the product: taps times channels of a group."""
        return math.prod(self.shape[:-1])


class GivenFilters(Filters):
    """Filters that come with each run, so that their values are not known when a plan is made.

    A product reads them as they are, with outputs first and channels last in memory, and packs them itself. A
    loop of its own reads them as `loop_plan.arranged` brings them into order.

    Parameters
    ----------
    shape, groups, dtype
        Of the filters.
    given_zero : bool
        Their zero point, one for all, comes with them.
    """

    def __init__(self, shape: tuple[int, ...], groups: int, dtype: Any, given_zero: bool) -> None:
        super().__init__(shape, groups, dtype)
        self._given_zero = given_zero

    def in_loop(self, zero: int | np.ndarray) -> bool:
        """As of `PackedFilters`, whatever their values are: the loop takes weights of 16 bits too."""
        if not isinstance(zero, int) or not has_loop(self.shape, self.groups):
            return False
        return abs(zero) < 1 << 14

    def _fit(self, zero: int) -> bool:
        """Whether all filters of their type less the zero point have 8 bits."""
        info = np.iinfo(self.dtype)
        return not self._given_zero and info.min - zero >= -128 and info.max - zero <= 127

    def rhs(self, kernel: Kernel, zero: int | np.ndarray) -> LoopShape | None:
        """What a loop for these filters is given, or None: the filters themselves."""
        return self.loop_shape(kernel, zero) if self.in_loop(zero) else None

    def loop_shape(self, kernel: Kernel, zero: Any) -> LoopShape:
        """The shape of the weights of a loop."""
        return LoopShape(self.shape[-2], self.outputs, dot_bits(kernel) if self._fit(zero) else 0)

    def products(self, kernel: Kernel, zero: int | np.ndarray) -> _Products:
        """How they are the rhs of products: each group of outputs is one."""
        columns = self.outputs // self.groups
        shape = self.groups, self.depth, columns
        return _Products(shape, (1, self.depth), self.depth * columns, 0, False)


class PackedFilters(Filters):
    """Packed filters of a convolution, made by `pack_filters`.

    Most are packed when this is made, and held in that form alone.

    Attributes
    ----------
    shape : tuple of int
        (sizes along the spatial axes ..., channels of a group, outputs).
    groups : int
        Groups of channels.
    dtype : dtype
        uint8 or int8.
    """

    def __init__(self, filters: np.ndarray, groups: int) -> None:
        super().__init__(filters.shape, groups, filters.dtype)
        #: None where the packed ones say as much.
        self._filters: np.ndarray | None = np.array(filters, order="C") if self._waits() else filters
        self._packed: tuple[Any, PackedRhs | None] = (None, None)
        #: What was prepared for calls of a kind with these filters.
        self.seen = Seen()
        self._weights: tuple[Any, LoopWeights | None] = (None, None)
        if not self._waits():
            self.packed_for(selected(), 0)

    def _waits(self) -> bool:
        """Whether how they are packed depends on a call: groups are put together with their zero point in
        between, and loops look at their filters. Such filters are small. Where nothing is compiled,
        definitions read them.
        """
        return self.groups > 1 or has_loop(self.shape, self.groups) or numba.config.DISABLE_JIT

    def in_loop(self, zero: int | np.ndarray) -> bool:
        """Whether a loop of its own runs, of depthwise or grouped convolutions, given the filters' zero
        point; if not, products do.
        """
        return has_loop(self.shape, self.groups) and LoopWeights.fit(self._plain(), zero)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (self._filters, self._packed[1], self._weights[1])
        return sum(0 if part is None else part.nbytes for part in held)

    def __repr__(self) -> str:
        return f"PackedFilters(shape={self.shape}, dtype={self.dtype}, groups={self.groups})"

    def __getstate__(self) -> dict[str, Any]:
        # as a packed rhs: the plain filters, which are right on a machine with another kernel
        return {"filters": self._plain(), "groups": self.groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["filters"], state["groups"])  # type: ignore[misc]

    def to_array(self) -> np.ndarray:
        """The filters, in the order of `shape`."""
        return np.array(self._plain(), order="C")

    def _plain(self) -> np.ndarray:
        """The filters, as they came or out of the packed ones."""
        filters = self._filters
        if filters is not None:
            return filters
        # what is packed is replaced, but never taken away
        return self._packed[1].to_array().reshape(self.shape)  # type: ignore[union-attr]

    def packed_for(self, kernel: Kernel, zero: int | np.ndarray) -> PackedRhs:
        """The filters as the rhs of a batch of products, given their zero point: shape (products, depth,
        columns).

        Groups with few outputs are put together until a product has `COLUMNS` or more. What one group's
        filters would add to another's is the zero point, which counts as 0.
        """
        together = 1
        if self.groups > 1 and not isinstance(zero, np.ndarray):  # every call comes here
            info = np.iinfo(self.dtype)
            together = self._together(kernel) if info.min <= zero <= info.max else 1
        key = kernel.name, zero if together > 1 else None
        known, packed = self._packed
        if known != key or packed is None:
            packed = packed_by(self._in_products(together, zero), kernel)
            self._packed = key, packed  # one assignment, so threads see a pair that fits
            if not self._waits():
                self._filters = None
        return packed

    def _together(self, kernel: Kernel) -> int:
        """Groups in one product."""
        columns, depth, most = self.outputs // self.groups, self.shape[-2], kernel.row_bytes or COLUMNS
        fitting = [k for k in range(1, self.groups + 1) if self.groups % k == 0 and k * columns <= most]
        return max((k for k in fitting if k * depth <= 4 * most), default=1)

    def _in_products(self, together: int, zero: int | np.ndarray) -> np.ndarray:
        depth, columns = self.shape[-2], self.outputs // self.groups
        split = self._plain().reshape(-1, depth, self.groups // together, together, columns)
        if together == 1:
            return split.transpose(2, 0, 1, 3, 4).reshape(self.groups, -1, columns)
        whole = np.full(
            (split.shape[2], split.shape[0], together, depth, together, columns), zero, self.dtype
        )
        for k in range(together):
            whole[:, :, k, :, k] = split[:, :, :, k].transpose(2, 0, 1, 3)
        return whole.reshape(split.shape[2], -1, together * columns)

    def products(self, kernel: Kernel, zero: int | np.ndarray) -> _Products:
        """How they are the rhs of products."""
        packed = self.packed_for(kernel, zero)
        panels, sums = packed.batch_strides()
        return _Products(packed.shape, (0, 0), panels[0], sums, True)  # type: ignore[arg-type]

    def loop_shape(self, kernel: Kernel, zero: int | np.ndarray) -> LoopShape:
        """The shape of the weights of a loop."""
        return self.loop_weights(kernel, zero).shape

    def rhs(self, kernel: Kernel, zero: int | np.ndarray) -> PackedRhs | LoopWeights:
        """What a plan for these filters multiplies with, given their zero point."""
        return self.loop_weights(kernel, zero) if self.in_loop(zero) else self.packed_for(kernel, zero)

    def loop_weights(self, kernel: Kernel, zero: int | np.ndarray) -> LoopWeights:
        """The filters of a convolution with a loop of its own less their zero point; those of the last zero
        point are kept.
        """
        key = kernel.name, zero.tobytes() if isinstance(zero, np.ndarray) else zero
        known, weights = self._weights
        if known != key or weights is None:
            weights = LoopWeights(self._plain(), self.groups, zero, kernel)
            self._weights = key, weights  # one assignment, so threads see a pair that fits
        return weights


def convolution_plan(
    filters: PackedFilters | GivenFilters,
    windows: Windows,
    strides: tuple[int, int, int, int],
    kind: str,
    *,
    stages: tuple[Any, ...],
    result: np.dtype,
    out_row_stride: int,
    filter_zero: int | np.ndarray,
    num_threads: int | None,
) -> Plan:
    """Plan of a convolution: its lhs is the first image, its rhs the filters, its result one row a window.

    Parameters
    ----------
    filters : PackedFilters or GivenFilters
        The filters.
    windows : Windows
        Where their windows lie on the images.
    strides : tuple of int
        Bytes from image to image, and from pixel to pixel along each axis.
    kind : str
        "u" or "i", of the images.
    stages : tuple of stages
        Checked.
    result : dtype
        Of the result.
    out_row_stride : int
        Bytes from one window's result to the next.
    filter_zero : int or ndarray of shape (outputs,)
        The filters' zero point. Another of the same kind may be given to the plan where it is a product.
    num_threads : int or None
        As in `gemm`.
    """
    kernel = selected()
    if filters.in_loop(filter_zero):
        weights = filters.loop_shape(kernel, filter_zero)
        return LoopPlan(kernel, weights, windows, strides, kind, stages, result, out_row_stride, num_threads)
    right = filters.products(kernel, filter_zero)
    products, depth, columns = right.shape
    run = depth // math.prod(windows.taps)
    m = windows.images * math.prod(windows.out)
    image, lhs_strides = None, (strides[3], 1)
    if not (windows.pointwise and _in_rows(windows, strides)):
        image, lhs_strides = windows.record(strides, run), (0, 0)
    batch = Batch()
    if products > 1:
        each = (products,)
        out = (columns * result.itemsize,)
        batch = Batch(each, (each, (run,)), (each, (right.apart,)), out, right.sums)
    return Plan(
        kernel,
        Operand((m, depth), lhs_strides, kind),
        Operand((depth, columns), right.strides, filters.dtype.kind),
        result=result,
        out_strides=(out_row_stride, result.itemsize),
        batch=batch,
        packed=right.packed,
        bilinear=isinstance(filter_zero, np.ndarray),
        output=stages,
        num_threads=num_threads,
        image=image,
        windows=windows if image is not None else None,
        own_channels=products > 1,
    )


def _in_rows(windows: Windows, strides: tuple[int, ...]) -> bool:
    """Whether all pixels of all images follow one another with one stride."""
    step = strides[3]
    for size, stride in zip((windows.size[2], windows.size[1], windows.size[0]), strides[2::-1], strict=True):
        step *= size
        if stride != step:
            return False
    return True
