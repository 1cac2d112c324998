"""LLM.int8(): a linear layer in exact int8 products, with the few columns that hold outliers in float32.

A column of x with a single value of 60 among values around 1 would leave two bits to all others of its row.
So such columns are taken out of the int8 product and added in float32, from the same int8 weights: they need
no second copy.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm.blockwise import job as jobs
from lowgemm.blockwise import reference
from lowgemm.blockwise.job import Job
from lowgemm.blockwise.records import Number, Pointer, dtype_of
from lowgemm.blockwise.vectorwise import as_rows, as_scale_without, as_threshold, code_rows
from lowgemm.checks.arguments import as_num_threads
from lowgemm.checks.arrays import as_floats
from lowgemm.engine.packed_rhs import PackedRhs, pack_rhs
from lowgemm.gemm import gemm
from lowgemm.jit.memory import offset, pointer_field
from lowgemm.jit.routine import routine

#: Bytes of codes and sums of one block of rows: they stay in the last-level cache between the three passes.
BLOCK_BYTES = 8 << 20


class MixedWeight:
    """Weight of `mixed_linear`, quantized and packed once: int8 codes with a scale for each column.

    Parameters
    ----------
    weight : array_like of float32, float64, float16 or bfloat16, shape (inputs, outputs)
        Any strides; a layer that stores (outputs, inputs), as torch's does, gives ``weight.T``. Finite.

    Attributes
    ----------
    packed : PackedRhs
        The codes, for `lowgemm.gemm`.
    scales : ndarray of float32, shape (outputs,)
        Largest absolute value of each column.
    shape : (int, int)
    nbytes : int

    Raises
    ------
    TypeError, ValueError
        If `weight` is not as described.

    Examples
    --------
    >>> w = MixedWeight(np.float32([[1, -2], [0.5, 2]]))
    >>> print(w.codes().tolist(), w.scales)
    [[127, -127], [64, 127]] [1. 2.]
    """

    def __init__(self, weight: ArrayLike) -> None:
        a = as_floats(weight, "weight", "a matrix of floats")
        if a.ndim != 2:
            raise ValueError(f"weight: expected shape (inputs, outputs), got {a.shape}")
        flat, _ = as_rows(a.T, "weight")
        codes, self.scales, _ = code_rows(flat, 0.0, None, "weight")
        self.packed = pack_rhs(codes.T)
        self.shape = a.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.scales.nbytes

    def codes(self) -> np.ndarray:
        """The int8 codes, shape (inputs, outputs)."""
        return self.packed.to_array()

    def __repr__(self) -> str:
        return f"MixedWeight(shape={self.shape}, kernel={self.packed.kernel!r})"


class FinishJob(Job):
    """Sums to the layer's result; a task is a row."""

    __slots__ = ()
    _fields_ = (
        # rows, columns, columns of x, outlier columns
        ("rows", Number), ("cols", Number), ("depth", Number), ("outliers", Number),
        # int32 sums, x, the result; float32 scales of rows and of columns, both with the 1 / 127
        ("sums", Pointer), ("x", Pointer), ("result", Pointer), ("row_scales", Pointer),
        ("col_scales", Pointer),
        # float32 for each column, or none
        ("bias", Pointer),
        # int64 numbers of the outlier columns of x, and the weights' rows for them as float32
        ("places", Pointer), ("weights", Pointer),
    )  # fmt: skip


FINISH = dtype_of(FinishJob)


@routine("ppn")
def finish(job_address, scratch, r):
    """Rescale the sums of row `r`, add outlier columns and bias. See `reference.mixed_linear`."""
    job = numba.carray(job_address, (1,), FINISH)[0]
    cols, depth, count = job.cols, job.depth, job.outliers
    scales = numba.carray(pointer_field(job, "col_scales"), (cols,), np.float32)
    places = numba.carray(pointer_field(job, "places"), (count,), np.int64)
    sums = numba.carray(offset(pointer_field(job, "sums"), 4 * r * cols), (cols,), np.int32)
    x = numba.carray(offset(pointer_field(job, "x"), 4 * r * depth), (depth,), np.float32)
    y = numba.carray(offset(pointer_field(job, "result"), 4 * r * cols), (cols,), np.float32)
    scale = numba.carray(pointer_field(job, "row_scales"), (job.rows,), np.float32)[r]
    for c in range(cols):
        y[c] = np.float32(sums[c]) * scale
    for o in range(count):
        weights = numba.carray(offset(pointer_field(job, "weights"), 4 * o * cols), (cols,), np.float32)
        value = x[places[o]]
        for c in range(cols):
            y[c] += value * weights[c]
    for c in range(cols):
        y[c] *= scales[c]
    if job.bias != 0:
        bias = numba.carray(pointer_field(job, "bias"), (cols,), np.float32)
        for c in range(cols):
            y[c] += bias[c]


