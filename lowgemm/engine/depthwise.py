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
from collections.abc import Iterator
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
    first_row,
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


def lines_together(taps: tuple[int, ...], step: tuple[int, ...]) -> int:
    """Lines of the result whose windows reach into the same registers, where lines are as far from one
    another as taps are; the arguments are those of `image.Windows`.
    """
    if taps[0] > 1:
        return 1
    return (FOUR * fours_of(taps[1]) - taps[1]) // step[1] + 1


def first_channels(channels: int) -> list[int]:
    """Where each block of 16 channels begins.

    A task takes 64 channels. If the last one has more than 48, and there are 64 in all, it takes the last 64,
    so that the lines of its image are read in whole registers.
    """
    firsts = []
    for task in range(0, channels, CHANNELS):
        left = channels - task
        if channels >= CHANNELS and left > CHANNELS - LANES:
            firsts += [min(task, channels - CHANNELS) + i for i in range(0, CHANNELS, LANES)]
        else:
            firsts += [max(0, min(task + i, channels - LANES)) for i in range(0, left, LANES)]
    return firsts


def arranged(weights: np.ndarray, bytes_of_weight: int, dtype: Any) -> np.ndarray:
    """Weights (lines, taps of a line, channels) as `multiply` reads them: (first line, blocks of channels,
    four lines, taps, 16 x 4), of some type.

    The first axis has the weights from line 0 of the registers on, from line 1 on, and so on as long as they
    fit.
    """
    lines, taps, channels = weights.shape
    blocks, fours = -(-channels // LANES), fours_of(lines)
    order = _interleaved(bytes_of_weight)
    firsts = FOUR * fours - lines + 1
    made = np.empty((firsts, blocks, fours, taps, FOUR * LANES), dtype)
    for line in range(firsts):
        padded = np.zeros((fours * FOUR, taps, max(channels, LANES)), made.dtype)
        padded[line : line + lines, :, :channels] = weights
        for block, first in enumerate(first_channels(channels)):
            part = padded[:, :, first : first + LANES].reshape(fours, FOUR, taps, LANES)
            made[line, block] = part.transpose(0, 2, 1, 3).reshape(fours, taps, FOUR * LANES)[:, :, order]
    return made


# ---- in vectors --------------------------------------------------------------------------------------------
def _unit(size: int, channels: int) -> int:
    """Bytes of the registers that unpack lines of so many channels: all that the CPU has, but no more than
    what is unpacked of two lines has a place for.
    """
    features = target()[1]
    widest = 64 if "avx512bw" in features else 32 if "avx2" in features else LANES
    return min(widest, channels, 64 if size == 1 else 32)


def _table(b: ir.IRBuilder, order: list[int], count: ir.Value) -> ir.Value | None:
    """Emit: a table for `vpermb`, where the CPU has that.

    LLVM makes eight unpackings of a table that it knows, which takes twice as long; that a count has no upper
    16 bits it does not know.
    """
    if "avx512vbmi" not in target()[1]:
        return None
    nothing = b.trunc(b.lshr(count, const(i64, 48)), i8)
    return b.add(ir.Constant(vec(i8, WIDE), order), splat(b, nothing, WIDE))


def _mixed(parts: list[ir.Value], table: ir.Value, b: ir.IRBuilder) -> ir.Value:
    """Emit: four times 16 bytes as one register in the order of a table."""
    pairs = [shuffle(b, parts[i], parts[i + 1], list(range(2 * LANES))) for i in (0, 2)]
    whole = shuffle(b, *pairs, list(range(WIDE)))
    return call_intrinsic(b, "llvm.x86.avx512.permvar.qi.512", whole.type, [whole, table])


def _unpacked(b: ir.IRBuilder, x: ir.Value, y: ir.Value, unit: int) -> list[ir.Value]:
    """Emit: of each 16 bytes the first halves, and the second halves, in turns of `unit` bytes of `x` and of
    `y`: an instruction each.
    """
    n, half = x.type.count, LANES // 2
    return [
        shuffle(b, x, y, [
            part + first + at + of + i
            for part in range(0, n, LANES) for at in range(0, half, unit) for of in (0, n) for i in range(unit)
        ])
        for first in (0, half)
    ]  # fmt: skip


def _unpacked_lines(size: int, lines: list[ir.Value], b: ir.IRBuilder) -> list[tuple[int, ir.Value]]:
    """Emit: four lines of some channels interleaved, as pieces, with the byte of the registers (16 channels
    each) that each begins at.

    Registers are unpacked within each 16 bytes. So that channels come in order, the 32 bits (64, with 16-bit
    weights) that will stand in the same piece are brought into turn before.
    """
    n = lines[0].type.count
    parts, unit = n // LANES, 4 if size == 1 else 8
    word, words = ir.IntType(8 * unit), n // unit
    if parts > 1:
        order = [i * parts + part for part in range(parts) for i in range(words // parts)]
        turned = [shuffle(b, b.bitcast(line, vec(word, words)), None, order) for line in lines]
        lines = [b.bitcast(line, vec(i8, n)) for line in turned]
    pairs = [_unpacked(b, lines[i], lines[i + 1], 1) for i in (0, 2)]
    if size == 1:
        pieces = [piece for pair in zip(*pairs, strict=True) for piece in _unpacked(b, *pair, 2)]
        return [(n * i, piece) for i, piece in enumerate(pieces)]
    found = []
    for half, (first, second) in enumerate(pairs):
        for i, piece in enumerate((first, second)):
            channel = n // 2 * i
            found.append((channel // LANES * WIDE + channel % LANES * 2 + WIDE // 2 * half, piece))
    return found


def _emit_interleave(size: int, channels: int, b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    """Emit: `count` times the registers of `channels` channels, from four lines that each go on by a stride,
    with the bits of `flip` flipped; the registers of the next 16 channels are `apart` bytes behind.
    """
    flips, bits = b.icmp_signed("!=", a["flip"], const(i64, 0)), b.trunc(a["flip"], i8)
    starts = [*(a[f"line{i}"] for i in range(FOUR)), a["dst"]]
    steps = [*(a[f"stride{i}"] for i in range(FOUR)), const(i64, WIDE)]
    table, unit = _table(b, _interleaved(size), a["count"]), _unit(size, channels)

    def pieces(lines: list[ir.Value]) -> Iterator[tuple[int, ir.Value]]:
        n = unit if table is None else LANES
        for first in range(0, channels, n):
            parts = [load(b, vec(i8, n), at(b, line, first)) for line in lines]
            made = _unpacked_lines(size, parts, b) if table is None else [(0, _mixed(parts, table, b))]
            yield from ((first // LANES * WIDE + place, piece) for place, piece in made)

    # two loops: the flip of signed images would be one of five operations for all
    with b.if_else(flips) as ways:
        for way, flip in zip(ways, (bits, None), strict=True):
            with way, loop_of_pointers(b, a["count"], starts, steps) as (*lines, to):
                for place, made in pieces(lines):
                    register, byte = divmod(place, WIDE)
                    target_of = at(b, at(b, to, b.mul(a["apart"], const(i64, register))), byte)
                    n = made.type.count
                    store(b, made if flip is None else b.xor(made, splat(b, flip, n)), target_of, n)


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
    "apart",
)
_WINDOWS = ("columns", "step", "apart", "taps", "line", "lines", "weights", "start", "tile")


@intrinsic(prefer_literal=True)
def interleave_lines(typingctx, bytes_of_weight, channels, args):
    """`_emit_interleave` with the arguments `_INTERLEAVE`; `bytes_of_weight`, 1 or 2, and `channels` are
    constants.
    """
    size, some = bytes_of_weight.literal_value, channels.literal_value

    def codegen(context, builder, signature, values):
        a = arguments(context, builder, _INTERLEAVE, signature.args[2], values[2])
        _emit_interleave(size, some, builder, a)
        return context.get_dummy_value()

    return types.void(bytes_of_weight, channels, args), codegen


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
    def interleave_four(p, w, image, space, number, z, y, four, fours, col, cols, count, low, high, first):
        """Interleave lines 4 `four` ... of those that the windows of plane `z` and line `y` reach, of which
        there are 4 `fours`, for `cols` channels from `col` on: `count` columns, of which those from `low` to
        `high` are inside of the image; the first is at `first`.
        """
        filled, spare = offset(space, p.row_sums_at), offset(space, p.row_compensation_at)
        last, room, flip, begin = max(p.n - LANES, 0), w.room, p.lhs_flip, first + low
        outside = load_u8(filled, 0) ^ flip
        l0, s0 = line_of(w, image, number, z, y, FOUR * four, col, filled)
        l1, s1 = line_of(w, image, number, z, y, FOUR * four + 1, col, filled)
        l2, s2 = line_of(w, image, number, z, y, FOUR * four + 2, col, filled)
        l3, s3 = line_of(w, image, number, z, y, FOUR * four + 3, col, filled)
        apart, blocks = fours * count * WIDE, (cols + LANES - 1) // LANES
        to = offset(space, four * count * WIDE)
        for c in range(blocks):
            fill_registers(offset(to, c * apart), outside, low)
            fill_registers(offset(to, c * apart + WIDE * high), outside, count - high)
        if cols == CHANNELS:
            # all channels of a pixel before the next pixel: where pixels are a power of 2 apart, the first
            # level of the caches does not keep a line until its next 16 channels are read
            interleave_lines(
                size, CHANNELS,
                (
                    offset(l0, begin * s0), offset(l1, begin * s1), offset(l2, begin * s2),
                    offset(l3, begin * s3), s0, s1, s2, s3, high - low, flip, offset(to, WIDE * low), apart,
                ),
            )  # fmt: skip
            return
        safe = high - low
        if p.n < LANES:
            safe = _safe(image, room, l0, s0, begin, safe)
            safe = _safe(image, room, l1, s1, begin, safe)
            safe = _safe(image, room, l2, s2, begin, safe)
            safe = _safe(image, room, l3, s3, begin, safe)
        for c in range(blocks):
            # less than a register, so a line that is `filled` may be read there too
            shift = min(LANES * c, last - col)
            own = offset(to, c * apart)
            interleave_lines(
                size, LANES,
                (
                    offset(l0, begin * s0 + shift), offset(l1, begin * s1 + shift),
                    offset(l2, begin * s2 + shift), offset(l3, begin * s3 + shift), s0, s1, s2, s3, safe, flip,
                    offset(own, WIDE * low), 0,
                ),
            )  # fmt: skip
            for i in range(low + safe, high):
                _spared(image, room, l0, s0, first + i, spare)
                _spared(image, room, l1, s1, first + i, offset(spare, LANES))
                _spared(image, room, l2, s2, first + i, offset(spare, 2 * LANES))
                _spared(image, room, l3, s3, first + i, offset(spare, 3 * LANES))
                interleave_lines(
                    size, LANES,
                    (
                        spare, offset(spare, LANES), offset(spare, 2 * LANES), offset(spare, 3 * LANES),
                        0, 0, 0, 0, 1, flip, offset(own, WIDE * i), 0,
                    ),
                )  # fmt: skip

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
            if windows >= AT_ONCE and (done == 0 or windows - done > HALF):
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
        if p.n >= CHANNELS and p.n - part * CHANNELS > CHANNELS - LANES:  # as `first_channels` says
            col = min(part * CHANNELS, p.n - CHANNELS)
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
                    p, w, image, space, number, z, y, four, fours, col, cols, count, low, high, first
                )
            # whole lines may follow one another in the result: the stages take as many as a tile holds
            in_tile = 1
            if windows_of_line == w.out_width and w.apart_y == 1:
                in_tile = WINDOWS // windows_of_line
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
                row = first_row(w, number, z, y, line) + x0
                tile_to_stages(p, tile, CHANNELS, some * windows_of_line, cols, row, col, by_row, out)

    return depthwise_block


@functools.cache
def block_routine(bits: int) -> Routine:
    """The routine for a CPU with `vpdpbusd` on registers of that many bits, or for any (0)."""
    return _make(bits, bits)
