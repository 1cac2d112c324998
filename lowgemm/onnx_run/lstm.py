"""DynamicQuantizeLSTM: an LSTM whose weights are bytes, and whose input and state are quantized as they come.

As onnxruntime computes it: the input of all steps has one scale, the state one of its own at every step. Both
products are lowgemm's, the gates' functions those of `activations.py`, and every other operation is in its
order. One compiled call runs all steps of a direction, and several threads run both directions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from lowgemm import kernels
from lowgemm.compat import onnx as ox
from lowgemm.compat.onnx_passes import extremes_of, quantize_one, scale_of
from lowgemm.engine import parts
from lowgemm.engine.packed_rhs import pack_rhs, repacked
from lowgemm.engine.parts import PASS
from lowgemm.engine.plan import Operand, Plan
from lowgemm.gemm import gemm
from lowgemm.jit import scratch
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import load_f32, load_i64, offset, pointer_at, store_32, store_f32
from lowgemm.jit.routine import call_address, inner, routine
from lowgemm.onnx_run import activations, dynamic, operators, turned
from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.state import NotOurs, State
from lowgemm.onnx_run.tape import Recorder, clear, scale_by, ways

_u64 = np.uint64
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


#: Numbers of a direction in the arguments of `run_directions`: the arguments of `_steps`.
OF_DIRECTION = 20


@routine(PASS)
def run_directions(args, first, end, worker):
    """All steps of one direction or of both: pieces are directions, which do not read each other's numbers."""
    for d in range(first, end):
        a = offset(args, 8 * OF_DIRECTION * d)
        _steps(
            load_i64(a, 0), pointer_at(a, 1), pointer_at(a, 2), pointer_at(a, 3), pointer_at(a, 4),
            pointer_at(a, 5), pointer_at(a, 6), pointer_at(a, 7), pointer_at(a, 8), pointer_at(a, 9),
            pointer_at(a, 10), pointer_at(a, 11), pointer_at(a, 12), pointer_at(a, 13), load_i64(a, 14),
            load_i64(a, 15), load_i64(a, 16), load_i64(a, 17), load_i64(a, 18), load_i64(a, 19),
        )  # fmt: skip


@routine(PASS)
def take_state(args, first, end, worker):
    """Copy float32 numbers. Arguments: src, dst, and the address of a float32 that becomes NaN if one of the
    numbers is not finite, else 0. Pieces are numbers, all for one worker.
    """
    src, dst, bad = pointer_at(args, 0), pointer_at(args, 1), np.float32(0)
    for i in range(first, end):
        x = load_f32(src, i)
        if not np.isfinite(x):
            bad = np.float32(np.nan)
        store_f32(dst, i, x)
    store_f32(pointer_at(args, 2), 0, bad)


