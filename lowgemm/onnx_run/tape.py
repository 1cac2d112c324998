"""Steps that follow one another as one compiled call.

A small step costs more in Python than in compiled code: its arrays have to be made, looked at and asked for their
addresses. But for inputs of known shapes all of that is the same in every run. So steps that can are recorded when
inputs of new shapes come: each says by `Recorder.run` which passes it would run, on arrays that are never filled
(`Recorder.at`). What comes out is a `Tape`: a list of passes with their arguments, and one piece of memory in which
all values lie that nothing outside reads, those that do not live at the same time in one place. A run writes the
addresses of inputs and outputs into a copy of the list, and `run_tape` goes through it.

A pass may find that its data are not for it, as DynamicQuantizeLinear does with infinities (`Recorder.check`). Then
the steps run one by one, which says what is wrong. So a tape changes no input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm import config
from lowgemm.engine import parts, threads
from lowgemm.jit import scratch, team
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import as_address, load_f32, load_i64, offset, pointer_at, stack, store_64, store_f32
from lowgemm.jit.routine import call_address, routine
from lowgemm.onnx_run.addresses import address

#: Kinds of inputs for which a group keeps tapes.
SHAPES = 16
#: Numbers of a tape: which pass failed, counted from 1; passes; addresses of `work_on_parts` and of the team. Then
#: `ENTRY` numbers a pass: its address, where its arguments are, pieces, pieces of a part, workers, whether helpers
#: are woken for it, and the address of a float32 that is NaN if it failed, or 0. Then the arguments.
STATUS, PASSES, WORK_ON_PARTS, TEAM, HEAD = range(5)
WORK, ARGS, PIECES, STEP, WORKERS, LONG, CHECKED, ENTRY = range(8)
_JOB_BYTES = 8 * parts.JOB


@routine("p")
def run_tape(tape):
    """Run all passes of a tape, or those up to the first that fails."""
    for number in range(load_i64(tape, PASSES)):
        entry = offset(tape, 8 * (HEAD + ENTRY * number))
        args, pieces = as_address(offset(tape, 8 * load_i64(entry, ARGS))), load_i64(entry, PIECES)
        if load_i64(entry, WORKERS) == 1:
            call_address(load_i64(entry, WORK), (args, 0, pieces, 0))
        else:
            job = stack(_JOB_BYTES)
            store_64(job, parts.WORK, load_i64(entry, WORK))
            store_64(job, parts.ARGS, args)
            store_64(job, parts.PIECES, pieces)
            store_64(job, parts.STEP, load_i64(entry, STEP))
            for i in range(parts.GIVEN, parts.JOB):
                store_64(job, i, 0)
            team.share(
                pointer_at(tape, TEAM), load_i64(tape, WORK_ON_PARTS), as_address(job),
                as_address(offset(job, 8 * parts.GIVEN)), load_i64(entry, WORKERS), load_i64(entry, LONG),
            )  # fmt: skip
        if load_i64(entry, CHECKED) != 0:
            found = load_f32(pointer_at(entry, CHECKED), 0)
            if found != found:
                store_64(tape, STATUS, number + 1)
                return


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


class _Place(NamedTuple):
    """A place in an array's memory: whose, and how many bytes from its beginning."""

    owner: int
    bytes: int


