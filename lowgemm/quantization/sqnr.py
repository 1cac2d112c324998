"""Signal-to-quantization-noise ratio."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.quantization.affine import fake_quantize
from lowgemm.quantization.folding import axis_in, finite_array
from lowgemm.quantization.qparams import QParams


def decibels(x: np.ndarray, y: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Power of `x` divided by the power of ``x - y``, in dB, per channel of `axis`; infinite where equal."""
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis)
    largest = np.abs(x).max(others, keepdims=True)
    unit = np.where(largest > 0, largest, 1.0)  # so that no square under- or overflows
    signal = ((x / unit) ** 2).sum(others)
    noise = (((x - y) / unit) ** 2).sum(others)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 10 * np.log10(signal / noise)
    return np.where(noise == 0, np.inf, ratio)


def sqnr(x: ArrayLike, qparams: QParams, *, axis: int | None = None) -> float | np.ndarray:
    """How much of a tensor is left after quantizing: signal-to-quantization-noise ratio in decibels.

    Parameters
    ----------
    x : array_like of finite real numbers
        The tensor.
    qparams : QParams
        How it is quantized.
    axis : int, optional
        Give one ratio per channel of this axis.

    Returns
    -------
    float or float64 ndarray, shape (channels,)
        ``10 * log10(sum(x**2) / sum((x - fake_quantize(x))**2))``; infinite where nothing is lost. Each bit
        more is worth 6 dB. Normally distributed values at 8 bits have about 40 dB; at 0 dB only noise is
        left.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.quantization import choose_qparams
    >>> x = np.linspace(-1, 1, 1001)
    >>> round(sqnr(x, choose_qparams(-1, 1)) - sqnr(x, choose_qparams(-1, 1, bits=7)))
    6
    """
    a = finite_array(x, "x")
    axis = None if axis is None else axis_in(axis, a.ndim, "axis", "x")
    if not a.size:
        raise ValueError("x: expected at least one value")
    ratio = decibels(a, fake_quantize(a, qparams).astype(np.float64), axis)
    return ratio if axis is not None else float(ratio)
