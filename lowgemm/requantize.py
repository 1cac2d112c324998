"""The output pipeline on int32 sums that exist already: `requantize`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from lowgemm import reference
from lowgemm.checks.arguments import check_out
from lowgemm.checks.values import as_array, is_masked
from lowgemm.output.apply import TILE_COLS, TILE_ROWS, apply
from lowgemm.output.check import check_pipeline
from lowgemm.output.pipeline import compile_pipeline, raise_failures


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
    target = np.asarray(out)  # a subclass may have an indexing of its own
    target = target[None, :] if a.ndim == 1 else target
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
    table, watches = program.watched(np.array(program.table(), dtype=np.int64), 0)
    routine = apply.ctypes
    tile = np.empty(TILE_ROWS * TILE_COLS, dtype=np.int32)
    for index in np.ndindex(stack_of.shape[:-2]):
        x, y = stack_of[index], target[index]
        routine(
            table.ctypes.data, table.size // 2, x.ctypes.data, *x.strides, *x.shape, y.ctypes.data, *y.strides,
            tile.ctypes.data,
        )  # fmt: skip
        raise_failures(watches)
    return out
