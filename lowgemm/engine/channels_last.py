"""Images with their channels in front, copied so that they are last: 16 x 16 bytes at a time."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from lowgemm.engine import entry
from lowgemm.engine.array_objects import DATA, data_of
from lowgemm.engine.parts import PASS, run, workers_for
from lowgemm.engine.records import record_type
from lowgemm.engine.rows import SQUARE, turn
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import load_i64, load_u8, offset, pointer_at, record_at, store_8
from lowgemm.jit.routine import call_address, inner, routine, unpack_words
from lowgemm.kernels.framework.irtools import at, const, i8, i64, load, shuffle, store, vec

#: Nanoseconds of one thread for a byte, about: 112 x 112 x 64 take 65 us on an Intel Xeon with AMX. One by one
#: a byte takes `EACH`.
NANOSECONDS, EACH = 0.08, 0.8
#: Channels of colour images, whose pixels are made in vectors: 320 x 320 of them took 240 us one by one.
COLOURS = 3

#: First argument of `copy`.
COPY_CALL = record_type(
    *entry.EVERY_CALL.descr,
    "routine",  # address of `turn_planes`
    "plane_stride image_stride pixels channels images",
)
copy_call_at = record_at(COPY_CALL)
#: Numbers of the arguments of `copy`.
_CALL, _IMAGE, _MADE = range(3)


@intrinsic
def _mix(typingctx, args):
    """`SQUARE` pixels of `COLOURS` channels: (their first plane, bytes from plane to plane, pixels)."""

    def codegen(context, b, signature, values):
        src, plane_stride, dst = unpack_words(context, b, signature.args[0], values[0])
        planes = [
            load(b, vec(i8, SQUARE), at(b, src, b.mul(plane_stride, const(i64, c)))) for c in range(COLOURS)
        ]
        two = shuffle(b, *planes[:2], list(range(2 * SQUARE)))
        third = shuffle(b, planes[2], None, [i % SQUARE for i in range(2 * SQUARE)])
        order = [c * SQUARE + p for p in range(SQUARE) for c in range(COLOURS)]
        store(b, shuffle(b, two, third, order), dst)
        return context.get_dummy_value()

    return types.void(args), codegen


@inner
def _turn(src, plane_stride, image_stride, dst, pixels, channels, first, end):
    """Pieces `first` to `end`, each `SQUARE` pixels of an image or what is left of it. The squares of the
    last overlap those before.
    """
    pieces = (pixels + SQUARE - 1) // SQUARE
    for piece in range(first, end):
        number, i = piece // pieces, piece % pieces * SQUARE
        image, to = offset(src, number * image_stride), offset(dst, number * pixels * channels)
        if pixels >= SQUARE and channels >= SQUARE:
            p = min(i, pixels - SQUARE)
            for j in range(0, channels, SQUARE):
                c = min(j, channels - SQUARE)
                turn(
                    offset(image, c * plane_stride + p), plane_stride, offset(to, p * channels + c), channels
                )
        elif pixels >= SQUARE and channels == COLOURS:
            p = min(i, pixels - SQUARE)
            _mix((offset(image, p), plane_stride, offset(to, p * COLOURS)))
        else:
            for c in range(channels):
                plane, place = offset(image, c * plane_stride), offset(to, c)
                for p in range(i, min(i + SQUARE, pixels)):
                    store_8(place, p * channels, load_u8(plane, p))


@routine("pnnpnnn")
def turn_planes(src, plane_stride, image_stride, dst, pixels, channels, images):
    """Copy images of contiguous planes to pixels of contiguous channels.

    `src` and `dst` point to the images; planes are `plane_stride` bytes apart, images `image_stride`.
    """
    pieces = images * ((pixels + SQUARE - 1) // SQUARE)
    _turn(src, plane_stride, image_stride, dst, pixels, channels, 0, pieces)


@routine(PASS)
def turn_some(args, first, end, worker):
    """A part of `turn_planes`, whose arguments these are but for the number of images."""
    src, dst = pointer_at(args, 0), pointer_at(args, 3)
    strides, sizes = (load_i64(args, 1), load_i64(args, 2)), (load_i64(args, 4), load_i64(args, 5))
    _turn(src, *strides, dst, *sizes, first, end)


@routine(entry.BUILT_IN)
def _copy(_self, args, _count):
    """As in `entry.py`; the arguments behind the record are the images and their copy."""
    call = copy_call_at(pointer_at(pointer_at(args, _CALL), DATA))
    call_address(
        call.routine,
        (
            data_of(pointer_at(args, _IMAGE)), call.plane_stride, call.image_stride,
            data_of(pointer_at(args, _MADE)), call.pixels, call.channels, call.images,
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

    def run(self, images: np.ndarray, quickly: bool, num_threads: int | None = 1) -> np.ndarray:
        """The copy, on as many threads as pay. `quickly`: by a built-in function, which is compiled when it
        is first wanted.
        """
        if self._sizes is None:
            return np.ascontiguousarray(images)
        made = np.empty(self._shape, images.dtype)
        pieces, channels = self._sizes[4] * -(-self._sizes[2] // SQUARE), self._sizes[3]
        time = made.size * (NANOSECONDS if channels >= SQUARE or channels == COLOURS else EACH)
        workers = workers_for(time, pieces, num_threads)
        if workers > 1:
            plane_stride, image_stride, *counts = self._sizes
            args = images.ctypes.data, plane_stride, image_stride, made.ctypes.data, *counts[:2]
            run(turn_some, args, pieces, workers, time)
            return made
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
