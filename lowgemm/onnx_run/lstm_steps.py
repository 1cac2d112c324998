"""All steps of a DynamicQuantizeLSTM as one compiled call (`lstm.py` makes its arguments)."""

from __future__ import annotations

import numba
import numpy as np

from lowgemm.compat.onnx_passes import extremes_of, quantize_one, range_of_numbers, scale_of
from lowgemm.engine.parts import PASS
from lowgemm.jit.memory import is_null, load_f32, load_i32, load_i64, offset, pointer_at, store_32, store_f32
from lowgemm.jit.routine import call_address, inner, routine
from lowgemm.onnx_run.lstm_gates import COUPLED, LIMIT, OF_CELLS, OF_GATES, OF_NEW, UNORDERED, activate

_u64 = np.uint64
#: Numbers of a direction in the arguments of `run_directions`: the arguments of `_steps`.
OF_DIRECTION = 24


@routine(PASS)
def run_directions(args, first, end, worker):
    """All steps of one direction or of both: pieces are directions, which do not read each other's numbers."""
    for d in range(first, end):
        a = offset(args, 8 * OF_DIRECTION * d)
        _steps(
            load_i64(a, 0), pointer_at(a, 1), pointer_at(a, 2), pointer_at(a, 3), pointer_at(a, 4),
            pointer_at(a, 5), pointer_at(a, 6), pointer_at(a, 7), pointer_at(a, 8), pointer_at(a, 9),
            pointer_at(a, 10), pointer_at(a, 11), pointer_at(a, 12), pointer_at(a, 13), pointer_at(a, 14),
            pointer_at(a, 15), pointer_at(a, 16), load_i64(a, 17), load_i64(a, 18), load_i64(a, 19),
            load_i64(a, 20), load_i64(a, 21), load_i64(a, 22), load_i64(a, 23),
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
    product, plan, panels, sums, space, x, h, c, bias, scales, y, coded, acc, work, numbers, seen, lengths, zero,
    steps, rows, hidden, y_step, backward, all_steps
):  # fmt: skip
    """All steps of one direction.

    `x` is float32 (steps, rows, 4, hidden), the input's part of the gates in the order input, output, forget,
    cell; it is written over. `bias` and `scales` hold a float32 for each of its columns, the latter those of
    the weights. `y` is the result, (all_steps, rows, hidden), `y_step` numbers from one step to the next;
    with `backward` steps run from the last to the first. `product` is the address of what multiplies by
    `plan`, with the weights' `panels` and `sums`, their zero point `zero`, and `space` as memory. `h` and `c`
    are the state, `coded`, `acc` and `work` memory for its bytes, the product's sums, and what lies between.
    `numbers` say what becomes of the gates (`lstm_gates.py`); `seen` holds 3 x hidden peepholes, those of the
    input, output and forget gate, or is null. `lengths` are those of the sequences, int32, none above
    `steps`, or null. What lies behind the end of a sequence is 0 in `y`, and in the state until the end.
    """
    size, wide = rows * hidden, 4 * hidden
    state = numba.carray(h, (size,), np.float32)
    q, s = numba.carray(coded, (size,), np.uint8), numba.carray(acc, (rows * wide,), np.int32)
    gates = numba.carray(x, (steps * rows * wide,), np.float32)
    cells, between = numba.carray(c, (size,), np.float32), numba.carray(work, (hidden,), np.float32)
    out = numba.carray(y, (all_steps * y_step,), np.float32)
    limit, unordered = load_f32(numbers, LIMIT), load_f32(numbers, UNORDERED)
    coupled, peeps = load_f32(numbers, COUPLED) != 0, not is_null(seen)
    for i in range(steps):
        low, high = extremes_of(h, size)
        store_32(work, 0, low ^ ((low >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        store_32(work, 1, high ^ ((high >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        least, largest = load_f32(work, 0), load_f32(work, 1)
        if not (np.isfinite(least) and np.isfinite(largest)):  # NaN is left out
            least, largest = range_of_numbers(h, size)
        scale, point = scale_of(least, largest)
        below, above = np.float32(-point), np.float32(255 - point)
        for j in range(_u64(size)):
            q[j] = quantize_one(state[j], scale, point, below, above)
        call_address(product, (plan, coded, panels, sums, acc, space, np.int64(point), zero, 0, 0))
        for r in range(rows):
            count = steps if is_null(lengths) else load_i32(lengths, r)
            if i >= count:
                _fill_zeros(state, r * hidden, hidden)
                continue
            t = count - 1 - i if backward else i
            gate, cell = offset(x, 4 * (t * rows + r) * wide), offset(c, 4 * r * hidden)
            at, at_sums = (t * rows + r) * wide, r * wide
            add = (gates, at, s, at_sums, scales, bias, wide, scale, limit, unordered)
            if peeps:
                _add_seen(add, 0, hidden, cell, seen)
                _add_seen(add, 2, hidden, cell, seen)
                _add(add, 3 * hidden, wide)
                activate(numbers, OF_GATES, gate, gate, hidden)
                activate(numbers, OF_GATES, offset(gate, 8 * hidden), offset(gate, 8 * hidden), hidden)
            else:
                _add(add, 0, wide)
                activate(numbers, OF_GATES, gate, gate, 3 * hidden)
            activate(numbers, OF_NEW, offset(gate, 12 * hidden), offset(gate, 12 * hidden), hidden)
            if coupled:
                _forget(gates, at, hidden)
            _cell(gates, at, cells, r * hidden, hidden)
            if peeps:
                _add_seen(add, 1, hidden, cell, seen)
                activate(numbers, OF_GATES, offset(gate, 4 * hidden), offset(gate, 4 * hidden), hidden)
            activate(numbers, OF_CELLS, work, cell, hidden)
            _out(gates, at + hidden, between, state, r * hidden, out, t * y_step + r * hidden, hidden)
    if not is_null(lengths):
        for r in range(rows):
            count = load_i32(lengths, r)
            for t in range(count, all_steps):
                _fill_zeros(out, t * y_step + r * hidden, hidden)
            if count == 0:
                _fill_zeros(state, r * hidden, hidden)
                _fill_zeros(cells, r * hidden, hidden)
            else:
                last = _u64((0 if backward else count - 1) * y_step + r * hidden)
                for j in range(_u64(hidden)):
                    state[_u64(r * hidden) + j] = out[last + j]


@inner
def _fill_zeros(numbers, first, count):
    """Zeros from index `first` on."""
    for j in range(_u64(count)):
        numbers[_u64(first) + j] = np.float32(0)


@inner
def _within(t, limit, unordered):
    """The number `t` within -`limit` and `limit`; `unordered` of a NaN."""
    t = limit if t > limit else t
    t = -limit if t < -limit else t
    return t if t == t else unordered


@inner
def _add(add, first, end):
    """Add columns `first` to `end` of a row of a product, scaled, to the gates, and the bias; within the
    limits. `add`: the gates and where their row begins, the product's sums and where theirs does, the scales
    of the columns, the bias, how many columns there are, the scale of the row, and the limits.
    """
    gates, at, sums, at_sums, scales, bias, wide, scale, limit, unordered = add
    w, b = numba.carray(scales, (wide,), np.float32), numba.carray(bias, (wide,), np.float32)
    p, q = _u64(at), _u64(at_sums)
    for j in range(_u64(first), _u64(end)):
        t = gates[p + j] + np.float32(sums[q + j]) * (scale * w[j])
        gates[p + j] = _within(t + b[j], limit, unordered)


@inner
def _add_seen(add, which, hidden, cell, seen):
    """The same for one gate of four, which sees the cells of its row through a peephole."""
    gates, at, sums, at_sums, scales, bias, wide, scale, limit, unordered = add
    w, b = numba.carray(scales, (wide,), np.float32), numba.carray(bias, (wide,), np.float32)
    cells = numba.carray(cell, (hidden,), np.float32)
    peephole = numba.carray(seen, (3 * hidden,), np.float32)
    first = _u64(which * hidden)
    p, q = _u64(at) + first, _u64(at_sums) + first
    for j in range(_u64(hidden)):
        t = gates[p + j] + np.float32(sums[q + j]) * (scale * w[first + j])
        t = t + cells[j] * peephole[first + j]
        gates[p + j] = _within(t + b[first + j], limit, unordered)


@inner
def _forget(gates, at, hidden):
    """The forget gate is what the input gate leaves."""
    i, f = _u64(at), _u64(at + 2 * hidden)
    for j in range(_u64(hidden)):
        gates[f + j] = np.float32(1) - gates[i + j]


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
