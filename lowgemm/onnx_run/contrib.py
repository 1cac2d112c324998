"""The operators that onnxruntime's quantizer emits outside of the ONNX standard (domain `com.microsoft`).

Products (QGemm, MatMulIntegerToFloat, DynamicQuantizeMatMul) are exact sums scaled like QLinearMatMul. Everything else,
QLinearX, is *defined* here as QuantizeLinear(X(DequantizeLinear(input))) in float32: one rounding, half to even, at the end.
onnxruntime reorders that arithmetic or uses tables, so single results may differ by one step; the tests count them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowgemm.compat import onnx as ox
from lowgemm.onnx_run.operators import _need_bytes as need_bytes
from lowgemm.onnx_run.operators import (
    dequantize_linear,
    quantize_linear,
    scaled_product,
)
from lowgemm.onnx_run.state import State

DOMAIN = "com.microsoft"


def _real(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    return ox.dequantize_linear(x, scale, zero)


def _coded(y: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    return ox.quantize_linear(y.astype(np.float32, copy=False), scale, zero)


def _standard(name: str, x: np.ndarray, **attributes: Any) -> np.ndarray:
    """One of the standard's float operators, by the onnx package."""
    from onnx.defs import onnx_opset_version
    from onnx.reference.ops import load_op

    known = {k: v for k, v in attributes.items() if v is not None}
    return load_op("", name, onnx_opset_version()).eval(x, **known)


def qlinear_add(state: State, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero=None) -> np.ndarray:
    """QLinearAdd."""
    return _coded(_real(a, a_scale, a_zero) + _real(b, b_scale, b_zero), y_scale, y_zero)


def qlinear_mul(state: State, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero=None) -> np.ndarray:
    """QLinearMul."""
    return _coded(_real(a, a_scale, a_zero) * _real(b, b_scale, b_zero), y_scale, y_zero)


