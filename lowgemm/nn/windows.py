"""Where the windows of a pooling lie, as the routines of `routines.py` are told."""

from __future__ import annotations

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

    def fields(self) -> dict[str, int]:
        """The fields that the records of all routines over windows have."""
        (images, height, width, channels), (oh, ow) = self.shape, self.out
        (kh, kw), (sy, sx), (dy, dx) = self.size, self.stride, self.dilation
        return {
            "images": images, "height": height, "width": width, "channels": channels, "oh": oh, "ow": ow,
            "kh": kh,
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
