"""Where an array's first element lies, asked in the quickest way: a small model's nodes ask for hundreds of
addresses.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from lowgemm.engine.array_objects import DATA
from lowgemm.engine.entry import usable

_known = functools.cache(usable)
_word = ctypes.c_int64.from_address


def address(a: np.ndarray) -> int:
    """``a.ctypes.data``, from the array object's field where that is known to be (130 ns instead of 900).

    Examples
    --------
    >>> import numpy as np
    >>> a = np.arange(5)[2:]
    >>> address(a) == a.ctypes.data
    True
    """
    return _word(id(a) + 8 * DATA).value if _known() else a.ctypes.data
