"""A table of 256 bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.checks.values import as_array
from lowgemm.jit.memory import load_u8
from lowgemm.output.base import Stage, cast_dtype
from lowgemm.output.elementwise import elementwise
from lowgemm.output.parameters import ADDRESS, NUMBER
from lowgemm.output.tile_routine import Step


@elementwise(table=ADDRESS, low=NUMBER, high=NUMBER)
def lut(x, table, low, high):
    """table[x - low], x held between `low` and `high`: a byte, which is what is stored, whatever its sign."""
    return load_u8(table, min(max(x, low), high) - low)


@dataclass(frozen=True, eq=False, repr=False)
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

    table: ArrayLike
    input_dtype: DTypeLike = np.uint8
    truncates = True

    def __post_init__(self) -> None:
        table = np.array(as_array(self.table, "table", "256 values"))
        if table.dtype not in (np.uint8, np.int8):
            raise TypeError(f"table: expected dtype uint8 or int8, got {table.dtype}")
        if table.shape != (256,):
            raise ValueError(f"table: expected 256 values, got shape {table.shape}")
        kind = cast_dtype(self.input_dtype, (np.uint8, np.int8), "input_dtype")
        table.flags.writeable = False
        self._set(table=table, input_dtype=kind, result_dtype=table.dtype)

    def step(self) -> Step:
        """One load for each element."""
        info = np.iinfo(self.input_dtype)
        return lut.step(table=self.table.view(np.uint8), low=info.min, high=info.max)
