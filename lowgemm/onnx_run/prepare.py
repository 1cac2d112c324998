"""Nodes whose scales, zero points and weights are constants, prepared once: what is left for a run is the
data.

A maker takes (state, constants, attributes, last), the constants in the place of the inputs and None for the
others, and returns a function of the inputs, or None where something that it needs is no constant. `last`:
the result's channels should be last in memory, because convolutions read it. What it returns computes what
the operator's function in `operators.py` or `contrib.py` computes; those check everything at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np

from lowgemm.checks.onnx import result_zero_point
from lowgemm.compat import onnx, onnx_passes
from lowgemm.engine import parts
from lowgemm.gemm import gemm
from lowgemm.onnx_run import (
    average,
    binary,
    contrib,
    convolution,
    copies,
    dynamic,
    elementwise,
    float_mean,
    layer_norm,
    lstm,
    max_pool,
    nbits,
    row_means,
    softmax,
    turned,
)
from lowgemm.onnx_run.addresses import address
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.look_up import by_table
from lowgemm.onnx_run.operators import convolution_attributes
from lowgemm.onnx_run.pipelines import pipeline
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
Constants = Sequence[Any]


def _known(constants: Constants, *places: int) -> bool:
    """Whether all inputs in these places are constants."""
    return all(i < len(constants) and constants[i] is not None for i in places)


def qlinear_conv(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QLinearConv with the channels second."""
    if (
        attributes.get("channels_last")
        or not _known(constants, *range(1, len(constants)))
        or len(constants) < 8
    ):
        return None
    _, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = constants
    if w.dtype not in _BYTES or x_zero.dtype not in _BYTES:
        return None
    how = convolution_attributes(attributes)
    made = convolution.quantized_convolution(
        state.filters(w, how.get("group", 1)), x_zero.dtype, (x_scale, w_scale, y_scale),
        (x_zero, w_zero, y_zero), bias[0] if bias else None, how, state.rounding, state.num_threads,
    )  # fmt: skip
    dtype = x_zero.dtype

    def run(x: np.ndarray, *_: Any) -> np.ndarray:
        if x.dtype != dtype:
            raise TypeError(f"x_zero_point: expected dtype {x.dtype} like its operand, got {dtype}")
        return made.run(x)

    def record(recorder: Recorder, x: np.ndarray, *_: Any) -> Any:
        y = made.record(recorder, x) if x.dtype == dtype else None
        return None if y is None else (y,)

    run.record = record  # type: ignore[attr-defined]
    return run


