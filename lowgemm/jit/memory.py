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


def _float_loader(ty, result):
    def load(typingctx, base, index):
        def codegen(context, builder, signature, values):
            return builder.load(_element(builder, values[0], values[1], ty), align=result.bitwidth // 8)

        return result(_void, types.intp), codegen

    return load


load_f32 = intrinsic(_float_loader(ir.FloatType(), types.float32))
load_f64 = intrinsic(_float_loader(ir.DoubleType(), types.float64))


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
        name = "llvm.roundeven." + ("f32" if isinstance(ty, ir.FloatType) else "f64")
        fn = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ty, [ty]), name)
        return builder.call(fn, values)

    return value(value), codegen


@intrinsic
def offset(typingctx, base, count):
    """Pointer `count` bytes after `base`."""

    def codegen(context, builder, signature, values):
        return builder.gep(values[0], [values[1]])

    return _void(_void, types.intp), codegen


@intrinsic(prefer_literal=True)
def copy_bytes(typingctx, to, source, size):
    """Copy `size` (a constant) bytes in one vector, of any alignment."""
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
    """Atomically add to an element of an int64 array; returns what it held before. It hands out numbers, each once.

    It orders no other memory ("monotonic"): whoever draws a number reads nothing that another thread wrote in the same phase,
    and between phases, and at the end, threads are joined, which orders everything.
    """

    def codegen(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [values[1]]), values[2], "monotonic")

    return types.int64(array, types.intp, types.int64), codegen


# ---- records ----------------------------------------------------------------------------------------------
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


@intrinsic(prefer_literal=True)
def take_field(typingctx, record, field, amount):
    """`take` for an int64 field, whose name is a constant, of a record or of the first record of an array."""
    array = isinstance(record, types.Array)
    offset = (record.dtype if array else record).offset(field.literal_value)

    def codegen(context, builder, signature, values):
        first = context.make_array(record)(context, builder, values[0]).data if array else values[0]
        return builder.atomic_rmw("add", _field(builder, first, offset), values[2], "monotonic")

    return types.int64(record, field, types.int64), codegen


@intrinsic
def arrive_behind(typingctx, record, index, amount):
    """Atomically add to number `index` of the int64 numbers that follow a record in memory; returns what it held before.

    It counts threads of which the last reads what the others wrote. Each must have its writes seen before its count (release),
    and the last must see them after (acquire): "acq_rel". On Arm, a plain addition lets the last one read old data; on x86
    both are the same ``lock xadd``.
    """

    def codegen(context, builder, signature, values):
        behind = _field(builder, values[0], signature.args[0].size)
        return builder.atomic_rmw("add", builder.gep(behind, [values[1]]), values[2], "acq_rel")

    return types.int64(record, types.intp, types.int64), codegen


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
