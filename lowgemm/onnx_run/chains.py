"""Chains of float operators behind lowgemm's products, such as a learned scale, a residual sum and a hard
swish: one pass for all.

An engine reads and writes the whole tensor for each of them. Here a list of instructions is carried out on
blocks that stay in the first level of the caches. Only operators that are defined to the last bit are taken,
so the result is the model's as it is written, on every CPU: sums, products, quotients, smaller and larger of
two, as IEEE 754 has them, and sigmoid and tanh, as onnxruntime has them. A chain begins at a result of
lowgemm's that is float32; what it reads besides may be of the same shape, one number a channel, or one
number. Anything else runs in the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import load_f32, offset, pointer_at, store_f32
from lowgemm.jit.routine import inner, inner_dividing, routine, unpack_words
from lowgemm.kernels.framework.irtools import load, store, vec
from lowgemm.onnx_run import activations
from lowgemm.onnx_run.activations import LANES
from lowgemm.onnx_run.engines import attributes_of, reads_of

#: Numbers of a block: with eight registers, a third of a first level of 48 KiB.
BLOCK = 512
#: Registers at most.
REGISTERS = 24
#: Shapes of inputs whose plans a chain keeps.
SHAPES = 32
ADD, SUB, MUL, DIV, MAX, MIN, SIGMOID, TANH = range(8)


def _vector(emit: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Any:
    def make(typingctx, args):
        def codegen(context, b, signature, values):
            to, *from_ = unpack_words(context, b, signature.args[0], values[0])
            ty = vec(ir.FloatType(), LANES)
            store(b, emit(b, *(load(b, ty, x) for x in from_)), to)
            return context.get_dummy_value()

        return types.void(args), codegen

    return intrinsic(make)


# of a NaN and a number the first operand stays, as in C++'s std::max(a, b), which onnxruntime is built on
_add = _vector(lambda b, x, y: b.fadd(x, y))
_sub = _vector(lambda b, x, y: b.fsub(x, y))
_mul = _vector(lambda b, x, y: b.fmul(x, y))
_div = _vector(lambda b, x, y: b.fdiv(x, y))
_max = _vector(lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), y, x))
_min = _vector(lambda b, x, y: b.select(b.fcmp_ordered("<", y, x), y, x))


@inner_dividing
def _one(code, x, y):
    if code == ADD:
        return x + y
    if code == SUB:
        return x - y
    if code == MUL:
        return x * y
    if code == DIV:
        return x / y
    if code == MAX:
        return y if x < y else x
    return y if y < x else x


@inner
def _apply(code, to, a, b, count):
    if code == SIGMOID:
        activations.sigmoid(to, a, count)
        return
    if code == TANH:
        activations.tanh(to, a, count)
        return
    whole = count // LANES
    for i in range(whole):
        j = 4 * LANES * i
        args = (offset(to, j), offset(a, j), offset(b, j))
        if code == ADD:
            _add(args)
        elif code == SUB:
            _sub(args)
        elif code == MUL:
            _mul(args)
        elif code == DIV:
            _div(args)
        elif code == MAX:
            _max(args)
        else:
            _min(args)
    for i in range(whole * LANES, count):
        store_f32(to, i, _one(code, load_f32(a, i), load_f32(b, i)))


@routine("pppnnnnn")
def run_chain(pointers, fills, code, instructions, images, channels, pixels, filled):
    """Carry out a chain.

    `code` is int64, 7 an instruction: the operation, then for the result and both operands which pointer, and
    whether it moves on from block to block. `fills` is int64, 2 a register with one number a channel: which
    pointer, and whose numbers.
    """
    c = numba.carray(code, (instructions, 7), np.int64)
    f = numba.carray(fills, (filled, 2), np.int64)
    for row in range(images * channels):
        channel = row % channels
        for i in range(filled):
            register, value = pointer_at(pointers, f[i, 0]), load_f32(pointer_at(pointers, f[i, 1]), channel)
            for j in range(min(BLOCK, pixels)):
                store_f32(register, j, value)
        for start in range(0, pixels, BLOCK):
            count, moved = min(BLOCK, pixels - start), 4 * (row * pixels + start)
            for i in range(instructions):
                _apply(
                    c[i, 0],
                    offset(pointer_at(pointers, c[i, 1]), moved * c[i, 2]),
                    offset(pointer_at(pointers, c[i, 3]), moved * c[i, 4]),
                    offset(pointer_at(pointers, c[i, 5]), moved * c[i, 6]),
                    count,
                )


# ---- finding chains ---------------------------------------------------------------------------------------
class Group(NamedTuple):
    """Nodes of a chain in order; names of what it reads and makes; which inputs no one else reads, so that a
    result may lie there.
    """

    nodes: list[Any]
    inputs: list[str]
    outputs: list[str]
    spent: list[str]


#: Operators of two operands.
_TWO = {"Add": ADD, "Sub": SUB, "Mul": MUL, "Div": DIV}


def _number(constants: Mapping[str, np.ndarray], name: str) -> float | None:
    value = constants.get(name)
    return None if value is None or value.dtype != np.float32 or value.size != 1 else float(value.reshape(()))


def steps_of(node: Any, constants: Mapping[str, np.ndarray]) -> list[tuple[int, float]] | None:
    """An operator of one tensor as (operation, number) in order; None if it is none, or its numbers are not
    constants.
    """
    if node.domain or len(node.output) != 1:
        return None
    numbers = attributes_of(node)
    if node.op_type == "Relu":
        return [(MAX, 0.0)]
    if node.op_type in ("Sigmoid", "Tanh"):
        return [(SIGMOID if node.op_type == "Sigmoid" else TANH, 0.0)]
    if node.op_type == "HardSigmoid":
        alpha, beta = (np.float32(numbers.get(n, d)) for n, d in (("alpha", 0.2), ("beta", 0.5)))
        return [(MUL, float(alpha)), (ADD, float(beta)), (MIN, 1.0), (MAX, 0.0)]
    if node.op_type == "Clip":
        found = []
        for i, (name, operation) in enumerate((("min", MAX), ("max", MIN)), 1):
            if name in numbers:
                found.append((operation, float(numbers[name])))
            elif len(node.input) > i and node.input[i]:
                value = _number(constants, node.input[i])
                if value is None:
                    return None
                found.append((operation, value))
        return found or None
    return None


def find(
    nodes: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    sources: set[str],
    fresh: set[str],
    seen: set[str],
) -> list[Group]:
    """Chains in a graph.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    constants : mapping
        Values that no run changes.
    sources : set of str
        float32 values where a chain may begin.
    fresh : set of str
        Those of them whose memory no other value shares.
    seen : set of str
        Outputs of the graph.
    """
    groups: list[list[Any]] = []
    needs: list[int] = []  # which groups a group reads, on whatever way, as bits; the group runs as one
    place: dict[str, int] = {}  # which group makes a value
    behind: dict[str, int] = {}  # which groups a value of another node depends on

    def groups_of(names: Sequence[str]) -> int:
        """Groups that must have run before these values are there."""
        found = 0
        for name in names:
            found |= 1 << place[name] if name in place else behind.get(name, 0)
        while True:
            more = found
            for group, read in enumerate(needs):
                if found >> group & 1:
                    more |= read
            if more == found:
                return found
            found = more

    for node in nodes:
        reads = reads_of(node)
        joined = None
        data = [n for n in reads if n not in constants]
        fits = steps_of(node, constants) is not None or (
            not node.domain and node.op_type in _TWO and len(node.input) == 2
            and all(n not in constants or constants[n].dtype == np.float32 for n in reads)
        )  # fmt: skip
        if fits and any(n in place or n in sources for n in data):
            for group in sorted({place[n] for n in data if n in place}, reverse=True):
                others = [n for n in data if place.get(n) != group]
                if not groups_of(others) >> group & 1:
                    joined = group
                    break
            if joined is None and any(n in sources for n in data):
                joined = len(groups)
                groups.append([])
                needs.append(0)
        if joined is not None:
            groups[joined].append(node)
            needs[joined] |= groups_of([n for n in data if place.get(n) != joined])
            place[node.output[0]] = joined
        else:
            for name in node.output:
                behind[name] = groups_of(reads)
    return _closed(groups, nodes, fresh, seen)


def _closed(groups: list[list[Any]], nodes: Sequence[Any], fresh: set[str], seen: set[str]) -> list[Group]:
    """Groups with what each reads and makes; those that make nothing that is read are left out."""
    readers: dict[str, list[int]] = {}
    for node in nodes:
        for name in reads_of(node):
            readers.setdefault(name, []).append(id(node))
    found = []
    for members in groups:
        own, made = {id(n) for n in members}, {n.output[0] for n in members}
        inputs = list(dict.fromkeys(n for m in members for n in reads_of(m) if n not in made))
        outputs = [
            n.output[0] for n in members
            if n.output[0] in seen or any(r not in own for r in readers.get(n.output[0], []))
        ]  # fmt: skip
        spent = [n for n in inputs if n in fresh and n not in seen and set(readers[n]) <= own]
        if outputs:
            found.append(Group(members, inputs, outputs, spent))
    return found


# ---- running them -----------------------------------------------------------------------------------------
class Chain(NotCopied):
    """A chain, ready to run.

    Parameters
    ----------
    group : Group
        Its nodes, in order.
    constants : mapping
        Values that no run changes.
    otherwise : callable
        Runs the nodes in the engine, for inputs that are not for this; takes the values of `group.inputs`.
    """

    instead = "copy the Model"

    def __init__(
        self, group: Group, constants: Mapping[str, np.ndarray], otherwise: Callable[..., Sequence[Any]]
    ) -> None:
        self.group, self.constants, self.otherwise = group, constants, otherwise
        self.inputs = [n for n in group.inputs if n not in constants]
        #: (operation, result, operand, operand); an operand is a name or a number.
        self.instructions: list[tuple[int, str, Any, Any]] = []
        for node in group.nodes:
            output, simple = node.output[0], steps_of(node, constants)
            if simple is None:
                both = [constants.get(n, n) for n in node.input]
                self.instructions.append((_TWO[node.op_type], output, *both))
                continue
            name = node.input[0]
            for i, (operation, value) in enumerate(simple):
                to = output if i == len(simple) - 1 else f"{output} {i}"
                self.instructions.append((operation, to, name, np.float32(value)))
                name = to
        self._plans: dict[Any, Any] = {}

    def _plan(self, values: Sequence[np.ndarray]) -> Any:
        """How inputs of these shapes are gone through, or None if the engine has to."""
        if any(v.dtype != np.float32 for v in values):
            return None
        shapes = {n: v.shape for n, v in zip(self.inputs, values, strict=True)}
        for _, to, a, b in self.instructions:
            try:
                shapes[to] = np.broadcast_shapes(
                    *(shapes[x] if isinstance(x, str) else np.shape(x) for x in (a, b))
                )
            except ValueError:  # the engine says so
                return None
        shape = max((shapes[o] for o in self.group.outputs), key=len)
        if any(shapes[o] != shape for o in self.group.outputs) or 0 in shape or not shape:
            return None
        plan = _Plan(shape)
        for name, value in zip(self.inputs, values, strict=True):
            if not plan.add_input(name, value.shape):
                return None
        last = {x: i for i, (_, _, *both) in enumerate(self.instructions) for x in both if isinstance(x, str)}
        for i, (operation, to, a, b) in enumerate(self.instructions):
            operands = [plan.operand(x) for x in (a, b)]
            if None in operands:
                return None
            plan.release({x for x in (a, b) if isinstance(x, str) and last[x] == i})
            plan.code.append(
                (operation, *plan.result(to, to in self.group.outputs), *operands[0], *operands[1])
            )
        if plan.registers > REGISTERS:
            return None
        made = {to: i for i, (_, to, _, _) in enumerate(self.instructions)}
        spare = [n for n in self.group.spent if shapes.get(n) == shape]
        for output in plan.outputs:
            # an input's memory, if nothing reads the input after the output is made
            found = next((n for n in spare if last[n] <= made[output]), None)
            if found is not None:
                plan.reused[output] = found
                spare.remove(found)
        return plan

    def __call__(self, *values: Any) -> Sequence[Any]:
        """Values of the outputs."""
        values = [np.ascontiguousarray(v) if v.ndim else v for v in values]
        key = tuple(v.shape for v in values)
        if key not in self._plans:
            if len(self._plans) >= SHAPES:
                self._plans = {}
            self._plans[key] = self._plan(values)
        plan = self._plans[key]
        if plan is None or any(v.dtype != np.float32 for v in values):
            return self.otherwise(*values)
        by_name = dict(zip(self.inputs, values, strict=True))
        outputs = {o: np.empty(plan.shape, np.float32) for o in plan.outputs if o not in plan.reused}
        outputs |= {o: by_name[x] for o, x in plan.reused.items()}
        plan.run(by_name, outputs)
        return [outputs[o] for o in self.group.outputs]


class _Plan(NotCopied):
    """Instructions for inputs of certain shapes, and which array each pointer is of."""

    instead = "copy the Model"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.registers = shape, 0
        self.code: list[tuple[int, ...]] = []
        self.outputs: list[str] = []
        self.reused: dict[str, str] = {}  # outputs that lie in the memory of an input
        self._where: dict[Any, tuple[int, int]] = {}  # number of the pointer, and whether it moves
        self._arrays: list[
            Any
        ] = []  # of each pointer: a name, a register's number, or numbers of the channels
        self._free: list[int] = []
        self._fills: list[tuple[int, int]] = []
        self._constants: dict[int, np.float32] = {}
        self._made: Any = None

    def _pointer(self, what: Any) -> int:
        self._arrays.append(what)
        return len(self._arrays) - 1

    def _register(self, filled: bool = False) -> int:
        # what is filled before the first instruction must not lie where an earlier instruction puts its
        # result
        if self._free and not filled:
            return self._free.pop()
        self.registers += 1
        return self._pointer(self.registers - 1)

    def _by_channel(self, shape: tuple[int, ...]) -> bool:
        """Whether there is one number for each index of the second axis, of three or more."""
        whole = (1,) * (len(self.shape) - len(shape)) + tuple(shape)
        return len(self.shape) > 2 and all(n == (self.shape[1] if i == 1 else 1) for i, n in enumerate(whole))

    def add_input(self, name: str, shape: tuple[int, ...]) -> bool:
        """Where an input lies; False if it is repeated in another way."""
        if shape == self.shape:
            self._where[name] = self._pointer(name), 1
        elif self._by_channel(shape) or (int(np.prod(shape)) == 1 and len(shape) <= len(self.shape)):
            self._filled(name, name, int(np.prod(shape)))
        else:
            return False
        return True

    def _filled(self, key: Any, what: Any, count: int) -> None:
        register = self._register(True)
        numbers = self._pointer((what, count))
        self._fills.append((register, numbers))
        self._where[key] = register, 0

    def operand(self, x: Any) -> tuple[int, int] | None:
        """Pointer of an operand, and whether it moves."""
        if isinstance(x, str):
            return self._where[x]
        value = np.asarray(x, np.float32)
        key = value.tobytes(), value.shape if value.size > 1 else ()
        if key not in self._where:
            if value.size == 1 and value.ndim <= len(self.shape):
                register = self._register(True)
                self._constants[register] = np.float32(value.reshape(()))
                self._where[key] = register, 0
            elif self._by_channel(value.shape):
                self._filled(key, np.ascontiguousarray(value.reshape(-1)), value.size)
            else:
                return None
        return self._where[key]

    def release(self, names: set[str]) -> None:
        """Values that are not read again."""
        for name in sorted(names):
            pointer, moves = self._where[name]
            held = isinstance(self._arrays[pointer], int) and not any(pointer == r for r, _ in self._fills)
            if not moves and held and pointer not in self._free:
                self._free.append(pointer)

    def result(self, name: str, output: bool) -> tuple[int, int]:
        """Where an instruction's result goes."""
        if output:
            self.outputs.append(name)
            self._where[name] = self._pointer((name, -1)), 1
        else:
            self._where[name] = self._register(), 0
        return self._where[name]

    def _make(self) -> Any:
        """What all runs share: code, what is filled, and the pointers as far as they are known."""
        channels = self.shape[1] if self._fills else 1
        images = self.shape[0] if self._fills else 1
        pixels = int(np.prod(self.shape)) // (images * channels)
        code = np.array(self.code, np.int64)
        fills = np.array(self._fills, np.int64).reshape(-1, 2)
        return code, fills, (len(self.code), images, channels, pixels, len(fills))

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Compute the outputs."""
        if self._made is None:
            self._made = self._make()
        code, fills, sizes = self._made
        space = np.empty((self.registers, BLOCK), np.float32)
        held, pointers = [], np.empty(len(self._arrays), np.int64)
        base = space.ctypes.data
        for i, what in enumerate(self._arrays):
            if isinstance(what, int):
                pointers[i] = base + 4 * BLOCK * what
                if i in self._constants:
                    space[what] = self._constants[i]
            elif isinstance(what, str):
                pointers[i] = inputs[what].ctypes.data
            else:
                values, count = what
                if count == -1:
                    pointers[i] = outputs[values].ctypes.data
                    continue
                values = inputs[values] if isinstance(values, str) else values
                if count == 1:
                    values = np.full(sizes[2], values.reshape(()), np.float32)
                held.append(values)
                pointers[i] = values.ctypes.data
        run_chain.ctypes(pointers.ctypes.data, fills.ctypes.data, code.ctypes.data, *sizes)
