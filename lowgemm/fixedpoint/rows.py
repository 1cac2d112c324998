"""Rows of float32 to int8 codes, for compiled code: the passes that all such formats share."""

from __future__ import annotations

import numpy as np

from lowgemm.jit.routine import inner


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
