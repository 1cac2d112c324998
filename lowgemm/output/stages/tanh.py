"""The integer hyperbolic tangent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowgemm.checks.values import integer
from lowgemm.fixedpoint import scalar as fp
from lowgemm.output.base import Stage
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import NUMBER
from lowgemm.output.tile_routine import Step


@elementwise(zero=NUMBER, amplitude=NUMBER, inverse=NUMBER, doublings=NUMBER, factor=NUMBER, halvings=NUMBER)
def tanh(x, zero, amplitude, inverse, doublings, factor, halvings):
    """amplitude * tanh((x - zero) / amplitude) + zero, the quotient in 3 integer bits.

    `inverse` and `doublings` are the reciprocal of the amplitude, `factor` and `halvings` the amplitude
    itself: see `tanh_constants`.
    """
    t = fp.high_mul(fp.wrap(x - zero, 32), inverse, 32)
    u = fp.tanh(fp.multiply_by_pot(t, 28 - doublings, 32), 3, 32)
    y = zero + (fp.high_mul(u, factor, 32) >> (31 - halvings))
    y = zero - amplitude if x <= zero - 8 * amplitude else y
    return zero + amplitude if x >= zero + 8 * amplitude else y


def tanh_constants(real_amplitude: int) -> tuple[int, int, int, int]:
    """Constants of the tanh stage: 1 / amplitude as (Q0.31, doublings), and amplitude as (Q0.31, halvings).

    Both are at least a half and less than one, but 1 / 1 stays 1, which Q0.31 has not: it takes the largest
    there is.
    """
    inverse, exponent = math.frexp(1 / real_amplitude) if real_amplitude > 1 else (1.0, 0)
    amplitude, halvings = math.frexp(real_amplitude)
    first, second = (min(math.floor(math.ldexp(x, 31) + 0.5), 2**31 - 1) for x in (inverse, amplitude))
    return first, -exponent, second, halvings


@dataclass(frozen=True, eq=False, repr=False)
class Tanh(Stage):
    """Integer hyperbolic tangent of ``(x - real_zero) / real_amplitude``, times the amplitude, plus the zero.

    Parameters
    ----------
    real_zero : int
        The int32 that stands for 0.0.
    real_amplitude : int
        The int32 distance that stands for 1.0, at least 1.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[-900, 0, 900]], np.int32), [lowgemm.Tanh(0, 100)])
    array([[-100,    0,  100]], dtype=int32)
    """

    real_zero: int
    real_amplitude: int

    def __post_init__(self) -> None:
        self._set(
            real_zero=integer(self.real_zero, "real_zero"),
            real_amplitude=integer(self.real_amplitude, "real_amplitude", 1),
        )

    def step(self) -> Step:
        """The constants of this amplitude."""
        inverse, doublings, factor, halvings = tanh_constants(self.real_amplitude)
        return tanh.step(
            zero=self.real_zero,
            amplitude=self.real_amplitude,
            inverse=inverse,
            doublings=doublings,
            factor=factor,
            halvings=halvings,
        )
