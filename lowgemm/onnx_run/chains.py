"""Chains of float operators behind lowgemm's products, such as a learned scale, a residual sum and a hard
swish: one pass for all.

An engine reads and writes the whole tensor for each of them. Here a list of instructions is carried out on
blocks that stay in the first level of the caches. Only operators that are defined to the last bit are taken,
so the result is the model's as it is written, on every CPU: sums, products, quotients, smaller and larger of
two, as IEEE 754 has them, and sigmoid, tanh and erf, as onnxruntime has them. A chain begins where sums of a
convolution become float32 (`Scaled`, see `dynamic.py`), or at another float32 result of lowgemm's. What it
reads besides may be of the same shape, one number a channel, one a column, or one number. Anything else runs
in the engine.

Where a result is quantized next, the chain notes the smallest and the largest number of each block, so that
DynamicQuantizeLinear need not go through the memory for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.compat.onnx_passes import LANES as ENDS
from lowgemm.compat.onnx_passes import note_range, quantize_bytes
from lowgemm.engine import parts
from lowgemm.engine.parts import PASS
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import (
    copy_bytes,
    load_f32,
    load_i32,
    load_i64,
    load_u8,
    offset,
    pointer_at,
    store_f32,
)
from lowgemm.jit.routine import inner, inner_dividing, routine, unpack_words
from lowgemm.kernels.framework.irtools import load, store, vec
from lowgemm.onnx_run import activations
from lowgemm.onnx_run.activations import LANES
from lowgemm.onnx_run.addresses import address
from lowgemm.onnx_run.engines import attributes_of, reads_of
from lowgemm.onnx_run.tape import Recorder, clear
from lowgemm.onnx_run.turned import brought_last, empty_last, sizes

#: Numbers of a block, about: with eight registers, a third of a first level of 48 KiB.
BLOCK = 512
#: Registers at most.
REGISTERS = 24
#: Shapes of inputs whose plans a chain keeps.
SHAPES = 32
#: Words between the memory of two workers, so that they share no cache line, nor two that are fetched
#: together.
APART = 32
#: Bytes of a vector.
VECTOR = 4 * LANES
ADD, SUB, MUL, DIV, MAX, MIN, SLOPE, SIGMOID, TANH, ERF, SCALE, RANGE, BYTE, SIGNED, TO_BYTE, TO_SIGNED = (
    range(16)
)
#: Bytes of an element of an array, by the operation that reads or writes it.
WIDTHS = {BYTE: 1, SIGNED: 1, TO_BYTE: 1, TO_SIGNED: 1}


def _vector(emit: Callable[..., ir.Value]) -> Any:
    """An instruction on `LANES` numbers: (where the result goes, operands ...)."""

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
_slope = _vector(
    lambda b, x, y: b.select(b.fcmp_ordered("<", x, ir.Constant(x.type, [0.0] * LANES)), b.fmul(x, y), x)
)
_scale = _vector(
    lambda b, x, y, z: b.fadd(b.fmul(b.sitofp(b.bitcast(x, vec(ir.IntType(32), LANES)), x.type), y), z)
)


def _real(extend: Callable[[ir.IRBuilder, ir.Value, Any], ir.Value]) -> Any:
    """DequantizeLinear of `LANES` bytes: (where the result goes, bytes, zero points, scales)."""

    def make(typingctx, args):
        def codegen(context, b, signature, values):
            to, x, zero, scale = unpack_words(context, b, signature.args[0], values[0])
            floats = vec(ir.FloatType(), LANES)
            whole = extend(b, load(b, vec(ir.IntType(8), LANES), x), vec(ir.IntType(32), LANES))
            real = b.fsub(b.sitofp(whole, floats), load(b, floats, zero))
            store(b, b.fmul(real, load(b, floats, scale)), to)
            return context.get_dummy_value()

        return types.void(args), codegen

    return intrinsic(make)


_real_of_byte = _real(lambda b, x, to: b.zext(x, to))
_real_of_signed = _real(lambda b, x, to: b.sext(x, to))


@inner
def _dequantize(code, to, a, zero, scale, count):
    """`count` bytes at `a`, signed as the operation `code` says, to float32; `zero` and `scale` point to one
    of each for every byte.
    """
    whole, flip = count // LANES, np.int32(128) if code == SIGNED else np.int32(0)
    for i in range(whole):
        j = 4 * LANES * i
        args = (offset(to, j), offset(a, LANES * i), offset(zero, j), offset(scale, j))
        if code == SIGNED:
            _real_of_signed(args)
        else:
            _real_of_byte(args)
    for i in range(whole * LANES, count):
        v = (np.int32(load_u8(a, i)) ^ flip) - flip
        store_f32(to, i, (np.float32(v) - load_f32(zero, i)) * load_f32(scale, i))


@inner_dividing
def _one(code, x, y):
    """The operation `code` on two float32 numbers."""
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
    if code == MIN:
        return y if y < x else x
    return x * y if x < np.float32(0) else x


@inner
def _apply(code, to, a, b, c, count):
    """The operation `code` on `count` numbers at `a`, and at `b` and `c` if it has as many operands."""
    if code == SIGMOID:
        activations.sigmoid(to, a, count)
        return
    if code == TANH:
        activations.tanh(to, a, count)
        return
    if code == ERF:
        activations.erf(to, a, count)
        return
    if code == RANGE:
        note_range(to, a, count)
        return
    if code in (BYTE, SIGNED):
        _dequantize(code, to, a, b, c, count)
        return
    if code in (TO_BYTE, TO_SIGNED):
        low = np.int64(-128) if code == TO_SIGNED else np.int64(0)
        quantize_bytes(a, to, count, load_f32(b, 0), np.int32(load_f32(c, 0)), low, low + 255)
        return
    whole = count // LANES
    if code == SCALE:
        for i in range(whole):
            j = 4 * LANES * i
            _scale((offset(to, j), offset(a, j), offset(b, j), offset(c, j)))
        for i in range(whole * LANES, count):
            t = np.float32(np.int32(load_i32(a, i))) * load_f32(b, i)
            store_f32(to, i, t + load_f32(c, i))
        return
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
        elif code == MIN:
            _min(args)
        else:
            _slope(args)
    for i in range(whole * LANES, count):
        store_f32(to, i, _one(code, load_f32(a, i), load_f32(b, i)))


@inner
def _fill(register, numbers, begin, period, count):
    """Fill a register of `count` numbers with `period` of `numbers`, from `begin` on, over and over."""
    if period == 1:
        number = load_f32(numbers, begin)
        for j in range(count):
            store_f32(register, j, number)
        return
    first = min(period, count)
    for j in range(first):
        store_f32(register, j, load_f32(numbers, begin + j))
    # whole vectors from so far back that all of them is there
    back = period * ((LANES + period - 1) // period)
    for j in range(first, min(back, count)):
        store_f32(register, j, load_f32(register, j - period))
    whole = max(count - back, 0) // LANES
    for i in range(whole):
        j = back + LANES * i
        copy_bytes(offset(register, 4 * j), offset(register, 4 * (j - back)), VECTOR)
    for j in range(back + LANES * whole, count):
        store_f32(register, j, load_f32(register, j - back))


#: Numbers of the arguments of `run_chain`; the pointers are the last.
FILLS, CODE, INSTRUCTIONS, FILLED, LENGTH, STEP, MEMORY, WORKER_BYTES, POINTERS = range(9)


@inner
def _place(args, memory, number, passed, width):
    """Where operand `number` lies: `passed` elements of `width` bytes on, or with a `width` of 0 in a
    worker's `memory`.
    """
    if width != 0:
        return offset(pointer_at(args, POINTERS + number), passed * width)
    return offset(memory, load_i64(args, POINTERS + number))


@routine(PASS)
def run_chain(args, first, end, worker):
    """Carry out a chain on rows of `LENGTH` numbers that lie one after the other.

    `CODE` is int64, 9 an instruction: the operation, then for the result and three operands which pointer,
    and by how many bytes an element it moves on from block to block. `FILLS` is int64, 4 a register that is
    filled before a row: which pointer, whose numbers, how many there are, and how many of them are repeated
    in the register. `MEMORY` has `WORKER_BYTES` for each worker; the pointers that do not move are offsets
    into that. Pieces are blocks of `STEP` numbers, from the beginning of each row on.
    """
    instructions, filled = load_i64(args, INSTRUCTIONS), load_i64(args, FILLED)
    length, block = load_i64(args, LENGTH), load_i64(args, STEP)
    memory = offset(pointer_at(args, MEMORY), worker * load_i64(args, WORKER_BYTES))
    c = numba.carray(pointer_at(args, CODE), (instructions, 9), np.int64)
    f = numba.carray(pointer_at(args, FILLS), (filled, 4), np.int64)
    blocks, last = (length + block - 1) // block, -1
    for piece in range(first, end):
        row, start = piece // blocks, piece % blocks * block
        if row != last:
            for i in range(filled):
                if last < 0 or f[i, 2] != f[i, 3]:  # else it is there already
                    register = _place(args, memory, f[i, 0], 0, 0)
                    numbers = pointer_at(args, POINTERS + f[i, 1])
                    _fill(register, numbers, (row * f[i, 3]) % f[i, 2], f[i, 3], min(block, length))
            last = row
        count, passed = min(block, length - start), row * length + start
        for i in range(instructions):
            _apply(
                c[i, 0],
                _place(args, memory, c[i, 1], passed, c[i, 2]),
                _place(args, memory, c[i, 3], passed, c[i, 4]),
                _place(args, memory, c[i, 5], passed, c[i, 6]),
                _place(args, memory, c[i, 7], passed, c[i, 8]),
                count,
            )


# ---- finding chains ---------------------------------------------------------------------------------------
class Group(NamedTuple):
    """Nodes of a chain in order; names of what it reads and makes; which inputs no one else reads, so that a
    result may lie there; and outputs whose range is wanted.
    """

    nodes: list[Any]
    inputs: list[str]
    outputs: list[str]
    spent: list[str]
    ranged: list[str]


#: Operators of two operands.
_TWO = {"Add": ADD, "Sub": SUB, "Mul": MUL, "Div": DIV, "PRelu": SLOPE}
_CURVES = {"Sigmoid": SIGMOID, "Tanh": TANH, "Erf": ERF}
#: Where a chain begins that makes float32 numbers of sums: sums * scale + bias.
SCALED = "Scaled"


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
    if node.op_type in _CURVES:
        return [(_CURVES[node.op_type], 0.0)]
    if node.op_type == "LeakyRelu":
        return [(SLOPE, float(np.float32(numbers.get("alpha", 0.01))))]
    if node.op_type == "HardSwish":  # the number times its hard sigmoid
        return [(MUL, float(np.float32(1 / 6))), (ADD, 0.5), (MIN, 1.0), (MAX, 0.0)]
    if node.op_type == "HardSigmoid":
        alpha, beta = (np.float32(numbers.get(n, d)) for n, d in (("alpha", 0.2), ("beta", 0.5)))
        return [(MUL, float(alpha)), (ADD, float(beta)), (MIN, 1.0), (MAX, 0.0)]
    if node.op_type == "Pow":
        # onnxruntime's cube is x * x * x; a square is the beginning of a normalization, which it fuses
        return [(MUL, 0.0), (MUL, 0.0)] if _number(constants, node.input[1]) == 3 else None
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


def is_elementwise(node: Any, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether a chain may hold a node, if its data are float32."""
    return steps_of(node, constants) is not None or (
        not node.domain and node.op_type in _TWO and len(node.input) == 2
        and all(n not in constants or constants[n].dtype == np.float32 for n in node.input)
    )  # fmt: skip


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
        if node.op_type == SCALED:
            joined = len(groups)
            groups.append([])
            needs.append(0)
        fits = is_elementwise(node, constants)
        if joined is None and fits and any(n in place or n in sources for n in data):
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
    quantized = {n.input[0] for n in nodes if n.op_type == "DynamicQuantizeLinear"}
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
            found.append(Group(members, inputs, outputs, spent, [o for o in outputs if o in quantized]))
    return found


