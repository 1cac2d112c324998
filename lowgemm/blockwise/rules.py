"""Update rules of the optimizers, one compiled routine each, on float32 elements so that loops vectorise.

Every rule has two parts, called one after the other on the same elements. Part 0 reads the states and writes
the new ones elsewhere, and the largest magnitude of each. The caller looks whether these are finite, and
codes by them. Part 1 brings the parameters up to date.

A step must not write NaN or infinity into the parameters. Part 0 says whether that is certain: it knows the
largest parameter and the largest new state of its elements, and so the largest number that part 1 can add.
Nearly always both are far below what float32 holds, and part 1 runs as it is. Otherwise the caller keeps the
old parameters and looks at the new ones. Part 0 takes the largest magnitudes in the loop that computes
anyway: with loops of their own a step with float32 state took a fifth longer. To keep and look in part 1 each
time cost 5 to 8 % of a step with 8-bit states (1 million elements, one thread of a Xeon with AMX).

`reference_optimizers.py` has the same formulas in NumPy; both do the same float32 operations in the same
order and give the same bits.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.blockwise.records import Pointer, Record, Single, dtype_of
from lowgemm.fixedpoint.rows import INFINITY_BITS
from lowgemm.jit.memory import pointer_field
from lowgemm.jit.routine import inner, routine


class Constants(Record):
    """Constants of a step, the same for all elements."""

    __slots__ = ()
    _fields_ = (
        # the learning rate; minus the same, with Adam's first correction
        ("rate", Single), ("step", Single),
        # decays of the states, and one minus each
        ("beta1", Single), ("new1", Single), ("beta2", Single), ("new2", Single), ("beta3", Single), ("new3", Single),
        # weight of AdEMAMix's slow mean; eps, which keeps divisors away from 0
        ("alpha", Single), ("eps", Single),
        # the weight decay; 1 - rate * weight_decay, for rules that apply the decay apart from the gradient
        ("weight_decay", Single), ("shrink", Single),
        # corrections of a first and of a second moment for a state that began with 0
        ("first", Single), ("second", Single),
        # 1 at the first step, else 0
        ("begins", Single),
    )  # fmt: skip


class Operands(Record):
    """Where a rule finds its operands: float32 vectors of n elements each, and the constants.

    They are a record because so many arguments do not fit into registers, and those on the stack were read in
    another width than they had been written in, which stalls (4 % of a step of SGD).
    """

    __slots__ = ()
    _fields_ = (
        ("parameters", Pointer), ("gradient", Pointer), ("constants", Pointer),
        # the states before the step, and memory for those after it, which is elsewhere
        ("old1", Pointer), ("old2", Pointer), ("old3", Pointer), ("new1", Pointer), ("new2", Pointer), ("new3", Pointer),
        # where part 0 puts the bits of the largest magnitude of each new state, int32
        ("largest", Pointer),
    )  # fmt: skip


#: A parameter up to here changed by no more than this is finite: a quarter of what float32 holds, so that no
#: rounding on the way matters.
FAR_BELOW = 2.0**126

CONSTANTS, OPERANDS = dtype_of(Constants), dtype_of(Operands)


@intrinsic
def divide(typingctx, a, b):
    """``a / b`` without Python's check for zero, which would keep the loop from being vectorised."""

    def codegen(context, builder, signature, values):
        return builder.fdiv(*values)

    return a(a, a), codegen


@intrinsic
def magnitude_bits(typingctx, x):
    """Bits of abs(x) of a float32, as int32: in the order of the magnitudes, infinity and NaN above all
    others.
    """

    def codegen(context, builder, signature, values):
        bits = builder.bitcast(values[0], ir.IntType(32))
        return builder.and_(bits, ir.IntType(32)(0x7FFFFFFF))

    return types.int32(types.float32), codegen


