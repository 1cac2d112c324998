"""Vector-wise int8: one scale for each row, outliers left out; `reference.vectorwise` is the definition."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm.blockwise import job as jobs
from lowgemm.blockwise import reference
from lowgemm.blockwise.coded import FLOATS
from lowgemm.blockwise.job import Job
from lowgemm.blockwise.records import Number, Pointer, dtype_of
from lowgemm.checks.arguments import as_num_threads
from lowgemm.checks.arrays import as_floats
from lowgemm.checks.values import number
from lowgemm.fixedpoint.rows import INFINITY_BITS, TINY, code_row, largest_magnitude
from lowgemm.jit.memory import offset, pointer_field
from lowgemm.jit.routine import routine

#: What `scale_without` may be.
SCALE_WITHOUT = ("elements", "columns")


class RowsJob(Job):
    """Rows to codes; a task is some rows. If a row is not finite, `bad` is its number + 1."""

    __slots__ = ()
    _fields_ = (
        # rows, elements of a row, rows of a task
        ("count", Number), ("size", Number), ("chunk", Number),
        # float32 rows, their codes, a float32 scale for each, a byte for each column: whether it has an
        # outlier
        ("values", Pointer), ("codes", Pointer), ("scales", Pointer), ("flags", Pointer),
        # bits of the float32 from which on an element is an outlier, or 0; whether this pass only marks the
        # columns that have an outlier; whether no element of such a column counts for the scales
        ("threshold", Number), ("only_find", Number), ("whole", Number),
    )  # fmt: skip


ROWS = dtype_of(RowsJob)


@routine("ppn")
def code_task(job_address, scratch, task):
    """Mark the columns with an outlier, or write codes and scales of the rows of a task."""
    job = numba.carray(job_address, (1,), ROWS)[0]
    count, size, chunk = job.count, job.size, job.chunk
    scales = numba.carray(pointer_field(job, "scales"), (count,), np.float32)
    scale_bits = numba.carray(pointer_field(job, "scales"), (count,), np.int32)
    flags = numba.carray(pointer_field(job, "flags"), (size,), np.uint8)
    threshold, outliers = np.int32(job.threshold), job.threshold != 0
    for r in range(task * chunk, min((task + 1) * chunk, count)):
        at = offset(pointer_field(job, "values"), 4 * r * size)
        x, bits = numba.carray(at, (size,), np.float32), numba.carray(at, (size,), np.int32)
        if job.only_find != 0:
            # several workers may write here at once, all of them the same value
            for k in range(size):
                if bits[k] & np.int32(0x7FFFFFFF) >= threshold:
                    flags[k] = np.uint8(1)
            continue
        largest = np.int32(0)
        if outliers:
            seen = np.int32(0)
            if job.whole != 0:
                for k in range(size):
                    b = bits[k] & np.int32(0x7FFFFFFF)
                    seen = max(seen, b)
                    largest = max(largest, b if flags[k] == 0 else np.int32(0))
            else:
                for k in range(size):
                    b = bits[k] & np.int32(0x7FFFFFFF)
                    seen = max(seen, b)
                    largest = max(largest, b if b < threshold else np.int32(0))
        else:
            seen = largest = largest_magnitude(bits)
        if seen >= INFINITY_BITS:
            job.bad = r + 1
            continue
        scale_bits[r] = largest
        inverse = np.float32(0)
        if scales[r] >= TINY:
            inverse = (np.float32(1) / scales[r]) * np.float32(127)
        else:
            scales[r] = np.float32(0)
        codes = numba.carray(offset(pointer_field(job, "codes"), r * size), (size,), np.int8)
        if outliers:
            for k in range(size):
                codes[k] = np.int32(np.rint(x[k] * inverse)) if flags[k] == 0 else np.int32(0)
        else:
            code_row(x, inverse, codes)


def as_rows(x: ArrayLike, name: str, least: int = 0) -> tuple[np.ndarray, tuple[int, ...]]:
    """A float array as contiguous float32 rows (count, size), and its shape."""
    a = as_floats(x, name, "a rectangular array")
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise TypeError(f"{name}: masked elements have no code; fill them first")
    if a.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"{name}: expected dtype float32, float64, float16 or bfloat16, got {a.dtype}")
    if a.ndim < max(least, 1):
        raise ValueError(f"{name}: expected at least {max(least, 1)} dimensions, got {a.ndim}")
    if a.dtype == np.float32:
        flat = np.ascontiguousarray(a, dtype=np.float32)
    else:
        with np.errstate(over="ignore"):  # refused as infinity
            flat = np.ascontiguousarray(a, dtype=np.float32)
    if not flat.flags.aligned:
        flat = flat.copy()
    return flat.reshape(math.prod(a.shape[:-1]), a.shape[-1]), a.shape


def as_threshold(value: Any) -> float:
    """An outlier threshold, rounded to float32: a finite number from 0 up; 0 means none."""
    found = number(value, "threshold")
    if not math.isfinite(found) or found < 0:
        raise ValueError(f"threshold: expected a finite number from 0 up, got {value}")
    with np.errstate(over="ignore", under="ignore"):  # beyond float32 it is infinity: nothing reaches it
        rounded = float(np.float32(found))
    # a tiny threshold must not become 0, because 0 means no threshold
    return rounded if rounded or not found else float(np.finfo(np.float32).smallest_subnormal)


def as_scale_without(value: Any) -> str:
    """`scale_without` if it is one of the two words."""
    if not isinstance(value, str):
        raise TypeError(f"scale_without: expected 'elements' or 'columns', got {type(value).__name__}")
    if value not in SCALE_WITHOUT:
        raise ValueError(f"scale_without: expected 'elements' or 'columns', got {value!r:.80}")
    return value


def code_rows(
    flat: np.ndarray,
    threshold: float,
    num_threads: int | None,
    name: str,
    scale_without: str = "elements",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and outlier columns of checked rows; ValueError if they are not finite."""
    count, size = flat.shape
    if flat.size == 0 or numba.config.DISABLE_JIT:
        if not np.isfinite(flat).all():
            raise ValueError(f"{name}: expected finite numbers (of float32), got NaN or infinity")
        return reference.vectorwise(flat, threshold, scale_without)
    codes, scales = np.empty((count, size), np.int8), np.empty(count, np.float32)
    flags = np.zeros(size, np.uint8)
    chunk = max(1, jobs.ELEMENTS_PER_TASK // size)
    job = RowsJob(
        count=count, size=size, chunk=chunk, tasks=-(-count // chunk), values=flat.ctypes.data,
        codes=codes.ctypes.data, scales=scales.ctypes.data, flags=flags.ctypes.data,
        threshold=int(np.float32(threshold).view(np.int32)),
        whole=scale_without == "columns",
    )  # fmt: skip
    workers = jobs.choose_threads(num_threads, flat.size)
    if threshold:
        job.only_find = True
        jobs.run(code_task, job, workers)
        job.only_find = False
    jobs.run(code_task, job, workers)
    if job.bad:
        raise ValueError(
            f"{name}: expected finite numbers (of float32), got NaN or infinity in row {job.bad - 1}"
        )
    return codes, scales, np.flatnonzero(flags)


def quantize_vectorwise(
    x: ArrayLike, *, threshold: float = 0.0, scale_without: str = "elements", num_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Int8 codes of an array with one scale for each row, columns with outliers left out.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16, shape (..., size)
        Any strides. Rounded to float32 first. Finite.
    threshold : float
        An element with an absolute value of at least this is an outlier, and its column an outlier column:
        the codes of the whole column are 0. With 0 there are none.
    scale_without : "elements" or "columns"
        What does not count for the scale of a row: its outliers (as in bitsandbytes, whose scales are the
        same bits), or all its elements in outlier columns, which makes the scales smaller or the same.
    num_threads : int, optional
        At most so many threads.

    Returns
    -------
    codes : ndarray of int8, shape (..., size)
        ``rint(x * (1 / scale * 127))``, each step in float32, ties to even.
    scales : ndarray of float32, shape (...)
        Largest absolute value that counts in each row; 0 if that is below 2**-119, and the codes too.
    outliers : ndarray of int64
        The outlier columns, ascending.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    References
    ----------
    T. Dettmers et al., "LLM.int8()", 2022 (arXiv:2208.07339), sections 3.1 and 3.2.

    Examples
    --------
    >>> x = np.float32([[1, -0.5, 8], [0, 2, 4]])
    >>> codes, scales, outliers = quantize_vectorwise(x, threshold=6)
    >>> print(codes.tolist(), scales, outliers)
    [[127, -64, 0], [0, 64, 0]] [1. 4.] [2]
    >>> print(quantize_vectorwise(x, threshold=6, scale_without="columns")[1])
    [1. 2.]
    """
    flat, shape = as_rows(x, "x")
    codes, scales, outliers = code_rows(
        flat, as_threshold(threshold), as_num_threads(num_threads), "x", as_scale_without(scale_without)
    )
    return codes.reshape(shape), scales.reshape(shape[:-1]), outliers
