"""Convolutions in groups of a few channels, in vectors of groups.

As a product of patches and filters each group would have few columns, and groups that share a product
multiply by 0 what is not theirs. Here a register holds neighbouring channels of a pixel, as they lie in the
image, and a lane of 32 bits four channels of one group (two where there is no `vpdpbusd`). For some lines of
the result:

    1. the lines of the image that the windows reach are copied, 64 channels of each pixel side by side. What
       lies outside of the image is the zero point.
    2. for each window and four outputs of each group there are four registers of sums: register j adds the
       products of all groups' channels with the weights of their output j. Each of the register's products
       counts.
    3. lanes of the same group are added, and the four registers transposed: a group's four outputs come side
       by side, as they are in the result.
    4. the sums go through the output stages while they are in L1.

The last block of 64 channels overlaps the one before, so every register is whole.
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
    columns_at_most,
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
from lowgemm.jit.memory import load_u8, offset
from lowgemm.jit.routine import Routine, inner, routine
from lowgemm.jit.target import target
from lowgemm.kernels.framework.irtools import at, const, i8, i16, i32, i64, load, shuffle, splat, store, vec

#: Outputs of a group come in multiples of this.
OUTPUTS = 4
#: Channels of a group that this loop takes; others have lanes that two groups would share, or registers that
#: do not hold a whole group.
SIZES = (4, 8, 16)
#: Bytes of registers of the image's lines that are computed together, and lines of the result at most: those
#: and the weights stay in L1.
_REGISTERS, _LINES = 16384, 4


def lanes_of(bits: int) -> int:
    """Lanes of a register of sums: those of `vpdpbusd`, or of 256 bits."""
    return bits // 32 if bits else 8


def _channels_of(bits: int) -> int:
    """Channels of the image in a register."""
    return lanes_of(bits) * (4 if bits else 2)


def takes(depth: int, groups: int, outputs: int) -> bool:
    """Whether the loop takes so many groups of `depth` channels, and so many outputs of all groups.

    On Arm it takes groups of 4 alone. The kernels there multiply four bytes in an instruction where the loop
    multiplies two, and of larger groups their products have fewer zeros. (Not measured.)
    """
    sizes = SIZES[:1] if "neon" in target()[1] else SIZES
    of_group = outputs // groups
    return depth in sizes and depth * groups >= CHANNELS and of_group % OUTPUTS == 0 and of_group <= depth


def outputs_at_once(of_group: int, bits: int) -> int:
    """Outputs of each group whose sums are computed at a time: all of a group's, so that its sums lie side by
    side, if there are registers for them.
    """
    most = _sums_at_once(bits)
    return next(n for n in (16, 8, OUTPUTS) if n <= most and of_group % n == 0)


def _sums_at_once(bits: int) -> int:
    """Registers of sums that leave room for weights: 16 of 32, or 8 of 16."""
    return 16 if bits == 512 else 8


def lines_together(taps: tuple[int, ...], step: tuple[int, ...], apart: tuple[int, ...]) -> int:
    """Lines of the result that are computed from the same copy of the image's lines, where lines are as far
    from one another as taps are; the arguments are those of `image.Windows`.
    """
    if taps[0] > 1:
        return 1
    fit = _REGISTERS // (WIDE * columns_at_most(taps[2], step[2], apart[2]))
    return max(1, min(_LINES, (fit - taps[1]) // step[1] + 1))


def lines_held(taps: tuple[int, ...], step: tuple[int, ...], together: int) -> int:
    """Lines of the image that so many lines of the result reach."""
    return taps[0] * taps[1] + (together - 1) * step[1]


def arranged(weights: np.ndarray, groups: int, bits: int, dtype: Any) -> np.ndarray:
    """Weights (taps, channels of a group, outputs) as `multiply` reads them: (blocks of channels, registers
    of a block, outputs of a group by as many as are computed at a time, taps, one output of these, channels
    of a register), of some type.
    """
    taps, depth, outputs = weights.shape
    channels, some, of_group = groups * depth, _channels_of(bits), outputs // groups
    at_once = outputs_at_once(of_group, bits)
    by_channel = weights.reshape(taps, depth, groups, of_group).transpose(2, 1, 3, 0)
    by_channel = by_channel.reshape(channels, of_group // at_once, at_once, taps)
    firsts = [min(first, channels - CHANNELS) for first in range(0, channels, CHANNELS)]
    blocks = np.stack([by_channel[first : first + CHANNELS] for first in firsts])
    split = blocks.reshape(len(firsts), CHANNELS // some, some, of_group // at_once, at_once, taps)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 5, 4, 2), dtype)


# ---- in vectors --------------------------------------------------------------------------------------------
def _neighbours_added(b: ir.IRBuilder, x: ir.Value, y: ir.Value, unit: int) -> ir.Value:
    """Emit: each two neighbouring units of lanes added; the sums of `x` and `y` take turns."""
    n = x.type.count
    first = [at + of + i for at in range(0, n, 2 * unit) for of in (0, n) for i in range(unit)]
    return b.add(shuffle(b, x, y, first), shuffle(b, x, y, [i + unit for i in first]))


def _zipped(b: ir.IRBuilder, x: ir.Value, y: ir.Value, unit: int) -> list[ir.Value]:
    """Emit: units of lanes of `x` and of `y` in turn, in two vectors."""
    n = x.type.count
    order = [at + of + i for at in range(0, n, unit) for of in (0, n) for i in range(unit)]
    return [shuffle(b, x, y, half) for half in (order[:n], order[n:])]


def _by_group(b: ir.IRBuilder, sums: list[ir.Value], lanes: int) -> list[ir.Value]:
    """Emit: from a vector for each output, where a group has `lanes` lanes, to a group's sums side by side,
    group after group. With more lanes than outputs a group's sums come several times.
    """
    streams, unit = [[acc] for acc in sums], 1
    while lanes > 1:
        pairs = zip(streams[::2], streams[1::2], strict=True) if len(streams) > 1 else [streams * 2]
        streams = [[_neighbours_added(b, x[0], y[0], unit)] for x, y in pairs]
        unit, lanes = 2 * unit, lanes // 2
    while len(streams) > 1:
        streams = [
            [part for u, v in zip(x, y, strict=True) for part in _zipped(b, u, v, unit)]
            for x, y in zip(streams[::2], streams[1::2], strict=True)
        ]
        unit *= 2
    return streams[0]


def _store_groups(
    b: ir.IRBuilder, vectors: list[ir.Value], outputs: int, copies: int, a: dict[str, ir.Value], row: ir.Value
) -> None:
    """Emit: `outputs` sums of each group, of which the vectors have so many copies, plus what they start
    with, to a row of the tile.
    """
    lanes = vectors[0].type.count

    def put(values: ir.Value, place: ir.Value) -> None:
        start = load(b, values.type, at(b, a["start"], place), 4)
        store(b, b.add(values, start), at(b, row, place), 4)

    def apart() -> None:
        for number in range(lanes * len(vectors) // (outputs * copies)):
            vector, lane = divmod(outputs * copies * number, lanes)
            part = shuffle(b, vectors[vector], None, list(range(lane, lane + outputs)))
            put(part, b.mul(a["piece"], const(i64, number)))

    if copies > 1:
        apart()
        return
    with b.if_else(b.icmp_signed("==", a["piece"], const(i64, 4 * outputs))) as (together, otherwise):
        with together:  # these are all outputs of a group: groups lie side by side in the tile too
            for number, vector in enumerate(vectors):
                put(vector, const(i64, 4 * lanes * number))
        with otherwise:
            apart()


def _emit_windows(
    bits: int, depth: int, outputs: int, count: int, b: ir.IRBuilder, a: dict[str, ir.Value]
) -> None:
    """Emit: the sums of `count` neighbouring windows for `outputs` outputs of each of a register's groups of
    `depth` channels, to a tile.

    `step` bytes lead from a window's columns to the next one's, `tile_step` from its row of the tile to the
    next one's, and `piece` from a group's sums to the next one's; the others are as in `loop_of_taps`.
    """
    lanes, channels = lanes_of(bits), _channels_of(bits)
    size = channels * (1 if bits else 2)
    accs = [const(vec(i32, lanes), 0)] * (count * outputs)
    weight = vec(i8 if bits else i16, channels)
    with loop_of_taps(b, a, accs) as (number, column, sums):
        weights = at(b, a["weights"], b.mul(number, const(i64, outputs * size)))
        of_output = [load(b, weight, at(b, weights, j * size), size) for j in range(outputs)]
        for i in range(count):
            pixel = at(b, column, b.mul(a["step"], const(i64, i)))
            x = load(b, vec(i8, channels), pixel, channels)
            for j, w in enumerate(of_output):
                sums[outputs * i + j] = dot(bits, b, sums[outputs * i + j], x, w)
    of_group = depth * lanes // channels
    for i in range(count):
        made = _by_group(b, accs[outputs * i : outputs * i + outputs], of_group)
        row = at(b, a["tile"], b.mul(a["tile_step"], const(i64, i)))
        _store_groups(b, made, outputs, max(1, of_group // outputs), a, row)


_COPY = ("source", "stride", "count", "flip", "dst")
_WINDOWS = (
    "columns", "step", "apart", "taps", "line", "lines", "weights", "start", "piece", "tile", "tile_step",
)  # fmt: skip


@intrinsic
def copy_registers(typingctx, args):
    """Copy `count` times 64 bytes, of which the first are at `source` and the others a `stride` apart, with
    the bits of `flip` flipped; the arguments are `_COPY`.
    """

    def codegen(context, builder, signature, values):
        a = arguments(context, builder, _COPY, signature.args[0], values[0])
        flip = splat(builder, builder.trunc(a["flip"], i8), WIDE)
        places = [a["source"], a["dst"]], [a["stride"], const(i64, WIDE)]
        with loop_of_pointers(builder, a["count"], *places) as (source, to):
            store(builder, builder.xor(load(builder, vec(i8, WIDE), source), flip), to, WIDE)
        return context.get_dummy_value()

    return types.void(args), codegen


@intrinsic(prefer_literal=True)
def multiply_groups(typingctx, bits, depth, outputs, count, args):
    """`_emit_windows` with the arguments `_WINDOWS`."""
    numbers = [number.literal_value for number in (bits, depth, outputs, count)]

    def codegen(context, builder, signature, values):
        a = arguments(context, builder, _WINDOWS, signature.args[4], values[4])
        _emit_windows(*numbers, builder, a)
        return context.get_dummy_value()

    return types.void(bits, depth, outputs, count, args), codegen


# ---- a block of the result: windows of some lines, the outputs of 64 channels -------------------------------
@inner
def _copy_lines(p, w, image, filled, to, number, z, y, lines, channel, count, low, high, first):
    """Copy 64 channels from `channel` on of `lines` lines that the windows of plane `z` and line `y` reach:
    `count` columns, of which those from `low` to `high` are inside of the image; the first is at `first`.
    Lines outside of it are read from `filled`, a register full of the zero point.
    """
    outside = load_u8(filled, 0) ^ p.lhs_flip
    for line in range(lines):
        source, stride = line_of(w, image, number, z, y, line, channel, filled)
        at_line = offset(to, line * count * WIDE)
        fill_registers(at_line, outside, low)
        begin = offset(source, (first + low) * stride)
        copy_registers((begin, stride, high - low, p.lhs_flip, offset(at_line, WIDE * low)))
        fill_registers(offset(at_line, WIDE * high), outside, count - high)


def _make_multiply(bits: int, depth: int, outputs: int) -> Any:
    at_once = _sums_at_once(bits) // outputs

    @inner
    def multiply(columns, step, apart, taps, line, lines, weights, start, piece, tile, tile_step, windows):
        """The sums of `windows` windows of a line; the others are arguments of `multiply_groups`."""
        done = 0
        while done < windows:
            if windows >= at_once:  # the last windows are done with some of those before, a second time
                i = min(done, windows - at_once)
                multiply_groups(
                    bits, depth, outputs, at_once,
                    (offset(columns, i * step), step, apart, taps, line, lines, weights, start, piece,
                     offset(tile, i * tile_step), tile_step),
                )  # fmt: skip
                done = i + at_once
            else:
                multiply_groups(
                    bits, depth, outputs, 1,
                    (offset(columns, done * step), step, apart, taps, line, lines, weights, start, piece,
                     offset(tile, done * tile_step), tile_step),
                )  # fmt: skip
                done += 1

    return multiply


def _make(bits: int, depth: int, outputs: int, key: Any) -> Routine:
    multiply = _make_multiply(bits, depth, outputs)
    channels = _channels_of(bits)
    registers, groups = CHANNELS // channels, channels // depth
    of_tap = outputs * channels * (1 if bits else 2)

    @routine("ppppppnpnn", key)
    def grouped_block(plan, windows, image, weights, starts, space, out, by_row, lines_of_windows, part):
        """Lines of windows number `lines_of_windows`, block `part` of the channels. `starts` points to what
        `loop_start` stored, and `by_row` to the bias of every window, if there is one; all arguments are as
        in `depthwise.depthwise_block`.
        """
        p, w = plan_at(plan), image_at(windows)
        tile, filled = offset(space, p.tile_at), offset(space, p.row_sums_at)
        number, z, y, lines = lines_of(w, lines_of_windows)
        channel = min(part * CHANNELS, w.run - CHANNELS)
        of_group = p.n * depth // w.run
        col, cols, turns = channel // depth * of_group, CHANNELS // depth * of_group, of_group // outputs
        taps = w.taps_z * w.taps_y
        weights_of_turn = taps * w.taps_x * of_tap
        own = offset(weights, part * registers * turns * weights_of_turn)
        step, apart = w.step_x * WIDE, w.apart_x * WIDE
        for x0 in range(0, w.out_width, WINDOWS):
            windows_of_line = min(WINDOWS, w.out_width - x0)
            count, low, high, first = columns_of(w, x0, windows_of_line)
            held = taps + (lines - 1) * w.step_y
            _copy_lines(p, w, image, filled, space, number, z, y, held, channel, count, low, high, first)
            # whole lines may follow one another in the result: the stages take as many as a tile holds
            in_tile = 1
            if windows_of_line == w.out_width and w.apart_y == 1:
                in_tile = WINDOWS // windows_of_line
            for line in range(0, lines, in_tile):
                some = min(in_tile, lines - line)
                for i in range(some):
                    columns = offset(space, (line + i) * w.step_y * count * WIDE)
                    row = offset(tile, 4 * cols * i * windows_of_line)
                    for k in range(registers * turns):
                        register, turn = k // turns, k % turns
                        output = 4 * (register * groups * of_group + turn * outputs)
                        multiply(
                            offset(columns, register * channels), step, apart, w.taps_x, count * WIDE, taps,
                            offset(own, k * weights_of_turn), offset(starts, 4 * col + output), 4 * of_group,
                            offset(row, output), 4 * cols, windows_of_line,
                        )  # fmt: skip
                at_row = first_row(w, number, z, y, line) + x0
                tile_to_stages(p, tile, cols, some * windows_of_line, cols, at_row, col, by_row, out)

    return grouped_block


@functools.cache
def block_routine(bits: int, depth: int, outputs: int) -> Routine:
    """The routine for groups of `depth` channels, of which `outputs` outputs are computed at a time, on a CPU
    with `vpdpbusd` on registers of that many bits, or on any (0).
    """
    return _make(bits, depth, outputs, (bits, depth, outputs))
