"""A chain of layers for one input shape as a table of compiled routines, run by one call.

Python's part of a layer (shapes, plans, buffers) takes microseconds. The arithmetic of a small layer takes
less than one. So each layer writes down once, for a shape, which routines run on which addresses
(`Layer.emit`), and a compiled loop runs the table. Tensors between layers lie in one block of memory, whose
places are used again.

Next file to open: `routines.py`, the routines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numba
import numpy as np
from numba import types

from lowgemm import config, kernels
from lowgemm.engine import threads
from lowgemm.engine.packed_rhs import PackedRhs, repacked
from lowgemm.engine.plan import Operand, Plan
from lowgemm.engine.seen import Seen
from lowgemm.jit import disk_cache, scratch
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.memory import address, as_address, load_i32, store_32
from lowgemm.jit.routine import call_address
from lowgemm.nn import routines
from lowgemm.nn.windows import Windows
from lowgemm.output.check import check_pipeline
from lowgemm.quantization import QParams

#: What an address counts from: the input, the result, the memory between layers, or nothing (a fixed
#: address).
INPUT, RESULT, BETWEEN, FIXED = range(4)
#: Bytes between layers that a run should need. A batch that needs more is taken in parts, which stay in the
#: L2 cache.
PART_BYTES = 1 << 18
_HEAD = 64
#: A call of the table: the routine, its parameters, the places of its two inputs and of its result, and its
#: scratch memory. A place is what the address counts from, and bytes from there. Scratch memory is in bytes
#: from the start of the memory between layers.
CALL = np.dtype(
    [
        (name, np.int64)
        for name in ("routine", "params", "src_base", "src", "src2_base", "src2", "dst_base", "dst", "space")
    ]
)
_WORDS = CALL.itemsize // 8


class Place(NamedTuple):
    """Where a tensor lies: a base, the bytes from there, its size."""

    base: int
    at: int
    size: int

    def part(self, at: int) -> Place:
        """The same tensor from byte `at` on."""
        return Place(self.base, self.at + at, self.size - at)


NOWHERE = Place(FIXED, 0, 0)


class Emitter(Protocol):
    """What a chain asks of its layers; `layer.Layer` says what each of these is."""

    kind: str
    input_qparams: QParams
    output_qparams: QParams | None

    @property
    def parameter_bytes(self) -> int:
        """Bytes of weights and biases."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the result."""

    def maccs(self, shape: tuple[int, ...]) -> int:
        """Multiply-accumulates."""

    def emit(self, program: Program, x: Place, shape: tuple[int, ...]) -> Place:
        """Write down the routines for an input at `x`; where the result lies."""


_bytes = types.uint8[::1]


