"""Steps that follow one another as one compiled call.

A small step costs more in Python than in compiled code: its arrays have to be made, looked at and asked for
their addresses. But for inputs of known shapes all of that is the same in every run. So steps that can are
recorded when inputs of new shapes come: each says by `Recorder.run` which passes it would run, on arrays that
are never filled (`Recorder.at`). What comes out is a `Tape`: a list of passes with their arguments, and one
piece of memory in which all values lie that nothing outside reads, those that do not live at the same time in
one place. A run writes the addresses of inputs and outputs into a copy of the list, and `run_tape` goes
through it.

A pass may find that its data are not for it, as MatMulNBits does with infinities (`Recorder.check`). Then the
steps run one by one, which says what is wrong. So a tape changes no input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm import config, kernels
from lowgemm.engine import parts, threads
from lowgemm.engine.packed_rhs import PackedRhs, repacked
from lowgemm.gemm import checked_call
from lowgemm.jit import scratch, team
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import (
    as_address,
    is_null,
    load_f32,
    load_i64,
    load_u8,
    offset,
    pointer_at,
    store_32,
    store_64,
    store_f32,
)
from lowgemm.jit.routine import call_address, inner, routine
from lowgemm.onnx_run import strided, turned
from lowgemm.onnx_run.addresses import address

#: Kinds of inputs for which a group keeps tapes.
SHAPES = 16
#: Numbers of a tape: which pass failed, counted from 1; the first pass to run, and the one behind the last;
#: addresses of `work_on_parts` and of the team; helpers of the team that are kept awake meanwhile.
#: Then `ENTRY` numbers a pass: its address, where its arguments are, pieces, pieces of a part, workers,
#: whether helpers are woken for it, and the address of a float32 that is NaN if it failed, or 0. Then the
#: arguments.
STATUS, FIRST, END, WORK_ON_PARTS, TEAM, HELPERS, HEAD = range(7)
WORK, ARGS, PIECES, STEP, WORKERS, LONG, CHECKED, ENTRY = range(8)


@routine("p")
def run_tape(tape):
    """Run the passes of a tape, up to the first that fails."""
    helpers = load_i64(tape, HELPERS)
    if helpers > 0:
        team.keep(pointer_at(tape, TEAM), 1, helpers)
    for number in range(load_i64(tape, FIRST), load_i64(tape, END)):
        entry = offset(tape, 8 * (HEAD + ENTRY * number))
        work, args = load_i64(entry, WORK), as_address(offset(tape, 8 * load_i64(entry, ARGS)))
        pieces, workers = load_i64(entry, PIECES), load_i64(entry, WORKERS)
        if workers == 1:
            call_address(work, (args, 0, pieces, 0))
        else:
            parts.share_inside(
                pointer_at(tape, TEAM), load_i64(tape, WORK_ON_PARTS), work, args, pieces,
                load_i64(entry, STEP), workers, load_i64(entry, LONG),
            )  # fmt: skip
        if load_i64(entry, CHECKED) != 0:
            found = load_f32(pointer_at(entry, CHECKED), 0)
            if found != found:
                store_64(tape, STATUS, number + 1)
                break
    if helpers > 0:
        team.keep(pointer_at(tape, TEAM), -1, 0)


@routine(parts.PASS)
def clear(args, first, end, worker):
    """Zeros. Arguments: address, bytes from one row to the next, 64-bit words of a row. Pieces are rows."""
    for row in range(first, end):
        to = offset(pointer_at(args, 0), row * load_i64(args, 1))
        for i in range(load_i64(args, 2)):
            store_64(to, i, 0)


@routine(parts.PASS)
def scale_by(args, first, end, worker):
    """Float32 numbers times another. Arguments: the number's address, src, dst. Pieces are numbers."""
    factor = load_f32(pointer_at(args, 0), 0)
    src, dst = pointer_at(args, 1), pointer_at(args, 2)
    for i in range(first, end):
        store_f32(dst, i, factor * load_f32(src, i))


