"""A function of the user's own."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.output.base import Stage
from lowgemm.output.custom_routine import custom_routine, python_function
from lowgemm.output.tile_routine import Step


def _importable(function: Any) -> bool:
    """Whether pickle finds the function again by its module and name."""
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is function


@dataclass(frozen=True, eq=False, repr=False)
class Custom(Stage):
    """A function of the user's own, compiled by Numba and run on each tile like any other stage.

    Parameters
    ----------
    function : callable
        ``function(acc, row, col, *arrays) -> acc`` on int64 values, compiled by `numba.njit` or plain Python
        that Numba can compile. `row` and `col` are those of the result. What it returns becomes
        ``int(value)`` modulo 2**32, floats included.
    arrays : tuple of ndarray
        Passed on to the function: scales per column, tables, anything. They are copied.

    A pickle holds the name of a function of a module. Of any other function, such as a lambda, it holds the
    code, which comes back compiled by `numba.njit`.

    Raises
    ------
    TypeError
        If Numba cannot compile the function for these arrays, or it returns no number; the message says why.

    Notes
    -----
    The call that runs the stage raises what the function raises, and the cause of the exception names sum,
    row and column. A result of NaN is a ValueError, infinity an OverflowError, and an index out of range of
    an array an IndexError. The contents of ``out`` are then not defined. To raise the exception, the function
    is called once more with the same values.

    Functions of the same code, with the same named values, share one compiled routine. It stays as long as
    the process, with what the function refers to, because Numba never frees machine code. Each different
    function takes about 1 MiB.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> leaky = lowgemm.Custom(lambda acc, row, col: acc if acc > 0 else acc >> 3)
    >>> lowgemm.requantize(np.array([[80, -80]], np.int32), [leaky])
    array([[ 80, -10]], dtype=int32)
    >>> scaled = lowgemm.Custom(lambda acc, row, col, s: acc * s[col], (np.array([2, 3]),))
    >>> lowgemm.requantize(np.array([[5, 5]], np.int32), [scaled])
    array([[10, 15]], dtype=int32)
    """

    function: Callable[..., Any]
    arrays: tuple[ArrayLike, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(python_function(self.function), types.FunctionType):
            raise TypeError(
                "function: expected a function written in Python, compiled by numba.njit or not, "
                f"got {type(self.function).__name__}"
            )
        if not isinstance(self.arrays, tuple) or not all(isinstance(a, np.ndarray) for a in self.arrays):
            raise TypeError("arrays: expected a tuple of NumPy arrays")
        if len(self.arrays) > 4:
            raise ValueError(f"arrays: expected at most 4, got {len(self.arrays)}")
        copies = []
        for a in self.arrays:
            if a.dtype.kind not in "iuf" or a.ndim not in (1, 2):
                raise TypeError(
                    f"arrays: expected numbers in one or two dimensions, got {a.dtype}, {a.ndim}-D"
                )
            copies.append(np.array(a, order="C"))
        self._set(arrays=tuple(copies))
        # Refuses what cannot be compiled. What the function sees outside itself is a constant from here on.
        self._set(_routine=custom_routine(self))

    def __copy__(self) -> Custom:
        return Custom(self.function, self.arrays)

    def __deepcopy__(self, memo: Any) -> Custom:
        return Custom(self.function, self.arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        """A function that other processes cannot import by its name, a lambda say, goes along by its code, as
        Numba pickles it.
        """
        function = self.function
        if not hasattr(function, "py_func") and not _importable(function):
            import numba

            function = numba.njit(function)
        return Custom, (function, self.arrays)

    def _items(self) -> tuple[Any, ...]:
        return (self.function, self._routine, *((a.tobytes(), a.shape, a.dtype.str) for a in self.arrays))

    def step(self) -> Step:
        """The compiled function in the tile loop of all stages."""
        return (self._routine or custom_routine(self)).step(self)  # none was made with NUMBA_DISABLE_JIT