@intrinsic
def raw_bits(typingctx, x):
    """Bits of a float32, as uint32: in the order of the numbers from 0 on, and negative ones last."""

    def codegen(context, builder, signature, values):
        return builder.bitcast(values[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def of_bits(typingctx, bits):
    """The float32 number that has these bits."""

    def codegen(context, builder, signature, values):
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), codegen


#: A rule's arguments are the part, n, and the address of its `Operands`. Part 0 returns whether part 1 is
#: certain to give finite parameters if the new states are finite (`certain`), part 1 nothing of meaning.
SIGNATURE = types.intp(types.intp, types.intp, types.voidptr)


@inner
def parameters_of(at, n):
    """Parameters, gradient, and the constants (of a vector of one)."""
    o = numba.carray(at, (1,), OPERANDS)[0]
    return (
        numba.carray(pointer_field(o, "parameters"), (n,), np.float32),
        numba.carray(pointer_field(o, "gradient"), (n,), np.float32),
        numba.carray(pointer_field(o, "constants"), (1,), CONSTANTS),
    )


@inner
def states_before(at, n):
    """The three states before the step; a rule with fewer does not use the rest."""
    o = numba.carray(at, (1,), OPERANDS)[0]
    return (
        numba.carray(pointer_field(o, "old1"), (n,), np.float32),
        numba.carray(pointer_field(o, "old2"), (n,), np.float32),
        numba.carray(pointer_field(o, "old3"), (n,), np.float32),
    )


@inner
def states_after(at, n):
    """The three states after the step."""
    o = numba.carray(at, (1,), OPERANDS)[0]
    return (
        numba.carray(pointer_field(o, "new1"), (n,), np.float32),
        numba.carray(pointer_field(o, "new2"), (n,), np.float32),
        numba.carray(pointer_field(o, "new3"), (n,), np.float32),
    )


@inner
def put_largest(at, first, second, third):
    """Store the bits of the largest magnitudes of the `first`, `second` and `third` new state."""
    o = numba.carray(at, (1,), OPERANDS)[0]
    largest = numba.carray(pointer_field(o, "largest"), (3,), np.int32)
    largest[0], largest[1], largest[2] = first, second, third


@inner
def as_magnitude(bits):
    """`raw_bits` of what must not be negative as bits of a magnitude: those of a negative number become
    NaN's.
    """
    return np.int32(min(bits, np.uint32(0x7FFFFFFF)))


@inner
def certain(largest, shrink, change):
    """Whether parameters are finite after the step: `largest` are the bits of the largest before it, `shrink`
    is what they are multiplied by, `change` at least as much as is added. In float64; NaN is no.
    """
    return np.intp(at_most(shrink, largest) <= FAR_BELOW and change <= FAR_BELOW)


@inner
def at_most(factor, largest):
    """Magnitude of `factor` times the number with the bits `largest`, in float64."""
    return abs(np.float64(factor)) * np.float64(of_bits(largest))


@inner
def quotient(numerator, raw, eps):
    """What a `numerator` over ``sqrt(v) * root + eps`` is at most, in float64, where `raw` are the largest
    `raw_bits` of v. Infinity if v may be negative, or if float32 may not hold the numerator.
    """
    if numerator <= FAR_BELOW and raw < INFINITY_BITS:
        return divide(numerator, np.float64(eps))
    return np.inf


@routine(SIGNATURE)
def adam(part, n, at):
    """Adam, AdamW, LAMB: decayed mean of the gradient over the root of the decayed mean of its square."""
    p, g, constants = parameters_of(at, n)
    h = constants[0]
    m, v, _ = states_after(at, n)
    largest = np.int32(0)
    if part == 0:
        old_m, old_v, _ = states_before(at, n)
        largest_p, raw = np.int32(0), np.uint32(0)
        beta1, new1, beta2, new2 = h.beta1, h.new1, h.beta2, h.new2
        for i in range(n):
            largest_p = max(largest_p, magnitude_bits(p[i]))
            m[i] = old_m[i] * beta1 + g[i] * new1
            v[i] = old_v[i] * beta2 + new2 * g[i] * g[i]
            largest = max(largest, magnitude_bits(m[i]))
            raw = max(raw, raw_bits(v[i]))
        put_largest(at, largest, as_magnitude(raw), 0)
        change = quotient(at_most(h.step, largest), raw, h.eps)
        return certain(largest_p, h.shrink, change)
    else:
        shrink, step, second, eps = h.shrink, h.step, h.second, h.eps
        for i in range(n):
            p[i] = p[i] * shrink + divide(step * m[i], math.sqrt(v[i]) * second + eps)
    return 0


@routine(SIGNATURE)
def ademamix(part, n, at):
    """AdEMAMix: Adam with a second, slow mean of the gradient added to the first."""
    p, g, constants = parameters_of(at, n)
    h = constants[0]
    m, slow, v = states_after(at, n)
    largest = np.int32(0)
    if part == 0:
        old_m, old_slow, old_v = states_before(at, n)
        largest_slow = largest_p = np.int32(0)
        raw = np.uint32(0)
        beta1, new1, beta2, new2, beta3, new3 = h.beta1, h.new1, h.beta2, h.new2, h.beta3, h.new3
        for i in range(n):
            m[i] = old_m[i] * beta1 + g[i] * new1
            largest_p = max(largest_p, magnitude_bits(p[i]))
            slow[i] = old_slow[i] * beta3 + g[i] * new3
            v[i] = old_v[i] * beta2 + new2 * g[i] * g[i]
            largest = max(largest, magnitude_bits(m[i]))
            largest_slow = max(largest_slow, magnitude_bits(slow[i]))
            raw = max(raw, raw_bits(v[i]))
        put_largest(at, largest, largest_slow, as_magnitude(raw))
        mixed = at_most(h.first, largest) + at_most(h.alpha, largest_slow)
        quick = quotient(mixed, raw, h.eps)
        return certain(largest_p, h.shrink, quick * max(1.0, abs(np.float64(h.rate))))
    else:
        shrink, rate, first, second, eps, alpha = (
            h.shrink,
            h.rate,
            h.first,
            h.second,
            h.eps,
            h.alpha,
        )
        for i in range(n):
            mixed = m[i] * first + alpha * slow[i]
            p[i] = p[i] * shrink - rate * divide(mixed, math.sqrt(v[i]) * second + eps)
    return 0


@routine(SIGNATURE)
def momentum(part, n, at):
    """SGD with momentum, LARS: the decayed sum of gradients, weight decay included in them."""
    p, g, constants = parameters_of(at, n)
    h = constants[0]
    m, _, _ = states_after(at, n)
    largest = np.int32(0)
    if part == 0:
        old_m, _, _ = states_before(at, n)
        beta1, decay, begins = h.beta1, h.weight_decay, h.begins
        if begins != 0:
            beta1 = np.float32(0)  # the state is 0 then anyway
        largest_p = np.int32(0)
        for i in range(n):
            largest_p = max(largest_p, magnitude_bits(p[i]))
            m[i] = old_m[i] * beta1 + (g[i] + decay * p[i])
            largest = max(largest, magnitude_bits(m[i]))
        put_largest(at, largest, 0, 0)
        return certain(largest_p, 1.0, at_most(h.rate, largest))
    else:
        rate = h.rate
        for i in range(n):
            p[i] = p[i] - rate * m[i]
    return 0


@routine(SIGNATURE)
def lion(part, n, at):
    """Lion: a step of fixed length along the sign of a mean; the space of state 2 holds the sign."""
    p, g, constants = parameters_of(at, n)
    h = constants[0]
    m, direction, _ = states_after(at, n)
    largest = np.int32(0)
    if part == 0:
        old_m, _, _ = states_before(at, n)
        beta1, new1, beta2, new2 = h.beta1, h.new1, h.beta2, h.new2
        largest_p = np.int32(0)
        for i in range(n):
            largest_p = max(largest_p, magnitude_bits(p[i]))
            mixed = old_m[i] * beta1 + g[i] * new1
            direction[i] = np.float32(mixed > 0) - np.float32(mixed < 0)
            m[i] = old_m[i] * beta2 + g[i] * new2
            largest = max(largest, magnitude_bits(m[i]))
        put_largest(at, largest, 0, 0)
        return certain(largest_p, h.shrink, abs(np.float64(h.rate)))
    else:
        shrink, rate = h.shrink, h.rate
        for i in range(n):
            p[i] = p[i] * shrink - rate * direction[i]
    return 0


@routine(SIGNATURE)
def rmsprop(part, n, at):
    """RMSprop, Adagrad: the gradient over the root of the decayed mean, or of the sum, of its square."""
    p, g, constants = parameters_of(at, n)
    h = constants[0]
    v, _, _ = states_after(at, n)
    decay = h.weight_decay
    if part == 0:
        old_v, _, _ = states_before(at, n)
        beta1, new1 = h.beta1, h.new1
        largest = largest_p = np.int32(0)
        raw = np.uint32(0)
        for i in range(n):
            whole = g[i] + decay * p[i]
            v[i] = old_v[i] * beta1 + new1 * whole * whole
            largest = max(largest, magnitude_bits(whole))
            largest_p = max(largest_p, magnitude_bits(p[i]))
            raw = max(raw, raw_bits(v[i]))
        put_largest(at, as_magnitude(raw), 0, 0)
        return certain(largest_p, 1.0, quotient(at_most(h.rate, largest), raw, h.eps))
    else:
        rate, eps = h.rate, h.eps
        for i in range(n):
            p[i] = p[i] - divide(rate * (g[i] + decay * p[i]), math.sqrt(v[i]) + eps)
    return 0


#: The rules by name.
RULES = {"adam": adam, "ademamix": ademamix, "momentum": momentum, "lion": lion, "rmsprop": rmsprop}
#: Rules whose part 1 divides and takes roots.
DIVIDING = frozenset({"adam", "ademamix", "rmsprop"})
