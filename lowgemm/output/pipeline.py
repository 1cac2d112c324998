"""From a list of stages to the routines that run on each tile.

A leading `BiasAddition` costs nothing: it is added to the row or column terms that the kernel adds anyway
(int32 addition wraps, so the order does not matter). Adjacent clamps, and a clamp before a saturating cast,
are merged into the bounds of the store.

Next file to open: `routines.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from lowgemm.checks.values import INT32_MAX, INT32_MIN
from lowgemm.jit.addresses import NotCopied
from lowgemm.output import activations as act
from lowgemm.output import requantize as rq
from lowgemm.output import stages as st
from lowgemm.output.custom import custom_params, custom_routine, raise_failure
from lowgemm.output.routines import routine
from lowgemm.output.vector import WIDTH as vector_width


@dataclass
class Program(NotCopied):
    """Compiled form of a pipeline for one problem size.

    Attributes
    ----------
    steps : list of (routine, list of int)
        Routines in order, by name or compiled, with their parameters; the last stores.
    col_bias, row_bias : ndarray of int32 or None
        Bias folded into the column or row terms.
    direct : bool
        Nothing but the int32 store is left: the kernel may write to the result itself.
    keep : list
        Arrays whose addresses the parameters hold.
    customs : list of (int, stage)
        Which steps are functions of the user's, and may fail.
    """

    instead: ClassVar[str] = "compile the output stages again"

    steps: list[tuple[Any, list[int]]] = field(default_factory=list)
    col_bias: np.ndarray | None = None
    row_bias: np.ndarray | None = None
    direct: bool = False
    keep: list[Any] = field(default_factory=list)
    customs: list[tuple[int, Any]] = field(default_factory=list)

    def table(self) -> list[int]:
        """Flat list of routine address, parameter address, ..., as `engine/tiles.py` reads it."""
        flat: list[int] = []
        for name, values in self.steps:
            params = np.array(values, dtype=np.int64)
            self.keep.append(params)
            compiled = routine(name) if isinstance(name, str) else name
            flat += [compiled.address, params.ctypes.data]
        return flat

    def watched(self, numbers: np.ndarray, at: int) -> tuple[np.ndarray, list[tuple[Any, Any, np.ndarray]]]:
        """`numbers`, which hold the table from `at` on, for one call that shares no status words with another.

        Also returns what to give to `raise_failures` after the call.
        """
        watches = []
        if self.customs:
            numbers = numbers.copy()
        for i, stage in self.customs:
            compiled, values = self.steps[i]
            params = np.array(values, dtype=np.int64)
            numbers[at + 2 * i + 1] = params.ctypes.data
            watches.append((compiled, stage, params))
        return numbers, watches


def raise_failures(watches: list[tuple[Any, Any, np.ndarray]]) -> None:
    """Raise what the first of the user's functions to fail raised; later ones had its leavings for input."""
    for compiled, stage, params in watches:
        raise_failure(compiled, stage, params)


def _steps(axis: int, value: np.ndarray) -> tuple[int, int]:
    """Row and column step of a parameter: a scalar, or one for each row (axis 0) or column (axis 1)."""
    if value.ndim == 0:
        return 0, 0
    return (1, 0) if axis == 0 else (0, 1)


