"""A chain for inputs of certain shapes: where each operand of its instructions lies, and the arguments of the
compiled loop (`chain_code.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.compat.onnx_passes import LANES as ENDS
from lowgemm.engine import parts
from lowgemm.jit.addresses import NotCopied
from lowgemm.onnx_run.activations import LANES
from lowgemm.onnx_run.addresses import address
from lowgemm.onnx_run.chain_code import (
    APART,
    BLOCK,
    EACH_OF,
    ERF,
    MEMORY,
    POINTERS,
    RANGE,
    SIGMOID,
    TANH,
    run_chain,
)
from lowgemm.onnx_run.chain_rows import ALONG, EACH, ONE, rows_of, steps_over
from lowgemm.onnx_run.tape import Recorder, clear
from lowgemm.onnx_run.turned import brought_last, empty_last


def _key(x: Any) -> Any:
    """What constants that are the same have in common."""
    return np.ascontiguousarray(x, np.float32).tobytes(), np.shape(x)


class Plan(NotCopied):
    """Instructions for inputs of certain shapes, and which array each pointer is of.

    The result is gone through row by row, in the order of its memory, which with the channels `last` is not
    that of its axes.
    """

    instead = "copy the Model"

    def __init__(self, shape: tuple[int, ...], last: bool) -> None:
        self.shape, self.last = shape, last
        self.code: list[tuple[int, ...]] = []
        self.outputs: list[str] = []
        self.ranges: list[str] = []
        self.reused: dict[str, int] = {}  # outputs that lie in the memory of an input: which
        self.gaps = False  # whether some input has to be brought into order first
        self.turned: set[str] = set()  # inputs whose channels are brought last
        self.registers: list[int] = []  # their pointers
        # number of the pointer, and how it moves: bytes of an element; 0: it does not; below 0: by a walk
        self._where: dict[Any, tuple[int, int]] = {}
        # of each pointer: a name, (name, "made"), (name, "range"), numbers, or None
        self._arrays: list[Any] = []
        self._free: list[int] = []
        # what is repeated: a name or numbers, and how it moves on (`chain_rows.py`)
        self._repeated: dict[Any, tuple[Any, tuple[int, ...]]] = {}
        self._walks: list[tuple[int, ...]] = []
        self._fills: list[tuple[int, int, int, int]] = []  # register, pointer, walk, how many numbers

    def _pointer(self, what: Any) -> int:
        self._arrays.append(what)
        return len(self._arrays) - 1

    def _register(self, filled: bool = False) -> int:
        # what is filled before the first instruction must not lie where an earlier instruction puts its
        # result
        if self._free and not filled:
            return self._free.pop()
        self.registers.append(self._pointer(None))
        return self.registers[-1]

    def add_input(self, name: str, turned: bool, width: int) -> None:
        """Where an input of the whole shape lies, whose elements have so many bytes."""
        self._where[name] = self._pointer(name), width
        if turned:
            self.turned.add(name)

    def repeat(self, key: Any, what: Any, shape: Sequence[int], strides: Sequence[int]) -> bool:
        """Take in an operand that is repeated: a name, or numbers; False if it is larger than the result."""
        axes = len(self.shape)
        order = (0, *range(2, axes), 1) if self.last else range(axes)
        steps = steps_over(self.shape, order, shape, [s // 4 for s in strides])
        if steps is not None:
            self._repeated[key] = what, steps
        return steps is not None

    def repeat_number(self, x: Any) -> bool:
        """The same of a constant."""
        value = np.ascontiguousarray(x, np.float32)
        shape = np.shape(x)
        return self.repeat(_key(x), value, shape, value.reshape(shape).strides)

    def lay(self) -> bool:
        """Say where all operands lie that are repeated; False if they are so in another way than these."""
        order = (0, *range(2, len(self.shape)), 1) if self.last else range(len(self.shape))
        rows = rows_of([self.shape[a] for a in order], [steps for _, steps in self._repeated.values()])
        if rows is None:
            return False
        self._rows = rows
        for (key, (what, _)), kind, walk in zip(self._repeated.items(), rows.kinds, rows.walks, strict=True):
            if walk not in self._walks:
                self._walks.append(walk)
            number, numbers = self._walks.index(walk), self._pointer(what)
            if kind == ALONG:
                self._where[key] = numbers, -1 - number
            elif kind == EACH:
                self._where[key] = self._register(True), 0
                self.code.append(
                    (EACH_OF, *self._where[key], numbers, -1 - number, rows.period, 0, rows.period, 0)
                )
            else:
                register = self._register(True)
                self._fills.append((register, numbers, number, 1 if kind == ONE else rows.period))
                self._where[key] = register, 0
        return True

    def operand(self, x: Any) -> tuple[int, int]:
        """Pointer of an operand, and how it moves."""
        return self._where[x if isinstance(x, str) else _key(x)]

    def release(self, names: set[str]) -> None:
        """Values that are not read again."""
        for name in sorted(names):
            pointer, moves = self._where[name]
            held = pointer in self.registers and not any(pointer == f[0] for f in self._fills)
            if not moves and held and pointer not in self._free:
                self._free.append(pointer)

    def result(self, name: str, output: bool, width: int) -> tuple[int, int]:
        """Where an instruction's result goes, whose elements have so many bytes."""
        if output:
            self.outputs.append(name)
            self._where[name] = self._pointer((name, "made")), width
        else:
            self._where[name] = self._register(), 0
        return self._where[name]

    def add(self, operation: int, to: tuple[int, int], operands: Sequence[Any]) -> None:
        """An instruction; operands that it has not are its first."""
        places = [*operands, *[operands[0]] * 3][:3]
        self.code.append((operation, *to, *(n for place in places for n in place)))

    def note_range(self, name: str) -> None:
        """Note the range of a result."""
        self.ranges.append(name)
        self.add(RANGE, (self._pointer((name, "range")), 0), [self._where[name]])

    def finish(self, chain: Any) -> None:
        """Make what all runs share: code, what is filled, and the pointers as far as they are known."""
        rows = self._rows
        block = BLOCK
        if rows.period > 1:
            # whole vectors, if they are not too many
            unit = math.lcm(rows.period, LANES)
            unit = unit if unit <= 2 * BLOCK else rows.period
            block = unit * max(1, BLOCK // unit)
        block = min(block, rows.length)
        self._code = np.array(self.code, np.int64)
        self._filled = np.array(self._fills, np.int64).reshape(-1, 4)
        self._walked = np.array([rows.outer, *self._walks], np.int64).reshape(-1)
        # a worker's memory: the ends of ranges, the walks' places, then the registers
        ends = 2 * ENDS * len(self.ranges)
        begins = -(-4 * len(self._walks) // LANES) * LANES
        self._words = ends + begins + block * len(self.registers) + APART
        self._words += self._words % 2  # each worker's places are of 64 bits
        pointers = [0] * len(self._arrays)
        for i, register in enumerate(self.registers):
            pointers[register] = 4 * (ends + begins + block * i)
        made: dict[str, int] = {}
        for i, what in enumerate(self._arrays):
            if isinstance(what, np.ndarray):
                pointers[i] = address(what)
            elif isinstance(what, tuple) and what[1] == "range":
                pointers[i] = 8 * ENDS * self.ranges.index(what[0])
            elif isinstance(what, tuple):
                made[what[0]] = POINTERS + i
        self._args = [
            address(self._filled), address(self._code), len(self._code), len(self._fills), rows.length, block, 0,
            4 * self._words, address(self._walked), len(self._walks), len(rows.outer), 4 * ends, *pointers,
        ]  # fmt: skip
        self._inputs = [
            (POINTERS + i, chain.inputs.index(x)) for i, x in enumerate(self._arrays) if isinstance(x, str)
        ]
        self._turned = [chain.inputs.index(n) for n in sorted(self.turned)]
        self._made = [(made[name], name) for name in chain.group.outputs]
        self._ends = [2 * ENDS * self.ranges.index(name) for name in chain.group.ranged]
        self._pieces = rows.count * -(-rows.length // block)
        curves = sum(line[0] in (SIGMOID, TANH, ERF) for line in self.code)
        self._time = math.prod(self.shape) * (0.4 + 0.05 * len(self.code) + curves)
        self._threads, self._dtypes = chain.num_threads, chain.dtypes

    def run(self, values: Sequence[np.ndarray], recorder: Recorder | None = None) -> list[Any]:
        """The outputs, and the ranges; with a recorder they are taken down."""
        at: Any = address
        workers, run = 1, parts.run
        if recorder is not None:
            at, run = recorder.at, recorder.run
        if self._threads != 1:
            workers = parts.workers_for(self._time, self._pieces, self._threads)
        if self._turned:
            values = list(values)
            for i in self._turned:
                values[i] = brought_last(values[i], self._threads, recorder)
        args, found = self._args.copy(), []
        memory = np.empty((workers, self._words), np.int32)
        if self._ends and recorder is None:
            memory[:, : 2 * ENDS * len(self._ends)] = 0
        elif self._ends:
            run(clear, (at(memory), 4 * self._words, ENDS * len(self._ends)), workers)
        args[MEMORY] = at(memory)
        for place, i in self._inputs:
            args[place] = at(values[i])
        for place, name in self._made:
            if name in self.reused and (recorder is None or recorder.owns(values[self.reused[name]])):
                y = values[self.reused[name]].view(np.float32)
            else:
                dtype = self._dtypes.get(name, np.float32)
                y = empty_last(self.shape, dtype) if self.last else np.empty(self.shape, dtype)
            args[place] = at(y)
            found.append(y)
        run(run_chain, args, self._pieces, workers, self._time)
        if recorder is not None:
            recorder.keep(memory, *found)
        return found + [memory[:, begin : begin + 2 * ENDS] for begin in self._ends]
