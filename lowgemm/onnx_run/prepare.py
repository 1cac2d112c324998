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

from lowgemm.compat import onnx_passes
from lowgemm.engine import parts
from lowgemm.onnx_run import (
    average,
    average_pool,
    binary,
    choices,
    contrib,
    convolution,
    copies,
    dynamic,
    elementwise,
    float_mean,
    given_scales,
    image_means,
    layer_norm,
    lstm,
    max_pool,
    nbits,
    products,
    softmax,
    strided,
    turned,
)
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.look_up import by_table
from lowgemm.onnx_run.operators import convolution_attributes
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
Constants = Sequence[Any]


def _known(constants: Constants, *places: int) -> bool:
    """Whether all inputs in these places are constants."""
    return all(i < len(constants) and constants[i] is not None for i in places)


def _given(
    state: State, make: Callable[..., Any], dtypes: tuple[np.dtype, np.dtype] | None, zero: Any, group: int
) -> Callable[..., Any]:
    """What takes down a convolution whose filters come with the data: from (recorder, images, filters, zero
    points of both where they come with the data) to the result, or None.

    ``make(filters, dtype)`` gives the convolution of images of a dtype. `dtypes` are those of the operands,
    if they are known. `zero` is the filters' zero point, if that is a constant.
    """
    known: dict[Any, Any] = {}

    def record(recorder: Recorder, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None) -> Any:
        both = x.dtype, w.dtype
        if any(d not in _BYTES for d in both) or (dtypes is not None and both != dtypes) or not w.size:
            return None
        key = w.shape, both, w_zero is None
        try:
            if key not in known:
                if len(known) >= convolution.SHAPES:
                    known.clear()
                filters = convolution.GivenFilters(w.shape, w.dtype, group, w_zero is not None)
                known[key] = make(filters, x.dtype)
            y = known[key].record(recorder, x, x_zero, w, w_zero)
        except (TypeError, ValueError):  # said when it runs
            return None
        return None if y is None else (y,)

    return record


def _scales_given(state: State, constants: Constants, attributes: dict[str, Any]) -> Any:
    """QLinearConv of which scales, zero points or the bias come with the data, for a recorder."""
    how, held, zero = convolution_attributes(attributes), constants[3], constants[5]
    if state.rounding != "onnx" or any(c is not None and c.dtype not in _BYTES for c in (held, zero)):
        return None
    group = how.get("group", 1)

    def make(filters: Any, dtype: np.dtype) -> Any:
        return convolution.Convolution(filters, dtype, (None, zero), how, num_threads=state.num_threads)

    record_given = _given(state, make, None, zero, group)
    packed: dict[np.dtype, Any] = {}
    if held is not None and zero is not None:
        packed = {dtype: make(state.filters(held, group), dtype) for dtype in _BYTES}

    def sums(recorder: Recorder, x: Any, x_zero: Any, w: Any, w_zero: Any) -> Any:
        if not packed:
            made = record_given(recorder, x, w, x_zero, w_zero if zero is None else None)
            return None if made is None else made[0]
        return packed[x.dtype].record(recorder, x, x_zero) if x.dtype in packed else None

    def run(*_: Any) -> Any:
        return NotImplemented

    def record(recorder: Recorder, *inputs: Any) -> Any:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = inputs
        if x_zero.size != 1 or x_zero.dtype != x.dtype or w_zero.dtype != w.dtype:
            return None
        if zero is None and w_zero.size != 1:
            return None
        found = sums(recorder, x, x_zero, w, w_zero)
        if found is None:
            return None
        last = found.transpose((0, *range(2, x.ndim), 1))
        y = given_scales.requantized(
            recorder, last.reshape(-1, last.shape[-1]), (x_scale, w_scale, y_scale), y_zero,
            bias[0] if bias else None, state.num_threads,
        )  # fmt: skip
        if y is NotImplemented:
            return None
        y = y.reshape(last.shape)
        return (y.transpose((0, y.ndim - 1, *range(1, y.ndim - 1))),)

    run.record = record  # type: ignore[attr-defined]
    return run


