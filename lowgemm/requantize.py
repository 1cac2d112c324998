"""The output pipeline on int32 sums that exist already: `requantize`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm import reference
from lowgemm.checks.arguments import check_out
from lowgemm.checks.values import as_array, is_masked
from lowgemm.engine.seen import Seen, remember_list, stages_key
from lowgemm.engine.sums import ReadySums
from lowgemm.output.base import Stage
from lowgemm.output.check import check_pipeline

_calls = Seen()


def requantize(
    acc: ArrayLike, output: Stage | Sequence[Stage] | None, *, out: np.ndarray | None = None
) -> np.ndarray:
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
    >>> half = lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 1)
    >>> lowgemm.requantize(acc, [half, lowgemm.SaturatingCast(np.int8)])
    array([[ 25, -25, 127]], dtype=int8)
    """
    # as in `gemm`: what was found right for one call of a kind is right for the next
    try:
        key = (
            stages_key(output), type(acc), acc.shape, acc.strides, acc.dtype,
            None if out is None else (type(out), out.shape, out.strides, out.dtype),
        )  # fmt: skip
        seen = _calls.get(key)
    except (AttributeError, TypeError):
        key = seen = None
    if seen is not None:
        result = seen.run(acc, out)
        if result is not None:
            return result
    return _checked(key, acc, output, out)


def _checked(key: Any, acc: Any, output: Any, out: Any) -> Any:
    """A call of a kind that was not seen before, or whose values need a closer look; its kind is
    remembered.
    """
    if is_masked(acc):
        raise TypeError("acc: masked elements have no value; fill them first")
    a = as_array(acc, "acc", "a rectangular array", np.int32)
    if a.dtype.newbyteorder("=") != np.int32:
        advice = "; .astype(numpy.int32), if all values fit" if a.dtype.kind in "iu" else ""
        raise TypeError(f"acc: expected dtype int32, got {a.dtype}{advice}")
    if not a.dtype.isnative or not a.flags.aligned:
        a = a.astype(np.int32)
    if a.ndim == 0:
        raise ValueError("acc: expected at least one dimension, got a scalar")
    plain = (
        np.asarray(out) if isinstance(out, np.ndarray) else out
    )  # a subclass may have an indexing of its own
    if a is not acc or plain is not out:
        result = requantize(a, output, out=plain)
        return result if out is None else out
    sums = a[None, :] if a.ndim == 1 else a
    stages, dtype = check_pipeline(output, *sums.shape[-2:])
    if out is None:
        out = np.empty(a.shape, dtype=dtype)
    else:
        check_out(out, a.shape, dtype, {"acc": a})
    target = out[None, :] if a.ndim == 1 else out
    if numba.config.DISABLE_JIT:
        target[...] = reference.apply_pipeline(sums, stages)
        return out
    if a.size == 0:
        return out
    ready = ReadySums(stages, sums, target, a.shape)
    ready.run(a, out)
    if key is not None:
        _calls.add((stages_key(stages), *key[1:]), ready)  # as in `gemm`
        remember_list(output, stages)
    return out
