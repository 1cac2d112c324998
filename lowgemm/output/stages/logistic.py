"""The integer logistic function."""

from __future__ import annotations

from dataclasses import dataclass

from lowgemm.checks.values import integer
from lowgemm.fixedpoint import scalar as fp
from lowgemm.output.base import Stage
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import NUMBER
from lowgemm.output.tile_routine import Step


@elementwise(integer_bits=NUMBER)
def logistic(x, integer_bits):
    """1 / (1 + exp(-x)) as Q0.31."""
    return fp.logistic(x, integer_bits, 32)


@dataclass(frozen=True, eq=False, repr=False)
class Logistic(Stage):
    """``1 / (1 + exp(-x))`` of a fixed-point value with `integer_bits`; the result is Q0.31.

    Parameters
    ----------
    integer_bits : int
        Integer bits of x, 0 to 29: x stands for ``x / 2**(31 - integer_bits)``.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> y = lowgemm.requantize(np.array([[0, 2**28]], np.int32), [lowgemm.Logistic(3)])  # of 0.0 and 1.0
    >>> (y / 2**31).round(4)
    array([[0.5   , 0.7311]])
    """

    integer_bits: int

    def __post_init__(self) -> None:
        self._set(integer_bits=integer(self.integer_bits, "integer_bits", 0, 29))

    def step(self) -> Step:
        """One pass."""
        return logistic.step(integer_bits=self.integer_bits)