def conv_integer(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """ConvInteger; the zero point of the images may come with them."""
    if (
        not _known(constants, 1)
        or constants[1].dtype not in _BYTES
        or (len(constants) > 3 and constants[3] is None)
    ):
        return None
    how = convolution_attributes(attributes)
    filters = state.filters(constants[1], how.get("group", 1))
    zero = constants[3] if len(constants) > 3 else None
    made = {
        dtype: convolution.Convolution(filters, dtype, (None, zero), how, num_threads=state.num_threads)
        for dtype in _BYTES
    }

    def run(x: np.ndarray, w: Any, x_zero: Any = None, *_: Any) -> np.ndarray:
        if x_zero is not None and (x_zero.dtype != x.dtype or x_zero.size != 1):
            raise TypeError(
                f"x_zero_point: expected one {x.dtype} like its operand, got {x_zero.dtype}, shape "
                f"{x_zero.shape}"
            )
        if x.dtype not in made:
            raise TypeError(f"x: expected uint8 or int8, got {x.dtype}")
        return made[x.dtype].run(x, None if x_zero is None else x_zero.item())

    return run


def _binary(values: Callable[..., Any], routine: Any, record: np.dtype) -> Callable[..., Any]:
    """The maker of an operator of two tensors: its `routine`, and the `record` that `values` fills."""

    def make(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
        if not _known(constants, 1, 4, 6) or any(len(constants) <= i for i in (2, 5)):
            return None
        zeros = [constants[i] if len(constants) > i else None for i in (2, 5, 7)]
        dtype = next((z.dtype for z in zeros if z is not None), None)
        if dtype is None or not elementwise.is_compiled(dtype, *(z.dtype for z in zeros if z is not None)):
            return None
        a, b, y = (constants[1], zeros[0]), (constants[4], zeros[1]), (constants[6], zeros[2])
        ready = binary.Binary(routine, record, values(dtype, *a, *b, *y), state.num_threads)
        turned = binary.Binary(routine, record, values(dtype, *b, *a, *y), state.num_threads)
        later = dynamic.given_later(constants, 2, 5, 7)

        def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
            if later(inputs):
                return NotImplemented
            a, b = inputs[0], inputs[3]
            if a.dtype != dtype or b.dtype != dtype:
                raise TypeError(f"A, B: expected {dtype} like the zero points, got {a.dtype} and {b.dtype}")
            if elementwise.first_is_repeated(a.shape, b.shape):
                return turned(b, a, recorder)
            return ready(a, b, recorder)

        run.record = unless_refused(run)  # type: ignore[attr-defined]
        return run

    return make


def _one_scale(constants: Constants) -> bool:
    """Whether all inputs but the first are constants, and the second is one float32 scale."""
    return (
        _known(constants, *range(1, len(constants)))
        and constants[1].size == 1
        and constants[1].dtype == np.float32
    )


def quantize_linear(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QuantizeLinear of float32 with one scale."""
    plain = not any(attributes.get(n) for n in ("block_size", "output_dtype", "precision"))
    if not plain or not _one_scale(constants) or len(constants) < 3 or constants[2].dtype not in _BYTES:
        return None
    dtype = constants[2].dtype
    if constants[2].size != 1 or not np.isfinite(constants[1]).all():
        return None
    scale, zero = constants[1].reshape(1).copy(), constants[2].reshape(1).astype(np.int32)
    info = np.iinfo(dtype)
    at, low, high, point = (address(scale), address(zero)), int(info.min), int(info.max), int(zero[0])
    reals = np.array((scale[0], low - point, high - point), np.float32)
    real, threads = address(reals), state.num_threads

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> np.ndarray:
        where, _, by = ways(recorder)
        if (
            last
            and x.ndim > 2
            and x.shape[1] > 1
            and x.size
            and x.dtype == np.float32
            and x.flags.c_contiguous
        ):
            y, sizes = turned.empty_last(x.shape, dtype), (*x.shape[:2], x.size // (x.shape[0] * x.shape[1]))
            turned.run_turn(turned.QUANTIZED, where(x), where(y), real, point, sizes, threads, by)
            return y
        y = onnx_passes.empty_like(x, dtype) if x.dtype == np.float32 else None
        if y is None:
            return NotImplemented
        pieces, time = -(-x.size // onnx_passes.PIECE), 0.2 * x.size
        args = where(x), where(y), *at, 1, onnx_passes.PIECE, x.size, low, high, 1
        parts.run_shared(onnx_passes.quantize, args, pieces, time, threads, by)
        return y

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    run.held = scale, zero, reals  # type: ignore[attr-defined]  # the addresses point into them
    return run


def dequantize_linear(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """DequantizeLinear of bytes with one scale."""
    if attributes.get("block_size") or attributes.get("output_dtype") or not _one_scale(constants):
        return None
    if len(constants) < 3 or constants[2].size != 1 or constants[2].dtype not in _BYTES:
        return None
    dtype = constants[2].dtype
    scale, zero = constants[1].reshape(1).copy(), constants[2].reshape(1).astype(np.int32)
    at, kind = (address(scale), address(zero)), int(dtype == np.int8)
    both = np.array((scale[0], zero[0]), np.float32)
    real, flip, threads = address(both), 128 if dtype == np.int8 else 0, state.num_threads

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> np.ndarray:
        where, _, by = ways(recorder)
        found = turned.sizes(x) if x.dtype == dtype else None
        if found is not None:  # the float node that reads it wants its channels second
            images, channels, pixels = found
            y = np.empty(x.shape, np.float32)
            sizes = images, pixels, channels
            turned.run_turn(turned.DEQUANTIZED, where(x), where(y), real, flip, sizes, threads, by)
            return y
        y = onnx_passes.empty_like(x, np.float32) if x.dtype == dtype else None
        if y is None:
            return NotImplemented
        pieces, time = -(-x.size // onnx_passes.PIECE), 0.2 * x.size
        args = where(x), where(y), *at, 1, onnx_passes.PIECE, x.size, kind
        parts.run_shared(onnx_passes.dequantize, args, pieces, time, threads, by)
        return y

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    run.held = scale, zero, both  # type: ignore[attr-defined]  # the addresses point into them
    return run


def _usual(scales: Constants, zero: Any, bias: Any, count: int) -> bool:
    """Whether constants of a product with `count` columns are of the usual kind.

    That is: positive float32 scales, one of them for `a` and one for the result, one or one a column for `b`;
    one zero point of bytes for `a`; an int32 bias, one or one a column, or none.
    """
    if scales[0] is None or scales[1] is None:
        return False
    if any(s is not None and (s.dtype != np.float32 or not (s > 0).all()) for s in scales):
        return False
    if scales[0].size != 1 or scales[1].size not in (1, count):
        return False
    if scales[2] is not None and scales[2].size != 1:
        return False
    if zero is None or zero.size != 1 or zero.dtype not in _BYTES:
        return False
    if bias is None:
        return True
    row = max(bias.shape, default=1) == bias.size and (not bias.ndim or bias.shape[-1] == bias.size)
    return bias.dtype == np.int32 and bias.size in (1, count) and row


def _coded_product(
    state: State,
    scales: Constants,
    zeros: Constants,
    b: Any,
    bias: Any = None,
    alpha: float = 1.0,
    turned_b: bool = False,
) -> Any:
    """A function of `a` for a product whose operands but `a` are constants: scales and zero points of `a`,
    `b` and the result.
    """
    if b is None or b.dtype not in _BYTES or b.ndim != 2 or not b.size:
        return None
    right = state.rhs(b, transposed=turned_b)
    depth, count = right.shape
    if isinstance(right, np.ndarray) or alpha <= 0 or not _usual(scales, zeros[0], bias, count):
        return None
    points = onnx.zero_points(np.empty((1, depth), zeros[0].dtype), right, zeros[0], zeros[1])
    scale = np.float32(alpha) * scales[0].reshape(()) * scales[1].reshape(-1)
    code, dtype = 0, None
    if scales[2] is not None:
        scale = scale / scales[2].reshape(())
        code, dtype = result_zero_point(zeros[2])
    column = None if bias is None else np.broadcast_to(bias.reshape(-1), (count,))
    stages = pipeline(scale if scale.size > 1 else scale.reshape(()), code, dtype, state.rounding, 1, column)
    kind = zeros[0].dtype
    for name, value in points.items():  # vectors of one value cost what a scalar costs
        flat = np.reshape(value, -1)
        points[name] = int(flat[0]) if (flat == flat[0]).all() else flat

    def run(a: np.ndarray, recorder: Recorder | None = None) -> Any:
        if a.dtype != kind or a.ndim < 2 or a.shape[-1] != depth or not a.size:
            return NotImplemented
        rows = a if a.ndim == 2 else a.reshape(-1, depth)
        if recorder is None:
            y = gemm(rows, right, output=stages, num_threads=state.num_threads, **points)
        else:
            y = recorder.product(
                rows, right, points["lhs_zero_point"], points["rhs_zero_point"], stages, state.num_threads
            )
        return y if y is NotImplemented or a.ndim == 2 else y.reshape(*a.shape[:-1], count)

    return run


def qlinear_matmul(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QLinearMatMul with a constant right-hand side."""
    if not _known(constants, *range(1, 8)):
        return None
    _, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = constants
    product = _coded_product(state, (a_scale, b_scale, y_scale), (a_zero, b_zero, y_zero), b)
    if product is None:
        return None

    def run(a: np.ndarray, *_: Any, recorder: Recorder | None = None) -> Any:
        return product(a, recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def qgemm(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QGemm with a constant right-hand side."""
    _, a_scale, a_zero, b, b_scale, b_zero, bias, y_scale, y_zero = [*constants, *[None] * 9][:9]
    if attributes.get("transA") or b_zero is None or (y_scale is None) != (y_zero is None):
        return None
    if any(len(constants) > i and constants[i] is None for i in (7, 8)):
        return None
    scales, zeros = (a_scale, b_scale, y_scale), (a_zero, b_zero, y_zero)
    product = _coded_product(
        state, scales, zeros, b, bias, attributes.get("alpha", 1.0), bool(attributes.get("transB"))
    )
    if product is None:
        return None

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        if bias is None and len(inputs) > 6 and inputs[6] is not None:
            return NotImplemented
        return product(inputs[0], recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def qlinear_global_average_pool(
    state: State, constants: Constants, attributes: dict[str, Any], last: bool
) -> Any:
    """QLinearGlobalAveragePool with the channels second."""
    if attributes.get("channels_last") or not _known(constants, 1, 2, 3, 4) or len(constants) < 5:
        return None
    _, *scales_and_zeros = constants
    x_scale, x_zero, y_scale, y_zero = scales_and_zeros
    if any(v.size != 1 for v in scales_and_zeros) or x_zero.dtype not in _BYTES or y_zero.dtype not in _BYTES:
        return None
    if x_scale.dtype != np.float32 or y_scale.dtype != np.float32 or not np.isfinite(y_scale).all():
        return None
    params = np.array((x_scale.item(), y_scale.item()), np.float32)
    zeros, kind, dtype = (int(x_zero.reshape(())), int(y_zero.reshape(()))), x_zero.dtype, y_zero.dtype

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> Any:
        if x.dtype != kind or x.ndim < 3:
            return NotImplemented
        return average.global_average(x, params, zeros, dtype, state.num_threads, recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def qlinear_concat(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QLinearConcat, for a recorder: parts of another scale by a table, then copies."""
    if numba.config.DISABLE_JIT or not _known(constants, 0, 1):
        return None
    places = range(2, len(constants), 3)
    if not all(_known(constants, i + 1, i + 2) and constants[i + 2].dtype in _BYTES for i in places):
        return None
    coded, recoded = [], contrib.OPERATORS[DOMAIN, "QLinearConcat"]
    for i in places:
        every = np.arange(256, dtype=np.uint8).view(constants[i + 2].dtype)
        found = recoded(state, *constants[:2], every, *constants[i + 1 : i + 3], axis=0)
        coded.append(None if found.dtype == every.dtype and (found == every).all() else found)

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        if recorder is None:
            return NotImplemented
        parts = []
        for i, table in zip(places, coded, strict=True):
            x = inputs[i]
            if x.dtype != constants[i + 2].dtype:
                return NotImplemented
            if table is not None:
                x = recorder.in_order(x)
                x = by_table(table, x, state.num_threads, recorder)
            if x is NotImplemented:
                return NotImplemented
            parts.append(x)
        y = copies.joined(recorder, parts, attributes["axis"], state.num_threads)
        return NotImplemented if y is None else y

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("", "QLinearConv"): qlinear_conv,
    (DOMAIN, "QLinearConv"): qlinear_conv,
    ("", "ConvInteger"): conv_integer,
    ("", "QLinearMatMul"): qlinear_matmul,
    (DOMAIN, "QGemm"): qgemm,
    (DOMAIN, "QLinearGlobalAveragePool"): qlinear_global_average_pool,
    (DOMAIN, "QLinearConcat"): qlinear_concat,
    (DOMAIN, "QLinearSoftmax"): softmax.prepared,
    (DOMAIN, "QLinearAdd"): _binary(elementwise.add_values, binary.add, binary.ADD),
    (DOMAIN, "QLinearMul"): _binary(elementwise.mul_values, binary.mul, binary.MUL),
    ("", "QuantizeLinear"): quantize_linear,
    (DOMAIN, "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): dequantize_linear,
    (DOMAIN, "DequantizeLinear"): dequantize_linear,
    **dynamic.MAKERS,
    **float_mean.MAKERS,
    **layer_norm.MAKERS,
    **row_means.MAKERS,
    **lstm.MAKERS,
    **max_pool.MAKERS,
    **nbits.MAKERS,
}


def prepared(
    key: tuple[str, str], state: State, constants: Constants, attributes: dict[str, Any], last: bool = False
) -> Any:
    """A function of a node's inputs, or None if the operator's own function has to do.

    What it returns may return NotImplemented, for inputs that need the operator's own function. Constants
    that do not fit are for that function to refuse, when it runs.
    """
    maker = _MAKERS.get(key)
    if maker is None or numba.config.DISABLE_JIT:
        return None
    try:
        return maker(state, constants, attributes, last)
    except (TypeError, ValueError):
        return None
