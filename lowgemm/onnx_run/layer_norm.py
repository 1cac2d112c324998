"""LayerNormalization over the last axis, of float32 numbers that lowgemm made.

The arithmetic is onnxruntime's on x86 with fused multiply-add, so the result has its bits, on every CPU. The
mean is summed in float64: four sums of every fourth number, put together as ``(0 + 2) + (1 + 3)``, then the
numbers that are left one by one. The squares of the differences from it are summed in float32 by fused
multiply-add: eight sums of every eighth number, of which the first four and the last four are put together,
then as before. Of the numbers that are left, four are squared and added one by one, and the last three at
most by fused multiply-add. A number is ``(x - mean) * (1 / sqrt(mean of squares + epsilon))``, times the
scale, and the bias is added to that product before it is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.compat.onnx_quotient import fused
from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import is_null, load_f32, load_i64, offset, pointer_at, store_f32
from lowgemm.jit.routine import inner, inner_dividing, routine
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    load,
    repeat,
    shuffle,
    splat,
    store,
    vec,
)
from lowgemm.onnx_run.dynamic import OWN
from lowgemm.onnx_run.elementwise import fma
from lowgemm.onnx_run.engines import attributes_of
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, unless_refused, ways

#: Numbers that are added side by side for the mean, and of squares; and of a vector of results.
SUMS, SQUARES, LANES = 4, 8, 16
#: onnxruntime adds rows of fewer numbers in other ways.
SHORTEST = SQUARES
_f32, _f64 = ir.FloatType(), ir.DoubleType()


def _together(b: ir.IRBuilder, sums: ir.Value) -> ir.Value:
    """``(0 + 2) + (1 + 3)`` of four."""
    pairs = b.fadd(shuffle(b, sums, None, [0, 1]), shuffle(b, sums, None, [2, 3]))
    return b.fadd(*(b.extract_element(pairs, const(ir.IntType(32), i)) for i in range(2)))


def _bytes(b: ir.IRBuilder, number: ir.Value, lanes: int) -> ir.Value:
    return b.mul(number, const(ir.IntType(64), 4 * lanes))


@intrinsic
def _total(typingctx, x, vectors):
    """The sum in float64 of `vectors` (at least one) times `SUMS` numbers at `x`."""

    def codegen(context, b, signature, values):
        def turn(number: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            numbers = load(b, vec(_f32, SUMS), at(b, values[0], _bytes(b, number, SUMS)))
            return [b.fadd(sums[0], b.fpext(numbers, vec(_f64, SUMS)))]

        (sums,) = repeat(b, values[1], [ir.Constant(vec(_f64, SUMS), [0.0] * SUMS)], turn)
        return _together(b, sums)

    return types.float64(types.voidptr, types.int64), codegen


@intrinsic
def _squares(typingctx, x, vectors, mean):
    """The sum of the squared differences from the mean of `vectors` (at least one) times `SQUARES` numbers."""

    def codegen(context, b, signature, values):
        ty = vec(_f32, SQUARES)
        mean = splat(b, values[2], SQUARES)

        def turn(number: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            d = b.fsub(load(b, ty, at(b, values[0], _bytes(b, number, SQUARES))), mean)
            return [call_intrinsic(b, f"llvm.fma.v{SQUARES}f32", ty, [d, d, sums[0]])]

        (sums,) = repeat(b, values[1], [ir.Constant(ty, [0.0] * SQUARES)], turn)
        return _together(b, b.fadd(*(shuffle(b, sums, None, [*range(i, i + 4)]) for i in (0, 4))))

    return types.float32(types.voidptr, types.int64, types.float32), codegen


def _scaler(with_bias: bool) -> Any:
    """An instruction (to, x, scale, bias, vectors, mean, inverse) on so many times `LANES` numbers."""

    def make(typingctx, to, x, scale, bias, vectors, mean, inverse):
        def codegen(context, b, signature, values):
            ty = vec(_f32, LANES)
            mean, inverse = (splat(b, v, LANES) for v in values[5:])

            def turn(number: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                step = _bytes(b, number, LANES)
                x, scale, bias = (load(b, ty, at(b, v, step)) if used else None
                                  for v, used in zip(values[1:4], (True, True, with_bias), strict=True))  # fmt: skip
                y = b.fmul(b.fsub(x, mean), inverse)
                if with_bias:
                    y = call_intrinsic(b, f"llvm.fma.v{LANES}f32", ty, [y, scale, bias])
                else:
                    y = b.fmul(y, scale)
                store(b, y, at(b, values[0], step))
                return []

            repeat(b, values[4], [], turn, maybe_none=True)
            return context.get_dummy_value()

        pointers = [types.voidptr] * 4
        return types.void(*pointers, types.int64, types.float32, types.float32), codegen

    return intrinsic(make)


_scale_and_add, _scale = _scaler(True), _scaler(False)


@inner_dividing
def _mean(total, count):
    """A sum divided by a count, both float64."""
    return np.float32(total / count)


@inner_dividing
def _inverse(squares, count, epsilon):
    """One divided by the square root of the mean of squares, float32."""
    return np.float32(1) / np.sqrt(squares / count + epsilon)


@inner
def _row(x, y, scale, bias, count, epsilon):
    """One row of `count` numbers; `bias` may be null."""
    total = _total(x, count // SUMS)
    for i in range(count // SUMS * SUMS, count):
        total += np.float64(load_f32(x, i))
    mean = _mean(total, np.float64(count))
    squares, whole = _squares(x, count // SQUARES, mean), count // SQUARES * SQUARES
    if count - whole >= 4:
        for i in range(whole, whole + 4):
            d = load_f32(x, i) - mean
            squares += d * d
        whole += 4
    for i in range(whole, count):
        d = load_f32(x, i) - mean
        squares = fused(d, d, squares)
    inverse, vectors = _inverse(squares, np.float32(count), epsilon), count // LANES
    if is_null(bias):
        _scale(y, x, scale, bias, vectors, mean, inverse)
        for i in range(LANES * vectors, count):
            store_f32(y, i, (load_f32(x, i) - mean) * inverse * load_f32(scale, i))
        return
    _scale_and_add(y, x, scale, bias, vectors, mean, inverse)
    for i in range(LANES * vectors, count):
        d = (load_f32(x, i) - mean) * inverse
        store_f32(y, i, fused(d, load_f32(scale, i), load_f32(bias, i)))


@routine(PASS)
def layer_norm_rows(args, first, end, worker):
    """LayerNormalization of rows of `count` numbers, at least `SHORTEST`.

    Arguments: src, dst, scale, bias or null, count, address of epsilon. Pieces are rows.
    """
    count, epsilon = load_i64(args, 4), load_f32(pointer_at(args, 5), 0)
    for row in range(first, end):
        x, y = offset(pointer_at(args, 0), 4 * row * count), offset(pointer_at(args, 1), 4 * row * count)
        _row(x, y, pointer_at(args, 2), pointer_at(args, 3), count, epsilon)


def by_definition(x: np.ndarray, scale: np.ndarray, bias: Any, epsilon: np.float32) -> np.ndarray:
    """LayerNormalization over the last axis, in the order of the sums that the module describes."""

    def together(sums: Any) -> Any:
        return (sums[0] + sums[2]) + (sums[1] + sums[3])

    count = x.shape[-1]
    columns = np.moveaxis(x.reshape(math.prod(x.shape[:-1]), count), -1, 0)
    wide, whole = columns.astype(np.float64), count // SUMS * SUMS
    total = together([np.add.accumulate(wide[i:whole:SUMS])[-1] for i in range(SUMS)])
    for number in wide[whole:]:
        total = total + number
    mean = (total / count).astype(np.float32)
    columns, whole = columns - mean, count // SQUARES * SQUARES
    sums = np.zeros((SQUARES, columns.shape[1]), np.float32)
    for i in range(0, whole, SQUARES):
        sums = fma(columns[i : i + SQUARES], columns[i : i + SQUARES], sums)
    squares = together(sums[:4] + sums[4:])
    rounded = whole + (4 if count - whole >= 4 else 0)
    for d in columns[whole:rounded]:
        squares = squares + d * d
    for d in columns[rounded:]:
        squares = fma(d, d, squares)
    y = (columns * (np.float32(1) / np.sqrt(squares / np.float32(count) + epsilon))).T
    y = y * scale if bias is None else fma(y, scale, bias)
    return y.reshape(x.shape)


def compiled(
    x: np.ndarray,
    scale: np.ndarray,
    bias: Any,
    epsilon: np.ndarray,
    num_threads: int | None = 1,
    recorder: Recorder | None = None,
) -> Any:
    """`by_definition`, of constants in C order and an array of one epsilon; NotImplemented if it is not for
    this.
    """
    if recorder is not None:
        x = recorder.in_order(x)
    if numba.config.DISABLE_JIT or not x.size or x.dtype != np.float32 or not x.flags.c_contiguous:
        return NotImplemented
    if x.shape[-1:] != scale.shape:
        return NotImplemented
    y = np.empty(x.shape, np.float32)
    place, held, run = ways(recorder)
    args = place(x), place(y), held(scale), 0 if bias is None else held(bias), scale.size, held(epsilon)
    run_shared(layer_norm_rows, args, x.size // scale.size, 0.5 * x.size, num_threads, run)
    return y


def is_layer_norm(node: Any, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether a node is a LayerNormalization over the last axis by constants, whose only output is the
    result.
    """
    if node.op_type != "LayerNormalization" or node.domain or any(node.output[1:]):
        return False
    scale, *bias = (constants.get(n) for n in node.input[1:] if n)
    fits = all(
        v is not None
        and v.dtype == np.float32
        and v.ndim == 1
        and v.size >= SHORTEST
        and v.shape == scale.shape
        for v in (scale, *bias)
    )
    return fits and attributes_of(node).get("axis", -1) == -1


def layer_norm(
    state: State, x, scale, bias=None, *, epsilon: float = 1e-5, axis: int = -1, stash_type: int = 1
) -> np.ndarray:
    """LayerNormalization of float32 over the last axis."""
    if x.shape[-1:] != scale.shape:
        raise ValueError(f"scale: expected shape {x.shape[-1:]}, got {scale.shape}")
    return by_definition(x, scale, bias, np.float32(epsilon))


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """LayerNormalization with constant scale and bias."""
    epsilon = np.array(attributes.get("epsilon", 1e-5), np.float32)
    scale, bias = (None if v is None else np.ascontiguousarray(v) for v in (*constants[1:], None)[:2])

    def run(x: np.ndarray, *_: Any, recorder: Recorder | None = None) -> Any:
        x = x if recorder is not None else np.ascontiguousarray(x)
        return compiled(x, scale, bias, epsilon, state.num_threads, recorder)  # type: ignore[arg-type]

    run.record = unless_refused(run)  # type: ignore[attr-defined]
    return run


OPERATORS = {(OWN, "LayerNormalization"): layer_norm}
MAKERS = {(OWN, "LayerNormalization"): prepared}
