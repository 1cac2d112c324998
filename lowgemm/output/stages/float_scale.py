"""A scale in float32 or float64, rounded half to even, as frameworks of floats have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.jit.memory import round_even
from lowgemm.output.base import Stage
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import NUMBER, per_channel
from lowgemm.output.scale_and_store import FloatOnePass
from lowgemm.output.tile_routine import Step


# The bounds are applied before the rounding. They are whole numbers, so this changes no result, and the
# conversion to an integer is then always defined.
@elementwise(scale=per_channel(np.float32), zero_point=NUMBER, low=NUMBER, high=NUMBER)
def scale_float32(x, scale, zero_point, low, high):
    """round(x * scale) + zero_point."""
    y = np.float32(np.int32(x)) * scale
    y = min(max(y, np.float32(low - zero_point)), np.float32(high - zero_point))
    return np.int64(np.int32(round_even(y))) + zero_point


@elementwise(scale=per_channel(np.float64), zero_point=NUMBER, low=NUMBER, high=NUMBER)
def scale_float64(x, scale, zero_point, low, high):
    """round(x * scale + zero_point)."""
    y = np.float64(np.int32(x)) * scale + np.float64(zero_point)
    return np.int64(round_even(min(max(y, np.float64(low)), np.float64(high))))


@dataclass(frozen=True, eq=False, repr=False)
class FloatScale(Stage):
    """``round(x * scale) + zero_point`` in float32, or ``round(x * scale + zero_point)`` in float64
    (`double`), half to even.

    `Requantize` lowers to it. The result lies in [`low`, `high`].
    """

    scale: ArrayLike
    zero_point: int
    low: int
    high: int
    double: bool
    axis: int = 1

    def step(self) -> Step:
        """One pass."""
        routine = scale_float64 if self.double else scale_float32
        return routine.step(
            self.axis, scale=self.scale, zero_point=self.zero_point, low=self.low, high=self.high
        )

    def one_pass(self) -> FloatOnePass | None:
        """Scale and store in one pass, in float32."""
        if self.double or np.size(self.scale) == 0:
            return None
        scale = np.asarray(self.scale, np.float32)
        return FloatOnePass(scale, self.zero_point, self.low, self.high, self.axis == 0 and scale.ndim == 1)
