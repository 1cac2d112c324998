"""Products of bytes for a recorder: MatMulInteger, QLinearMatMul and QGemm.

Either operand may be a constant or come with the data, also as a stack of matrices, turned over or not: the
products of attention are stacks of two activations. A constant right-hand side is packed once; one that comes
with the data is packed by the recorded call, matrix by matrix, while it is in the caches. Scales are
constants, so the output pipeline is made once. What is not for this is the operator's own function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.checks.onnx import result_zero_point
from lowgemm.engine.packed_rhs import PackedRhs
from lowgemm.gemm import gemm
from lowgemm.onnx_run import given_scales, strided
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.pipelines import pipeline
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, unless_refused

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
Constants = Sequence[Any]


def as_rows(a: np.ndarray, recorder: Recorder | None = None) -> np.ndarray:
    """A stack of matrices as one, copied if its rows do not follow one another."""
    if a.ndim == 2:
        return a
    shape = math.prod(a.shape[:-1]), a.shape[-1]
    rows = a.reshape(shape)
    if recorder is not None and not recorder.knows(rows) and strided.takes(a, a):
        rows = recorder.copied(a).reshape(shape)
    return rows


def product_of(
    recorder: Recorder,
    a: np.ndarray,
    right: Any,
    zeros: Sequence[Any],
    stages: Any,
    num_threads: int | None,
) -> Any:
    """Take down the product of matrices or stacks of them; NotImplemented if that cannot be. The zero points
    are as `Recorder.product` has them.
    """
    if a.dtype not in _BYTES or a.ndim < 2 or not a.size or len(right.shape) < 2:
        return NotImplemented
    if len(right.shape) > 2:
        return recorder.product(a, right, *zeros, stages, num_threads)
    if any(isinstance(v, np.ndarray) and v.size > 1 for v in zeros[:1]) and a.ndim > 2:
        return NotImplemented
    y = recorder.product(as_rows(a, recorder), right, *zeros, stages, num_threads)
    return y if y is NotImplemented else y.reshape(*a.shape[:-1], right.shape[-1])


def held_right(state: State, b: Any, turned_b: bool = False) -> Any:
    """A constant right-hand side, packed; None if it comes with the data. NotImplemented if it is not for
    this.
    """
    if b is None:
        return None
    right = state.rhs(b, transposed=turned_b) if b.dtype in _BYTES and b.ndim > 1 and b.size else None
    return right if isinstance(right, PackedRhs) else NotImplemented


def _columns(*values: Any) -> int:
    """The number of columns that constants are for, 1 if they are one for all; 0 if they do not agree."""
    sizes = {v.size for v in values if v is not None} | {1}
    return max(sizes) if len(sizes) < 3 and 0 not in sizes else 0


def _usual(scales: Constants, zeros: Constants, bias: Any, columns: int) -> bool:
    """Whether constants of a product are of the usual kind.

    That is: positive float32 scales, one of them for `a` and one for the result, one or one a column for `b`;
    zero points of bytes, one for `a`, one or one a column for `b`; an int32 bias, one or one a column, or
    none.
    """
    if scales[0] is None or scales[1] is None or not columns:
        return False
    if any(s is not None and (s.dtype != np.float32 or not (s > 0).all()) for s in scales):
        return False
    if scales[0].size != 1 or (scales[2] is not None and scales[2].size != 1):
        return False
    if zeros[0] is None or zeros[0].size != 1 or any(z is None or z.dtype not in _BYTES for z in zeros[:2]):
        return False
    if any(max(v.shape, default=1) != v.size for v in (scales[1], zeros[1])):
        return False
    if bias is None:
        return True
    row = max(bias.shape, default=1) == bias.size and (not bias.ndim or bias.shape[-1] == bias.size)
    return bias.dtype == np.int32 and row


def _number_or_vector(zero: np.ndarray) -> int | np.ndarray:
    """Zero points; vectors of one value cost what a number costs."""
    flat = zero.reshape(-1)
    return int(flat[0]) if (flat == flat[0]).all() else flat


def _coded_product(
    state: State,
    scales: Constants,
    zeros: Constants,
    b: Any,
    bias: Any = None,
    alpha: float = 1.0,
    turned_b: bool = False,
) -> Any:
    """A function of both operands for a product whose scales and zero points are constants: those of `a`,
    `b` and the result. `b` may be a constant.
    """
    right, columns = held_right(state, b, turned_b), _columns(scales[1], zeros[1], bias)
    if right is NotImplemented or alpha <= 0 or not _usual(scales, zeros, bias, columns):
        return None
    if right is not None and (right.dtype != zeros[1].dtype or columns not in (1, right.shape[-1])):
        return None
    points = tuple(_number_or_vector(z) for z in zeros[:2])
    scale = np.float32(alpha) * scales[0].reshape(()) * scales[1].reshape(-1)
    code, dtype = 0, None
    if scales[2] is not None:
        scale = scale / scales[2].reshape(())
        code, dtype = result_zero_point(zeros[2])
    one = scale if scale.size > 1 else scale.reshape(())

    def stages(count: int) -> Any:
        column = None if bias is None else np.broadcast_to(bias.reshape(-1), (count,))
        return pipeline(one, code, dtype, state.rounding, 1, column)

    held = None if right is None else stages(right.shape[-1])
    kind, other = zeros[0].dtype, zeros[1].dtype

    def run(a: np.ndarray, given: Any, recorder: Recorder | None = None) -> Any:
        if a.dtype != kind or a.ndim < 2 or not a.size:
            return NotImplemented
        if right is None:
            b = given.T if turned_b else given
            if recorder is None or b.dtype != other or b.ndim < 2 or columns not in (1, b.shape[-1]):
                return NotImplemented
            return product_of(recorder, a, b, points, stages(b.shape[-1]), state.num_threads)
        if a.shape[-1] != right.shape[-2]:
            return NotImplemented
        if recorder is not None:
            return product_of(recorder, a, right, points, held, state.num_threads)
        flat = len(right.shape) == 2
        left, (lhs_zero, rhs_zero) = as_rows(a) if flat else a, points
        y = gemm(
            left, right, lhs_zero_point=lhs_zero, rhs_zero_point=rhs_zero, output=held,
            num_threads=state.num_threads,
        )  # fmt: skip
        return y.reshape(*a.shape[:-1], right.shape[-1]) if flat else y

    return run


def _given_matmul(state: State, constants: Constants) -> Any:
    """QLinearMatMul of which scales or zero points come with the data, for a recorder."""
    right = held_right(state, constants[3])
    if right is NotImplemented or state.rounding != "onnx":
        return None

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs[:8]
        b = b if right is None else right
        if recorder is None or len(b.shape) < 2 or a.ndim < 2 or a.shape[-1] != b.shape[-2]:
            return NotImplemented
        for zero, operand, count in ((a_zero, a, 1), (b_zero, b, b.shape[-1])):
            if (
                zero.dtype != operand.dtype
                or zero.size not in (1, count)
                or zero.size != max(zero.shape, default=1)
            ):
                return NotImplemented
        sums = product_of(recorder, a, b, (a_zero, b_zero), None, state.num_threads)
        if sums is NotImplemented:
            return NotImplemented
        rows = sums.reshape(-1, sums.shape[-1])
        y = given_scales.requantized(
            recorder, rows, (a_scale, b_scale, y_scale), y_zero, None, state.num_threads
        )
        return y if y is NotImplemented else y.reshape(sums.shape)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def qlinear_matmul(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QLinearMatMul."""
    if len(constants) < 8:
        return None
    if any(constants[i] is None for i in (1, 2, 4, 5, 6, 7)):
        return _given_matmul(state, constants)
    _, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = constants
    product = _coded_product(state, (a_scale, b_scale, y_scale), (a_zero, b_zero, y_zero), b)
    if product is None:
        return None

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        return product(inputs[0], inputs[3], recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def qgemm(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """QGemm."""
    _, a_scale, a_zero, b, b_scale, b_zero, bias, y_scale, y_zero = [*constants, *[None] * 9][:9]
    if b_zero is None or (y_scale is None) != (y_zero is None):
        return None
    if any(len(constants) > i and constants[i] is None for i in (7, 8)):
        return None
    scales, zeros = (a_scale, b_scale, y_scale), (a_zero, b_zero, y_zero)
    product = _coded_product(
        state, scales, zeros, b, bias, attributes.get("alpha", 1.0), bool(attributes.get("transB"))
    )
    if product is None:
        return None
    turned_a = bool(attributes.get("transA"))

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        if (bias is None and len(inputs) > 6 and inputs[6] is not None) or inputs[0].ndim != 2:
            return NotImplemented
        return product(inputs[0].T if turned_a else inputs[0], inputs[3], recorder)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


def matmul_integer(state: State, constants: Constants, attributes: dict[str, Any], last: bool) -> Any:
    """MatMulInteger, whose zero points may come with the data."""
    right = held_right(state, constants[1])
    if right is NotImplemented:
        return None

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        a, b = inputs[0], inputs[1] if right is None else right
        if recorder is None or len(b.shape) < 2 or a.ndim < 2 or a.shape[-1] != b.shape[-2]:
            return NotImplemented
        zeros = []
        for i, axis, operand in ((2, -2, a), (3, -1, b)):
            zero = inputs[i] if len(inputs) > i else None
            if zero is not None:
                fits = zero.size == 1 or (zero.ndim < 2 and zero.size == operand.shape[axis])
                if zero.dtype != operand.dtype or not fits:
                    return NotImplemented
            zeros.append(0 if zero is None else zero)
        return product_of(recorder, a, b, zeros, None, state.num_threads)

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


#: How these operators are prepared, as in `prepare.py`.
MAKERS = {
    ("", "MatMulInteger"): matmul_integer,
    ("", "QLinearMatMul"): qlinear_matmul,
    (DOMAIN, "QGemm"): qgemm,
}
