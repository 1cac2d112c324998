"""Images with their channels in front, copied so that they are last: 16 x 16 bytes at a time."""

from __future__ import annotations

import numpy as np

from lowgemm.engine.rows import SQUARE, turn
from lowgemm.jit.memory import load_u8, offset, store_8
from lowgemm.jit.routine import routine


@routine("pnnpnnn")
def turn_planes(src, plane_stride, image_stride, dst, pixels, channels, images):
    """Copy images of contiguous planes to pixels of contiguous channels.

    `src` and `dst` point to the images; planes are `plane_stride` bytes apart, images `image_stride`.
    """
    square_pixels, square_channels = pixels // SQUARE * SQUARE, channels // SQUARE * SQUARE
    for number in range(images):
        image, to = offset(src, number * image_stride), offset(dst, number * pixels * channels)
        for p in range(0, square_pixels, SQUARE):
            for c in range(0, square_channels, SQUARE):
                turn(
                    offset(image, c * plane_stride + p), plane_stride, offset(to, p * channels + c), channels
                )
        for c in range(square_channels, channels):
            plane, place = offset(image, c * plane_stride), offset(to, c)
            for p in range(square_pixels):
                store_8(place, p * channels, load_u8(plane, p))
        for p in range(square_pixels, pixels):
            for c in range(channels):
                store_8(to, p * channels + c, load_u8(image, c * plane_stride + p))


def channels_last(image: np.ndarray) -> np.ndarray:
    """A contiguous copy of an image (images, ..., channels) of 8 bits, fast where the channels' planes are contiguous."""
    *_, channels = image.shape
    planes = image[..., 0] if channels else image
    pixels = int(np.prod(image.shape[1:-1]))
    if image.size == 0 or image.strides[-1] < 0 or not _contiguous(planes):
        return np.ascontiguousarray(image)
    made = np.empty(image.shape, image.dtype)
    turn_planes.ctypes(
        image.ctypes.data,
        image.strides[-1],
        image.strides[0],
        made.ctypes.data,
        pixels,
        channels,
        image.shape[0],
    )
    return made


def _contiguous(planes: np.ndarray) -> bool:
    """Whether each plane's pixels follow one another."""
    step = 1
    for size, stride in zip(planes.shape[:0:-1], planes.strides[:0:-1], strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return planes.strides[0] >= 0
