"""Scales on a register of int32, in vector IR, that end in a store of few bits; kernels and output routines
share them.

There are two, each described by an object: `FIXED_POINT`, gemmlowp's, and `FLOAT32`, that of frameworks of
floats, which is ``round(min(max(x * scale, low - z), high - z)) + z`` with ties to even. (The bounds are
whole numbers, so it does not matter that they come before the rounding, and the conversion to an integer is
always defined.) The rest of this text is about the first.

For a multiplier M >= 0 and a right shift e >= 1 the two roundings of gemmlowp become one 64-bit addition and
a shift. With y = SRDHM(x, M) = floor((x M + 2**30) / 2**31),

    RDP(y, e) = floor((y + 2**(e - 1) - [y < 0]) / 2**e)
              = floor((x M + 2**30 + 2**(30 + e) - [y < 0] 2**31) / 2**(31 + e)),

because floor((floor(a) + n) / m) = floor((a + n) / m) for integers n and m. M < 2**31 never saturates. [y <
0] may be [x < 0]: they differ only where -2**30 <= x M <= 0 and x < 0; there y = 0, and the sum with 2**31
taken away lies between 2**(30 + e) - 2**31 >= 0 and 2**(30 + e), so the result is 0 either way. And [x < 0]
2**31 is the sign bit of x as an unsigned number: one `and`. (Comparing the products and subtracting under a
mask used the units that multiply: 45 cycles for an 8 x 48 tile on Zen 5 inside the depth loop, now 33, where
the two products alone take 24.)

As e >= 1, the last division is the high half of the 64-bit sum shifted right by e - 1. Even and odd columns
are multiplied apart, which needs no widening: `vpmuldq` reads the low half of each 64-bit lane. The offset
joins the rounding as offset * 2**(31 + e), which leaves the sum within 64 bits while |offset| < 2**(30 - e).

On AVX-512 that is 13 instructions for 16 results: shift, 2 products, 2 `and`, 4 additions, permutation,
shift, 2 bounds; and a narrowing store.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from lowgemm.jit.target import round_even_name, target
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i32,
    i64,
    load,
    shuffle,
    splat,
    vec,
)


def _even_odd(b: ir.IRBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Even and odd elements of a vector of int32, each sign-extended to 64 bits."""
    pairs = b.bitcast(x, vec(i64, x.type.count // 2))
    half = const(pairs.type, 32)
    return b.ashr(b.shl(pairs, half), half), b.ashr(pairs, half)


class FixedPoint:
    """RDP(SRDHM(x, M), e) + offset.

    The first `vectors` fields of a record of parameters are addresses of 32-bit numbers, one for each column
    (here M, then e); behind them are a number that is added, and two bounds. From these come the `kept`
    registers that the arithmetic needs.
    """

    vectors, kept = 2, 7

    def constants(self, b: ir.IRBuilder, vectors: list, after: Any, low: Any, high: Any) -> list[ir.Value]:
        """Emit: M of even and of odd columns, their roundings 2**30 + (2 * offset + 1) * 2**(30 + e), the
        shift e - 1, the bounds.
        """
        multiplier, right = vectors
        exponents = _even_odd(b, right)
        ty = exponents[0].type
        scaled = splat(b, b.add(b.shl(after, const(i64, 1)), const(i64, 1)), ty.count)
        roundings = [b.add(b.shl(scaled, b.add(e, const(ty, 30))), const(ty, 2**30)) for e in exponents]
        bounds = [splat(b, b.trunc(bound, i32), right.type.count) for bound in (low, high)]
        return [*_even_odd(b, multiplier), *roundings, b.sub(right, const(right.type, 1)), *bounds]

    def types(self, lanes: int) -> list[ir.Type]:
        """Types of the constants, for `lanes` columns."""
        return [vec(i64, lanes // 2)] * 4 + [vec(i32, lanes)] * 3

    def loaded(self, b: ir.IRBuilder, constants: list[ir.Value]) -> list[ir.Value]:
        """Constants that come from memory: says that the multipliers are 32-bit numbers, or LLVM would take
        the full 64-bit product.
        """
        half = const(constants[0].type, 32)
        return [b.ashr(b.shl(m, half), half) for m in constants[:2]] + constants[2:]

    def result(self, b: ir.IRBuilder, x: ir.Value, constants: list[ir.Value], bits: int) -> ir.Value:
        """Emit: the scaled sums, clamped and narrowed."""
        *multipliers, first, second, shift, low, high = constants
        count = x.type.count
        pairs = b.bitcast(x, vec(i64, count // 2))
        half = const(pairs.type, 32)
        sums = []
        odd = b.lshr(pairs, half)
        for word, m, rounding in zip((pairs, odd), multipliers, (first, second), strict=True):
            product = b.mul(b.ashr(b.shl(word, half), half), m)
            negative = b.and_(word, const(word.type, 2**31))
            sums.append(b.sub(b.add(product, rounding), negative))
        words = [b.bitcast(s, vec(i32, count)) for s in sums]
        y = shuffle(b, *words, [i + 1 if i % 2 == 0 else count + i for i in range(count)])
        y = b.ashr(y, shift)
        y = call_intrinsic(b, f"llvm.smax.v{count}i32", y.type, [y, low])
        y = call_intrinsic(b, f"llvm.smin.v{count}i32", y.type, [y, high])
        return b.trunc(y, vec(ir.IntType(bits), count))


class Float32:
    """The scale in float32; its record has one vector, and the number that is added is the zero point z."""

    vectors, kept = 1, 4

    def constants(self, b: ir.IRBuilder, vectors: list, after: Any, low: Any, high: Any) -> list[ir.Value]:
        """Emit: scales, both bounds less z, and z."""
        count = vectors[0].type.count
        floats = vec(ir.FloatType(), count)
        bounds = [splat(b, b.sitofp(b.sub(bound, after), ir.FloatType()), count) for bound in (low, high)]
        return [b.bitcast(vectors[0], floats), *bounds, splat(b, b.trunc(after, i32), count)]

    def types(self, lanes: int) -> list[ir.Type]:
        """As above."""
        return [vec(ir.FloatType(), lanes)] * 3 + [vec(i32, lanes)]

    def loaded(self, b: ir.IRBuilder, constants: list[ir.Value]) -> list[ir.Value]:
        """As above; nothing needs to be said."""
        return constants

    def result(self, b: ir.IRBuilder, x: ir.Value, constants: list[ir.Value], bits: int) -> ir.Value:
        """As above."""
        scale, low, high, zero = constants
        count = x.type.count
        y = b.fmul(b.sitofp(x, scale.type), scale)
        y = b.select(b.fcmp_ordered(">", y, low), y, low)
        y = b.select(b.fcmp_ordered("<", y, high), y, high)
        return b.trunc(b.add(self._whole(b, y, x.type), zero), vec(ir.IntType(bits), count))

    def _whole(self, b: ir.IRBuilder, y: ir.Value, ty: ir.Type) -> ir.Value:
        """Emit: the nearest whole numbers, ties to even. AVX-512 has one instruction for it; to round and then
        convert takes three, and 6400 x 40 by 40 x 128 took 146 us instead of 116.
        """
        if ty.count == 16 and "avx512f" in target()[1]:
            every = const(ir.IntType(16), -1)  # all lanes
            to_even = const(i32, 8)  # whatever the CPU's mode is
            name = "llvm.x86.avx512.mask.cvtps2dq.512"
            return call_intrinsic(b, name, ty, [y, const(ty, 0), every, to_even])
        y = call_intrinsic(b, round_even_name(f"v{y.type.count}f32"), y.type, [y])
        return b.fptosi(y, ty)


FIXED_POINT, FLOAT32 = SCALES = FixedPoint(), Float32()


def constants_at(
    b: ir.IRBuilder, scaling: Any, params: ir.Value, col: ir.Value, lanes: int
) -> list[ir.Value]:
    """Emit: the constants of `lanes` columns from column `col` on, by the record at `params`."""
    place = b.mul(col, const(i64, 4))
    pointers = [load(b, i8.as_pointer(), at(b, params, 8 * i), 8) for i in range(scaling.vectors)]
    numbers = [load(b, i64, at(b, params, 8 * (scaling.vectors + i)), 8) for i in range(3)]
    return scaling.constants(b, [load(b, vec(i32, lanes), at(b, p, place), 4) for p in pointers], *numbers)
