"""Memory access through raw pointers, for use inside Numba code: the only module that loads or stores by
address.

All take a real pointer (`numba.types.voidptr`) and use `getelementptr`; an address that was computed as an
integer is never dereferenced in the function that computed it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from lowgemm.jit.target import round_even_name

_void = types.voidptr
_i8, _i64 = ir.IntType(8), ir.IntType(64)


def _element(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, ty: ir.Type) -> ir.Value:
    return builder.gep(builder.bitcast(base, ty.as_pointer()), [index])


def _loader(bits: int, signed: bool):
    ty = ir.IntType(bits)

    def load(typingctx, base, index):
        def codegen(context, builder, signature, values):
            x = builder.load(_element(builder, values[0], values[1], ty), align=bits // 8)
            if bits == 64:
                return x
            return builder.sext(x, _i64) if signed else builder.zext(x, _i64)

        return types.int64(_void, types.intp), codegen

    return load


def _storer(bits: int):
    ty = ir.IntType(bits)

    def store(typingctx, base, index, value):
        def codegen(context, builder, signature, values):
            builder.store(
                builder.trunc(values[2], ty) if bits < 64 else values[2],
                _element(builder, values[0], values[1], ty),
                align=bits // 8,
            )
            return context.get_dummy_value()

        return types.void(_void, types.intp, types.int64), codegen

    return store


#: ``load_x(base, index) -> int64``; ``store_x(base, index, value)`` keeps the low bits of an int64.
load_u8 = intrinsic(_loader(8, False))
load_s8 = intrinsic(_loader(8, True))
load_u16 = intrinsic(_loader(16, False))
load_s16 = intrinsic(_loader(16, True))
load_u32 = intrinsic(_loader(32, False))
load_i32 = intrinsic(_loader(32, True))
load_i64 = intrinsic(_loader(64, True))
store_8 = intrinsic(_storer(8))
store_16 = intrinsic(_storer(16))
store_32 = intrinsic(_storer(32))
store_64 = intrinsic(_storer(64))


@intrinsic
def load_f32(typingctx, base, index):
    """float32 number `index` at `base`."""

    def codegen(context, builder, signature, values):
        return builder.load(_element(builder, values[0], values[1], ir.FloatType()), align=4)

    return types.float32(_void, types.intp), codegen


@intrinsic
def store_f32(typingctx, base, index, value):
    """Store a float32."""

    def codegen(context, builder, signature, values):
        builder.store(values[2], _element(builder, values[0], values[1], ir.FloatType()), align=4)
        return context.get_dummy_value()

    return types.void(_void, types.intp, types.float32), codegen


@intrinsic
def round_even(typingctx, value):
    """Nearest whole number, ties to even, in the type of `value` (float32 or float64)."""

    def codegen(context, builder, signature, values):
        ty = values[0].type
        name = round_even_name("f32" if isinstance(ty, ir.FloatType) else "f64")
        fn = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ty, [ty]), name)
        return builder.call(fn, values)

    return value(value), codegen


#: Adding it to a number below 2**22 rounds that to a whole one, ties to even, which is then in the low bits.
WHOLE = 1.5 * 2.0**23


@intrinsic
def nearest(typingctx, value):
    """Nearest int32 of a float32 below 2**22, ties to even: two instructions of a vector, where `round_even`
    and a conversion take four.
    """

    def codegen(context, builder, signature, values):
        whole = builder.fadd(values[0], ir.Constant(ir.FloatType(), WHOLE))
        bits = builder.bitcast(whole, ir.IntType(32))
        return builder.sub(bits, ir.Constant(ir.IntType(32), 0x4B400000))  # the bits of WHOLE

    return types.int32(types.float32), codegen


@intrinsic
def smaller(typingctx, a, b):
    """The smaller of `a` and `b`, int64. Numba's `min` is a function of its own to compile."""

    def codegen(context, builder, signature, values):
        return builder.select(builder.icmp_signed("<", values[0], values[1]), *values)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def offset(typingctx, base, count):
    """Pointer `count` bytes after `base`."""

    def codegen(context, builder, signature, values):
        return builder.gep(values[0], [values[1]])

    return _void(_void, types.intp), codegen


@intrinsic
def is_null(typingctx, pointer):
    """Whether a pointer is 0."""

    def codegen(context, builder, signature, values):
        return builder.icmp_unsigned("==", builder.ptrtoint(values[0], _i64), _i64(0))

    return types.boolean(_void), codegen


