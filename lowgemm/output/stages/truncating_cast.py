"""The low 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from lowgemm.output.base import Stage, cast_dtype


@dataclass(frozen=True, eq=False, repr=False)
class TruncatingCast(Stage):
    """Keep the low 8 bits: ``x mod 256`` as uint8.

    Parameters
    ----------
    dtype : dtype
        ``numpy.uint8``.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[-1, 257]], np.int32), [lowgemm.TruncatingCast()])
    array([[255,   1]], dtype=uint8)
    """

    dtype: DTypeLike = np.uint8
    truncates = True

    def __post_init__(self) -> None:
        dtype = cast_dtype(self.dtype, (np.uint8,))
        self._set(dtype=dtype, result_dtype=dtype)
