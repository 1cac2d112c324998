"""Sigmoid, tanh and erf of float32 vectors, with onnxruntime's bits on x86 with fused multiply-add, on every
CPU.

The first two are quotients of two polynomials in the square of a number within bounds. The coefficients,
highest power first, are those of the rational approximations that Eigen and other libraries share. erf is a
polynomial near 0, and 1 - exp(-polynomial) further out, with coefficients by N. Juffa
(stackoverflow.com/questions/35148198).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.jit.memory import copy_bytes, load_f32, offset, stack, store_f32
from lowgemm.jit.routine import inner
from lowgemm.kernels.framework.irtools import call_intrinsic, load, store, vec
from lowgemm.onnx_run.elementwise import fma

#: Numbers of a vector.
LANES = 16
#: The sigmoid is 0.5 more than x P(x * x) / Q(x * x).
SIGMOID_BOUND = 18.0
SIGMOID_P = (
    4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
    2.48287947061529e-01,
)  # fmt: skip
SIGMOID_Q = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
    1.16817656904453e-01, 9.93151921023180e-01,
)  # fmt: skip
#: The tanh is x P(x * x) / Q(x * x).
TANH_BOUND = 9.0
TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
#: erf of x up to the border is x + x P(x * x); above it is 1 - exp(-(x + x P(x))), and x counts as the bound
#: at most.
ERF_BORDER, ERF_BOUND = 0.921875, 3.925
ERF_NEAR = (-5.99104969e-4, 4.99339588e-3, -2.67667342e-2, 1.12818025e-1, -3.76124859e-1, 1.28379151e-1)
ERF_FAR = (
    1.72948930e-5, -3.83208680e-4, 3.88393435e-3, -2.42545605e-2, 1.06777847e-1, 6.34846687e-1, 1.28717512e-1,
)  # fmt: skip
#: exp of x is 2**n P(x - n ln 2), where n is the whole number next to x / ln 2, and ln 2 has two parts.
EXP_P = (1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1, 1.0, 1.0)
EXP_LOWEST, INVERSE_LN_2, LN_2 = -88.3762626647949, 1.44269504088896341, (-6.93145752e-1, -1.42860677e-6)
#: Adding and subtracting it rounds to a whole number.
WHOLE = 1.25829120e7
#: Below it, a square is less than half a last place of what is added to it, for all of these polynomials: 0
#: does as well. A CPU takes some 250 cycles for an operation on a vector with subnormal numbers in it.
SMALL = 2.0**-30


def _polynomial(b: ir.IRBuilder, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
    numbers = [ir.Constant(x.type, [float(np.float32(c))] * LANES) for c in coefficients]
    found = numbers[0]
    for number in numbers[1:]:
        found = call_intrinsic(b, f"llvm.fma.v{LANES}f32", x.type, [found, x, number])
    return found


def _without_small(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """0 where a number is below `SMALL`; a NaN stays."""
    size = call_intrinsic(b, f"llvm.fabs.v{LANES}f32", x.type, [x])
    small, none = (ir.Constant(x.type, [v] * LANES) for v in (SMALL, 0.0))
    return b.select(b.fcmp_ordered("<", size, small), none, x)


def _quotient(b: ir.IRBuilder, x: ir.Value, bound: float, p: Sequence[float], q: Sequence[float]) -> ir.Value:
    high, low = (ir.Constant(x.type, [v] * LANES) for v in (bound, -bound))
    x = b.select(b.fcmp_ordered("<", x, low), low, x)  # a NaN stays
    x = b.select(b.fcmp_ordered(">", x, high), high, x)
    base = _without_small(b, x)
    square = b.fmul(base, base)
    return b.fdiv(b.fmul(_polynomial(b, square, p), x), _polynomial(b, square, q))


def _emit_sigmoid(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    half, none = (ir.Constant(x.type, [v] * LANES) for v in (0.5, 0.0))
    x = _without_small(b, x)  # the sigmoid is 0.5 there
    y = b.fadd(_quotient(b, x, SIGMOID_BOUND, SIGMOID_P, SIGMOID_Q), half)
    return b.select(b.fcmp_ordered("<", y, none), none, y)


def _emit_tanh(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _quotient(b, x, TANH_BOUND, TANH_P, TANH_Q)


def _fused(b: ir.IRBuilder, x: ir.Value, y: ir.Value | float, z: ir.Value | float) -> ir.Value:
    values = [
        v if isinstance(v, ir.Value) else ir.Constant(x.type, [float(np.float32(v))] * LANES) for v in (y, z)
    ]
    return call_intrinsic(b, f"llvm.fma.v{LANES}f32", x.type, [x, *values])


def _emit_erf(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    ints = ir.VectorType(ir.IntType(32), LANES)

    def whole(number: int) -> ir.Value:
        return ir.Constant(ints, [number] * LANES)

    def number(value: float) -> ir.Value:
        return ir.Constant(x.type, [float(np.float32(value))] * LANES)

    bits = b.bitcast(x, ints)
    sign, size = b.and_(bits, whole(-(2**31))), b.bitcast(b.and_(bits, whole(2**31 - 1)), x.type)
    size = b.select(b.fcmp_ordered("<", number(ERF_BOUND), size), number(ERF_BOUND), size)  # a NaN stays
    base = _without_small(b, size)
    near = _fused(b, _polynomial(b, b.fmul(base, base), ERF_NEAR), size, size)
    # what is near is not looked at, whatever number stands for it
    outside = b.fcmp_ordered(">", size, number(ERF_BORDER))
    wide = b.select(outside, size, number(ERF_BORDER))
    far = b.fneg(_fused(b, _polynomial(b, wide, ERF_FAR), wide, wide))
    far = b.select(b.fcmp_ordered("<", far, number(EXP_LOWEST)), number(EXP_LOWEST), far)
    n = b.fsub(_fused(b, far, INVERSE_LN_2, WHOLE), number(WHOLE))
    rest = _fused(b, n, LN_2[1], _fused(b, n, LN_2[0], far))
    # 2**n; a NaN's n is none
    power = b.select(b.fcmp_ordered("ord", n, n), n, number(0))
    power = b.shl(b.add(b.fptosi(power, ints), whole(127)), whole(23))
    far = b.fsub(number(1), b.fmul(_polynomial(b, rest, EXP_P), b.bitcast(power, x.type)))
    y = b.select(outside, far, near)
    return b.bitcast(b.or_(b.bitcast(y, ints), sign), x.type)


def _over_vectors(emit: Any) -> Any:
    """A compiled function (to, x, count) that fills a vector at a time; both may be one place. What is left
    over is in the last `LANES` numbers, which are read before anything is written; fewer numbers go through a
    vector of their own.
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
        whole, space = count // LANES, stack(64)  # LANES numbers
        rest, last = count - whole * LANES, 4 * (count - LANES)
        if rest and whole:
            copy_bytes(space, offset(x, last), 64)
        for i in range(whole):
            one(offset(to, 4 * LANES * i), offset(x, 4 * LANES * i))
        if rest and whole:
            one(space, space)
            copy_bytes(offset(to, last), space, 64)
        elif rest:
            for i in range(LANES):
                store_f32(space, i, load_f32(x, min(i, rest - 1)))
            one(space, space)
            for i in range(rest):
                store_f32(to, i, load_f32(space, i))

    return run


sigmoid = _over_vectors(_emit_sigmoid)
tanh = _over_vectors(_emit_tanh)
erf = _over_vectors(_emit_erf)
sqrt = _over_vectors(lambda b, x: call_intrinsic(b, f"llvm.sqrt.v{LANES}f32", x.type, [x]))


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
