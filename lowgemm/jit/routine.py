"""Compiled routines and how they are called: through addresses.

Every piece of machine code that touches matrix memory (a microkernel, a packing routine, an output stage)
is a `numba.cfunc` with pointer arguments. The tile loop in `engine/tiles.py` only does integer arithmetic on
addresses and calls these pieces through `call_address`. So there is one tile loop to compile, whatever the
kernel and whatever the output pipeline, and each piece is compiled at most once and cached on disk by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic

from lowgemm.jit import disk_cache


def signature(letters: str) -> Any:
    """C signature of a routine that returns nothing: `p` for a pointer, `n` for a 64-bit integer.

    Examples
    --------
    >>> signature("pn")
    (void*, int64) -> none
    """
    return types.void(*({"p": types.voidptr, "n": types.intp}[letter] for letter in letters))


def compile_c(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.cfunc` with lowgemm's options: cached on disk, no Python objects inside."""
    return disk_cache.cfunc(signature)


def check_words(args: Any) -> None:
    """Refuse a tuple type whose elements cannot all travel as 64-bit words.

    Raises
    ------
    NumbaTypeError
        While the caller is compiled, if an element is no integer of at most 64 bits, no bool and no pointer.
    """
    if not isinstance(args, types.BaseTuple):
        raise errors.NumbaTypeError(f"args: expected a tuple, got {args}")
    for i, ty in enumerate(args):
        fits = isinstance(ty, types.Integer) and ty.bitwidth <= 64
        if not fits and not isinstance(ty, (types.Boolean, types.RawPointer, types.CPointer)):
            raise errors.NumbaTypeError(
                f"args[{i}]: expected an integer, a bool or a pointer, got {ty}; nothing else is passed as a 64-bit word"
            )


def unpack_words(context: Any, builder: ir.IRBuilder, args: Any, value: ir.Value) -> list[ir.Value]:
    """Elements of a tuple, each 64 bits wide: integers widened by their sign, a bool as 0 or 1, pointers as they are.

    A callee reads 64 bits whatever the caller gave. Of a narrower argument the upper bits are what the register or the
    stack held before: right by luck on x86-64 Linux, garbage on aarch64 and Windows.
    """
    check_words(args)
    words = []
    for ty, item in zip(args, cgutils.unpack_tuple(builder, value), strict=True):
        if not isinstance(ty, (types.RawPointer, types.CPointer)):
            signed = isinstance(ty, types.Integer) and ty.signed
            item = context.cast(builder, item, ty, types.int64 if signed else types.uint64)
        words.append(item)
    return words


def _caller(result: Any, ty: ir.Type) -> Any:
    def call(typingctx, address, args):
        if not isinstance(address, types.Integer) or address.bitwidth != 64:
            raise errors.NumbaTypeError(f"address: expected a 64-bit integer, got {address}")
        check_words(args)

        def codegen(context, builder, signature, values):
            words = unpack_words(context, builder, signature.args[1], values[1])
            function = ir.FunctionType(ty, [w.type for w in words])
            answer = builder.call(builder.inttoptr(values[0], function.as_pointer()), words)
            return context.get_dummy_value() if result is types.void else answer

        return result(address, args), codegen

    return call


#: ``call_address(address, args)``: call the C function at `address` (int64) with the tuple `args`; returns nothing.
#:
#: Every argument is passed as 64 bits (see `unpack_words`); what cannot be is refused when the call is compiled. On
#: every supported ABI a pointer-sized integer and a pointer travel in the same register, and the callee declares the
#: pointers as such. Nothing is loaded or stored through them on this side (LLVM 22 can miscompile memory access by
#: `inttoptr` arithmetic).
call_address = intrinsic(_caller(types.void, ir.VoidType()))
#: ``call_for_address(address, args)``: likewise; returns the function's pointer-sized result.
call_for_address = intrinsic(_caller(types.intp, ir.IntType(64)))
