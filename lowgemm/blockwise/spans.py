"""Steps of a block, for the compiled workers: largest absolute value, values to codes, codes to values."""

from __future__ import annotations

import numba
import numpy as np
from numba import njit

from lowgemm.blockwise.codebook import (
    CODE_AT,
    FAST,
    IN_ORDER,
    META_AT,
    MID_HIGH_AT,
    MID_LOW_AT,
    TIE_UP_AT,
    VALUES_AT,
    ZERO_CODE,
)
from lowgemm.blockwise.emit import STEP, compress, expand, expand4, trailing_zeros
from lowgemm.fixedpoint.rows import largest_magnitude
from lowgemm.jit.memory import offset, stack

#: Steps of the loop between two passes over the elements that only the definition can decide.
STEPS = 64
#: Block scales whose reciprocal is a normal number with a full significand. With other scales the definition
#: decides every element.
LOWEST_SCALE, HIGHEST_SCALE = np.float32(2.0**-126), np.float32(2.0**125)


@njit(nogil=True, error_model="numpy")
def exact_rank(x, scale, book):
    """Number of mid-points m with ``m * scale < x`` as real numbers (``<=`` where the tie goes up).

    Each mid-point is ``high + low``, both of 24 bits, so both products are exact in float64. The difference
    ``x - high * scale`` is exact where the two are within a factor of 2 (Sterbenz), and otherwise so much
    larger than ``low * scale`` that its rounding does not matter.
    """
    high = numba.carray(offset(book, MID_HIGH_AT), (256,), np.float64)
    low = numba.carray(offset(book, MID_LOW_AT), (256,), np.float64)
    tie_up = numba.carray(offset(book, TIE_UP_AT), (256,), np.uint8)
    x, scale = np.float64(x), np.float64(scale)
    rank = 0
    step = 128
    while step > 0:  # unused mid-points are infinite
        at = rank + step - 1
        rest, limit = x - high[at] * scale, low[at] * scale
        rank += step * ((rest > limit) | ((rest == limit) & (tie_up[at] != 0)))
        step >>= 1
    return np.uint8(rank)


@njit(nogil=True, error_model="numpy")
def largest_bits(x, n):
    """Bits of the largest \\|x[i]\\|, i < n, at a pointer to float32."""
    return largest_magnitude(numba.carray(x, (n,), np.int32))


@njit(nogil=True, error_model="numpy")
def decide(x, steps, scale, book, masks, out):
    """Put right the codes that `compress` was in doubt about, as its `masks` say, one int64 for
    each of `steps` times `STEP` numbers.
    """
    source, codes = numba.carray(x, (steps * STEP,), np.float32), numba.carray(out, (steps * STEP,), np.uint8)
    doubts = numba.carray(masks, (steps,), np.int64)
    for s in range(steps):
        doubtful = doubts[s]
        while doubtful != 0:
            i = s * STEP + trailing_zeros(doubtful)
            codes[i] = exact_rank(source[i], scale, book)
            doubtful &= doubtful - 1


@njit(nogil=True, error_model="numpy")
def inverse_if_fast(scale, book):
    """Reciprocal of a block's scale, or 0 if the block cannot be coded by `compress` alone."""
    meta = numba.carray(offset(book, META_AT), (8,), np.int32)
    if meta[FAST] != 0 and meta[IN_ORDER] != 0 and LOWEST_SCALE <= scale <= HIGHEST_SCALE:
        return np.float32(1) / scale
    return np.float32(0)


@njit(nogil=True, error_model="numpy")
def quantize_span(x, n, scale, book, out):
    """Codes of n values at `x` with the block's scale, into bytes at `out`. `scale` is finite."""
    codes = numba.carray(out, (n,), np.uint8)
    source = numba.carray(x, (n,), np.float32)
    meta = numba.carray(offset(book, META_AT), (8,), np.int32)
    if scale == 0:
        codes[:] = np.uint8(meta[ZERO_CODE])
        return
    done = 0
    if meta[FAST] != 0 and LOWEST_SCALE <= scale <= HIGHEST_SCALE:
        inverse = np.float32(1) / scale
        space = stack(832)  # STEPS masks, STEP floats, STEP bytes
        masks = numba.carray(space, (STEPS,), np.int64)
        while done + STEP <= n:
            steps = min((n - done) // STEP, STEPS)
            if compress(offset(x, 4 * done), inverse, book, offset(out, done), steps, space) != 0:
                decide(offset(x, 4 * done), steps, scale, book, space, offset(out, done))
            done += steps * STEP
        if done < n:  # the rest, filled up with zeros
            padded = numba.carray(offset(space, 8 * STEPS), (STEP,), np.float32)
            ranks = numba.carray(offset(space, 8 * STEPS + 4 * STEP), (STEP,), np.uint8)
            padded[:] = np.float32(0)
            for i in range(n - done):
                padded[i] = source[done + i]
            compress(offset(space, 8 * STEPS), inverse, book, offset(space, 8 * STEPS + 4 * STEP), 1, space)
            for i in range(n - done):
                codes[done + i] = ranks[i]
                if (masks[0] >> i) & 1 != 0:
                    codes[done + i] = exact_rank(padded[i], scale, book)
            done = n
    for i in range(done, n):
        codes[i] = exact_rank(source[i], scale, book)
    if meta[IN_ORDER] == 0:
        code_of_rank = numba.carray(offset(book, CODE_AT), (256,), np.uint8)
        for i in range(n):
            codes[i] = code_of_rank[codes[i]]


@njit(nogil=True, error_model="numpy")
def dequantize_span(codes, n, scale, book, out):
    """Values of n codes, times `scale`, into float32 at `out`."""
    done = n // STEP * STEP
    expand(codes, book, scale, out, n // STEP)
    if done < n:
        source = numba.carray(codes, (n,), np.uint8)
        values = numba.carray(offset(book, VALUES_AT), (256,), np.float32)
        target = numba.carray(out, (n,), np.float32)
        for i in range(done, n):
            target[i] = values[source[i]] * scale


@njit(nogil=True, error_model="numpy")
def dequantize4_span(packed, first, n, scale, book, out):
    """Values of the n packed codes from number `first` on, times `scale`, into float32 at `out`."""
    done = 0
    if first % 2 == 0:
        while done + STEP <= n:
            expand4(offset(packed, (first + done) >> 1), book, scale, offset(out, 4 * done))
            done += STEP
    if done < n:
        source = numba.carray(packed, ((first + n + 1) >> 1,), np.uint8)
        values = numba.carray(offset(book, VALUES_AT), (256,), np.float32)
        target = numba.carray(out, (n,), np.float32)
        for i in range(done, n):
            # the element of the high nibble comes first
            shift = 4 * (1 - ((first + i) & 1))
            target[i] = values[(np.int64(source[(first + i) >> 1]) >> shift) & 15] * scale


@njit(nogil=True, error_model="numpy")
def pack_span(codes, n, out):
    """Two of the 2 * n codes in each of n bytes, the first in the high nibble."""
    source = numba.carray(codes, (2 * n,), np.uint8)
    target = numba.carray(out, (n,), np.uint8)
    for i in range(n):
        target[i] = np.uint8(source[2 * i] << np.uint8(4)) | source[2 * i + 1]
