"""Cross-layer range equalization: scale the channels between two layers so that one scale fits all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowgemm.checks.values import integer, number
from lowgemm.quantization.folding import axis_in, finite_array, per_channel, spread

#: Most passes over all pairs. Each pass changes less than the one before, so more would change next to
#: nothing.
MOST_ROUNDS = 1000
#: No channel is enlarged beyond 1 / UNSEEN of the largest channel's range. Data that were not observed may
#: reach further, and would otherwise be clipped.
UNSEEN = 2.0


@dataclass(frozen=True, eq=False)
class Equalized:
    """What `equalize_ranges` returns.

    Parameters
    ----------
    weights : list of float32 ndarray
        One per layer, of the shapes given.
    biases : list of float32 ndarray or None
        One per layer.
    scales : list of float64 ndarray
        One per pair of layers: what each channel between them was divided by. Ranges observed before have
        to be divided too, or observed again.
    rounds : int
        Passes over all pairs until nothing changed any more.
    """

    weights: list[np.ndarray]
    biases: list[np.ndarray | None]
    scales: list[np.ndarray]
    rounds: int


def channel_range(weight: np.ndarray, axis: int) -> np.ndarray:
    """Largest magnitude in each channel of an axis."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.abs(weight).max(others) if weight.size else np.zeros(weight.shape[axis])


def equalize_ranges(
    weights: Sequence[Any],
    biases: Sequence[Any] | None = None,
    *,
    out_axis: int | Sequence[int] = -1,
    in_axis: int | Sequence[int] = 0,
    ranges: Sequence[Any] | None = None,
    max_rounds: int = 50,
    tolerance: float = 1e-3,
) -> Equalized:
    """Rescale the weights of layers in a chain so that the channels' ranges are alike, per tensor.

    Parameters
    ----------
    weights : sequence of array_like
        Two layers or more, in order. What lies between them must let a positive factor through: ReLU, leaky
        ReLU, max or mean pooling, nothing at all. ReLU6 does not (its bound would have to be scaled too).
    biases : sequence of array_like or None, optional
        One per layer.
    out_axis, in_axis : int or sequence of int
        The axis that runs along a layer's outputs and inputs, for all or for each. The same number in both
        marks a depthwise layer. For a linear layer after flattening (H, W, C), reshape its weights to
        (H * W, C, outputs) first: each channel then is one index of its input axis.
    ranges : sequence of array_like, optional
        One vector per pair of layers: the largest magnitude of each channel between them, as observed. They
        bound the factors (see below). Without them the factors have no bound. A channel of tiny weights and
        an ordinary bias then gets a huge bias and huge activations. If the activations have one scale, the
        other channels are lost.
    max_rounds : int
        Most passes over the chain, 1 to 1000; a layer's ranges change when its neighbours are equalized.
    tolerance : float
        Stop when a pass changes no channel by more than this, relatively; 0 or more.

    Returns
    -------
    Equalized
        New weights and biases of a network that computes the same function.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    Channel i between two layers, with ranges r1 and r2 (largest magnitudes) on both sides, is divided by
    ``sqrt(r1 * r2) / r2``; both ranges become ``sqrt(r1 * r2)``, which makes the sum of the channels' shares
    of the layers' ranges largest. Channels that are zero on either side are left alone.

    With activations of ranges a, in one scale, the rounding of channel i reaches the next layer's results
    s[i] times as large as before, and the step is ``max(a / s) / max(a)`` times as large. So where
    ``s[i] >= max(s) * a[i] / max(a)`` for all i, no channel's rounding grows. With `ranges`, factors that are
    smaller rise to twice that (or to ``max(s)``), so that channels which were small do not all sit at the end
    of the range, where data that were not observed are clipped. Source: Nagel et al. 2019, "Data-free
    quantization through weight equalization and bias correction" (arXiv:1906.04721), section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> first, second = np.array([[8.0, 0.5]]), np.array([[0.5], [2.0]])
    >>> result = equalize_ranges([first, second])
    >>> result.weights[0], result.weights[1].ravel()
    (array([[2., 1.]], dtype=float32), array([2., 1.], dtype=float32))
    """
    for name, value in (("weights", weights), ("biases", biases)):
        if not isinstance(value, Sequence) and not (name == "biases" and value is None):
            raise TypeError(f"{name}: expected a sequence of arrays, got {type(value).__name__}")
    tolerance = number(tolerance, "tolerance")
    if not tolerance >= 0:  # not NaN either
        raise ValueError(f"tolerance: expected a number from 0, got {tolerance}")
    ws = [finite_array(w, f"weights[{i}]") for i, w in enumerate(weights)]
    if len(ws) < 2:
        raise ValueError(f"weights: expected at least two layers, got {len(ws)}")
    outs, ins = _axes(out_axis, "out_axis", ws), _axes(in_axis, "in_axis", ws)
    given = [None] * len(ws) if biases is None else list(biases)
    if len(given) != len(ws):
        raise ValueError(f"biases: expected {len(ws)}, one per layer, got {len(given)}")
    bs = [
        None if b is None else per_channel(b, f"biases[{i}]", ws[i].shape[outs[i]], f"weights[{i}]")
        for i, b in enumerate(given)
    ]
    for i in range(len(ws) - 1):
        have, want = ws[i].shape[outs[i]], ws[i + 1].shape[ins[i + 1]]
        if have != want:
            raise ValueError(f"weights[{i + 1}]: expected {have} inputs on axis {ins[i + 1]}, got {want}")
    max_rounds = integer(max_rounds, "max_rounds", 1, MOST_ROUNDS)
    shares = _shares(ranges, [w.shape[o] for w, o in zip(ws[:-1], outs[:-1], strict=True)])
    scales = [np.ones(w.shape[o]) for w, o in zip(ws[:-1], outs[:-1], strict=True)]
    rounds = 0
    for _ in range(max_rounds):
        rounds += 1
        change = 0.0
        for i, total in enumerate(scales):
            s = _pair_scale(channel_range(ws[i], outs[i]), channel_range(ws[i + 1], ins[i + 1]))
            wanted = total * s
            s = np.maximum(wanted, wanted.max(initial=0.0) * shares[i]) / total
            _divide_outputs(ws, bs, i, outs[i], ins[i], s)
            ws[i + 1] = ws[i + 1] * spread(s, ins[i + 1], ws[i + 1].ndim)
            total *= s
            change = max(change, float(np.abs(s - 1).max(initial=0.0)))
        if change <= tolerance:
            break
    return Equalized(
        [w.astype(np.float32) for w in ws],
        [None if b is None else b.astype(np.float32) for b in bs],
        scales,
        rounds,
    )


