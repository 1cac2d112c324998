"""Compiled routines and how they are called: through addresses.

Every piece of machine code that touches matrix memory (a microkernel, a packing routine, an output stage)
is a `numba.cfunc` with pointer arguments. The tile loop in `engine/tiles.py` only does integer arithmetic on
addresses and calls these pieces through `call_address`. So there is one tile loop to compile, whatever the
kernel and whatever the output pipeline, and each piece is compiled at most once and cached on disk by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic

from lowgemm.jit import disk_cache
from lowgemm.jit.part import inner as inner
from lowgemm.jit.part import inner_dividing as inner_dividing


def signature(letters: str) -> Any:
    """C signature of a routine that returns nothing: `p` for a pointer, `n` for a 64-bit integer.

    Examples
    --------
    >>> signature("pn")
    (void*, int64) -> none
    """
    return types.void(*({"p": types.voidptr, "n": types.intp}[letter] for letter in letters))


class Routine:
    """A C function that is compiled, or loaded from disk, when its address is first asked for.

    Parameters
    ----------
    function : callable
        What is compiled.
    signature : Numba signature
        Of C types.
    key : hashable
        What the code depends on beside lowgemm's sources and the values that the function captures.
    on_disk : bool
        Whether to look for it on disk, and to save it there.
    """

    def __init__(
        self, function: Callable[..., Any], signature: Any, key: Hashable = (), on_disk: bool = True
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.signature, self.key, self.on_disk = function, signature, key, on_disk

    @functools.cached_property
    def compiled(self) -> Any:
        """What Numba made of it, a `numba.core.ccallback.CFunc`."""
        return disk_cache.cfunc(self.function, self.signature, self.key, self.on_disk)

    @functools.cached_property
    def address(self) -> int:
        """Address of the machine code."""
        return int(self.compiled.address)

    @functools.cached_property
    def ctypes(self) -> Any:
        """The function for `ctypes`."""
        return self.compiled.ctypes

    def __reduce__(self) -> str:
        return self.__qualname__  # by its name, like a function


def routine(types_of: Any, key: Hashable = ()) -> Callable[[Callable[..., Any]], Routine]:
    """Declare a compiled routine; its types are letters (see `signature`) or a signature of Numba.

    Examples
    --------
    >>> from lowgemm.jit.memory import store_32
    >>> @routine("pn")
    ... def put(to, number):
    ...     store_32(to, 0, number)
    >>> put.signature
    (void*, int64) -> none
    """
    types_of = signature(types_of) if isinstance(types_of, str) else types_of
    return lambda function: Routine(function, types_of, key)


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
                f"args[{i}]: expected an integer, a bool or a pointer, got {ty}; nothing else is passed as a "
                "64-bit word"
            )


def unpack_words(context: Any, builder: ir.IRBuilder, args: Any, value: ir.Value) -> list[ir.Value]:
    """Elements of a tuple, each 64 bits wide: integers widened by their sign, a bool as 0 or 1, pointers as
    they are.

    A callee reads 64 bits whatever the caller gave. Of a narrower argument the upper bits are what the
    register or the stack held before: right by luck on x86-64 Linux, garbage on aarch64 and Windows.
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


#: ``call_address(address, args)``: call the C function at `address` (int64) with the tuple `args`; returns
#: nothing.
#:
#: Every argument is passed as 64 bits (see `unpack_words`); what cannot be is refused when the call is
#: compiled. On every supported ABI a pointer-sized integer and a pointer travel in the same register, and the
#: callee declares the pointers as such. Nothing is loaded or stored through them on this side (LLVM 22 can
#: miscompile memory access by `inttoptr` arithmetic).
call_address = intrinsic(_caller(types.void, ir.VoidType()))
#: ``call_for_address(address, args)``: likewise; returns the function's pointer-sized result.
call_for_address = intrinsic(_caller(types.intp, ir.IntType(64)))
