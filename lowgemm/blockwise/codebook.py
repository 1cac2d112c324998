"""A code book and what finding the nearest value needs: boundaries, and the bucket table of the fast search.

The answer
----------
The code of x in a block with largest absolute value a is the index of the table value nearest to x / a as
real numbers, the lower index on a tie. Between two neighbouring values lies their mid-point m, so the rank of
x is the number of mid-points with ``m * a < x`` (``<=`` where the tie goes up because the upper value has the
lower index). No division is in that definition, and a float64 holds ``m * a`` exactly: see `mid_high`.

The fast search
---------------
Take the float32 quotient q = x * (1 / a). It is rounded twice, so it is within 2 ulp of x / a. The bits of
\\|q\\| already are an index: first the exponent, then the fraction. Cut each binade (the numbers of one
exponent) into 2**k equal buckets, with k just large enough for the mid-points there, and number all buckets.
16 more bits of the fraction say where in its bucket q lies::

    bits of q    s eeeeeeee fffffff ffffffffffffffff
                   |        |bucket| 16 bits: place
    word         (offset[e] + bucket) << 16 | place

For s = 1, place is counted from the other end, and 256 << 16 is added.

A bucket holds at most one mid-point, at place t. So ``base[bucket] + (place > t)`` is the rank, and it is
wrong only if x / a and q lie on different sides of the mid-point. Then q is within 2 ulp of it, and `place`
within `MARGIN` of t. In that case, about once in 4000 elements, the definition above decides. The result is
always the exact one.
"""

from __future__ import annotations

import enum
import functools
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.blockwise import codebooks
from lowgemm.checks.values import as_array, choice

#: Half width, in places, of the zone around a mid-point in which the definition decides. In the finest
#: buckets (k = 8) a place is half an ulp, so 2 ulp of q are 4 places; in other buckets they are fewer. The
#: rest is for the truncation of the mid-point and of q to whole places.
MARGIN = 8
#: Buckets that the 9-bit index can name.
BUCKETS = 512
#: Exponent fields 96..127 are told apart by their low 5 bits: \\|q\\| from 2**-31 to 1.
LOWEST_EXPONENT = 96

# Layout of `CodeBook.blob` in bytes: what compiled code reads, at fixed places.
PLANES_AT = 0  # uint8[4][256]: byte p of the float32 value of each code
VALUES_AT = 1024  # float32[256]
BINADE_AT = (
    2048  # int32[32] by exponent: number of the binade's first bucket << 16, and 16 - k in the low bits
)
BASE_AT = 2304  # uint8[512]
PLACE_LOW_AT = 2816  # uint8[512]: start of the zone around the mid-point, low and high byte
PLACE_HIGH_AT = 3328  # uint8[512]
MID_HIGH_AT = 3840  # float64[256]: upper 24 bits of each mid-point
MID_LOW_AT = 5888  # float64[256]: the rest
TIE_UP_AT = 7936  # uint8[256]
CODE_AT = 8192  # uint8[256]: rank to code
META_AT = 8448  # int32[8]: see below
BLOB_BYTES = 8512
#: Entries of the int32 at META_AT.
ABS_MASK, FLIP, TINY, FAST, IN_ORDER, ZERO_CODE, COUNT = range(7)


