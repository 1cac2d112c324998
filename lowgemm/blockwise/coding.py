"""`quantize_blockwise` and `dequantize_blockwise`: check, hand the blocks to the compiled routines, return.

Next file to open: `routines.py`, what happens to a block; `codebook.py`, how the nearest value is found.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.blockwise import job as jobs
from lowgemm.blockwise import reference, routines
from lowgemm.blockwise.codebook import CodeBook, as_codebook
from lowgemm.blockwise.coded import FLOATS, BlockwiseArray, code_bytes, float_dtype, is_packed
from lowgemm.checks.arguments import as_num_threads, check_out
from lowgemm.checks.arrays import as_floats
from lowgemm.checks.values import flag, integer, is_masked

#: Blocks of nested scales, as in QLoRA.
NESTED_BLOCKSIZE = 256


def quantize_blockwise(
    x: ArrayLike,
    code: str | CodeBook | ArrayLike = "dynamic",
    *,
    blocksize: int | None = None,
    nested: bool = False,
    nested_blocksize: int = NESTED_BLOCKSIZE,
    out: BlockwiseArray | None = None,
    num_threads: int | None = None,
) -> BlockwiseArray:
    """Code an array block by block: each block has a scale of its own, its largest absolute value.

    A code is the index of the book's value nearest to ``x / scale``, taken as real numbers; the lower index
    on a tie. In a block of zeros all codes are that of the value nearest to 0. The result does not depend on
    the threads.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16
        Any shape and strides. Rounded to float32 first. Finite.
    code : CodeBook, str or array_like
        A book, its values, or a name: "dynamic", "dynamic_unsigned", "linear", "linear_unsigned", "fp8_e4m3",
        "fp8_e5m2" (8 bits), "nf4", "fp4", "af4", "int4" (4 bits). A book of at most 16 values gives 4-bit
        codes, two in a byte.
    blocksize : int, optional
        Elements of a block, at least 1; the default is 256, and 64 for 4-bit codes.
    nested : bool
        Code the scales too: their mean is taken off, the rest becomes 8-bit "dynamic" code.
    nested_blocksize : int
        Block size of the coded scales.
    out : BlockwiseArray, optional
        Result of an earlier call with the same book, block size and shape, without nested scales: its memory
        is written again, and it is returned.
    num_threads : int, optional
        At most so many threads.

    Returns
    -------
    BlockwiseArray

    Raises
    ------
    TypeError
        If `x` is not real floating-point numbers.
    ValueError
        If `x` has NaN or infinity, or a float64 beyond the range of float32; or if an argument is out of
        range. Nothing has been written to `out` then.

    References
    ----------
    T. Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2021 (arXiv:2110.02861), section 2.1;
    for nested scales "QLoRA", 2023 (arXiv:2305.14314), section 3.

    Examples
    --------
    >>> x = np.float32([0.1, -0.2, 0.0, 400.0])
    >>> q = quantize_blockwise(x, blocksize=2)
    >>> print(q.scales, dequantize_blockwise(q))
    [2.e-01 4.e+02] [ 1.0015625e-01 -1.9859375e-01  0.0000000e+00  4.0000000e+02]
    """
    book = as_codebook(code)
    flat, shape, dtype = _as_flat(x)
    packed = is_packed(book)
    default = 64 if packed else 256
    blocksize = integer(default if blocksize is None else blocksize, "blocksize", 1, 2**62)
    nested_blocksize = integer(nested_blocksize, "nested_blocksize", 1, 2**62)
    num_threads, nested = as_num_threads(num_threads), flag(nested, "nested")
    if out is not None:
        _check_reuse(out, book, blocksize, shape, nested, flat)
        refuse_unfinite(flat, "x", num_threads)
        codes, scales = out.codes, out.scales
    else:
        codes = np.empty(code_bytes(flat.size, True) if packed else shape, dtype=np.uint8)
        scales = np.empty(-(-flat.size // blocksize), dtype=np.float32)
    _quantize(flat, book, blocksize, codes, scales, num_threads)
    if out is not None:
        return out
    if not nested:
        return BlockwiseArray(codes, scales, blocksize, book, shape, dtype)
    offset = np.float32(scales.mean(dtype=np.float64)) if scales.size else np.float32(0)
    coded = quantize_blockwise(scales - offset, blocksize=nested_blocksize, num_threads=num_threads)
    return BlockwiseArray(codes, coded, blocksize, book, shape, dtype, float(offset))


def dequantize_blockwise(
    q: BlockwiseArray,
    *,
    dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Decode: ``value of the code * scale of its block``, one float32 multiplication for each element.

    Parameters
    ----------
    q : BlockwiseArray
    dtype : dtype, optional
        float32, float64 or float16; the default is that of the array that was coded. float16 rounds once
        more.
    out : ndarray, optional
        Where to put the result: of the same shape and of that dtype, any strides.
    num_threads : int, optional
        At most so many threads.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    Examples
    --------
    >>> q = quantize_blockwise(np.float32([[1, -0.7], [0.5, 0]]), "nf4")
    >>> print(dequantize_blockwise(q))
    [[ 1.         -0.6961928 ]
     [ 0.44070983  0.        ]]
    """
    if not isinstance(q, BlockwiseArray):
        raise TypeError(f"q: expected a BlockwiseArray, got {type(q).__name__}")
    if dtype is not None or out is None:
        dtype = float_dtype(q.dtype if dtype is None else dtype)
    else:
        dtype = float_dtype(getattr(out, "dtype", q.dtype), "out")
    num_threads = as_num_threads(num_threads)
    if out is not None:
        inputs = {"q.codes": q.codes}
        if not q.nested:
            inputs["q.scales"] = q.scales
        check_out(out, q.shape, dtype, inputs)
    direct = out is not None and out.dtype == np.float32 and out.flags.c_contiguous
    values = out if direct else np.empty(q.shape, dtype=np.float32)
    _dequantize(q, block_scales(q), values, num_threads)
    if direct:
        return values
    if out is None:
        return values.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        out[...] = values
    return out


