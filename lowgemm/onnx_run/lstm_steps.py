"""All steps of a DynamicQuantizeLSTM as one compiled call (`lstm_prepared.py` makes its arguments).

The columns of both weights come in blocks of so many units of the state; a block has those of all four gates.
So in a step each of several threads takes parts of some blocks: their columns of the state's product, and
from these sums its units of the next state. Before it, one thread finds the range of the whole state and
quantizes it.
"""

from __future__ import annotations

import numba
import numpy as np

from lowgemm.compat.onnx_passes import extremes_of, quantize_one, range_of_numbers, scale_of
from lowgemm.engine.parts import PASS, share_inside
from lowgemm.jit.memory import (
    as_address,
    is_null,
    load_f32,
    load_i32,
    load_i64,
    offset,
    pointer_at,
    smaller,
    stack,
    store_32,
    store_64,
    store_f32,
)
from lowgemm.jit.routine import call_address, inner, routine
from lowgemm.onnx_run.lstm_gates import COUPLED, LIMIT, OF_CELLS, OF_GATES, OF_NEW, UNORDERED, activate

_u64 = np.uint64
#: Numbers of a direction in the arguments of `run_directions`.
#:
#: `PRODUCT` is the address of what multiplies by a plan, `PLAN` for all parts but the last, which has
#: `LAST_PLAN`. `PANELS` and `SUMS` are those of the packed weights, a column of which takes `COLUMN_BYTES`;
#: `ZERO` is their zero point. Each worker has `SPACE_BYTES` of `SPACE`.
#:
#: `GATES` are float32 (steps, rows, 4 x hidden), the input's part; they are written over. Their columns are
#: blocks of `BLOCK` units, the last of what is left; each has those of the input, output, forget and cell
#: gate one after the other. So have `BIAS` and `SCALES`, a float32 for each column, and the product. `STATE`
#: and `CELLS` (rows, hidden) will be changed, `OUT` (all_steps, rows, hidden) is filled; it has `OUT_STEP`
#: numbers from one step to the next. With `BACKWARD` steps run from the last to the first. `CODED`, `ACC` and
#: `WORK` are memory for the state's bytes, the product's sums, and for each worker hidden float32. `NUMBERS`
#: say what becomes of the gates (`lstm_gates.py`). `SEEN` are 3 x hidden peepholes, those of the input,
#: output and forget gate, or null. `LENGTHS` are those of the sequences, int32, none above `STEPS`, or null.
#: What lies behind the end of a sequence is 0 in `OUT`, and in the state until the end.
#:
#: A step has `PARTS`, each of `PART` units of all rows, or of all units of `PART_ROWS` rows, the last of what
#: is left, for `WORKERS` threads of the `TEAM`. `RUN_PART` and `RUN_PARTS` are the addresses of `run_part`
#: and of `parts.work_on_parts`.
(
    PRODUCT, PLAN, LAST_PLAN, PANELS, SUMS, COLUMN_BYTES, ZERO, SPACE, SPACE_BYTES, GATES, BLOCK, BIAS,
    SCALES, STATE, CELLS, OUT, OUT_STEP, BACKWARD, CODED, ACC, WORK, NUMBERS, SEEN, LENGTHS, STEPS, ALL_STEPS,
    ROWS, HIDDEN, PART, PART_ROWS, PARTS, WORKERS, TEAM, RUN_PART, RUN_PARTS, OF_DIRECTION,
) = range(36)  # fmt: skip
#: Numbers of a step, the arguments of `run_part`: the direction's, which step, zero point and scale of the
#: state.
DIRECTION, STEP, POINT, SCALE, OF_STEP = range(5)
_STEP_BYTES = 8 * OF_STEP


