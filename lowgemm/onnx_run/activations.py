"""Sigmoid and tanh of float32 vectors, with onnxruntime's bits on x86 with fused multiply-add, on every CPU.

Both are quotients of two polynomials in the square of a number within bounds. The coefficients, highest power
first, are those of the rational approximations that Eigen and other libraries share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.jit.memory import load_f32, offset, stack, store_f32
from lowgemm.jit.routine import inner
from lowgemm.kernels.framework.irtools import call_intrinsic, load, store, vec
from lowgemm.onnx_run.elementwise import fma

#: Numbers of a vector.
LANES = 16
#: The sigmoid is 0.5 more than x P(x * x) / Q(x * x).
SIGMOID_BOUND = 18.0
SIGMOID_P = (
    4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01,
)  # fmt: skip
SIGMOID_Q = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01,
    9.93151921023180e-01,
)  # fmt: skip
#: The tanh is x P(x * x) / Q(x * x).
TANH_BOUND = 9.0
TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
    6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _polynomial(b: ir.IRBuilder, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
    numbers = [ir.Constant(x.type, [float(np.float32(c))] * LANES) for c in coefficients]
    found = numbers[0]
    for number in numbers[1:]:
        found = call_intrinsic(b, f"llvm.fma.v{LANES}f32", x.type, [found, x, number])
    return found


def _quotient(b: ir.IRBuilder, x: ir.Value, bound: float, p: Sequence[float], q: Sequence[float]) -> ir.Value:
    high, low = (ir.Constant(x.type, [v] * LANES) for v in (bound, -bound))
    x = b.select(b.fcmp_ordered("<", x, low), low, x)  # a NaN stays
    x = b.select(b.fcmp_ordered(">", x, high), high, x)
    square = b.fmul(x, x)
    return b.fdiv(b.fmul(_polynomial(b, square, p), x), _polynomial(b, square, q))


def _emit_sigmoid(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    half, none = (ir.Constant(x.type, [v] * LANES) for v in (0.5, 0.0))
    y = b.fadd(_quotient(b, x, SIGMOID_BOUND, SIGMOID_P, SIGMOID_Q), half)
    return b.select(b.fcmp_ordered("<", y, none), none, y)


def _emit_tanh(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _quotient(b, x, TANH_BOUND, TANH_P, TANH_Q)


def _over_vectors(emit: Any) -> Any:
    """A compiled function (to, x, count) that fills a vector at a time; what is left over goes through a
    vector of its own.
    """

    def make(typingctx, to, x):
        def codegen(context, b, signature, values):
            to, x = (b.bitcast(v, ir.IntType(8).as_pointer()) for v in values)
            store(b, emit(b, load(b, vec(ir.FloatType(), LANES), x)), to)
            return context.get_dummy_value()

        return types.void(to, x), codegen

    one = intrinsic(make)

    @inner
    def run(to, x, count):
        whole = count // LANES
        for i in range(whole):
            one(offset(to, 4 * LANES * i), offset(x, 4 * LANES * i))
        rest = count - whole * LANES
        if rest:
            space = stack(64)  # LANES numbers
            for i in range(LANES):
                store_f32(space, i, load_f32(x, whole * LANES + min(i, rest - 1)))
            one(space, space)
            for i in range(rest):
                store_f32(to, whole * LANES + i, load_f32(space, i))

    return run


sigmoid = _over_vectors(_emit_sigmoid)
tanh = _over_vectors(_emit_tanh)


def by_definition(x: np.ndarray, bound: float, p: Sequence[float], q: Sequence[float]) -> np.ndarray:
    """The quotient, by NumPy: tests compare the compiled functions with it."""
    x = np.clip(x, np.float32(-bound), np.float32(bound))
    square, parts = x * x, []
    for coefficients in (p, q):
        y = np.full_like(x, np.float32(coefficients[0]))
        for c in coefficients[1:]:
            y = fma(y, square, np.float32(c))
        parts.append(y)
    return parts[0] * x / parts[1]


def sigmoid_by_definition(x: np.ndarray) -> np.ndarray:
    """The sigmoid, by NumPy."""
    y = by_definition(x, SIGMOID_BOUND, SIGMOID_P, SIGMOID_Q) + np.float32(0.5)
    return np.where(y < 0, np.float32(0), y)


def tanh_by_definition(x: np.ndarray) -> np.ndarray:
    """The tanh, by NumPy."""
    return by_definition(x, TANH_BOUND, TANH_P, TANH_Q)
