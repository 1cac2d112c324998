"""A whole run with its values in fixed places.

Most of what a small model costs is the way from one step to the next: arrays are made for what a tape or a
part of onnxruntime's writes, their addresses are looked for, and onnxruntime makes values of its own of them
(8 us a part). But when inputs of the same shapes come again, all of that is known. So the second run with
such inputs is watched (`Seen`), and a `Frame` is made of what was seen: one piece of memory with a place for
each value that a tape or a part makes and others read; tapes with all addresses written into them; and parts
of onnxruntime's bound to these places (its `IOBinding`). What lives at different times shares memory.

What cannot have a fixed place is loose, as in other runs: large inputs, large outputs of the model, which are
the caller's, and what a step makes that is neither a tape nor a part.

Shapes may depend on what the values are, and tapes refuse some data. Then the steps in question run one by
one; if their results fit, they are copied into their places, else the rest of the run is one without places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm import config
from lowgemm.engine import parts, threads
from lowgemm.jit import scratch
from lowgemm.jit.addresses import NotCopied
from lowgemm.onnx_run import tape, way_in
from lowgemm.onnx_run.addresses import address
from lowgemm.onnx_run.turned import fill, second

#: Kinds of inputs for which a model keeps a frame, and bytes that all of them may have. A frame saves some 15
#: us for each thing that runs: nothing where 20 MiB are gone through, whose values would then lie in memory
#: twice.
KINDS, LARGEST = 8, 2 << 20
#: Bytes up to which an input of the model is copied to a fixed place, and an output of a part from one.
SMALL = 1 << 16
#: The same of an output of a tape, which can be bound anew more quickly: to copy 16 KiB takes 0.6 us.
COPIED = 1 << 14
#: Runs that could not be finished in a frame before it is given up.
GIVEN_UP = 2


class _Form(NamedTuple):
    """Of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]


def _form(value: Any) -> _Form | None:
    """None of what can have no fixed place."""
    if type(value) is not np.ndarray or not value.size or value.dtype.kind not in "fiub":
        return None
    return _Form(value.shape, value.dtype, value.strides) if value.dtype.isbuiltin == 1 else None


def _is_of_strings(value: Any) -> bool:
    """Whether it is an array of strings, which are Python's objects: onnxruntime binds none."""
    return type(value) is np.ndarray and value.dtype == object


def _input_form(value: Any) -> _Form | None:
    """`_form` of an input of the model; strings have no place, and need none."""
    return _Form(value.shape, value.dtype, value.strides) if _is_of_strings(value) else _form(value)


def _in_order(form: _Form) -> _Form:
    """The same in C order."""
    steps = np.cumprod((1, *form.shape[:0:-1]))[::-1] if form.shape else ()
    return form._replace(strides=tuple(int(n) * form.dtype.itemsize for n in steps))


def _bytes(form: _Form) -> int:
    return math.prod(form.shape) * form.dtype.itemsize


class Seen(NamedTuple):
    """What ran at once: a tape or a step; the steps it stands for; the forms of what it made; and whether it
    reads strings.
    """

    recorded: Any
    steps: list[Any]
    made: dict[int, _Form | None]
    strings: bool

    @classmethod
    def of(cls, recorded: Any, steps: list[Any], values: Sequence[Any]) -> Seen:
        """Right after it ran."""
        numbers = [n for s in steps for n in s.outputs] if recorded is None else recorded.outputs
        strings = any(_is_of_strings(values[n]) for s in steps for n in s.inputs)
        return cls(recorded, steps, {n: _form(values[n]) for n in numbers if n}, strings)

    def reads(self) -> set[int]:
        """Numbers of what comes from elsewhere."""
        made = {n for s in self.steps for n in s.outputs}
        return {n for s in self.steps for n in s.inputs} - made

    def bound(self) -> Any:
        """The session of a part of onnxruntime's that can be bound; None of anything else."""
        part = self.steps[0].part
        if self.recorded is not None or part is None or self.strings:
            return None
        if any(f is None for f in self.made.values()):
            return None
        if len(part.inputs) != len(self.steps[0].inputs):  # a node that leaves some out
            return None
        return part.session if len(self.made) == len(part.outputs) else None


