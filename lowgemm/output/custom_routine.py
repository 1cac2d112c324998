"""A user's function as an output routine, and what becomes of an exception in it.

The routine runs on any thread, called by address, where nobody can catch a Python exception. So each call of
the function is looked at: at the first one that fails the routine notes sum, row and column in its
parameters, which belong to one call of `gemm`, and does no more. When all threads are done, `raise_failure`
looks at what was noted, and calls the function again with it, this time from Python: that raises the
exception itself.

Numba never frees machine code, so functions of the same code share one routine (`code_key.py`), which is
kept. It is cached on disk too, if all that the function refers to is the same in every process.
"""

from __future__ import annotations

import functools
import re
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
from lowgemm.jit.memory import take
from lowgemm.jit.routine import Routine, inner
from lowgemm.output.code_key import code_key, disk_key
from lowgemm.output.elementwise import HEAD, STOPPED, tile_loop
from lowgemm.output.parameters import ADDRESS, NUMBER, Filler, described, reader
from lowgemm.output.tile_routine import SIGNATURE, Step

#: What follows the head of the record: sum, row and column of the first failure. (The head's `stopped` counts
#: failures.)
_FAILURE = {"sum": NUMBER, "row": NUMBER, "col": NUMBER}
SUM, ROW, COL, _WORDS = range(len(HEAD), len(HEAD) + 4)

_NUMBERS = (types.Integer, types.Float, types.Boolean)

_compiled: dict[Any, Any] = {}


def python_function(function: Any) -> Any:
    """The function as plain Python."""
    return getattr(function, "py_func", function)


def _options(function: Any) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    """Signatures (None: any) and options to compile a function with.

    They are those that its `njit` named, and indices are checked.
    """
    if not isinstance(function, Dispatcher):
        return None, {"nopython": True, "boundscheck": True}
    options = {**function.targetoptions, "nopython": True}
    if function.locals:
        options["locals"] = function.locals
    if options.get("boundscheck") is None:
        options["boundscheck"] = True
    signatures = None if function._can_compile else tuple(function.nopython_signatures)
    return signatures, options


def checked(function: Any, **extra: bool) -> Any:
    """The function, to be compiled anew with checked indices.

    An index out of range is then an exception, and not a read of other memory.
    """
    signatures, options = _options(function)
    return numba.jit(signatures and list(signatures), **options, **extra)(python_function(function))


class CustomRoutine(NotCopied):
    """A compiled output routine, and the function in it, to be called from Python.

    Parameters
    ----------
    function : callable
        The user's.
    arrays : tuple of (str, int)
        dtype and number of dimensions of each array that it takes.
    key : str or None
        What the code depends on, the same in every process; None if that cannot be said, and the code stays
        in memory.
    """

    instead = "copy the Custom stage"
    __name__ = "custom"

    def __init__(self, function: Any, arrays: tuple[tuple[str, int], ...], key: str | None) -> None:
        self._function, self._arrays = function, arrays
        # without the wrappers that Python and C would call, which take more than half of the memory
        compiled = checked(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)
        compiled.disk_key = key
        self.description = described(**HEAD, **_FAILURE, **_array_fields(len(arrays)))
        read = _reader(self.description, arrays)
        loop = tile_loop(read, _as_given, _attempted(compiled), False)
        try:
            self.address = Routine(loop, SIGNATURE, on_disk=key is not None).address
        except errors.NumbaError:
            result = _call_type(compiled, arrays).return_type  # or the reason why it has none
            if isinstance(result, _NUMBERS):
                raise
            raise TypeError(f"function: expected it to return an integer or a float, got {result}") from None

    @functools.cached_property
    def call(self) -> Any:
        """The function, compiled to the same results."""
        return checked(self._function)

    def step(self, stage: Any) -> Step:
        """The routine for the arrays of a stage."""
        values: dict[str, Any] = dict.fromkeys((*HEAD, *_FAILURE), 0)
        for i, a in enumerate(stage.arrays):
            rows, cols = (*a.shape, 1)[:2]
            values.update({f"array{i}": a, f"rows{i}": rows, f"cols{i}": cols})
        return Step(self, *Filler(self.description)(values), may_fail=stage)

    def raise_failure(self, stage: Any, record: np.ndarray) -> None:
        """Raise the exception that a call noted in its parameters."""
        acc, row, col = (int(record[name][0]) for name in _FAILURE)
        name = getattr(stage.function, "__name__", "function")
        where = f"sum {acc} at row {row}, column {col}"
        place = f"output: {name}({acc}, {row}, {col}) of a Custom stage failed: {where}"
        try:
            int(self.call(acc, row, col, *stage.arrays))
        except Exception as error:
            raise error from RuntimeError(place)
        raise RuntimeError(f"{place}; called once more it did not fail")