def _coding(node: Any, op: str, constants: Mapping[str, np.ndarray]) -> tuple[np.float32, np.ndarray] | None:
    """Scale and zero point of a (de)quantizer of bytes with one of each, constant and finite; else None."""
    if node is None or node.op_type != op or node.domain not in ("", "com.microsoft") or len(node.input) != 3:
        return None
    scale, zero = (constants.get(n) for n in node.input[1:])
    numbers = attributes_of(node)
    if (
        scale is None
        or zero is None
        or any(numbers.get(n) for n in ("block_size", "output_dtype", "precision"))
    ):
        return None
    if (
        scale.dtype != np.float32
        or scale.size != 1
        or zero.size != 1
        or zero.dtype not in (np.uint8, np.int8)
    ):
        return None
    return (np.float32(scale.item()), zero) if np.isfinite(scale).all() else None


def find_coded(nodes: Sequence[Any], constants: Mapping[str, np.ndarray], seen: set[str]) -> list[Group]:
    """Chains between bytes: of dequantized tensors, to quantized ones and to other such chains alone. Their
    nodes are the dequantizers, the operators and the quantizers; a dequantizer may be needed elsewhere too.
    """
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in reads_of(node):
            readers.setdefault(name, []).append(node)
    real = {
        n.output[0]: n
        for n in nodes
        if _coding(n, "DequantizeLinear", constants) and n.input[0] not in constants
    }
    quantizers = {id(n) for n in nodes if _coding(n, "QuantizeLinear", constants)}
    groups = [g for g in find(nodes, constants, set(real), set(), seen) if seen.isdisjoint(g.outputs)]
    left = -1
    while left != len(groups):
        left, inside = len(groups), {id(n) for g in groups for n in g.nodes} | quantizers
        groups = [g for g in groups if all(id(r) in inside for o in g.outputs for r in readers[o])]
    found = []
    for group in groups:
        own = {id(n) for n in group.nodes}
        before = [real[n] for n in group.inputs if n in real]
        behind = [r for o in group.outputs for r in readers[o] if id(r) in quantizers]
        inputs = dict.fromkeys(real[n].input[0] if n in real else n for n in group.inputs)
        inputs |= dict.fromkeys(n for r in (*before, *behind) for n in r.input[1:])
        floats = [o for o in group.outputs if any(id(r) not in own | quantizers for r in readers[o])]
        outputs = [*floats, *(r.output[0] for r in behind)]
        found.append(Group([*before, *group.nodes, *behind], list(inputs), outputs, [], []))
    return found


