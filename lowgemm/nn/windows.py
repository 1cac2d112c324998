"""Where the windows of a convolution or a pooling lie, as the routines of `routines.py` are told."""

from __future__ import annotations

import math
from typing import NamedTuple


class Windows(NamedTuple):
    """Windows over images, channels last.

    Attributes
    ----------
    shape : tuple of int
        Of the images: (number, height, width, channels).
    out : (int, int)
        Windows below each other and side by side.
    size, stride, dilation : (int, int)
        Of a window, from one to the next, and inside of one; for height and width.
    padding : (int, int, int, int)
        Top, bottom, left and right.
    """

    shape: tuple[int, ...]
    out: tuple[int, ...]
    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def padded(self, images: int | None = None) -> Windows:
        """The same windows, seen on the padded images, or on so many of them.

        Examples
        --------
        >>> Windows((1, 5, 4, 3), (5, 4), (3, 3), (1, 1), (1, 1, 1, 1)).padded().shape
        (1, 7, 6, 3)
        """
        n, height, width, channels = self.shape
        top, bottom, left, right = self.padding
        shape = (n if images is None else images, height + top + bottom, width + left + right, channels)
        return Windows(shape, self.out, self.size, self.stride, (0, 0, 0, 0), self.dilation)

    def fields(self) -> dict[str, int]:
        """The fields that the records of all routines over windows have."""
        (images, height, width, channels), (oh, ow) = self.shape, self.out
        (kh, kw), (sy, sx), (dy, dx) = self.size, self.stride, self.dilation
        return {
            "images": images, "height": height, "width": width, "channels": channels, "oh": oh, "ow": ow, "kh": kh,
            "kw": kw, "sy": sy, "sx": sx, "dy": dy, "dx": dx, "top": self.padding[0], "left": self.padding[2],
        }  # fmt: skip

    def margins(self, zero: int) -> dict[str, int]:
        """Parameters of `routines.pad`, which makes the padded images."""
        n, height, width, channels = self.shape
        top, bottom, left, right = self.padding
        return {
            "images": n, "height": height, "row": width * channels, "top": top, "bottom": bottom,
            "left": left * channels, "right": right * channels, "zero": zero & 255,
        }  # fmt: skip

    def patches(self, first: int, count: int, channel: int, depth: int, row_bytes: int) -> dict[str, int]:
        """Parameters of `routines.patches` on the padded images: `depth` channels from `channel` on."""
        # taps of a row that lie side by side in the image are copied in one go
        together = self.dilation[1] == 1 and depth == self.shape[3]
        taps_x, run = (1, self.size[1] * depth) if together else (self.size[1], depth)
        return self.fields() | {
            "first": first, "count": count, "taps_x": taps_x, "run": run, "channel": channel, "row_bytes": row_bytes,
            "size": math.prod(self.shape),
        }  # fmt: skip
