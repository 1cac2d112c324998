"""The result in 8 or 16 bits, clipped to their range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from lowgemm.output.base import Stage, cast_dtype


@dataclass(frozen=True, eq=False, repr=False)
class SaturatingCast(Stage):
    """Clip to the range of uint8, int8 or int16 and store as that.

    Parameters
    ----------
    dtype : dtype
        ``numpy.uint8``, ``numpy.int8`` or ``numpy.int16``.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[-5, 500]], np.int32), [lowgemm.SaturatingCast(np.int8)])
    array([[ -5, 127]], dtype=int8)
    """

    dtype: DTypeLike

    def __post_init__(self) -> None:
        dtype = cast_dtype(self.dtype, (np.uint8, np.int8, np.int16))
        self._set(dtype=dtype, result_dtype=dtype)

    @property
    def bounds(self) -> tuple[int, int]:  # type: ignore[override]
        """The range of the dtype."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)