# ---- running them -----------------------------------------------------------------------------------------
def _in_order(v: np.ndarray) -> bool:
    """Whether an operand is in C order, or has its channels last in memory."""
    return v.flags.c_contiguous or sizes(v) is not None


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
    num_threads : int or None
        As in `lowgemm.gemm`.
    """

    instead = "copy the Model"

    def __init__(
        self,
        group: Group,
        constants: Mapping[str, np.ndarray],
        otherwise: Callable[..., Sequence[Any]],
        num_threads: int | None = 1,
    ) -> None:
        self.group, self.otherwise, self.num_threads = group, otherwise, num_threads
        self.inputs = [n for n in group.inputs if n not in constants]
        #: Types of inputs and outputs that are not float32.
        self.dtypes = {n.input[0]: np.dtype(np.int32) for n in group.nodes if n.op_type == SCALED}
        #: (operation, result, operands ...); an operand is a name or a number.
        self.instructions: list[tuple[Any, ...]] = []
        for node in group.nodes:
            self._add(node, constants)
        self._plans: dict[Any, Any] = {}

    def _add(self, node: Any, constants: Mapping[str, np.ndarray]) -> None:
        """The instructions of a node."""
        output, simple = node.output[0], steps_of(node, constants)
        given = [constants.get(n, n) for n in node.input]
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            back = node.op_type == "QuantizeLinear"
            scale, zero = _coding(node, node.op_type, constants)  # type: ignore[misc]
            point, signed = np.float32(zero.item()), zero.dtype == np.int8
            operation = (TO_SIGNED if signed else TO_BYTE) if back else (SIGNED if signed else BYTE)
            self.dtypes[output if back else node.input[0]] = zero.dtype
            self.instructions.append(
                (operation, output, given[0], *((scale, point) if back else (point, scale)))
            )
        elif node.op_type == SCALED:
            # adding -0.0 changes no number
            self.instructions.append(
                (SCALE, output, *given[:2], given[2] if len(given) > 2 else np.float32(-0.0))
            )
        elif simple is None:
            self.instructions.append((_TWO[node.op_type], output, *given))
        elif node.op_type == "Pow":
            self.instructions += [
                (MUL, f"{output} 0", given[0], given[0]),
                (MUL, output, f"{output} 0", given[0]),
            ]
        elif node.op_type == "HardSwish":
            for i, (operation, value) in enumerate(simple):
                name = f"{output} {i}"
                self.instructions.append(
                    (operation, name, f"{output} {i - 1}" if i else given[0], np.float32(value))
                )
            self.instructions.append((MUL, output, given[0], name))
        else:
            name = given[0]
            for i, (operation, value) in enumerate(simple):
                to = output if i == len(simple) - 1 else f"{output} {i}"
                self.instructions.append((operation, to, name, np.float32(value)))
                name = to

    def _plan(self, values: Sequence[np.ndarray]) -> Any:
        """How inputs of these shapes are gone through, or None if the engine has to."""
        shapes = {n: v.shape for n, v in zip(self.inputs, values, strict=True)}
        for _, to, *operands in self.instructions:
            try:
                shapes[to] = np.broadcast_shapes(
                    *(shapes[x] if isinstance(x, str) else np.shape(x) for x in operands)
                )
            except ValueError:  # the engine says so
                return None
        shape = max((shapes[o] for o in self.group.outputs), key=len)
        if any(shapes[o] != shape for o in self.group.outputs) or 0 in shape or not shape:
            return None
        whole = {n: v for n, v in zip(self.inputs, values, strict=True) if v.shape == shape}
        turned = any(not v.flags.c_contiguous for v in whole.values())
        plan = _Plan(shape, turned)
        for name, value in zip(self.inputs, values, strict=True):
            if name in whole:
                plan.add_input(name, turned and value.flags.c_contiguous, value.itemsize)
            elif value.itemsize == 1 or not plan.repeated(name, name, value.shape):
                return None
        read = {x: i for i, (_, _, *both) in enumerate(self.instructions) for x in both if isinstance(x, str)}
        for i, (operation, to, *operands) in enumerate(self.instructions):
            places = [plan.operand(x) for x in operands]
            if None in places:
                return None
            plan.release({x for x in operands if isinstance(x, str) and read[x] == i})
            plan.add(operation, plan.result(to, to in self.group.outputs, WIDTHS.get(operation, 4)), places)
            if to in self.group.ranged:
                plan.note_range(to)
        if len(plan.registers) > REGISTERS or not plan.finish(self):
            return None
        made = {to: i for i, (_, to, *_) in enumerate(self.instructions)}
        spare = [n for n in self.group.spent if shapes.get(n) == shape]
        for output in plan.outputs:
            # an input's memory, or its copy's with the channels last, if nothing reads the input after the
            # output is made
            found = next((n for n in spare if read[n] <= made[output]), None)
            if found is not None:
                plan.reused[output] = self.inputs.index(found)
                spare.remove(found)
        return plan

    def __call__(self, *values: Any) -> Sequence[Any]:
        """Values of the outputs, then the ranges that are wanted (None where the engine ran)."""
        plan = self._plan_for(values)
        if plan is None:
            return [*self.otherwise(*values), *[None] * len(self.group.ranged)]
        if plan.gaps:
            values = tuple(v if _in_order(v) else np.ascontiguousarray(v) for v in values)
        return plan.run(values)

    def record(self, recorder: Recorder, *values: Any) -> Sequence[Any] | None:
        """Take the chain down; None if that cannot be."""
        plan = self._plan_for(values)
        if plan is None:
            return None
        if plan.gaps:
            values = tuple(v if _in_order(v) else recorder.in_order(v) for v in values)
            if not all(_in_order(v) for v in values):
                return None
        recorder.kept.append(plan)
        return plan.run(values, recorder)

    def _plan_for(self, values: Sequence[Any]) -> Any:
        """How inputs like these are gone through, or None if the engine has to."""
        key = tuple([(v.shape, v.strides, v.dtype) for v in values])
        plan = self._plans.get(key, self)
        if plan is self:
            if len(self._plans) >= SHAPES:
                self._plans = {}
            fits = all(
                v.dtype == self.dtypes.get(n, np.float32) for n, v in zip(self.inputs, values, strict=True)
            )
            ordered = [v if _in_order(v) else np.ascontiguousarray(v) for v in values]
            plan = self._plans[key] = self._plan(ordered) if fits else None
            if plan is not None:
                plan.gaps = any(not _in_order(v) for v in values)
        return plan


class _Plan(NotCopied):
    """Instructions for inputs of certain shapes, and which array each pointer is of.

    The whole lies in memory as it is counted: `rows` times `length` numbers. With the channels last in memory
    (`last`) a row is an image, else a channel of an image, or all if no operand is one number a channel.
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
        # number of the pointer, and bytes of an element if it moves
        self._where: dict[Any, tuple[int, int]] = {}
        # of each pointer: a name, (name, "made"), (name, "range"), numbers, or None
        self._arrays: list[Any] = []
        self._free: list[int] = []
        self._fills: list[tuple[int, int, int]] = []  # register, pointer, how many numbers
        self._along: set[str] = set()  # "channel", "column": what operands are repeated along

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

    def repeated(self, key: Any, what: Any, shape: tuple[int, ...]) -> bool:
        """Where an operand lies that is repeated; False if it is so in another way than these."""
        axes = len(self.shape)
        if len(shape) > axes:
            return False
        whole, count = (1,) * (axes - len(shape)) + tuple(shape), int(np.prod(shape))
        if count > 1:
            if (axes > 2 and whole[1] == count and count == self.shape[1]) or (
                axes > 2 and whole[:2] == self.shape[:2] and count == whole[0] * whole[1]
            ):
                self._along.add("channel")
            elif whole[-1] == count and count == self.shape[-1]:
                self._along.add("column")
            else:
                return False
        register, numbers = self._register(True), self._pointer(what)
        self._fills.append((register, numbers, count))
        self._where[key] = register, 0
        return True

    def operand(self, x: Any) -> tuple[int, int] | None:
        """Pointer of an operand, and bytes of an element by which it moves."""
        if isinstance(x, str):
            return self._where[x]
        value = np.ascontiguousarray(x, np.float32)
        key = value.tobytes(), np.shape(x)
        if key not in self._where and not self.repeated(key, value, np.shape(x)):
            return None
        return self._where[key]

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

    def finish(self, chain: Chain) -> bool:
        """Make what all runs share: code, what is filled, and the pointers as far as they are known; False if
        operands are repeated along axes that are not counted together.
        """
        images, channels, size = (
            self.shape[0],
            self.shape[1] if len(self.shape) > 1 else 1,
            math.prod(self.shape),
        )
        if len(self._along) > 1 or (self.last and "column" in self._along):
            return False
        rows, period = 1, 1
        if self._along == {"channel"}:
            # a channel of one pixel lies as if it were last
            one = self.last or size == images * channels
            rows, period = (images, channels) if one else (images * channels, 1)
        elif self._along:
            period = self.shape[-1]
        length, block = size // rows, BLOCK
        if period > 1:
            # whole vectors, if they are not too many
            unit = math.lcm(period, LANES) if math.lcm(period, LANES) <= 2 * BLOCK else period
            block = unit * max(1, BLOCK // unit)
        fills = [(*fill, 1 if fill[2] == 1 else period) for fill in self._fills]
        self._code = np.array(self.code, np.int64)
        self._filled = np.array(fills, np.int64).reshape(-1, 4)
        # a worker's memory: the ends of ranges, then the registers
        ends = 2 * ENDS * len(self.ranges)
        self._words = ends + block * len(self.registers) + APART
        pointers = [0] * len(self._arrays)
        for i, register in enumerate(self.registers):
            pointers[register] = 4 * (ends + block * i)
        made: dict[str, int] = {}
        for i, what in enumerate(self._arrays):
            if isinstance(what, np.ndarray):
                pointers[i] = address(what)
            elif isinstance(what, tuple) and what[1] == "range":
                pointers[i] = 8 * ENDS * self.ranges.index(what[0])
            elif isinstance(what, tuple):
                made[what[0]] = POINTERS + i
        self._args = [
            address(self._filled), address(self._code), len(self._code), len(fills), length, block, 0,
            4 * self._words, *pointers,
        ]  # fmt: skip
        self._inputs = [
            (POINTERS + i, chain.inputs.index(x)) for i, x in enumerate(self._arrays) if isinstance(x, str)
        ]
        self._turned = [chain.inputs.index(n) for n in sorted(self.turned)]
        self._made = [(made[name], name) for name in chain.group.outputs]
        self._ends = [2 * ENDS * self.ranges.index(name) for name in chain.group.ranged]
        self._pieces = rows * -(-length // block)
        curves = sum(line[0] in (SIGMOID, TANH, ERF) for line in self.code)
        self._time = size * (0.4 + 0.05 * len(self.code) + curves)
        self._threads, self._dtypes = chain.num_threads, chain.dtypes
        return True

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
