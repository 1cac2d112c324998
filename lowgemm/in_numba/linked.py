"""How compiled code, in memory or from Numba's disk cache, finds the routines of the process that it runs in.

The addresses differ from process to process. So compiled code finds them in `_ADDRESSES` by a symbol of the
linker, and carries a ticket that fills them in when the code is loaded. The ticket also names the sources
that the code was made with: after an upgrade of lowgemm Numba compiles it again.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm import kernels
from lowgemm.engine import drivers
from lowgemm.in_numba import planning
from lowgemm.jit.stamp import source_stamp

_SYMBOL = "lowgemm_table"
#: What the addresses are of: the routine that writes a plan, the one that runs it, `planning.KERNEL` for
#: arrays.
PLAN_ADDRESS, SINGLE_ADDRESS, KERNEL_ADDRESS = range(3)
_ADDRESSES = np.zeros(8, dtype=np.int64)


def init() -> None:
    """Make `gemm` and `PackedRhs` known to Numba (the ``numba_extensions`` entry point). Compiles nothing."""
    llvm.add_symbol(_SYMBOL, _ADDRESSES.ctypes.data)


def fill_linked() -> None:
    """Compile, or load, what the addresses are of."""
    if _ADDRESSES[PLAN_ADDRESS] == 0:
        kernel = planning.kernel_record(kernels.selected())
        _ADDRESSES[KERNEL_ADDRESS], _ADDRESSES[SINGLE_ADDRESS] = kernel.ctypes.data, drivers.single.address
        _ADDRESSES[PLAN_ADDRESS] = planning.write_plan.address


class _Ticket:
    """Rides in compiled code; unpickling it (code loaded from a disk cache) fills them in."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _ticket, (source_stamp("in_numba"),)


def _ticket(stamp: int) -> _Ticket:
    if stamp != source_stamp("in_numba"):  # OSError: Numba takes the cached code for lost and compiles again
        raise OSError("lowgemm: this code was compiled with other sources of lowgemm")
    init()
    fill_linked()
    return _TICKET


_TICKET = _Ticket()


@intrinsic(prefer_literal=True)
def linked(typingctx, index):
    """Element `index` (a constant) of `_ADDRESSES`, which the linker finds."""
    at = index.literal_value

    def codegen(context, builder, sig, values):
        module, i64 = builder.module, ir.IntType(64)
        consts = context.environment.consts
        if _TICKET not in consts:
            consts.append(_TICKET)
        context.declare_env_global(module, context.get_env_name(context.fndesc))
        table = module.globals.get(_SYMBOL)
        if table is None:
            table = ir.GlobalVariable(module, ir.ArrayType(i64, _ADDRESSES.size), _SYMBOL)
        zero = ir.Constant(ir.IntType(32), 0)
        return builder.load(builder.gep(table, [zero, ir.Constant(ir.IntType(32), at)]))

    return types.int64(index), codegen