def _shareable(one: Seen) -> float:
    """Nanoseconds of lowgemm's that several threads may share, of what ran; of what is not known, many."""
    if one.recorded is not None:
        return one.recorded.tape.shareable
    return parts.LONG if one.bound() is None else 0


class _Kept:
    """Steps as they run elsewhere."""

    def __init__(self, seen: Seen) -> None:
        self.steps, self.made = seen.steps, tuple(seen.made)
        self.fixed: list[int] = []
        self.frees: tuple[int, ...] = ()

    def fresh_ones(self) -> list[int]:
        """Numbers of what it makes in memory that nothing else has."""
        return []

    def run(self, values: list[Any], frame: Frame) -> bool:
        """False: one by one, please."""
        return False


class _Branched(_Kept):
    """An If, most of which is done by frames of its branches."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen)
        (self.step,) = seen.steps
        #: Whether its last results have memory of their own.
        self.own = False

    def run(self, values: list[Any], frame: Frame) -> bool:
        try:
            found = self.step.run(*[values[n] for n in self.step.inputs])
        except Exception:  # said when it runs by itself
            return False
        for n, value in zip(self.step.outputs, found, strict=False):
            values[n] = value
        values[0] = None
        self.own = found.__class__ is Own
        return True


class _Taped(_Kept):
    """A tape with its addresses written into it."""

    def __init__(
        self, seen: Seen, homes: Mapping[int, int], space: int, start: Sequence[Any], held: set[int]
    ) -> None:
        super().__init__(seen)
        self.tape = seen.recorded.tape
        self.values_read = [(n, v) for n, v in seen.recorded.values if n not in held]
        forms = self.tape.forms
        # what has no place may come in another shape, and no pass reads what only its shape is asked of
        self.shapes = [(n, form[0]) for n, form in forms.items() if start[n] is None]
        places = {
            n: address(start[n])
            for n, *_ in self.tape.inputs
            if start[n] is not None and n not in held and _form(start[n]) == forms[n]
        }
        self.words, self.later = self.tape.at(space, homes, places)
        self.address = address(self.words)
        self.fresh = [(o, nbytes) for o, nbytes in self.tape.fresh if o not in homes]
        self.loose = [(n, skipped, forms[n]) for n, skipped, _ in self.tape.inputs if n not in places]
        self.outputs = [
            (n, o)
            for n, o in zip(seen.recorded.outputs, self.tape.outputs, strict=True)
            if o.owner not in homes
        ]
        self.call, self.quick = tape.run_tape.ctypes, way_in.run_tape()
        self.again = None if self.quick is None else way_in.tape_call(tape.run_tape.address, self.words)
        #: Whether nothing is left to be looked at or made in a run.
        self.ready = not (self.values_read or self.shapes or self.loose or self.fresh or self.outputs)

    def fresh_ones(self) -> list[int]:
        """Numbers of what it makes in memory that nothing else has."""
        return [n for n, _ in self.outputs]

    def _called(self) -> bool:
        """Run the tape; False if a pass failed."""
        if self.quick is not None:
            return self.quick(self.again) is not None
        self.call(self.address)
        failed = bool(self.words[tape.STATUS])
        self.words[tape.STATUS] = 0
        return not failed

    def run(self, values: list[Any], frame: Frame) -> bool:
        if self.ready:
            return self._called()
        words = self.words
        for n, expected in self.values_read:
            if values[n].tobytes() != expected:
                return False
        for n, shape in self.shapes:
            if np.shape(values[n]) != shape:
                return False
        for n, skipped, form in self.loose:
            v = values[n]
            if _form(v) != form:
                return False
            begin = address(v) - skipped
            for i, base in self.later["input", n]:
                words[i] = base + begin
        memory = {}
        for owner, size in self.fresh:
            a = memory[owner] = np.empty(size, np.uint8)
            begin = address(a)
            for i, base in self.later["owner", owner]:
                words[i] = base + begin
        if not self._called():
            return False
        for n, o in self.outputs:
            values[n] = np.ndarray(o.shape, o.dtype, memory[o.owner], o.bytes, o.strides)
        return True


class _Bound(_Kept):
    """A part of onnxruntime's, bound to places."""

    def __init__(
        self, seen: Seen, copies: Mapping[int, np.ndarray], start: Sequence[Any], held: set[int]
    ) -> None:
        super().__init__(seen)
        (step,) = self.steps
        part = step.part
        self.session, self.binding = part.session, part.session.io_binding()
        self.copies, self.kept = [], []
        self.loose, self.fresh = [], []
        for n, name in zip(step.inputs, part.inputs, strict=True):
            value = start[n]
            if value is None:
                self.loose.append((n, name))
                continue
            if n in copies:
                self.copies.append((copies[n], value))
                value = copies[n]
            elif n in held:
                value = np.ascontiguousarray(value)
            self.kept.append(value)
            self._bind(self.binding.bind_input, name, value)
        for n, name in zip(step.outputs, part.outputs, strict=True):
            if start[n] is None:
                form = seen.made[n]
                self.fresh.append((n, name, form.shape, form.dtype))  # type: ignore[union-attr]
            else:
                self._bind(self.binding.bind_output, name, start[n])
        self.threads = part.context.num_threads

    def fresh_ones(self) -> list[int]:
        """Numbers of what it makes in memory that nothing else has."""
        return [n for n, *_ in self.fresh]

    @staticmethod
    def _bind(how: Callable[..., None], name: str, value: np.ndarray) -> None:
        how(name, "cpu", 0, value.dtype.type, value.shape, address(value))

    def run(self, values: list[Any], frame: Frame) -> bool:
        given = []
        for copy, value in self.copies:
            fill(copy, value, self.threads)
        for n, name in self.loose:
            v = values[n]
            if _form(v) is None:
                return False
            if not v.flags.c_contiguous:
                v = second(v, self.threads)
            given.append(v)
            self._bind(self.binding.bind_input, name, v)
        for n, name, shape, dtype in self.fresh:
            y = values[n] = np.empty(shape, dtype)
            self._bind(self.binding.bind_output, name, y)
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception:  # onnxruntime's errors have no common base
            return False
        return True


