"""A fixed-point scale in either direction, for all or per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import INT32_MAX, INT32_MIN, integer, integers
from lowgemm.fixedpoint import scalar as fp
from lowgemm.jit.routine import inner
from lowgemm.output import scale_and_store
from lowgemm.output.base import Stage, axis_of, same_length
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import NUMBER, per_channel
from lowgemm.output.tile_routine import Step

_FIELDS = {
    "multiplier": per_channel(np.int32),
    "left": per_channel(np.int32),
    "right": per_channel(np.int32),
    "offset": NUMBER,
}


@inner
def _fixed_point(x, multiplier, left, right):
    """RDP(SRDHM(saturate(x << left), multiplier), right), all int64."""
    return fp.divide_by_pot(fp.high_mul(fp.shift_left(x, left, 32), multiplier, 32), right)


@elementwise(**_FIELDS)
def scale(x, multiplier, left, right, offset):
    """RDP(SRDHM(saturate(x << left), multiplier), right) + offset; the low 32 bits are kept."""
    return _fixed_point(x, multiplier, left, right) + offset


@elementwise(**_FIELDS)
def scale_saturating(x, multiplier, left, right, offset):
    """The same, kept within int32."""
    return min(max(_fixed_point(x, multiplier, left, right) + offset, INT32_MIN), INT32_MAX)


@dataclass(frozen=True, eq=False, repr=False)
class ScaleInt32ByFixedPointAndExponent(Stage):
    """``RDP(SRDHM(saturate(x * 2**max(exponent, 0)), multiplier), max(-exponent, 0)) + offset_after_shift``.

    Parameters
    ----------
    multiplier : int or array_like of int
        Q0.31 fixed-point factor, for all or one per channel.
    exponent : int or array_like of int
        -31 to 30; positive is a saturating shift to the left before the product.
    offset_after_shift : int
        Added at the end, modulo 2**32.
    axis : int
        Which way vectors run: 1, one value per column; 0, one per row.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> s = lowgemm.ScaleInt32ByFixedPointAndExponent([2**30, 2**30], [0, -1])
    >>> lowgemm.requantize(np.array([[8, 8]], np.int32), [s])
    array([[4, 2]], dtype=int32)
    """

    multiplier: ArrayLike
    exponent: ArrayLike
    offset_after_shift: int = 0
    axis: int = 1
    channel_fields = ("multiplier", "exponent")

    def __post_init__(self) -> None:
        self._set(
            multiplier=integers(self.multiplier, "multiplier"),
            exponent=integers(self.exponent, "exponent", -31, 30),
            offset_after_shift=integer(self.offset_after_shift, "offset_after_shift"),
            axis=axis_of(self.axis),
        )
        same_length(multiplier=self.multiplier, exponent=self.exponent)

    def step(self) -> Step:
        """Both shifts, of which one is 0."""
        return scale.step(self.axis, **self._parameters())

    def one_pass(self) -> scale_and_store.OnePass | None:
        """Scale and store in one pass, where no multiplier is negative and every shift goes to the right."""
        return scale_and_store.one_pass(self.multiplier, self.exponent, self.offset_after_shift, self.axis)

    def _parameters(self) -> dict[str, Any]:
        exponent = np.asarray(self.exponent)
        left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
        return {
            "multiplier": self.multiplier,
            "left": left,
            "right": right,
            "offset": self.offset_after_shift,
        }


@dataclass(frozen=True, eq=False, repr=False)
class SaturatingScale(ScaleInt32ByFixedPointAndExponent):
    """gemmlowp's scale, except that the offset is added with saturation (to int32), not modulo 2**32."""

    def step(self) -> Step:
        """With |x * scale| up to 2**30 no zero point of 16 bits leaves int32: the plain
        addition does then.
        """
        exponent = np.asarray(self.exponent)
        may_leave = exponent.size > 0 and int(exponent.max()) >= 0
        return (scale_saturating if may_leave else scale).step(self.axis, **self._parameters())