@routine(PASS)
def run_directions(args, first, end, worker):
    """All steps of one or both directions: pieces are directions, which do not read each other's numbers."""
    for d in range(first, end):
        _steps(offset(args, 8 * OF_DIRECTION * d))


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
def _steps(a):
    """All steps of the direction whose numbers are at `a`."""
    h, coded, work = pointer_at(a, STATE), pointer_at(a, CODED), pointer_at(a, WORK)
    size = load_i64(a, ROWS) * load_i64(a, HIDDEN)
    state, q = numba.carray(h, (size,), np.float32), numba.carray(coded, (size,), np.uint8)
    step = stack(_STEP_BYTES)
    store_64(step, DIRECTION, as_address(a))
    for i in range(load_i64(a, STEPS)):
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
        store_64(step, STEP, i)
        store_64(step, POINT, np.int64(point))
        store_f32(step, 2 * SCALE, scale)
        if load_i64(a, WORKERS) == 1:
            call_address(load_i64(a, RUN_PART), (as_address(step), 0, load_i64(a, PARTS), 0))
        else:
            share_inside(
                pointer_at(a, TEAM), load_i64(a, RUN_PARTS), load_i64(a, RUN_PART), as_address(step),
                load_i64(a, PARTS), np.int64(1), load_i64(a, WORKERS), np.int64(0),
            )  # fmt: skip
    if not is_null(pointer_at(a, LENGTHS)):
        _end(a)


@routine(PASS)
def run_part(args, first, end, worker):
    """Parts of a step: their columns of the state's product, and their units of the next state."""
    a, point = pointer_at(args, DIRECTION), load_i64(args, POINT)
    block, part, hidden = load_i64(a, BLOCK), load_i64(a, PART), load_i64(a, HIDDEN)
    part_rows, rows, parts = load_i64(a, PART_ROWS), load_i64(a, ROWS), load_i64(a, PARTS)
    for p in range(first, end):
        row, unit = (p * part_rows, np.int64(0)) if part_rows < rows else (np.int64(0), p * part)
        end_row, end_unit = smaller(row + part_rows, rows), smaller(unit + part, hidden)
        call_address(
            load_i64(a, PRODUCT),
            (
                pointer_at(a, PLAN if p < parts - 1 else LAST_PLAN),
                offset(pointer_at(a, CODED), row * hidden),
                offset(pointer_at(a, PANELS), 4 * unit * load_i64(a, COLUMN_BYTES)),
                offset(pointer_at(a, SUMS), 16 * unit),
                offset(pointer_at(a, ACC), 16 * (row * hidden + unit)),
                offset(pointer_at(a, SPACE), worker * load_i64(a, SPACE_BYTES)),
                point, load_i64(a, ZERO), 0, 0,
            ),
        )  # fmt: skip
        for begin in range(unit, end_unit, block):
            _units(
                a, load_i64(args, STEP), load_f32(args, 2 * SCALE), row, end_row, begin,
                smaller(block, end_unit - begin), offset(pointer_at(a, WORK), 4 * worker * hidden),
            )  # fmt: skip


@inner
def _units(a, i, scale, row, end_row, unit, units, work):
    """The next state of rows `row` to `end_row` and of a block, so many `units` from number `unit` on, after
    step `i`, whose state has the `scale`, from the sums of its product. `work` has room for the units.
    """
    rows, all_units, steps = load_i64(a, ROWS), load_i64(a, HIDDEN), load_i64(a, STEPS)
    wide = 4 * all_units
    x, c, numbers = pointer_at(a, GATES), pointer_at(a, CELLS), pointer_at(a, NUMBERS)
    y_step, lengths = load_i64(a, OUT_STEP), pointer_at(a, LENGTHS)
    state = numba.carray(pointer_at(a, STATE), (rows * all_units,), np.float32)
    sums, gates = (
        numba.carray(pointer_at(a, ACC), (rows * wide,), np.int32),
        numba.carray(x, (steps * rows * wide,), np.float32),
    )
    cells = numba.carray(c, (rows * all_units,), np.float32)
    between = numba.carray(work, (units,), np.float32)
    out = numba.carray(pointer_at(a, OUT), (load_i64(a, ALL_STEPS) * y_step,), np.float32)
    scales, bias = offset(pointer_at(a, SCALES), 16 * unit), offset(pointer_at(a, BIAS), 16 * unit)
    limit, unordered = load_f32(numbers, LIMIT), load_f32(numbers, UNORDERED)
    peeps = not is_null(pointer_at(a, SEEN))
    seen = offset(pointer_at(a, SEEN), 4 * unit)
    for r in range(row, end_row):
        at_state = r * all_units + unit
        count = steps if is_null(lengths) else load_i32(lengths, r)
        if i >= count:
            _fill_zeros(state, at_state, units)
            continue
        t = count - 1 - i if load_i64(a, BACKWARD) != 0 else i
        at = (t * rows + r) * wide + 4 * unit
        gate, cell = offset(x, 4 * at), offset(c, 4 * at_state)
        add = gates, at, sums, r * wide + 4 * unit, scales, bias, units, scale, limit, unordered
        if peeps:
            _add_seen(add, 0, cell, seen, all_units)
            _add_seen(add, 2, cell, seen, all_units)
            _add(add, 3, 4)
            activate(numbers, OF_GATES, gate, gate, units)
            activate(numbers, OF_GATES, offset(gate, 8 * units), offset(gate, 8 * units), units)
        else:
            _add(add, 0, 4)
            activate(numbers, OF_GATES, gate, gate, 3 * units)
        activate(numbers, OF_NEW, offset(gate, 12 * units), offset(gate, 12 * units), units)
        if load_f32(numbers, COUPLED) != 0:
            _forget(gates, at, units)
        _cell(gates, at, cells, at_state, units)
        if peeps:
            _add_seen(add, 1, cell, seen, all_units)
            activate(numbers, OF_GATES, offset(gate, 4 * units), offset(gate, 4 * units), units)
        activate(numbers, OF_CELLS, work, cell, units)
        _out(gates, at + units, between, state, at_state, out, t * y_step + at_state, units)