@inner
def zero_point_of(args, number):
    """A zero point: argument `number`; or if the one behind it is not 0, the byte at that address, and the
    first says by what it is flipped: 128 if it is signed, else 0.
    """
    value, made = load_i64(args, number), pointer_at(args, number + 1)
    return value if is_null(made) else (np.int64(load_u8(made, 0)) ^ value) - value


@routine(parts.PASS)
def repeat_point(args, first, end, worker):
    """A zero point for each row or column, less what packing adds. Arguments: two of `zero_point_of`, what is
    taken away, and dst, int32. Pieces are numbers.
    """
    value = zero_point_of(args, 0) - load_i64(args, 2)
    for i in range(first, end):
        store_32(pointer_at(args, 3), i, value)


@routine(parts.PASS)
def run_plan(args, first, end, worker):
    """A call of a plan's `way` (`engine/drivers.py`).

    Arguments: the way, the plan, lhs or images, rhs or panels, sums of packed panels, dst, space, two of
    `zero_point_of` for each operand, and addresses of the zero points of each row and of each column for a plan
    that is bilinear.
    """
    call_address(
        load_i64(args, 0),
        (
            load_i64(args, 1), load_i64(args, 2), load_i64(args, 3), load_i64(args, 4), load_i64(args, 5),
            load_i64(args, 6), zero_point_of(args, 7), zero_point_of(args, 9), load_i64(args, 11),
            load_i64(args, 12),
        ),
    )  # fmt: skip


class _Place(NamedTuple):
    """A place in an array's memory: whose, and how many bytes from its beginning."""

    owner: int
    bytes: int


