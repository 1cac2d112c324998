"""DynamicQuantizeLSTM of constant weights, which are packed once.

Both products are lowgemm's, the gates' functions those of `lstm_gates.py`, and every other operation is in
onnxruntime's order (`lstm.py` has the definition). One compiled call runs all steps (`lstm_steps.py`).
Several threads run both directions at once. Of a single direction they share each step, if it is large
enough, and so do more threads than there are directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm import kernels
from lowgemm.engine import parts, threads
from lowgemm.engine.packed_rhs import PackedRhs, pack_rhs, repacked
from lowgemm.engine.plan import Operand, Plan
from lowgemm.gemm import gemm
from lowgemm.jit import scratch, team
from lowgemm.jit.addresses import NotCopied
from lowgemm.onnx_run import dynamic, turned
from lowgemm.onnx_run import lstm_steps as steps_code
from lowgemm.onnx_run.lstm_gates import Gates, gates_of
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder, clear, scale_by, ways

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


def state_of(given: Any, size: tuple[int, ...]) -> np.ndarray:
    """A state to be changed: compiled code goes by its size, so that of another shape is refused."""
    if given is None:
        return np.zeros(size, np.float32)
    if np.shape(given) != size:
        raise ValueError(f"initial_h, initial_c: expected shape {size}, got {np.shape(given)}")
    return np.array(given, np.float32, order="C")


def lengths_of(given: np.ndarray, steps: int, rows: int) -> np.ndarray:
    """Lengths of the sequences, refused if they are not of this kind."""
    if np.shape(given) != (rows,) or given.dtype != np.int32:
        raise ValueError(f"sequence_lens: expected {rows} of int32, got {given.dtype} {np.shape(given)}")
    if np.any((given < 0) | (given > steps)):
        raise ValueError(f"sequence_lens: expected 0 to {steps}, got {given.min()} to {given.max()}")
    return np.ascontiguousarray(given)


#: A state of so many units or more has its columns in several blocks, a power of two of them, at most so
#: many. Each has about half of these units or more: with blocks of 64 and of 16 units a batch of sequences
#: takes 1.1 and 1.4 times as long.
LEAST_CUT, MOST_BLOCKS = 256, 8
#: Parts of a step for each thread, so that one that is late leaves the others most of the work.
PARTS = 2
#: Nanoseconds of a step for each unit of the state beside its products; and products in one of a single row
#: whose weights come from the second-level cache.
GATES, PRODUCTS_OF_A_ROW = 2.3, 140
#: A step pays two threads from half of a pass's time on, since they find each other at the next one: it takes
#: them 1 us more than half of one thread's time.
STEPS_OF_A_PASS = 2


def block_of(hidden: int, lanes: int) -> int:
    """Units of the state whose columns lie together: all of a small one, else a multiple of a vector and of a
    panel's columns, `lanes`.
    """
    count, step = 1, math.lcm(16, lanes)
    while count < MOST_BLOCKS and hidden >= LEAST_CUT * count:
        count *= 2
    return hidden if count == 1 else min(hidden, -(-hidden // (step * count)) * step)


def in_blocks(a: np.ndarray, block: int) -> np.ndarray:
    """The columns of four gates, the last axis, in blocks of so many units, as `lstm_steps.py` has them."""
    hidden = a.shape[-1] // 4
    units = np.arange(hidden)
    order = np.concatenate(
        [g * hidden + units[u : u + block] for u in range(0, hidden, block) for g in range(4)]
    )
    return a[..., order]


class _Cut(NamedTuple):
    """How a step is cut into parts: units and rows of one, how many there are, and threads."""

    units: int
    rows: int
    parts: int
    workers: int


def cut_of(hidden: int, block: int, rows: int, time: float, num_threads: int | None) -> _Cut:
    """For as many threads as pay where a step takes one so long, at most `num_threads`: a large state between
    its blocks, whose columns each thread finds in its core's cache again, a small one between its rows.
    """
    blocks = -(-hidden // block)
    pieces = blocks if blocks > 1 else rows
    workers = 1
    if team.the_team() is not None:
        workers = parts.workers_for(STEPS_OF_A_PASS * time, pieces, num_threads)
    each = -(-pieces // (PARTS * workers)) if workers > 1 else pieces
    units, part_rows = (each * block, rows) if blocks > 1 else (hidden, each)
    return _Cut(units, part_rows, -(-pieces // each), workers)


def step_time(hidden: int, rows: int, steps: int, far: bool) -> float:
    """Nanoseconds of a step on one thread, about; `far`: the first one finds the weights behind the
    second-level cache.
    """
    near = max(1 / PRODUCTS_OF_A_ROW, rows / threads.MACS_PER_NANOSECOND)
    first = max(threads.MACS_PER_BYTE / threads.MACS_PER_NANOSECOND, near) if far else near
    return 4 * hidden**2 * ((steps - 1) * near + first) / steps + rows * hidden * GATES


class PackedDirections:
    """Weights of all directions, each packed as the right-hand side of a product, its columns in blocks.

    Parameters
    ----------
    w : ndarray of uint8 or int8, shape (directions, depth, columns)
        Weights.

    Attributes
    ----------
    shape, dtype
        Of `w`.
    block : int
        Units of the state whose columns lie together.
    parts : list of PackedRhs
        Of each direction.
    """

    def __init__(self, w: np.ndarray) -> None:
        self.shape, self.dtype = w.shape, w.dtype
        kernel = kernels.selected()
        self.block = block_of(w.shape[2] // 4, kernel.lanes)
        self.parts = [repacked(pack_rhs(in_blocks(of_direction, self.block)), kernel) for of_direction in w]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in self.parts)

    def to_array(self) -> np.ndarray:
        """The weights as they came."""
        y = np.empty(self.shape, self.dtype)
        order = in_blocks(np.arange(self.shape[2]), self.block)
        for to, part in zip(y, self.parts, strict=True):
            to[:, order] = part.to_array()
        return y


class _Direction(NotCopied):
    """The packed weights of one direction, whose columns lie in blocks of so many units of the state, and plans
    by the number of rows.
    """

    instead = "copy the Model"

    def __init__(
        self,
        w: PackedRhs,
        r: PackedRhs,
        block: int,
        scales: Sequence[np.ndarray],
        zeros: Sequence[int],
        bias: np.ndarray | None,
        peepholes: np.ndarray | None,
        gates: Gates,
        backward: bool,
    ) -> None:
        wide, self.block = w.shape[1], block
        self.w, self.r, self.zeros = w, r, zeros
        self.scales = [in_blocks(np.broadcast_to(s, (wide,)).astype(np.float32), block) for s in scales]
        #: What nothing is added with.
        self.none, self.nothing = np.zeros(wide, np.int32), np.full(wide, -0.0, np.float32)
        self.bias = self.nothing
        if bias is not None:
            self.bias = in_blocks((bias[:wide] + bias[wide:]).astype(np.float32), block)
        self.peepholes = None if peepholes is None else np.ascontiguousarray(peepholes, np.float32)
        self.gates, self.backward = gates.numbers(bias is not None), backward
        #: By rows and columns, for the cut that came last.
        self._plans: tuple[Any, list[Plan]] = None, []

    def plans(self, rows: int, cut: _Cut) -> list[Plan]:
        """Of the state's product in all parts but the last, and in the last."""
        if self._plans[0] != (rows, cut):
            depth, columns = self.r.shape
            sizes = [(min(cut.rows, rows), min(4 * cut.units, columns))]
            before = cut.parts - 1
            # cut one way or the other
            sizes.append(
                (rows - before * cut.rows, columns)
                if cut.rows < rows
                else (rows, columns - before * 4 * cut.units)
            )
            self._plans = (rows, cut), [
                Plan(
                    kernels.by_name(self.r.kernel), Operand((m, depth), (depth, 1), "u"),
                    Operand((depth, n), (0, 0), self.r.dtype.kind), result=np.dtype(np.int32),
                    out_strides=(4 * columns, 4), packed=True, num_threads=1,
                )
                for m, n in sizes
            ]  # fmt: skip
        return self._plans[1]

    def words(
        self,
        x: tuple[np.ndarray, np.ndarray, Any],
        states: tuple[np.ndarray, np.ndarray],
        y: np.ndarray,
        lengths: np.ndarray | None,
        num_threads: int | None,
        cut: _Cut,
        recorder: Recorder | None,
    ) -> Any:
        """Multiply the input.

        Returns a function that gives the arguments of `run_directions` for this direction, and arrays that
        must live till then; NotImplemented if it cannot be taken down. `x` is as DynamicQuantizeLinear gives
        it, of as many steps as the longest sequence has; `states`, h and c (rows, hidden), will be changed,
        and `y` (steps, rows, hidden) filled.
        """
        coded, scale, zero = x
        steps, rows, depth = coded.shape
        hidden, columns = self.r.shape
        at, held, run = ways(recorder)
        lines = coded.reshape(-1, depth)
        if recorder is None:
            gates = gemm(
                lines, self.w, lhs_zero_point=int(zero), rhs_zero_point=self.zeros[0], num_threads=num_threads
            )
        else:
            gates = recorder.product(lines, self.w, zero, self.zeros[0], None, num_threads)
            if gates is NotImplemented:
                return NotImplemented
        own = np.empty(columns, np.float32)
        run(scale_by, (at(scale), held(self.scales[0]), at(own)), columns)
        places = at(gates), held(self.none), at(own), held(self.nothing)
        turned.run_scaled_rows(*places, (steps * rows, columns), num_threads, run)
        r, plans = self.r, self.plans(rows, cut)
        each = -(-max(p.scratch_bytes for p in plans) // scratch.ALIGNMENT) * scratch.ALIGNMENT
        if recorder is None:
            space = scratch.aligned_empty(each * cut.workers)
        else:  # in a recording each array begins at an aligned place
            space = np.empty(each * cut.workers, np.uint8)
            recorder.kept += plans
        memory = (
            space, np.empty(rows * hidden + 64, np.uint8), np.empty((rows, columns), np.int32),
            np.empty(max(hidden * cut.workers, 2), np.float32),
        )  # fmt: skip
        standing = team.the_team()

        # where they lie is asked last: a recording keeps a place up to the pass that it was asked for
        def arguments() -> list[Any]:
            found: list[Any] = [0] * steps_code.OF_DIRECTION
            for number, value in {
                steps_code.PRODUCT: int(plans[0].p.single),
                steps_code.PLAN: held(plans[0].numbers),
                steps_code.LAST_PLAN: held(plans[1].numbers),
                steps_code.PANELS: r.panels_address,
                steps_code.SUMS: r.sums_address,
                steps_code.COLUMN_BYTES: r.rhs_bytes // r.sums.shape[-1],
                steps_code.ZERO: int(self.zeros[1]),
                steps_code.SPACE: at(space),
                steps_code.SPACE_BYTES: each,
                steps_code.GATES: at(gates),
                steps_code.BLOCK: self.block,
                steps_code.BIAS: held(self.bias),
                steps_code.SCALES: held(self.scales[1]),
                steps_code.STATE: at(states[0]),
                steps_code.CELLS: at(states[1]),
                steps_code.OUT: at(y),
                steps_code.OUT_STEP: y.strides[0] // 4,
                steps_code.BACKWARD: int(self.backward),
                steps_code.CODED: at(memory[1]),
                steps_code.ACC: at(memory[2]),
                steps_code.WORK: at(memory[3]),
                steps_code.NUMBERS: held(self.gates),
                steps_code.SEEN: 0 if self.peepholes is None else held(self.peepholes),
                steps_code.LENGTHS: 0 if lengths is None else held(lengths),
                steps_code.STEPS: steps,
                steps_code.ALL_STEPS: len(y),
                steps_code.ROWS: rows,
                steps_code.HIDDEN: hidden,
                steps_code.PART: cut.units,
                steps_code.PART_ROWS: cut.rows,
                steps_code.PARTS: cut.parts,
                steps_code.WORKERS: cut.workers,
                steps_code.TEAM: 0 if standing is None else standing.address,
                steps_code.RUN_PART: steps_code.run_part.address,
                steps_code.RUN_PARTS: parts.work_on_parts.address,
            }.items():
                found[number] = value
            return found

        return arguments, (gates, own, *plans, *memory)


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """DynamicQuantizeLSTM of constant weights; others are the definition's or the engine's."""
    _, w, r, bias, *more = [*constants, *[None] * 12][:12]
    peepholes, w_scale, w_zero, r_scale, r_zero = more[3:]
    gates = gates_of(attributes)
    if gates is None or any(v is None for v in (w, r, w_scale, r_scale)):
        return None
    directions, hidden = w.shape[0], r.shape[1]
    zeros = [np.zeros(directions, v.dtype) if z is None else z for v, z in ((w, w_zero), (r, r_zero))]
    fits = all(v.dtype in _BYTES and v.ndim == 3 and v.shape[2] == 4 * hidden for v in (w, r))
    if not fits or directions != len(gates):
        return None
    if peepholes is not None and peepholes.shape != (directions, 3 * hidden):
        return None
    if any(z.reshape(directions, -1).shape[1] > 1 and (z != z.reshape(-1)[0]).any() for z in zeros):
        return None  # zero points of columns: packing has one for all
    packed_w, packed_r = (state.blocks(v, make=lambda v=v: PackedDirections(v)) for v in (w, r))
    made = [
        _Direction(
            packed_w.parts[d], packed_r.parts[d], packed_r.block,
            [s.reshape(directions, -1)[d] for s in (w_scale, r_scale)],
            [int(z.reshape(directions, -1)[d][0]) for z in zeros], None if bias is None else bias[d],
            None if peepholes is None else peepholes[d], gates[d],
            d == 1 or attributes.get("direction") == "reverse",
        )
        for d in range(directions)
    ]  # fmt: skip
    return _Prepared(made, dynamic.given_later(constants, 3, 7, 9, 11), state.num_threads)


class _Prepared(NotCopied):
    """Directions of constant weights, as a function of a node's inputs.

    Parameters
    ----------
    directions : list of _Direction
    later : callable
        Whether inputs that should be constants come with the data.
    num_threads : int or None
    """

    instead = "copy the Model"

    def __init__(self, directions: list[_Direction], later: Any, num_threads: int | None) -> None:
        self.directions, self.later, self.num_threads = directions, later, num_threads

    def __call__(self, *inputs: Any) -> Any:
        x, lengths, h, c = _data(inputs)
        if self._refuses(inputs) or not all(v is None or np.isfinite(v).all() for v in (h, c)):
            return NotImplemented
        steps, rows, _ = x.shape
        if lengths is not None:
            lengths = lengths_of(lengths, steps, rows)
            if not lengths.any():
                return NotImplemented
        size = len(self.directions), rows, self.directions[0].r.shape[0]
        states = state_of(h, size), state_of(c, size)
        return self._run(np.ascontiguousarray(x), lengths, states, None)

    def record(self, recorder: Recorder, *inputs: Any) -> Any:
        """Take it down; None if that cannot be. Lengths have to be constants or computed sizes."""
        x, lengths, h, c = _data(inputs)
        if self._refuses(inputs):
            return None
        steps, rows, _ = x.shape
        if lengths is not None:
            if not recorder.is_constant(lengths):
                return None
            try:
                lengths = lengths_of(lengths, steps, rows)
            except ValueError:  # said when it runs
                return None
            if not lengths.any():
                return None
        size = len(self.directions), rows, self.directions[0].r.shape[0]
        h, c = (_state_later(v, size, recorder) for v in (h, c))
        if h is None or c is None:
            return None
        found = self._run(recorder.in_order(x), lengths, (h, c), recorder)
        return None if found is NotImplemented else found

    def _refuses(self, inputs: Sequence[Any]) -> bool:
        """Whether inputs are the definition's to run or to refuse."""
        x = inputs[0]
        fits = x.dtype == np.float32 and x.ndim == 3 and x.size > 0
        return not fits or x.shape[2] != self.directions[0].w.shape[0] or self.later(inputs)

    def _run(
        self,
        x: np.ndarray,
        lengths: np.ndarray | None,
        states: tuple[np.ndarray, np.ndarray],
        recorder: Recorder | None,
    ) -> Any:
        """Run or take down all steps. Steps that no sequence has are left out; the `states` are changed."""
        h, c = states
        y = np.empty((x.shape[0], *h.shape), np.float32)
        steps = x.shape[0] if lengths is None else int(lengths.max())
        coded = dynamic.quantized(x[:steps], False, None, self.num_threads, recorder)
        if coded is NotImplemented:
            return NotImplemented
        codes, scale, zero = coded
        if recorder is not None:
            coded = codes, _finite_copy(scale, recorder), zero
        elif not np.isfinite(scale):  # the state becomes NaN
            return NotImplemented
        later_words, alive = [], [x, y, *coded]
        count, rows, hidden = h.shape
        block = self.directions[0].block
        time = step_time(hidden, rows, steps, recorder is not None and recorder.far)
        cut = cut_of(hidden, block, rows, time, self.num_threads)
        if 1 < cut.workers <= count:  # they run both directions at once
            cut = cut_of(hidden, block, rows, time, 1)
        for d, direction in enumerate(self.directions):
            found = direction.words(coded, (h[d], c[d]), y[:, d], lengths, self.num_threads, cut, recorder)
            if found is NotImplemented:
                return NotImplemented
            later_words.append(found[0])
            alive += found[1]
        words = [word for of_direction in later_words for word in of_direction()]
        time *= count * steps
        workers = parts.workers_for(time, count, 1 if cut.workers > 1 else self.num_threads)
        ways(recorder).run(steps_code.run_directions, words, count, workers, time)
        if recorder is not None:
            recorder.shares(cut.workers, time)
            recorder.keep(*alive)
        return y, h, c


def _data(inputs: Sequence[Any]) -> list[Any]:
    """The input, the lengths, and both states."""
    more = [*inputs[4:7], *[None] * 3][:3]
    return [inputs[0], *more]


def _finite_copy(given: Any, recorder: Recorder) -> np.ndarray:
    """Take down a copy; the recording refuses numbers that are not finite."""
    copy, bad = np.empty(given.shape, np.float32), np.empty(1, np.float32)
    recorder.keep(given, copy, bad)
    recorder.run(steps_code.take_state, (recorder.at(given), recorder.at(copy), recorder.at(bad)), copy.size)
    recorder.check(bad)
    return copy


def _state_later(given: Any, size: tuple[int, ...], recorder: Recorder) -> np.ndarray | None:
    """What stands for a state to be changed; None of one that cannot be taken down."""
    if given is None:
        count = int(np.prod(size))
        memory = np.empty(count + count % 2, np.float32)  # zeros come in words of 8 bytes
        recorder.keep(memory)
        recorder.run(clear, (recorder.at(memory), memory.nbytes, memory.nbytes // 8), 1)
        return memory[:count].reshape(size)
    given = recorder.in_order(given)
    if given.shape != size or given.dtype != np.float32 or not given.flags.c_contiguous:
        return None
    return _finite_copy(given, recorder)
