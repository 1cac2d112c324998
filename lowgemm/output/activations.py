"""Activations on integers: bounds, the logistic function, look-up tables, and functions of the user's own."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowgemm.checks.values import INT32_MAX, as_array, integer
from lowgemm.output.base import Stage
from lowgemm.output.custom import custom_routine, python_function
from lowgemm.output.stages import Clamp, cast_dtype


def relu(zero_point: int = 0) -> Clamp:
    """Bounds of a rectified linear unit: nothing below the integer that stands for 0.0.

    Examples
    --------
    >>> relu(3)
    Clamp(min=3, max=2147483647)
    """
    return Clamp(zero_point, INT32_MAX)


def relu6(scale: float, zero_point: int = 0) -> Clamp:
    """Bounds of min(max(x, 0), 6) for values of the given scale, 6 rounded to the nearest step.

    Examples
    --------
    >>> relu6(0.05, -100)
    Clamp(min=-100, max=20)
    """
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"scale: expected a positive number, got {scale}")
    return Clamp(zero_point, min(zero_point + round(6 / scale), INT32_MAX))


@dataclass(frozen=True, eq=False)
class Logistic(Stage):
    """``1 / (1 + exp(-x))`` of a fixed-point value with `integer_bits`; the result is Q0.31.

    Parameters
    ----------
    integer_bits : int
        Integer bits of x, 0 to 29: x stands for ``x / 2**(31 - integer_bits)``.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> y = lowgemm.requantize(np.array([[0, 2**28]], np.int32), [lowgemm.Logistic(3)])  # of 0.0 and 1.0
    >>> (y / 2**31).round(4)
    array([[0.5   , 0.7311]])
    """

    integer_bits: int

    def __post_init__(self) -> None:
        self._set(integer_bits=integer(self.integer_bits, "integer_bits", 0, 29))


@dataclass(frozen=True, eq=False)
class Lut(Stage):
    """Replace 8-bit values by entries of a table: any activation, at the price of a load.

    Parameters
    ----------
    table : array_like of uint8 or int8, shape (256,)
        Entry i is the result for the value ``low + i``, where low is 0 for uint8 input and -128 for int8.
    input_dtype : dtype
        uint8 or int8: values are clipped to its range first.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> square = (np.arange(256) ** 2 // 255).astype(np.uint8)
    >>> lowgemm.requantize(np.array([[2, 100, 999]], np.int32), [lowgemm.Lut(square)])
    array([[  0,  39, 255]], dtype=uint8)
    """

    table: Any
    input_dtype: Any = np.uint8

    def __post_init__(self) -> None:
        table = np.array(as_array(self.table, "table", "256 values"))
        if table.dtype not in (np.uint8, np.int8):
            raise TypeError(f"table: expected dtype uint8 or int8, got {table.dtype}")
        if table.shape != (256,):
            raise ValueError(f"table: expected 256 values, got shape {table.shape}")
        kind = cast_dtype(self.input_dtype, (np.uint8, np.int8), "input_dtype")
        table.flags.writeable = False
        self._set(table=table, input_dtype=kind, result_dtype=table.dtype)


def _importable(function: Any) -> bool:
    """Whether pickle finds the function again by its module and name."""
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is function


@dataclass(frozen=True, eq=False)
class Custom(Stage):
    """A function of the user's own, compiled by Numba and run on each tile like any other stage.

    Parameters
    ----------
    function : callable
        ``function(acc, row, col, *arrays) -> acc`` on int64 values, compiled by `numba.njit` or plain Python that
        Numba can compile. `row` and `col` are those of the result. What it returns becomes ``int(value)`` modulo
        2**32, floats included.
    arrays : tuple of ndarray
        Passed on to the function: scales per column, tables, anything. They are copied.

    A pickle holds the name of a function of a module, and the code of any other one (a lambda), which then comes back compiled by `numba.njit`.

    Raises
    ------
    TypeError
        If Numba cannot compile the function for these arrays, or it returns no number; the message says why.

    Notes
    -----
    An exception in the function is raised by the call that runs the stage, and its cause names sum, row and column; so
    are a NaN (ValueError), infinity (OverflowError) and an index out of range of an array (IndexError). After it the
    contents of ``out`` are not defined. To raise it, the function is called once more with the same values.

    Functions of the same code, named values included, share one compiled routine. It stays as long as the process,
    with what the function refers to: Numba never frees machine code, about 1 MiB for each different function.

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

    function: Any
    arrays: tuple[Any, ...] = ()

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
        custom_routine(self)

    def __copy__(self) -> Custom:
        return Custom(self.function, self.arrays)

    def __deepcopy__(self, memo: Any) -> Custom:
        return Custom(self.function, self.arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        """A function that other processes cannot import by its name, a lambda say, goes along by its code, as Numba pickles it."""
        function = self.function
        if not hasattr(function, "py_func") and not _importable(function):
            import numba

            function = numba.njit(function)
        return Custom, (function, self.arrays)

    def _items(self) -> tuple[Any, ...]:
        return (self.function, *((a.tobytes(), a.shape, a.dtype.str) for a in self.arrays))
