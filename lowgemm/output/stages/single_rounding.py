"""A fixed-point scale with one rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import INT32_MAX, INT32_MIN
from lowgemm.output.base import Stage
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import NUMBER, per_channel
from lowgemm.output.tile_routine import Step


@elementwise(multiplier=per_channel(np.int32), shift=per_channel(np.int32), offset=NUMBER)
def scale_single(x, multiplier, shift, offset):
    """floor((x * multiplier + 2**(shift - 1)) / 2**shift) + offset, kept within int32."""
    y = (x * multiplier + (1 << (shift - 1))) >> shift
    return min(max(y + offset, INT32_MIN), INT32_MAX)


@dataclass(frozen=True, eq=False, repr=False)
class SingleRoundingScale(Stage):
    """``floor((x * multiplier + 2**(30 - exponent)) / 2**(31 - exponent)) + offset``: one rounding, ties
    upwards, saturating.
    """

    multiplier: ArrayLike
    exponent: ArrayLike
    offset: int
    axis: int = 1

    def step(self) -> Step:
        """One shift for multiplier and exponent."""
        shift = 31 - np.asarray(self.exponent)
        return scale_single.step(self.axis, multiplier=self.multiplier, shift=shift, offset=self.offset)