def qlinear_conv(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QLinearConv with the channels second; the filters may come with the data."""
    others = [i for i in range(1, len(constants)) if i != 3]
    if attributes.get("channels_last") or len(constants) < 8:
        return None
    if not _known(constants, *others):
        return _scales_given(state, constants, attributes)
    _, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = constants
    if any(a is not None and a.dtype not in _BYTES for a in (w, x_zero, w_zero)):
        return None
    how, dtype = convolution_attributes(attributes), x_zero.dtype
    group = how.get("group", 1)

    def make(filters: Any, dtype: np.dtype) -> Any:
        return convolution.quantized_convolution(
            filters, dtype, (x_scale, w_scale, y_scale), (x_zero, w_zero, y_zero), bias[0] if bias else None,
            how, state.rounding, state.num_threads,
        )  # fmt: skip

    if w is None:
        record_given = _given(state, make, (dtype, w_zero.dtype), w_zero, group)

        def given(*_: Any) -> Any:
            return NotImplemented

        given.record = lambda recorder, *inputs: record_given(recorder, inputs[0], inputs[3])  # type: ignore[attr-defined]
        return given
    made = make(state.filters(w, group), dtype)

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
    """ConvInteger; filters and zero points may come with the images."""
    how = convolution_attributes(attributes)
    w, zero = constants[1], constants[3] if len(constants) > 3 else None
    if w is not None and w.dtype not in _BYTES:
        return None

    def make(filters: Any, dtype: np.dtype) -> Any:
        return convolution.Convolution(filters, dtype, (None, zero), how, num_threads=state.num_threads)

    def points(x: np.ndarray, w: np.ndarray, zeros: Sequence[Any]) -> list[Any] | None:
        """Zero points for a recorder: those of images, and of filters where they come with them."""
        found = []
        for i, operand in enumerate((x, w)):
            point = zeros[i] if len(zeros) > i else None
            if point is not None and (point.size != 1 or point.dtype != operand.dtype):
                return None
            found.append(point)
        return found

    if w is None or (len(constants) > 3 and zero is None):
        record_given = _given(state, make, None, zero, how.get("group", 1))

        def given(*_: Any) -> Any:
            return NotImplemented

        def record_all(recorder: Recorder, x: Any, w: Any, *zeros: Any) -> Any:
            found = points(x, w, zeros[:1] if zero is not None else zeros)
            return None if found is None else record_given(recorder, x, w, *found)

        given.record = record_all  # type: ignore[attr-defined]
        return given
    filters = state.filters(w, how.get("group", 1))
    made = {dtype: make(filters, dtype) for dtype in _BYTES}

    def run(x: np.ndarray, w: Any, x_zero: Any = None, *_: Any) -> np.ndarray:
        if x_zero is not None and (x_zero.dtype != x.dtype or x_zero.size != 1):
            raise TypeError(
                f"x_zero_point: expected one {x.dtype} like its operand, got {x_zero.dtype}, shape "
                f"{x_zero.shape}"
            )
        if x.dtype not in made:
            raise TypeError(f"x: expected uint8 or int8, got {x.dtype}")
        return made[x.dtype].run(x, None if x_zero is None else x_zero.item())

    def record(recorder: Recorder, x: np.ndarray, w: Any, *zeros: Any) -> Any:
        found = points(x, w, zeros[:1]) if x.dtype in made else None
        y = None if found is None else made[x.dtype].record(recorder, x, found[0])
        return None if y is None else (y,)

    run.record = record  # type: ignore[attr-defined]
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


class _Steps:
    """Constant scales and zero points of a quantizer, and which of them is whose."""

    def __init__(self, scale: np.ndarray, zero: np.ndarray, attributes: dict[str, Any]) -> None:
        self.shape, self.size = scale.shape, scale.size
        self.scale = np.ascontiguousarray(scale.reshape(-1)).copy()
        self.zero = zero.reshape(-1).astype(np.int32)
        self.axis, self.block = attributes.get("axis", 1), attributes.get("block_size", 0) or 0
        #: Whether there is one for all.
        self.one = self.size == 1 and not self.block

    @classmethod
    def of(cls, constants: Constants, attributes: dict[str, Any]) -> _Steps | None:
        """Those of a node, if they are constants."""
        if attributes.get("output_dtype") or attributes.get("precision"):
            return None
        if not _known(constants, 1, 2) or constants[1].dtype != np.float32:
            return None
        scale, zero = constants[1:3]
        return (
            cls(scale, zero, attributes)
            if scale.shape == zero.shape or scale.size == zero.size == 1
            else None
        )

    def layout(self, shape: tuple[int, ...]) -> onnx_passes.Layout | None:
        """Where they lie; None if they do not fit."""
        if self.one:
            return onnx_passes.layout(shape, 1, 0)
        if not -len(shape) <= self.axis < len(shape):
            return None
        axis = self.axis % len(shape)
        n = shape[axis]
        blocked = (*shape[:axis], -(-n // self.block), *shape[axis + 1 :]) if self.block else (n,)
        return onnx_passes.layout(shape, self.size, axis, self.block) if self.shape == blocked else None

    def run(
        self, work: Any, x: np.ndarray, dtype: Any, more: tuple[int, ...], num_threads: Any, recorder: Any
    ) -> Any:
        """Run a pass of `onnx_passes`, or take it down; NotImplemented if it is not for that."""
        found = self.layout(x.shape) if x.size else None
        if found is None:
            return NotImplemented
        if not self.one and not x.flags.c_contiguous:
            if recorder is None or not strided.takes(x, x):
                return NotImplemented
            x = recorder.copied(x)
        y = onnx_passes.empty_like(x, dtype)
        if y is None:
            return NotImplemented
        where, held, by = ways(recorder)
        outer, *rows = found
        args = where(x), where(y), held(self.scale), held(self.zero), *rows, *more
        parts.run_shared(work, args, outer * rows[0], 0.2 * x.size, num_threads, by)
        return y


def quantize_linear(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QuantizeLinear of float32."""
    steps = _Steps.of(constants, attributes)
    if steps is None or constants[2].dtype not in _BYTES or not np.isfinite(steps.scale).all():
        return None
    dtype = constants[2].dtype
    info = np.iinfo(dtype)
    low, high, point = int(info.min), int(info.max), int(steps.zero[0])
    reals = np.array((steps.scale[0], low - point, high - point), np.float32)
    threads = state.num_threads

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> np.ndarray:
        if x.dtype != np.float32:
            return NotImplemented
        if steps.one and last and x.ndim > 2 and x.shape[1] > 1 and x.size and x.flags.c_contiguous:
            where, held, by = ways(recorder)
            y, sizes = turned.empty_last(x.shape, dtype), (*x.shape[:2], x.size // (x.shape[0] * x.shape[1]))
            turned.run_turn(turned.QUANTIZED, where(x), where(y), held(reals), point, sizes, threads, by)
            return y
        return steps.run(onnx_passes.quantize, x, dtype, (low, high, 1), threads, recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def dequantize_linear(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """DequantizeLinear to float32."""
    steps = _Steps.of(constants, attributes)
    if steps is None or constants[2].dtype not in onnx_passes.KINDS:
        return None
    dtype, threads = constants[2].dtype, state.num_threads
    kind, turns = onnx_passes.KINDS.index(dtype), steps.one and dtype in _BYTES
    both, flip = np.array((steps.scale[0], steps.zero[0]), np.float32), 128 if dtype == np.int8 else 0

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> np.ndarray:
        if x.dtype != dtype:
            return NotImplemented
        found = turned.sizes(x) if turns else None
        if found is not None:  # the float node that reads it wants its channels second
            images, channels, pixels = found
            where, held, by = ways(recorder)
            y = np.empty(x.shape, np.float32)
            sizes = images, pixels, channels
            turned.run_turn(turned.DEQUANTIZED, where(x), where(y), held(both), flip, sizes, threads, by)
            return y
        return steps.run(onnx_passes.dequantize, x, np.float32, (kind,), threads, recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def qlinear_global_average_pool(
    state: State, constants: Constants, attributes: dict[str, Any], last: bool
) -> Any:
    """QLinearGlobalAveragePool."""
    if not _known(constants, 1, 2, 3, 4) or len(constants) < 5:
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
        channels_last = attributes.get("channels_last")
        x = np.moveaxis(x, -1, 1) if channels_last else x
        y = average.global_average(x, params, zeros, dtype, state.num_threads, recorder)
        return np.moveaxis(y, 1, -1) if channels_last and y is not NotImplemented else y

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
    (DOMAIN, "QLinearGlobalAveragePool"): qlinear_global_average_pool,
    (DOMAIN, "QLinearAveragePool"): average_pool.prepared,
    (DOMAIN, "QLinearConcat"): qlinear_concat,
    (DOMAIN, "QLinearSoftmax"): softmax.prepared,
    (DOMAIN, "QLinearWhere"): choices.prepared,
    (DOMAIN, "QLinearAdd"): _binary(elementwise.add_values, binary.add, binary.ADD),
    (DOMAIN, "QLinearMul"): _binary(elementwise.mul_values, binary.mul, binary.MUL),
    ("", "QuantizeLinear"): quantize_linear,
    (DOMAIN, "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): dequantize_linear,
    (DOMAIN, "DequantizeLinear"): dequantize_linear,
    **dynamic.MAKERS,
    **float_mean.MAKERS,
    **layer_norm.MAKERS,
    **image_means.MAKERS,
    **lstm.MAKERS,
    **max_pool.MAKERS,
    **nbits.MAKERS,
    **products.MAKERS,
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
