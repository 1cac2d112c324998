"""Packed codes of 4 or 2 bits to the integer levels that a kernel multiplies: 64 bytes to 128 or 256 levels a
step.

Within a step the lowest bits of the bytes hold elements 0 to 63, the next ones elements 64 to 127, and so on,
so that an in-register look-up (`pshufb`) of each part gives them in order; bitsandbytes' order, high half
first, would need an interleaving.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.blockwise.codebook import CodeBook
from lowgemm.jit.target import target
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i16,
    i64,
    load,
    shuffle,
    store,
    vec,
)

#: Bytes of codes of a step.
STEP_BYTES = 64
#: What codes may have, and so how many values a book.
BITS = (2, 4)
#: Largest integer level: int8 has no 128, and levels of either sign are treated alike.
HIGHEST = 127


def integer_levels(book: CodeBook) -> tuple[np.ndarray, int]:
    """The values of a book of at most 16 as integers over a common denominator.

    Parameters
    ----------
    book : CodeBook

    Returns
    -------
    levels : ndarray of int8, shape (16,)
        ``rint(denominator * value)``; 0 beyond the book's end.
    denominator : int
        The one of 1 to 127 for which no value is further off than need be; the smallest of equally good ones
        (to 2**-24). INT4 is exact with 8; the largest change is 0.0035 for NF4 (123) and 0.0029 for FP4
        (124).

    Examples
    --------
    >>> from lowgemm.blockwise import as_codebook
    >>> levels, denominator = integer_levels(as_codebook("nf4"))
    >>> print(denominator, levels.tolist())
    123 [-123, -86, -65, -49, -35, -23, -11, 0, 10, 20, 30, 42, 54, 69, 89, 123]
    """
    values = book.values.astype(np.float64)
    errors = [float(np.abs(np.rint(d * values) / d - values).max()) for d in range(1, HIGHEST + 1)]
    denominator = 1 + next(i for i, e in enumerate(errors) if e <= min(errors) + 2.0**-24)
    levels = np.zeros(16, np.int8)
    levels[: values.size] = np.rint(denominator * values)
    return levels, denominator


def step_of(bits: int) -> int:
    """Elements of a step."""
    return STEP_BYTES * 8 // bits


def _register() -> tuple[str, int] | None:
    """Byte look-up of the widest registers that the target has."""
    has = target()[1]
    if "avx512bw" in has:
        return "llvm.x86.avx512.pshuf.b.512", 64
    if "avx2" in has:
        return "llvm.x86.avx2.pshuf.b", 32
    return None


def _emit(
    b: ir.IRBuilder, packed, levels, out, steps, element_bytes: int, bits: int, name: str, width: int
) -> None:
    ty = vec(i8, width)
    table = shuffle(b, load(b, vec(i8, 16), levels), None, list(range(16)) * (width // 16))
    mask = const(ty, 2**bits - 1)
    with cgutils.for_range(b, steps) as loop:
        source = at(b, packed, b.mul(loop.index, const(i64, STEP_BYTES)))
        to = at(b, out, b.mul(loop.index, const(i64, step_of(bits) * element_bytes)))
        for i in range(STEP_BYTES // width):
            x = load(b, ty, at(b, source, i * width))
            words = b.bitcast(x, vec(i16, width // 2))
            for field in range(8 // bits):
                index = b.bitcast(b.lshr(words, const(words.type, bits * field)), ty)
                y = call_intrinsic(b, name, ty, [table, b.and_(index, mask)])
                if element_bytes == 2:
                    y = b.sext(y, vec(i16, width))
                store(b, y, at(b, to, (STEP_BYTES * field + i * width) * element_bytes))


def _scalar(element: Any, bits: int) -> Any:
    step, fields, mask = step_of(bits), 8 // bits, 2**bits - 1

    def expand(packed: Any, levels: Any, out: Any, steps: Any) -> None:
        source = numba.carray(packed, (STEP_BYTES * steps,), np.uint8)
        table = numba.carray(levels, (16,), np.int8)
        to = numba.carray(out, (step * steps,), element)
        for s in range(steps):
            for field in range(fields):
                for i in range(STEP_BYTES):
                    code = source[STEP_BYTES * s + i] >> (bits * field) & mask
                    to[step * s + STEP_BYTES * field + i] = table[code]

    return expand


_SCALAR = {(size, bits): _scalar({1: np.int8, 2: np.int16}[size], bits) for size in (1, 2) for bits in BITS}


@intrinsic(prefer_literal=True)
def expand_levels(typingctx, packed, levels, out, steps, element_bytes, bits):
    """Levels out of `steps` * 64 packed bytes, as int8 or int16 (`element_bytes`); it and `bits`, of a code,
    are constants.
    """
    size, width = element_bytes.literal_value, bits.literal_value
    plain = types.void(types.voidptr, types.voidptr, types.voidptr, types.intp)

    def codegen(context, builder, signature, values):
        register = _register()
        if register is None:
            context.compile_internal(builder, _SCALAR[size, width], plain, values[:4])
        else:
            _emit(builder, *values[:4], size, width, *register)
        return context.get_dummy_value()

    return types.void(*plain.args, element_bytes, bits), codegen
