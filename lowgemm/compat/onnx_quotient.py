"""Many float32 numbers divided by one and rounded to whole numbers, with the bits of a division, by
multiplication.

A division takes a vector of the CPU longer than all of this. Let r and e be 1 / s in two parts, and q0 be
``x r + x e``, rounded once: it is x / s but for half a unit in the last place, and a trifle. Then
``q0 + (x - q0 s) r``, with fused multiply-adds, is x / s correctly rounded (P. Markstein, "Computation of
elementary functions on the IBM RISC System/6000 processor", 1990, theorem 3), if ``x - q0 s`` is exact. It
is, where neither s nor the quotient is near the ends of float32. So s has bounds here, and numbers are cut
off beforehand where their quotients would leave the bytes; the quotient of a limit and s lies so near a
whole number that it is rounded to it. Small quotients are rounded to 0 in any case.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.jit.memory import WHOLE, store_f32
from lowgemm.jit.routine import inner, inner_dividing, unpack_words
from lowgemm.jit.target import target
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i8, i32, i64, load, splat, store, vec

_f32 = ir.FloatType()
#: Numbers of a vector.
LANES = 16
#: Divisors for which this holds, with much to spare: remainders of quotients from 2**-20 on are exact.
LEAST, MOST = np.float32(2.0**-80), np.float32(2.0**80)
#: float32 numbers that `prepare` writes: the divisor, both parts of its inverse, and the limits.
PARAMETERS = 5


@intrinsic
def fused(typingctx, a, b, c):
    """``a * b + c`` of float32, rounded once."""

    def codegen(context, builder, signature, values):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_f32, [_f32] * 3), "llvm.fma.f32"
        )
        return builder.call(function, values)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def _has_fused(typingctx):
    """Whether the CPU that Numba compiles for has fused multiply-add; elsewhere it is a slow call."""

    def codegen(context, builder, signature, values):
        return ir.Constant(ir.IntType(1), bool({"fma", "neon"} & target()[1]))

    return types.boolean(), codegen


@inner
def is_quick(divisor):
    """Whether this is for quotients by this divisor, here."""
    return _has_fused() and divisor >= LEAST and divisor <= MOST


@inner_dividing
def prepare(parameters, divisor, below, above):
    """Write what `emit_rounded` needs for whole numbers from `below` to `above`."""
    inverse = np.float32(1) / divisor
    store_f32(parameters, 0, divisor)
    store_f32(parameters, 1, inverse)
    store_f32(parameters, 2, fused(-divisor, inverse, np.float32(1)) * inverse)
    store_f32(parameters, 3, below * divisor)
    store_f32(parameters, 4, above * divisor)


def load_parameters(b: ir.IRBuilder, parameters: ir.Value) -> list[ir.Value]:
    """Emit: what `prepare` wrote, each in all elements of a vector."""
    return [splat(b, load(b, _f32, at(b, parameters, const(i64, 4 * i))), LANES) for i in range(PARAMETERS)]


def emit_rounded(b: ir.IRBuilder, x: ir.Value, parameters: list[ir.Value]) -> ir.Value:
    """Emit: the rounded quotients of a vector, in the low 22 bits of int32."""
    divisor, inverse, rest, lowest, highest = parameters

    def fma(*values: ir.Value) -> ir.Value:
        return call_intrinsic(b, f"llvm.fma.v{LANES}f32", x.type, list(values))

    x = b.select(b.fcmp_ordered(">", x, lowest), x, lowest)  # a NaN too
    x = b.select(b.fcmp_ordered("<", x, highest), x, highest)
    q = fma(x, inverse, b.fmul(x, rest))
    q = fma(fma(b.fneg(divisor), q, x), inverse, q)
    return b.bitcast(b.fadd(q, ir.Constant(x.type, [WHOLE] * LANES)), vec(i32, LANES))


@intrinsic
def quantize_vectors(typingctx, args):
    """Bytes of float32 numbers: (numbers, bytes, parameters, zero point, how many vectors)."""

    def codegen(context, b, signature, values):
        src, dst, parameters, zero, count = unpack_words(context, b, signature.args[0], values[0])
        given, zero = load_parameters(b, parameters), splat(b, b.trunc(zero, i32), LANES)
        with cgutils.for_range(b, count) as loop:
            x = load(b, vec(_f32, LANES), at(b, src, b.mul(loop.index, const(i64, 4 * LANES))))
            found = b.trunc(b.add(emit_rounded(b, x, given), zero), vec(i8, LANES))
            store(b, found, at(b, dst, b.mul(loop.index, const(i64, LANES))))
        return context.get_dummy_value()

    return types.void(args), codegen