@inner
def _steps(
    product, plan, panels, sums, space, x, h, c, bias, scales, y, coded, acc, work, zero, steps, rows, hidden,
    y_step, backward
):  # fmt: skip
    """All steps of one direction.

    `x` is float32 (steps, rows, 4, hidden), the input's part of the gates in the order input, output, forget,
    cell; it is written over. `bias` and `scales` hold a float32 for each of its columns, the latter those of
    the weights. `y` is the result, `y_step` numbers from one step to the next; with `backward` steps run from
    the last to the first. `product` is the address of what multiplies by `plan`, with the weights' `panels`
    and `sums`, their zero point `zero`, and `space` as memory. `h` and `c` are the state, `coded`, `acc` and
    `work` memory for its bytes, the product's sums, and what lies between.
    """
    size, wide = rows * hidden, 4 * hidden
    state = numba.carray(h, (size,), np.float32)
    q, s = numba.carray(coded, (size,), np.uint8), numba.carray(acc, (rows * wide,), np.int32)
    gates = numba.carray(x, (steps * rows * wide,), np.float32)
    b, w = numba.carray(bias, (wide,), np.float32), numba.carray(scales, (wide,), np.float32)
    cells, between = numba.carray(c, (size,), np.float32), numba.carray(work, (hidden,), np.float32)
    out = numba.carray(y, (steps * y_step,), np.float32)
    for i in range(steps):
        t = steps - 1 - i if backward else i
        low, high = extremes_of(h, size)
        store_32(work, 0, low ^ ((low >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        store_32(work, 1, high ^ ((high >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        scale, point = scale_of(load_f32(work, 0), load_f32(work, 1))
        below, above = np.float32(-point), np.float32(255 - point)
        for j in range(_u64(size)):
            q[j] = quantize_one(state[j], scale, point, below, above)
        call_address(product, (plan, coded, panels, sums, acc, space, np.int64(point), zero, 0, 0))
        for r in range(rows):
            at = (t * rows + r) * wide
            _sum(gates, at, s, r * wide, w, b, scale, wide)
            gate = offset(x, 4 * at)
            activations.sigmoid(gate, gate, 3 * hidden)
            activations.tanh(offset(gate, 12 * hidden), offset(gate, 12 * hidden), hidden)
            _cell(gates, at, cells, r * hidden, hidden)
            activations.tanh(work, offset(c, 4 * r * hidden), hidden)
            _out(gates, at + hidden, between, state, r * hidden, out, t * y_step + r * hidden, hidden)


@inner
def _sum(gates, at, sums, at_sums, scales, bias, scale, count):
    """Add a row of a product, `sums` from `at_sums` on, scaled by `scale` and `scales`, and the `bias`."""
    p, q = _u64(at), _u64(at_sums)
    for j in range(_u64(count)):
        t = gates[p + j] + np.float32(sums[q + j]) * (scale * scales[j])
        gates[p + j] = t + bias[j]


@inner
def _cell(gates, at, cells, at_cells, hidden):
    """The next `cells` of a row, from index `at_cells` on: the old ones times the forget gate, plus what is
    new.
    """
    i, f, g, c = _u64(at), _u64(at + 2 * hidden), _u64(at + 3 * hidden), _u64(at_cells)
    for j in range(_u64(hidden)):
        cells[c + j] = cells[c + j] * gates[f + j] + gates[i + j] * gates[g + j]


@inner
def _out(gates, at, between, state, at_state, out, at_out, hidden):
    """The next state of a row from index `at_state` on, and the same to `out`: the gate at `at` times
    `between`.
    """
    o, h, y = _u64(at), _u64(at_state), _u64(at_out)
    for j in range(_u64(hidden)):
        state[h + j] = gates[o + j] * between[j]
        out[y + j] = state[h + j]


def _state(given: Any, size: tuple[int, ...]) -> np.ndarray:
    """A state to be changed: compiled code goes by its size, so that of another shape is refused."""
    if given is None:
        return np.zeros(size, np.float32)
    if np.shape(given) != size:
        raise ValueError(f"initial_h, initial_c: expected shape {size}, got {np.shape(given)}")
    return np.array(given, np.float32, order="C")


class _Direction(NotCopied):
    """The weights of one direction, packed, and plans by the number of rows."""

    instead = "copy the Model"

    def __init__(
        self,
        w: np.ndarray,
        r: np.ndarray,
        scales: Sequence[np.ndarray],
        zeros: Sequence[int],
        bias: np.ndarray,
    ) -> None:
        self.w, self.r, self.zeros = pack_rhs(w), repacked(pack_rhs(r), kernels.selected()), zeros
        self.scales = [np.broadcast_to(s, (w.shape[1],)).astype(np.float32) for s in scales]
        #: What nothing is added with.
        self.none, self.nothing = np.zeros(w.shape[1], np.int32), np.full(w.shape[1], -0.0, np.float32)
        self.bias = (bias[: w.shape[1]] + bias[w.shape[1] :]).astype(np.float32)
        self._plans: dict[int, Plan] = {}

    def _plan(self, rows: int) -> Plan:
        if rows not in self._plans:
            depth, columns = self.r.shape
            self._plans = {
                rows: Plan(
                    kernels.by_name(self.r.kernel), Operand((rows, depth), (depth, 1), "u"),
                    Operand((depth, columns), (0, 0), self.r.dtype.kind), result=np.dtype(np.int32),
                    out_strides=(4 * columns, 4), packed=True, num_threads=1,
                )
            }  # fmt: skip
        return self._plans[rows]

    def words(
        self,
        x: tuple[np.ndarray, np.ndarray, Any],
        states: tuple[np.ndarray, np.ndarray],
        y: np.ndarray,
        backward: bool,
        threads: Any,
        recorder: Recorder | None,
    ) -> Any:
        """Multiply the input.

        Returns a function that gives the arguments of `run_directions` for this direction, and arrays that
        must live till then; NotImplemented if it cannot be taken down. `x` is as DynamicQuantizeLinear gives
        it; `states`, h and c (rows, hidden), will be changed, and `y` (steps, rows, hidden) filled.
        """
        coded, scale, zero = x
        steps, rows, depth = coded.shape
        hidden, columns = self.r.shape
        at, held, run = ways(recorder)
        lines = coded.reshape(-1, depth)
        if recorder is None:
            gates = gemm(
                lines, self.w, lhs_zero_point=int(zero), rhs_zero_point=self.zeros[0], num_threads=threads
            )
        else:
            gates = recorder.product(lines, self.w, zero, self.zeros[0], None, threads)
            if gates is NotImplemented:
                return NotImplemented
        own = np.empty(columns, np.float32)
        run(scale_by, (at(scale), held(self.scales[0]), at(own)), columns)
        places = at(gates), held(self.none), at(own), held(self.nothing)
        turned.run_scaled_rows(*places, (steps * rows, columns), threads, run)
        plan, r = self._plan(rows), self.r
        nbytes = plan.scratch_bytes + scratch.ALIGNMENT
        if recorder is None:
            space = scratch.aligned_empty(nbytes)
        else:  # in a recording each array begins at an aligned place
            space = np.empty(nbytes, np.uint8)
            recorder.kept.append(plan)
        memory = (
            space, np.empty(rows * hidden + 64, np.uint8), np.empty((rows, columns), np.int32),
            np.empty(max(hidden, 2), np.float32),
        )  # fmt: skip

        # where they lie is asked last: a recording keeps a place up to the pass that it was asked for
        def arguments() -> list[Any]:
            return [
                int(plan.p.single), held(plan.numbers), r.panels_address, r.sums_address, at(space), at(gates),
                *(at(v) for v in states), held(self.bias), held(self.scales[1]), at(y),
                *(at(v) for v in memory[1:]), int(self.zeros[1]), steps, rows, hidden, y.strides[0] // 4,
                int(backward),
            ]  # fmt: skip

        return arguments, (gates, own, plan, *memory)


#: The activations of a direction that an LSTM has if it names none; some converters name them.
_ACTIVATIONS = ["sigmoid", "tanh", "tanh"]


def _usual(attributes: dict[str, Any]) -> bool:
    """Whether an LSTM has the usual gates and the usual order of axes."""
    usual = {"activations", "direction", "hidden_size", "input_forget", "layout"}
    if set(attributes) - usual or attributes.get("layout") or attributes.get("input_forget"):
        return False
    named = attributes.get("activations")
    directions = 1 + (attributes.get("direction") == "bidirectional")
    return not named or [text.lower() for text in named] == _ACTIVATIONS * directions


def dynamic_quantize_lstm(
    state: State, x, w, r, bias=None, lengths=None, h=None, c=None, peepholes=None, w_scale=None, w_zero=None,
    r_scale=None, r_zero=None, **attributes: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """DynamicQuantizeLSTM, step by step; what the compiled call computes."""
    if (
        lengths is not None
        or peepholes is not None
        or not _usual(attributes)
        or w_scale is None
        or r_scale is None
    ):
        raise NotOurs
    operators.need_bytes(w, r)
    directions, hidden = w.shape[0], r.shape[1]
    kinds = attributes.get("direction", "forward")
    if (
        x.ndim != 3
        or x.dtype != np.float32
        or w.shape[2] != 4 * hidden
        or directions != 1 + (kinds == "bidirectional")
    ):
        raise ValueError(f"X, W, R: expected an LSTM of {hidden}, got shapes {x.shape}, {w.shape}, {r.shape}")
    steps, rows, _ = x.shape
    h, c = (_state(v, (directions, rows, hidden)) for v in (h, c))
    bias = np.zeros((directions, 8 * hidden), np.float32) if bias is None else bias
    y = np.empty((steps, directions, rows, hidden), np.float32)
    coded, scale, zero = ox.dynamic_quantize_linear(x)
    w_scale, r_scale = (s.reshape(directions, -1) for s in (w_scale, r_scale))
    zeros = [
        np.zeros((directions, 1), v.dtype) if z is None else z.reshape(directions, -1)
        for v, z in ((w, w_zero), (r, r_zero))
    ]
    for d in range(directions):
        own = bias[d, : 4 * hidden] + bias[d, 4 * hidden :]
        sums = ox.matmul_integer(coded, w[d], zero, zeros[0][d])
        parts = sums.astype(np.float32) * (scale * w_scale[d])
        backward = kinds == "reverse" or d == 1
        for t in range(steps)[:: -1 if backward else 1]:
            code, step, point = ox.dynamic_quantize_linear(h[d])
            sums = ox.matmul_integer(code, r[d], point, zeros[1][d])
            gates = parts[t] + sums.astype(np.float32) * (step * r_scale[d]) + own
            i, o, f = np.split(activations.sigmoid_by_definition(gates[:, : 3 * hidden]), 3, axis=1)
            g = activations.tanh_by_definition(gates[:, 3 * hidden :])
            c[d] = c[d] * f + i * g
            y[t, d] = h[d] = o * activations.tanh_by_definition(c[d])
    return y, h, c


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """DynamicQuantizeLSTM of constant weights and the usual gates, without peepholes, clipping or lengths;
    others are the engine's.
    """
    _, w, r, bias, *more = [*constants, *[None] * 12][:12]
    w_scale, w_zero, r_scale, r_zero = more[4:]
    if any(v is None for v in (w, r, w_scale, r_scale)) or not _usual(attributes):
        return None
    directions, hidden = w.shape[0], r.shape[1]
    wide, kinds = 4 * hidden, attributes.get("direction", "forward")
    zeros = [np.zeros(directions, v.dtype) if z is None else z for v, z in ((w, w_zero), (r, r_zero))]
    fits = all(v.dtype in _BYTES and v.ndim == 3 and v.shape[2] == wide for v in (w, r))
    if not fits or directions != 1 + (kinds == "bidirectional"):
        return None
    if any(z.reshape(directions, -1).shape[1] > 1 and (z != z.reshape(-1)[0]).any() for z in zeros):
        return None  # zero points of columns: packing has one for all
    bias = np.zeros((directions, 2 * wide), np.float32) if bias is None else bias
    made = [
        _Direction(
            w[d], r[d], [s.reshape(directions, -1)[d] for s in (w_scale, r_scale)],
            [int(z.reshape(directions, -1)[d][0]) for z in zeros], bias[d],
        )
        for d in range(directions)
    ]  # fmt: skip
    later = dynamic.given_later(constants, 3, 9, 11)
    backward = [kinds == "reverse"] if directions == 1 else [False, True]

    def copied(given: Any, recorder: Recorder) -> np.ndarray:
        """Take down a copy; the recording refuses numbers that are not finite."""
        copy, bad = np.empty(given.shape, np.float32), np.empty(1, np.float32)
        recorder.keep(given, copy, bad)
        recorder.run(take_state, (recorder.at(given), recorder.at(copy), recorder.at(bad)), copy.size)
        recorder.check(bad)
        return copy

    def state_of(given: Any, size: tuple[int, ...], recorder: Recorder | None) -> Any:
        """A state to be changed; None of one that cannot be taken down."""
        if recorder is None:
            return _state(given, size)
        if given is None:
            count = int(np.prod(size))
            memory = np.empty(count + count % 2, np.float32)  # zeros come in words of 8 bytes
            recorder.keep(memory)
            recorder.run(clear, (recorder.at(memory), memory.nbytes, memory.nbytes // 8), 1)
            return memory[:count].reshape(size)
        given = recorder.in_order(given)
        if given.shape != size or given.dtype != np.float32 or not given.flags.c_contiguous:
            return None
        return copied(given, recorder)

    def run(*inputs: Any, recorder: Recorder | None = None) -> Any:
        x, lengths, *states, peepholes = inputs[0], *[*inputs[4:8], *[None] * 4][:4]
        if lengths is not None or peepholes is not None or x.dtype != np.float32 or x.ndim != 3 or not x.size:
            return NotImplemented
        if later(inputs):
            return NotImplemented
        threads = state.num_threads
        if recorder is not None:
            x = recorder.in_order(x)
        elif not all(v is None or np.isfinite(v).all() for v in states):
            return NotImplemented
        else:
            x = np.ascontiguousarray(x)
        steps, rows, _ = x.shape
        size = directions, rows, hidden
        h, c = (state_of(v, size, recorder) for v in states)
        coded = (
            NotImplemented if h is None or c is None else dynamic.quantized(x, False, None, threads, recorder)
        )
        if coded is NotImplemented:
            return NotImplemented
        codes, scale, zero = coded
        if recorder is not None:
            coded = codes, copied(scale, recorder), zero
        elif not np.isfinite(scale):  # the state becomes NaN
            return NotImplemented
        y = np.empty((steps, *size), np.float32)
        later_words, alive = [], [x, y, *coded]
        for d, direction in enumerate(made):
            found = direction.words(coded, (h[d], c[d]), y[:, d], backward[d], threads, recorder)
            if found is NotImplemented:
                return NotImplemented
            later_words.append(found[0])
            alive += found[1]
        words = [word for of_direction in later_words for word in of_direction()]
        # 75 products a nanosecond, read from the second-level cache
        time = steps * rows * hidden * (wide / 75 + 3) * directions
        workers = parts.workers_for(time, directions, threads)
        (parts.run if recorder is None else recorder.run)(run_directions, words, directions, workers, time)
        if recorder is not None:
            recorder.keep(*alive)
        return y, h, c

    def record(recorder: Recorder, *inputs: Any) -> Any:
        try:
            found = run(*inputs, recorder=recorder)
        except TypeError:  # said when it runs
            return None
        return None if found is NotImplemented else found

    run.record = record  # type: ignore[attr-defined]
    return run


OPERATORS = {(DOMAIN, "DynamicQuantizeLSTM"): dynamic_quantize_lstm}
MAKERS = {(DOMAIN, "DynamicQuantizeLSTM"): prepared}
