"""Add a vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import as_array, integers
from lowgemm.output.base import Stage, axis_of
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import per_channel
from lowgemm.output.tile_routine import Step


@elementwise(bias=per_channel(np.int32))
def bias(x, bias):
    """x + bias; the low 32 bits are kept."""
    return x + bias


@dataclass(frozen=True, eq=False, repr=False)
class BiasAddition(Stage):
    """Add a vector: ``x + bias[column]`` (axis 1) or ``x + bias[row]`` (axis 0), modulo 2**32.

    Parameters
    ----------
    bias : array_like of int32, shape (n,) or (m,)
        One value for each column (axis 1) or row (axis 0).
    axis : int
        1 or 0.

    Raises
    ------
    TypeError, ValueError
        If `bias` is not an integer vector in int32 range.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.zeros((2, 2), np.int32), [lowgemm.BiasAddition([1, 2])])
    array([[1, 2],
           [1, 2]], dtype=int32)
    """

    bias: ArrayLike
    axis: int = 1
    channel_fields = ("bias",)

    def __post_init__(self) -> None:
        if as_array(self.bias, "bias", "a vector of integers").dtype.kind == "f":
            raise TypeError(
                "bias: expected integers in units of the sums, got floats; divide by the scale of the sums "
                "and round, or "
                "take lowgemm.Dequantize(scale, bias=...), which adds floats"
            )
        bias = integers(self.bias, "bias")
        if not isinstance(bias, np.ndarray):
            raise TypeError("bias: expected a vector of integers, got a scalar")
        self._set(bias=bias, axis=axis_of(self.axis))

    @property
    def addend(self) -> np.ndarray:  # type: ignore[override]
        """The bias: a leading one is added by the kernel."""
        return self.bias

    def step(self) -> Step:
        """One addition for each element."""
        return bias.step(self.axis, bias=self.bias)
