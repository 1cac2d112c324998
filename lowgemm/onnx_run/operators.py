"""ONNX's own quantized operators: functions of (state, inputs, attributes), and how they become evaluator
classes.

A function raises `NotOurs` for element types that lowgemm has no arithmetic for (float8, 16-bit products);
the onnx package's own implementation runs then, and the profile says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowgemm.checks.arrays import widened
from lowgemm.checks.onnx import result_zero_point
from lowgemm.compat import onnx as ox
from lowgemm.gemm import gemm
from lowgemm.onnx_run import convolution
from lowgemm.onnx_run.pipelines import pipeline
from lowgemm.onnx_run.state import NotOurs, State
from lowgemm.output.stages import Stage

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
_INTEGERS = (*_BYTES, np.dtype(np.uint16), np.dtype(np.int16))
_GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def need_bytes(*arrays: np.ndarray) -> None:
    """Leave anything but 8-bit tensors to the onnx package."""
    if any(a.dtype not in _BYTES for a in arrays):
        raise NotOurs


def matmul_integer(
    state: State, a: np.ndarray, b: np.ndarray, a_zero_point: Any = None, b_zero_point: Any = None
) -> np.ndarray:
    """MatMulInteger."""
    need_bytes(a, b)
    right = state.rhs(b)
    points = ox.zero_points(a, right, a_zero_point, b_zero_point)
    y = gemm(a, right, num_threads=state.num_threads, **points)
    return np.asarray(y)  # a tensor, where gemm gives a scalar


def scaled_product(
    state: State,
    a: np.ndarray,
    right: Any,
    scales: tuple[Any, Any, Any],
    zero_points: tuple[Any, Any, Any],
    bias: np.ndarray | None = None,
    factor: float = 1.0,
) -> np.ndarray:
    """``a @ right`` scaled to 8 bits, or to float32 where there is no result scale.

    Parameters
    ----------
    state : State
        Settings.
    a, right : ndarray, ndarray or PackedRhs
        Operands.
    scales, zero_points : tuple
        Of `a`, of `right`, and of the result (None: float32).
    bias : ndarray of int32, optional
        In units of ``factor * a_scale * b_scale``, of any shape that broadcasts with the result. One value a
        column is added as an output stage, anything else to sums that exist.
    factor : float
        Further factor (Gemm's alpha).
    """
    code, dtype = 0, None
    if scales[2] is not None:
        code, dtype = result_zero_point(zero_points[2])

    column, start = None, bias
    positive = factor >= 0 and all((s >= 0).all() for s in scales if s is not None)
    if bias is not None and positive and bias.size == max(bias.shape[-1:], default=1):
        column, start = np.broadcast_to(bias.reshape(-1), (right.shape[-1],)), None

    def make(scale: np.ndarray, axis: int) -> tuple[Stage, ...]:
        return pipeline(scale, code, dtype, state.rounding, axis, column)

    points = ox.zero_points(a, right, *zero_points[:2])
    if _endless(*scales):
        sums = gemm(a, right, num_threads=state.num_threads, **points)
        scale = np.float32(factor) * scales[0].reshape(()) * scales[1]
        return _scaled_in_float32(sums if bias is None else sums + bias, scale, scales[2], code, dtype)
    return ox.scaled_product(
        a, right, scales, points, make, factor=factor, start=start, num_threads=state.num_threads
    )


def _scaled_in_float32(
    sums: np.ndarray, scale: np.ndarray, y_scale: np.ndarray | None, code: int, dtype: Any
) -> np.ndarray:
    """Sums scaled where a scale is infinite or NaN: float32 arithmetic as IEEE 754 has it; NaN is the
    smallest byte.
    """
    y = sums.astype(np.float32) * (scale if y_scale is None else scale / y_scale.reshape(()))
    if dtype is None:
        return y
    info = np.iinfo(dtype)
    low, high = np.float32(info.min - code), np.float32(info.max - code)
    return (np.rint(np.fmin(np.fmax(y, low), high)) + np.float32(code)).astype(dtype)


def _endless(*scales: Any) -> bool:
    """Whether one of some scales is infinite or NaN, and the first is one number."""
    return not all(np.isfinite(s).all() for s in scales if s is not None) and scales[0].size == 1


def qlinear_matmul(
    state: State,
    a: np.ndarray,
    a_scale: Any,
    a_zero_point: Any,
    b: np.ndarray,
    b_scale: Any,
    b_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
) -> np.ndarray:
    """QLinearMatMul."""
    need_bytes(a, b)
    zero_points = (a_zero_point, b_zero_point, y_zero_point)
    return scaled_product(state, a, state.rhs(b), (a_scale, b_scale, y_scale), zero_points)


def convolution_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that say where windows lie."""
    return {k: v for k, v in attributes.items() if k in _GEOMETRY and v is not None}


def _convolution(
    state: State, x: np.ndarray, w: np.ndarray, attributes: dict[str, Any]
) -> tuple[convolution.PackedFilters, dict[str, Any]]:
    """The packed filters, and how a convolution's function is called."""
    need_bytes(x, w)
    how = convolution_attributes(attributes)
    return state.filters(w, how.get("group", 1)), {**how, "num_threads": state.num_threads}


def conv_integer(
    state: State,
    x: np.ndarray,
    w: np.ndarray,
    x_zero_point: Any = None,
    w_zero_point: Any = None,
    **attributes: Any,
) -> np.ndarray:
    """ConvInteger."""
    filters, how = _convolution(state, x, w, attributes)
    return convolution.conv_integer(x, filters, x_zero_point, w_zero_point, **how)


def qlinear_conv(
    state: State,
    x: np.ndarray,
    x_scale: Any,
    x_zero_point: Any,
    w: np.ndarray,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: Any = None,
    **attributes: Any,
) -> np.ndarray:
    """QLinearConv."""
    if _endless(x_scale, w_scale, y_scale):
        sums = conv_integer(state, x, w, x_zero_point, w_zero_point, **attributes)
        around = (-1, *(1,) * (sums.ndim - 2))
        scale = x_scale.reshape(()) * w_scale.reshape(around)
        sums = sums if bias is None else sums + bias.reshape(around)
        return _scaled_in_float32(sums, scale, y_scale, *result_zero_point(y_zero_point))
    filters, how = _convolution(state, x, w, attributes)
    return convolution.qlinear_conv(
        x, x_scale, x_zero_point, filters, w_scale, w_zero_point, y_scale, y_zero_point, bias,
        rounding=state.rounding, **how,
    )  # fmt: skip


def quantize_linear(
    state: State,
    x: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int | None = None,
    precision: int | None = None,
    saturate: int = 1,
) -> np.ndarray:
    """QuantizeLinear."""
    wanted = None
    if y_zero_point is None and output_dtype:
        from onnx.helper import tensor_dtype_to_np_dtype

        wanted = np.dtype(tensor_dtype_to_np_dtype(output_dtype))
    result = wanted or (np.dtype(np.uint8) if y_zero_point is None else y_zero_point.dtype)
    same = x.dtype == y_scale.dtype or x.dtype.kind == "i"
    if (
        precision
        or result not in _INTEGERS
        or x.dtype.kind not in "fi"
        or y_scale.dtype.kind != "f"
        or not same
    ):
        raise NotOurs
    return ox.quantize_linear(
        x,
        y_scale,
        y_zero_point,
        axis=axis,
        block_size=block_size or 0,
        output_dtype=wanted,
        rounding=state.rounding,
    )


def dequantize_linear(
    state: State,
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int | None = None,
) -> np.ndarray:
    """DequantizeLinear; 4- and 2-bit integers are widened to 8 first, which is exact."""
    x, zero = widened(x), None if x_zero_point is None else widened(x_zero_point)
    if output_dtype or x.dtype not in (*_INTEGERS, np.dtype(np.int32)) or x_scale.dtype.kind != "f":
        raise NotOurs
    return ox.dequantize_linear(x, x_scale, zero, axis=axis, block_size=block_size or 0)


def dynamic_quantize_linear(state: State, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DynamicQuantizeLinear."""
    return ox.dynamic_quantize_linear(x)


#: The default domain's operators that are lowgemm's.
OPERATORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("", "MatMulInteger"): matmul_integer,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("", "ConvInteger"): conv_integer,
    ("", "QLinearConv"): qlinear_conv,
    ("", "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): dequantize_linear,
    ("", "DynamicQuantizeLinear"): dynamic_quantize_linear,
}


def evaluator_class(domain: str, name: str, function: Callable[..., Any], state: State) -> type:
    """The class under which `onnx.reference.ReferenceEvaluator` knows an operator (its `new_ops`)."""
    from onnx.reference.op_run import OpRun

    class Operator(OpRun):
        op_domain = domain
        runs_on = "lowgemm"

        def _run(self, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
            try:
                result = function(state, *inputs, **attributes)
            except NotOurs:
                return self._theirs(*inputs)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}, output {self.onnx_node.output[0]}: {error}") from error
            return result if isinstance(result, tuple) else (result,)

        def _theirs(self, *inputs: Any) -> tuple[Any, ...]:
            if domain != "" or self.has_linked_attribute:
                types = ", ".join("none" if i is None else str(i.dtype) for i in inputs)
                raise TypeError(f"{name}: these element types are not supported: {types}")
            from onnx.reference.ops import load_op

            self.runs_on = "onnx.reference"
            theirs = load_op("", name, self.run_params["opsets"][""])
            return theirs(self.onnx_node, self.run_params).run(*inputs)

    Operator.__name__ = Operator.__qualname__ = name
    return Operator
