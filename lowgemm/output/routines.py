"""What happens to a finished tile: one C routine for each kind of output stage.

Every routine has the same signature,

    routine(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lhs_zeros, rhs_zeros,
            out, out_row_stride, out_col_stride)

and works on the `rows` x `cols` int32 tile at `tile` (row stride `ld` elements) whose corner is element
(`row`, `col`) of the result. All but the last rewrite the tile in place; the last stores it to `out`. The tile
is in L1, so a pipeline is fused into the tile loop without being compiled as one function: any list of standard
stages runs on what `warmup` has compiled, and a user's own stage is one more routine. `pipeline.py` chooses
the routines and merges neighbours (fixed-point scale, clamp and cast are one pass).

`params` points to int64 numbers, addresses among them. A parameter that may be per tensor, row or column is
read at ``(row + r) * row_step + (col + c) * col_step``.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from lowgemm.checks.values import INT32_MAX, INT32_MIN
from lowgemm.fixedpoint import scalar as fp
from lowgemm.jit.memory import (
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    load_u8,
    offset,
    pointer_at,
    round_even,
    store_8,
    store_16,
    store_32,
    store_f32,
)  # fmt: skip
from lowgemm.jit.routine import compile_c, signature
from lowgemm.jit.stamp import source_stamp
from lowgemm.output import vector

SIGNATURE = signature("pnnnnnppppppnn")


@numba.njit(nogil=True)
def fixed_point(x, multiplier, left, right):
    """RDP(SRDHM(saturate(x << left), multiplier), right)."""
    return fp.divide_by_pot(fp.high_mul(fp.shift_left(x, left, 32), multiplier, 32), right)


@numba.njit(nogil=True)
def _add(x, after, saturating):
    """x + after, kept within int32 if `saturating` (a constant); else the store of the low bits wraps it."""
    return min(max(x + after, INT32_MIN), INT32_MAX) if saturating else x + after


# ---- in-place stages --------------------------------------------------------------------------------------
def _make_bilinear(stamp: int):
    @compile_c(SIGNATURE)
    def bilinear(
        tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs
    ):
        """Zero points that differ by row or column: += lz[r] * (depth * rz[c] - col_sum[c]) - row_sum[r] * rz[c]."""
        _ = stamp
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            lz, total = load_i32(lzs, r), load_i32(row_sums, r)
            for c in range(cols):
                x = load_i32(line, c) + lz * load_i32(col_factors, c) - total * load_i32(rzs, c)
                store_32(line, c, x)

    return bilinear


def _make_bias(stamp: int):
    @compile_c(SIGNATURE)
    def bias(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs):
        """x + bias, wrapping. params: address, row step, column step."""
        _ = stamp
        values, row_step, col_step = pointer_at(params, 0), load_i64(params, 1), load_i64(params, 2)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            mine = offset(values, 4 * ((row + r) * row_step + col * col_step))
            for c in range(cols):
                store_32(line, c, load_i32(line, c) + load_i32(mine, c * col_step))

    return bias


def _make_clamp(stamp: int):
    @compile_c(SIGNATURE)
    def clamp(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs):
        """min(max(x, lo), hi). params: lo, hi."""
        _ = stamp
        lo, hi = load_i64(params, 0), load_i64(params, 1)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            for c in range(cols):
                store_32(line, c, min(max(load_i32(line, c), lo), hi))

    return clamp


def _make_scale(saturating: int, stamp: int):
    @compile_c(SIGNATURE)
    def scale(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs):
        """Fixed-point scale plus offset. params: multipliers, left shifts, right shifts, row step, column step, offset."""
        _ = stamp
        multipliers, lefts, rights = pointer_at(params, 0), pointer_at(params, 1), pointer_at(params, 2)
        row_step, col_step, after = load_i64(params, 3), load_i64(params, 4), load_i64(params, 5)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            i = (row + r) * row_step + col * col_step
            if col_step == 0:
                m, left, right = load_i32(multipliers, i), load_i32(lefts, i), load_i32(rights, i)
                for c in range(cols):
                    store_32(line, c, _add(fixed_point(load_i32(line, c), m, left, right), after, saturating))
            else:
                for c in range(cols):
                    m, left, right = (
                        load_i32(multipliers, i + c),
                        load_i32(lefts, i + c),
                        load_i32(rights, i + c),
                    )
                    store_32(line, c, _add(fixed_point(load_i32(line, c), m, left, right), after, saturating))

    return scale


def _make_legacy_scale(stamp: int):
    @compile_c(SIGNATURE)
    def legacy_scale(
        tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs
    ):
        """RDP((x + offset) * mult, shift). params: offsets, multipliers, row step, column step, shift."""
        _ = stamp
        offsets, mults = pointer_at(params, 0), pointer_at(params, 1)
        row_step, col_step, shift = load_i64(params, 2), load_i64(params, 3), load_i64(params, 4)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            i = (row + r) * row_step + col * col_step
            for c in range(cols):
                j = i + c * col_step
                x = fp.wrap(load_i32(line, c) + load_i32(offsets, j), 32)
                store_32(line, c, fp.divide_by_pot(fp.wrap(x * load_i32(mults, j), 32), shift))

    return legacy_scale


def _make_tanh(stamp: int):
    @compile_c(SIGNATURE)
    def tanh(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs):
        """Integer tanh. params: zero, amplitude, 1/amplitude and its doublings, amplitude and its halvings."""
        _ = stamp
        zero, amplitude = load_i64(params, 0), load_i64(params, 1)
        inverse, doublings = load_i64(params, 2), load_i64(params, 3)
        factor, halvings = load_i64(params, 4), load_i64(params, 5)
        low, high = zero - 8 * amplitude, zero + 8 * amplitude
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            for c in range(cols):
                x = load_i32(line, c)
                t = fp.high_mul(fp.wrap(x - zero, 32), inverse, 32)
                u = fp.tanh(fp.multiply_by_pot(t, 28 - doublings, 32), 3, 32)
                y = zero + (fp.high_mul(u, factor, 32) >> (31 - halvings))
                y = zero - amplitude if x <= low else y
                store_32(line, c, zero + amplitude if x >= high else y)

    return tanh


def _make_logistic(stamp: int):
    @compile_c(SIGNATURE)
    def logistic(
        tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs
    ):
        """Integer logistic function. params: integer bits."""
        _ = stamp
        integer_bits = load_i64(params, 0)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            for c in range(cols):
                store_32(line, c, fp.logistic(load_i32(line, c), integer_bits, 32))

    return logistic


def _make_scale_single(stamp: int):
    @compile_c(SIGNATURE)
    def scale_single(
        tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs
    ):
        """One rounding, ties upwards. params: multipliers, total shifts, row step, column step, offset."""
        _ = stamp
        multipliers, shifts = pointer_at(params, 0), pointer_at(params, 1)
        row_step, col_step, after = load_i64(params, 2), load_i64(params, 3), load_i64(params, 4)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            i = (row + r) * row_step + col * col_step
            for c in range(cols):
                m, shift = load_i32(multipliers, i + c * col_step), load_i32(shifts, i + c * col_step)
                x = (load_i32(line, c) * m + (1 << (shift - 1))) >> shift
                store_32(line, c, _add(x, after, 1))

    return scale_single


def _make_scale_float(double: int, stamp: int):
    @compile_c(SIGNATURE)
    def scale_float(
        tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs
    ):
        """Round half to even. params: scales, row step, column step, zero point, lowest and highest result.

        float32: round(x * scale) + zero point; float64: round(x * scale + zero point). Bounds go before the
        rounding, where they change nothing (they are whole numbers) and keep the conversion defined.
        """
        _ = stamp
        scales, row_step, col_step = pointer_at(params, 0), load_i64(params, 1), load_i64(params, 2)
        zero, lo, hi = load_i64(params, 3), load_i64(params, 4), load_i64(params, 5)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            i = (row + r) * row_step + col * col_step
            for c in range(cols):
                x = np.int32(load_i32(line, c))
                if double:
                    y = np.float64(x) * load_f64(scales, i + c * col_step) + np.float64(zero)
                    y = min(max(y, np.float64(lo)), np.float64(hi))
                    store_32(line, c, np.int64(round_even(y)))
                else:
                    z = np.float32(x) * load_f32(scales, i + c * col_step)
                    z = min(max(z, np.float32(lo - zero)), np.float32(hi - zero))
                    store_32(line, c, np.int64(np.int32(round_even(z))) + zero)

    return scale_float


def _make_lut(stamp: int):
    @compile_c(SIGNATURE)
    def lut(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs):
        """Table look-up. params: 256 bytes, lowest and highest input."""
        _ = stamp
        table, lo, hi = pointer_at(params, 0), load_i64(params, 1), load_i64(params, 2)
        for r in range(rows):
            line = offset(tile, 4 * r * ld)
            for c in range(cols):
                store_32(line, c, load_u8(table, min(max(load_i32(line, c), lo), hi) - lo))

    return lut


def _make_store_float(stamp: int):
    @compile_c(SIGNATURE)
    def store_float(
        tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs
    ):
        """float32(x) * scale. params: scales, row step, column step."""
        _ = stamp
        scales, row_step, col_step = pointer_at(params, 0), load_i64(params, 1), load_i64(params, 2)
        for r in range(rows):
            line, to = offset(tile, 4 * r * ld), offset(out, r * out_rs)
            i = (row + r) * row_step + col * col_step
            for c in range(cols):
                y = np.float32(np.int32(load_i32(line, c))) * load_f32(scales, i + c * col_step)
                store_f32(offset(to, c * out_cs), 0, y)

    return store_float


# ---- last stages: store -----------------------------------------------------------------------------------
def _make_store(bits: int, stamp: int):
    @compile_c(SIGNATURE)
    def store(tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs):
        """Clamp to [lo, hi] and keep the low `bits`. params: lo, hi, accumulate (32 bits only)."""
        _ = stamp
        lo, hi, accumulate = load_i64(params, 0), load_i64(params, 1), load_i64(params, 2)
        for r in range(rows):
            line, to = offset(tile, 4 * r * ld), offset(out, r * out_rs)
            if bits == 32:
                for c in range(cols):
                    x = load_i32(line, c)
                    here = offset(to, c * out_cs)
                    if accumulate:
                        x += load_i32(here, 0)
                    store_32(here, 0, x)
            elif bits == 16:
                for c in range(cols):
                    store_16(offset(to, c * out_cs), 0, min(max(load_i32(line, c), lo), hi))
            elif out_cs == 1:
                for c in range(cols):
                    store_8(to, c, min(max(load_i32(line, c), lo), hi))
            else:
                for c in range(cols):
                    store_8(to, c * out_cs, min(max(load_i32(line, c), lo), hi))

    return store


def _make_requantize_store(bits: int, by_row: int, stamp: int):
    @compile_c(SIGNATURE)
    def requantize_store(
        tile, ld, rows, cols, row, col, params, row_sums, col_factors, lzs, rzs, out, out_rs, out_cs
    ):
        """Scale, offset, clamp and store to contiguous rows. params: multipliers, right shifts, offset, lo, hi.

        For multipliers from 0 up and right shifts from 1 up; vectors are padded by 16 values.
        """
        _ = stamp
        first = 4 * (row if by_row else col)
        vector.requantize_rows(
            bits,
            by_row,
            (
                tile, ld, rows, cols, offset(pointer_at(params, 0), first), offset(pointer_at(params, 1), first),
                load_i64(params, 2), load_i64(params, 3), load_i64(params, 4), out, out_rs,
            ),
        )  # fmt: skip

    return requantize_store


_FACTORIES = {
    "bilinear": _make_bilinear,
    "bias": _make_bias,
    "clamp": _make_clamp,
    "scale": functools.partial(_make_scale, 0),
    "scale_saturating": functools.partial(_make_scale, 1),
    "legacy_scale": _make_legacy_scale,
    "tanh": _make_tanh,
    "logistic": _make_logistic,
    "scale_single": _make_scale_single,
    "scale_float32": functools.partial(_make_scale_float, 0),
    "scale_float64": functools.partial(_make_scale_float, 1),
    "lut": _make_lut,
    "store_float": _make_store_float,
    "store32": functools.partial(_make_store, 32),
    "store16": functools.partial(_make_store, 16),
    "store8": functools.partial(_make_store, 8),
    "requantize_store16": functools.partial(_make_requantize_store, 16, 0),
    "requantize_store8": functools.partial(_make_requantize_store, 8, 0),
    "requantize_store16_by_row": functools.partial(_make_requantize_store, 16, 1),
    "requantize_store8_by_row": functools.partial(_make_requantize_store, 8, 1),
}


@functools.cache
def routine(kind: str) -> Any:
    """Compiled routine of one kind (see `KINDS`)."""
    return _FACTORIES[kind](source_stamp())


KINDS = tuple(_FACTORIES)
