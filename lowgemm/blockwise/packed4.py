"""A right-hand side of 4-bit or 2-bit codes with a scale for each group of depth and each column, packed for
the int8 kernels.

The module is called after the first format it had; files of pickles name it.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm.blockwise import job as jobs
from lowgemm.blockwise import rowtile
from lowgemm.blockwise.codebook import CodeBook, as_codebook
from lowgemm.blockwise.coded import BlockwiseArray, is_packed
from lowgemm.blockwise.coding import block_scales, quantize_blockwise
from lowgemm.blockwise.levels import BITS, STEP_BYTES, integer_levels, step_of
from lowgemm.blockwise.reference import unpack4
from lowgemm.checks.arguments import as_num_threads
from lowgemm.checks.arrays import as_floats, to_numpy
from lowgemm.checks.values import integer
from lowgemm.engine import packing
from lowgemm.jit.pages import weights_empty
from lowgemm.jit.scratch import ALIGNMENT
from lowgemm.kernels import Kernel, by_name, rhs_packer, selected

#: Elements of the product that count as one for `choose_threads`, whose unit is the time to code one.
MACS_PER_ELEMENT = 64
#: Values of a book whose codes have 2 bits.
VALUES_OF_2_BITS = 4


class PackedRhsLowbit:
    """Right-hand side of `gemm_lowbit`, made by `pack_rhs_lowbit`. Picklable.

    Attributes
    ----------
    shape : (int, int)
        (depth, n).
    group : int
        Depth steps that share a scale.
    bits : int
        Of a code: 4 or 2.
    book : CodeBook
    levels, denominator : ndarray of int8, int
        A code stands for ``levels[code] / denominator``: see `lowgemm.blockwise.levels.integer_levels`.
    zeros : ndarray of int8 or None
        The level that stands for 0 in each group and column, as the kernel takes it; None: 0 everywhere. See
        `zero_points`.
    kernel : str
        Name of the kernel whose layout this is.
    nbytes : int
        Bytes of codes, scales and sums.
    """

    def __init__(
        self, codes: np.ndarray, scales: np.ndarray, depth: int, group: int, book: CodeBook, kernel: Kernel,
        bits: int = 4, zero_points: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        n, groups = scales.shape
        self.shape, self.group, self.book, self.kernel = (depth, n), group, book, kernel.name
        self.groups, self.bits = groups, bits
        self.forget()
        self.levels, self.denominator = integer_levels(book)
        lanes, wide, kr = kernel.lanes, kernel.max_nv, kernel.kr
        nr, step, fields = lanes * wide, step_of(bits), 8 // bits
        self.chunks = -(-n // nr)
        padded = packing.padded_depth_bytes(kernel, group) // kernel.element_bytes
        steps = -(-lanes * padded // step)
        self.panel_bytes = steps * STEP_BYTES
        # one chunk of columns after another: a thread reads its part of the weights from front to end
        full = np.zeros((self.chunks * nr, groups, padded), np.uint8)
        full[:n, :, :group] = codes.reshape(n, groups, group)
        full = full.reshape(self.chunks, wide, lanes, groups, padded // kr, kr).transpose(0, 3, 1, 4, 2, 5)
        flat = np.zeros((self.chunks, groups, wide, steps * step), np.uint8)
        flat[..., : lanes * padded] = full.reshape(self.chunks, groups, wide, lanes * padded)
        flat = flat.reshape(self.chunks * groups * wide * steps, fields, STEP_BYTES)
        self.take_memory(flat.size // fields, (self.chunks, groups, nr))
        together = flat[:, 0].copy()
        for field in range(1, fields):
            together |= flat[:, field] << np.uint8(bits * field)
        self.panels[...] = together.reshape(-1)
        real = np.arange(groups * group).reshape(groups, group) < depth
        integers = self.levels[codes].astype(np.int32).reshape(n, groups, group)
        if zero_points is not None:
            integers -= zero_points[:, :, None]
        sums = (integers * real).sum(axis=2, dtype=np.int32)
        self.scales[...] = self._by_chunk((scales / np.float32(self.denominator)).astype(np.float32), nr)
        self.sums = self._by_chunk(sums, nr)
        self.zeros = None if zero_points is None else self._by_chunk(zero_points.astype(np.int8), nr)

    def take_memory(self, code_bytes: int, scales: tuple[int, ...]) -> None:
        """Memory for codes, a multiple of `STEP_BYTES`, and for scales of a shape: in one piece, scales in
        front.

        The end of the piece may lie on small pages. With the scales there, one row took 0.60 ms (4096 x 4096,
        INT4 in groups of 128), with some of the codes 0.55.
        """
        count = math.prod(scales)
        codes_at = -(-4 * count // ALIGNMENT) * ALIGNMENT
        memory = weights_empty(codes_at + code_bytes)
        self.scales, self.panels = memory[: 4 * count].view(np.float32).reshape(scales), memory[codes_at:]

    def _by_chunk(self, a: np.ndarray, nr: int) -> np.ndarray:
        """(n, groups) to (chunks, groups, nr), filled up with zeros."""
        n, groups = a.shape
        full = np.zeros((self.chunks * nr, groups), a.dtype)
        full[:n] = a
        return np.ascontiguousarray(full.reshape(self.chunks, nr, groups).transpose(0, 2, 1))

    def forget(self) -> None:
        """Forget what calls left behind for the next ones, which holds addresses of the codes and scales."""
        # what `rowjob` keeps between calls, by the number of rows, negative with scales of groups
        self.ready: dict[int, Any] = {}
        self.again: dict[Any, Any] = {}  # what `rowcall` keeps, by the kind of call

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and sums."""
        return self.panels.nbytes + self.scales.nbytes + self.sums.nbytes

    def codes(self) -> np.ndarray:
        """The codes, uint8, shape (depth, n)."""
        return self._padded_codes()[:, : self.shape[0]].T

    def _padded_codes(self) -> np.ndarray:
        if 0 in (self.groups, self.shape[1]):
            return np.zeros((self.shape[1], self.groups * self.group), np.uint8)
        kernel, (_, n) = by_name(self.kernel), self.shape
        lanes, wide, kr = kernel.lanes, kernel.max_nv, kernel.kr
        padded = packing.padded_depth_bytes(kernel, self.group) // kernel.element_bytes
        bytes_, mask = self.panels.reshape(-1, STEP_BYTES), np.uint8(2**self.bits - 1)
        fields = [bytes_ >> np.uint8(shift) & mask for shift in range(0, 8, self.bits)]
        flat = np.stack(fields, axis=1).reshape(self.chunks, self.groups, wide, -1)
        full = flat[..., : lanes * padded].reshape(self.chunks, self.groups, wide, padded // kr, lanes, kr)
        full = full.transpose(0, 2, 4, 1, 3, 5).reshape(-1, self.groups, padded)
        return full[:n, :, : self.group].reshape(n, -1)

    def _by_group(self, a: np.ndarray) -> np.ndarray:
        """(chunks, groups, nr) to (groups, n)."""
        return a.transpose(1, 0, 2).reshape(self.groups, self.chunks * a.shape[2])[:, : self.shape[1]]

    def group_scales(self) -> np.ndarray:
        """What a level counts in each group and column: float32, shape (groups, n)."""
        return self._by_group(self.scales)

    def zero_points(self) -> np.ndarray | None:
        """The level that stands for 0 in each group and column, int8, shape (groups, n); None: 0 in all."""
        return None if self.zeros is None else self._by_group(self.zeros)

    def integers(self) -> np.ndarray:
        """What the product multiplies by, whole numbers of shape (depth, n): the levels of the codes less
        their zero points.
        """
        levels, zeros = self.levels[self.codes()], self.zero_points()
        if zeros is None:
            return levels
        return levels - np.repeat(zeros.astype(np.int16), self.group, axis=0)[: self.shape[0]]

    def to_array(self) -> np.ndarray:
        """The matrix that the product uses, float32: ``integers() * group_scales``."""
        scales = np.repeat(self.group_scales(), self.group, axis=0)[: self.shape[0]]
        return self.integers().astype(np.float32) * scales

    def repacked(self, kernel: Kernel) -> PackedRhsLowbit:
        """The same in the layout of `kernel`."""
        if self.kernel == kernel.name:
            return self
        zeros = self.zero_points()
        new = PackedRhsLowbit(
            self._padded_codes(), self._raw_scales(), self.shape[0], self.group, self.book, kernel, self.bits,
            None if zeros is None else zeros.T,
        )  # fmt: skip
        new._keep_scales(self.group_scales())
        return new

    def _raw_scales(self) -> np.ndarray:
        return np.ascontiguousarray(self.group_scales().T) * np.float32(self.denominator)

    def _keep_scales(self, scales: np.ndarray) -> None:
        """Put exactly these, which a product and a division would round twice."""
        self.scales[...] = self._by_chunk(np.ascontiguousarray(scales.T), self.scales.shape[2])

    def __getstate__(self) -> dict[str, Any]:
        return {
            "codes": self._padded_codes(), "scales": self.group_scales(), "depth": self.shape[0],
            "group": self.group, "book": self.book.values, "bits": self.bits,
            "zero_points": self.zero_points(),
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        # the layout is that of the reading machine's kernel
        scales, book, zeros = state["scales"], CodeBook(state["book"]), state.get("zero_points")
        self.__init__(  # type: ignore[misc]
            state["codes"], scales.T, state["depth"], state["group"], book, rhs_packer(selected()),
            state.get("bits", 4),  # what was saved before there were others
            None if zeros is None else zeros.T,
        )  # fmt: skip
        self._keep_scales(scales)

    def threads_for(self, rows: int, requested: int | None) -> int:
        """Threads of a product; one row costs reading and decoding the weights, which some ten rows share."""
        depth, n = self.shape
        return jobs.choose_threads(requested, (rows + 10) * depth * n // MACS_PER_ELEMENT)

    def explain_product(self, lhs: ArrayLike, num_threads: int | None) -> tuple[str, int, float, str]:
        """For `lowgemm.explain`: kernel, threads, share of the peak (0: not estimated) and a report.

        Examples
        --------
        >>> import lowgemm
        >>> w = pack_rhs_lowbit(np.ones((64, 32), np.float32), "ternary")
        >>> print(lowgemm.explain(np.zeros((1, 64), np.float32), w))  # doctest: +ELLIPSIS
        1 x 64 by 64 x 32, float32 x 2-bit codes in groups of 64 -> float32
        kernel    ...
        """
        a = as_floats(lhs, "lhs", "a rectangular array")
        depth, n = self.shape
        if a.ndim == 0 or a.shape[-1] != depth:
            raise ValueError(f"lhs: expected shape (..., {depth}), got {a.shape}")
        m, requested = math.prod(a.shape[:-1]), as_num_threads(num_threads)
        codes = f"{self.bits}-bit codes in groups of {self.group}"
        head = f"{m} x {depth} by {depth} x {n}, {a.dtype} x {codes} -> float32"
        if numba.config.DISABLE_JIT or 0 in (m, n, depth):
            return "reference", 1, 0.0, f"{head}\nkernel    none: the definition runs"
        kernel, threads = rhs_packer(selected()), self.threads_for(m, requested)
        if rowtile.decodes(kernel):
            how = f"become levels in registers, for {rowtile.heights(kernel)[0]} rows at a time"
        else:
            how = "become levels in cache, a group at a time (this kernel takes none from registers)"
        packed = "" if self.kernel == kernel.name else f"; packed for {self.kernel}: REPACKED each call"
        text = f"{head}\nkernel    {kernel.name}\nrhs       codes {how}{packed}\nthreads   {threads}"
        return kernel.name, threads, 0.0, text

    def __repr__(self) -> str:
        form = f"shape={self.shape}, group={self.group}, bits={self.bits}, kernel={self.kernel!r}"
        return f"PackedRhsLowbit({form})"


#: The name it had while there were 4-bit codes only.
PackedRhs4bit = PackedRhsLowbit


def pack_rhs_lowbit(
    weight: ArrayLike,
    format: str | CodeBook | ArrayLike | None = None,
    *,
    group: int | None = None,
    zero_points: bool = False,
) -> PackedRhsLowbit:
    """Code and pack the right-hand side of `gemm_lowbit` once, for many products.

    Parameters
    ----------
    weight : array_like of float, shape (depth, n); or BlockwiseArray of 4-bit codes, shape (n, depth)
        As for `pack_rhs_4bit`.
    format : CodeBook, str or array_like, optional
        A book of at most 16 values: "nf4" (the default), "int4", "fp4", "af4", "ternary" (-1, 0, 1), "int2"
        (-1, -1/2, 0, 1/2) or one's own. Only for a float matrix. Codes of a book of at most four values have
        2 bits, others 4.
    group : int, optional
        Depth steps that share a scale, at least 1; the default is 64. The last group may be short. Only for a
        float matrix.
    zero_points : bool
        Whether each group and column has a zero point too, so that its codes reach from its smallest to its
        largest value (or to 0, if that lies outside). Only for a float matrix in "int4" or "int2".

    Returns
    -------
    PackedRhsLowbit

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Notes
    -----
    The scale of a group is its largest absolute value, which is right for weights that are ternary already,
    as those of a network trained that way: they are kept exactly. Coding other weights with three or four
    values loses much.

    Examples
    --------
    >>> w = pack_rhs_lowbit(np.float32([[1, 0], [-1, 0.25]]), "ternary")
    >>> print(w.bits, w.to_array().tolist())
    2 [[1.0, 0.0], [-1.0, 0.25]]
    """
    if not isinstance(zero_points, (bool, np.bool_)):
        raise TypeError(f"zero_points: expected True or False, got {type(zero_points).__name__}")
    if not zero_points:
        return _pack(weight, format, group, "format", None)
    if isinstance(weight, BlockwiseArray) or format not in ("int4", "int2"):
        raise ValueError(
            f"zero_points: expected False but for a float matrix in 'int4' or 'int2', got format {format!r}"
        )
    a, size = _matrix(weight, group)
    full, bits = _in_groups(a, size), {"int4": 4, "int2": 2}[format]
    highest = 2**bits - 1
    blocks = full.reshape(a.shape[1], -1, size).astype(np.float64)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    scales = ((high - low) / highest).astype(np.float32)
    if not np.isfinite(scales).all():
        raise ValueError("weight: expected finite numbers (of float32), got NaN or infinity")
    steps = np.where(scales > 0, scales, 1).astype(np.float64)
    zeros = np.clip(np.rint(-low / steps), 0, highest)
    codes = np.clip(np.rint(blocks / steps[:, :, None]) + zeros[:, :, None], 0, highest).astype(np.uint8)
    return _of_codes(codes.reshape(full.shape), scales, zeros, a.shape[0], size, bits)


def pack_rhs_codes(
    codes: ArrayLike,
    scales: ArrayLike,
    zero_points: ArrayLike | None = None,
    *,
    group: int,
    bits: int = 4,
) -> PackedRhsLowbit:
    """Pack integer codes that another tool made, with its scales and zero points, as the right-hand side of
    `gemm_lowbit`.

    Parameters
    ----------
    codes : array_like of int, shape (depth, n)
        0 to 15, or 0 to 3 with 2 bits. A code stands for ``(code - zero_point) * scale``.
    scales : array_like of float, shape (groups, n)
        Of each group of depth and each column; rounded to float32.
    zero_points : array_like of int, shape (groups, n), optional
        0 to 15, or 0 to 3; the default is 8, or 2.
    group : int
        Depth steps that share a scale, at least 1. The last group may be short.
    bits : int
        Of a code: 4 or 2.

    Returns
    -------
    PackedRhsLowbit

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Notes
    -----
    GPTQ, AWQ and ONNX's MatMulNBits store weights so, each with an order of its own for the codes in a word.

    Examples
    --------
    >>> w = pack_rhs_codes([[0], [15]], [[0.5]], [[3]], group=2)
    >>> print(w.to_array().tolist())
    [[-1.5], [6.0]]
    """
    bits = integer(bits, "bits", 2, 4)
    if bits not in BITS:
        raise ValueError(f"bits: expected 2 or 4, got {bits}")
    size = integer(group, "group", 1, 2**31 - 1)
    q = _whole_numbers(codes, "codes", 2**bits)
    if q.ndim != 2:
        raise ValueError(f"codes: expected shape (depth, n), got {q.shape}")
    depth, n = q.shape
    size = min(size, max(depth, 1))
    shape = -(-depth // size), n
    factors = as_floats(scales, "scales", "an array of floats")
    if factors.dtype.kind not in "iuf":
        raise TypeError(f"scales: expected real numbers, got {factors.dtype}")
    if factors.shape != shape:
        raise ValueError(f"scales: expected shape {shape} for these codes and group, got {factors.shape}")
    with np.errstate(over="ignore"):  # refused as infinity
        factors = factors.astype(np.float32)
    if not np.isfinite(factors).all():
        raise ValueError("scales: expected finite numbers (of float32), got NaN or infinity")
    zeros = None
    if zero_points is not None:
        zeros = _whole_numbers(zero_points, "zero_points", 2**bits)
        if zeros.shape != shape:
            raise ValueError(f"zero_points: expected shape {shape} like scales, got {zeros.shape}")
        zeros = zeros.T
    full = np.zeros((n, shape[0] * size), np.uint8)
    full[:, :depth] = q.T
    return _of_codes(full, factors.T, zeros, depth, size, bits)


def _whole_numbers(value: Any, name: str, end: int) -> np.ndarray:
    a = to_numpy(value, name, "an array of integers")
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{name}: expected integers, got {a.dtype}")
    if a.size and not (int(a.min()) >= 0 and int(a.max()) < end):
        raise ValueError(f"{name}: expected 0 to {end - 1}, got {a.min()} to {a.max()}")
    return a.astype(np.uint8)


def _of_codes(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, depth: int, group: int, bits: int
) -> PackedRhsLowbit:
    """Of codes that stand for ``(code - zero) * scale``: shapes (n, groups * group) and, of scales and zeros,
    (n, groups).
    """
    book = as_codebook("int4" if bits == 4 else "int2", "format")
    middle = -int(integer_levels(book)[0][0])  # the code whose level is 0
    new = PackedRhsLowbit(
        codes, scales, depth, group, book, rhs_packer(selected()), bits,
        None if zeros is None else zeros.astype(np.int16) - middle,
    )  # fmt: skip
    new._keep_scales(scales.T)
    return new


def pack_rhs_4bit(
    weight: ArrayLike, code: str | CodeBook | ArrayLike | None = None, *, group: int | None = None
) -> PackedRhsLowbit:
    """Code and pack the right-hand side of `gemm_4bit` once, for many products; codes of 4 bits, whatever the
    book.

    Parameters
    ----------
    weight : array_like of float, shape (depth, n); or BlockwiseArray of 4-bit codes, shape (n, depth)
        A float matrix is coded here. A coded one is taken as it is, in the layout of bitsandbytes and QLoRA:
        one row for each output, and blocks that run over the rows one after another, whether or not the depth
        is a multiple of the block size; nested scales too. The group is then the greatest common divisor of
        depth and block size.
    code : CodeBook, str or array_like, optional
        A book of at most 16 values: "nf4" (the default), "int4", "fp4", "af4" or one's own. Only for a float
        matrix.
    group : int, optional
        Depth steps that share a scale, at least 1; the default is 64. The last group may be short. Only for a
        float matrix.

    Returns
    -------
    PackedRhsLowbit

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Notes
    -----
    A coded weight whose depth and block size have a small common divisor gets small groups, each with scales
    and sums of its own: 8 bytes for each group and column, and a product that takes longer. With a depth of
    4100 and blocks of 64 the groups are of 4. Coding the decoded matrix anew avoids that, at the price of
    rounding twice.

    The product works on integers: each value of the book becomes the nearest multiple of 1 / `denominator`.
    That is exact for INT4 and moves a value of NF4 by at most 0.0035, a twentieth of its smallest half step
    (0.04).

    Examples
    --------
    >>> w = pack_rhs_4bit(np.float32([[1, 0.5], [-2, 0.25]]), "int4")
    >>> print(w.to_array())
    [[ 1.      0.4375]
     [-2.      0.25  ]]
    """
    return _pack(weight, code, group, "code", 4)


def _bits_of(book: CodeBook) -> int:
    return 2 if book.values.size <= VALUES_OF_2_BITS else 4


def _pack(weight: Any, code: Any, group: Any, name: str, bits: int | None) -> PackedRhsLowbit:
    if isinstance(weight, BlockwiseArray):
        return _from_coded(weight, code, group, name, bits)
    book = as_codebook("nf4" if code is None else code, name)
    if not is_packed(book):
        raise ValueError(f"{name}: expected a book of at most 16 values, got {book.values.size}")
    a, size = _matrix(weight, group)
    full = _in_groups(a, size)
    try:
        q = quantize_blockwise(full, book, blocksize=size)
    except ValueError as error:
        raise ValueError(str(error).replace("x:", "weight:", 1)) from None
    codes = unpack4(q.codes, full.size).reshape(full.shape)
    return PackedRhsLowbit(
        codes, q.scales.reshape(full.shape[0], full.shape[1] // size), a.shape[0], size, book,
        rhs_packer(selected()), bits or _bits_of(book),
    )  # fmt: skip


def _matrix(weight: Any, group: Any) -> tuple[np.ndarray, int]:
    """The checked matrix, and the depth steps of a group."""
    a = as_floats(weight, "weight", "a matrix of floats")
    size = integer(64 if group is None else group, "group", 1, 2**31 - 1)
    if a.ndim != 2:
        raise ValueError(f"weight: expected shape (depth, n), got {a.shape}")
    if a.dtype.kind != "f" or a.dtype.itemsize > 8:
        raise TypeError(f"weight: expected dtype float32, float64, float16 or bfloat16, got {a.dtype}")
    return a, min(size, max(a.shape[0], 1))


def _in_groups(a: np.ndarray, size: int) -> np.ndarray:
    """A matrix of shape (depth, n) as float32 of shape (n, groups * size), filled up with zeros."""
    depth, n = a.shape
    full = np.zeros((n, -(-depth // size) * size), np.float32)
    with np.errstate(over="ignore"):  # refused as infinity
        full[:, :depth] = a.T
    return full


def _from_coded(q: BlockwiseArray, code: Any, group: Any, name: str, bits: int | None) -> PackedRhsLowbit:
    if code is not None or group is not None:
        raise ValueError(f"{name}, group: expected None with a weight that is coded already")
    if not q.packed or len(q.shape) != 2:
        raise ValueError(f"weight: expected 4-bit codes of a matrix, got {q}")
    n, depth = q.shape
    size = group_of_blocks(depth, q.blocksize, q.blocks)
    firsts = np.arange(0, q.size, size, dtype=np.int64)  # of each group, in the order of the elements
    scales = block_scales(q)[firsts // q.blocksize].reshape(n, depth // size)
    codes = unpack4(q.codes, q.size).reshape(n, depth)
    return PackedRhsLowbit(
        codes, scales, depth, size, q.book, rhs_packer(selected()), bits or _bits_of(q.book)
    )


def group_of_blocks(depth: int, blocksize: int, blocks: int) -> int:
    """Largest group along the depth that no block ends in, in any row.

    Blocks run over the rows without a break, so one begins every `blocksize` elements, at all places of a row
    that the greatest common divisor of `blocksize` and `depth` divides.

    Examples
    --------
    >>> group_of_blocks(256, 64, 100), group_of_blocks(96, 64, 100), group_of_blocks(96, 4096, 1)
    (64, 32, 96)
    """
    return max(depth, 1) if blocks < 2 else math.gcd(depth, blocksize)
