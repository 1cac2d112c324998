"""The operators that onnxruntime's quantizer emits outside of the ONNX standard (domain `com.microsoft`).

Products (QGemm, MatMulIntegerToFloat, DynamicQuantizeMatMul) are exact sums scaled like QLinearMatMul. Everything else,
QLinearX, is *defined* here as QuantizeLinear(X(DequantizeLinear(input))) in float32: one rounding, half to even, at the end.
onnxruntime reorders that arithmetic or uses tables, so single results may differ by one step; the tests count them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowgemm.compat import onnx as ox
from lowgemm.gemm import gemm
from lowgemm.onnx_run import operators
from lowgemm.onnx_run.operators import _need_bytes as need_bytes
from lowgemm.onnx_run.operators import (
    dequantize_linear,
    quantize_linear,
    scaled_product,
)
from lowgemm.onnx_run.state import State
from lowgemm.values import integer

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


@functools.lru_cache(maxsize=64)
def _powers(scale: float, length: int) -> np.ndarray:
    """``exp(scale * d)`` for d from -255 to 0, as onnxruntime's table has it.

    All are multiplied by so much that a sum of `length` of them stays finite in float32. The room is rounded to float32, which
    shows in the last bits of the table, and those decide ties.
    """
    largest = np.finfo(np.float32).max
    room = max(0.0, float(np.float32(math.log(largest / np.float32(length)))) - 5)
    table = np.array([math.exp((d + room / scale) * scale) for d in range(-255, 1)]).astype(np.float32)
    table.flags.writeable = False
    return table


def qlinear_softmax(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, axis: int = -1, opset: int = 13
) -> np.ndarray:
    """QLinearSoftmax; before operator set 13 the axes from `axis` on count as one.

    As onnxruntime computes it: powers from a float32 table, summed one after the other in float32, divided in float64, and
    scaled by ``floor(1 / y_scale)``, a whole number.
    """
    need_bytes(x)
    axis = integer(axis, "axis", -x.ndim, x.ndim - 1) % x.ndim if x.ndim else 0
    scale, step = float(ox._scale(x_scale, "x_scale", 1)), ox._scale(y_scale, "y_scale", 1)
    if not (0 < scale < np.inf and 0 < step < np.inf):
        raise ValueError(f"x_scale, y_scale: expected positive numbers, got {scale} and {step}")
    if x.size == 0:
        return x.copy()
    whole = x.reshape(*x.shape[:axis], -1) if opset < 13 else np.moveaxis(np.atleast_1d(x), axis, -1)
    below = whole.astype(np.int64) - whole.max(axis=-1, keepdims=True)
    powers = _powers(scale, whole.shape[-1])[255 + below]
    sums = np.add.accumulate(powers, axis=-1)[..., -1:]
    steps = np.rint(powers.astype(np.float64) / sums * np.floor(np.float32(1) / step))
    info = np.iinfo(x.dtype)
    zero = 0 if y_zero is None else int(y_zero.reshape(()))
    y = np.minimum(steps + zero, info.max).astype(x.dtype)
    return (y if opset < 13 else np.moveaxis(y, -1, axis)).reshape(x.shape)


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
    """QGemm: the bias is int32 in units of ``alpha * a_scale * b_scale``, of any shape that broadcasts to the result's.

    Without a result scale the result is float32.
    """
    need_bytes(a, b)
    right = state.rhs(b, transposed=bool(transB))
    left = a.T if transA else a
    column, start = None, None
    if bias is not None:
        shape = left.shape[0], right.shape[-1]
        try:
            spread = np.broadcast_to(bias, shape)
        except ValueError:
            raise ValueError(f"C: expected a shape that broadcasts to {shape}, got {bias.shape}") from None
        if bias.dtype != np.int32:
            raise TypeError(f"C: expected int32, got {bias.dtype}")
        if bias.ndim < 2 or bias.shape[0] == 1:
            column = spread[0] if shape[0] else None
        else:
            start = spread
    if y_scale is not None and y_zero is None:
        y_zero = np.zeros((), a.dtype)
    scales, zeros = (a_scale, b_scale, y_scale), (a_zero, b_zero, y_zero)
    return scaled_product(state, left, right, scales, zeros, column, alpha, start)


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


def _halves(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """High and low bytes of 16-bit integers, in place: ``a == 256 * high + low``; the low ones are unsigned."""
    pairs = np.ascontiguousarray(a, a.dtype.newbyteorder("<")).view(np.uint8).reshape(*a.shape, 2)
    high = pairs[..., 1]
    return (high.view(np.int8) if a.dtype.kind == "i" else high), pairs[..., 0]


def matmul_integer_16(state: State, a, b) -> np.ndarray:
    """MatMulInteger16: exact modulo 2**32; uint32 where both operands are unsigned, else int32.

    With high and low bytes, ``a @ b`` is ``((ah @ bh << 8) + ah @ bl + al @ bh << 8) + al @ bl``: four products of bytes. What
    the shifts lose lies above 2**32.
    """
    for name, x in (("A", a), ("B", b)):
        if x.dtype not in (np.int16, np.uint16):
            raise TypeError(f"{name}: expected int16 or uint16, got {x.dtype}")
    if b.ndim == 1:
        return matmul_integer_16(state, a, b[:, None])[..., 0]
    if a.ndim == 1:
        return matmul_integer_16(state, a[None], b)[..., 0, :]
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    sums = gemm(a_high, b_high, num_threads=state.num_threads)
    more = {"out": sums, "accumulate": True, "num_threads": state.num_threads}
    sums <<= 8
    gemm(a_high, b_low, **more)
    gemm(a_low, b_high, **more)
    sums <<= 8
    gemm(a_low, b_low, **more)
    return sums.view(np.uint32) if a.dtype == b.dtype == np.uint16 else sums


def qlinear_conv_channels(
    state: State, *inputs: Any, channels_last: int = 0, **attributes: Any
) -> np.ndarray:
    """QLinearConv of the contributed domain: the standard's, or with the channels of images last."""
    x, *others = inputs
    y = operators.qlinear_conv(state, _channels_first(x, channels_last), *others, **attributes)
    return _channels_back(y, channels_last)


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
    (DOMAIN, "QLinearConv"): qlinear_conv_channels,
    (DOMAIN, "QGemm"): qgemm,
    (DOMAIN, "MatMulInteger16"): matmul_integer_16,
    (DOMAIN, "MatMulIntegerToFloat"): matmul_integer_to_float,
    (DOMAIN, "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
}
