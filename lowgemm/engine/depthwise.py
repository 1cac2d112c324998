"""Convolutions in which each channel has one filter of its own, in vectors of channels.

As a product of patches and filters each would have a single column. Here a register holds 16 channels. For a
line of the result:

    1. the lines of the image that the windows reach are interleaved, four at a time: a register has 16
       channels x 4 bytes of one column of pixels. What lies outside of the image is the zero point.
    2. for each window these registers are multiplied with as many of weights, and the products of each
       channel's four bytes added to its int32 sum: by `vpdpbusd` where the CPU has it, else in 16 bits
       (`pmaddwd`).
    3. the sums go through the output stages while they are in L1.

Interleaving takes as long as multiplying. Windows of three lines leave room for one line more in a register,
those of five for three: the next lines of the result that fit are computed from the same registers, with
weights that begin one line lower (`lines_together`).

Sums begin with the bias of columns less the image's zero point times the sum of the channel's weights.
Channels come in blocks of 16. The last block overlaps the one before, so every vector is whole; with fewer
than 16 channels in all it reads what follows in the image.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.engine.image import image_at
from lowgemm.engine.line_loop import (
    CHANNELS,
    WIDE,
    WINDOWS,
    arguments,
    columns_of,
    dot,
    fill_registers,
    line_of,
    lines_of,
    loop_of_pointers,
    loop_of_taps,
    tile_to_stages,
)
from lowgemm.engine.records import plan_at
from lowgemm.jit.memory import as_address, load_u8, offset, store_8
from lowgemm.jit.routine import Routine, inner, routine
from lowgemm.jit.target import target
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i16,
    i32,
    i64,
    load,
    shuffle,
    splat,
    store,
    vec,
)

#: Channels of a register, and lines that are interleaved.
LANES, FOUR = 16, 4
#: Windows whose sums are in registers at a time, on a long line and on a short one.
AT_ONCE, HALF = 8, 4


def _interleaved(bytes_of_weight: int) -> list[int]:
    """Which of 4 x 16 bytes of a column comes where: with 8-bit weights the four of a channel together, else
    two and two.
    """
    if bytes_of_weight == 1:
        return [t * LANES + c for c in range(LANES) for t in range(FOUR)]
    return [(2 * half + t) * LANES + c for half in range(2) for c in range(LANES) for t in range(2)]


def fours_of(lines: int) -> int:
    """Registers of four lines that hold so many."""
    return -(-lines // FOUR)


def lines_together(taps: tuple[int, ...], step: tuple[int, ...], apart: tuple[int, ...]) -> int:
    """Lines of the result whose windows reach into the same registers; the arguments are those of
    `image.Windows`.
    """
    if taps[0] > 1 or apart[1] > 1:
        return 1
    return (FOUR * fours_of(taps[1]) - taps[1]) // step[1] + 1


def arranged(weights: np.ndarray, bytes_of_weight: int) -> np.ndarray:
    """Weights (lines, taps of a line, channels) as `multiply` reads them: (first line, blocks of channels,
    four lines, taps, 16 x 4).

    The first axis has the weights from line 0 of the registers on, from line 1 on, and so on as long as they
    fit.
    """
    lines, taps, channels = weights.shape
    blocks, fours = -(-channels // LANES), fours_of(lines)
    order = _interleaved(bytes_of_weight)
    firsts = FOUR * fours - lines + 1
    made = np.empty(
        (firsts, blocks, fours, taps, FOUR * LANES), np.int16 if bytes_of_weight == 2 else np.int8
    )
    for line in range(firsts):
        padded = np.zeros((fours * FOUR, taps, max(channels, LANES)), made.dtype)
        padded[line : line + lines, :, :channels] = weights
        for block in range(blocks):
            first = max(0, min(block * LANES, channels - LANES))
            part = padded[:, :, first : first + LANES].reshape(fours, FOUR, taps, LANES)
            made[line, block] = part.transpose(0, 2, 1, 3).reshape(fours, taps, FOUR * LANES)[:, :, order]
    return made


# ---- in vectors --------------------------------------------------------------------------------------------
def _mixed(order: list[int], parts: list[ir.Value], by_table: ir.Value | None, b: ir.IRBuilder) -> ir.Value:
    """Emit: four times 16 bytes as one register in that order."""
    pairs = [shuffle(b, parts[i], parts[i + 1], list(range(2 * LANES))) for i in (0, 2)]
    whole = shuffle(b, *pairs, list(range(WIDE)))
    if by_table is None:
        return shuffle(b, whole, None, order)
    return call_intrinsic(b, "llvm.x86.avx512.permvar.qi.512", whole.type, [whole, by_table])


def _emit_interleave(order: list[int], b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    """Emit: `count` registers of 4 x 16 bytes, from four addresses that each go on by a stride; with the bits
    of `flip` flipped.
    """
    flips, bits = b.icmp_signed("!=", a["flip"], const(i64, 0)), splat(b, b.trunc(a["flip"], i8), WIDE)
    starts = [*(a[f"line{i}"] for i in range(FOUR)), a["dst"]]
    steps = [*(a[f"stride{i}"] for i in range(FOUR)), const(i64, WIDE)]
    table = None
    if "avx512vbmi" in target()[1]:
        # `vpermb` by a table. LLVM makes eight unpackings of a table that it knows, which takes twice as
        # long; that a count has no upper 16 bits it does not know.
        nothing = b.trunc(b.lshr(a["count"], const(i64, 48)), i8)
        table = b.add(ir.Constant(vec(i8, WIDE), order), splat(b, nothing, WIDE))
    # two loops: the flip of signed images would be one of five operations for all
    with b.if_else(flips) as ways:
        for way, flip in zip(ways, (bits, None), strict=True):
            with way, loop_of_pointers(b, a["count"], starts, steps) as (*lines, to):
                made = _mixed(order, [load(b, vec(i8, LANES), line) for line in lines], table, b)
                store(b, made if flip is None else b.xor(made, flip), to, WIDE)


def _emit_windows(bits: int, count: int, b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    """Emit: the sums of `count` neighbouring windows for 16 channels, to a tile.

    `step` bytes lead from a window's columns to the next one's; the others are as in `loop_of_taps`.
    """
    size = WIDE if bits else 2 * WIDE
    accs = [load(b, vec(i32, LANES), a["start"], 4)] * count
    with loop_of_taps(b, a, accs) as (number, column, sums):
        weights = at(b, a["weights"], b.mul(number, const(i64, size)))
        parts = [
            load(b, vec(i8, WIDE) if bits else vec(i16, WIDE // 2), at(b, weights, first), WIDE)
            for first in range(0, size, WIDE)
        ]
        for i in range(count):
            x = load(b, vec(i8, WIDE), at(b, column, b.mul(a["step"], const(i64, i))), WIDE)
            for half, w in enumerate(parts):
                some = WIDE // len(parts)
                of_half = shuffle(b, x, None, list(range(some * half, some * half + some)))
                sums[i] = dot(bits, b, sums[i], of_half, w)
    for i, acc in enumerate(accs):
        store(b, acc, at(b, a["tile"], 4 * CHANNELS * i), 4)


_INTERLEAVE = (
    *(f"line{i}" for i in range(FOUR)),
    *(f"stride{i}" for i in range(FOUR)),
    "count",
    "flip",
    "dst",
)
_WINDOWS = ("columns", "step", "apart", "taps", "line", "lines", "weights", "start", "tile")


@intrinsic(prefer_literal=True)
def interleave_lines(typingctx, bytes_of_weight, args):
    """`_emit_interleave` with the arguments `_INTERLEAVE`; `bytes_of_weight`, 1 or 2, is a constant."""
    order = _interleaved(bytes_of_weight.literal_value)

    def codegen(context, builder, signature, values):
        _emit_interleave(
            order, builder, arguments(context, builder, _INTERLEAVE, signature.args[1], values[1])
        )
        return context.get_dummy_value()

    return types.void(bytes_of_weight, args), codegen


@intrinsic(prefer_literal=True)
def multiply_windows(typingctx, bits, count, args):
    """`_emit_windows` with the arguments `_WINDOWS`."""
    of_dot, windows = bits.literal_value, count.literal_value

    def codegen(context, builder, signature, values):
        a = arguments(context, builder, _WINDOWS, signature.args[2], values[2])
        _emit_windows(of_dot, windows, builder, a)
        return context.get_dummy_value()

    return types.void(bits, count, args), codegen


# ---- a block of the result: windows of some lines, some channels -------------------------------------------
@inner
def _safe(image, room, line, step, x, count):
    """How many of `count` vectors, `step` bytes apart from pixel `x` of a line on, do not reach behind the
    image.
    """
    if step == 0:
        return count
    left = as_address(image) + room - as_address(line) - x * step - LANES
    return min(count, max(0, (left + step) // step))


@inner
def _spared(image, room, line, step, x, spare):
    """Copy 16 channels of a pixel, or as many as there are before the end of the image, to `spare`."""
    source = offset(line, x * step)
    valid = LANES if step == 0 else min(LANES, as_address(image) + room - as_address(source))
    for c in range(LANES):
        value = 0
        if c < valid:
            value = load_u8(source, c)
        store_8(spare, c, value)


def _make_interleave(size: int) -> Any:
    @inner
    def interleave_four(p, w, image, space, number, z, y, four, fours, col, blocks, count, low, high, first):
        """Interleave lines 4 `four` ... of those that the windows of plane `z` and line `y` reach, of which
        there are 4 `fours`, for `blocks` registers of channels from `col` on: `count` columns, of which those
        from `low` to `high` are inside of the image; the first is at `first`.
        """
        filled, spare = offset(space, p.row_sums_at), offset(space, p.row_compensation_at)
        last, room, flip, begin = max(p.n - LANES, 0), w.room, p.lhs_flip, first + low
        outside = load_u8(filled, 0) ^ flip
        l0, s0 = line_of(w, image, number, z, y, FOUR * four, col, filled)
        l1, s1 = line_of(w, image, number, z, y, FOUR * four + 1, col, filled)
        l2, s2 = line_of(w, image, number, z, y, FOUR * four + 2, col, filled)
        l3, s3 = line_of(w, image, number, z, y, FOUR * four + 3, col, filled)
        safe = high - low
        if p.n < LANES:
            safe = _safe(image, room, l0, s0, begin, safe)
            safe = _safe(image, room, l1, s1, begin, safe)
            safe = _safe(image, room, l2, s2, begin, safe)
            safe = _safe(image, room, l3, s3, begin, safe)
        for c in range(blocks):
            # less than a register, so a line that is `filled` may be read there too
            shift = min(LANES * c, last - col)
            to = offset(space, (c * fours + four) * count * WIDE)
            fill_registers(to, outside, low)
            interleave_lines(
                size,
                (
                    offset(l0, begin * s0 + shift), offset(l1, begin * s1 + shift),
                    offset(l2, begin * s2 + shift), offset(l3, begin * s3 + shift), s0, s1, s2, s3, safe, flip,
                    offset(to, WIDE * low),
                ),
            )  # fmt: skip
            for i in range(low + safe, high):
                _spared(image, room, l0, s0, first + i, spare)
                _spared(image, room, l1, s1, first + i, offset(spare, LANES))
                _spared(image, room, l2, s2, first + i, offset(spare, 2 * LANES))
                _spared(image, room, l3, s3, first + i, offset(spare, 3 * LANES))
                interleave_lines(
                    size,
                    (
                        spare, offset(spare, LANES), offset(spare, 2 * LANES), offset(spare, 3 * LANES),
                        0, 0, 0, 0, 1, flip, offset(to, WIDE * i),
                    ),
                )  # fmt: skip
            fill_registers(offset(to, WIDE * high), outside, count - high)

    return interleave_four


def _make_multiply(bits: int) -> Any:
    @inner
    def multiply(registers, step, apart, taps, line, lines, weights, start, tile, windows):
        """The sums of `windows` windows of a line for 16 channels; the others are arguments of
        `multiply_windows`.
        """
        done = 0
        while done < windows:
            # the last windows are done with some of those before, a second time
            if windows >= AT_ONCE:
                i = min(done, windows - AT_ONCE)
                to = offset(tile, 4 * CHANNELS * i)
                multiply_windows(
                    bits,
                    AT_ONCE,
                    (offset(registers, i * step), step, apart, taps, line, lines, weights, start, to),
                )
                done = i + AT_ONCE
            elif windows >= HALF:
                i = min(done, windows - HALF)
                to = offset(tile, 4 * CHANNELS * i)
                multiply_windows(
                    bits,
                    HALF,
                    (offset(registers, i * step), step, apart, taps, line, lines, weights, start, to),
                )
                done = i + HALF
            else:
                to = offset(tile, 4 * CHANNELS * done)
                multiply_windows(
                    bits,
                    1,
                    (offset(registers, done * step), step, apart, taps, line, lines, weights, start, to),
                )
                done += 1

    return multiply


def _make(bits: int, key: Any) -> Routine:
    size = 1 if bits else 2
    weights_bytes = WIDE * size

    interleave_four, multiply = _make_interleave(size), _make_multiply(bits)

    @routine("ppppppnpnn", key)
    def depthwise_block(plan, windows, image, weights, starts, space, out, by_row, lines_of_windows, part):
        """Block `part` of the channels, for the lines of windows number `lines_of_windows` of those that are
        computed together; `space` is the thread's memory, `out` the address of the result.

        `starts` points to what `loop_start` stored. `by_row` points to the bias of every window, if there is
        one.
        """
        p, w = plan_at(plan), image_at(windows)
        tile = offset(space, p.tile_at)
        number, z, y, lines = lines_of(w, lines_of_windows)
        last = max(p.n - LANES, 0)  # no register of channels begins behind it
        col = min(part * CHANNELS, last)
        cols = min(CHANNELS, p.n - col)
        blocks, all_blocks = (cols + LANES - 1) // LANES, (p.n + LANES - 1) // LANES
        fours = (w.taps_z * w.taps_y + FOUR - 1) // FOUR
        weights_of_block = fours * w.taps_x * weights_bytes
        step, apart = w.step_x * WIDE, w.apart_x * WIDE
        for x0 in range(0, w.out_width, WINDOWS):
            windows_of_line = min(WINDOWS, w.out_width - x0)
            count, low, high, first = columns_of(w, x0, windows_of_line)
            for four in range(fours):
                interleave_four(
                    p, w, image, space, number, z, y, four, fours, col, blocks, count, low, high, first
                )
            # whole lines follow one another in the result: the stages take as many as a tile holds
            in_tile = WINDOWS // windows_of_line if windows_of_line == w.out_width else 1
            for line in range(0, lines, in_tile):
                some = min(in_tile, lines - line)
                for i in range(some):
                    for c in range(blocks):
                        shift = min(LANES * c, last - col)
                        own = (
                            (line + i) * w.step_y * all_blocks + part * (CHANNELS // LANES) + c
                        ) * weights_of_block
                        multiply(
                            offset(space, c * fours * count * WIDE), step, apart, w.taps_x, count * WIDE,
                            fours, offset(weights, own), offset(starts, 4 * (col + shift)),
                            offset(tile, 4 * (CHANNELS * i * windows_of_line + shift)), windows_of_line,
                        )  # fmt: skip
                row = ((number * w.out_depth + z) * w.out_height + y + line) * w.out_width + x0
                tile_to_stages(p, tile, CHANNELS, some * windows_of_line, cols, row, col, by_row, out)

    return depthwise_block


@functools.cache
def block_routine(bits: int) -> Routine:
    """The routine for a CPU with `vpdpbusd` on registers of that many bits, or for any (0)."""
    return _make(bits, bits)
