"""The two inner loops, 64 elements at a time: codes to values, and values to codes.

On a CPU with AVX-512 VBMI both are emitted as LLVM vector code whose table look-ups stay in registers:
`vpermi2b` picks 64 bytes out of 128 in one cycle, so a table of 256 bytes costs two of them and a blend, for
64 elements. Elsewhere the same steps are compiled from the scalar loops below, which read the same tables.
Both give the same bits.

Measured on one core (AMD Zen 4): scalar table look-ups take 1.0 cycles an element for values and 1.5 for
codes, `vpgatherdd` 1.4; the vector code 0.3 and 0.7, arithmetic included.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.blockwise.codebook import (
    ABS_MASK,
    BASE_AT,
    BINADE_AT,
    BUCKETS,
    FLIP,
    MARGIN,
    META_AT,
    PLACE_HIGH_AT,
    PLACE_LOW_AT,
    PLANES_AT,
    TINY,
    VALUES_AT,
)
from lowgemm.jit.memory import offset
from lowgemm.jit.target import target
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i16,
    i32,
    i64,
    load,
    shuffle,
    splat,
    store,
    vec,
)

#: Elements that one step handles.
STEP = 64
_f32 = ir.FloatType()
_pointer = types.voidptr


def has_vbmi() -> bool:
    """Whether the vector code can be used: by the target that Numba compiles for, not the host."""
    return {"avx512f", "avx512bw", "avx512vbmi"} <= target()[1]


def has_avx512() -> bool:
    """Whether registers of 512 bits can be used."""
    return "avx512f" in target()[1]


# ---- look-ups in registers --------------------------------------------------------------------------------
def _bytes_of_128(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    """table[index & 127] for 64 indices."""
    ty = vec(i8, 64)
    low, high = (load(b, ty, at(b, table, 64 * i), 64) for i in range(2))
    return call_intrinsic(b, "llvm.x86.avx512.vpermi2var.qi.512", ty, [low, index, high])


def _bytes_of_256(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    """table[index] for 64 indices."""
    low, high = _bytes_of_128(b, table, index), _bytes_of_128(b, at(b, table, 128), index)
    return b.select(b.icmp_signed("<", index, const(index.type, 0)), high, low)


def _interleave(b: ir.IRBuilder, low: ir.Value, high: ir.Value, first: int, ty: ir.Type) -> ir.Value:
    """Half of two vectors' elements in turn, starting at element `first`, as type `ty`."""
    n = low.type.count
    mask = [x for i in range(first, first + n // 2) for x in (i, n + i)]
    return b.bitcast(shuffle(b, low, high, mask), ty)


# ---- codes to values ---------------------------------------------------------------------------------------
def _zip_lanes(b: ir.IRBuilder, low: ir.Value, high: ir.Value, half: int, ty: ir.Type) -> ir.Value:
    """Elements of two vectors in turn, of the lower or upper half of each 16-byte lane: one cheap
    instruction.
    """
    n = low.type.count
    lane = n // 4
    mask = [x for k in range(4) for i in range(lane // 2) for x in (k * lane + half * lane // 2 + i,)]
    return b.bitcast(shuffle(b, low, high, [y for x in mask for y in (x, n + x)]), ty)


def _emit_expand(
    b: ir.IRBuilder, codes: ir.Value, book: ir.Value, scale: ir.Value, out: ir.Value, steps: ir.Value
) -> None:
    bytes_ty, halves, words = vec(i8, 64), vec(i16, 32), vec(_f32, 16)
    tables = [load(b, bytes_ty, at(b, book, PLANES_AT + 64 * i), 64) for i in range(16)]
    scales = splat(b, scale, 16)
    # Zipping within lanes leaves dword 4 i + k of the bytes at place i of result k: put them there
    # beforehand.
    order = [4 * k + lane for lane in range(4) for k in range(4)]
    with cgutils.for_range(b, steps) as loop:
        index = load(b, vec(i32, 16), at(b, codes, b.mul(loop.index, const(i64, 64))))
        index = b.bitcast(shuffle(b, index, None, order), bytes_ty)
        upper = b.icmp_signed("<", index, const(bytes_ty, 0))
        planes = []
        for p in range(4):
            low, high = (
                call_intrinsic(b, "llvm.x86.avx512.vpermi2var.qi.512", bytes_ty, [t[0], index, t[1]])
                for t in (tables[4 * p : 4 * p + 2], tables[4 * p + 2 : 4 * p + 4])
            )
            planes.append(b.select(upper, high, low))
        target = at(b, out, b.mul(loop.index, const(i64, 256)))
        for half in range(2):
            low = _zip_lanes(b, planes[0], planes[1], half, halves)
            high = _zip_lanes(b, planes[2], planes[3], half, halves)
            for quarter in range(2):
                value = _zip_lanes(b, low, high, quarter, words)
                store(b, b.fmul(value, scales), at(b, target, 128 * half + 64 * quarter))


def _expand_scalar(codes: Any, book: Any, scale: Any, out: Any, steps: Any) -> None:
    source = numba.carray(codes, (STEP * steps,), np.uint8)
    values = numba.carray(offset(book, VALUES_AT), (256,), np.float32)
    target = numba.carray(out, (STEP * steps,), np.float32)
    for i in range(STEP * steps):
        target[i] = values[source[i]] * scale


@intrinsic
def expand(typingctx, codes, book, scale, out, steps):
    """``out[i] = value(codes[i]) * scale`` for `steps` * 64 codes; pointers to uint8, to a book's blob, and
    to float32.
    """
    sig = types.void(_pointer, _pointer, types.float32, _pointer, types.intp)

    def codegen(context, builder, signature, values):
        if has_vbmi():
            _emit_expand(builder, *values)
            return context.get_dummy_value()
        return context.compile_internal(builder, _expand_scalar, sig, values)

    return sig, codegen


# ---- values to codes ---------------------------------------------------------------------------------------
def _words(b: ir.IRBuilder, v: list[ir.Value], odd: int) -> list[ir.Value]:
    """Low (0) or high (1) halves of 64 int32 as two vectors of 32 int16."""
    mask = list(range(odd, 64, 2))
    halves = [b.bitcast(x, vec(i16, 32)) for x in v]
    return [shuffle(b, halves[0], halves[1], mask), shuffle(b, halves[2], halves[3], mask)]


def _emit_compress(
    b: ir.IRBuilder,
    x: ir.Value,
    inverse: ir.Value,
    book: ir.Value,
    out: ir.Value,
    steps: ir.Value,
    doubts: ir.Value,
) -> ir.Value:
    ty = vec(i32, 16)
    meta = at(b, book, META_AT)
    abs_mask, flip, tiny = (splat(b, load(b, i32, at(b, meta, 4 * i), 4), 16) for i in (ABS_MASK, FLIP, TINY))
    binades = [load(b, ty, at(b, book, BINADE_AT + 64 * i), 64) for i in range(2)]
    inverses = splat(b, inverse, 16)
    any_doubt = cgutils.alloca_once_value(b, const(i64, 0))
    with cgutils.for_range(b, steps) as loop:
        source = at(b, x, b.mul(loop.index, const(i64, 256)))
        places = []
        for i in range(4):
            q = b.fmul(load(b, vec(_f32, 16), at(b, source, 64 * i)), inverses)
            bits = b.bitcast(q, ty)
            size = b.and_(bits, abs_mask)
            size = b.select(b.icmp_signed(">", size, tiny), size, tiny)
            exponent = b.lshr(size, const(ty, 23))
            both = call_intrinsic(
                b, "llvm.x86.avx512.vpermi2var.d.512", ty, [binades[0], exponent, binades[1]]
            )
            # the table's low bits hold 16 - k: (fraction << 9) >> (16 - k) keeps k + 16 of the 23 fraction
            # bits
            shift = b.and_(both, const(ty, 31))
            word = b.lshr(b.shl(size, const(ty, 9)), shift)
            word = b.add(word, b.xor(both, shift))
            places.append(b.xor(word, b.and_(b.ashr(bits, const(ty, 31)), flip)))
        low, high = _words(b, places, 0), _words(b, places, 1)
        as_bytes = [b.bitcast(h, vec(i8, 64)) for h in high]
        bucket = shuffle(b, *as_bytes, list(range(0, 128, 2)))
        second = b.icmp_signed("!=", shuffle(b, *as_bytes, list(range(1, 128, 2))), const(vec(i8, 64), 0))

        def look_up(where: int) -> ir.Value:
            table = at(b, book, where)
            return b.select(
                second, _bytes_of_256(b, at(b, table, 256), bucket), _bytes_of_256(b, table, bucket)
            )

        base, start_low, start_high = look_up(BASE_AT), look_up(PLACE_LOW_AT), look_up(PLACE_HIGH_AT)
        beyond, doubtful = [], []
        for i in range(2):
            start = _interleave(b, start_low, start_high, 32 * i, vec(i16, 32))
            beyond.append(b.icmp_unsigned(">", low[i], start))
            doubtful.append(b.icmp_unsigned("<=", b.sub(low[i], start), const(start.type, 2 * MARGIN)))
        whole = list(range(64))
        codes = b.add(base, b.zext(shuffle(b, *beyond, whole), base.type))
        store(b, codes, at(b, out, b.mul(loop.index, const(i64, 64))))
        doubt = b.bitcast(shuffle(b, *doubtful, whole), i64)
        store(b, doubt, at(b, doubts, b.mul(loop.index, const(i64, 8))))
        b.store(b.or_(b.load(any_doubt), doubt), any_doubt)
    return b.load(any_doubt)


def _compress_scalar(x: Any, inverse: Any, book: Any, out: Any, steps: Any, doubts: Any) -> Any:
    source = numba.carray(x, (STEP * steps,), np.float32)
    codes = numba.carray(out, (STEP * steps,), np.uint8)
    masks = numba.carray(doubts, (steps,), np.int64)
    binade = numba.carray(offset(book, BINADE_AT), (32,), np.uint32)
    base = numba.carray(offset(book, BASE_AT), (BUCKETS,), np.uint8)
    start_low = numba.carray(offset(book, PLACE_LOW_AT), (BUCKETS,), np.uint8)
    start_high = numba.carray(offset(book, PLACE_HIGH_AT), (BUCKETS,), np.uint8)
    meta = numba.carray(offset(book, META_AT), (8,), np.int32)
    abs_mask, flip, tiny = meta[ABS_MASK], meta[FLIP], meta[TINY]
    quotients = np.empty(STEP, np.float32)
    all_bits = quotients.view(np.int32)
    any_doubt = np.uint64(0)
    for step in range(steps):
        for i in range(STEP):
            quotients[i] = source[step * STEP + i] * inverse
        doubtful = np.uint64(0)
        for i in range(STEP):
            bits = all_bits[i]
            size = max(bits & abs_mask, tiny)
            both = binade[(size >> np.int32(23)) & np.int32(31)]
            shift = both & np.uint32(31)
            word = (np.uint32(size << np.int32(9)) >> shift) + (both ^ shift)
            word ^= np.uint32((bits >> np.int32(31)) & flip)
            bucket, place = word >> np.uint32(16), np.uint32(word & np.uint32(0xFFFF))
            start = np.uint32(start_low[bucket]) | np.uint32(np.uint32(start_high[bucket]) << np.uint32(8))
            codes[step * STEP + i] = np.uint8(base[bucket] + (place > start))
            if np.uint16(place - start) <= np.uint16(2 * MARGIN):
                doubtful |= np.uint64(1) << np.uint64(i)
        masks[step] = np.int64(doubtful)
        any_doubt |= doubtful
    return np.int64(any_doubt)


@intrinsic
def compress(typingctx, x, inverse, book, out, steps, doubts):
    """Ranks of `steps` * 64 values ``x[i] * inverse`` by the book's bucket table, into bytes at `out`.

    Bit i of the int64 number s at `doubts` says that element 64 s + i is too near to a mid-point and has to
    be decided by `spans.exact_rank`; returns all of them or-ed. For books with a bucket table only, and
    ``|x[i]| * inverse`` of at most 1 + 2**-22.
    """
    sig = types.int64(_pointer, types.float32, _pointer, _pointer, types.intp, _pointer)

    def codegen(context, builder, signature, values):
        if has_vbmi():
            return _emit_compress(builder, *values)
        return context.compile_internal(builder, _compress_scalar, sig, values)

    return sig, codegen


# ---- packed 4-bit codes to values --------------------------------------------------------------------------
def _emit_expand4(b: ir.IRBuilder, packed: ir.Value, book: ir.Value, scale: ir.Value, out: ir.Value) -> None:
    words = b.zext(load(b, vec(i8, 32), packed), vec(i16, 32))
    # the element of the high nibble comes first
    pairs = b.or_(b.lshr(words, const(words.type, 4)), b.shl(words, const(words.type, 8)))
    index = b.bitcast(pairs, vec(i8, 64))
    ty = vec(_f32, 16)
    values, scales = load(b, ty, at(b, book, VALUES_AT), 64), splat(b, scale, 16)
    for i in range(4):
        part = shuffle(b, index, None, list(range(16 * i, 16 * i + 16)))
        wide = b.and_(b.zext(part, vec(i32, 16)), const(vec(i32, 16), 15))
        value = call_intrinsic(b, "llvm.x86.avx512.permvar.sf.512", ty, [values, wide])
        store(b, b.fmul(value, scales), at(b, out, 64 * i))


def _expand4_scalar(packed: Any, book: Any, scale: Any, out: Any) -> None:
    source = numba.carray(packed, (STEP // 2,), np.uint8)
    values = numba.carray(offset(book, VALUES_AT), (256,), np.float32)
    target = numba.carray(out, (STEP,), np.float32)
    for i in range(STEP // 2):
        target[2 * i] = values[source[i] >> 4] * scale
        target[2 * i + 1] = values[source[i] & 15] * scale


@intrinsic
def expand4(typingctx, packed, book, scale, out):
    """``out[i] = value(code i) * scale`` for 64 codes in 32 bytes, high nibble first."""
    sig = types.void(_pointer, _pointer, types.float32, _pointer)

    def codegen(context, builder, signature, values):
        if has_avx512():
            _emit_expand4(builder, *values)
            return context.get_dummy_value()
        return context.compile_internal(builder, _expand4_scalar, sig, values)

    return sig, codegen


@intrinsic
def trailing_zeros(typingctx, bits):
    """Number of zero bits below the lowest one of an int64 that is not 0."""

    def codegen(context, builder, signature, values):
        fn = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(i64, [i64, ir.IntType(1)]), "llvm.cttz.i64"
        )
        return builder.call(fn, [values[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(types.int64), codegen


@intrinsic(prefer_literal=True)
def prefetch(typingctx, pointer, count, write):
    """Ask for `count` bytes from `pointer` on, a cache line at a time; `write` (0 or 1, constant) says they
    will change.
    """
    intent = write.literal_value

    def codegen(context, builder, signature, values):
        args = [i8.as_pointer(), i32, i32, i32]
        fn = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), args), "llvm.prefetch.p0i8"
        )
        with cgutils.for_range_slice(builder, i64(0), values[1], i64(64), inc=True) as (at_byte, _):
            builder.call(fn, [builder.gep(values[0], [at_byte]), i32(intent), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(_pointer, types.intp, write), codegen
