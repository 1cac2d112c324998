"""The update rules in NumPy: what the compiled ones in `rules.py` must give, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowgemm.blockwise.rules import (
    ALPHA,
    BEGINS,
    BETA1,
    BETA2,
    BETA3,
    EPS,
    FIRST,
    NEW1,
    NEW2,
    NEW3,
    RATE,
    SECOND,
    SHRINK,
    STEP,
    WEIGHT_DECAY,
)


def update(
    rule: str, p: np.ndarray, g: np.ndarray, states: Sequence[np.ndarray], h: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One step of a rule.

    Parameters
    ----------
    rule : str
        A name of `rules.rule`.
    p, g : ndarray of float32, shape (n,)
        Parameters and their gradient.
    states : sequence of ndarray of float32, shape (n,)
    h : ndarray of float32
        The constants, as `rules` numbers them.

    Returns
    -------
    p : ndarray of float32
    states : list of ndarray of float32
        After the step.

    Examples
    --------
    >>> h = np.zeros(16, np.float32)
    >>> h[[RATE, BETA1]] = 0.5
    >>> p, states = update("momentum", np.float32([1]), np.float32([2]), [np.float32([4])], h)
    >>> print(p, states)
    [-1.] [array([4.], dtype=float32)]
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _RULES[rule](p, g, list(states), h)


def _adam(p, g, states, h):
    m, v = states
    m = m * h[BETA1] + g * h[NEW1]
    v = v * h[BETA2] + h[NEW2] * g * g
    return p * h[SHRINK] + h[STEP] * m / (np.sqrt(v) * h[SECOND] + h[EPS]), [m, v]


def _ademamix(p, g, states, h):
    m, slow, v = states
    m = m * h[BETA1] + g * h[NEW1]
    slow = slow * h[BETA3] + g * h[NEW3]
    v = v * h[BETA2] + h[NEW2] * g * g
    mixed = m * h[FIRST] + h[ALPHA] * slow
    return p * h[SHRINK] - h[RATE] * (mixed / (np.sqrt(v) * h[SECOND] + h[EPS])), [m, slow, v]


def _momentum(p, g, states, h):
    (m,) = states
    whole = g + h[WEIGHT_DECAY] * p
    m = whole if h[BEGINS] else m * h[BETA1] + whole
    return p - h[RATE] * m, [m]


def _lion(p, g, states, h):
    (m,) = states
    direction = np.sign(m * h[BETA1] + g * h[NEW1])
    return p * h[SHRINK] - h[RATE] * direction, [m * h[BETA2] + g * h[NEW2]]


def _rmsprop(p, g, states, h):
    (v,) = states
    whole = g + h[WEIGHT_DECAY] * p
    v = v * h[BETA1] + h[NEW1] * whole * whole
    return p - h[RATE] * whole / (np.sqrt(v) + h[EPS]), [v]


_RULES = {"adam": _adam, "ademamix": _ademamix, "momentum": _momentum, "lion": _lion, "rmsprop": _rmsprop}