def _packed_rows(w: PackedRhs, rows: np.ndarray) -> np.ndarray:
    """Some rows of a packed int8 matrix as float32, without unpacking the others."""
    from lowgemm.engine import packing
    from lowgemm.kernels import by_name

    kernel = by_name(w.kernel)
    depth, n = w.shape
    stored = {"u8": np.uint8, "s8": np.int8, "s16": np.int16}[kernel.rhs_type]
    _, shift = packing.element_map(kernel, "rhs", "i")
    padded = packing.padded_depth_bytes(kernel, depth) // kernel.element_bytes
    x = w.panels.view(stored).reshape(-1, padded // kernel.kr, kernel.lanes, kernel.kr)
    picked = x[:, rows // kernel.kr, :, rows % kernel.kr]  # (rows, panels, lanes)
    return picked.reshape(rows.size, -1)[:, :n].astype(np.float32) + np.float32(shift)


def as_bias(bias: ArrayLike, outputs: int) -> np.ndarray | None:
    """`bias` as a contiguous float32 vector, or None."""
    if bias is None:
        return None
    a = as_floats(bias, "bias", "a vector of numbers")
    if a.dtype.kind not in "iuf":
        raise TypeError(f"bias: expected real numbers, got {a.dtype}")
    if a.shape != (outputs,):
        raise ValueError(f"bias: expected shape ({outputs},), got {a.shape}")
    return np.ascontiguousarray(a, dtype=np.float32)


def mixed_linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    threshold: float = 6.0,
    scale_without: str = "elements",
    num_threads: int | None = None,
) -> np.ndarray:
    """``x @ weight + bias`` by LLM.int8(): int8 products, columns of x with outliers in float32.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16, shape (..., inputs)
        Any strides. Rounded to float32 first. Finite.
    weight : MixedWeight or array_like of float, shape (inputs, outputs)
        Make a `MixedWeight` once for many calls.
    bias : array_like of float, shape (outputs,), optional
    threshold : float
        A column of x with an absolute value of at least this is taken in float32; 0: none is.
    scale_without : "elements" or "columns"
        What does not count for the scale of a row of x: its elements of at least `threshold`, as in
        bitsandbytes, or all its elements in outlier columns, which loses less; `docs/blockwise.md` has a
        table.
    num_threads : int, optional
        At most so many threads.

    Returns
    -------
    ndarray of float32, shape (..., outputs)
        ``(float32(sum) * (row_scale / 127) + x[:, o1] * codes[o1] + ...) * (scales / 127) + bias`` with the
        outlier columns o1, o2, ... ascending, each operation rounded to float32: the same bits on every CPU.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    References
    ----------
    T. Dettmers et al., "LLM.int8()", 2022 (arXiv:2208.07339), section 3.

    Examples
    --------
    >>> w = MixedWeight(np.float32([[1, -2], [0.5, 2]]))
    >>> print(mixed_linear([[1.0, 0.5], [60.0, 1.0]], w))
    [[   1.2539525   -0.992126 ]
     [  60.503937  -118.       ]]
    """
    w = weight if isinstance(weight, MixedWeight) else MixedWeight(weight)
    flat, shape = as_rows(x, "x")
    inputs, outputs = w.shape
    if shape[-1] != inputs:
        raise ValueError(f"x: expected shape (..., {inputs}) for this weight, got {shape}")
    offsets, limit, num_threads = as_bias(bias, outputs), as_threshold(threshold), as_num_threads(num_threads)
    scale_without = as_scale_without(scale_without)
    codes, scales, outliers = code_rows(flat, limit, num_threads, "x", scale_without)
    out = np.empty((flat.shape[0], outputs), np.float32)
    if numba.config.DISABLE_JIT:
        out[...] = reference.mixed_linear(flat, w.codes(), w.scales, offsets, limit, scale_without)
    elif out.size:
        _run(flat, codes, scales / np.float32(127), outliers, w, offsets, out, num_threads)
    return out.reshape(*shape[:-1], outputs)


def _run(
    x: np.ndarray, codes: np.ndarray, row_scales: np.ndarray, outliers: np.ndarray, w: MixedWeight, bias: Any,
    out: np.ndarray, num_threads: int | None,
) -> None:  # fmt: skip
    rows, cols = out.shape
    block = max(1, min(rows, BLOCK_BYTES // (4 * cols)))
    acc = np.empty((block, cols), np.int32)
    col_scales = w.scales / np.float32(127)
    weights = _packed_rows(w.packed, outliers) if outliers.size else np.empty(0, np.float32)
    job = FinishJob(
        cols=cols, depth=x.shape[1], outliers=outliers.size, sums=acc.ctypes.data,
        col_scales=col_scales.ctypes.data, places=outliers.ctypes.data, weights=weights.ctypes.data,
        bias=0 if bias is None else bias.ctypes.data,
    )  # fmt: skip
    for first in range(0, rows, block):
        part = slice(first, min(first + block, rows))
        count = part.stop - first
        gemm(codes[part], w.packed, out=acc[:count], num_threads=num_threads)
        job.rows = job.tasks = count
        job.x, job.result = x[part].ctypes.data, out[part].ctypes.data
        job.row_scales = row_scales[part].ctypes.data
        jobs.run(finish, job, jobs.choose_threads(num_threads, count * cols))
