"""Linear layers on float inputs: activations quantized on the fly, or only the weights in integers."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.arguments import check_out
from lowgemm.checks.values import INT32_MAX, as_array
from lowgemm.engine.packed_rhs import PackedRhs, pack_rhs
from lowgemm.fixedpoint.rows import INFINITY_BITS, TINY, code_row, largest_magnitude
from lowgemm.gemm import gemm
from lowgemm.jit import disk_cache
from lowgemm.nn import reference
from lowgemm.quantization.affine import real_array
from lowgemm.quantization.folding import per_channel

#: Bytes of int8 rows prepared at a time, so that they are in the L2 cache when the product reads them.
BLOCK_BYTES = 1 << 18
#: Most products of int8 rows (127 at most) and int8 weights that int32 holds; deeper sums are taken in parts.
DEEPEST = INT32_MAX // (127 * 128)


@disk_cache.njit(nogil=True)
def rows_to_int8(x, bits, to, scales, scale_bits):
    """Rows of x, float32, to int8 in `to`, with a scale each in `scales`; how many hold NaN or infinity.

    `bits` and `scale_bits` are views of the same memory as int32.
    """
    bad = 0
    for r in range(x.shape[0]):
        top = largest_magnitude(bits[r])
        if top >= INFINITY_BITS:
            bad += 1
            continue
        scale_bits[r] = top
        largest = scales[r]  # the same memory
        inverse = np.float32(0)
        scales[r] = np.float32(0)
        if largest >= TINY:
            inverse = np.float32(127) / largest
            scales[r] = largest / np.float32(127)
        code_row(x[r], inverse, to[r])
    return bad


@disk_cache.njit(nogil=True)
def finish(acc, row_scale, column_scale, bias, out):
    """``(float32(acc) * column_scale) * row_scale + bias``, each step rounded; an empty bias is none."""
    for r in range(acc.shape[0]):
        s = row_scale[r]
        if bias.size:
            for c in range(acc.shape[1]):
                out[r, c] = (np.float32(acc[r, c]) * column_scale[c]) * s + bias[c]
        else:
            for c in range(acc.shape[1]):
                out[r, c] = (np.float32(acc[r, c]) * column_scale[c]) * s


def dynamic_linear(
    x: ArrayLike,
    weight: ArrayLike,
    weight_scale: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """``x @ weight`` for float x and int8 weights: each row of x is quantized with a scale of its own.

    Parameters
    ----------
    x : array_like of float, shape (..., inputs)
        Taken as float32.
    weight : PackedRhs or array_like of int8, shape (inputs, outputs)
        Symmetric: zero point 0. Pack it once with `lowgemm.pack_rhs`.
    weight_scale : float or array_like of float, shape (outputs,)
        Of the weights.
    bias : array_like of float, shape (outputs,), optional
        Added at the end.
    out : ndarray of float32, shape (..., outputs), optional
        Where to write the result, any strides, no overlap with `x`.
    num_threads : int, optional
        As in `lowgemm.gemm`.

    Returns
    -------
    float32 ndarray, shape (..., outputs)
        ``(float32(sum) * weight_scale) * row_scale + bias``, each step rounded to float32. `out` if that is
        given.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or `x` holds NaN or infinity.

    Notes
    -----
    ``row_scale = max|x| / 127`` and ``q = rint(x * (127 / max|x|))`` in float32, per row ("per token"). Rows
    are taken block by block: one pass finds the range and writes int8, the product reads it from cache, and
    the sums are rescaled while they are in cache.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> w = lowgemm.pack_rhs(np.array([[127, -64], [0, 127]], np.int8))
    >>> dynamic_linear([[1.0, 0.0], [0.0, 200.0]], w, 1 / 127).round(3)
    array([[  1.   ,  -0.504],
           [  0.   , 200.   ]], dtype=float32)
    """
    real = np.ascontiguousarray(real_array(x), dtype=np.float32)
    packed = (
        weight if isinstance(weight, PackedRhs) else as_array(weight, "weight", "a matrix of int8", np.int8)
    )
    if packed.dtype != np.int8 or packed.ndim != 2:
        raise TypeError(_no_weights(packed))
    inputs, outputs = packed.shape
    if real.ndim == 0 or real.shape[-1] != inputs:
        raise ValueError(f"x: expected shape (..., {inputs}) for this weight, got {real.shape}")
    scale = _scales(weight_scale, outputs).astype(np.float32)
    offset = None if bias is None else per_channel(bias, "bias", outputs).astype(np.float32)
    to = None
    if out is not None:
        to = check_out(out, (*real.shape[:-1], outputs), np.dtype(np.float32), {"x": real})
    flat = real.reshape(math.prod(real.shape[:-1]), inputs)  # -1 would not do for a depth of 0
    if not numba.config.DISABLE_JIT:
        result = np.empty((flat.shape[0], outputs), np.float32)
        if to is not None and to.size and to.flags.c_contiguous:
            result = to.reshape(result.shape)
        packed = packed if isinstance(packed, PackedRhs) else pack_rhs(packed)
        _run(flat, packed, scale, np.empty(0, np.float32) if offset is None else offset, result, num_threads)
    else:
        if not np.isfinite(flat).all():
            raise ValueError("x: expected finite numbers")
        result = reference.dynamic_linear(
            flat, packed.to_array() if isinstance(packed, PackedRhs) else packed, scale, offset
        )
    result = result.reshape(*real.shape[:-1], outputs)
    if to is None:
        return result
    if not result.size or result.ctypes.data != to.ctypes.data:
        to[...] = result
    return to


def _no_weights(got: np.ndarray | PackedRhs) -> str:
    advice = (
        "; lowgemm.quantize(weight, axis=1, symmetric=True) gives codes and scales"
        if got.dtype.kind == "f"
        else ""
    )
    return f"weight: expected an int8 matrix, got {got.dtype}, shape {got.shape}{advice}"


def _scales(value: Any, outputs: int) -> np.ndarray:
    a = real_array(value, "weight_scale")
    scale = per_channel(np.full(outputs, a) if a.ndim == 0 else a, "weight_scale", outputs)
    if (scale <= 0).any():
        raise ValueError("weight_scale: expected positive numbers")
    return scale


def _run(
    x: np.ndarray, packed: PackedRhs, scale: np.ndarray, bias: np.ndarray, out: np.ndarray, num_threads: Any
) -> None:
    rows, inputs = x.shape
    block = max(1, min(rows, BLOCK_BYTES // max(inputs, 1)))
    q, scales = np.empty((block, inputs), np.int8), np.empty(block, np.float32)
    # plain sums, without a stage: a stage made for each call would be planned for each call, which costs more
    # than a small product
    acc = np.empty((block, out.shape[1]), np.int32)
    deep = np.zeros(acc.shape, np.int64) if inputs > DEEPEST else acc
    parts = [(slice(0, inputs), packed)]
    if inputs > DEEPEST:
        whole = packed.to_array()
        ends = [slice(k, k + DEEPEST) for k in range(0, inputs, DEEPEST)]
        parts = [(part, pack_rhs(whole[part])) for part in ends]
    bits, scale_bits = x.view(np.int32), scales.view(np.int32)
    for first in range(0, rows, block):
        part = slice(first, min(first + block, rows))
        count = part.stop - first
        if rows_to_int8(x[part], bits[part], q[:count], scales[:count], scale_bits[:count]):
            raise ValueError("x: expected finite numbers")
        if deep is not acc:
            deep[:count] = 0
        for depth, rhs in parts:
            gemm(q[:count, depth], rhs, out=acc[:count], num_threads=num_threads)
            if deep is not acc:
                deep[:count] += acc[:count]
        finish(deep[:count], scales[:count], scale, bias, out[part])


def weight_only_linear(
    x: ArrayLike, weight: ArrayLike, weight_scale: ArrayLike, bias: ArrayLike | None = None
) -> np.ndarray:
    """``(x @ weight) * weight_scale + bias`` in float32: only the weights are kept in 8 bits.

    Parameters
    ----------
    x : array_like of float, shape (..., inputs)
        Taken as float32.
    weight : array_like of int8, shape (inputs, outputs)
        Symmetric: zero point 0.
    weight_scale : float or array_like of float, shape (outputs,)
        Of the weights.
    bias : array_like of float, shape (outputs,), optional
        Added at the end.

    Returns
    -------
    float32 ndarray, shape (..., outputs)

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    Saves memory, not time: columns become float32 a block of 256 KB at a time, and NumPy multiplies.

    Examples
    --------
    >>> import numpy as np
    >>> weight_only_linear([[1.0, 0.5]], np.array([[2], [4]], np.int8), 0.5)
    array([[2.]], dtype=float32)
    """
    real = np.ascontiguousarray(real_array(x), dtype=np.float32)
    w = as_array(weight, "weight", "a matrix of int8", np.int8)
    if w.dtype != np.int8 or w.ndim != 2:
        raise TypeError(_no_weights(w))
    if real.ndim == 0 or real.shape[-1] != w.shape[0]:
        raise ValueError(f"x: expected shape (..., {w.shape[0]}) for this weight, got {real.shape}")
    scale = _scales(weight_scale, w.shape[1]).astype(np.float32)
    out = np.empty((*real.shape[:-1], w.shape[1]), np.float32)
    step = max(1, BLOCK_BYTES // (4 * max(w.shape[0], 1)))
    for first in range(0, w.shape[1], step):
        part = slice(first, first + step)
        np.matmul(real, w[:, part].astype(np.float32), out=out[..., part])
    out *= scale
    if bias is not None:
        out += per_channel(bias, "bias", w.shape[1]).astype(np.float32)
    return out
