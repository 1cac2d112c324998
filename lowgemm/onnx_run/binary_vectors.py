"""Sums and products of two lines of bytes in vectors: what `binary.py` computes one by one, with the same bits.

Of such a loop LLVM makes vectors of 8 numbers only, where it takes vectors of 512 bits for slow. 800,000 sums
took 282 us so, and take 130. Products of integers are made as floats: those of two differences of bytes are
below 2**17, so nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.jit.memory import WHOLE
from lowgemm.jit.routine import unpack_words
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i8, i32, load, splat, store, vec

#: Numbers of a vector, and of a turn of the loop.
LANES, TURN = 16, 64
#: float32 numbers that the loops take: four of an operation's own, and the limits.
PARAMETERS = 6
_FLOATS = vec(ir.FloatType(), LANES)


def _fma(b: ir.IRBuilder, *values: ir.Value) -> ir.Value:
    return call_intrinsic(b, f"llvm.fma.v{LANES}f32", _FLOATS, list(values))


def _add(b: ir.IRBuilder, x: ir.Value, y: ir.Value, given: list[ir.Value]) -> ir.Value:
    ra, rb, fixed = given[:3]
    return _fma(b, x, ra, _fma(b, y, rb, fixed))


def _mul(b: ir.IRBuilder, x: ir.Value, y: ir.Value, given: list[ir.Value]) -> ir.Value:
    ratio, zero, of_x, of_y = given
    return b.fadd(b.fmul(b.fmul(b.fsub(x, of_x), b.fsub(y, of_y)), ratio), zero)


def _emit_turn(
    b: ir.IRBuilder, emit: Any, starts: list[ir.Value], given: list[ir.Value], signed: bool
) -> None:
    """A turn of the loop: 64 pairs of bytes at the first two pointers, to 64 bytes at the third."""
    *own, low, high = given
    extend = b.sext if signed else b.zext
    for v in range(0, TURN, LANES):
        x, y = (
            b.sitofp(extend(load(b, vec(i8, LANES), at(b, start, v)), vec(i32, LANES)), _FLOATS)
            for start in starts[:2]
        )
        t = emit(b, x, y, own)
        t = b.select(b.fcmp_ordered(">", t, low), t, low)  # a NaN too
        t = b.select(b.fcmp_ordered("<", t, high), t, high)
        whole = b.bitcast(b.fadd(t, ir.Constant(_FLOATS, [WHOLE] * LANES)), vec(i32, LANES))
        store(b, b.trunc(whole, vec(i8, LANES)), at(b, starts[2], v))


def _loop(emit: Callable[..., ir.Value]) -> Any:
    def make(typingctx, args):
        """(both operands, dst, bytes from turn to turn for each of these, parameters, whether bytes are signed,
        how many turns).
        """

        def codegen(context, b, signature, values):
            *both, parameters, signed, count = unpack_words(context, b, signature.args[0], values[0])
            pointers, steps = both[:3], both[3:]
            given = [
                splat(b, load(b, ir.FloatType(), at(b, parameters, 4 * i)), LANES) for i in range(PARAMETERS)
            ]
            is_signed = b.icmp_signed("!=", signed, const(signed.type, 0))
            with b.if_else(is_signed) as branches:
                for block, kind in zip(branches, (True, False), strict=True):
                    with block, cgutils.for_range(b, count) as loop:
                        places = [
                            at(b, p, b.mul(loop.index, step)) for p, step in zip(pointers, steps, strict=True)
                        ]
                        _emit_turn(b, emit, places, given, kind)
            return context.get_dummy_value()

        return types.void(args), codegen

    return intrinsic(make)


add_vectors, mul_vectors = _loop(_add), _loop(_mul)
