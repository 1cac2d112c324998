"""What the compiled passes over 8-bit tensors share.

They are in `binary.py` (sums and products of two), `look_up.py` (tables of 256), `average.py` (sums and means
of windows), `softmax.py` and `max_pool.py`. Bytes are read as ``(byte ^ flip) - flip``, which is the number
for uint8 (`flip` 0) and for int8 (128). Tests compare the passes with NumPy operations.
"""

from __future__ import annotations

import numpy as np

from lowgemm.jit.memory import nearest
from lowgemm.jit.routine import inner

#: Nanoseconds of an element of the passes with one operation for each byte, about.
NANOSECONDS = 0.1


@inner
def byte_of(t, low, high):
    """The byte of a float32 `t`, held between `low` and `high`, which are whole numbers, and rounded."""
    t = t if t > low else low  # a NaN too
    t = t if t < high else high
    return np.uint8(nearest(t) & np.int32(255))
