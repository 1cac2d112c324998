"""The sums as float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.jit.memory import load_f32, load_i32, offset, store_f32
from lowgemm.output.base import Stage, axis_of
from lowgemm.output.parameters import ADDRESS, NUMBER, described, reader
from lowgemm.output.real_scale import signed_scale
from lowgemm.output.tile_routine import Step, tile_routine

_FLOAT_STORE = described(scale=ADDRESS, row_step=NUMBER, col_step=NUMBER)
_read = reader(_FLOAT_STORE)
_AFFINE_STORE = described(
    scale=ADDRESS, row_step=NUMBER, col_step=NUMBER,
    row_scale=ADDRESS, scale_step=NUMBER, bias=ADDRESS, bias_step=NUMBER,
)  # fmt: skip
_read_affine = reader(_AFFINE_STORE)


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


@tile_routine(_AFFINE_STORE)
def store_affine_float(
    tile, ld, rows, cols, row, col, params, sums, factors, lhs_zeros, rhs_zeros, out, row_stride, col_stride
):
    """Store float32(x) * scale * row_scale + bias; each step is rounded."""
    scales, row_step, col_step, row_scales, scale_step, biases, bias_step = _read_affine(params)
    for r in range(rows):
        line, to = offset(tile, 4 * r * ld), offset(out, r * row_stride)
        i = (row + r) * row_step + col * col_step
        of_row = load_f32(row_scales, (row + r) * scale_step)
        for c in range(cols):
            y = np.float32(np.int32(load_i32(line, c))) * load_f32(scales, i + c * col_step)
            store_f32(offset(to, c * col_stride), 0, y * of_row + load_f32(biases, (col + c) * bias_step))


@dataclass(frozen=True, eq=False, repr=False)
class Dequantize(Stage):
    """float32 result: ``float32(x) * float32(scale)``, times a scale of the row, plus a float bias.

    With all of them, the element of row i and column j is
    ``(float32(x) * scale[j]) * row_scale[i] + bias[j]`` in float32, each step rounded. That is what a linear
    layer computes whose rows were quantized one by one.

    Parameters
    ----------
    scale : float or array_like of float
        For all, or one per channel; usually ``lhs_scale * rhs_scale``.
    axis : int
        Which way a vector `scale` runs: 1, one value per column; 0, one per row.
    row_scale : array_like of float, shape (m,), optional
        A second factor, one per row of the result. Then `scale` is a number, or one per column.
    bias : float or array_like of float, optional
        Added at the end: for all, or one per column.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> acc = np.array([[3, -4], [10, 20]], np.int32)
    >>> lowgemm.requantize(acc, lowgemm.Dequantize(0.5))
    array([[ 1.5, -2. ],
           [ 5. , 10. ]], dtype=float32)
    >>> lowgemm.requantize(acc, lowgemm.Dequantize([0.5, 0.25], row_scale=[2, 1], bias=[100, 0]))
    array([[103.,  -2.],
           [105.,   5.]], dtype=float32)
    """

    scale: ArrayLike
    axis: int = 1
    row_scale: ArrayLike | None = None
    bias: ArrayLike | None = None
    channel_fields = ("scale", "row_scale", "bias")
    result_dtype = np.dtype(np.float32)

    def __post_init__(self) -> None:
        self._set(scale=signed_scale(self.scale), axis=axis_of(self.axis))
        if self.row_scale is not None:
            self._set(row_scale=signed_scale(self.row_scale, "row_scale"))
            if not isinstance(self.row_scale, np.ndarray):
                raise TypeError("row_scale: expected a vector with one number per row, got a scalar")
            if self.axis == 0 and isinstance(self.scale, np.ndarray):
                raise ValueError(
                    "row_scale: with axis=0 the vector scale is one per row already; give their product as "
                    "scale"
                )
        if self.bias is not None:
            self._set(bias=signed_scale(self.bias, "bias"))

    def axis_of_field(self, name: str) -> int:
        """`axis` is that of `scale` alone."""
        return {"row_scale": 0, "bias": 1}.get(name, self.axis)

    def step(self) -> Step:
        """Scale and store."""
        scale = np.asarray(self.scale, dtype=np.float32)
        row_step, col_step = int(scale.ndim == 1 and self.axis == 0), int(scale.ndim == 1 and self.axis == 1)
        given = {"scale": scale, "row_step": row_step, "col_step": col_step}
        if self.row_scale is None and self.bias is None:
            return store_float.step(**given)
        # adding -0.0 changes no number, 0.0 would make 0.0 of -0.0
        of_row = np.asarray(1 if self.row_scale is None else self.row_scale, dtype=np.float32)
        bias = np.asarray(-0.0 if self.bias is None else self.bias, dtype=np.float32)
        return store_affine_float.step(
            **given, row_scale=of_row, scale_step=of_row.ndim, bias=bias, bias_step=bias.ndim
        )
