"""The update rules in NumPy: what the compiled ones in `rules.py` must give, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowgemm.blockwise.rules import Constants


def update(
    rule: str, p: np.ndarray, g: np.ndarray, states: Sequence[np.ndarray], h: Constants
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One step of a rule.

    Parameters
    ----------
    rule : str
        A name of `rules.RULES`.
    p, g : ndarray of float32, shape (n,)
        Parameters and their gradient.
    states : sequence of ndarray of float32, shape (n,)
    h : Constants

    Returns
    -------
    p : ndarray of float32
    states : list of ndarray of float32
        After the step.

    Examples
    --------
    >>> h = Constants(rate=0.5, beta1=0.5)
    >>> p, states = update("momentum", np.float32([1]), np.float32([2]), [np.float32([4])], h)
    >>> print(p, states)
    [-1.] [array([4.], dtype=float32)]
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _RULES[rule](p, g, list(states), h)


def _adam(p, g, states, h):
    m, v = states
    m = m * h.beta1 + g * h.new1
    v = v * h.beta2 + h.new2 * g * g
    return p * h.shrink + h.step * m / (np.sqrt(v) * h.second + h.eps), [m, v]


def _ademamix(p, g, states, h):
    m, slow, v = states
    m = m * h.beta1 + g * h.new1
    slow = slow * h.beta3 + g * h.new3
    v = v * h.beta2 + h.new2 * g * g
    mixed = m * h.first + h.alpha * slow
    return p * h.shrink - h.rate * (mixed / (np.sqrt(v) * h.second + h.eps)), [m, slow, v]


def _momentum(p, g, states, h):
    (m,) = states
    whole = g + h.weight_decay * p
    m = whole if h.begins else m * h.beta1 + whole
    return p - h.rate * m, [m]


def _lion(p, g, states, h):
    (m,) = states
    direction = np.sign(m * h.beta1 + g * h.new1)
    return p * h.shrink - h.rate * direction, [m * h.beta2 + g * h.new2]


def _rmsprop(p, g, states, h):
    (v,) = states
    whole = g + h.weight_decay * p
    v = v * h.beta1 + h.new1 * whole * whole
    return p - h.rate * whole / (np.sqrt(v) + h.eps), [v]


_RULES = {
    "adam": _adam,
    "ademamix": _ademamix,
    "momentum": _momentum,
    "lion": _lion,
    "rmsprop": _rmsprop,
}