def qlinear_sigmoid(state: State, x, x_scale, x_zero, y_scale, y_zero=None) -> np.ndarray:
    """QLinearSigmoid."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, as it should
        y = np.float32(1) / (np.float32(1) + np.exp(-_real(x, x_scale, x_zero)))
    return _coded(y, y_scale, y_zero)


def qlinear_leaky_relu(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, alpha: float = 0.01
) -> np.ndarray:
    """QLinearLeakyRelu."""
    real = _real(x, x_scale, x_zero)
    return _coded(np.where(real >= 0, real, real * np.float32(alpha)), y_scale, y_zero)


def _channels_first(x: np.ndarray, channels_last: int) -> np.ndarray:
    return np.moveaxis(x, -1, 1) if channels_last else x


def _channels_back(y: np.ndarray, channels_last: int) -> np.ndarray:
    return np.moveaxis(y, 1, -1) if channels_last else y


def qlinear_global_average_pool(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, channels_last: int = 0
) -> np.ndarray:
    """QLinearGlobalAveragePool: the mean of the integers is taken exactly, then scaled."""
    x = _channels_first(x, channels_last)
    axes = tuple(range(2, x.ndim))
    sums = x.astype(np.int64).sum(axis=axes, keepdims=True)
    count = int(np.prod(x.shape[2:]))
    zero = 0 if x_zero is None else int(x_zero.reshape(()))
    mean = (sums - zero * count).astype(np.float32) / np.float32(count)
    return _channels_back(_coded(mean * x_scale.reshape(()), y_scale, y_zero), channels_last)


def qlinear_average_pool(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, channels_last: int = 0, **attributes: Any
) -> np.ndarray:
    """QLinearAveragePool."""
    real = _standard("AveragePool", _real(_channels_first(x, channels_last), x_scale, x_zero), **attributes)
    return _channels_back(_coded(real, y_scale, y_zero), channels_last)


def qlinear_reduce_mean(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, axes: Any = None, keepdims: int = 1
) -> np.ndarray:
    """QLinearReduceMean."""
    along = None if axes is None else tuple(axes)
    return _coded(_real(x, x_scale, x_zero).mean(axis=along, keepdims=bool(keepdims)), y_scale, y_zero)


def qlinear_softmax(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, axis: int = -1, opset: int = 13
) -> np.ndarray:
    """QLinearSoftmax; before operator set 13 the axes from `axis` on count as one."""
    real = _real(x, x_scale, x_zero)
    shape = real.shape
    if opset < 13:
        real, axis = real.reshape(int(np.prod(shape[: axis % real.ndim])), -1), 1
    powers = np.exp(real - real.max(axis=axis, keepdims=True))
    return _coded((powers / powers.sum(axis=axis, keepdims=True)).reshape(shape), y_scale, y_zero)


def qlinear_concat(state: State, y_scale, y_zero, *parts: Any, axis: int) -> np.ndarray:
    """QLinearConcat: (tensor, scale, zero point) for each part."""
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return np.concatenate([_coded(_real(*t), y_scale, y_zero) for t in triples], axis=axis)


def qlinear_where(
    state: State, condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero
) -> np.ndarray:
    """QLinearWhere."""
    chosen = np.where(condition, _real(x, x_scale, x_zero), _real(y, y_scale, y_zero))
    return _coded(chosen, z_scale, z_zero)


def qgemm(
    state: State,
    a,
    a_scale,
    a_zero,
    b,
    b_scale,
    b_zero,
    bias=None,
    y_scale=None,
    y_zero=None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> np.ndarray:
    """QGemm: the bias is int32 in units of ``alpha * a_scale * b_scale``; without a result scale the result is float32."""
    need_bytes(a, b)
    right = state.rhs(b, transposed=bool(transB))
    left = a.T if transA else a
    if bias is not None:
        bias = np.asarray(bias)
        if bias.ndim == 2 and bias.shape[0] == left.shape[0] and bias.shape[0] > 1:
            raise ValueError(f"C: expected one value a column, got shape {bias.shape}")
        bias = np.broadcast_to(bias.reshape(-1), (right.shape[-1],))
    if y_scale is not None and y_zero is None:
        y_zero = np.zeros((), a.dtype)
    return scaled_product(
        state, left, right, (a_scale, b_scale, y_scale), (a_zero, b_zero, y_zero), bias, alpha
    )


def matmul_integer_to_float(
    state: State, a, b, a_scale, b_scale, a_zero=None, b_zero=None, bias=None
) -> np.ndarray:
    """MatMulIntegerToFloat: float32, and a float32 bias added after scaling."""
    need_bytes(a, b)
    y = scaled_product(state, a, state.rhs(b), (a_scale, b_scale, None), (a_zero, b_zero, None))
    return y if bias is None else y + bias


def dynamic_quantize_matmul(state: State, a, b, b_scale, b_zero=None, bias=None) -> np.ndarray:
    """DynamicQuantizeMatMul: DynamicQuantizeLinear of `a`, then MatMulIntegerToFloat."""
    coded, scale, zero = ox.dynamic_quantize_linear(a)
    return matmul_integer_to_float(state, coded, b, scale, b_scale, zero, b_zero, bias)


#: The contributed operators that run; others are refused by name when a model is loaded.
OPERATORS: dict[tuple[str, str], Callable[..., Any]] = {
    (DOMAIN, "QuantizeLinear"): quantize_linear,
    (DOMAIN, "DequantizeLinear"): dequantize_linear,
    (DOMAIN, "QLinearAdd"): qlinear_add,
    (DOMAIN, "QLinearMul"): qlinear_mul,
    (DOMAIN, "QLinearSigmoid"): qlinear_sigmoid,
    (DOMAIN, "QLinearLeakyRelu"): qlinear_leaky_relu,
    (DOMAIN, "QLinearGlobalAveragePool"): qlinear_global_average_pool,
    (DOMAIN, "QLinearAveragePool"): qlinear_average_pool,
    (DOMAIN, "QLinearReduceMean"): qlinear_reduce_mean,
    (DOMAIN, "QLinearSoftmax"): qlinear_softmax,
    (DOMAIN, "QLinearConcat"): qlinear_concat,
    (DOMAIN, "QLinearWhere"): qlinear_where,
    (DOMAIN, "QGemm"): qgemm,
    (DOMAIN, "MatMulIntegerToFloat"): matmul_integer_to_float,
    (DOMAIN, "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
}
