"""Code books made from their definitions: which real number each code stands for.

All are float32 tables; the code is the index. The arithmetic is float32 with each evenly spaced grid computed
from both of its ends (`_grid`), because that is what existing files hold: the tables agree with those of
bitsandbytes 0.50.2 bit for bit, so that states and weights can be exchanged.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from lowgemm.checks.values import integer


def _grid(start: float, stop: float, count: int) -> np.ndarray:
    """`count` evenly spaced float32 values, each computed from the nearer end with one rounding."""
    first, last = np.float32(start), np.float32(stop)
    step = float((last - first) / np.float32(count - 1))
    i = np.arange(count)
    # step * i has at most 24 + 9 bits: exact in float64, so the sum is rounded once to float64, once to
    # float32
    up, down = float(first) + step * i, float(last) - step * (count - 1 - i)
    return np.where(i < count // 2, up, down).astype(np.float32)


def _padded(values: list[float]) -> np.ndarray:
    """Ascending table of 256 entries, filled up with zeros."""
    return np.array(sorted([*values, *[0.0] * (256 - len(values))]), dtype=np.float32)


def dynamic_tree(signed: bool = True, bits: int = 8, exponent_levels: int | None = None) -> np.ndarray:
    """Dynamic tree code: a byte whose split between exponent and fraction is marked in the byte itself.

    A code of 8 bits reads::

        signed      s 0 0 1 f f f f      sign, a run of r zeros, the indicator bit 1, then the fraction
        unsigned    0 0 1 f f f f f      the same without a sign

    and means ``sign * 10**-r * x``, where x is the middle of the fraction's cell when [0.1, 1] is cut into
    ``2**(number of fraction bits)`` equal cells. A short run of zeros gives a large number with many fraction
    bits. A long run gives a small number with few. So one byte covers seven decades, with the finest steps
    near 1. The two patterns without an indicator bit mean 0 and 1 (``10...0`` is 1 where there is a sign).

    Parameters
    ----------
    signed : bool
        Whether one bit is a sign.
    bits : int
        Bits of a code, 2 to 8. The table has 256 entries all the same, filled up with zeros.
    exponent_levels : int, optional
        Number of decades; the default is ``bits - 1``, the code above. With fewer, the smallest decade gets
        the finer fractions that are left over.

    Returns
    -------
    ndarray of float32, shape (256,)
        Ascending.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    References
    ----------
    T. Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2015 (arXiv:1511.04561).
    T. Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2021 (arXiv:2110.02861), section 1.3.

    Examples
    --------
    >>> table = dynamic_tree()
    >>> print(table[[0, 127, 128, 129, 130, 255]])
    [-9.9296874e-01  0.0000000e+00  5.5000004e-07  3.2500002e-06
      7.7499999e-06  1.0000000e+00]
    """
    bits = integer(bits, "bits", 2, 8)
    body = bits - 1
    levels = body if exponent_levels is None else integer(exponent_levels, "exponent_levels", 1, body)
    values = [0.0, 1.0]

    def decade(cells: int, exponent: int) -> None:
        edges = _grid(0.1, 1.0, cells + 1)
        middles = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0**exponent)
        values.extend(middles.tolist())
        if signed:
            values.extend((-middles).tolist())

    for level in range(levels):
        decade(2 ** (level + body - levels) * (1 if signed else 2), level - levels + 1)
    left_over = 2 ** (body - levels) - 1
    if left_over:
        decade(left_over, 0)
    return _padded(values)


def tree_bits(signed: bool = True) -> np.ndarray:
    """Index in `dynamic_tree` of each bit pattern, read as its docstring says.

    Parameters
    ----------
    signed : bool
        Whether the first bit is a sign.

    Returns
    -------
    ndarray of uint8, shape (256,)

    Examples
    --------
    >>> int(tree_bits()[0b0_1_000000]), int(tree_bits()[0b0_0000001]), int(tree_bits()[0b1_0000000])
    (191, 128, 255)
    """
    table = dynamic_tree(signed)
    index = np.empty(256, dtype=np.uint8)
    body = 7 if signed else 8
    for pattern in range(256):
        rest, minus = pattern & (2**body - 1), signed and pattern >> 7
        run = body - rest.bit_length()
        if rest == 0:
            value = 1.0 if minus else 0.0
        elif not signed and run == 7:  # the eighth decade is not used: its one pattern is 1
            value = 1.0
        else:
            fraction_bits = body - 1 - run
            fraction = rest & (2**fraction_bits - 1)
            value = (0.1 + 0.9 * (2 * fraction + 1) / 2 ** (fraction_bits + 1)) * 10.0**-run
            value = -value if minus else value
        index[pattern] = np.abs(table.astype(np.float64) - value).argmin()
    return index


def linear(signed: bool = True, bits: int = 8, zero: bool = True) -> np.ndarray:
    """Evenly spaced code on [-1, 1], or on [0, 1] without a sign.

    Parameters
    ----------
    signed : bool
        Whether the code reaches from -1, or from 0.
    bits : int
        Bits of a code, 2 to 8. The table has 256 entries all the same: unused ones are zeros in the middle.
    zero : bool
        Whether a signed 8-bit code gives up one value to be symmetric and hold 0.

    Returns
    -------
    ndarray of float32, shape (256,)

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> linear(bits=2)[[0, 1, 2, 254, 255]]
    array([-1.,  0.,  0.,  0.,  1.], dtype=float32)
    """
    bits = integer(bits, "bits", 2, 8)
    odd = signed and (zero or bits < 8)
    values = _grid(-1.0 if signed else 0.0, 1.0, 2**bits - (1 if odd else 0))
    half = values.size // 2
    gap = np.zeros(256 - values.size, dtype=np.float32)
    return np.concatenate([values[:half], gap, values[half:]])


def floating(bits: int = 8, exponent_bits: int = 4, signed: bool = True) -> np.ndarray:
    """Small floating-point numbers with subnormals, scaled so that the largest is 1.

    Parameters
    ----------
    bits : int
        Bits of a code, 2 to 8: the sign if there is one, `exponent_bits`, and the fraction.
    exponent_bits : int
        At least 1; the fraction may have no bits.
    signed : bool
        Whether one bit is a sign.

    Returns
    -------
    ndarray of float32, shape (256,)
        Ascending, filled up with zeros.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> print(np.unique(floating(bits=4, exponent_bits=2))[7:])
    [0.         0.02083333 0.16666667 0.25       0.33333334 0.5
     0.6666667  1.        ]
    """
    bits = integer(bits, "bits", 2, 8)
    exponent_bits = integer(exponent_bits, "exponent_bits", 1, bits - (1 if signed else 0))
    fraction_bits = bits - exponent_bits - (1 if signed else 0)
    bias = 2 ** (exponent_bits - 1)
    values = []
    for exponent in range(2**exponent_bits):
        for fraction in range(2**fraction_bits):
            f = fraction / 2**fraction_bits
            # the exponent field counts downwards; field 0 holds the subnormals, half a step above the others'
            # scale
            value = f * 2.0**-bias if exponent == 0 else (1 + f) * 2.0 ** (bias + 1 - exponent)
            values.extend([value, -value] if signed else [value])
    table = _padded(values)
    return table / table.max()


def normal_float4() -> np.ndarray:
    """NF4: 16 quantiles of the normal distribution with an exact zero, 8 steps above it and 7 below.

    Returns
    -------
    ndarray of float32, shape (16,)
        Ascending, from -1 to 1.

    References
    ----------
    T. Dettmers et al., "QLoRA", 2023 (arXiv:2305.14314), section 3.

    Examples
    --------
    >>> print(normal_float4()[[0, 6, 7, 8, 15]])
    [-1.         -0.09105004  0.          0.0795803   1.        ]
    """
    outermost = 0.9677083  # leaves half a step of probability beyond the last value, averaged over both sides
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in _grid(outermost, 0.5, 9)[:-1].tolist()]
    below = [-quantile(p) for p in _grid(outermost, 0.5, 8)[:-1].tolist()]
    table = np.array(sorted([*below, 0.0, *above]), dtype=np.float32)
    return table / table.max()


def float4() -> np.ndarray:
    """FP4: sign, two exponent bits, one fraction bit; the index is the bit pattern, so it is not ascending.

    Returns
    -------
    ndarray of float32, shape (16,)
        With two zeros, at 0 and 8.

    Examples
    --------
    >>> print(float4()[:8])
    [0.         0.00520833 0.6666667  1.         0.33333334 0.5
     0.16666667 0.25      ]
    """
    # patterns 000 and 001 are subnormals (0 and 1/16); the exponent field counts 10.., 01.. and 11..
    # downwards
    steps = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], dtype=np.float32)
    table = np.concatenate([steps, -steps])
    table[8] = 0.0
    return table / np.float32(12)


def abnormal_float4() -> np.ndarray:
    """AF4 for blocks of 64: 16 values that minimise the expected absolute error of normal data, descending.

    Returns
    -------
    ndarray of float32, shape (16,)

    References
    ----------
    D. Yoshida, "NF4 Isn't Information Theoretically Optimal (and that's Good)", 2023 (arXiv:2306.06965).

    Examples
    --------
    >>> print(abnormal_float4()[[0, 7, 8, 15]])
    [ 1.          0.04273164  0.         -1.        ]
    """
    above = [1.0, 0.72424863, 0.55496234, 0.42563882, 0.31675666, 0.21961274, 0.12934483, 0.04273164]
    below = [-0.04934812, -0.14982478, -0.25607552, -0.3736951, -0.51243739, -0.69441008, -1.0]
    return np.array([*above, 0.0, *below], dtype=np.float32)


def integer4() -> np.ndarray:
    """INT4: the whole numbers -8 to 7, divided by 8; code c stands for (c - 8) / 8.

    Returns
    -------
    ndarray of float32, shape (16,)
        Ascending.

    Examples
    --------
    >>> print(integer4()[[0, 8, 15]])
    [-1.     0.     0.875]
    """
    return (np.arange(16, dtype=np.float32) - 8) / np.float32(8)


def ternary() -> np.ndarray:
    """-1, 0 and 1, in this order of codes: the weights of ternary networks, which are these times a scale.

    Returns
    -------
    ndarray of float32, shape (3,)

    Examples
    --------
    >>> print(ternary())
    [-1.  0.  1.]
    """
    return np.array([-1, 0, 1], np.float32)


def integer2() -> np.ndarray:
    """INT2: the whole numbers -2 to 1, divided by 2; code c stands for (c - 2) / 2.

    Returns
    -------
    ndarray of float32, shape (4,)

    Examples
    --------
    >>> print(integer2())
    [-1.  -0.5  0.   0.5]
    """
    return (np.arange(4, dtype=np.float32) - 2) / np.float32(2)


#: Books by name, as the functions of this package take them.
BY_NAME = {
    "dynamic": dynamic_tree,
    "dynamic_unsigned": lambda: dynamic_tree(signed=False),
    "linear": linear,
    "linear_unsigned": lambda: linear(signed=False),
    "fp8_e4m3": lambda: floating(8, 4),
    "fp8_e5m2": lambda: floating(8, 5),
    "nf4": normal_float4,
    "fp4": float4,
    "af4": abnormal_float4,
    "int4": integer4,
    "int2": integer2,
    "ternary": ternary,
}
