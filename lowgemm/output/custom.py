"""A user's function as an output routine, and what becomes of an exception in it.

The routine runs on any thread, called by address, where nobody can catch a Python exception. So each call of the function is looked
at: at the first one that fails the routine notes sum, row and column in words before its parameters (`STATUS`), which belong to one
call of `gemm`, and does no more. When all threads are done, `raise_failure` looks at the words, and calls the function again with what
was noted, this time from Python: that raises the exception itself.

The routine is compiled in memory only: a closure over another compiled function never hits Numba's disk cache. Numba never frees
machine code, so functions of the same code share one routine (`code_key.py`), which is kept.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import load_i32, load_i64, offset, pointer_at, store_32, take
from lowgemm.output.code_key import code_key

#: Words before the parameters: how often the function failed, and sum, row and column of the first time.
FAILED, SUM, ROW, COL, STATUS = range(5)

_compiled: dict[Any, Any] = {}


def python_function(function: Any) -> Any:
    """The function as plain Python, for the reference."""
    return getattr(function, "py_func", function)


def _options(function: Any) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    """Signatures (None: any) and options to compile a function with: those that its `njit` named, and checked indices."""
    if not isinstance(function, Dispatcher):
        return None, {"nopython": True, "boundscheck": True}
    options = {**function.targetoptions, "nopython": True}
    if function.locals:
        options["locals"] = function.locals
    if options.get("boundscheck") is None:
        options["boundscheck"] = True
    signatures = None if function._can_compile else tuple(function.nopython_signatures)
    return signatures, options


def checked(function: Any, **more: bool) -> Any:
    """The function to be compiled anew, so that an index out of range is an exception and not a read of other memory."""
    signatures, options = _options(function)
    return numba.jit(signatures and list(signatures), **options, **more)(python_function(function))


class Routine(NotCopied):
    """A compiled output routine, and the function in it, to be called from Python.

    Parameters
    ----------
    function : callable
        The user's.
    arrays : tuple of (str, int)
        dtype and number of dimensions of each array that it takes.
    """

    instead = "copy the stage, which finds or compiles it"

    def __init__(self, function: Any, arrays: tuple[tuple[str, int], ...]) -> None:
        self._function = function
        # without its ways in from Python and C: less than half of the memory
        compiled = checked(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)
        result = _call_type(compiled, arrays).return_type
        if not isinstance(result, (types.Integer, types.Float, types.Boolean)):
            raise TypeError(f"function: expected it to return an integer or a float, got {result}")
        self._compiled = _make(compiled, arrays)
        self.address = self._compiled.address

    @functools.cached_property
    def call(self) -> Any:
        """The function, compiled to the same results."""
        return checked(self._function)


def custom_routine(stage: Any) -> Any:
    """Compiled `Routine` of a `Custom` stage; stages whose functions have the same code share one.

    Raises
    ------
    TypeError
        If Numba cannot compile the function, or it returns something else than a real number.
    """
    if numba.config.DISABLE_JIT:
        return None
    function, arrays = stage.function, tuple((a.dtype.str, a.ndim) for a in stage.arrays)
    signatures, options = _options(function)
    key = (code_key(python_function(function)), signatures, tuple(sorted(map(repr, options.items()))), arrays)
    if key not in _compiled:
        try:
            _compiled[key] = Routine(function, arrays)
        except errors.NumbaError as error:
            reason = str(error).strip()
            raise TypeError(
                f"function: Numba cannot compile it as (acc, row, col, *arrays): {reason}"
            ) from None
    return _compiled[key]


def _call_type(function: Any, arrays: tuple[tuple[str, int], ...]) -> Any:
    """Signature of a call of the function in the routine."""
    kinds = [types.Array(numba.from_dtype(np.dtype(dtype)), ndim, "C") for dtype, ndim in arrays]
    return numba.typeof(function).get_call_type(
        cpu_target.typing_context, (types.int64, types.int64, types.int64, *kinds), {}
    )


@intrinsic
def _attempt(typingctx, function, acc, row, col, arrays):
    """Call a compiled function: whether it returned, and what; an exception in it is dropped."""
    sig = function.get_call_type(typingctx, (acc, row, col, *arrays.types), {})
    overload = function.dispatcher.overloads[tuple(sig.args)]

    def codegen(context, builder, signature, values):
        given = [*values[1:4], *cgutils.unpack_tuple(builder, values[4])]
        kinds = [*signature.args[1:4], *signature.args[4].types]
        given = [context.cast(builder, v, a, b) for v, a, b in zip(given, kinds, sig.args, strict=True)]
        context.active_code_library.add_linking_library(overload.library)
        status, value = context.call_internal_no_propagate(builder, overload.fndesc, sig, given)
        with builder.if_then(status.is_python_exc, likely=False):  # set by code in object mode
            api = context.get_python_api(builder)
            lock = api.gil_ensure()
            api.err_clear()
            api.gil_release(lock)
        returned = builder.zext(status.is_ok, ir.IntType(8))
        return context.make_tuple(builder, signature.return_type, [returned, value])

    return types.Tuple((types.uint8, sig.return_type))(function, acc, row, col, arrays), codegen


def _whole(value: Any) -> Any:
    """Whether a number has an int(), and that modulo 2**64 (or, of a large float, 2**32) as int64."""


@numba.extending.overload(_whole)
def _whole_overload(value):
    if isinstance(value, types.Float):

        def impl(value):
            wide = np.float64(value)
            if abs(wide) < 9223372036854775808.0:
                return True, np.int64(wide)
            if wide - wide == 0.0:  # finite; the remainder is exact
                return True, np.int64(np.fmod(wide, 4294967296.0))
            return False, np.int64(0)

        return impl
    return lambda value: (True, np.int64(value))


def _make(function: Any, arrays: tuple[tuple[str, int], ...]) -> Any:
    from lowgemm.output.routines import SIGNATURE

    reader = _reader(arrays)

    @numba.cfunc(SIGNATURE, nopython=True)
    def custom(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs):
        if load_i64(params, FAILED) != 0:
            return
        given = reader(offset(params, 8 * STATUS))
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            for c in range(cols):
                acc = load_i32(line, c)
                returned, value = _attempt(function, acc, row + r, col + c, given)
                exists, number = _whole(value)
                if returned == 0 or not exists:
                    status = numba.carray(params, (STATUS,), np.int64)
                    if take(status, FAILED, 1) == 0:
                        status[SUM], status[ROW], status[COL] = acc, row + r, col + c
                    return
                store_32(line, c, number)

    return custom


@numba.njit
def _shape(params, i):
    return load_i64(params, 3 * i + 1), load_i64(params, 3 * i + 2)


@functools.cache
def _array_reader(dtype: str, ndim: int, i: int) -> Any:
    """A compiled function that makes array number `i` out of the parameters."""
    kind = numba.from_dtype(np.dtype(dtype))
    if ndim == 2:

        @numba.njit
        def read(params):
            return numba.carray(pointer_at(params, 3 * i), _shape(params, i), kind)

    else:

        @numba.njit
        def read(params):
            return numba.carray(pointer_at(params, 3 * i), (_shape(params, i)[0],), kind)

    return read


@functools.cache
def _reader(arrays: tuple[tuple[str, int], ...]) -> Any:
    """A compiled function that makes all arrays out of the parameters: one for all functions with such arrays."""
    one = [_array_reader(dtype, ndim, i) for i, (dtype, ndim) in enumerate(arrays)]
    if not one:
        return numba.njit(lambda params: ())
    r0 = one[0]
    if len(one) == 1:
        return numba.njit(lambda params: (r0(params),))
    r1 = one[1]
    if len(one) == 2:
        return numba.njit(lambda params: (r0(params), r1(params)))
    r2 = one[2]
    if len(one) == 3:
        return numba.njit(lambda params: (r0(params), r1(params), r2(params)))
    r3 = one[3]
    return numba.njit(lambda params: (r0(params), r1(params), r2(params), r3(params)))


def custom_params(stage: Any) -> list[int]:
    """Status words, then address and shape of each array."""
    flat = [0] * STATUS
    for a in stage.arrays:
        flat += [a.ctypes.data, a.shape[0], a.shape[1] if a.ndim == 2 else 1]
    return flat


def raise_failure(routine: Routine, stage: Any, params: np.ndarray) -> None:
    """Raise the exception that a call noted in the status words of its parameters, if it did."""
    if not params[FAILED]:
        return
    acc, row, col = (int(v) for v in params[[SUM, ROW, COL]])
    name = getattr(stage.function, "__name__", "function")
    place = (
        f"output: {name}({acc}, {row}, {col}) of a Custom stage failed: sum {acc} at row {row}, column {col}"
    )
    try:
        int(routine.call(acc, row, col, *stage.arrays))
    except Exception as error:
        raise error from RuntimeError(place)
    raise RuntimeError(f"{place}; called once more it did not fail")