def _owner(a: np.ndarray) -> np.ndarray:
    """The array whose memory an array lies in."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def _like(x: np.ndarray) -> np.ndarray:
    """An array of the same shape, strides and dtype; what it holds is not defined, and takes no memory yet."""
    reach = [(n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)]
    before = -sum(r for r in reach if r < 0)
    memory = np.empty(before + sum(r for r in reach if r > 0) + x.itemsize, np.uint8)
    return np.ndarray(x.shape, x.dtype, memory, before, x.strides)


class Recorder(NotCopied):
    """Takes down the passes of steps, on arrays that stand for those of a run.

    Parameters
    ----------
    inputs : dict of int to ndarray
        What the steps read of others, by number: arrays as they will come.
    far : bool
        Whether products find their weights behind the second-level cache. There short ones take so long that
        threads pay.
    """

    instead = "record again"

    def __init__(self, inputs: Mapping[int, np.ndarray], far: bool = False) -> None:
        self.far = far
        self.passes: list[tuple[Any, list[Any], int, int, float]] = []
        self.checks: dict[int, _Place | int] = {}
        #: By pass: threads of the jobs that it opens itself, and what they take one thread.
        self.jobs: dict[int, tuple[int, float]] = {}
        #: What has to live as long as the tape, and what only until it is made.
        self.kept: list[Any] = []
        self._alive: list[Any] = []
        #: Number of each owner, and (owner, first pass, last pass) of each.
        self._numbers: dict[int, int] = {}
        self.owners: list[tuple[np.ndarray, int, int]] = []
        self._constants: set[int] = set()
        #: Arrays of the inputs' shapes and strides. They have memory of their own, so two inputs may share
        #: theirs.
        self.given = {n: _like(x) for n, x in inputs.items()}
        #: By owner: the input, and how many bytes from the owner's beginning it begins.
        self.inputs: dict[int, tuple[int, int]] = {}
        for n, x in self.given.items():
            number = self.number(x)
            self.inputs[number] = n, address(x) - address(self.owners[number][0])

    def mark(self) -> int:
        """For `forget`."""
        return len(self.passes)

    def forget(self, mark: int) -> None:
        """Forget the passes that were taken down since."""
        del self.passes[mark:]
        self.checks = {i: place for i, place in self.checks.items() if i < mark}
        self.jobs = {i: job for i, job in self.jobs.items() if i < mark}

    def held(self, a: np.ndarray) -> int:
        """The address of a constant, for an argument of a pass; it lives as long as the tape."""
        self.kept.append(a)
        return address(a)

    def number(self, a: np.ndarray) -> int:
        """Of the owner of an array's memory."""
        owner = _owner(a)
        found = self._numbers.get(id(owner))
        if found is None:
            found = self._numbers[id(owner)] = len(self.owners)
            self.owners.append((owner, len(self.passes), len(self.passes)))
        return found

    def owns(self, a: np.ndarray) -> bool:
        """Whether an array lies in memory that only the recorded steps know."""
        return id(_owner(a)) not in self._constants and self.number(a) not in self.inputs

    def constant(self, a: np.ndarray) -> None:
        """An array that is what it is."""
        self._constants.add(id(_owner(a)))

    def is_constant(self, a: np.ndarray) -> bool:
        """Whether it is what it is."""
        return id(_owner(a)) in self._constants

    def keep(self, *arrays: Any) -> None:
        """What stands for a value, until the tape is made."""
        self._alive += arrays

    def at(self, a: np.ndarray) -> _Place | int:
        """Where an array will lie, for an argument of the next pass."""
        if id(_owner(a)) in self._constants:
            return address(a)
        number = self.number(a)
        owner, first, _ = self.owners[number]
        self.owners[number] = owner, first, len(self.passes)
        return _Place(number, address(a) - address(owner))

    def run(
        self, work: Any, args: Sequence[Any], pieces: int, workers: int = 1, nanoseconds: float = 0
    ) -> None:
        """Take down a pass; the arguments are those of `parts.run`, places instead of addresses."""
        self.passes.append((work, list(args), pieces, workers, nanoseconds))

    def shares(self, workers: int, nanoseconds: float) -> None:
        """Note that so many threads may share what the last pass does, by jobs of its own."""
        if workers > 1:
            self.jobs[len(self.passes) - 1] = workers, nanoseconds

    def point(self, zero: Any, operand: Any) -> tuple[Any, Any] | None:
        """An operand's zero point as two arguments of a pass (`zero_point_of`): a number, or one that an array
        stands for; None if it is no such.
        """
        if isinstance(zero, int):
            return zero, 0
        if zero.size != 1 or zero.dtype != operand.dtype or not self.knows(zero):
            return None
        self.keep(zero)
        return 128 if zero.dtype == np.int8 else 0, self.at(zero)

    def knows(self, a: np.ndarray) -> bool:
        """Whether an array is a constant, or stands for a value: else it is a copy of one."""
        return id(_owner(a)) in self._numbers or id(_owner(a)) in self._constants

    def run_plan(self, plan: Any, x: np.ndarray, rhs: Any, y: np.ndarray, zeros: Sequence[Any]) -> bool:
        """Take down a product or a convolution of `x` with an array, what is packed, or two arrays that
        stand for what is packed and its sums, to `y`; False if that cannot be.

        The zero points are numbers, vectors of them that the plan is made for, or arrays that stand for one.
        """
        if plan.way is None or plan.pipeline.customs:
            return False
        space = np.empty(plan.scratch_bytes, np.uint8)
        self.keep(x, y, space)
        sides = ((plan.m, plan.lhs_shift, x), (plan.channels, plan.rhs_shift, rhs))
        points: list[Any] = []
        vectors: list[Any] = [None, None]
        for i, (zero, (count, shift, operand)) in enumerate(zip(zeros, sides, strict=True)):
            if isinstance(zero, np.ndarray) and zero.size > 1:
                if not plan.bilinear or zero.size != count:
                    return False
                vectors[i] = (zero.reshape(-1).astype(np.int64) - shift).astype(np.int32)
                points += [0, 0]
                continue
            point = self.point(zero, operand)
            if point is None:
                return False
            if plan.bilinear:
                vectors[i] = np.empty(count, np.int32)
                self.keep(vectors[i])
                self.run(repeat_point, (*point, shift, self.at(vectors[i])), count)
                point = 0, 0
            points += point
        if not plan.bilinear:
            vectors = [0, 0]
        self.kept += [plan]
        if isinstance(rhs, np.ndarray):
            places: Any = self.at(rhs), 0
        elif isinstance(rhs, tuple):
            places = self.at(rhs[0]), self.at(rhs[1])
        else:
            self.kept += [rhs]
            places = rhs.panels_address, rhs.sums_address
        at_vectors = [
            v if isinstance(v, int) else self.at(v) if self.knows(v) else self.held(v) for v in vectors
        ]
        args = (
            plan.way.address, address(plan.numbers), self.at(x), *places, self.at(y), self.at(space), *points,
            *at_vectors,
        )  # fmt: skip
        self.run(run_plan, args, 1)
        self.shares(plan.threads, plan.nanoseconds)
        return True

    def product(
        self,
        lhs: np.ndarray,
        rhs: Any,
        lhs_zero: Any,
        rhs_zero: Any,
        output: Any,
        num_threads: int | None,
    ) -> Any:
        """Take down `gemm`; NotImplemented if that cannot be. A zero point is a number, a constant vector, or
        the array that stands for one.
        """
        if not all(isinstance(v, PackedRhs) or (self.knows(v) and v.size) for v in (lhs, rhs)):
            return NotImplemented
        vectors = [z for z in (lhs_zero, rhs_zero) if isinstance(z, np.ndarray) and z.size != 1]
        if any(self.knows(z) and not self.is_constant(z) for z in vectors):
            return NotImplemented
        zeros = [self._known_point(z) for z in (lhs_zero, rhs_zero)]
        numbers = [0 if isinstance(z, np.ndarray) and z.size == 1 else z for z in zeros]
        call = checked_call(
            lhs,
            rhs,
            lhs_zero_point=numbers[0],
            rhs_zero_point=numbers[1],
            output=output,
            num_threads=num_threads,
        )
        y, kernel = call.out, kernels.selected()
        if not y.size or call.own_zeros:
            return NotImplemented
        right = repacked(rhs, kernel) if isinstance(rhs, PackedRhs) else rhs
        return y if self.run_plan(call.plan(kernel, held=self.far), lhs, right, y, zeros) else NotImplemented

    def _known_point(self, zero: Any) -> Any:
        """A zero point that is a constant as a number, if it is one for all."""
        if isinstance(zero, np.ndarray) and zero.size and (zero.size > 1 or self.is_constant(zero)):
            first = zero.reshape(-1)[0]
            return int(first) if (zero == first).all() else zero
        return zero

    def in_order(self, a: np.ndarray) -> np.ndarray:
        """Take down a copy in C order, and return what stands for it; the same array if it is in this order,
        or not of that kind.
        """
        # images are turned over in registers where they are read
        if a.flags.c_contiguous or turned.sizes(a) is not None or not strided.takes(a, a):
            return a
        return self.copied(a)

    def copied(self, a: np.ndarray) -> np.ndarray:
        """Take down a copy in C order of an array that can be copied, and return what stands for it."""
        y = np.empty(a.shape, a.dtype)
        strided.run_copy(y, a, self.at, self.run, 1)
        return y

    def is_within(self, a: np.ndarray) -> bool:
        """Whether an array begins within another, at a place that is not aligned. onnxruntime has none of
        these: the order of its sums, and so their last bits, depend on where numbers lie.
        """
        begins = address(a) - address(_owner(a))
        return bool(begins % scratch.ALIGNMENT) and a.size > 1 and strided.takes(a, a)

    def can_view(self, a: np.ndarray) -> bool:
        """Whether a view of an array may stand for a value: the array's memory is the recorded steps', or an
        input's that can be copied if others read it.
        """
        return self.owns(a) or (not self.is_constant(a) and strided.takes(a, a))

    def check(self, a: np.ndarray) -> None:
        """The last pass failed if the first number of an array is NaN then."""
        place, last = self.at(a), len(self.passes) - 1
        self.checks[last] = place


