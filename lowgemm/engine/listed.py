"""An lhs that a kernel of panels reads where it lies, through a list (`Kernel.scatters`).

Packing an lhs of 6400 x 576 takes 0.2 ms, as long as 22 columns of its product with AVX512-VNNI. With few
columns each row is multiplied a few times only, and is not packed: the kernel is told where the first row is,
how far it is to the next, and that a step of the depth is as far behind the one before as it is long.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.extending import register_jitable

from lowgemm.jit.memory import store_64
from lowgemm.jit.routine import routine
from lowgemm.kernels.framework.kernel import LIST_HEAD

#: Rows from which on and columns up to which an lhs is read so.
ROWS, COLUMNS = 256, 32


@register_jitable
def is_listed(p, k):
    """Whether the lhs of plan `p` is read so by the kernel of template `k`: unsigned, its rows contiguous, in
    whole steps.
    """
    fits = k.listed != 0 and p.lhs_k_stride == 1 and p.image == 0 and p.lhs_flip == 0 and p.depth % k.kr == 0
    return fits and p.splits == 1 and p.m >= ROWS and p.n <= COLUMNS


@functools.cache
def places_of(rows: int) -> np.ndarray:
    """Which row of a block each of its rows is: 0, 1, 2 and so on, as 64-bit numbers, which NumPy below 2 does
    not make by itself on Windows.
    """
    return np.arange(rows, dtype=np.int64)


@routine("pnnnnn")
def list_rows(to, first, rows, places, step, steps):
    """Write the list for `rows` rows from the address `first` on, and for so many steps of `step` bytes;
    `places` is the address of what `places_of` gives.
    """
    store_64(to, 0, first)
    store_64(to, 1, rows)
    store_64(to, 2, places)
    store_64(to, 3, step)
    for i in range(steps):
        store_64(to, LIST_HEAD + i, i * step)
