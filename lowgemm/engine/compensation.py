"""Zero-point compensation: what the kernel adds to each row and column of the sums.

    sum (l - zl) (r - zr) = sum l r - zl (sum r - depth zr) - zr sum l

The second summand depends on the column alone, the third on the row alone; a leading bias joins them. Where
zero points differ by row or column ("bilinear"), the second is a product of both, and `output/bilinear.py`
adds it.
"""

from __future__ import annotations

from lowgemm.jit.memory import load_i32, store_32
from lowgemm.jit.routine import routine


@routine("nnpnnnppnpp")
def compensate(n, depth, sums, zero, other_zero, bilinear, zeros, bias, has_bias, compensation, factors):
    """What the result adds to each of n columns, or rows: everything in it that depends on the column, or on
    the row, alone.

    `sums` points to n sums of the packed columns, int32 like all that follows. Of columns, `zero` is the zero
    point of the lhs, and `other_zero` that of the rhs. Of rows it is the other way round, and whoever counts
    the product of both with the columns gives 0 for the depth. Where `bilinear` is 1, the `zeros` (one for
    each column) take the place of both, and the result goes to `factors`. `bias` is read if `has_bias` is 1.
    `compensation` and `factors` receive one number for each column.
    """
    for i in range(n):
        value = 0
        if has_bias:
            value = load_i32(bias, i)
        if bilinear:
            store_32(factors, i, depth * load_i32(zeros, i) - load_i32(sums, i))
        else:
            value += zero * (depth * other_zero - load_i32(sums, i))
        store_32(compensation, i, value)