class _Ways(NamedTuple):
    """How a step says where an array and a constant lie, and runs a pass: at once, or taken down."""

    at: Callable[[np.ndarray], Any]
    held: Callable[[np.ndarray], int]
    run: Callable[..., None]


_AT_ONCE = _Ways(address, address, parts.run)


def ways(recorder: Recorder | None) -> _Ways:
    """Those of a recorder, or at once."""
    return _AT_ONCE if recorder is None else _Ways(recorder.at, recorder.held, recorder.run)


def unless_refused(run: Callable[..., Any]) -> Callable[..., Any]:
    """What takes a step down (`Group`) of which ``run(*inputs, recorder=recorder)`` does the work, and
    returns its output, or NotImplemented.
    """

    def record(recorder: Recorder, *inputs: Any) -> Any:
        try:
            y = run(*inputs, recorder=recorder)
        except (TypeError, ValueError):  # said when it runs
            return None
        return None if y is NotImplemented else (y,)

    return record


class _Output(NamedTuple):
    """An output: which owner, bytes from its beginning, shape, dtype, strides."""

    owner: int
    bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]


class Tape(NotCopied):
    """Recorded passes, ready to run.

    Parameters
    ----------
    recorder : Recorder
        Of the passes.
    outputs : sequence of ndarray
        What others read: arrays that the recorded steps returned.
    """

    instead = "copy the Model"

    def __init__(self, recorder: Recorder, outputs: Sequence[np.ndarray]) -> None:
        self._kept = [recorder.kept, [p[0] for p in recorder.passes]]
        jobs = [(p[3], p[4]) for p in recorder.passes if p[3] > 1] + list(recorder.jobs.values())
        #: Nanoseconds that one thread takes for what may have several.
        self.shareable = sum(nanoseconds for _, nanoseconds in jobs)
        #: Shape, dtype and strides of each input, by number.
        self.forms = {n: (x.shape, x.dtype, x.strides) for n, x in recorder.given.items()}
        #: The outputs, and the memory that each run makes for them: number of the owner, bytes.
        self.outputs = []
        for y in outputs:
            owner = recorder.number(y)
            place = address(y) - address(recorder.owners[owner][0])
            self.outputs.append(_Output(owner, place, y.shape, y.dtype, y.strides))
        outside = {o.owner for o in self.outputs}
        self.fresh = [(n, recorder.owners[n][0].nbytes) for n in sorted(outside)]
        own = [n for n in range(len(recorder.owners)) if n not in outside and n not in recorder.inputs]
        lives = [(owner.nbytes, first, last) for owner, first, last in (recorder.owners[n] for n in own)]
        #: Bytes that a run needs besides.
        places, self.nbytes = placed(lives)
        where = dict(zip(own, places, strict=True))
        words: list[Any] = [0, 0, len(recorder.passes), parts.work_on_parts.address, 0, 0]
        standing = team.the_team()
        words[TEAM] = 0 if standing is None else standing.address
        if self.shareable >= parts.LONG:
            words[HELPERS] = max(workers for workers, _ in jobs) - 1
        at = HEAD + ENTRY * len(recorder.passes)
        for i, (work, args, pieces, workers, nanoseconds) in enumerate(recorder.passes):
            step, long = parts.step_of(pieces, workers), int(nanoseconds >= parts.LONG)
            words += [work.address, at, pieces, step, workers, long, recorder.checks.get(i, 0)]
            at += len(args)
        for _, args, *_ in recorder.passes:
            words += args
        self._words = np.zeros(len(words), np.int64)
        #: 1 where a number counts from the beginning of the tape's memory; and those that count from an
        #: owner's.
        self._relative = np.zeros(len(words), np.int64)
        self._outside: dict[int, list[int]] = {}
        for i, word in enumerate(words):
            if not isinstance(word, _Place):
                self._words[i] = word
            elif word.owner in where:
                self._words[i], self._relative[i] = where[word.owner] + word.bytes, 1
            else:
                self._words[i] = word.bytes
                self._outside.setdefault(word.owner, []).append(i)
        #: Numbers of the inputs that are read, with the bytes that lie before them, and where in the list.
        self.inputs = [
            (n, skipped, self._outside[o])
            for o, (n, skipped) in recorder.inputs.items()
            if o in self._outside
        ]

    def at(
        self, space: int, homes: Mapping[int, int], places: Mapping[int, int]
    ) -> tuple[np.ndarray, dict[Any, list[tuple[int, int]]]]:
        """The list for fixed addresses, for `run_tape`.

        Parameters
        ----------
        space : int
            Address of `nbytes` bytes.
        homes, places : dict of int to int
            Addresses of the memory of outputs, by owner, and of inputs, by number.

        Returns
        -------
        words : ndarray
        later : dict
            By ``("owner", number)`` and ``("input", number)`` for all that has no address yet: where in the
            list it goes, and what is added to it.
        """
        words = self._relative * space + self._words
        later: dict[Any, list[tuple[int, int]]] = {}
        given: list[tuple[Any, int | None, list[int]]] = [
            (("owner", o), homes.get(o), self._outside.get(o, [])) for o, _ in self.fresh
        ]
        for n, skipped, where in self.inputs:
            begin = places.get(n)
            given.append((("input", n), None if begin is None else begin - skipped, where))
        for name, begin, where in given:
            if begin is None:
                later[name] = [(i, int(words[i])) for i in where]
            else:
                words[where] += begin
        return words, later

    def run(self, values: Sequence[Any], seconds: list[float] | None = None) -> list[np.ndarray] | None:
        """The outputs, from all values by number; None if a pass failed. `seconds`, if it is given, gets the
        time of each pass.
        """
        space = scratch.borrow(self.nbytes)
        try:
            words = self._relative * address(space)
            words += self._words
            memory: dict[int, np.ndarray] = {}
            for owner, nbytes in self.fresh:
                a = memory[owner] = np.empty(nbytes, np.uint8)
                begin = address(a)
                for i in self._outside.get(owner, ()):
                    words[i] += begin
            for number, skipped, places in self.inputs:
                begin = address(values[number]) - skipped
                for i in places:
                    words[i] += begin
            if seconds is None:
                run_tape.ctypes(address(words))
            else:
                seconds += _each(words)
            if words[STATUS]:
                return None
        finally:
            scratch.give_back(space)
        return [np.ndarray(o.shape, o.dtype, memory[o.owner], o.bytes, o.strides) for o in self.outputs]