def compile_pipeline(
    output: tuple[Any, ...],
    result: np.dtype,
    *,
    accumulate: bool = False,
    bilinear: bool = False,
    fold_bias: bool = True,
    size: tuple[int, int] = (1, 1),
    contiguous: bool = False,
) -> Program:
    """Choose the routines for checked `output` stages.

    Parameters
    ----------
    output : tuple of stages
        As returned by `check_pipeline`.
    result : dtype
        Element type that is stored.
    accumulate : bool
        Add to what `out` holds (int32 without stages only).
    bilinear : bool
        Zero points differ by row or column, which the kernel's additive terms cannot express.
    fold_bias : bool
        Let the kernel add a leading bias.
    size : tuple of int
        Rows and columns of the result.
    contiguous : bool
        Whether the result's rows are contiguous.
    """
    program = Program()
    todo = [simple for stage in output for simple in stage.lower()]

    def vector(value: Any) -> np.ndarray:
        a = np.ascontiguousarray(value, dtype=np.int32)
        program.keep.append(a)
        return a

    def push(name: Any, *params: Any) -> None:
        program.steps.append((name, [p.ctypes.data if isinstance(p, np.ndarray) else int(p) for p in params]))

    while fold_bias and todo and isinstance(todo[0], st.BiasAddition):
        stage = todo[0]
        side = "row_bias" if stage.axis == 0 else "col_bias"
        if getattr(program, side) is not None:
            break
        setattr(program, side, vector(stage.bias))
        todo.pop(0)
    if bilinear:
        push("bilinear")
    lo, hi = INT32_MIN, INT32_MAX
    truncating = False
    last_scale: tuple[Any, ...] | None = None

    def flush() -> None:
        nonlocal lo, hi
        if (lo, hi) != (INT32_MIN, INT32_MAX):
            push("clamp", lo, hi)
            lo, hi = INT32_MIN, INT32_MAX

    for stage in todo:
        if isinstance(stage, st.Clamp):
            # min(max(x, lo), hi) after another: again of that form
            lo, hi = min(max(lo, stage.min), stage.max), min(max(hi, stage.min), stage.max)
        elif isinstance(stage, st.SaturatingCast):
            info = np.iinfo(stage.dtype)
            lo, hi = (int(min(max(v, info.min), info.max)) for v in (lo, hi))
        elif isinstance(stage, st.TruncatingCast):
            truncating = True
            flush()
        elif isinstance(stage, act.Lut):
            flush()
            table = stage.table.view(np.uint8)
            program.keep.append(table)
            push("lut", table, *_range(stage.input_dtype))
            truncating = True
        elif isinstance(stage, rq.Dequantize):
            flush()
            scales = np.asarray(stage.scale, dtype=np.float32)
            program.keep.append(scales)
            push("store_float", scales, *_steps(stage.axis, scales))
        else:
            flush()
            if isinstance(stage, act.Custom):
                program.customs.append((len(program.steps), stage))
            _push_stage(stage, push, vector, program.keep)
            one_pass = _one_pass_scale(stage)
            if one_pass is not None:
                last_scale = (program.steps[-1], *one_pass)
    if result == np.float32:
        return program
    bits = result.itemsize * 8
    program.direct = not program.steps and bits == 32 and (lo, hi) == (INT32_MIN, INT32_MAX)
    if bits == 32:
        flush()
        push("store32", 0, 0, accumulate)
    elif truncating:
        push(f"store{bits}", INT32_MIN, INT32_MAX, 0)
    elif contiguous and last_scale is not None and program.steps and program.steps[-1] is last_scale[0]:
        # the scale is right before the store: both in one pass
        program.steps.pop()
        multiplier, right, by_row, after = last_scale[1:]
        length = size[0] if by_row else size[1]
        padded = [np.full(length + vector_width, v.flat[0], np.int32) for v in (multiplier, right)]
        for to, v in zip(padded, (multiplier, right), strict=True):
            to[:length] = v
        push(
            f"requantize_store{bits}{'_by_row' if by_row else ''}",
            *(vector(v) for v in padded),
            after,
            lo,
            hi,
        )
    else:
        push(f"store{bits}", lo, hi, 0)
    return program