class _Lives:
    """Which memory a frame needs, and from which unit to which.

    Attributes
    ----------
    names : list
        Of the pieces of memory.
    arrays : list of (int, _Form, name, int)
        Values with a fixed place: number, form, in which piece, and how many bytes from its beginning.
    copies : dict of int to dict of int to _Form
        By unit and number: values that a bound part needs in C order.
    """

    def __init__(
        self, seen: Sequence[Seen], held: set[int], inputs: Mapping[int, _Form], outputs: set[int]
    ) -> None:
        self.names: list[Any] = []
        self._spans: dict[Any, tuple[int, int, int]] = {}
        self.arrays: list[tuple[int, _Form, Any, int]] = []
        self.copies: dict[int, dict[int, _Form]] = {}
        #: By number: its form, and the pieces that it may lie in.
        forms: dict[int, _Form] = {}
        lies: dict[int, set[Any]] = {}

        def put(n: int, form: _Form, name: Any, skipped: int = 0) -> None:
            forms[n], lies[n] = form, {name}
            self.arrays.append((n, form, name, skipped))

        for n, form in inputs.items():
            placed = form.dtype != object and _bytes(form) <= SMALL and form == _in_order(form)
            if n not in outputs and n not in held and placed:
                self._add(("input", n), _bytes(form), 0)
                put(n, form, ("input", n))
        inner = len(self.arrays)
        for i, one in enumerate(seen):
            reads = one.reads()
            for n in reads:
                self._read(lies.get(n, ()), i)
            if one.recorded is not None:
                self._of_tape(i, one, outputs, put)
            elif one.bound() is not None:
                for n in reads:
                    if n in forms and forms[n] != _in_order(forms[n]):
                        self.copies.setdefault(i, {})[n] = _in_order(forms[n])
                        self._add(("copy", i, n), _bytes(forms[n]), i)
                for n, form in one.made.items():
                    # to copy an output at the end takes 1 us; to bind it anew 2, or 25 to 75 where other code
                    # has taken the caches
                    if n not in outputs or _bytes(form) <= SMALL:
                        self._add(("made", n), _bytes(form), i)
                        put(n, _in_order(form), ("made", n))
            else:  # what it returns may lie in what it was given
                for n in one.made:
                    lies[n] = set().union(*(lies.get(r, ()) for r in reads))
        for n in outputs:
            self._read(lies.get(n, ()), len(seen))
        #: Whether it saves anything.
        self.pays = len(self.arrays) > inner or any(one.recorded is not None for one in seen)

    def _add(self, name: Any, nbytes: int, unit: int) -> None:
        self.names.append(name)
        self._spans[name] = nbytes, unit, unit

    def _read(self, names: Any, unit: int) -> None:
        for name in names:
            nbytes, first, _ = self._spans[name]
            self._spans[name] = nbytes, first, unit

    def _of_tape(self, i: int, one: Seen, outputs: set[int], put: Callable[..., None]) -> None:
        made = one.recorded.tape
        if made.nbytes:
            self._add(("space", i), made.nbytes, i)
        of_owner: dict[int, list[tuple[int, Any]]] = {}
        for n, o in zip(one.recorded.outputs, made.outputs, strict=True):
            of_owner.setdefault(o.owner, []).append((n, o))
        for owner, nbytes in made.fresh:
            # to make an array, to ask for its address and to make a view of it takes 1 us, or 25 where other
            # code has taken the caches; to copy it 0.3 and 5
            if nbytes > COPIED and any(n in outputs for n, _ in of_owner[owner]):
                continue
            name = "owner", i, owner
            self._add(name, nbytes, i)
            for n, o in of_owner[owner]:
                put(n, _Form(o.shape, o.dtype, o.strides), name, o.bytes)

    def of_all(self) -> list[tuple[int, int, int]]:
        """Bytes, first and last unit of each piece."""
        return [self._spans[name] for name in self.names]