def _pair_scale(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What to divide each channel by."""
    alive = (first > 0) & (second > 0)
    safe = np.where(alive, second, 1.0)
    return np.where(alive, np.sqrt(np.where(alive, first, 1.0) / safe), 1.0)


def _shares(ranges: Any, sizes: list[int]) -> list[np.ndarray]:
    """The least factor of each channel, as a part of the largest. Without ranges it is 0: no bound."""
    if ranges is None:
        return [np.zeros(n) for n in sizes]
    if not isinstance(ranges, Sequence) or len(ranges) != len(sizes):
        raise ValueError(f"ranges: expected a sequence of {len(sizes)} vectors, one per pair of layers")
    found = [
        per_channel(r, f"ranges[{i}]", n, f"weights[{i}]")
        for i, (r, n) in enumerate(zip(ranges, sizes, strict=True))
    ]
    for i, r in enumerate(found):
        if (r < 0).any():
            raise ValueError(f"ranges[{i}]: expected magnitudes, none below 0")
    return [np.minimum(UNSEEN * r / (r.max(initial=0.0) or 1.0), 1.0) for r in found]


def _divide_outputs(
    ws: list[np.ndarray], bs: list[np.ndarray | None], i: int, out_axis: int, in_axis: int, s: np.ndarray
) -> None:
    ws[i] = ws[i] / spread(s, out_axis, ws[i].ndim)
    b = bs[i]
    if b is not None:
        bs[i] = b / s


def _axes(value: Any, name: str, ws: list[np.ndarray]) -> list[int]:
    if isinstance(value, (int, np.integer)):
        value = [value] * len(ws)
    elif not isinstance(value, (Sequence, np.ndarray)):
        raise TypeError(f"{name}: expected an integer or a sequence of them, got {type(value).__name__}")
    values = list(value)
    if len(values) != len(ws):
        raise ValueError(f"{name}: expected one axis or {len(ws)}, got {len(values)}")
    return [
        axis_in(v, w.ndim, name, f"weights[{i}]") for i, (v, w) in enumerate(zip(values, ws, strict=True))
    ]