@disk_cache.njit([types.int64(types.int64[::1], _bytes, _bytes, _bytes)], nogil=True)
def run_calls(table, x, out, between):
    """Make the calls of a table from `x` to `out`, bytes, with `between` for what lies between; the number of
    NaNs.

    The table is records of `CALL`, passed as flat int64, which Numba unpacks in less time.
    """
    calls = numba.carray(address(table), (table.size // _WORDS,), CALL)
    bases = (as_address(address(x)), as_address(address(out)), as_address(address(between)), 0)
    store_32(address(between), 0, 0)
    for i in range(calls.size):
        call = calls[i]
        call_address(
            call.routine,
            (
                call.params, bases[call.src_base] + call.src, bases[call.src2_base] + call.src2,
                bases[call.dst_base] + call.dst, bases[BETWEEN] + call.space,
            ),
        )  # fmt: skip
    return load_i32(address(between), 0)


class Program(NotCopied):
    """Routines of a chain of layers for one input shape.

    Parameters
    ----------
    layers : sequence of Layer
        The chain.
    shape : tuple of int
        Of the input, none of them 0.
    real : bool
        The input is float32 and is quantized first.
    """

    instead = "copy the layers, which write a program of their own"

    def __init__(self, layers: Sequence[Emitter], shape: tuple[int, ...], real: bool) -> None:
        self._calls: list[tuple[int, ...]] = []
        self._keep: list[Any] = []
        self._busy: list[Place] = []
        self._top, self._space = _HEAD, 0
        self._last = False
        x = Place(INPUT, 0, math.prod(shape) * (4 if real else 1))
        if real:
            q = layers[0].input_qparams
            to = self.place(math.prod(shape))
            params = routines.quantize.record(
                count=to.size, scale=float(q.scale), zero_point=float(q.zero_point), low=q.qmin, high=q.qmax
            )
            self.op(routines.quantize, params, x, to, Place(BETWEEN, 0, 8))
            x = to
        y = self.chain(layers, x, shape, whole=True)
        if y.base != RESULT:  # nothing but views
            to = Place(RESULT, 0, y.size)
            whole = Windows((1, 1, y.size, 1), (1, 1), (1, 1), (1, 1))
            self.op(routines.pad, routines.pad.record(**whole.margins(0)), y, to)
        space_at = -(-self._top // scratch.ALIGNMENT) * scratch.ALIGNMENT
        calls = np.array(self._calls, CALL)
        calls["space"] = space_at
        self.table = calls.view(np.int64)
        self.bytes_between = space_at + self._space + scratch.ALIGNMENT

    def run(self, x: np.ndarray, out: np.ndarray) -> int:
        """Run on flat bytes; returns the number of NaNs in a real input."""
        return run_calls(self.table, x, out, scratch.borrowed(self.bytes_between))

    # What layers call.
    def chain(
        self, layers: Sequence[Emitter], x: Place, shape: tuple[int, ...], *, whole: bool = False
    ) -> Place:
        """Emit layers one after another; the place of the last one's result. `x` stays in use."""
        views = 0  # layers at the end that only see the result in another shape
        while views < len(layers) and layers[-1 - views].kind == "flatten":
            views += 1
        at = x
        for i, layer in enumerate(layers):
            self._last = whole and i == len(layers) - 1 - views
            y = layer.emit(self, at, shape)
            if y != at and at != x:
                self.release(at)
            at, shape = y, layer.output_shape(shape)
        return at

    def take_last(self) -> bool:
        """Whether the layer being emitted gives the result of all; asked once, before it emits others."""
        last, self._last = self._last, False
        return last

    def result(self, size: int, last: bool) -> Place:
        """Place for a layer's result."""
        return Place(RESULT, 0, size) if last else self.place(size)

    def place(self, size: int) -> Place:
        """The lowest free place of that many bytes between the layers."""
        room = -(-size // scratch.ALIGNMENT) * scratch.ALIGNMENT
        at = _HEAD
        for used in sorted(self._busy, key=lambda p: p.at):
            if at + room <= used.at:
                break
            at = max(at, -(-(used.at + used.size) // scratch.ALIGNMENT) * scratch.ALIGNMENT)
        found = Place(BETWEEN, at, size)
        self._busy.append(found)
        self._top = max(self._top, at + room)
        return found

    def release(self, place: Place) -> None:
        """Let others have a place."""
        if place.base == BETWEEN:
            self._busy.remove(place)

    def keep(self, a: np.ndarray) -> int:
        """Address of an array that stays alive with the program."""
        self._keep.append(a)
        return a.ctypes.data

    def hold(self, owner: Any) -> None:
        """Keep what addresses point into."""
        self._keep.append(owner)

    def op(
        self, routine: routines.LayerRoutine, params: np.ndarray, x: Place, to: Place, x2: Place = NOWHERE, *,
        space: int = 0
    ) -> None:  # fmt: skip
        """A routine of `routines.py` with its record of parameters, and bytes of scratch memory."""
        at = self.keep(params)
        self._space = max(self._space, space)
        self._calls.append((routine.address, at, x.base, x.at, x2.base, x2.at, to.base, to.at, 0))

    def product(
        self, x: Place, kind: str, shape: tuple[int, int], stride: int, packed: PackedRhs,
        zeros: tuple[int, Any], stages: Any, to: Place, out_stride: int,
    ) -> None:  # fmt: skip
        """A product with `packed` on one thread; `shape` (rows, depth) at `x`, rows `stride` bytes apart."""
        rows, depth = shape
        columns = packed.shape[1]
        checked, result = check_pipeline(stages, rows, columns)
        packed = repacked(packed, kernels.selected())
        bilinear = isinstance(zeros[1], np.ndarray)
        plan = Plan(
            kernels.by_name(packed.kernel),
            Operand((rows, depth), (stride, 1), kind),
            Operand((depth, columns), (0, 0), packed.dtype.kind),
            result=result,
            out_strides=(out_stride, result.itemsize),
            packed=True,
            bilinear=bilinear,
            output=checked,
            num_threads=1,
        )
        self.planned(plan, packed, zeros, x, to)

    def planned(self, plan: Plan, rhs: Any, zeros: tuple[int, Any], x: Place, to: Place) -> None:
        """A plan on one thread, with its packed rhs and the zero points of both sides."""
        vectors, values = [0, 0], [0, 0]
        if plan.bilinear:
            vectors = [self.keep(v) for v in plan.zero_vectors(*zeros)]
        else:
            values = [int(zeros[0]), 0 if np.ndim(zeros[1]) else int(zeros[1])]
        self.hold((plan, rhs))
        params = routines.multiply.record(
            routine=int(plan.p.single), plan=plan.numbers.ctypes.data, panels=rhs.panels_address,
            sums=rhs.sums_address,
            lhs_zero=values[0], rhs_zero=values[1], lhs_zeros=vectors[0], rhs_zeros=vectors[1],
        )  # fmt: skip
        self.op(routines.multiply, params, x, to, space=plan.scratch_bytes + scratch.ALIGNMENT)


class _Entry(NamedTuple):
    """How an input of one shape is run: in parts of so many rows, or layer by layer if there are no parts."""

    shape: tuple[int, ...]
    parts: tuple[tuple[slice, slice, Program], ...]


class Runner:
    """Programs of a chain, by the shape of the input.

    Parameters
    ----------
    layers : sequence of Layer
        The chain.
    serial : bool
        Use one thread whatever the size.
    """

    def __init__(self, layers: Sequence[Emitter], *, serial: bool = False) -> None:
        self.layers, self.serial = tuple(layers), serial
        last = self.layers[-1].output_qparams
        self.result = np.dtype(np.float32) if last is None else last.dtype
        self._seen = Seen()

    def __getstate__(self) -> dict[str, Any]:
        """What it is made of: the programs hold addresses."""
        return {"layers": self.layers, "serial": self.serial}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["layers"], serial=state["serial"])  # type: ignore[misc]

    def run(self, x: np.ndarray, real: bool) -> np.ndarray | None:
        """Result for an array that fits (float32 if `real`); None if the layers should run one by one."""
        key = (x.shape, real, config.kernel, threads.settings())
        remembered = self._seen.get(key)
        if remembered is None:
            remembered = self._plan(x.shape, real)
            self._seen.add(key, remembered)
        if not remembered.parts:
            return np.empty(remembered.shape, self.result) if 0 in remembered.shape else None
        out = np.empty(remembered.shape, self.result)
        flat, to = np.ascontiguousarray(x).reshape(-1).view(np.uint8), out.reshape(-1).view(np.uint8)
        if not flat.flags.writeable:  # another type to Numba
            flat = flat.copy()
        nans = 0
        for part, result, program in remembered.parts:
            nans += program.run(flat[part], to[result])
        if nans:
            raise ValueError(f"x: expected no NaN, which no integer stands for, got {nans}")
        return out

    def _plan(self, shape: tuple[int, ...], real: bool) -> _Entry:
        sizes, most = [math.prod(shape)], 0
        through = shape
        for layer in self.layers:
            most = max(most, layer.maccs(through) + layer.parameter_bytes)
            through = layer.output_shape(through)
            sizes.append(math.prod(through) * (4 if layer.output_qparams is None else 1))
        spread = not self.serial and threads.choose_threads(None, most) > 1
        if numba.config.DISABLE_JIT or spread or 0 in shape or 0 in through:
            return _Entry(through, ())
        rows = shape[0] if len(shape) > 1 else 1
        # parts are at least as large as the weights, because each part reads all weights again
        budget = max(PART_BYTES, 2 * sum(layer.parameter_bytes for layer in self.layers))
        count = -(-sum(sizes) // budget)
        step = -(-rows // min(rows, count))
        programs: dict[int, Program] = {}
        parts = []
        width = sizes[0] // rows * (4 if real else 1)
        out_width = math.prod(through) // rows * self.result.itemsize
        for first in range(0, rows, step):
            n = min(step, rows - first)
            if n not in programs:
                programs[n] = Program(self.layers, (n, *shape[1:]) if len(shape) > 1 else shape, real)
            parts.append(
                (
                    slice(first * width, (first + n) * width),
                    slice(first * out_width, (first + n) * out_width),
                    programs[n],
                )
            )
        return _Entry(through, tuple(parts))