@inner
def _end(a):
    """After the last step: zeros behind the ends of sequences, and the state that each had at its end."""
    rows, hidden, y_step, steps = (
        load_i64(a, ROWS), load_i64(a, HIDDEN), load_i64(a, OUT_STEP), load_i64(a, ALL_STEPS),
    )  # fmt: skip
    state = numba.carray(pointer_at(a, STATE), (rows * hidden,), np.float32)
    cells = numba.carray(pointer_at(a, CELLS), (rows * hidden,), np.float32)
    out = numba.carray(pointer_at(a, OUT), (steps * y_step,), np.float32)
    for r in range(rows):
        count = load_i32(pointer_at(a, LENGTHS), r)
        for t in range(count, steps):
            _fill_zeros(out, t * y_step + r * hidden, hidden)
        if count == 0:
            _fill_zeros(state, r * hidden, hidden)
            _fill_zeros(cells, r * hidden, hidden)
        else:
            last = 0 if load_i64(a, BACKWARD) != 0 else count - 1
            begin = _u64(last * y_step + r * hidden)
            for j in range(_u64(hidden)):
                state[_u64(r * hidden) + j] = out[begin + j]


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
    """Add gates `first` to `end` of a block of a product's row, scaled, to those of the input, and the bias;
    within the limits. `add`: the gates and where their block begins, the product's sums and where theirs
    does, the scales of its columns, the bias, how many units it has, the scale of the state, and the limits.
    """
    gates, at, sums, at_sums, scales, bias, units, scale, limit, unordered = add
    w, b = numba.carray(scales, (4 * units,), np.float32), numba.carray(bias, (4 * units,), np.float32)
    p, q = _u64(at), _u64(at_sums)
    for j in range(_u64(first * units), _u64(end * units)):
        t = gates[p + j] + np.float32(sums[q + j]) * (scale * w[j])
        gates[p + j] = _within(t + b[j], limit, unordered)


@inner
def _add_seen(add, which, cell, seen, all_units):
    """The same for one gate of four, which sees the cells of its row through a peephole: `cell` and `seen`
    are those of the block's units, and peepholes of the next gate are `all_units` further.
    """
    gates, at, sums, at_sums, scales, bias, units, scale, limit, unordered = add
    w, b = numba.carray(scales, (4 * units,), np.float32), numba.carray(bias, (4 * units,), np.float32)
    cells = numba.carray(cell, (units,), np.float32)
    peephole = numba.carray(offset(seen, 4 * which * all_units), (units,), np.float32)
    first = _u64(which * units)
    p, q = _u64(at) + first, _u64(at_sums) + first
    for j in range(_u64(units)):
        t = gates[p + j] + np.float32(sums[q + j]) * (scale * w[first + j])
        t = t + cells[j] * peephole[j]
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
