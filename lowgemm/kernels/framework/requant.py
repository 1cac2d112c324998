"""gemmlowp's fixed-point scale on a register of int32, in vector IR; kernels and output routines share it.

For a multiplier M >= 0 and a right shift e >= 1 the two roundings of gemmlowp become one 64-bit addition and a
shift. With y = SRDHM(x, M) = floor((x M + 2**30) / 2**31),

    RDP(y, e) = floor((y + 2**(e - 1) - [y < 0]) / 2**e)
              = floor((x M + 2**30 + 2**(30 + e) - [y < 0] 2**31) / 2**(31 + e)),

because floor((floor(a) + n) / m) = floor((a + n) / m) for integers n and m. M < 2**31 never saturates. [y < 0] may be
[x < 0]: they differ only where -2**30 <= x M <= 0 and x < 0; there y = 0, and the sum with 2**31 taken away lies between
2**(30 + e) - 2**31 >= 0 and 2**(30 + e), so the result is 0 either way. And [x < 0] 2**31 is the sign bit of x as an
unsigned number: one `and`. (Comparing the products and subtracting under a mask used the units that multiply: 45 cycles for an
8 x 48 tile on Zen 5 inside the depth loop, now 33, where the two products alone take 24.)

As e >= 1, the last division is the high half of the 64-bit sum shifted right by e - 1. Even and odd columns are multiplied
apart, which needs no widening: `vpmuldq` reads the low half of each 64-bit lane. The offset joins the rounding as
offset * 2**(31 + e), which leaves the sum within 64 bits while |offset| < 2**(30 - e).

On AVX-512 that is 13 instructions for 16 results: shift, 2 products, 2 `and`, 4 additions, permutation, shift, 2
bounds; and a narrowing store.
"""

from __future__ import annotations

from llvmlite import ir

from lowgemm.kernels.framework.irtools import call_intrinsic, const, i32, i64, shuffle, splat, vec


def _even_odd(b: ir.IRBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Even and odd elements of a vector of int32, each sign-extended to 64 bits."""
    pairs = b.bitcast(x, vec(i64, x.type.count // 2))
    half = const(pairs.type, 32)
    return b.ashr(b.shl(pairs, half), half), b.ashr(pairs, half)


def requantize_constants(b: ir.IRBuilder, multiplier: ir.Value, right: ir.Value, after: ir.Value) -> tuple:
    """Multipliers, roundings 2**30 + (2 * offset + 1) * 2**(30 + e) and shift e - 1 for a register of columns."""
    exponents = _even_odd(b, right)
    ty = exponents[0].type
    scaled = splat(b, b.add(b.shl(after, const(i64, 1)), const(i64, 1)), ty.count)
    roundings = [b.add(b.shl(scaled, b.add(e, const(ty, 30))), const(ty, 2**30)) for e in exponents]
    return _even_odd(b, multiplier), roundings, b.sub(right, const(right.type, 1))


def requantized(
    b: ir.IRBuilder, x: ir.Value, constants: tuple, low: ir.Value, high: ir.Value, bits: int
) -> ir.Value:
    """RDP(SRDHM(x, M), e) + offset, clamped to [low, high] and narrowed."""
    multipliers, roundings, shift = constants
    count = x.type.count
    pairs = b.bitcast(x, vec(i64, count // 2))
    half = const(pairs.type, 32)
    sums = []
    odd = b.lshr(pairs, half)
    for word, m, rounding in zip((pairs, odd), multipliers, roundings, strict=True):
        product = b.mul(b.ashr(b.shl(word, half), half), m)
        negative = b.and_(word, const(word.type, 2**31))
        sums.append(b.sub(b.add(product, rounding), negative))
    words = [b.bitcast(s, vec(i32, count)) for s in sums]
    y = shuffle(b, *words, [i + 1 if i % 2 == 0 else count + i for i in range(count)])
    y = b.ashr(y, shift)
    y = call_intrinsic(b, f"llvm.smax.v{count}i32", y.type, [y, low])
    y = call_intrinsic(b, f"llvm.smin.v{count}i32", y.type, [y, high])
    return b.trunc(y, vec(ir.IntType(bits), count))