def custom_routine(stage: Any) -> Any:
    """Compiled `CustomRoutine` of a `Custom` stage; stages whose functions have the same code share one.

    Raises
    ------
    TypeError
        If Numba cannot compile the function, or it returns something else than a real number.
    """
    if numba.config.DISABLE_JIT:
        return None
    function, arrays = stage.function, tuple((a.dtype.str, a.ndim) for a in stage.arrays)
    signatures, options = _options(function)
    code = code_key(python_function(function))
    key = (code, signatures, tuple(sorted(map(repr, options.items()))), arrays)
    if key not in _compiled:
        same = disk_key(code, arrays, tuple(sorted(options.items()))) if signatures is None else None
        try:
            _compiled[key] = CustomRoutine(function, arrays, same)
        except errors.NumbaError as error:
            reason = re.sub(r"\x1b\[\d*m", "", str(error)).strip()  # Numba colours it for a terminal
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
    """Call a compiled function of the sum `acc`, its `row` and `col`, and `arrays`: whether it returned, and
    what; an exception in it is dropped.
    """
    sig = function.get_call_type(typingctx, (acc, row, col, *arrays.types), {})
    if not isinstance(sig.return_type, _NUMBERS):
        raise errors.NumbaTypeError(f"function: expected a number, got {sig.return_type}")
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


def _attempted(function: Any) -> Any:
    """What `tile_loop` calls: the function, and a note of its failure."""

    @inner
    def attempt(acc, row, col, given):
        """`given` is what `_reader` gives: a pointer to the parameters, and the arrays."""
        params, arrays = given
        returned, value = _attempt(function, acc, row, col, arrays)
        exists, number = _whole(value)
        if returned == 0 or not exists:
            words = numba.carray(params, (_WORDS,), np.int64)
            if take(words, STOPPED, 1) == 0:
                words[SUM], words[ROW], words[COL] = acc, row, col
            return False, 0
        return True, number

    return attempt


@inner
def _as_given(given, channel):
    """What `tile_loop` picks: nothing differs by channel."""
    return given


def _array_fields(count: int) -> dict[str, np.dtype]:
    kinds = {"array": ADDRESS, "rows": NUMBER, "cols": NUMBER}
    return {f"{name}{i}": kind for i in range(count) for name, kind in kinds.items()}


def _reader(description: np.dtype, arrays: tuple[tuple[str, int], ...]) -> Any:
    """Compiled ``read(params)``: the parameters themselves, to note a failure in, and the arrays that they
    describe.
    """
    fields, make = reader(description, _WORDS), _maker(arrays)

    @inner
    def read(params):
        """`params` is a pointer to a record."""
        return params, make(fields(params))

    return read


def _maker(arrays: tuple[tuple[str, int], ...]) -> Any:
    """A compiled function that makes a tuple of arrays out of address, rows and columns of each."""
    if not arrays:
        return _nothing
    (dtype, ndim), rest = arrays[0], _maker(arrays[1:])
    kind = numba.from_dtype(np.dtype(dtype))

    @inner
    def make_1d(given):
        """`given` is a tuple that begins with pointer, rows and columns of the first array."""
        return (numba.carray(given[0], (given[1],), kind), *rest(given[3:]))

    @inner
    def make_2d(given):
        """Likewise."""
        return (numba.carray(given[0], (given[1], given[2]), kind), *rest(given[3:]))

    return make_2d if ndim == 2 else make_1d


@inner
def _nothing(given):
    """No arrays are left."""
    return ()
