"""QLinearAdd and QLinearMul in onnxruntime's arithmetic on x86: which float32 operations, in which order,
rounded where.

Both add the zero point before the one rounding to an integer, so the order decides ties and near-ties.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from lowgemm.onnx_run import binary
from lowgemm.onnx_run.state import State


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """``a * b + c`` of float32 values, rounded once to float32, on every machine.

    The product is exact in float64. A sum that is not is rounded to odd there: its last bit then says that
    more follows, and the rounding to float32, 29 bits further up, comes out as if there had been one.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.float32(1 + 2**-12)
    >>> float(fma(x, x, -(x * x))) == 2**-24  # what rounding the product loses
    True
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    c = np.asarray(c, np.float64)
    total = np.asarray(product + c)
    part = total - product
    lost = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(lost > 0, np.inf, -np.inf)
    return np.where(even & (lost != 0), np.nextafter(total, toward), total).astype(np.float32)


def _number(value: np.ndarray) -> np.float32:
    return np.float32(value.reshape(()))


def _point(value: np.ndarray | None) -> np.float32:
    return np.float32(0) if value is None else _number(value)


def _saturated(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded half to even, within the dtype's range; NaN is the smallest value."""
    info = np.iinfo(dtype)
    return np.minimum(np.fmax(np.rint(y), info.min), info.max).astype(dtype)


def add_values(dtype, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero) -> dict[str, Any]:
    """What QLinearAdd takes from scales and zero points: `ra`, `rb`, `fixed`, and the limits of its type."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        ra, rb = _number(a_scale) / _number(y_scale), _number(b_scale) / _number(y_scale)
        fixed = _point(y_zero) - fma(ra, _point(a_zero), rb * _point(b_zero))
    return {"ra": ra, "rb": rb, "fixed": fixed, **_limits(dtype)}


def mul_values(dtype, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero) -> dict[str, Any]:
    """What QLinearMul takes from scales and zero points."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        ratio = _number(a_scale) * _number(b_scale) / _number(y_scale)
    za, zb = int(_point(a_zero)), int(_point(b_zero))
    return {"za": za, "zb": zb, "ratio": ratio, "zero": _point(y_zero), **_limits(dtype)}


def qlinear_add(state: State, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero=None) -> np.ndarray:
    """QLinearAdd: ``a * ra + (b * rb + fixed)``, each a fused multiply and add, with the ratios of the
    scales.

    Where the first operand is repeated along the last axis, onnxruntime has the operands change places, which
    decides ties.
    """
    if first_is_repeated(a.shape, b.shape):
        return qlinear_add(state, b, b_scale, b_zero, a, a_scale, a_zero, y_scale, y_zero)
    v = add_values(a.dtype, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero)
    if is_compiled(a.dtype, b.dtype):
        return binary.Binary(binary.add, binary.ADD, v)(a, b)
    with np.errstate(over="ignore", invalid="ignore"):
        return _saturated(fma(a, v["ra"], fma(b, v["rb"], v["fixed"])), a.dtype)


def qlinear_mul(state: State, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero=None) -> np.ndarray:
    """QLinearMul: the exact integer product, times the ratio of the scales, plus the zero point."""
    v = mul_values(a.dtype, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero)
    if is_compiled(a.dtype, b.dtype):
        return binary.Binary(binary.mul, binary.MUL, v)(a, b)
    with np.errstate(over="ignore", invalid="ignore"):
        product = (a.astype(np.float32) - np.float32(v["za"])) * (b.astype(np.float32) - np.float32(v["zb"]))
        return _saturated(product * v["ratio"] + v["zero"], a.dtype)


def first_is_repeated(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether the first of two shapes has a size of 1 in the last axis in which they are not both 1, and the
    second more.
    """
    for i in range(1, max(len(a), len(b)) + 1):
        p, q = a[-i] if i <= len(a) else 1, b[-i] if i <= len(b) else 1
        if p != 1 or q != 1:
            return p == 1
    return False


def is_compiled(*dtypes: Any) -> bool:
    """Whether the compiled passes take operands of these types: all uint8, or all int8."""
    return not numba.config.DISABLE_JIT and len(set(dtypes)) == 1 and dtypes[0] in (np.uint8, np.int8)


def _limits(dtype: np.dtype) -> dict[str, int]:
    info = np.iinfo(dtype)
    return {"low": info.min, "high": info.max, "flip": -int(info.min)}
