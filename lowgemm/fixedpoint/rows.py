"""Rows of float32 to int8 codes, for compiled code: the passes that all such formats share."""

from __future__ import annotations

import numpy as np

from lowgemm.jit.routine import inner

#: Bits of float32's infinity: those of no finite magnitude are as large.
INFINITY_BITS = 0x7F800000
#: Rows whose largest magnitude is below this have codes of 0: 127 / 2**-119 is the last inverse that float32
#: can hold.
TINY = np.float32(2.0**-119)


@inner
def largest_magnitude(bits):
    """Bits of the largest absolute value of a row, from its bits as int32; 0 of an empty one.

    The bits of magnitudes, as integers, have the order of the magnitudes, with infinity and NaN above all
    others. A maximum of integers vectorises.
    """
    largest = np.int32(0)
    for k in range(bits.size):
        largest = max(largest, np.int32(bits[k] & np.int32(0x7FFFFFFF)))
    return largest


@inner
def code_row(x, factor, codes):
    """Write ``rint(x * factor)``, the product rounded to float32, ties to even."""
    for k in range(x.size):
        codes[k] = np.int32(np.rint(x[k] * factor))
