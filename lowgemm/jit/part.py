"""Decorators of functions that compiled code alone calls, and the compiler of routines.

Numba compiles them by `lowering.py`, which has LLVM work once for a routine with all its parts. Where Numba
has no longer what that needs, they are compiled Numba's usual way, and the first call takes longer.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core.compiler import Compiler

try:
    from lowgemm.jit import lowering
except ImportError:
    lowering = None  # type: ignore[assignment]

#: Numba's compiler for routines.
RoutineCompiler: Any = lowering.RoutineCompiler if lowering else Compiler

_options: dict[str, Any] = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
if lowering:
    _options["pipeline_class"] = lowering.PartCompiler

#: Decorator of functions that compiled code alone calls.
inner = numba.njit(**_options)
#: Likewise for functions that divide floats: by 0 gives infinity or NaN, where Python would raise.
inner_dividing = numba.njit(error_model="numpy", **_options)