def block_scales(q: BlockwiseArray) -> np.ndarray:
    """Scale of each block, decoded if it is nested.

    Parameters
    ----------
    q : BlockwiseArray

    Returns
    -------
    ndarray of float32, shape (q.blocks,)

    Examples
    --------
    >>> print(block_scales(quantize_blockwise(np.float32([1, 2, 3]), blocksize=2)))
    [2. 3.]
    """
    if not isinstance(q, BlockwiseArray):
        raise TypeError(f"q: expected a BlockwiseArray, got {type(q).__name__}")
    if not q.nested:
        return q.scales
    return dequantize_blockwise(q.scales, dtype=np.float32) + np.float32(q.offset)


def refuse_unfinite(flat: np.ndarray, name: str, num_threads: int | None, limit: float = np.inf) -> None:
    """ValueError if a float32 vector has NaN, infinity, or an absolute value of at least `limit`."""
    if not flat.size:
        return
    if numba.config.DISABLE_JIT:
        bits = int((flat.view(np.int32) & 0x7FFFFFFF).max())
    else:
        size = jobs.ELEMENTS_PER_TASK
        largest = np.empty(-(-flat.size // size), dtype=np.float32)
        workers = jobs.choose_threads(num_threads, flat.size)
        job = routines.CodingJob(values=flat.ctypes.data, scales=largest.ctypes.data)
        jobs.divide(job, flat.size, size)
        jobs.run(routines.largest, job, workers)
        bits = int(largest.view(np.int32).max())
    if bits >= int(np.float32(limit).view(np.int32)):
        raise ValueError(f"{name}: {_expected(bits, limit)}")


def _expected(bits: int, limit: float) -> str:
    if bits >= routines.INFINITY_BITS:
        return "expected finite numbers (of float32), got NaN or infinity"
    return f"expected absolute values below {limit:g}, got {np.int32(bits).view(np.float32):g}"


def _as_flat(x: Any) -> tuple[np.ndarray, tuple[int, ...], np.dtype]:
    """Elements in C order as contiguous float32, and the shape and dtype of `x`."""
    a = as_floats(x, "x", "a rectangular array")
    if is_masked(x):
        raise TypeError("x: masked elements have no code; fill them first")
    if a.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"x: expected dtype float32, float64, float16 or bfloat16, got {a.dtype}")
    with np.errstate(over="ignore"):  # refused as infinity
        flat = np.ascontiguousarray(a, dtype=np.float32)
    if not flat.flags.aligned:
        flat = flat.copy()
    return flat.reshape(-1), a.shape, a.dtype.newbyteorder("=")


def _check_reuse(
    out: Any, book: CodeBook, blocksize: int, shape: tuple[int, ...], nested: bool, flat: np.ndarray
) -> None:
    """Refuse an `out` whose memory cannot take the result."""
    if not isinstance(out, BlockwiseArray):
        raise TypeError(f"out: expected a BlockwiseArray, got {type(out).__name__}")
    if nested or out.nested:
        raise ValueError("out: expected scales that are not nested")
    if out.book is not book and not np.array_equal(out.book.values, book.values):
        raise ValueError("out: expected the same code book")
    if out.blocksize != blocksize or out.shape != shape:
        raise ValueError(
            f"out: expected shape {shape} and blocks of {blocksize}, got {out.shape} and {out.blocksize}"
        )
    for a in (out.codes, out.scales):
        if not a.flags.writeable:
            raise ValueError("out: expected writable arrays")
        if np.may_share_memory(a, flat):
            raise ValueError("out: expected no overlap with x")


def _job(
    values: np.ndarray, codes: np.ndarray, scales: np.ndarray, book: CodeBook, blocksize: int
) -> routines.CodingJob:
    """The job of coding or decoding a vector."""
    packed = is_packed(book)
    job = routines.CodingJob(
        values=values.ctypes.data, codes=codes.ctypes.data, scales=scales.ctypes.data,
        book=book.blob.ctypes.data, packed=packed, filler=book.zero_code,
    )  # fmt: skip
    jobs.divide(job, values.size, blocksize, even=packed)
    return job


def _quantize(
    flat: np.ndarray,
    book: CodeBook,
    blocksize: int,
    codes: np.ndarray,
    scales: np.ndarray,
    num_threads: int | None,
) -> None:
    """Codes and scales of a float32 vector into arrays; ValueError if it is not finite."""
    n, packed = flat.size, is_packed(book)
    if n == 0:
        return
    if numba.config.DISABLE_JIT:
        unfinite = np.flatnonzero(~np.isfinite(flat))
        _refuse_block(int(unfinite[0]) // blocksize + 1 if unfinite.size else 0)
        found, scales[...] = reference.quantize(flat, book.values, blocksize)
        codes.reshape(-1)[...] = reference.pack4(found, book.zero_code) if packed else found
        return
    job = _job(flat, codes, scales, book, blocksize)
    each = min(job.blocksize * job.chunk, n) + 1 if packed else 0
    jobs.run(routines.quantize, job, jobs.choose_threads(num_threads, n), each)
    _refuse_block(job.bad)


def _refuse_block(number: int) -> None:
    """ValueError about block `number` - 1, if the number is not 0."""
    if number:
        raise ValueError(f"x: {_expected(routines.INFINITY_BITS, np.inf)} in block {number - 1}")


def _dequantize(q: BlockwiseArray, scales: np.ndarray, out: np.ndarray, num_threads: int | None) -> None:
    """Values into a contiguous float32 array."""
    n = q.size
    if n == 0:
        return
    if numba.config.DISABLE_JIT:
        codes = reference.unpack4(q.codes, n) if q.packed else q.codes.reshape(-1)
        out.reshape(-1)[...] = reference.dequantize(codes, scales, q.book.values, q.blocksize)
        return
    job = _job(out, q.codes, scales, q.book, q.blocksize)
    jobs.run(routines.dequantize, job, jobs.choose_threads(num_threads, n))