def _one_pass_scale(stage: Any) -> tuple[np.ndarray, np.ndarray, bool, int] | None:
    """Multiplier, right shift, whether by row, and offset of a scale that `vector.py` can do, else None."""
    if isinstance(stage, st.QuantizeDownInt32ByFixedPoint):
        multiplier, exponent, by_row = np.asarray(stage.multiplier), -np.asarray(stage.shift), False
    elif isinstance(stage, st.ScaleInt32ByFixedPointAndExponent):
        multiplier, exponent = np.broadcast_arrays(np.asarray(stage.multiplier), np.asarray(stage.exponent))
        by_row = stage.axis == 0 and multiplier.ndim == 1
    else:
        return None
    if multiplier.size == 0 or int(multiplier.min()) < 0 or int(exponent.max()) > -1:
        return None
    if abs(stage.offset_after_shift) >= 2 ** (30 + int(exponent.min())):
        return None  # the offset would not fit the 64-bit sum
    return multiplier, -exponent, by_row, stage.offset_after_shift


def _range(dtype: np.dtype) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def tanh_constants(real_amplitude: int) -> tuple[int, int, int, int]:
    """Constants of the tanh stage: 1 / amplitude as (Q0.31, doublings), and amplitude as (Q0.31, halvings).

    Both are at least a half and less than one, but 1 / 1 stays 1, which Q0.31 has not: it takes the largest there is.
    """
    inverse, exponent = math.frexp(1 / real_amplitude) if real_amplitude > 1 else (1.0, 0)
    amplitude, halvings = math.frexp(real_amplitude)
    first, second = (min(math.floor(math.ldexp(x, 31) + 0.5), 2**31 - 1) for x in (inverse, amplitude))
    return first, -exponent, second, halvings


def _push_stage(stage: Any, push: Any, vector: Any, keep: list[Any]) -> None:
    if isinstance(stage, st.BiasAddition):
        push("bias", vector(stage.bias), *_steps(stage.axis, np.asarray(stage.bias)))
    elif isinstance(stage, (st.ScaleInt32ByFixedPointAndExponent, st.QuantizeDownInt32ByFixedPoint)):
        if isinstance(stage, st.QuantizeDownInt32ByFixedPoint):
            exponent, axis = -np.asarray(stage.shift), 1
        else:
            exponent, axis = np.asarray(stage.exponent), stage.axis
        multiplier, exponent = np.broadcast_arrays(np.asarray(stage.multiplier), exponent)
        # with |x * scale| up to 2**30 no zero point of 16 bits leaves int32
        saturating = isinstance(stage, rq.SaturatingScale) and exponent.size > 0 and int(exponent.max()) >= 0
        push(
            "scale_saturating" if saturating else "scale", vector(multiplier), vector(np.maximum(exponent, 0)), vector(np.maximum(-exponent, 0)),
            *_steps(axis, multiplier), stage.offset_after_shift,
        )  # fmt: skip
    elif isinstance(stage, st.QuantizeDownInt32ToUint8Scale):
        offsets, mults = np.broadcast_arrays(np.asarray(stage.offset), np.asarray(stage.mult_int))
        push("legacy_scale", vector(offsets), vector(mults), *_steps(stage.axis, offsets), stage.shift)
    elif isinstance(stage, rq.SingleRoundingScale):
        multiplier, exponent = np.asarray(stage.multiplier), np.asarray(stage.exponent)
        steps = _steps(stage.axis, multiplier)
        push("scale_single", vector(multiplier), vector(31 - exponent), *steps, stage.offset)
    elif isinstance(stage, rq.FloatScale):
        scales = np.asarray(stage.scale, dtype=np.float64 if stage.double else np.float32)
        keep.append(scales)
        name = "scale_float64" if stage.double else "scale_float32"
        push(name, scales, *_steps(stage.axis, scales), stage.zero_point, stage.low, stage.high)
    elif isinstance(stage, act.Logistic):
        push("logistic", stage.integer_bits)
    elif isinstance(stage, act.Custom):
        keep.append(stage)
        push(custom_routine(stage), *custom_params(stage))
    elif isinstance(stage, st.Tanh):
        push("tanh", stage.real_zero, stage.real_amplitude, *tanh_constants(stage.real_amplitude))
    else:
        raise TypeError(f"output: no routine for {type(stage).__name__}")
