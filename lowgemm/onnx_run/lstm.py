"""DynamicQuantizeLSTM: an LSTM whose weights are bytes, and whose input and state are quantized as they come.

As onnxruntime computes it: the input of all steps has one scale, the state one of its own at every step. This
is the definition, step by step; `lstm_prepared.py` has what runs where the weights are constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.compat import onnx as ox
from lowgemm.onnx_run import operators
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.lstm_gates import Gates, by_definition, gates_of
from lowgemm.onnx_run.lstm_prepared import PackedDirections, lengths_of, prepared, state_of
from lowgemm.onnx_run.state import NotOurs, State


def is_theirs(node: Any) -> bool:
    """Whether an LSTM's sequences have lengths and no one asks for its numbers of all steps. onnxruntime's
    state keeps the last numbers of sequences that have ended then, and takes them into its ranges.
    """
    return len(node.input) > 4 and bool(node.input[4]) and not node.output[0]


def _within(x: np.ndarray, limit: float, with_bias: bool) -> np.ndarray:
    """Numbers within the limits; a NaN counts as the limit where a bias was added."""
    limit = np.float32(limit)
    return np.where(np.isnan(x), limit if with_bias else x, np.clip(x, -limit, limit))


def dynamic_quantize_lstm(
    state: State, x, w, r, bias=None, lengths=None, h=None, c=None, peepholes=None, w_scale=None, w_zero=None,
    r_scale=None, r_zero=None, **attributes: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """DynamicQuantizeLSTM, step by step; what the compiled call computes."""
    gates = gates_of(attributes)
    if gates is None or w_scale is None or r_scale is None:
        raise NotOurs
    operators.need_bytes(w, r)
    w, r = (v.to_array() if isinstance(v, PackedDirections) else v for v in (w, r))
    directions, hidden = w.shape[0], r.shape[1]
    kinds = attributes.get("direction", "forward")
    if (
        x.ndim != 3
        or x.dtype != np.float32
        or w.shape[2] != 4 * hidden
        or directions != 1 + (kinds == "bidirectional")
    ):
        raise ValueError(f"X, W, R: expected an LSTM of {hidden}, got shapes {x.shape}, {w.shape}, {r.shape}")
    if peepholes is not None and np.shape(peepholes) != (directions, 3 * hidden):
        raise ValueError(f"P: expected shape {(directions, 3 * hidden)}, got {np.shape(peepholes)}")
    steps, rows, _ = x.shape
    ends = np.full(rows, steps) if lengths is None else lengths_of(lengths, steps, rows)
    h, c = (state_of(v, (directions, rows, hidden)) for v in (h, c))
    w_scale, r_scale = (s.reshape(directions, -1) for s in (w_scale, r_scale))
    zeros = [
        np.zeros((directions, 1), v.dtype) if z is None else z.reshape(directions, -1)
        for v, z in ((w, w_zero), (r, r_zero))
    ]
    coded, scale, zero = ox.dynamic_quantize_linear(x[: max(ends, default=0)])
    y = np.zeros((steps, directions, rows, hidden), np.float32)
    for d in range(directions):
        sums = ox.matmul_integer(coded, w[d], zero, zeros[0][d])
        parts = sums.astype(np.float32) * (scale * w_scale[d])
        for step in range(len(coded)):
            code, own, point = ox.dynamic_quantize_linear(h[d])
            sums = ox.matmul_integer(code, r[d], point, zeros[1][d])
            scaled = sums.astype(np.float32) * (own * r_scale[d])
            for row, end in enumerate(ends):
                if step >= end:
                    h[d, row] = 0
                    continue
                t = end - 1 - step if kinds == "reverse" or d == 1 else step
                h[d, row], c[d, row] = _next(
                    gates[d], parts[t, row] + scaled[row], c[d, row], None if bias is None else bias[d],
                    None if peepholes is None else peepholes[d],
                )  # fmt: skip
                y[t, d, row] = h[d, row]
        for row, end in enumerate(ends):
            if lengths is not None:
                last = 0 if kinds == "reverse" or d == 1 else end - 1
                h[d, row] = y[last, d, row] if end else 0
                c[d, row] = c[d, row] if end else 0
    return y, h, c


def _next(
    gates: Gates, sums: np.ndarray, c: np.ndarray, bias: np.ndarray | None, peepholes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The next state and cells of a row, from the sums of both products and the old cells."""
    of_input, of_output, of_forget, of_new = np.split(sums, 4)
    seen = [np.zeros(len(c), np.float32)] * 3 if peepholes is None else np.split(peepholes, 3)
    added = [None] * 4 if bias is None else np.split(bias[: 4 * len(c)] + bias[4 * len(c) :], 4)

    def limited(x: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        return _within(x if own is None else x + own, gates.clip, own is not None)

    def gate(x: np.ndarray, cells: np.ndarray, which: int) -> np.ndarray:
        if peepholes is not None:
            x = x + cells * seen[which]
        return by_definition(gates.f, limited(x, added[which]))

    i = gate(of_input, c, 0)
    f = np.float32(1) - i if gates.input_forget else gate(of_forget, c, 2)
    c = c * f + i * by_definition(gates.g, limited(of_new, added[3]))
    return gate(of_output, c, 1) * by_definition(gates.h, c), c


OPERATORS = {(DOMAIN, "DynamicQuantizeLSTM"): dynamic_quantize_lstm}
MAKERS = {(DOMAIN, "DynamicQuantizeLSTM"): prepared}
