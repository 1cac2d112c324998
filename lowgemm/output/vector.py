"""The common last stage in vector IR: fixed-point scale, offset, clamp and store of 8 or 16 bits in one pass.

For a multiplier M >= 0 and a right shift e >= 1 the two roundings of gemmlowp become one 64-bit addition and a
shift. With y = SRDHM(x, M) = floor((x M + 2**30) / 2**31),

    RDP(y, e) = floor((y + 2**(e - 1) - [y < 0]) / 2**e)
              = floor((x M + 2**30 + 2**(30 + e) - [x M < -2**30] 2**31) / 2**(31 + e)),

because floor((floor(a) + n) / m) = floor((a + n) / m) for integers n and m. M < 2**31 never saturates. As e >= 1, the
last division is the high half of the 64-bit sum shifted right by e - 1. Even and odd columns are multiplied apart,
which needs no widening: `vpmuldq` reads the low half of each 64-bit lane. The offset joins the rounding as
offset * 2**(31 + e), which leaves the sum within 64 bits while |offset| < 2**(30 - e).

On AVX-512 that is 15 instructions for 16 results: load, shift, 2 products, 2 comparisons, 4 additions, permutation,
shift, 2 bounds, narrowing store.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.kernels.emit import at, call_intrinsic, const, i32, i64, load, shuffle, splat, store, vec

#: Columns handled at a time.
WIDTH = 16


def _even_odd(b: ir.IRBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Even and odd elements of a vector of int32, each sign-extended to 64 bits."""
    pairs = b.bitcast(x, vec(i64, WIDTH // 2))
    half = const(pairs.type, 32)
    return b.ashr(b.shl(pairs, half), half), b.ashr(pairs, half)


def _requantized(b: ir.IRBuilder, x: ir.Value, constants: tuple) -> ir.Value:
    """RDP(SRDHM(x, M), e) of 16 values; see the module's docstring."""
    multipliers, roundings, shift = constants
    sums = []
    for value, m, rounding in zip(_even_odd(b, x), multipliers, roundings, strict=True):
        product = b.mul(value, m)
        negative = b.icmp_signed("<", product, const(product.type, -(2**30)))
        lower = b.sub(product, const(product.type, 2**31))
        sums.append(b.add(b.select(negative, lower, product), rounding))
    words = [b.bitcast(s, vec(i32, WIDTH)) for s in sums]
    high = shuffle(b, *words, [i + 1 if i % 2 == 0 else WIDTH + i for i in range(WIDTH)])
    return b.ashr(high, shift)


def _constants(b: ir.IRBuilder, multiplier: ir.Value, right: ir.Value, after: ir.Value) -> tuple:
    """Multipliers, roundings 2**30 + (2 * offset + 1) * 2**(30 + e) and shift e - 1 for 16 columns."""
    exponents = _even_odd(b, right)
    ty = exponents[0].type
    base = const(ty, 30)
    scaled = splat(b, b.add(b.shl(after, const(i64, 1)), const(i64, 1)), WIDTH // 2)
    roundings = [b.add(b.shl(scaled, b.add(e, base)), const(ty, 2**30)) for e in exponents]
    return _even_odd(b, multiplier), roundings, b.sub(right, const(right.type, 1))


def _finish(b: ir.IRBuilder, x: ir.Value, lo: ir.Value, hi: ir.Value, bits: int) -> ir.Value:
    x = call_intrinsic(b, f"llvm.smax.v{WIDTH}i32", x.type, [x, lo])
    x = call_intrinsic(b, f"llvm.smin.v{WIDTH}i32", x.type, [x, hi])
    return b.trunc(x, vec(ir.IntType(bits), WIDTH))


def _emit(bits: int, by_row: bool, b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    """Emit: for every 16 columns, for every row: load, scale, clamp, store."""
    bcast = {name: splat(b, b.trunc(a[name], i32), WIDTH) for name in ("lo", "hi")}
    size = bits // 8
    vector = vec(i32, WIDTH)
    steps = b.sdiv(b.add(a["cols"], const(i64, WIDTH - 1)), const(i64, WIDTH))
    with cgutils.for_range(b, steps) as loop:
        col = b.mul(loop.index, const(i64, WIDTH))
        left = b.sub(a["cols"], col)
        whole = b.icmp_signed(">=", left, const(i64, WIDTH))
        if not by_row:
            byte = b.mul(col, const(i64, 4))
            m = load(b, vector, at(b, a["multipliers"], byte), 4)
            constants = _constants(b, m, load(b, vector, at(b, a["rights"], byte), 4), a["after"])
        lanes = ir.Constant(vec(i64, WIDTH), list(range(WIDTH)))
        mask = b.icmp_signed("<", lanes, splat(b, left, WIDTH))
        with cgutils.for_range(b, a["rows"]) as row_loop:
            row = row_loop.index
            if by_row:
                byte = b.mul(row, const(i64, 4))
                m = splat(b, load(b, i32, at(b, a["multipliers"], byte), 4), WIDTH)
                constants = _constants(
                    b, m, splat(b, load(b, i32, at(b, a["rights"], byte), 4), WIDTH), a["after"]
                )
            place = b.mul(b.add(b.mul(row, a["ld"]), col), const(i64, 4))
            x = _requantized(b, load(b, vector, at(b, a["tile"], place), 4), constants)
            result = _finish(b, x, bcast["lo"], bcast["hi"], bits)
            target = at(b, a["out"], b.add(b.mul(row, a["out_rs"]), b.mul(col, const(i64, size))))
            with b.if_else(whole, likely=True) as (full, edge):
                with full:
                    store(b, result, target, size)
                with edge:
                    name = f"llvm.masked.store.v{WIDTH}i{bits}.p0"
                    pointer = b.bitcast(target, result.type.as_pointer())
                    call_intrinsic(b, name, ir.VoidType(), [result, pointer, const(i32, size), mask])


NAMES = ("tile", "ld", "rows", "cols", "multipliers", "rights", "after", "lo", "hi", "out", "out_rs")


@intrinsic(prefer_literal=True)
def requantize_rows(typingctx, bits, by_row, args):
    """Body of the routine; `args` as in `NAMES`, `bits` and `by_row` constants."""
    width, rows = bits.literal_value, bool(by_row.literal_value)

    def codegen(context, builder, signature, values):
        a = dict(zip(NAMES, cgutils.unpack_tuple(builder, values[2]), strict=True))
        _emit(width, rows, builder, a)
        return context.get_dummy_value()

    return types.void(bits, by_row, args), codegen
