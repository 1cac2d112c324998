"""gemmlowp's first scheme: add, multiply, divide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import integer, integers
from lowgemm.fixedpoint import scalar as fp
from lowgemm.output.base import Stage, axis_of, same_length
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import NUMBER, per_channel
from lowgemm.output.tile_routine import Step


@elementwise(offset=per_channel(np.int32), multiplier=per_channel(np.int32), shift=NUMBER)
def legacy_scale(x, offset, multiplier, shift):
    """RDP((x + offset) * multiplier, shift)."""
    return fp.divide_by_pot(fp.wrap(fp.wrap(x + offset, 32) * multiplier, 32), shift)


@dataclass(frozen=True, eq=False, repr=False)
class QuantizeDownInt32ToUint8Scale(Stage):
    """gemmlowp's first scheme: ``RDP((x + offset) * mult_int, shift)``, sum and product modulo 2**32.

    The result is int32 and may be negative, in spite of the name.

    Parameters
    ----------
    offset, mult_int : int or array_like of int
        For all or one per channel.
    shift : int
        0 to 31, to the right.
    axis : int
        Which way vectors run: 1, one value per column; 0, one per row.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> s = lowgemm.QuantizeDownInt32ToUint8Scale(offset=1, mult_int=3, shift=1)
    >>> lowgemm.requantize(np.array([[0, -2]], np.int32), [s])  # 1.5 and -1.5, ties away from zero
    array([[ 2, -2]], dtype=int32)
    """

    offset: ArrayLike
    mult_int: ArrayLike
    shift: int
    axis: int = 1
    channel_fields = ("offset", "mult_int")

    def __post_init__(self) -> None:
        self._set(
            offset=integers(self.offset, "offset"),
            mult_int=integers(self.mult_int, "mult_int"),
            shift=integer(self.shift, "shift", 0, 31),
            axis=axis_of(self.axis),
        )
        same_length(offset=self.offset, mult_int=self.mult_int)

    def step(self) -> Step:
        """One pass."""
        return legacy_scale.step(self.axis, offset=self.offset, multiplier=self.mult_int, shift=self.shift)
