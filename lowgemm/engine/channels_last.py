"""Images with their channels in front, copied so that they are last: 16 x 16 bytes at a time."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from lowgemm.engine import entry
from lowgemm.engine.array_objects import DATA, data_of
from lowgemm.engine.records import record_type
from lowgemm.engine.rows import SQUARE, turn
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import load_u8, offset, pointer_at, record_at, store_8
from lowgemm.jit.routine import call_address, routine

#: First argument of `copy`.
COPY_CALL = record_type(
    *entry.EVERY_CALL.descr,
    "routine",  # address of `turn_planes`
    "plane_stride image_stride pixels channels images",
)
copy_call_at = record_at(COPY_CALL)
#: Numbers of the arguments of `copy`.
_CALL, _IMAGE, _MADE = range(3)


@routine("pnnpnnn")
def turn_planes(src, plane_stride, image_stride, dst, pixels, channels, images):
    """Copy images of contiguous planes to pixels of contiguous channels.

    `src` and `dst` point to the images; planes are `plane_stride` bytes apart, images `image_stride`. The
    last squares overlap those before.
    """
    for number in range(images):
        image, to = offset(src, number * image_stride), offset(dst, number * pixels * channels)
        if pixels >= SQUARE and channels >= SQUARE:
            for i in range(0, pixels, SQUARE):
                p = min(i, pixels - SQUARE)
                for j in range(0, channels, SQUARE):
                    c = min(j, channels - SQUARE)
                    turn(
                        offset(image, c * plane_stride + p),
                        plane_stride,
                        offset(to, p * channels + c),
                        channels,
                    )
        else:
            for c in range(channels):
                plane, place = offset(image, c * plane_stride), offset(to, c)
                for p in range(pixels):
                    store_8(place, p * channels, load_u8(plane, p))


@routine(entry.BUILT_IN)
def _copy(_self, args, _count):
    """As in `entry.py`; the arguments behind the record are the images and their copy."""
    call = copy_call_at(pointer_at(pointer_at(args, _CALL), DATA))
    call_address(
        call.routine,
        (
            data_of(pointer_at(args, _IMAGE)), call.plane_stride, call.image_stride, data_of(pointer_at(args, _MADE)),
            call.pixels, call.channels, call.images,
        ),
    )  # fmt: skip
    return entry.new_reference(call, args, _MADE)


@functools.cache
def copy() -> Any:
    """``copy(call, images, made) -> made``; None where it is not `entry.usable`."""
    return entry.built_in(b"copy", _copy)


class ChannelsLast(NotCopied):
    """Copies images of 8 bits of one shape (images, sizes ..., channels) and strides so that they are
    contiguous.

    It is fast where each channel's plane is contiguous.

    Parameters
    ----------
    shape, strides : tuple of int
        Of the images.
    """

    instead = "make another of the same shape and strides"

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self._shape = shape
        self._sizes: tuple[int, ...] | None = None
        if math.prod(shape) and strides[-1] >= 0 and _contiguous(shape[:-1], strides[:-1]):
            self._sizes = strides[-1], strides[0], math.prod(shape[1:-1]), shape[-1], shape[0]
            names = ("plane_stride", "image_stride", "pixels", "channels", "images")
            self._record = entry.filled(
                COPY_CALL, routine=turn_planes.address, **dict(zip(names, self._sizes, strict=True))
            )

    def run(self, images: np.ndarray, quickly: bool) -> np.ndarray:
        """The copy. `quickly`: by a built-in function, which is compiled when it is first wanted."""
        if self._sizes is None:
            return np.ascontiguousarray(images)
        made = np.empty(self._shape, images.dtype)
        call = copy() if quickly else None
        if call is not None:
            return call(self._record, images, made)
        plane_stride, image_stride, *counts = self._sizes
        turn_planes.ctypes(images.ctypes.data, plane_stride, image_stride, made.ctypes.data, *counts)
        return made


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the pixels of each image's planes follow one another."""
    step = 1
    for size, stride in zip(shape[:0:-1], strides[:0:-1], strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return strides[0] >= 0