class CodeBook:
    """A table of at most 256 real numbers, prepared for exact nearest-value search.

    Parameters
    ----------
    values : array_like of float, shape (n,), 2 <= n <= 256
        What each code stands for, in any order, repetitions allowed; between -1 and 1, and finite.

    Attributes
    ----------
    values : ndarray of float32, shape (n,)
    zero_code : int
        Code of the value nearest to 0, which a block of zeros gets.

    Raises
    ------
    TypeError, ValueError
        If `values` is not such a table.

    Notes
    -----
    A mid-point is held to 48 bits. It is exact for neighbours whose exponents differ by less than 24, as all
    those of `lowgemm.blockwise.codebooks` do.

    Examples
    --------
    >>> book = CodeBook([-1.0, -0.5, 0.0, 0.5, 1.0])
    >>> book.zero_code
    2
    """

    def __init__(self, values: ArrayLike) -> None:
        table = as_array(values, "values", "a vector of numbers")
        if table.dtype.kind not in "iuf":
            raise TypeError(f"values: expected real numbers, got {table.dtype}")
        if table.ndim != 1 or not 2 <= table.size <= 256:
            raise ValueError(f"values: expected a vector of 2 to 256 numbers, got shape {table.shape}")
        table = table.astype(np.float32) + np.float32(0)  # minus zero is zero
        if not np.isfinite(table).all() or np.abs(table).max() > 1:
            raise ValueError("values: expected finite numbers between -1 and 1")
        self.values = table
        self.values.flags.writeable = False
        self._sort()
        self._mid_points()
        self._buckets()

    def _sort(self) -> None:
        """Distinct values in order, and the lowest code of each."""
        self.sorted, first = np.unique(self.values, return_index=True)
        if self.sorted.size < 2:
            raise ValueError("values: expected at least two different numbers")
        self.code_of_rank = first.astype(np.uint8)
        nearest = np.abs(self.values.astype(np.float64)).argmin()
        self.zero_code = int(nearest)

    def _mid_points(self) -> None:
        """Mid-points as sums of two numbers of 24 bits; either times a float32 is exact in float64."""
        exact = [
            (Fraction(float(a)) + Fraction(float(b))) / 2
            for a, b in zip(self.sorted[:-1], self.sorted[1:], strict=True)
        ]
        high = np.array([np.float32(float(m)) for m in exact], dtype=np.float32).astype(np.float64)
        low = np.array(
            [np.float32(float(m - Fraction(h))) for m, h in zip(exact, high.tolist(), strict=True)]
        )
        self.mid_high, self.mid_low = high, low.astype(np.float64)
        self.tie_up = self.code_of_rank[1:] < self.code_of_rank[:-1]

    def _buckets(self) -> None:
        """The bucket table of the fast search; `fast` says whether the book has one."""
        mids = self.mid_high + self.mid_low  # 48 bits: exact
        self.signed = bool((mids < 0).any())
        halves = [mids[mids >= 0]] + ([-mids[mids < 0][::-1]] if self.signed else [])
        normal = np.concatenate([h[h >= 2.0**-31] for h in halves])
        # The lowest binade lies below the smallest boundary, so that zeros are far from any.
        low = int(np.frexp(normal.min())[1]) - 2 if normal.size else -1
        self.lowest = max(LOWEST_EXPONENT, low + 127)
        bits = np.zeros(32, dtype=np.int64)
        while (crowded := self._crowded(halves, bits)).any():
            bits[crowded] += 1
            if bits.max() > 8:
                self.fast = False
                return
        first = self._first_buckets(bits)
        self.fast = bool(first[32] <= (256 if self.signed else BUCKETS))
        if not self.fast:
            return
        self.shift, self.offset = 16 - bits, first[:32] << 16
        self.base, self.place = np.zeros(BUCKETS, np.uint8), np.zeros(BUCKETS, np.uint16)
        zero_rank = int((mids < 0).sum())
        for half, mirrored in zip(halves, (False, True)):  # noqa: B905
            for bucket, before, place in self._events(half, bits):
                # `before` boundaries lie below the bucket, and one more below values beyond `place`
                if mirrored:
                    self.base[256 + bucket] = (zero_rank - before - 1) & 0xFF
                    self.place[256 + bucket] = 0xFFFF - place - MARGIN
                else:
                    self.base[bucket] = (zero_rank + before) & 0xFF
                    self.place[bucket] = place - MARGIN

    def _first_buckets(self, bits: np.ndarray) -> np.ndarray:
        """Number of the first bucket of each of the 32 binades, and the number of buckets."""
        used = np.arange(32) >= self.lowest - LOWEST_EXPONENT
        return np.concatenate([[0], np.cumsum(np.where(used, 1 << bits, 0))])

    def _positions(self, half: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Where the boundaries of one sign lie: bucket << 16 | place, rounded down."""
        fraction, exponent = np.frexp(half)
        e = exponent - 1 + 127 - LOWEST_EXPONENT
        # 2 * fraction - 1 has at most 48 bits. Scaling by a power of two keeps it exact, so only the end
        # rounds it
        place = np.floor((2 * fraction - 1) * 2.0 ** (bits[e] + 16)).astype(np.int64)
        return (self._first_buckets(bits)[e] << 16) + place

    def _touched(self, half: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last bucket in which a boundary's zone lies, clipped to the table."""
        top = self._first_buckets(bits)[32] - 1
        p = self._positions(half, bits)
        return np.clip((p - MARGIN - 1) >> 16, 0, top), np.clip((p + MARGIN + 1) >> 16, 0, top)

    def _crowded(self, halves: list[np.ndarray], bits: np.ndarray) -> np.ndarray:
        """Which binades have a bucket that zones of two boundaries touch."""
        owner = np.repeat(np.arange(32), np.diff(self._first_buckets(bits)))
        crowded = np.zeros(32, dtype=bool)
        for half in halves:
            first, last = self._touched(half[half >= 2.0 ** (self.lowest - 127)], bits)
            zones = np.bincount(first, minlength=owner.size)
            zones += np.bincount(last[last != first], minlength=owner.size)
            zones[0] += int((half < 2.0 ** (self.lowest - 127)).any())
            crowded[owner[zones > 1]] = True
        return crowded

    def _events(self, half: np.ndarray, bits: np.ndarray) -> list[tuple[int, int, int]]:
        """Per bucket: its number, how many boundaries lie below, and the place beyond which one more does."""
        low = 2.0 ** (self.lowest - 127)
        below, half = int((half < low).sum()), half[half >= low]
        positions, (first, last) = self._positions(half, bits), self._touched(half, bits)
        starts = self._first_buckets(bits)
        lowest_place, highest_place = MARGIN, 0xFFFF - MARGIN
        events = []
        for bucket in range(starts[32]):
            inside = np.flatnonzero((first <= bucket) & (bucket <= last))
            if inside.size:
                place = int(positions[inside[0]]) - (bucket << 16)
                events.append((bucket, below + int(inside[0]), min(max(place, lowest_place), highest_place)))
                continue
            before = below + int((positions < bucket << 16).sum())
            if bucket == 0 and below:  # zeros come here: let the definition decide about them
                events.append((bucket, before - 1, lowest_place))
            elif bucket == starts[31] - 1:
                # The largest element of a block is 1, or 1 - 2**-24 after rounding: no zone at this bucket's
                # end.
                events.append((bucket, before - 1, lowest_place))
            else:
                events.append((bucket, before, highest_place))
        return events

    @functools.cached_property
    def blob(self) -> np.ndarray:
        """All tables for compiled code, in one block of memory that begins at a multiple of 64 bytes."""
        space = np.zeros(BLOB_BYTES + 64, dtype=np.uint8)
        start = -space.ctypes.data % 64
        blob = space[start : start + BLOB_BYTES]

        def put(at: int, a: np.ndarray, dtype: type) -> None:
            raw = np.ascontiguousarray(a, dtype=dtype).view(np.uint8).ravel()
            blob[at : at + raw.size] = raw

        values = np.zeros(256, dtype=np.float32)
        values[: self.values.size] = self.values
        put(PLANES_AT, values.view(np.uint8).reshape(256, 4).T, np.uint8)
        put(VALUES_AT, values, np.float32)
        count = self.mid_high.size
        high = np.full(256, np.inf)
        high[:count] = self.mid_high
        put(MID_HIGH_AT, high, np.float64)
        put(MID_LOW_AT, self.mid_low, np.float64)
        put(TIE_UP_AT, self.tie_up, np.uint8)
        put(CODE_AT, self.code_of_rank, np.uint8)
        if self.fast:
            put(BINADE_AT, self.offset | self.shift, np.int32)
            put(BASE_AT, self.base, np.uint8)
            put(PLACE_LOW_AT, self.place & 0xFF, np.uint8)
            put(PLACE_HIGH_AT, self.place >> 8, np.uint8)
        meta = np.zeros(8, dtype=np.int32)
        meta[ABS_MASK] = 0x7FFFFFFF if self.signed else -1
        meta[FLIP] = 0x0100FFFF if self.signed else 0
        meta[TINY] = self.lowest << 23
        meta[FAST] = self.fast
        meta[IN_ORDER] = np.array_equal(self.code_of_rank, np.arange(count + 1))
        meta[ZERO_CODE] = self.zero_code
        meta[COUNT] = count
        put(META_AT, meta, np.int32)
        blob.flags.writeable = False
        return blob

    def __reduce__(self) -> tuple[Any, ...]:
        return CodeBook, (self.values,)  # a copy of the blob would lose its alignment

    def __repr__(self) -> str:
        return f"CodeBook({self.values.size} values, {self.values.min():g} to {self.values.max():g})"


@functools.cache
def _named(name: str) -> CodeBook:
    return CodeBook(codebooks.BY_NAME[name]())


@functools.lru_cache(maxsize=64)
def _of_bytes(raw: bytes) -> CodeBook:
    return CodeBook(np.frombuffer(raw, dtype=np.float32))


def as_codebook(code: str | CodeBook | ArrayLike, name: str = "code") -> CodeBook:
    """`code` as a CodeBook: one already, the name of one, or its values.

    Parameters
    ----------
    code : CodeBook, str or array_like
        Names are those of `lowgemm.blockwise.codebooks.BY_NAME`.
    name : str
        What to call it in an error.

    Returns
    -------
    CodeBook

    Raises
    ------
    TypeError, ValueError
        If it is none of these.

    Examples
    --------
    >>> as_codebook("nf4")
    CodeBook(16 values, -1 to 1)
    """
    if isinstance(code, CodeBook):
        return code
    if isinstance(code, (str, enum.Enum)):
        return _named(choice(code, name, codebooks.BY_NAME))
    if isinstance(code, np.ndarray) and code.dtype == np.float32:
        return _of_bytes(np.ascontiguousarray(code).tobytes()) if code.ndim == 1 else CodeBook(code)
    try:
        return CodeBook(code)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("values", name, 1)) from None
