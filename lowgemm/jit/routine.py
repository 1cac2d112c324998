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
from numba.core import cgutils
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


@intrinsic
def call_address(typingctx, address, args):
    """Call the C function at `address` (int64) with the tuple `args`; returns nothing.

    Integers of the tuple are passed as they are: on every supported ABI a pointer-sized integer and a pointer
    travel in the same register, and the callee declares the pointers as such. Nothing is loaded or stored
    through them on this side (LLVM 22 can miscompile memory access by `inttoptr` arithmetic).
    """
    sig = types.void(address, args)

    def codegen(context, builder, signature, values):
        addr, tup = values
        items = cgutils.unpack_tuple(builder, tup)
        fnty = ir.FunctionType(ir.VoidType(), [i.type for i in items])
        fn = builder.inttoptr(addr, fnty.as_pointer())
        builder.call(fn, items)
        return context.get_dummy_value()

    return sig, codegen
