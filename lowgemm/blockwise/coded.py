"""What block-wise coding gives: codes, a scale for each block, and what is needed to read them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.blockwise.codebook import CodeBook, as_codebook
from lowgemm.checks.values import integer, number

#: Books of at most so many values have 4-bit codes, two in a byte.
VALUES_OF_4_BITS = 16
#: The largest float32.
LARGEST = float(np.finfo(np.float32).max)
FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))


def is_packed(book: CodeBook) -> bool:
    """Whether a book's codes are packed two in a byte."""
    return book.values.size <= VALUES_OF_4_BITS


def code_bytes(count: int, packed: bool) -> int:
    """Bytes of the codes of `count` elements."""
    return (count + 1) // 2 if packed else count


@dataclasses.dataclass(frozen=True, eq=False)
class BlockwiseArray:
    """An array in block-wise code: from `quantize_blockwise`, or built from codes read from elsewhere.

    Blocks run over the elements in C order, whatever the shape; the last one may be short.

    Parameters
    ----------
    codes : ndarray of uint8
        C-contiguous. 8-bit: of the array's shape. 4-bit: flat, ``ceil(n / 2)`` bytes, element 2i in the high
        half of byte i; the low half of the last byte of an odd count is not used.
    scales : ndarray of float32, shape (ceil(n / blocksize),), or BlockwiseArray
        Largest absolute value of each block; coded itself if nested, and then less `offset`.
    blocksize : int
        Elements of a block.
    book : CodeBook, str or array_like
        See `lowgemm.blockwise.CodeBook`. One of at most 16 values means 4-bit codes.
    shape : tuple of int
        Of the array.
    dtype : dtype, optional
        float32, float64 or float16: what decoding gives if not told otherwise.
    offset : float, optional
        What to add to nested scales after decoding.

    Raises
    ------
    TypeError, ValueError
        If the parts do not fit together.

    Examples
    --------
    >>> q = BlockwiseArray(np.uint8([0x70, 0xF0]), np.float32([2.0]), 64, "nf4", (3,))
    >>> print(q.nbytes, q.packed)
    6 True
    """

    codes: np.ndarray
    scales: ArrayLike
    blocksize: int
    book: str | CodeBook
    shape: tuple[int, ...]
    dtype: DTypeLike = np.float32
    offset: float = 0.0

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "book", as_codebook(self.book, "book"))
        put(self, "blocksize", integer(self.blocksize, "blocksize", 1, 2**62))
        shape = (self.shape,) if isinstance(self.shape, (int, np.integer)) else self.shape
        if not isinstance(shape, (Sequence, np.ndarray)) or isinstance(shape, (str, bytes)):
            raise TypeError(f"shape: expected a tuple of integers, got {type(shape).__name__}")
        put(self, "shape", tuple(integer(s, "shape", 0, 2**62) for s in shape))
        put(self, "dtype", float_dtype(self.dtype))
        check_codes(self.codes, (code_bytes(self.size, True),) if self.packed else self.shape)
        if isinstance(self.scales, BlockwiseArray):
            if self.scales.shape != (self.blocks,):
                raise ValueError(f"scales: expected shape {(self.blocks,)}, got {self.scales.shape}")
        else:
            check_scales(self.scales, self.blocks)
        offset = number(self.offset, "offset")
        if not abs(offset) <= LARGEST:
            raise ValueError(f"offset: expected a finite number that float32 can hold, got {self.offset}")
        put(self, "offset", float(np.float32(offset)))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.size // self.blocksize)

    @property
    def packed(self) -> bool:
        """Whether codes are of 4 bits, two in a byte."""
        return is_packed(self.book)

    @property
    def nested(self) -> bool:
        """Whether the scales are coded too."""
        return isinstance(self.scales, BlockwiseArray)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes + (4 if self.nested else 0)

    def __repr__(self) -> str:
        kind = "4-bit" if self.packed else "8-bit"
        nested = ", nested scales" if self.nested else ""
        return f"BlockwiseArray(shape {self.shape}, {kind} codes, blocks of {self.blocksize}{nested})"


def float_dtype(value: Any, name: str = "dtype") -> np.dtype:
    """`value` as one of the float dtypes that can be coded."""
    try:
        dtype = np.dtype(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected float32, float64 or float16 ({error})") from None
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64 or float16, got {dtype}")
    return dtype


def check_codes(codes: Any, shape: tuple[int, ...], name: str = "codes") -> None:
    """Refuse what is not a C-contiguous uint8 array of this shape."""
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8:
        raise TypeError(
            f"{name}: expected an array of uint8, got {getattr(codes, 'dtype', type(codes).__name__)}"
        )
    if codes.shape != shape or not codes.flags.c_contiguous:
        raise ValueError(f"{name}: expected shape {shape}, C-contiguous, got shape {codes.shape}")


def check_scales(scales: ArrayLike, blocks: int, name: str = "scales") -> None:
    """Refuse what is not a contiguous float32 vector of largest absolute values, one for each block."""
    if not isinstance(scales, np.ndarray) or scales.dtype != np.float32 or not scales.dtype.isnative:
        got = getattr(scales, "dtype", type(scales).__name__)
        raise TypeError(f"{name}: expected an array of float32, got {got}")
    if scales.shape != (blocks,) or not scales.flags.c_contiguous or not scales.flags.aligned:
        raise ValueError(f"{name}: expected shape {(blocks,)}, contiguous, got shape {scales.shape}")
    # scales that were read from elsewhere may be anything, and a NaN would make a whole block NaN
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError(f"{name}: expected finite numbers from 0 up")
