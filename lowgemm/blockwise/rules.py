"""Update rules of the optimizers, one compiled routine each: elementwise float32, so that the loops vectorise.

Every rule has two parts, called one after the other on the same block: part 0 brings the states up to date, part 1
the parameters. Between them the caller looks whether the new states are finite. `reference_optimizers.py` has the
same formulas in NumPy; both do the same float32 operations in the same order and give the same bits.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from lowgemm.jit.routine import compile_c, signature
from lowgemm.jit.stamp import source_stamp

#: Entries of the vector of constants, all float32. BETA1..3 are the decays of the states, NEW1..3 one minus them;
#: STEP is minus the learning rate with Adam's first correction, SECOND the second correction.
(
    RATE,
    STEP,
    BETA1,
    NEW1,
    BETA2,
    NEW2,
    BETA3,
    NEW3,
    ALPHA,
    EPS,
    WEIGHT_DECAY,
    SHRINK,
    FIRST,
    SECOND,
    BEGINS,
) = range(15)
CONSTANTS = 16
#: part, n, parameters, gradient, three states, constants.
SIGNATURE = signature("nnpppppp")


@intrinsic
def divide(typingctx, a, b):
    """``a / b`` without Python's check for zero, which would keep the loop from being vectorised."""

    def codegen(context, builder, signature, values):
        return builder.fdiv(*values)

    return a(a, a), codegen


def _make_adam(stamp: int):
    @compile_c(SIGNATURE)
    def adam(part, n, p_at, g_at, m_at, v_at, unused, h_at):
        """Adam, AdamW, LAMB: decayed mean of the gradient over the root of the decayed mean of its square."""
        _ = stamp
        p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
        m, v = numba.carray(m_at, (n,), np.float32), numba.carray(v_at, (n,), np.float32)
        h = numba.carray(h_at, (CONSTANTS,), np.float32)
        if part == 0:
            beta1, new1, beta2, new2 = h[BETA1], h[NEW1], h[BETA2], h[NEW2]
            for i in range(n):
                m[i] = m[i] * beta1 + g[i] * new1
                v[i] = v[i] * beta2 + new2 * g[i] * g[i]
        else:
            shrink, step, second, eps = h[SHRINK], h[STEP], h[SECOND], h[EPS]
            for i in range(n):
                p[i] = p[i] * shrink + divide(step * m[i], math.sqrt(v[i]) * second + eps)

    return adam


def _make_ademamix(stamp: int):
    @compile_c(SIGNATURE)
    def ademamix(part, n, p_at, g_at, m_at, slow_at, v_at, h_at):
        """AdEMAMix: Adam with a second, slow mean of the gradient added to the first."""
        _ = stamp
        p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
        m, slow = numba.carray(m_at, (n,), np.float32), numba.carray(slow_at, (n,), np.float32)
        v = numba.carray(v_at, (n,), np.float32)
        h = numba.carray(h_at, (CONSTANTS,), np.float32)
        if part == 0:
            beta1, new1, beta2, new2, beta3, new3 = h[BETA1], h[NEW1], h[BETA2], h[NEW2], h[BETA3], h[NEW3]
            for i in range(n):
                m[i] = m[i] * beta1 + g[i] * new1
                slow[i] = slow[i] * beta3 + g[i] * new3
                v[i] = v[i] * beta2 + new2 * g[i] * g[i]
        else:
            shrink, rate, first, second, eps, alpha = (
                h[SHRINK],
                h[RATE],
                h[FIRST],
                h[SECOND],
                h[EPS],
                h[ALPHA],
            )
            for i in range(n):
                mixed = m[i] * first + alpha * slow[i]
                p[i] = p[i] * shrink - rate * divide(mixed, math.sqrt(v[i]) * second + eps)

    return ademamix


def _make_momentum(stamp: int):
    @compile_c(SIGNATURE)
    def momentum(part, n, p_at, g_at, m_at, unused1, unused2, h_at):
        """SGD with momentum, LARS: the decayed sum of gradients, weight decay included in them."""
        _ = stamp
        p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
        m, h = numba.carray(m_at, (n,), np.float32), numba.carray(h_at, (CONSTANTS,), np.float32)
        if part == 0:
            beta1, decay, begins = h[BETA1], h[WEIGHT_DECAY], h[BEGINS]
            if begins != 0:
                beta1 = np.float32(0)  # the state is 0 then anyway
            for i in range(n):
                m[i] = m[i] * beta1 + (g[i] + decay * p[i])
        else:
            rate = h[RATE]
            for i in range(n):
                p[i] = p[i] - rate * m[i]

    return momentum


def _make_lion(stamp: int):
    @compile_c(SIGNATURE)
    def lion(part, n, p_at, g_at, m_at, direction_at, unused, h_at):
        """Lion: a step of fixed length along the sign of a mean; the space of state 2 holds the sign."""
        _ = stamp
        p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
        m, direction = numba.carray(m_at, (n,), np.float32), numba.carray(direction_at, (n,), np.float32)
        h = numba.carray(h_at, (CONSTANTS,), np.float32)
        if part == 0:
            beta1, new1, beta2, new2 = h[BETA1], h[NEW1], h[BETA2], h[NEW2]
            for i in range(n):
                mixed = m[i] * beta1 + g[i] * new1
                direction[i] = np.float32(mixed > 0) - np.float32(mixed < 0)
                m[i] = m[i] * beta2 + g[i] * new2
        else:
            shrink, rate = h[SHRINK], h[RATE]
            for i in range(n):
                p[i] = p[i] * shrink - rate * direction[i]

    return lion


def _make_rmsprop(stamp: int):
    @compile_c(SIGNATURE)
    def rmsprop(part, n, p_at, g_at, v_at, unused1, unused2, h_at):
        """RMSprop, Adagrad: the gradient over the root of the decayed mean, or of the sum, of its square."""
        _ = stamp
        p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
        v, h = numba.carray(v_at, (n,), np.float32), numba.carray(h_at, (CONSTANTS,), np.float32)
        decay = h[WEIGHT_DECAY]
        if part == 0:
            beta1, new1 = h[BETA1], h[NEW1]
            for i in range(n):
                whole = g[i] + decay * p[i]
                v[i] = v[i] * beta1 + new1 * whole * whole
        else:
            rate, eps = h[RATE], h[EPS]
            for i in range(n):
                p[i] = p[i] - divide(rate * (g[i] + decay * p[i]), math.sqrt(v[i]) + eps)

    return rmsprop


_MAKERS = {
    "adam": _make_adam,
    "ademamix": _make_ademamix,
    "momentum": _make_momentum,
    "lion": _make_lion,
    "rmsprop": _make_rmsprop,
}


#: Rules whose part 1 divides and takes roots.
DIVIDING = frozenset({"adam", "ademamix", "rmsprop"})


@functools.cache
def rule(name: str) -> Any:
    """C function of the rule of this name."""
    return _MAKERS[name](source_stamp("blockwise"))
