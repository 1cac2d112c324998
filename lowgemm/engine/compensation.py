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
def col_compensation(
    n, depth, sums, lhs_zero, rhs_zero, bilinear, rhs_zeros, bias, has_bias, compensation, factors
):
    """Column compensation of columns 0..n: everything in the result that depends on the column alone.

    `sums` points to n column sums of the packed rhs, int32 like all that follows. `lhs_zero` and `rhs_zero`
    are numbers. Where `bilinear` is 1, `rhs_zeros` (one for each column) takes the place of both, and the
    result goes to `factors`. `bias` is read if `has_bias` is 1. `compensation` and `factors` receive one
    number for each column.
    """
    for i in range(n):
        value = 0
        if has_bias:
            value = load_i32(bias, i)
        if bilinear:
            store_32(factors, i, depth * load_i32(rhs_zeros, i) - load_i32(sums, i))
        else:
            value += lhs_zero * (depth * rhs_zero - load_i32(sums, i))
        store_32(compensation, i, value)


@routine("npnnpnp")
def row_compensation(m, sums, rhs_zero, bilinear, bias, has_bias, compensation):
    """Row compensation of rows 0..m: everything in the result that depends on the row alone.

    `sums` points to m row sums of the packed lhs, `bias` to as many int32 if `has_bias` is 1, and
    `compensation` receives as many. `rhs_zero` is a number; it plays no part where `bilinear` is 1.
    """
    for i in range(m):
        value = 0
        if has_bias:
            value = load_i32(bias, i)
        if not bilinear:
            value -= rhs_zero * load_i32(sums, i)
        store_32(compensation, i, value)
