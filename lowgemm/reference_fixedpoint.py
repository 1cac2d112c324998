"""The definition of each fixed-point function, in NumPy int64, one rounding a line.

A raw value r of `bits` bits (8, 16 or 32) with i integer bits stands for ``r / 2**(bits - 1 - i)``. All
functions take and give int64 arrays that hold raw values. Source: gemmlowp's ``fixedpoint/fixedpoint.h``;
constants of 16 bits are those of 32 bits divided by 2**16 with `rounding_divide_by_pot`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

Raw = np.ndarray


def _raw(x: ArrayLike) -> Raw:
    return np.asarray(x, dtype=np.int64)


def limits(bits: int) -> tuple[int, int]:
    """Smallest and largest raw value."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def saturate(x: ArrayLike, bits: int) -> Raw:
    """Clip to the raw range."""
    return np.clip(_raw(x), *limits(bits))


def wrap(x: ArrayLike, bits: int) -> Raw:
    """Reduce modulo 2**bits to the raw range."""
    half = 2 ** (bits - 1)
    return (_raw(x) + half) % (2 * half) - half


def saturating_rounding_doubling_high_mul(a: ArrayLike, b: ArrayLike, bits: int) -> Raw:
    """SRDHM: a * b / 2**(bits - 1) to nearest, ties towards plus infinity; min * min saturates."""
    return saturate((_raw(a) * _raw(b) + 2 ** (bits - 2)) // 2 ** (bits - 1), bits)


def rounding_divide_by_pot(x: ArrayLike, exponent: ArrayLike) -> Raw:
    """RDP: x / 2**exponent to nearest, ties away from zero."""
    x, step = _raw(x), 2 ** _raw(exponent)
    return np.sign(x) * ((np.abs(x) + step // 2) // step)


def shift_left(x: ArrayLike, exponent: ArrayLike, bits: int) -> Raw:
    """x * 2**exponent, saturating."""
    return saturate(_raw(x) * 2 ** _raw(exponent), bits)


def saturating_add(a: ArrayLike, b: ArrayLike, bits: int) -> Raw:
    """a + b, saturating."""
    return saturate(_raw(a) + _raw(b), bits)


def rounding_half_sum(a: ArrayLike, b: ArrayLike) -> Raw:
    """(a + b) / 2 to nearest, ties away from zero."""
    return rounding_divide_by_pot(_raw(a) + _raw(b), 1)


def saturating_rounding_multiply_by_pot(x: ArrayLike, exponent: ArrayLike, bits: int) -> Raw:
    """x * 2**exponent: saturating to the left, RDP to the right."""
    e = _raw(exponent)
    return np.where(
        e >= 0, shift_left(x, np.maximum(e, 0), bits), rounding_divide_by_pot(x, np.maximum(-e, 0))
    )


def constant(raw32: int, bits: int) -> int:
    """A 32-bit constant at another width."""
    return int(rounding_divide_by_pot(raw32, 32 - bits))


def exp_on_interval_between_negative_one_quarter_and_0_excl(a: ArrayLike, bits: int) -> Raw:
    """exp(a) for a in [-1/4, 0), 0 integer bits: fourth-order Taylor polynomial around -1/8."""

    def mul(p: ArrayLike, q: ArrayLike) -> Raw:
        return saturating_rounding_doubling_high_mul(p, q, bits)

    exp_minus_eighth, third = constant(1895147668, bits), constant(715827883, bits)
    x = wrap(_raw(a) + 2 ** (bits - 4), bits)
    x2 = mul(x, x)
    x3, x4 = mul(x2, x), mul(x2, x2)
    quartic = wrap(rounding_divide_by_pot(x4, 2) + x3, bits)
    tail = rounding_divide_by_pot(wrap(mul(quartic, third) + x2, bits), 1)
    product = mul(exp_minus_eighth, wrap(x + tail, bits))
    total = exp_minus_eighth + product
    return saturate(total, bits) if bits == 16 else wrap(total, bits)


#: exp(-2**e) in Q0.31 for e = -2 .. 4.
EXP_OF_MINUS_POT = (
    (-2, 1672461947),
    (-1, 1302514674),
    (0, 790015084),
    (1, 290630308),
    (2, 39332535),
    (3, 720401),
    (4, 242),
)


def exp_on_negative_values(a: ArrayLike, integer_bits: int, bits: int) -> Raw:
    """exp(a) for a <= 0 with `integer_bits` integer bits; the result has none.

    a = r - rem with r in [-1/4, 0): exp(r), times exp(-2**e) for every bit of rem worth 2**e.
    """
    a = _raw(a)
    fraction = bits - 1 - integer_bits
    quarter = 2 ** (fraction - 2)
    r = a % quarter - quarter
    rem = wrap(r - a, bits)
    scaled = saturating_rounding_multiply_by_pot(r, integer_bits, bits)
    y = exp_on_interval_between_negative_one_quarter_and_0_excl(scaled, bits)
    for e, raw32 in EXP_OF_MINUS_POT:
        if integer_bits > e:
            factor = saturating_rounding_doubling_high_mul(y, constant(raw32, bits), bits)
            y = np.where(rem & 2 ** (fraction + e), factor, y)
    if integer_bits > 5:
        y = np.where(a < constant(-(2 ** (36 - integer_bits)), bits), 0, y)
    return np.where(a == 0, limits(bits)[1], y)


def _newton_reciprocal(a: ArrayLike, bits: int) -> Raw:
    """2 / (1 + a) for a in [0, 1], in 2 integer bits: three Newton steps on h = (1 + a) / 2."""

    def mul(p: ArrayLike, q: ArrayLike) -> Raw:
        return saturating_rounding_doubling_high_mul(p, q, bits)

    h = rounding_half_sum(a, limits(bits)[1])
    start, slope = constant(1515870810, bits), constant(-1010580540, bits)
    one = 2 ** (bits - 3)
    x = wrap(start + mul(h, slope), bits)
    for _ in range(3):
        error = wrap(one - mul(h, x), bits)
        x = wrap(x + saturating_rounding_multiply_by_pot(mul(x, error), 2, bits), bits)
    return x


def one_over_one_plus_x_for_x_in_0_1(a: ArrayLike, bits: int) -> Raw:
    """1 / (1 + a) for a in [0, 1], 0 integer bits."""
    return saturating_rounding_multiply_by_pot(_newton_reciprocal(a, bits), 1, bits)


def one_minus_x_over_one_plus_x_for_x_in_0_1(a: ArrayLike, bits: int) -> Raw:
    """(1 - a) / (1 + a) for a in [0, 1], 0 integer bits."""
    one = 2 ** (bits - 3)
    return saturating_rounding_multiply_by_pot(wrap(_newton_reciprocal(a, bits) - one, bits), 2, bits)


def tanh(a: ArrayLike, integer_bits: int, bits: int) -> Raw:
    """tanh(a): (1 - y) / (1 + y) with y = exp(-2 |a|), the sign restored."""
    a = _raw(a)
    minus = np.where(a < 0, a, -a)
    t = one_minus_x_over_one_plus_x_for_x_in_0_1(exp_on_negative_values(minus, integer_bits + 1, bits), bits)
    return np.where(a == 0, 0, np.where(a < 0, -t, t))


def logistic(a: ArrayLike, integer_bits: int, bits: int) -> Raw:
    """1 / (1 + exp(-a)); 1 - that for negative a; exactly 1/2 at 0."""
    a = _raw(a)
    minus = np.where(a < 0, a, -a)
    upper = one_over_one_plus_x_for_x_in_0_1(exp_on_negative_values(minus, integer_bits, bits), bits)
    return np.where(a == 0, 2 ** (bits - 2), np.where(a > 0, upper, limits(bits)[1] - upper))
