"""A fixed-point scale to the right, one for the whole result."""

from __future__ import annotations

from dataclasses import dataclass

from lowgemm.checks.values import integer
from lowgemm.output import scale_and_store
from lowgemm.output.base import Stage
from lowgemm.output.stages.scale import scale
from lowgemm.output.tile_routine import Step


@dataclass(frozen=True, eq=False, repr=False)
class QuantizeDownInt32ByFixedPoint(Stage):
    """``RDP(SRDHM(x, multiplier), shift) + offset_after_shift``, the addition modulo 2**32.

    Parameters
    ----------
    multiplier : int
        Q0.31 fixed-point factor, any int32.
    shift : int
        0 to 31, to the right.
    offset_after_shift : int
        Usually the result's zero point.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> half = lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 1, 10)  # x * 0.5 / 2 + 10
    >>> lowgemm.requantize(np.array([[8, 100]], np.int32), [half])
    array([[12, 35]], dtype=int32)
    """

    multiplier: int
    shift: int
    offset_after_shift: int = 0

    def __post_init__(self) -> None:
        self._set(
            multiplier=integer(self.multiplier, "multiplier"),
            shift=integer(self.shift, "shift", 0, 31),
            offset_after_shift=integer(self.offset_after_shift, "offset_after_shift"),
        )

    def step(self) -> Step:
        """Scale by an exponent from 0 down."""
        return scale.step(
            multiplier=self.multiplier, left=0, right=self.shift, offset=self.offset_after_shift
        )

    def one_pass(self) -> scale_and_store.OnePass | None:
        """Scale and store in one pass, where the multiplier is not negative and the shift not 0."""
        return scale_and_store.one_pass(self.multiplier, -self.shift, self.offset_after_shift)
