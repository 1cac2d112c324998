"""Hyper-parameters of the optimizers: attributes that are checked whenever they are set.

A learning rate is changed between steps, and the others may be changed too. A value with which a step cannot
compute is refused when it is assigned. So no step needs to check.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowgemm.checks.values import integer, number

#: The largest float32: a rule computes in float32, where more is infinity.
LARGEST = float(np.finfo(np.float32).max)
#: The smallest float32 with all its bits. An `eps` of at least this prevents 0 / 0 where a gradient is 0.
SMALLEST = float(np.finfo(np.float32).tiny)


class Number:
    """A number in [low, high], or in [low, high) with `open_end`.

    Examples
    --------
    >>> class Rule:
    ...     momentum = Number(0, 1, open_end=True)
    >>> rule = Rule()
    >>> rule.momentum = 1
    Traceback (most recent call last):
    ...
    ValueError: momentum: expected a finite number, 0 to 1, got 1
    """

    def __init__(self, low: float = 0, high: float = LARGEST, *, open_end: bool = False) -> None:
        self.low, self.high, self.open_end = low, high, open_end

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else instance.__dict__[self.name]

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = self.checked(value)

    def checked(self, value: Any) -> Any:
        """`value` as it is kept."""
        found = number(value, self.name)
        if (
            not math.isfinite(found)
            or not self.low <= found <= self.high
            or (self.open_end and found == self.high)
        ):
            bounds = (
                f"at least {self.low:g}"
                if self.high == LARGEST and found < self.low
                else f"{self.low:g} to {self.high:g}"
            )
            raise ValueError(f"{self.name}: expected a finite number, {bounds}, got {value}")
        return found


class Eps(Number):
    """What is added to a root before it divides; more than 0 in float32.

    Examples
    --------
    >>> class Rule:
    ...     eps = Eps()
    >>> rule = Rule()
    >>> rule.eps = 0
    Traceback (most recent call last):
    ...
    ValueError: eps: expected at least 1.17549e-38, got 0; a gradient of 0 would be divided by 0
    """

    def checked(self, value: Any) -> float:
        """`value` as it is kept."""
        found = super().checked(value)
        if found < SMALLEST:
            raise ValueError(
                f"{self.name}: expected at least {SMALLEST:g}, got {value}; a gradient of 0 would be divided "
                "by 0"
            )
        return found


class Decays(Number):
    """So many numbers in [0, 1).

    Examples
    --------
    >>> class Rule:
    ...     betas = Decays(2)
    >>> rule = Rule()
    >>> rule.betas = [0.9, 0.99]
    >>> rule.betas
    (0.9, 0.99)
    """

    def __init__(self, count: int) -> None:
        super().__init__(0, 1, open_end=True)
        self.count = count

    def checked(self, value: Any) -> tuple[float, ...]:
        """`value` as it is kept."""
        try:
            values = tuple(value)
        except TypeError:
            raise TypeError(
                f"{self.name}: expected {self.count} numbers, got {type(value).__name__}"
            ) from None
        if len(values) != self.count:
            raise ValueError(f"{self.name}: expected {self.count} numbers, got {len(values)}")
        return tuple(super(Decays, self).checked(v) for v in values)


class Steps(Number):
    """A number of steps of at least 1, or None.

    Examples
    --------
    >>> class Rule:
    ...     t_alpha = Steps()
    >>> rule = Rule()
    >>> rule.t_alpha = 1.5
    Traceback (most recent call last):
    ...
    TypeError: t_alpha: expected an integer, got float
    """

    def checked(self, value: Any) -> int | None:
        """`value` as it is kept."""
        return None if value is None else integer(value, self.name, 1, 2**62)
