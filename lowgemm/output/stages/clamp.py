"""Bounds, and the activations that are nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowgemm.checks.values import INT32_MAX, integer, number
from lowgemm.output.base import Stage
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import NUMBER


@elementwise(low=NUMBER, high=NUMBER)
def clamp(x, low, high):
    """min(max(x, low), high): what `pipeline.py` runs for bounds that no store takes over."""
    return min(max(x, low), high)


@dataclass(frozen=True, eq=False, repr=False)
class Clamp(Stage):
    """``minimum(maximum(x, min), max)``; with min > max the answer is max, as in gemmlowp.

    Parameters
    ----------
    min, max : int
        Bounds, int32.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[-5, 5, 500]], np.int32), [lowgemm.Clamp(0, 255)])
    array([[  0,   5, 255]], dtype=int32)
    """

    min: int
    max: int

    def __post_init__(self) -> None:
        self._set(min=integer(self.min, "min"), max=integer(self.max, "max"))

    @property
    def bounds(self) -> tuple[int, int]:  # type: ignore[override]
        """The two."""
        return self.min, self.max


def relu(zero_point: int = 0) -> Clamp:
    """Bounds of a rectified linear unit: nothing below the integer that stands for 0.0.

    Examples
    --------
    >>> relu(3)
    Clamp(min=3, max=2147483647)
    """
    return Clamp(integer(zero_point, "zero_point"), INT32_MAX)


def relu6(scale: float, zero_point: int = 0) -> Clamp:
    """Bounds of min(max(x, 0), 6) for values of the given scale, 6 rounded to the nearest step.

    Examples
    --------
    >>> relu6(0.05, -100)
    Clamp(min=-100, max=20)
    """
    scale, zero_point = number(scale, "scale"), integer(zero_point, "zero_point")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: expected a positive number, got {scale}")
    steps = min(6 / scale, 2.0**32)  # infinite for the smallest scales
    return Clamp(zero_point, min(zero_point + round(steps), INT32_MAX))
