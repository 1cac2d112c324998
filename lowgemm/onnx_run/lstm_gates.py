"""What an LSTM does with its gates: their functions, a limit, and a forget gate that is what the input gate
leaves.

Of each direction there are three functions: that of the gates (input, output, forget), that of the new
numbers of the cells, and that of the cells on their way out. Those with an exponential function or a
logarithm of the C library are onnxruntime's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lowgemm.jit.memory import load_f32, store_f32
from lowgemm.jit.routine import inner, inner_dividing
from lowgemm.onnx_run import activations

SIGMOID, TANH, RELU, LEAKY_RELU, THRESHOLDED_RELU, AFFINE, HARD_SIGMOID, SOFTSIGN = range(8)
#: Of each function, in small letters: its number, and what alpha and beta are unless given; None: it has none.
_KINDS: dict[str, tuple[int, float | None, float | None]] = {
    "sigmoid": (SIGMOID, None, None),
    "tanh": (TANH, None, None),
    "relu": (RELU, None, None),
    "leakyrelu": (LEAKY_RELU, 0.01, None),
    "thresholdedrelu": (THRESHOLDED_RELU, 0.0, None),
    "affine": (AFFINE, 0.0, 0.0),
    "hardsigmoid": (HARD_SIGMOID, 0.2, 0.5),
    "softsign": (SOFTSIGN, None, None),
}
_KNOWN = {
    "activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget",
    "layout",
}  # fmt: skip
#: Where a direction's numbers are, in the array that compiled code reads: three numbers a function, the
#: limit, what a gate becomes that is NaN, and 1 with `Gates.input_forget`.
OF_GATES, OF_NEW, OF_CELLS, LIMIT, UNORDERED, COUPLED, NUMBERS = 0, 3, 6, 9, 10, 11, 12


class Activation(NamedTuple):
    """A function by its number, with its alpha and beta."""

    kind: int
    alpha: float = 0.0
    beta: float = 0.0


class Gates(NamedTuple):
    """Of one direction: the functions of the gates, the new numbers and the cells; what the numbers that go
    into the first two are held within; and whether the forget gate is 1 minus the input gate.
    """

    f: Activation
    g: Activation
    h: Activation
    clip: float
    input_forget: bool

    def numbers(self, with_bias: bool) -> np.ndarray:
        """For compiled code. Where a bias is added onnxruntime's limit makes itself of a NaN."""
        unordered = self.clip if with_bias else np.nan
        return np.array([*self.f, *self.g, *self.h, self.clip, unordered, self.input_forget], np.float32)


def gates_of(attributes: dict[str, Any]) -> list[Gates] | None:
    """Of each direction of an LSTM; None if they are onnxruntime's."""
    count = 1 + (attributes.get("direction") == "bidirectional")
    names = attributes.get("activations") or ["sigmoid", "tanh", "tanh"] * count
    clip = np.float32(attributes.get("clip", np.finfo(np.float32).max))
    if set(attributes) - _KNOWN or attributes.get("layout") or len(names) != 3 * count or not clip > 0:
        return None
    # each function that has an alpha takes the next one, and so with beta
    alphas, betas = (iter(attributes.get(f"activation_{n}", ())) for n in ("alpha", "beta"))
    found = []
    for i, name in enumerate(names):
        if name.lower() not in _KINDS:
            return None
        kind, alpha, beta = _KINDS[name.lower()]
        if kind == RELU and i % 3 == 2:  # of the cells: 0 for -0.0 and NaN
            kind = THRESHOLDED_RELU
        alpha, beta = (0.0 if v is None else next(g, v) for v, g in ((alpha, alphas), (beta, betas)))
        found.append(Activation(kind, float(alpha), float(beta)))
    coupled = bool(attributes.get("input_forget"))
    return [Gates(*found[i : i + 3], float(clip), coupled) for i in range(0, len(found), 3)]


@inner_dividing
def _simple(kind, alpha, beta, x):
    """The function of a `kind` that is neither sigmoid nor tanh, of one number."""
    y = x
    if kind == RELU:
        y = np.float32(0) if x < np.float32(0) else x
    elif kind == LEAKY_RELU:
        y = x if x >= np.float32(0) else alpha * x
    elif kind == THRESHOLDED_RELU:
        y = x if x > alpha else np.float32(0)
    elif kind == AFFINE:
        y = alpha * x + beta
    elif kind == HARD_SIGMOID:
        t = alpha * x + beta
        t = t if np.float32(0) < t else np.float32(0)  # a NaN too
        y = t if t < np.float32(1) else np.float32(1)
    elif kind == SOFTSIGN:
        y = x / (np.float32(1) + abs(x))
    return y


@inner
def activate(numbers, which, to, x, count):
    """The function of a direction's `numbers` that begins at `which`, of `count` float32 numbers."""
    kind = np.int64(load_f32(numbers, which))
    if kind == SIGMOID:
        activations.sigmoid(to, x, count)
    elif kind == TANH:
        activations.tanh(to, x, count)
    else:
        alpha, beta = load_f32(numbers, which + 1), load_f32(numbers, which + 2)
        for i in range(count):
            store_f32(to, i, _simple(kind, alpha, beta, load_f32(x, i)))


def by_definition(activation: Activation, x: np.ndarray) -> np.ndarray:
    """The function, by NumPy: tests compare the compiled one with it."""
    alpha, beta, none, one = (np.float32(v) for v in (activation.alpha, activation.beta, 0, 1))
    with np.errstate(all="ignore"):
        line = alpha * x + beta
        positive = np.where(line > 0, line, none)
        functions = {
            SIGMOID: activations.sigmoid_by_definition,
            TANH: activations.tanh_by_definition,
            RELU: lambda x: np.where(x < 0, none, x),
            LEAKY_RELU: lambda x: np.where(x >= 0, x, alpha * x),
            THRESHOLDED_RELU: lambda x: np.where(x > alpha, x, none),
            AFFINE: lambda x: line,
            HARD_SIGMOID: lambda x: np.where(positive < 1, positive, one),
            SOFTSIGN: lambda x: x / (one + np.abs(x)),
        }
        return functions[activation.kind](x)