class Own(list):
    """Results that each have memory which nothing else has."""


class Frame(NotCopied):
    """Places for all values of a run, and what runs on them.

    Parameters
    ----------
    seen : sequence of Seen
        What a run did.
    start : sequence
        Values by number at the beginning of a run: constants, else None.
    inputs : dict of int to _Form
        Of the model.
    outputs : sequence of int
        Numbers of the model's.
    """

    instead = "copy the Model"

    def __init__(
        self, seen: Sequence[Seen], start: Sequence[Any], inputs: Mapping[int, _Form], outputs: Sequence[int]
    ) -> None:
        self._outputs = outputs
        self.bailed = 0
        held = {n for n, v in enumerate(start) if v is not None}
        lives = _Lives(seen, held, inputs, set(outputs))
        where, size = tape.placed(lives.of_all())
        self.nbytes = size
        self._memory = scratch.aligned_empty(size) if size <= LARGEST else None
        #: Whether there is anything to be had from it.
        self.pays = self._memory is not None and lives.pays
        if not self.pays:
            return
        self._begin = address(self._memory)  # type: ignore[arg-type]
        offsets = dict(zip(lives.names, where, strict=True))

        self.start = list(start)
        for n, form, name, skipped in lives.arrays:
            self.start[n] = self._array(offsets[name] + skipped, form)
        for one in seen:
            for n, value in () if one.recorded is None else one.recorded.fixed:
                self.start[n] = value
                held.add(n)
        self.units: list[_Kept] = []
        for i, one in enumerate(seen):
            if one.recorded is not None:
                fresh = [o for o, _ in one.recorded.tape.fresh if ("owner", i, o) in offsets]
                homes = {o: self._begin + offsets["owner", i, o] for o in fresh}
                space = self._begin + offsets.get(("space", i), 0)
                unit: _Kept = _Taped(one, homes, space, self.start, held)
            elif one.bound() is not None:
                copies = {
                    n: self._array(offsets["copy", i, n], form) for n, form in lives.copies.get(i, {}).items()
                }
                unit = _Bound(one, copies, self.start, held)
            else:
                unit = _Branched(one) if one.steps[0].branches else _Kept(one)
            unit.fixed = [n for n in unit.made if self.start[n] is not None]
            unit.frees = tuple(n for s in one.steps for n in s.frees if self.start[n] is None)
            self.units.append(unit)
        #: Outputs that units make in memory of their own.
        self._fresh = {n for u in self.units for n in u.fresh_ones()}
        #: Of each output, whether it has to be copied from its place; None if some output may lie elsewhere.
        self._copied: list[bool] | None = [self.start[n] is not None for n in outputs]
        self._branched = [u for u in self.units if type(u) is _Branched and not {*outputs}.isdisjoint(u.made)]
        taken = {n for u in self._branched for n in u.made}
        placed = {n for n, *_ in lives.arrays} | self._fresh | taken
        owners = [(u, o.owner) for u in self.units if type(u) is _Taped for n, o in u.outputs if n in outputs]
        if len({*outputs}) < len(outputs) or len({*owners}) < len(owners) or not placed.issuperset(outputs):
            self._copied = None
        places = {i: self.start[n] for i, n in enumerate(inputs) if self.start[n] is not None}
        self._put = way_in.put()
        self._put_call, self._kept = way_in.put_call(list(inputs.values()), places)
        self._loose = [(i, n) for i, n in enumerate(inputs) if i not in places]
        #: Whether it pays to hold the team of threads for it. A single tape does that itself.
        self.shared = len(seen) > 1 and sum(map(_shareable, seen)) >= parts.LONG

    def _array(self, begin: int, form: _Form) -> np.ndarray:
        return np.ndarray(form.shape, form.dtype, self._memory, begin, form.strides)

    def run_again(self, given: Sequence[Any], one_by_one: Callable[..., None]) -> list[Any] | None:
        """The model's outputs, of inputs in order; None, and nothing happened, if they are not like those
        that the frame was made for. `one_by_one` is as in `run`.
        """
        if self._put is None or self._put(self._put_call, *given) is None:
            return None
        values = self.start.copy()
        for i, n in self._loose:
            values[n] = given[i]
        return self._run(values, one_by_one, None)

    def run(self, given: Sequence[Any], one_by_one: Callable[..., None], around: Any) -> list[Any]:
        """The model's outputs.

        Parameters
        ----------
        given : list
            Values by number, of the model's inputs.
        one_by_one : callable
            ``one_by_one(steps, values)`` runs steps.
        around : callable or None
            Runs a bound part, called with its step and what to run.
        """
        values = self.start.copy()
        for n, value in given:
            if values[n] is None:
                values[n] = value
            else:  # np.copyto takes three times as long to begin
                values[n][...] = value
        return self._run(values, one_by_one, around)

    def _run(self, values: list[Any], one_by_one: Callable[..., None], around: Any) -> list[Any]:
        """The model's outputs, of values by number, where the inputs are."""
        whole = True
        for i, unit in enumerate(self.units):
            if unit.__class__ is _Bound and around is not None:
                done = around(unit.steps[0], lambda unit=unit: unit.run(values, self))
            elif unit.__class__ is _Branched and around is not None:
                one_by_one(unit.steps, values)
                unit.own, done = False, True
            else:
                done = unit.run(values, self)
            if not done:
                whole = whole and unit.__class__ is _Kept
                one_by_one(unit.steps, values)
                if unit.__class__ in (_Taped, _Bound) and not self._settled(unit, values):
                    self.bailed += 1
                    one_by_one([s for u in self.units[i + 1 :] for s in u.steps], values)
                    break
            for n in unit.frees:
                values[n] = None
        else:
            if whole and self._copied is not None and all(u.own for u in self._branched):
                both = zip(self._outputs, self._copied, strict=True)
                return Own([values[n].copy("K") if copied else values[n] for n, copied in both])
            return [values[n] if n in self._fresh else self._own(values[n]) for n in self._outputs]
        # a step may return its input's memory in another form
        return [self._own(values[n]) for n in self._outputs]

    def _settled(self, unit: _Kept, values: list[Any]) -> bool:
        """Bring what steps made to its places; False if something does not fit."""
        for n in unit.made:
            value, place = values[n], self.start[n]
            if place is None:
                values[n] = self._own(value)
            elif type(value) is not np.ndarray or (value.shape, value.dtype) != (place.shape, place.dtype):
                return False
            else:
                np.copyto(place, value)
                values[n] = place
        return True

    def _own(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and np.may_share_memory(value, self._memory):
            return value.copy()
        return value


class Frames(NotCopied):
    """The frames of a model, by the forms of its inputs.

    Parameters
    ----------
    start : sequence
        Values by number at the beginning of a run: constants, else None.
    inputs, outputs : sequence of int
        Numbers of the model's.
    num_threads : int or None
        As in `lowgemm.gemm`.
    """

    instead = "copy the Model"

    def __init__(
        self, start: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int], num_threads: int | None
    ) -> None:
        self._start, self._in, self._out = start, inputs, outputs
        self._alone = num_threads == 1
        #: Of the last frame that ran: settings that it was made for, and where it is when it is free.
        self._last: tuple[Any, list[Frame]] = None, []
        #: A free frame (in a list, empty while it runs), True after one run, or None if none is wanted.
        self._known: dict[Any, Any] = {}

    def _settings(self) -> Any:
        """What plans are made for."""
        return config.kernel, None if self._alone else threads.settings()

    def run_again(self, given: Sequence[Any], one_by_one: Callable[..., None]) -> list[Any] | None:
        """The model's outputs by the frame that ran last, of inputs in order. None, and nothing happened, if
        they do not fit, or another thread uses it. Frames for several threads are run by `take` alone.
        """
        settings, free = self._last
        if settings is None or settings != self._settings():
            return None
        try:
            frame = free.pop()
        except IndexError:  # another thread uses it
            return None
        try:
            return frame.run_again(given, one_by_one)
        finally:
            if frame.bailed < GIVEN_UP:
                free.append(frame)
            else:
                self._last = None, []

    def key(self, values: Sequence[Any]) -> Any:
        """Of inputs; None of such as can have no frame."""
        more = self._settings()
        try:
            found = tuple([(v.shape, v.dtype, v.strides) for v in [values[n] for n in self._in]]), *more
        except AttributeError:  # a sequence, or a value that is left out
            return None
        if found in self._known:
            return found
        forms = tuple([_input_form(values[n]) for n in self._in])
        return None if None in forms else (forms, *more)

    def take(self, key: Any) -> tuple[list[Frame], Frame | None]:
        """A frame that nobody uses, and where it goes back to (`give_back`)."""
        found = None if key is None else self._known.get(key)
        if found.__class__ is not list or not found:
            return [], None
        frame = found.pop()  # type: ignore[union-attr]
        self._last = (None, []) if frame.shared and not self._alone else (key[1:], found)
        return found, frame  # type: ignore[return-value]

    def give_back(self, key: Any, free: list[Frame], frame: Frame) -> None:
        """Let others have it."""
        if frame.bailed < GIVEN_UP:
            free.append(frame)  # to ask for the key again would take longer, since its hash is not kept
        elif self._known.get(key) is free:
            self._known[key] = None

    def watched(self, key: Any) -> bool:
        """Whether a run is to be watched, since it is the second of its kind."""
        if key is None:
            return False
        if key not in self._known:
            while len(self._known) >= KINDS:
                self._known.pop(next(iter(self._known)), None)
                self._last = None, []
            self._known[key] = True
            return False
        return self._known[key] is True

    def make(self, key: Any, seen: Sequence[Seen]) -> None:
        """Make a frame of what was seen."""
        forms = [_Form(*form) for form in key[0]]
        frame = Frame(seen, self._start, dict(zip(self._in, forms, strict=True)), self._out)
        kept = [f for found in list(self._known.values()) if found.__class__ is list for f in found]
        if frame.pays and frame.nbytes + sum(f.nbytes for f in kept) > LARGEST:
            self._known.clear()
            self._last = None, []
        self._known[key] = [frame] if frame.pays else None
