"""Short names for the LLVM IR that kernels, packing and output stages are written in."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils

i8, i16, i32, i64 = (ir.IntType(n) for n in (8, 16, 32, 64))


def vec(ty: ir.Type, n: int) -> ir.VectorType:
    """LLVM vector type of `n` elements."""
    return ir.VectorType(ty, n)


def const(ty: ir.Type, value: int) -> ir.Constant:
    """Scalar constant, or a vector of that constant."""
    if isinstance(ty, ir.VectorType):
        return ir.Constant(ty, [value] * ty.count)
    return ir.Constant(ty, value)


def splat(builder: ir.IRBuilder, scalar: ir.Value, n: int) -> ir.Value:
    """Vector of `n` copies of a scalar value."""
    ty = vec(scalar.type, n)
    first = builder.insert_element(ir.Constant(ty, ir.Undefined), scalar, const(i32, 0))
    return builder.shuffle_vector(first, ir.Constant(ty, ir.Undefined), const(vec(i32, n), 0))


def shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value | None, mask: list[int]) -> ir.Value:
    """`shufflevector` with a constant mask."""
    if b is None:
        b = ir.Constant(a.type, ir.Undefined)
    return builder.shuffle_vector(a, b, ir.Constant(vec(i32, len(mask)), mask))


def load(builder: ir.IRBuilder, ty: ir.Type, address: ir.Value, align: int = 1) -> ir.Value:
    """Load a value of type `ty` from an i8 pointer."""
    return builder.load(builder.bitcast(address, ty.as_pointer()), align=align)


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, align: int = 1) -> None:
    """Store a value to an i8 pointer."""
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=align)


def call_intrinsic(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by name."""
    fn = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(fn, args)


def at(builder: ir.IRBuilder, base: ir.Value, offset: int | ir.Value) -> ir.Value:
    """Address `base + offset` bytes."""
    if isinstance(offset, int):
        if offset == 0:
            return base
        offset = const(i64, offset)
    return builder.gep(base, [offset])


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for the cache line at an address, which need not be there, to be read into the second-level
    cache.
    """
    call_intrinsic(
        builder, "llvm.prefetch.p0", ir.VoidType(), [address, const(i32, 0), const(i32, 2), const(i32, 1)]
    )


def repeat(
    builder: ir.IRBuilder,
    count: ir.Value,
    starts: list[ir.Value],
    turn: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
    maybe_none: bool = False,
) -> list[ir.Value]:
    """A loop of `count` turns, at least one but with `maybe_none`, that hands values on; what they are after
    the last turn.

    `turn` emits a turn: from its number and the values to the values of the next one.
    """
    entry, body = builder.block, builder.function.append_basic_block("turn")
    done = builder.function.append_basic_block("turned")
    if maybe_none:
        builder.cbranch(builder.icmp_signed(">", count, const(i64, 0)), body, done)
    else:
        builder.branch(body)
    builder.position_at_end(body)
    number = builder.phi(i64)
    number.add_incoming(const(i64, 0), entry)
    values = [builder.phi(start.type) for start in starts]
    after = turn(number, list(values))
    following = builder.add(number, const(i64, 1), flags=["nuw", "nsw"])
    number.add_incoming(following, builder.block)
    for value, start, new in zip(values, starts, after, strict=True):
        value.add_incoming(start, entry)
        value.add_incoming(new, builder.block)
    last = builder.block
    builder.cbranch(builder.icmp_signed("<", following, count), body, done)
    builder.position_at_end(done)
    if not maybe_none:
        return after
    ends = [builder.phi(start.type) for start in starts]
    for end, start, new in zip(ends, starts, after, strict=True):
        end.add_incoming(start, entry)
        end.add_incoming(new, last)
    return ends
