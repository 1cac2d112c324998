"""Update rules of the optimizers, one compiled routine each, on float32 elements so that loops vectorise.

Every rule has two parts, called one after the other on the same block: part 0 brings the states up to date,
part 1 the parameters. Between them the caller looks whether the new states are finite.
`reference_optimizers.py` has the same formulas in NumPy; both do the same float32 operations in the same
order and give the same bits.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba.extending import intrinsic

from lowgemm.blockwise.records import Record, Single, dtype_of
from lowgemm.jit.routine import routine


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


CONSTANTS = dtype_of(Constants)


@intrinsic
def divide(typingctx, a, b):
    """``a / b`` without Python's check for zero, which would keep the loop from being vectorised."""

    def codegen(context, builder, signature, values):
        return builder.fdiv(*values)

    return a(a, a), codegen


@routine("nnpppppp")
def adam(part, n, p_at, g_at, m_at, v_at, unused, h_at):
    """Adam, AdamW, LAMB: decayed mean of the gradient over the root of the decayed mean of its square."""
    p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
    m, v = numba.carray(m_at, (n,), np.float32), numba.carray(v_at, (n,), np.float32)
    h = numba.carray(h_at, (1,), CONSTANTS)[0]
    if part == 0:
        beta1, new1, beta2, new2 = h.beta1, h.new1, h.beta2, h.new2
        for i in range(n):
            m[i] = m[i] * beta1 + g[i] * new1
            v[i] = v[i] * beta2 + new2 * g[i] * g[i]
    else:
        shrink, step, second, eps = h.shrink, h.step, h.second, h.eps
        for i in range(n):
            p[i] = p[i] * shrink + divide(step * m[i], math.sqrt(v[i]) * second + eps)


@routine("nnpppppp")
def ademamix(part, n, p_at, g_at, m_at, slow_at, v_at, h_at):
    """AdEMAMix: Adam with a second, slow mean of the gradient added to the first."""
    p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
    m, slow = numba.carray(m_at, (n,), np.float32), numba.carray(slow_at, (n,), np.float32)
    v = numba.carray(v_at, (n,), np.float32)
    h = numba.carray(h_at, (1,), CONSTANTS)[0]
    if part == 0:
        beta1, new1, beta2, new2, beta3, new3 = h.beta1, h.new1, h.beta2, h.new2, h.beta3, h.new3
        for i in range(n):
            m[i] = m[i] * beta1 + g[i] * new1
            slow[i] = slow[i] * beta3 + g[i] * new3
            v[i] = v[i] * beta2 + new2 * g[i] * g[i]
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


@routine("nnpppppp")
def momentum(part, n, p_at, g_at, m_at, unused1, unused2, h_at):
    """SGD with momentum, LARS: the decayed sum of gradients, weight decay included in them."""
    p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
    m, h = numba.carray(m_at, (n,), np.float32), numba.carray(h_at, (1,), CONSTANTS)[0]
    if part == 0:
        beta1, decay, begins = h.beta1, h.weight_decay, h.begins
        if begins != 0:
            beta1 = np.float32(0)  # the state is 0 then anyway
        for i in range(n):
            m[i] = m[i] * beta1 + (g[i] + decay * p[i])
    else:
        rate = h.rate
        for i in range(n):
            p[i] = p[i] - rate * m[i]


@routine("nnpppppp")
def lion(part, n, p_at, g_at, m_at, direction_at, unused, h_at):
    """Lion: a step of fixed length along the sign of a mean; the space of state 2 holds the sign."""
    p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
    m, direction = numba.carray(m_at, (n,), np.float32), numba.carray(direction_at, (n,), np.float32)
    h = numba.carray(h_at, (1,), CONSTANTS)[0]
    if part == 0:
        beta1, new1, beta2, new2 = h.beta1, h.new1, h.beta2, h.new2
        for i in range(n):
            mixed = m[i] * beta1 + g[i] * new1
            direction[i] = np.float32(mixed > 0) - np.float32(mixed < 0)
            m[i] = m[i] * beta2 + g[i] * new2
    else:
        shrink, rate = h.shrink, h.rate
        for i in range(n):
            p[i] = p[i] * shrink - rate * direction[i]


@routine("nnpppppp")
def rmsprop(part, n, p_at, g_at, v_at, unused1, unused2, h_at):
    """RMSprop, Adagrad: the gradient over the root of the decayed mean, or of the sum, of its square."""
    p, g = numba.carray(p_at, (n,), np.float32), numba.carray(g_at, (n,), np.float32)
    v, h = numba.carray(v_at, (n,), np.float32), numba.carray(h_at, (1,), CONSTANTS)[0]
    decay = h.weight_decay
    if part == 0:
        beta1, new1 = h.beta1, h.new1
        for i in range(n):
            whole = g[i] + decay * p[i]
            v[i] = v[i] * beta1 + new1 * whole * whole
    else:
        rate, eps = h.rate, h.eps
        for i in range(n):
            p[i] = p[i] - divide(rate * (g[i] + decay * p[i]), math.sqrt(v[i]) + eps)


#: The rules by name. Their arguments: part, n, parameters, gradient, three states, constants. A rule with
#: fewer states does not use the rest.
RULES = {"adam": adam, "ademamix": ademamix, "momentum": momentum, "lion": lion, "rmsprop": rmsprop}
#: Rules whose part 1 divides and takes roots.
DIVIDING = frozenset({"adam", "ademamix", "rmsprop"})
