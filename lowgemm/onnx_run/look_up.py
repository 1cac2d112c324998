"""Bytes by a table of 256, compiled: 64 at a time where the CPU has an instruction for it."""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from lowgemm.compat.onnx_passes import PIECE, empty_like
from lowgemm.engine.parts import PASS, run_shared
from lowgemm.jit.memory import load_i64, offset, pointer_at
from lowgemm.jit.routine import routine, unpack_words
from lowgemm.jit.target import target
from lowgemm.kernels.framework.irtools import at, call_intrinsic, const, i8, i64, load, store, vec
from lowgemm.onnx_run.passes import NANOSECONDS
from lowgemm.onnx_run.tape import Recorder, ways


@intrinsic
def _look_up_64(typingctx, args):
    """64 bytes by a table of 256: (table, source, destination).

    AVX512-VBMI looks up 64 bytes in 128 by one instruction; elsewhere each is loaded.
    """

    def codegen(context, b, signature, values):
        table, src, dst = unpack_words(context, b, signature.args[0], values[0])
        ty = vec(i8, 64)
        if "avx512vbmi" not in target()[1]:
            for i in range(64):
                place = b.zext(b.load(at(b, src, i)), i64)
                b.store(b.load(at(b, table, place)), at(b, dst, i))
            return context.get_dummy_value()
        places, parts = load(b, ty, src), [load(b, ty, at(b, table, 64 * i)) for i in range(4)]
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        low, high = (call_intrinsic(b, name, ty, [parts[i], places, parts[i + 1]]) for i in (0, 2))
        store(b, b.select(b.icmp_signed("<", places, const(ty, 0)), high, low), dst)
        return context.get_dummy_value()

    return types.void(args), codegen


@routine(PASS)
def look_up(args, first, end, worker):
    """Bytes by a table of 256.

    Arguments: table, src, dst, count. Pieces are `PIECE` bytes.
    """
    table, src, dst = pointer_at(args, 0), pointer_at(args, 1), pointer_at(args, 2)
    begin, stop = PIECE * first, min(PIECE * end, load_i64(args, 3))
    t, x = numba.carray(table, (256,), np.uint8), numba.carray(src, (stop,), np.uint8)
    out = numba.carray(dst, (stop,), np.uint8)
    whole = (stop - begin) // 64
    for i in range(whole):
        _look_up_64((table, offset(src, begin + 64 * i), offset(dst, begin + 64 * i)))
    for i in range(begin + 64 * whole, stop):
        out[i] = t[x[i]]


def by_table(
    table: np.ndarray, x: np.ndarray, num_threads: int | None = 1, recorder: Recorder | None = None
) -> np.ndarray:
    """Every byte of `x` replaced by the table's; `table` is indexed by the byte's bits. NotImplemented if a
    recorder cannot take it down.
    """
    if numba.config.DISABLE_JIT:
        return table[x.view(np.uint8)]
    y = empty_like(x, table.dtype)
    if y is None:
        if recorder is not None:
            return NotImplemented
        x = np.ascontiguousarray(x)
        y = np.empty(x.shape, table.dtype)
    pieces, time = -(-x.size // PIECE), NANOSECONDS * x.size
    at, held, run = ways(recorder)
    run_shared(look_up, (held(table), at(x), at(y), x.size), pieces, time, num_threads, run)
    return y
