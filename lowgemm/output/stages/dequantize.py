"""The sums as float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowgemm.jit.memory import load_f32, load_i32, offset, store_f32
from lowgemm.output.base import Stage, axis_of
from lowgemm.output.parameters import ADDRESS, NUMBER, described, reader
from lowgemm.output.real_scale import signed_scale
from lowgemm.output.tile_routine import Step, tile_routine

_FLOAT_STORE = described(scale=ADDRESS, row_step=NUMBER, col_step=NUMBER)
_read = reader(_FLOAT_STORE)


@tile_routine(_FLOAT_STORE)
def store_float(
    tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out, row_stride, col_stride
):
    """Store float32(x) * scale.

    It has a loop of its own because it stores floats to the result, not int32 to the tile.
    """
    scales, row_step, col_step = _read(params)
    for r in range(rows):
        line, to = offset(tile, 4 * r * ld), offset(out, r * row_stride)
        i = (row + r) * row_step + col * col_step
        for c in range(cols):
            y = np.float32(np.int32(load_i32(line, c))) * load_f32(scales, i + c * col_step)
            store_f32(offset(to, c * col_stride), 0, y)


@dataclass(frozen=True, eq=False)
class Dequantize(Stage):
    """float32 result: ``float32(x) * float32(scale)``.

    Parameters
    ----------
    scale : float or array_like of float
        For all, or one per channel; usually ``lhs_scale * rhs_scale``.
    axis : int
        Which way a vector runs: 1, one value per column; 0, one per row.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lowgemm.requantize(np.array([[3, -4]], np.int32), lowgemm.Dequantize(0.5))
    array([[ 1.5, -2. ]], dtype=float32)
    """

    scale: Any
    axis: int = 1
    channel_fields = ("scale",)
    result_dtype = np.dtype(np.float32)

    def __post_init__(self) -> None:
        self._set(scale=signed_scale(self.scale), axis=axis_of(self.axis))

    def step(self) -> Step:
        """Scale and store."""
        scale = np.asarray(self.scale, dtype=np.float32)
        row_step, col_step = int(scale.ndim == 1 and self.axis == 0), int(scale.ndim == 1 and self.axis == 1)
        return store_float.step(scale=scale, row_step=row_step, col_step=col_step)