def _owner(a: np.ndarray) -> np.ndarray:
    """The array whose memory an array lies in."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


class Recorder(NotCopied):
    """Takes down the passes of steps, on arrays that stand for those of a run.

    Parameters
    ----------
    inputs : sequence of ndarray
        What the steps read of others: arrays as they will come.
    """

    instead = "record again"

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        self.passes: list[tuple[Any, list[Any], int, int, float]] = []
        self.checks: dict[int, _Place | int] = {}
        #: What has to live as long as the tape, and what only until it is made.
        self.kept: list[Any] = []
        self._alive: list[Any] = list(inputs)
        #: Number of each owner, and (owner, first pass, last pass) of each.
        self._numbers: dict[int, int] = {}
        self.owners: list[tuple[np.ndarray, int, int]] = []
        self._zeros: dict[int, np.ndarray] = {}
        self._constants: set[int] = set()
        self.inputs: dict[int, tuple[int, int]] = {}
        for i, x in enumerate(inputs):
            number = self.number(x)
            self.inputs[number] = i, address(x) - address(self.owners[number][0])

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
        return self.number(a) not in self.inputs

    def constant(self, a: np.ndarray) -> None:
        """An array that is what it is."""
        self._constants.add(id(_owner(a)))

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

    def check(self, a: np.ndarray) -> None:
        """The last pass failed if the first number of an array is NaN then."""
        place, last = self.at(a), len(self.passes) - 1
        self.checks[last] = place

    def stands_for(self, zero: np.ndarray, made: np.ndarray) -> None:
        """A zero point that is not filled itself; it is the last of four numbers that are made."""
        self.keep(zero)
        self._zeros[id(zero)] = made

    def made_of(self, zero: Any) -> np.ndarray | None:
        """The four numbers of a zero point that is not filled itself."""
        return self._zeros.get(id(zero))


class _Output(NamedTuple):
    """An output: which owner, bytes from its beginning, shape, dtype, strides; whether it is a zero point."""

    owner: int
    bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]
    zero: bool


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
        self._outputs = []
        for y in outputs:
            made = recorder.made_of(y)
            a = y if made is None else made
            owner = recorder.number(a)
            place = address(a) - address(recorder.owners[owner][0])
            self._outputs.append(_Output(owner, place, a.shape, a.dtype, a.strides, made is not None))
        outside = {o.owner for o in self._outputs}
        # an output may be an input, or lie in one
        self._fresh = [(n, recorder.owners[n][0].nbytes) for n in sorted(outside) if n not in recorder.inputs]
        self._inputs = recorder.inputs
        where, self._nbytes = _placed(recorder.owners, {*outside, *recorder.inputs})
        words: list[Any] = [0, len(recorder.passes), parts.work_on_parts.address, 0]
        standing = team.the_team()
        words[TEAM] = 0 if standing is None else standing.address
        at = HEAD + ENTRY * len(recorder.passes)
        for i, (work, args, pieces, workers, nanoseconds) in enumerate(recorder.passes):
            step, long = parts.step_of(pieces, workers), int(nanoseconds >= parts.LONG)
            words += [work.address, at, pieces, step, workers, long, recorder.checks.get(i, 0)]
            at += len(args)
        for _, args, *_ in recorder.passes:
            words += args
        self._words = np.zeros(len(words), np.int64)
        #: 1 where a number counts from the beginning of the tape's memory; and those that count from an owner's.
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

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """The outputs; None if a pass failed."""
        space = scratch.borrow(self._nbytes)
        try:
            words = self._relative * address(space)
            words += self._words
            memory: dict[int, np.ndarray] = {}
            for owner, nbytes in self._fresh:
                a = memory[owner] = np.empty(nbytes, np.uint8)
                begin = address(a)
                for i in self._outside.get(owner, ()):
                    words[i] += begin
            for owner, (which, skipped) in self._inputs.items():
                a = memory[owner] = inputs[which]
                begin = address(a) - skipped
                for i in self._outside.get(owner, ()):
                    words[i] += begin
            run_tape.ctypes(address(words))
            if words[STATUS]:
                return None
        finally:
            scratch.give_back(space)
        found = []
        for owner, skipped, shape, dtype, strides, zero in self._outputs:
            y = np.ndarray(shape, dtype, memory[owner], skipped, strides)
            found.append(np.array(y[3], np.uint8) if zero else y)
        return found


def _placed(owners: Sequence[tuple[np.ndarray, int, int]], outside: set[int]) -> tuple[dict[int, int], int]:
    """Where arrays lie in memory of their own, by number, and its size: those that live at the same time apart."""
    where: dict[int, int] = {}
    live: list[tuple[int, int, int]] = []  # begin, end, last pass
    size = 0
    for number, (owner, first, last) in enumerate(owners):
        if number in outside:
            continue
        live = sorted(x for x in live if x[2] >= first)
        begin, need = 0, -(-owner.nbytes // scratch.ALIGNMENT) * scratch.ALIGNMENT
        for low, high, _ in live:
            if begin + need <= low:
                break
            begin = max(begin, high)
        where[number] = begin
        live.append((begin, begin + need, last))
        size = max(size, begin + need)
    return where, size


class Group(NotCopied):
    """Steps that are recorded together.

    Parameters
    ----------
    records : sequence of (callable, tuple of int, tuple of int)
        Of each step: ``record(recorder, *inputs)``, which returns its outputs, or None if it cannot; and the
        numbers of what it reads and makes.
    inputs, outputs : tuple of int
        Numbers of what the group reads of others, and of what others read.
    num_threads : int or None
        As in `lowgemm.gemm`.
    """

    instead = "copy the Model"

    def __init__(
        self,
        records: Sequence[tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]],
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        num_threads: int | None,
    ) -> None:
        self._records, self.inputs, self.outputs = records, inputs, outputs
        self._alone = num_threads == 1
        self._tapes: dict[Any, Tape | None] = {}

    def run(self, values: Sequence[Any]) -> list[np.ndarray] | None:
        """The outputs, from all values by number; None if the steps have to run one by one."""
        given = [values[n] for n in self.inputs]
        try:
            key: Any = tuple([(v.shape, v.strides, v.dtype) for v in given])
        except AttributeError:  # a sequence, or a value that is left out
            return None
        # what plans are made for
        key = key, config.kernel, None if self._alone else threads.settings()
        tape = self._tapes.get(key, self)
        if tape is self:
            if len(self._tapes) >= SHAPES:
                self._tapes.clear()
            tape = self._tapes[key] = self._record(given, values)
        return None if tape is None else tape.run(given)

    def _record(self, given: Sequence[np.ndarray], values: Sequence[Any]) -> Tape | None:
        if not self._alone and team.the_team() is None:
            return None
        if any(v.size == 0 for v in given) or len({id(_owner(v)) for v in given}) < len(given):
            return None
        recorder, known = Recorder(given), dict(zip(self.inputs, given, strict=True))
        for record, reads, makes in self._records:
            for n in reads:
                if n not in known and isinstance(values[n], np.ndarray):
                    recorder.constant(values[n])
            made = record(recorder, *[known.get(n, values[n]) for n in reads])
            if made is None:
                return None
            known.update(zip(makes, made, strict=False))
            recorder.keep(*made)
        return Tape(recorder, [known[n] for n in self.outputs])
