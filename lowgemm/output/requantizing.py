"""The output pipeline on int32 sums that exist already: `requantize`."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from lowgemm import reference
from lowgemm._jit import call_address, compile_c, signature, source_stamp
from lowgemm.arguments import check_out
from lowgemm.memory import as_address, load_i32, load_i64, offset, store_32
from lowgemm.output.pipeline import compile_pipeline
from lowgemm.output.stages import check_pipeline
from lowgemm.values import as_array, is_masked

#: Rows and columns of the tile that goes through the stages at a time: 16 KB, half of L1.
TILE_ROWS, TILE_COLS = 16, 256


def _make_apply(stamp: int) -> Any:
    ld = TILE_COLS

    @compile_c(signature("pnpnnnnpnnp"))
    def apply(stages, count, acc, acc_rs, acc_cs, m, n, out, out_rs, out_cs, tile):
        _ = stamp
        for row in range(0, m, TILE_ROWS):
            rows = min(TILE_ROWS, m - row)
            for col in range(0, n, TILE_COLS):
                cols = min(TILE_COLS, n - col)
                for r in range(rows):
                    line, source = offset(tile, 4 * r * ld), offset(acc, (row + r) * acc_rs + col * acc_cs)
                    if acc_cs == 4:
                        for c in range(cols):
                            store_32(line, c, load_i32(source, c))
                    else:
                        for c in range(cols):
                            store_32(line, c, load_i32(offset(source, c * acc_cs), 0))
                to = as_address(offset(out, row * out_rs + col * out_cs))
                for i in range(count):
                    call_address(
                        load_i64(stages, 2 * i),
                        (
                            as_address(tile), ld, rows, cols, row, col, load_i64(stages, 2 * i + 1), 0, 0, 0, 0,
                            to, out_rs, out_cs,
                        ),
                    )  # fmt: skip

    return apply


@functools.cache
def apply_routine() -> Any:
    """Compiled routine of `requantize`."""
    return _make_apply(source_stamp())


def requantize(acc: Any, output: Any, *, out: np.ndarray | None = None) -> np.ndarray:
    """Put int32 sums through an output pipeline, with the bits that `gemm` gives for it.

    Parameters
    ----------
    acc : array_like of int32, shape (..., m, n) or (n,)
        Sums, any strides.
    output : stage or sequence of stages
        As in `gemm`.
    out : ndarray, optional
        Array to write to: shape of `acc`, dtype of the pipeline, no overlap with `acc`.

    Returns
    -------
    ndarray
        Of the shape of `acc` and the pipeline's dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> acc = np.array([[100, -100, 70000]], np.int32)
    >>> lowgemm.requantize(acc, [lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 1), lowgemm.SaturatingCast(np.int8)])
    array([[ 25, -25, 127]], dtype=int8)
    """
    if is_masked(acc):
        raise TypeError("acc: masked elements have no value; fill them first")
    a = as_array(acc, "acc", "a rectangular array", np.int32)
    if a.dtype.newbyteorder("=") != np.int32:
        raise TypeError(f"acc: expected dtype int32, got {a.dtype}")
    if not a.dtype.isnative or not a.flags.aligned:
        a = a.astype(np.int32)
    if a.ndim == 0:
        raise ValueError("acc: expected at least one dimension, got a scalar")
    stack_of = a[None, :] if a.ndim == 1 else a
    stages, dtype = check_pipeline(output, *stack_of.shape[-2:])
    if out is None:
        out = np.empty(a.shape, dtype=dtype)
    else:
        check_out(out, a.shape, dtype, {"acc": a})
    target = out[None, :] if a.ndim == 1 else out
    if numba.config.DISABLE_JIT:
        target[...] = reference.apply_pipeline(stack_of, stages)
        return out
    if a.size == 0:
        return out
    program = compile_pipeline(
        stages,
        dtype,
        fold_bias=False,
        size=stack_of.shape[-2:],
        contiguous=target.strides[-1] == dtype.itemsize,
    )
    table = np.array(program.table(), dtype=np.int64)
    routine = apply_routine().ctypes
    tile = np.empty(TILE_ROWS * TILE_COLS, dtype=np.int32)
    for index in np.ndindex(stack_of.shape[:-2]):
        x, y = stack_of[index], target[index]
        routine(
            table.ctypes.data, table.size // 2, x.ctypes.data, *x.strides, *x.shape, y.ctypes.data, *y.strides,
            tile.ctypes.data,
        )  # fmt: skip
    return out
