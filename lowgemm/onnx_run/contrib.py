"""The operators that onnxruntime's quantizer emits outside of the ONNX standard (domain `com.microsoft`).

Products (QGemm, MatMulIntegerToFloat, DynamicQuantizeMatMul) are exact sums scaled like QLinearMatMul.
QLinearX is QuantizeLinear(X(DequantizeLinear(input))) in float32 with one rounding at the end, in the order
in which onnxruntime does it on x86; where that order is peculiar, the docstring says it. The tests find no
difference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowgemm.compat import onnx as ox
from lowgemm.gemm import gemm
from lowgemm.onnx_run import activations, average, average_pool, operators, turned
from lowgemm.onnx_run.elementwise import qlinear_add, qlinear_mul
from lowgemm.onnx_run.look_up import by_table
from lowgemm.onnx_run.operators import (
    dequantize_linear,
    need_bytes,
    quantize_linear,
    scaled_product,
)
from lowgemm.onnx_run.softmax import qlinear_softmax
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.windows import at_place, of_three_axes, windows

DOMAIN = "com.microsoft"
#: Tables of 256 that a model keeps: more than common networks have, and scales that change with each run fill
#: no memory.
TABLES = 1024


def _real(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """The real numbers that bytes stand for, float32."""
    return ox.dequantize_linear(x, scale, zero)


def _zero_like(x: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """A result's zero point; one that is left out is 0 of the operand's dtype."""
    return np.zeros((), x.dtype) if zero is None else zero


def _coded(y: np.ndarray, scale: np.ndarray, zero: np.ndarray, point_first: bool = False) -> np.ndarray:
    """QuantizeLinear of float32; with `point_first` the zero point is added before rounding, which moves
    ties.
    """
    if not point_first:
        return ox.quantize_linear(y.astype(np.float32, copy=False), scale, zero)
    info = np.iinfo(zero.dtype)
    steps = np.rint(y / scale.reshape(()) + zero.reshape(()).astype(np.float32))
    return np.minimum(np.fmax(steps, info.min), info.max).astype(zero.dtype)


def _by_table(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """An operator of one tensor of bytes, computed for the 256 bytes and looked up."""

    @functools.wraps(function)
    def run(state: State, x, x_scale, x_zero, y_scale, y_zero=None, **attributes: Any) -> np.ndarray:
        need_bytes(x)
        if x.size <= 256:
            return function(state, x, x_scale, x_zero, y_scale, y_zero, **attributes)
        held = tuple(
            None if v is None else (v.tobytes(), v.dtype.str) for v in (x_scale, x_zero, y_scale, y_zero)
        )
        key = function, x.dtype.str, held, tuple(attributes.items())
        table = state.tables.get(key)
        if table is None:
            every = np.arange(256, dtype=np.uint8).view(x.dtype)
            table = np.ascontiguousarray(
                function(state, every, x_scale, x_zero, y_scale, y_zero, **attributes)
            )
            if len(state.tables) < TABLES:
                state.tables[key] = table
        return by_table(table, x, state.num_threads)

    return run


@_by_table
def qlinear_sigmoid(state: State, x, x_scale, x_zero, y_scale, y_zero=None) -> np.ndarray:
    """QLinearSigmoid, by onnxruntime's quotient of polynomials: it is 0 where the function is below 1e-7,
    and steps of 1e-9 are seen.
    """
    y = activations.sigmoid_by_definition(_real(x, x_scale, x_zero))
    return _coded(y, y_scale, _zero_like(x, y_zero))


@_by_table
def qlinear_leaky_relu(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, alpha: float = 0.01
) -> np.ndarray:
    """QLinearLeakyRelu."""
    real = _real(x, x_scale, x_zero)
    return _coded(np.where(real >= 0, real, real * np.float32(alpha)), y_scale, _zero_like(x, y_zero))


def _channels_first(x: np.ndarray, channels_last: int) -> np.ndarray:
    """A view with the channels second."""
    return np.moveaxis(x, -1, 1) if channels_last else x


def _channels_back(y: np.ndarray, channels_last: int) -> np.ndarray:
    """A view with the channels where they were before `_channels_first`."""
    return np.moveaxis(y, 1, -1) if channels_last else y


def qlinear_global_average_pool(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, channels_last: int = 0
) -> np.ndarray:
    """QLinearGlobalAveragePool: the mean of the integers is taken exactly, then scaled."""
    x = _channels_first(x, channels_last)
    sums = average.sum_spatial(x, state.num_threads)
    count = int(np.prod(x.shape[2:]))
    zero = 0 if x_zero is None else int(x_zero.reshape(()))
    mean = (sums - zero * count).astype(np.float32) / np.float32(count)
    return _channels_back(_coded(mean * x_scale.reshape(()), y_scale, _zero_like(x, y_zero)), channels_last)


def qlinear_average_pool(
    state: State,
    x,
    x_scale,
    x_zero,
    y_scale,
    y_zero=None,
    *,
    kernel_shape: Any,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    pads: Any = None,
    strides: Any = None,
) -> np.ndarray:
    """QLinearAveragePool, as onnxruntime computes it.

    Elements are added one after the other in float32, and the zero point is added before rounding. With
    `count_include_pad` a window counts all its places, also those that `ceil_mode` adds behind the padding.
    """
    x = _channels_first(x, channels_last)
    w = windows(x.shape[2:], kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, pads=pads, strides=strides)
    if average_pool.is_global(x.shape[2:], w):
        y = qlinear_global_average_pool(state, x, x_scale, x_zero, y_scale, y_zero)
        return _channels_back(y, channels_last)
    if average_pool.fits(x):
        zeros = _zero_like(x, x_zero), _zero_like(x, y_zero)
        params = average_pool.params_of((x_scale, y_scale), zeros)
        everywhere, threads = bool(count_include_pad), state.num_threads
        numbers = of_three_axes(x.shape[2:], w)
        y = average_pool.averages(x, params, zeros[1].dtype, w, numbers, everywhere, threads)
        return _channels_back(y, channels_last)
    real = _real(x, x_scale, x_zero)
    total, count = np.zeros((*real.shape[:2], *w.out), np.float32), np.zeros(w.out, np.float32)
    for place in np.ndindex(w.kernel) if x.size else ():
        found, inside = at_place(real, w, place)
        total += np.where(inside, found, np.float32(0))
        count += inside
    with np.errstate(invalid="ignore"):  # a window without elements is 0 / 0, as in onnxruntime
        mean = total / (np.float32(math.prod(w.kernel)) if count_include_pad else count)
    y = _coded(mean, y_scale, _zero_like(x, y_zero), point_first=True)
    return _channels_back(y, channels_last)


def qlinear_reduce_mean(
    state: State, x, x_scale, x_zero, y_scale, y_zero=None, *, axes: Any = None, keepdims: int = 1
) -> np.ndarray:
    """QLinearReduceMean."""
    along = None if axes is None else tuple(axes)
    mean = _real(x, x_scale, x_zero).mean(axis=along, keepdims=bool(keepdims))
    return _coded(mean, y_scale, _zero_like(x, y_zero))


def qlinear_concat(state: State, y_scale, y_zero, *parts: Any, axis: int) -> np.ndarray:
    """QLinearConcat: (tensor, scale, zero point) for each part."""
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return turned.concatenated(
        [_recoded(state, *t, y_scale, y_zero) for t in triples], axis, state.num_threads
    )


@_by_table
def _recoded(state: State, x, x_scale, x_zero, y_scale, y_zero=None) -> np.ndarray:
    """Bytes with another scale and zero point."""
    return _coded(_real(x, x_scale, x_zero), y_scale, y_zero)


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
    """QGemm: the bias is int32 in units of ``alpha * a_scale * b_scale``, of any shape that broadcasts to the
    result's.

    Without a result scale the result is float32.
    """
    need_bytes(a, b)
    right = state.rhs(b, transposed=bool(transB))
    left = a.T if transA else a
    if bias is not None:
        shape = left.shape[0], right.shape[-1]
        if bias.dtype != np.int32:
            raise TypeError(f"C: expected int32, got {bias.dtype}")
        if bias.ndim > 2 or any(n not in (1, m) for n, m in zip(bias.shape[::-1], shape[::-1], strict=False)):
            raise ValueError(f"C: expected a shape that broadcasts to {shape}, got {bias.shape}")
    if y_scale is not None and y_zero is None:
        y_zero = np.zeros((), a.dtype)
    scales, zeros = (a_scale, b_scale, y_scale), (a_zero, b_zero, y_zero)
    return scaled_product(state, left, right, scales, zeros, bias, alpha)


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
    """High and low bytes of 16-bit integers, in place: ``a == 256 * high + low``; the low ones are
    unsigned.
    """
    pairs = np.ascontiguousarray(a, a.dtype.newbyteorder("<")).view(np.uint8).reshape(*a.shape, 2)
    high = pairs[..., 1]
    return (high.view(np.int8) if a.dtype.kind == "i" else high), pairs[..., 0]


def matmul_integer_16(state: State, a, b) -> np.ndarray:
    """MatMulInteger16: exact modulo 2**32; uint32 where both operands are unsigned, else int32.

    With high and low bytes, ``a @ b`` is ``((ah @ bh << 8) + ah @ bl + al @ bh << 8) + al @ bl``: four
    products of bytes. What the shifts lose lies above 2**32.
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
    adding = {"out": sums, "accumulate": True, "num_threads": state.num_threads}
    sums <<= 8
    gemm(a_high, b_low, **adding)
    gemm(a_low, b_high, **adding)
    sums <<= 8
    gemm(a_low, b_low, **adding)
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
