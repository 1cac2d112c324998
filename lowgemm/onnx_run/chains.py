"""Chains of float operators behind lowgemm's products, such as a learned scale, a residual sum and a hard
swish: one pass for all.

An engine reads and writes the whole tensor for each of them. Here a list of instructions (`chain_code.py`) is
carried out on blocks that stay in the first level of the caches. The result is the model's as it is written,
on every CPU. A chain begins where sums of a convolution become float32 (`Scaled`, see `dynamic.py`), or at
another float32 result of lowgemm's; `chain_groups.py` finds it. What it reads besides may be repeated along
any axes, as NumPy repeats it (`chain_rows.py`). Anything else runs in the engine.

Where a result is quantized next, the chain notes the smallest and the largest number of each block, so that
DynamicQuantizeLinear need not go through the memory for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm.jit.addresses import NotCopied
from lowgemm.onnx_run.chain_code import (
    ADD,
    BYTE,
    MUL,
    REGISTERS,
    SCALE,
    SIGNED,
    TO_BYTE,
    TO_SIGNED,
    WIDTHS,
)  # fmt: skip
from lowgemm.onnx_run.chain_groups import CURVES, SCALED, TWO, Group, coding, factors_of, steps_of
from lowgemm.onnx_run.chain_plan import Plan
from lowgemm.onnx_run.prepare import dequantize_linear
from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder
from lowgemm.onnx_run.turned import sizes

#: Shapes of inputs whose plans a chain keeps.
SHAPES = 32


def _in_order(v: np.ndarray) -> bool:
    """Whether an operand is in C order, or has its channels last in memory."""
    return v.flags.c_contiguous or sizes(v) is not None


class _Channels(NamedTuple):
    """An operand: one number for each index of the second axis of a value, whose name is `of`."""

    numbers: np.ndarray
    of: str

    def shaped(self, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray | None:
        """As NumPy repeats it along the other axes; None if the value has not so many channels."""
        shape = shapes[self.of]
        if len(shape) < 2 or shape[1] != self.numbers.size:
            return None
        return self.numbers.reshape(-1, *(1,) * (len(shape) - 2))


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
        #: (operation, result, operands ...); an operand is a name, a number, or one for each channel.
        self.instructions: list[tuple[Any, ...]] = []
        for node in group.nodes:
            self._add(node, constants)
        self._plans: dict[Any, Any] = {}
        self._constants = {n: constants[n] for n in group.inputs if n in constants}
        #: By an input's number: the node that makes float32 numbers of it, if only one does.
        self._real: dict[int, Any] = {}
        for i, name in enumerate(self.inputs):
            nodes = [n for n in group.nodes if n.op_type == "DequantizeLinear" and n.input[0] == name]
            if len(nodes) == 1:
                self._real[i] = nodes[0]
        self._others: dict[tuple[int, ...], Any] = {}

    def _add(self, node: Any, constants: Mapping[str, np.ndarray]) -> None:
        """The instructions of a node."""
        output, simple = node.output[0], steps_of(node, constants)
        factors = factors_of(node, constants)
        given = [constants.get(n, n) for n in node.input]
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            back = node.op_type == "QuantizeLinear"
            scale, zero = coding(node, node.op_type, constants)  # type: ignore[misc]
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
        elif factors is not None:
            by, more = (_Channels(v, given[0]) for v in factors)
            self.instructions += [(MUL, f"{output} 0", given[0], by), (ADD, output, f"{output} 0", more)]
        elif simple is None:
            self.instructions.append((TWO[node.op_type], output, *given))
        elif node.op_type in CURVES:
            self.instructions.append((CURVES[node.op_type], output, given[0]))
        elif node.op_type == "Pow":
            name = given[0]
            for i, (operation, _) in enumerate(simple):
                to = output if i == len(simple) - 1 else f"{output} {i}"
                self.instructions.append((operation, to, name, given[0]))
                name = to
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
        instructions: list[tuple[Any, ...]] = []
        for operation, to, *given in self.instructions:
            operands = [x.shaped(shapes) if isinstance(x, _Channels) else x for x in given]
            if any(x is None for x in operands):
                return None
            instructions.append((operation, to, *operands))
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
        plan, numbers = Plan(shape, turned), [x for _, _, *both in instructions for x in both]
        for name, value in zip(self.inputs, values, strict=True):
            if name in whole:
                plan.add_input(name, turned and value.flags.c_contiguous, value.itemsize)
            elif value.itemsize == 1 or not plan.repeat(name, name, value.shape, value.strides):
                return None
        if not all(plan.repeat_number(x) for x in numbers if not isinstance(x, str)) or not plan.lay():
            return None
        read = {x: i for i, (_, _, *both) in enumerate(instructions) for x in both if isinstance(x, str)}
        for i, (operation, to, *operands) in enumerate(instructions):
            places = [plan.operand(x) for x in operands]
            plan.release({x for x in operands if isinstance(x, str) and read[x] == i})
            plan.add(operation, plan.result(to, to in self.group.outputs, WIDTHS.get(operation, 4)), places)
            if to in self.group.ranged:
                plan.note_range(to)
        if len(plan.registers) > REGISTERS:
            return None
        plan.finish(self)
        made = {to: i for i, (_, to, *_) in enumerate(instructions)}
        spare = [n for n in self.group.spent if shapes.get(n) == shape]
        for output in plan.outputs:
            # an input's memory, or its copy's with the channels last, if nothing reads the input after the
            # output is made
            found = next((n for n in spare if read[n] <= made[output]), None)
            if found is not None:
                plan.reused[output] = self.inputs.index(found)
                spare.remove(found)
        return plan

    def _with_floats(
        self, values: Sequence[Any], recorder: Recorder | None = None
    ) -> tuple[Chain, Sequence[Any]] | None:
        """A chain that is given float32 numbers in the place of bytes that it would have to repeat, and its
        inputs; None if there are no such bytes, or they cannot be read so.
        """
        try:
            shape = np.broadcast_shapes(*(v.shape for v in values))
        except ValueError:  # the engine says so
            return None
        small = tuple(i for i in self._real if values[i].shape != shape)
        if not small:
            return None
        if small not in self._others:
            nodes = [self._real[i] for i in small]
            names = {n.input[0]: n.output[0] for n in nodes}
            group = self.group._replace(
                nodes=[n for n in self.group.nodes if n not in nodes],
                inputs=[names.get(n, n) for n in self.group.inputs],
            )
            state = State(num_threads=self.num_threads)
            given = [[None, *(self._constants[n] for n in node.input[1:])] for node in nodes]
            makers = [dequantize_linear(state, g, {}, False) for g in given]
            self._others[small] = Chain(group, self._constants, self.otherwise, self.num_threads), makers
        chain, makers = self._others[small]
        found = list(values)
        for i, make in zip(small, makers, strict=True):
            y = make(values[i]) if recorder is None else make(values[i], recorder=recorder)
            if y is NotImplemented:
                return None
            if recorder is not None:
                recorder.keep(y)
            found[i] = y
        return None if chain._plan_for(found) is None else (chain, found)

    def __call__(self, *values: Any) -> Sequence[Any]:
        """Values of the outputs, then the ranges that are wanted (None where the engine ran)."""
        plan = self._plan_for(values)
        other = self._with_floats(values) if plan is None else None
        if other is not None:
            return other[0](*other[1])
        if plan is None:
            return [*self.otherwise(*values), *[None] * len(self.group.ranged)]
        if plan.gaps:
            values = tuple(v if _in_order(v) else np.ascontiguousarray(v) for v in values)
        return plan.run(values)

    def record(self, recorder: Recorder, *values: Any) -> Sequence[Any] | None:
        """Take the chain down; None if that cannot be."""
        plan = self._plan_for(values)
        if plan is None:
            other = self._with_floats(values, recorder)
            return None if other is None else other[0].record(recorder, *other[1])
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