@intrinsic(prefer_literal=True)
def copy_bytes(typingctx, to, source, size):
    """Copy `size` (a constant) bytes from `source` to `to` in one vector, of any alignment."""
    ty = ir.VectorType(_i8, size.literal_value)

    def codegen(context, builder, signature, values):
        value = builder.load(builder.bitcast(values[1], ty.as_pointer()), align=1)
        builder.store(value, builder.bitcast(values[0], ty.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(_void, _void, size), codegen


@intrinsic
def pointer_at(typingctx, base, index):
    """Element `index` of an array of pointers at `base`."""

    def codegen(context, builder, signature, values):
        return builder.load(_element(builder, values[0], values[1], _i8.as_pointer()))

    return _void(_void, types.intp), codegen


@intrinsic(prefer_literal=True)
def stack(typingctx, size):
    """Pointer to `size` (a constant) bytes on the stack, 64-byte aligned."""
    count = size.literal_value

    def codegen(context, builder, signature, values):
        slot = cgutils.alloca_once(builder, ir.ArrayType(_i8, count))
        slot.align = 64
        return builder.bitcast(slot, _i8.as_pointer())

    return _void(size), codegen


@intrinsic
def take(typingctx, array, index, amount):
    """Atomically add to an element of an int64 array; what it held before. It hands out numbers, each once.

    It orders no other memory ("monotonic"): whoever draws a number reads nothing that another thread wrote in
    the same phase.
    """

    def codegen(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [values[1]]), values[2], "monotonic")

    return types.int64(array, types.intp, types.int64), codegen


# ---- between threads --------------------------------------------------------------------------------------
# Atomic, on int64 number `index` at `base`, in one order that all threads agree on ("sequentially
# consistent"): of two threads that each write one number and then read the other's, at least one sees what
# the other wrote.
@intrinsic
def atomic_load(typingctx, base, index):
    """The number; what the thread that stored it had written before is seen after this."""

    def codegen(context, builder, signature, values):
        return builder.load_atomic(_element(builder, values[0], values[1], _i64), "seq_cst", 8)

    return types.int64(_void, types.intp), codegen


@intrinsic
def atomic_store(typingctx, base, index, value):
    """Store a number; what this thread wrote before is seen by those that load it."""

    def codegen(context, builder, signature, values):
        builder.store_atomic(values[2], _element(builder, values[0], values[1], _i64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(_void, types.intp, types.int64), codegen


def _changer(operation: str):
    def change(typingctx, base, index, value):
        def codegen(context, builder, signature, values):
            at = _element(builder, values[0], values[1], _i64)
            return builder.atomic_rmw(operation, at, values[2], "seq_cst")

        return types.int64(_void, types.intp, types.int64), codegen

    return change


#: Add to the number, or keep only the bits of `value`, or set those of `value`; each returns what it was
#: before.
atomic_add = intrinsic(_changer("add"))
atomic_and = intrinsic(_changer("and"))
atomic_or = intrinsic(_changer("or"))


@intrinsic
def atomic_replace(typingctx, base, index, expected, value):
    """Store `value` if the number is `expected`; whether it was."""

    def codegen(context, builder, signature, values):
        at = _element(builder, values[0], values[1], _i64)
        pair = builder.cmpxchg(at, values[2], values[3], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(_void, types.intp, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the core that this loop waits for another thread."""

    def codegen(context, builder, signature, values):
        triple = builder.module.triple
        if triple.startswith(("x86_64", "i386", "i686")):
            ty = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, ty, "llvm.x86.sse2.pause"), [])
        elif triple.startswith(("aarch64", "arm64")):
            ty = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            hint = cgutils.get_or_insert_function(builder.module, ty, "llvm.aarch64.hint")
            builder.call(hint, [ir.IntType(32)(1)])  # "yield"
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic(prefer_literal=True)
def load_field(typingctx, record, field):
    """An int64 field, whose name is a constant, of a record that other threads count in by `arrive_field`:
    what they wrote before is seen after this.
    """
    offset = record.offset(field.literal_value)

    def codegen(context, builder, signature, values):
        return builder.load_atomic(_field(builder, values[0], offset), "acquire", 8)

    return types.int64(record, field), codegen


# ---- records ----------------------------------------------------------------------------------------------
@intrinsic
def record_address(typingctx, record):
    """Address of a record as an integer, to hand on to `call_address`."""

    def codegen(context, builder, signature, values):
        return builder.ptrtoint(values[0], _i64)

    return types.int64(record), codegen


def record_at(dtype: np.dtype) -> Any:
    """Make ``at(pointer)``: the record of a structured dtype that a pointer points to."""

    def at(typingctx, pointer):
        record = from_dtype(dtype)

        def codegen(context, builder, signature, values):
            return builder.bitcast(values[0], context.get_value_type(record))

        return record(_void), codegen

    return intrinsic(at)


def _field(builder: ir.IRBuilder, record: ir.Value, offset: int) -> ir.Value:
    """Pointer to the int64 number at a byte offset."""
    start = builder.bitcast(record, _i8.as_pointer())
    return builder.bitcast(builder.gep(start, [_i64(offset)]), _i64.as_pointer())


@intrinsic
def load_behind(typingctx, record, index):
    """Number `index` of the int64 numbers that follow a record in memory."""

    def codegen(context, builder, signature, values):
        behind = _field(builder, values[0], signature.args[0].size)
        return builder.load(builder.gep(behind, [values[1]]), align=8)

    return types.int64(record, types.intp), codegen


def record_behind(dtype: np.dtype) -> Any:
    """Make ``at(record, index)``: number `index` of the records of a structured dtype that follow another
    record in memory.
    """

    def at(typingctx, record, index):
        follows = from_dtype(dtype)

        def codegen(context, builder, signature, values):
            start = builder.bitcast(values[0], _i8.as_pointer())
            place = builder.add(_i64(signature.args[0].size), builder.mul(values[1], _i64(follows.size)))
            return builder.bitcast(builder.gep(start, [place]), context.get_value_type(follows))

        return follows(record, types.intp), codegen

    return intrinsic(at)


def _field_adder(ordering: str):
    def add(typingctx, record, field, amount):
        array = isinstance(record, types.Array)
        offset = (record.dtype if array else record).offset(field.literal_value)

        def codegen(context, builder, signature, values):
            first = context.make_array(record)(context, builder, values[0]).data if array else values[0]
            return builder.atomic_rmw("add", _field(builder, first, offset), values[2], ordering)

        return types.int64(record, field, types.int64), codegen

    return add


#: ``take_field(record, field, amount)``: `take` for an int64 field, whose name is a constant, of a record or
#: of the first record of an array.
take_field = intrinsic(prefer_literal=True)(_field_adder("monotonic"))
#: Likewise, for counting what threads have done. Each must have its writes seen before its count (release),
#: and whoever sees the count must see them too (`load_field`): "acq_rel". On Arm, a plain addition lets a
#: reader see old data; on x86 both are the same ``lock xadd``.
arrive_field = intrinsic(prefer_literal=True)(_field_adder("acq_rel"))


@intrinsic(prefer_literal=True)
def pointer_field(typingctx, record, field):
    """Field `field` (a constant) of a record as the pointer that it is; the record's dtype
    calls it unsigned.
    """
    name = field.literal_value
    at = record.offset(name)

    def codegen(context, builder, signature, values):
        # Raised here and not while typing: then Numba would go on to look for another way.
        if record.typeof(name) != types.uint64:
            raise errors.NumbaTypeError(f"{name}: expected a field of type uint64, got {record.typeof(name)}")
        return builder.load(cgutils.get_record_member(builder, values[0], at, _i8.as_pointer()))

    return _void(record, field), codegen


@intrinsic(prefer_literal=True)
def field_address(typingctx, record, field):
    """Pointer to field `field` (a constant) of a record."""
    at = record.offset(field.literal_value)

    def codegen(context, builder, signature, values):
        return builder.bitcast(_field(builder, values[0], at), _i8.as_pointer())

    return _void(record, field), codegen


@intrinsic
def address(typingctx, array):
    """Pointer to an array's first element."""

    def codegen(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.bitcast(data, _i8.as_pointer())

    return _void(array), codegen


@intrinsic
def as_address(typingctx, pointer):
    """Pointer as an integer, to hand on to `call_address`."""

    def codegen(context, builder, signature, values):
        return builder.ptrtoint(values[0], _i64)

    return types.intp(_void), codegen
