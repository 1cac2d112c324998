"""Fixed-point functions of one value, for compiled code: int64 in, int64 out, `bits` a constant.

The formulas are those of `lowgemm/reference_fixedpoint.py`. There are no branches on values, so that LLVM
vectorises loops over them; `wrap` and `saturate` become one or two instructions.

`x`, `y`, `a` and `b` are raw values of `bits` bits (16 or 32). Where a number has integer bits,
`integer_bits` says how many; elsewhere it has none. An `exponent` is that of a power of two, and `raw32` a
constant's raw value of 32 bits.
"""

from __future__ import annotations

from lowgemm.jit.routine import inner


@inner
def low(bits):
    """Smallest raw value."""
    return -(1 << (bits - 1))


@inner
def high(bits):
    """Largest raw value."""
    return (1 << (bits - 1)) - 1


@inner
def saturate(x, bits):
    """Clip to the raw range."""
    return min(max(x, low(bits)), high(bits))


@inner
def wrap(x, bits):
    """Reduce modulo 2**bits."""
    return (x << (64 - bits)) >> (64 - bits)


@inner
def high_mul(a, b, bits):
    """SRDHM."""
    return min((a * b + (1 << (bits - 2))) >> (bits - 1), high(bits))


@inner
def divide_by_pot(x, exponent):
    """RDP for exponents from 0 up: floor((x + 2**(e - 1) - (x < 0)) / 2**e), and x itself for e = 0."""
    return (x + ((1 << exponent) >> 1) + ((x >> 63) & -(exponent > 0))) >> exponent


@inner
def shift_left(x, exponent, bits):
    """Saturating left shift; any int32 by up to 31 fits int64."""
    return saturate(x << exponent, bits)


@inner
def half_sum(a, b):
    """Rounding half sum."""
    return divide_by_pot(a + b, 1)


@inner
def multiply_by_pot(x, exponent, bits):
    """Saturating to the left, rounding to the right."""
    return divide_by_pot(shift_left(x, max(exponent, 0), bits), max(-exponent, 0))


@inner
def constant(raw32, bits):
    """A 32-bit constant at another width."""
    return divide_by_pot(raw32, 32 - bits)


@inner
def exp_interval(a, bits):
    """exp on [-1/4, 0)."""
    c = constant(1895147668, bits)
    x = wrap(a + (1 << (bits - 4)), bits)
    x2 = high_mul(x, x, bits)
    x3, x4 = high_mul(x2, x, bits), high_mul(x2, x2, bits)
    quartic = wrap(divide_by_pot(x4, 2) + x3, bits)
    tail = divide_by_pot(wrap(high_mul(quartic, constant(715827883, bits), bits) + x2, bits), 1)
    total = c + high_mul(c, wrap(x + tail, bits), bits)
    return saturate(total, bits) if bits == 16 else wrap(total, bits)


@inner
def _exp_step(y, rem, e, raw32, integer_bits, bits):
    """`y` times exp(-2**e), which is `raw32`, if the remainder `rem` has the bit of 2**e."""
    bit = bits - 1 - integer_bits + e
    applies = integer_bits > e and bit >= 0 and (rem >> max(bit, 0)) & 1
    return high_mul(y, constant(raw32, bits), bits) if applies else y


@inner
def exp_negative(a, integer_bits, bits):
    """exp for a <= 0."""
    quarter = 1 << (bits - 3 - integer_bits)
    r = (a & (quarter - 1)) - quarter
    rem = wrap(r - a, bits)
    y = exp_interval(multiply_by_pot(r, integer_bits, bits), bits)
    y = _exp_step(y, rem, -2, 1672461947, integer_bits, bits)
    y = _exp_step(y, rem, -1, 1302514674, integer_bits, bits)
    y = _exp_step(y, rem, 0, 790015084, integer_bits, bits)
    y = _exp_step(y, rem, 1, 290630308, integer_bits, bits)
    y = _exp_step(y, rem, 2, 39332535, integer_bits, bits)
    y = _exp_step(y, rem, 3, 720401, integer_bits, bits)
    y = _exp_step(y, rem, 4, 242, integer_bits, bits)
    if integer_bits > 5:
        y = 0 if a < constant(-(1 << (36 - integer_bits)), bits) else y
    return high(bits) if a == 0 else y


@inner
def _reciprocal(a, bits):
    h = half_sum(a, high(bits))
    one = 1 << (bits - 3)
    x = wrap(constant(1515870810, bits) + high_mul(h, constant(-1010580540, bits), bits), bits)
    for _ in range(3):
        error = wrap(one - high_mul(h, x, bits), bits)
        x = wrap(x + multiply_by_pot(high_mul(x, error, bits), 2, bits), bits)
    return x


@inner
def one_over_one_plus_x(a, bits):
    """1 / (1 + a) on [0, 1]."""
    return multiply_by_pot(_reciprocal(a, bits), 1, bits)


@inner
def one_minus_x_over_one_plus_x(a, bits):
    """(1 - a) / (1 + a) on [0, 1]."""
    return multiply_by_pot(wrap(_reciprocal(a, bits) - (1 << (bits - 3)), bits), 2, bits)


@inner
def tanh(a, integer_bits, bits):
    """Hyperbolic tangent."""
    minus = a if a < 0 else -a
    t = one_minus_x_over_one_plus_x(exp_negative(minus, integer_bits + 1, bits), bits)
    return 0 if a == 0 else (-t if a < 0 else t)


@inner
def logistic(a, integer_bits, bits):
    """Logistic function."""
    minus = a if a < 0 else -a
    upper = one_over_one_plus_x(exp_negative(minus, integer_bits, bits), bits)
    return (1 << (bits - 2)) if a == 0 else (upper if a > 0 else high(bits) - upper)
