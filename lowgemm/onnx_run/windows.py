"""Where the windows of pools lie, as onnxruntime has it.

A window may begin before the data and end behind it; what lies outside counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lowgemm.jit.routine import inner
from lowgemm.onnx_run.geometry import AUTO_PADS

#: Spatial axes of the compiled passes.
AXES = 3


class Windows(NamedTuple):
    """One entry for each spatial axis: how many places a window has, the step from window to window, the step
    inside of one, how far the first begins before the data (behind its start if negative), and how many
    windows there are.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    out: tuple[int, ...]


def windows(
    size: Sequence[int],
    kernel_shape: Sequence[int],
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Windows:
    """Windows of a pool over data of `size`.

    Two habits of onnxruntime show with odd sizes. SAME_UPPER and SAME_LOWER do not count dilations. And where
    a stride is longer than what is missing of a window, there is one window all the same.

    Raises
    ------
    ValueError
        If an attribute does not fit; the message names it.

    Examples
    --------
    >>> windows((5,), (2,), strides=[2], ceil_mode=1).out
    (3,)
    """
    axes = len(size)
    ones = (1,) * axes
    kernel, strides, dilations = (tuple(v or ones) for v in (kernel_shape, strides, dilations))
    pads = tuple(pads or (0,) * (2 * axes))
    for name, values, count in (
        ("kernel_shape", kernel, axes), ("strides", strides, axes), ("dilations", dilations, axes),
        ("pads", pads, 2 * axes),
    ):  # fmt: skip
        low = 0 if name == "pads" else 1
        if len(values) != count or min(values, default=1) < low:
            raise ValueError(f"{name}: expected {count} numbers of at least {low}, got {values}")
    if auto_pad not in AUTO_PADS:
        raise ValueError(f"auto_pad: expected {', '.join(AUTO_PADS)}, got {auto_pad!r}")
    begins, outs = [], []
    for i, (n, k, step, inner_step) in enumerate(zip(size, kernel, strides, dilations, strict=True)):
        before, after = (pads[i], pads[i + axes]) if auto_pad == "NOTSET" else (0, 0)
        if auto_pad.startswith("SAME"):
            total = (-(-n // step) - 1) * step + k - n
            before = int((total + (auto_pad == "SAME_LOWER")) / 2)  # rounded towards 0
            after = total - before
        over = n + before + after - (k - 1) * inner_step - 1
        out = -(-over // step) + 1 if ceil_mode else int(over / step) + 1
        if ceil_mode and (out - 1) * step >= n + before:
            out -= 1  # it would begin behind the data
        if out < 0:
            raise ValueError(
                f"kernel_shape: expected windows within the padded data {n + before + after}, got {k} places"
            )
        begins.append(before)
        outs.append(out)
    return Windows(kernel, strides, dilations, tuple(begins), tuple(outs))


def at_place(x: np.ndarray, w: Windows, place: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What all windows of (images, channels, ...) have in one place, and whether that is inside the data."""
    indices, inside = [], np.ones(w.out, bool)
    for i, p in enumerate(place):
        shape = tuple(-1 if j == i else 1 for j in range(len(place)))
        at = (np.arange(w.out[i]) * w.strides[i] - w.begin[i] + p * w.dilations[i]).reshape(shape)
        inside &= (at >= 0) & (at < x.shape[2 + i])
        indices.append(np.clip(at, 0, x.shape[2 + i] - 1))
    return x[(slice(None), slice(None), *indices)], inside


def largest(x: np.ndarray, w: Windows, column_major: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each window of (images, channels, ...), and which element of the data it is, the first
    if several.

    Elements are numbered as they lie in C order, with `column_major` those of a channel by their first axis
    first. A window without elements has the type's smallest finite value, and the number -1.
    """
    info = np.iinfo(x.dtype) if x.dtype.kind in "iu" else np.finfo(x.dtype)
    y = np.full((*x.shape[:2], *w.out), info.min, x.dtype)
    numbers = np.full(y.shape, -1, np.int64)
    if not x.size:
        return y, numbers
    every = np.arange(x.size).reshape(*x.shape[:2], *(x.shape[:1:-1] if column_major else x.shape[2:]))
    every = every.transpose(0, 1, *range(x.ndim - 1, 1, -1)) if column_major else every
    for place in np.ndindex(w.kernel):
        (found, inside), (number, _) = at_place(x, w, place), at_place(every, w, place)
        better = inside & ((found > y) | (numbers < 0))
        y, numbers = np.where(better, found, y), np.where(better, number, numbers)
    return y, numbers


# ---- for compiled passes -----------------------------------------------------------------------------------
def of_three_axes(size: Sequence[int], w: Windows) -> np.ndarray:
    """Sizes of the data, places, strides, dilations, beginnings and windows: int64, a column for each axis; the
    outer axes are of size 1 if there are fewer.
    """
    more = AXES - len(size)
    fill = (1, 1, 1, 1, 0, 1)
    rows = (size, w.kernel, w.strides, w.dilations, w.begin, w.out)
    return np.array([(f,) * more + tuple(r) for f, r in zip(fill, rows, strict=True)], np.int64)


@inner
def first_and_end(begin, step, size):
    """The first place of a window that is not before the `size` places of data, and the first behind them;
    the window begins at `begin`, and its places are `step` apart.
    """
    low = (-begin + step - 1) // step if begin < 0 else 0
    high = (size - begin + step - 1) // step if begin < size else 0
    return low, high
