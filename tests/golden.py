"""Golden cases: inputs and outputs of the real gemmlowp, as `tests/data/gemmlowp/README.md` defines them."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import lowgemm

FOLDER = pathlib.Path(__file__).parent / "data" / "gemmlowp"


@functools.cache
def cases(kind: str) -> list[dict[str, Any]]:
    """All cases of one kind."""
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    return [c for c in manifest["cases"] if c["kind"] == kind]


@functools.cache
def _archive(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name, allow_pickle=False) as z:
        return {key: z[key] for key in z.files}


def array(ref: Any) -> Any:
    """Array of a reference; integers stay as they are."""
    if isinstance(ref, dict) and "arange" in ref:
        return np.arange(*ref["arange"])
    if isinstance(ref, dict):
        a = _archive(ref["file"])[ref["key"]].view()
        a.flags.writeable = False
        return a
    return ref


def view(buffer: np.ndarray, rows: int, cols: int, order: str, stride: int, start: int) -> np.ndarray:
    """The (rows, cols) matrix inside a buffer."""
    step = buffer.itemsize
    strides = (stride * step, step) if order == "row" else (step, stride * step)
    if rows == 0 or cols == 0:
        return np.empty((rows, cols), dtype=buffer.dtype)
    return np.lib.stride_tricks.as_strided(
        buffer[start:], (rows, cols), strides, writeable=buffer.flags.writeable
    )


def stage(s: dict[str, Any]) -> lowgemm.Stage:
    """A stage of the manifest as lowgemm's. "col" vectors have one value per row, "row" ones one per
    column.
    """
    kind = s["stage"]
    axis = 0 if s.get("shape") == "col" else 1
    if kind == "bias_addition":
        return lowgemm.BiasAddition(array(s["bias_vector"]), axis=axis)
    if kind in ("quantize_down_int32_to_uint8_scale", "quantize_down_int32_to_uint8_scale_pc"):
        return lowgemm.QuantizeDownInt32ToUint8Scale(
            array(s["result_offset"]), array(s["result_mult_int"]), s["result_shift"], axis=axis
        )
    if kind == "quantize_down_int32_by_fixed_point":
        return lowgemm.QuantizeDownInt32ByFixedPoint(
            s["result_fixedpoint_multiplier"], s["result_shift"], s["result_offset_after_shift"]
        )
    if kind.startswith("scale_int32_by_fixed_point_and_exponent"):
        return lowgemm.ScaleInt32ByFixedPointAndExponent(
            array(s["result_fixedpoint_multiplier"]),
            array(s["result_exponent"]),
            s["result_offset_after_shift"],
            axis=axis,
        )
    if kind == "clamp":
        return lowgemm.Clamp(s["min"], s["max"])
    if kind == "tanh":
        return lowgemm.Tanh(s["real_zero_as_int32"], s["real_amplitude_as_int32"])
    if kind.startswith("saturating_cast_to_"):
        return lowgemm.SaturatingCast(np.dtype(kind.removeprefix("saturating_cast_to_")))
    if kind == "truncating_cast_to_uint8":
        return lowgemm.TruncatingCast(np.uint8)
    raise AssertionError(f"a stage the tests do not know: {kind}")


@dataclass
class GemmCase:
    """One `gemm` case, ready to run. gemmlowp adds offsets; zero points are subtracted."""

    id: str
    lhs: np.ndarray
    rhs: np.ndarray
    lhs_zero_point: Any
    rhs_zero_point: Any
    stages: list[lowgemm.Stage]
    buffer: np.ndarray
    out: np.ndarray
    fill: int
    expected: np.ndarray
    vacuous: bool


def gemm_case(c: dict[str, Any]) -> GemmCase:
    """Load a case."""
    m, k, n, r = c["m"], c["k"], c["n"], c["result"]
    operands = []
    for name, shape in (("lhs", (m, k)), ("rhs", (k, n))):
        ref = c[name]
        operands.append(view(array(ref), *shape, ref["order"], ref["stride"], ref["start"]))
    buffer = np.full(r["buffer_len"], r["fill"], dtype=r["dtype"])
    # minus the offset, modulo 2**32: the negative of -2**31 is itself
    zeros = [-np.asarray(array(c[f"{side}_offset"]), dtype=np.int32) for side in ("lhs", "rhs")]
    return GemmCase(
        c["id"],
        *operands,
        *(z if z.ndim else int(z) for z in zeros),
        [stage(s) for s in c["pipeline"]],
        buffer,
        view(buffer, m, n, r["order"], r["stride"], r["start"]),
        r["fill"],
        array(c["expected"]),
        0 in (m, k, n),
    )


def run_gemm_case(c: dict[str, Any], gemm: Callable[..., np.ndarray], **options: Any) -> None:
    """Run a case through `gemm` (lowgemm's signature) and compare: dtype, shape, values, untouched
    padding.
    """
    case = gemm_case(c)
    gemm(
        case.lhs,
        case.rhs,
        lhs_zero_point=case.lhs_zero_point,
        rhs_zero_point=case.rhs_zero_point,
        output=case.stages,
        out=case.out,
        **options,
    )
    compare(case)


def compare(case: GemmCase) -> None:
    """Compare a case's destination with what gemmlowp wrote."""
    assert case.out.dtype == case.expected.dtype and case.out.shape == case.expected.shape, case.id
    wrong = np.count_nonzero(case.out != case.expected)
    assert wrong == 0, f"{case.id}: {wrong} of {case.out.size} elements differ"
    case.out[...] = case.fill
    assert (case.buffer == case.fill).all(), f"{case.id}: wrote outside the destination"
