"""Where a convolution's windows lie: strides, dilations and padding of ONNX, any number of spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowgemm.checks.values import choice, integer

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Geometry:
    """Checked geometry of one convolution.

    Attributes
    ----------
    size, kernel, strides, dilations, begin, end, out : tuple of int
        One entry for each spatial axis: input size, kernel size, step of the windows, step inside a window,
        padding before and after, and the number of windows.
    group : int
        Number of groups that the channels are split into.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    out: tuple[int, ...]
    group: int


def _per_axis(value: Any, name: str, axes: int, default: int, low: int) -> tuple[int, ...]:
    """One integer for each axis."""
    if value is None:
        return (default,) * axes
    try:
        values = list(value)
    except TypeError:
        raise TypeError(f"{name}: expected {axes} integers or None, got {type(value).__name__}") from None
    found = tuple(integer(v, name, low) for v in values)
    if len(found) != axes:
        raise ValueError(f"{name}: expected {axes} values, got {len(found)}")
    return found


def check_filters(w_shape: tuple[int, ...], group: Any = None) -> int:
    """Check the shape of filters, and that they divide into groups; the number of groups."""
    if len(w_shape) < 3:
        raise ValueError(f"w: expected filters, channels and at least one spatial axis, got shape {w_shape}")
    group = 1 if group is None else integer(group, "group", 1)
    if w_shape[0] % group:
        raise ValueError(f"group: expected a divisor of the {w_shape[0]} filters, got {group}")
    if 0 in w_shape[2:]:
        raise ValueError(f"w: expected kernels with elements, got shape {w_shape}")
    return group


def geometry(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    *,
    auto_pad: str | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Geometry:
    """Check the attributes of a convolution against the shapes of its operands.

    Parameters
    ----------
    x_shape : tuple of int
        (images, channels, spatial sizes ...).
    w_shape : tuple of int
        (filters, channels / group, kernel sizes ...).
    auto_pad, dilations, group, kernel_shape, pads, strides
        ONNX's attributes; None for those left out. `pads` are all beginnings, then all ends.

    Returns
    -------
    Geometry

    Raises
    ------
    TypeError, ValueError
        If something does not fit; the message names it.

    Examples
    --------
    >>> geometry((1, 3, 8, 8), (5, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER").out
    (4, 4)
    """
    axes = len(x_shape) - 2
    if axes < 1:
        raise ValueError(f"x: expected images, channels and at least one spatial axis, got shape {x_shape}")
    if len(w_shape) != len(x_shape):
        raise ValueError(f"w: expected {len(x_shape)} dimensions like x, got shape {w_shape}")
    group = check_filters(w_shape, group)
    if x_shape[1] != w_shape[1] * group:
        raise ValueError(f"w: expected {x_shape[1]} / {group} channels, got shape {w_shape}")
    size, kernel = tuple(x_shape[2:]), tuple(w_shape[2:])
    stated = kernel if kernel_shape is None else _per_axis(kernel_shape, "kernel_shape", axes, 1, 1)
    if stated != kernel:
        raise ValueError(f"kernel_shape: expected {kernel} as in w, got {stated}")
    strides = _per_axis(strides, "strides", axes, 1, 1)
    dilations = _per_axis(dilations, "dilations", axes, 1, 1)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    auto_pad = "NOTSET" if auto_pad is None else choice(auto_pad, "auto_pad", AUTO_PADS)
    if auto_pad == "NOTSET":
        both = _per_axis(pads, "pads", 2 * axes, 0, 0)
        begin, end = both[:axes], both[axes:]
    elif auto_pad == "VALID":
        begin = end = (0,) * axes
    else:
        total = tuple(
            max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(size, strides, reach, strict=True)
        )
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    padded = tuple(n + b + e for n, b, e in zip(size, begin, end, strict=True))
    if any(p < r for p, r in zip(padded, reach, strict=True)):
        raise ValueError(f"w, dilations: expected windows within the padded input {padded}, got {reach}")
    out = tuple((p - r) // s + 1 for p, r, s in zip(padded, reach, strides, strict=True))
    return Geometry(size, kernel, strides, dilations, begin, end, out, group)