def _each(words: np.ndarray) -> list[float]:
    """Run the passes of a tape one by one, up to the first that fails; seconds of each."""
    begin, passes = address(words), int(words[END])

    def seconds(first: int, end: int) -> float:
        words[FIRST], words[END] = first, end
        start = time.perf_counter()
        run_tape.ctypes(begin)
        return time.perf_counter() - start

    call = min(seconds(0, 0) for _ in range(3))  # what Python's way there takes
    found = []
    for number in range(passes):
        found.append(max(seconds(number, number + 1) - call, 0.0))
        if words[STATUS]:
            break
    return found


def placed(lives: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Where pieces of memory lie, and bytes of all: those that live at the same time apart.

    Parameters
    ----------
    lives : sequence of (int, int, int)
        Bytes, first and last time of each, ordered by the first.
    """
    where: list[int] = []
    live: list[tuple[int, int, int]] = []  # begin, end, last time
    size = 0
    for nbytes, first, last in lives:
        live = sorted(x for x in live if x[2] >= first)
        begin, need = 0, -(-nbytes // scratch.ALIGNMENT) * scratch.ALIGNMENT
        for low, high, _ in live:
            if begin + need <= low:
                break
            begin = max(begin, high)
        where.append(begin)
        live.append((begin, begin + need, last))
        size = max(size, begin + need)
    return where, size


class _Recorded(NamedTuple):
    """What steps of a group do, from one on up to `end` (without it): a tape, or None if they run one by one;
    what it was recorded for, of values that decide what steps do; what these values and the shapes decide;
    and how many passes there are up to the end of each step.
    """

    tape: Tape | None
    outputs: tuple[int, ...]
    end: int
    values: tuple[tuple[int, bytes], ...] = ()
    fixed: tuple[tuple[int, np.ndarray], ...] = ()
    passes: tuple[int, ...] = ()


class Group(NotCopied):
    """Steps that are recorded together, as far as that can be.

    Parameters
    ----------
    records : sequence of (callable, tuple of int, tuple of int)
        Of each step: ``record(recorder, *inputs)``, which returns its outputs, or None if it cannot; and the
        numbers of what it reads and makes. What it does must not depend on what the arrays hold.
    held : set of int
        Numbers of constants.
    outputs : set of int
        Numbers of what others read.
    num_threads : int or None
        As in `lowgemm.gemm`.
    values : set of int
        Numbers of what steps read of others, and what they do depends on what it holds: sizes for a Reshape.
    ordered : set of int
        Numbers of outputs that should be in C order.
    far : bool
        As in `Recorder`.
    """

    instead = "copy the Model"

    def __init__(
        self,
        records: Sequence[tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]],
        held: set[int],
        outputs: set[int],
        num_threads: int | None,
        values: frozenset[int] = frozenset(),
        ordered: frozenset[int] = frozenset(),
        far: bool = False,
    ) -> None:
        self._records, self._held, self._outputs = records, held, outputs
        self._values, self._ordered = values, ordered
        self._alone, self._far = num_threads == 1, far
        #: What the steps from each on read of others.
        self._inputs = [self._reads(i, len(records)) for i in range(len(records))]
        self.found: list[dict[Any, _Recorded]] = [{} for _ in records]

    def _reads(self, first: int, end: int) -> tuple[int, ...]:
        """Numbers of what steps `first` to `end` read of others."""
        records = self._records[first:end]
        made = {n for _, _, makes in records for n in makes}
        read = dict.fromkeys(n for _, reads, _ in records for n in reads)
        return tuple(n for n in read if n not in made and n not in self._held)

    def following(self, first: int, values: Sequence[Any]) -> _Recorded:
        """How the steps from `first` on run, with these values."""
        try:
            key: Any = tuple(
                [
                    (v.shape, v.strides, v.dtype, v.tobytes() if n in self._values else None)
                    for n, v in [(n, values[n]) for n in self._inputs[first]]
                ]
            )
        except AttributeError:  # a sequence, or a value that is left out
            return _Recorded(None, (), len(self._records))
        # what plans are made for
        key = key, config.kernel, None if self._alone else threads.settings()
        known = self.found[first]
        recorded = known.get(key)
        if recorded is None:
            if len(known) >= SHAPES:
                known.clear()
            recorded = known[key] = self._record(first, values)
        return recorded

    def _record(self, first: int, values: Sequence[Any]) -> _Recorded:
        nothing = _Recorded(None, (), len(self._records))
        if not self._alone and team.the_team() is None:
            return nothing
        given = {n: values[n] for n in self._inputs[first] if n not in self._values}
        if any(v.size == 0 or v.dtype.hasobject for v in given.values()):
            return nothing
        recorder = Recorder(given, self._far)
        known: dict[int, Any] = dict(recorder.given)
        passes: list[int] = []
        for end in range(first, len(self._records)):
            record, reads, makes = self._records[end]
            for n in reads:
                if n not in known and isinstance(values[n], np.ndarray):
                    recorder.constant(values[n])
            mark = recorder.mark()
            made = record(recorder, *[known.get(n, values[n]) for n in reads])
            if made is None:
                recorder.forget(mark)
                break
            known.update(zip(makes, made, strict=False))
            recorder.keep(*made)
            passes.append(recorder.mark())
        else:
            end += 1
        later = {n for _, reads, _ in self._records[end:] for n in reads} | self._outputs
        outputs = tuple(
            sorted(n for _, _, makes in self._records[first:end] for n in makes if n and n in later)
        )
        fixed = tuple((n, known[n]) for n in outputs if recorder.is_constant(known[n]))
        outputs = tuple(n for n in outputs if not recorder.is_constant(known[n]))
        if not recorder.passes and (outputs or not fixed):
            return nothing._replace(end=max(end, first + 1))
        for n in outputs:
            if not recorder.owns(known[n]) or recorder.is_within(known[n]):
                known[n] = recorder.copied(known[n])
            elif n in self._ordered:
                known[n] = recorder.in_order(known[n])
        read = {n for _, reads, _ in self._records[first:end] for n in reads} & self._values
        sizes = tuple((n, values[n].tobytes()) for n in sorted(read))
        made_tape = Tape(recorder, [known[n] for n in outputs])
        passes[-1] = recorder.mark()  # with the copies of outputs
        return _Recorded(made_tape, outputs, end, sizes, fixed, tuple(passes))
