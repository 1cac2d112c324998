"""Quantize, dequantize, and both in one go (fake quantization)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import as_array, is_masked
from lowgemm.quantization.loops import DEQUANTIZE, FAKE, QUANTIZE, run_loop, worthwhile
from lowgemm.quantization.qparams import DTYPES, QParams


def real_array(x: ArrayLike, name: str = "x") -> np.ndarray:
    """`x` as an array of float32 or float64, without a copy where it is one."""
    if is_masked(x):
        raise TypeError(f"{name}: expected no masked elements; fill or drop them first")
    a = as_array(x, name, "a rectangular array of numbers")
    if a.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {a.dtype}")
    if a.dtype == np.float32 or a.dtype == np.float64:
        return a
    return a.astype(np.float32 if a.dtype == np.float16 else np.float64)


def _checked(a: np.ndarray, qparams: Any, name: str) -> None:
    """That `qparams` fits the array."""
    if not isinstance(qparams, QParams):
        raise TypeError(f"qparams: expected QParams(scale, zero_point, dtype), got {type(qparams).__name__}")
    if qparams.axis is None:
        return
    if not -a.ndim <= qparams.axis < a.ndim:
        raise ValueError(f"{name}: expected an axis {qparams.axis} (of qparams), got shape {a.shape}")
    channels = qparams.scale.size
    if a.shape[qparams.axis] != channels:
        raise ValueError(f"{name}: expected {channels} channels on axis {qparams.axis}, got shape {a.shape}")


def _no_nans(count: int) -> None:
    if count:
        raise ValueError(f"x: expected no NaN, which no integer stands for, got {count}")


def quantize_reference(x: np.ndarray, qparams: QParams) -> np.ndarray:
    """The definition: ``clip(round(x / scale) + zero_point, qmin, qmax)`` in float64, ties to even."""
    scale, zero_point = qparams.along(x.ndim)
    steps = np.rint(x.astype(np.float64) / scale)
    return np.clip(steps + zero_point, qparams.qmin, qparams.qmax).astype(qparams.dtype)


def dequantize_reference(q: np.ndarray, qparams: QParams) -> np.ndarray:
    """The definition: ``scale * (q - zero_point)`` in float64, rounded once to float32."""
    scale, zero_point = qparams.along(q.ndim)
    return (scale * (q.astype(np.int64) - zero_point)).astype(np.float32)


def quantize(x: ArrayLike, qparams: QParams) -> np.ndarray:
    """Real numbers to integers: ``clip(round(x / scale) + zero_point, qmin, qmax)``.

    Parameters
    ----------
    x : array_like of real numbers, any shape
        Infinities saturate.
    qparams : QParams
        Per channel: `x` must have as many elements along its axis.

    Returns
    -------
    ndarray of ``qparams.dtype``
        Of the shape of `x`.

    Raises
    ------
    TypeError
        If `x` is not real or `qparams` is not a `QParams`.
    ValueError
        If the channels do not match, or `x` has a NaN.

    Notes
    -----
    The quotient is taken in float64 and rounded half to even. ONNX's ``QuantizeLinear`` divides in float32,
    which can differ by one step where that quotient is rounded onto a tie.

    Examples
    --------
    >>> quantize([-1.0, 0.0, 0.26, 9.9], QParams(0.5, 3, "uint8", qmax=15))
    array([ 1,  3,  4, 15], dtype=uint8)
    """
    x = real_array(x)
    _checked(x, qparams, "x")
    if worthwhile(x):
        q, nans = run_loop(QUANTIZE, x, qparams, qparams.dtype)
    else:
        nans = int(np.isnan(x).sum())
        q = quantize_reference(x, qparams) if not nans else x
    _no_nans(nans)
    return q


def dequantize(q: ArrayLike, qparams: QParams) -> np.ndarray:
    """Integers to the real numbers they stand for: ``scale * (q - zero_point)``.

    Parameters
    ----------
    q : array_like of integers, any shape
        Usually of ``qparams.dtype``; others (an accumulator) are welcome.
    qparams : QParams
        Per channel: `q` must have as many elements along its axis.

    Returns
    -------
    float32 ndarray
        Of the shape of `q`; the product is rounded once.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> dequantize(np.array([1, 3, 4], np.uint8), QParams(0.5, 3, "uint8"))
    array([-1. ,  0. ,  0.5], dtype=float32)
    """
    q = as_array(q, "q", "a rectangular array of integers")
    if q.dtype.kind not in "iu":
        raise TypeError(f"q: expected integers, got {q.dtype}")
    _checked(q, qparams, "q")
    if worthwhile(q) and q.dtype in DTYPES:
        return run_loop(DEQUANTIZE, q, qparams, np.float32)[0]
    return dequantize_reference(q, qparams)


def fake_quantize(x: ArrayLike, qparams: QParams) -> np.ndarray:
    """What is left of real numbers after quantizing: ``dequantize(quantize(x))``.

    Parameters
    ----------
    x : array_like of real numbers, any shape
        Infinities saturate.
    qparams : QParams
        As for `quantize`.

    Returns
    -------
    float32 ndarray
        Of the shape of `x`.

    Raises
    ------
    TypeError, ValueError
        As `quantize`.

    Examples
    --------
    >>> fake_quantize([0.1, 0.3, 99.0], QParams(0.25, 0, "int8", qmin=-8, qmax=7))
    array([0.  , 0.25, 1.75], dtype=float32)
    """
    x = real_array(x)
    _checked(x, qparams, "x")
    if not worthwhile(x):
        return dequantize(quantize(x, qparams), qparams)
    y, nans = run_loop(FAKE, x, qparams, np.float32)
    _no_nans(nans)
    return y
