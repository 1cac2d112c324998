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

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.engine.drivers import begin_state
from lowgemm.engine.image import image_at
from lowgemm.engine.records import STATE, plan_at, state_at
from lowgemm.jit.both_ends import next_number
from lowgemm.jit.memory import as_address, field_address, load_i32, load_u8, offset, stack, store_8, store_32
from lowgemm.jit.routine import Routine, call_address, inner, routine, unpack_words
from lowgemm.jit.target import target
from lowgemm.kernels import Kernel
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

#: Channels of a register, lines that are interleaved, and bytes of a register.
LANES, FOUR, WIDE = 16, 4, 64
#: Channels and windows of a block: its int32 tile has 8 KiB, which stay in L1.
CHANNELS, WINDOWS = 64, 32
#: Windows whose sums are in registers at a time, on a long line and on a short one.
AT_ONCE, HALF = 8, 4
_STATE_BYTES = STATE.itemsize


def dot_bits(kernel: Kernel) -> int:
    """Bits of the registers of `vpdpbusd`, or 0."""
    for feature, bits in (("avx512vnni", 512), ("avxvnni", 256)):
        if feature in kernel.features:
            return bits
    return 0


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
@contextlib.contextmanager
def _loop_of_pointers(
    b: ir.IRBuilder, count: ir.Value, starts: list[ir.Value], steps: list[ir.Value]
) -> Iterator[list[ir.Value]]:
    """Emit a loop of `count` turns over pointers that each go on by a step: LLVM would multiply each turn's
    number with each step.
    """
    fn, entry = b.function, b.block
    body, done = fn.append_basic_block("turn"), fn.append_basic_block("turns_done")
    zero, one = const(i64, 0), const(i64, 1)
    b.cbranch(b.icmp_signed(">", count, zero), body, done)
    b.position_at_end(body)
    number, places = b.phi(i64), [b.phi(start.type) for start in starts]
    yield places
    following = b.add(number, one)
    for phi, first, then in (
        (number, zero, following),
        *(
            (place, start, at(b, place, step))
            for place, start, step in zip(places, starts, steps, strict=True)
        ),
    ):
        phi.add_incoming(first, entry)
        phi.add_incoming(then, b.block)
    b.cbranch(b.icmp_signed("<", following, count), body, done)
    b.position_at_end(done)


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
            with way, _loop_of_pointers(b, a["count"], starts, steps) as (*lines, to):
                made = _mixed(order, [load(b, vec(i8, LANES), line) for line in lines], table, b)
                store(b, made if flip is None else b.xor(made, flip), to, WIDE)


def _dot(bits: int, b: ir.IRBuilder, acc: ir.Value, x: ir.Value, w: Any) -> ir.Value:
    """Emit: `acc` plus each channel's products; `w` is a register of bytes, or two of 16-bit weights."""
    if bits:
        lanes = bits // 32
        parts = []
        for first in range(0, LANES, lanes):
            cut = list(range(first, first + lanes))
            words = [shuffle(b, b.bitcast(v, vec(i32, LANES)), None, cut) for v in (x, w)]
            name = f"llvm.x86.avx512.vpdpbusd.{bits}"
            parts.append(call_intrinsic(b, name, vec(i32, lanes), [shuffle(b, acc, None, cut), *words]))
        return parts[0] if len(parts) == 1 else shuffle(b, *parts, list(range(LANES)))
    for half in range(2):
        values = shuffle(b, x, None, list(range(32 * half, 32 * half + 32)))
        products = b.mul(b.zext(values, vec(i32, 32)), b.sext(w[half], vec(i32, 32)))
        even, odd = (shuffle(b, products, None, list(range(i, 32, 2))) for i in range(2))
        acc = b.add(acc, b.add(even, odd))
    return acc


def _emit_windows(bits: int, count: int, b: ir.IRBuilder, a: dict[str, ir.Value]) -> None:
    """Emit: the sums of `count` neighbouring windows for 16 channels, to a tile.

    `columns` has the registers of the first window's first column, of which `step` bytes lead to the next
    window, `apart` to the next tap and `four` to the next four lines; there are `fours` of these, with `taps`
    taps each.
    """
    size = WIDE if bits else 2 * WIDE
    start = load(b, vec(i32, LANES), a["start"], 4)
    fn, entry = b.function, b.block
    total = b.mul(a["fours"], a["taps"])
    body, done = fn.append_basic_block("taps"), fn.append_basic_block("taps_done")
    b.branch(body)
    b.position_at_end(body)
    number, tap, place = (b.phi(i64) for _ in range(3))
    accs = [b.phi(vec(i32, LANES)) for _ in range(count)]
    for phi, value in ((number, const(i64, 0)), (tap, const(i64, 0)), (place, const(i64, 0))):
        phi.add_incoming(value, entry)
    for acc in accs:
        acc.add_incoming(start, entry)
    weights = at(b, a["weights"], b.mul(number, const(i64, size)))
    w = load(b, vec(i8, WIDE), weights, WIDE) if bits else [
        load(b, vec(i16, 32), at(b, weights, half * WIDE), WIDE) for half in range(2)
    ]  # fmt: skip
    column = at(b, a["columns"], place)
    after = []
    for i, acc in enumerate(accs):
        x = load(b, vec(i8, WIDE), at(b, column, b.mul(a["step"], const(i64, i))), WIDE)
        after.append(_dot(bits, b, acc, x, w))
    following = b.add(number, const(i64, 1))
    next_tap = b.add(tap, const(i64, 1))
    wraps = b.icmp_signed("==", next_tap, a["taps"])
    # from the last tap of four lines to the first of the next
    jump = b.sub(a["four"], b.mul(b.sub(a["taps"], const(i64, 1)), a["apart"]))
    next_place = b.add(place, b.select(wraps, jump, a["apart"]))
    next_tap = b.select(wraps, const(i64, 0), next_tap)
    for phi, value in (
        (number, following),
        (tap, next_tap),
        (place, next_place),
        *zip(accs, after, strict=True),
    ):
        phi.add_incoming(value, b.block)
    b.cbranch(b.icmp_signed("<", following, total), body, done)
    b.position_at_end(done)
    for i, acc in enumerate(after):
        store(b, acc, at(b, a["tile"], 4 * CHANNELS * i), 4)


def _args(
    context: Any, b: ir.IRBuilder, names: tuple[str, ...], ty: Any, value: ir.Value
) -> dict[str, ir.Value]:
    return dict(zip(names, unpack_words(context, b, ty, value), strict=True))


_INTERLEAVE = (
    *(f"line{i}" for i in range(FOUR)),
    *(f"stride{i}" for i in range(FOUR)),
    "count",
    "flip",
    "dst",
)
_WINDOWS = ("columns", "step", "apart", "taps", "four", "fours", "weights", "start", "tile")


@intrinsic(prefer_literal=True)
def interleave_lines(typingctx, bytes_of_weight, args):
    """`_emit_interleave` with the arguments `_INTERLEAVE`; `bytes_of_weight`, 1 or 2, is a constant."""
    order = _interleaved(bytes_of_weight.literal_value)

    def codegen(context, builder, signature, values):
        _emit_interleave(order, builder, _args(context, builder, _INTERLEAVE, signature.args[1], values[1]))
        return context.get_dummy_value()

    return types.void(bytes_of_weight, args), codegen


@intrinsic
def fill_registers(typingctx, dst, byte, count):
    """Write `count` registers of one byte's value."""

    def codegen(context, builder, signature, values):
        to, byte, count = values
        whole = splat(builder, builder.trunc(byte, i8), WIDE)
        with cgutils.for_range(builder, count) as loop:
            store(builder, whole, at(builder, to, builder.mul(loop.index, const(i64, WIDE))), WIDE)
        return context.get_dummy_value()

    return types.void(types.voidptr, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def multiply_windows(typingctx, bits, count, args):
    """`_emit_windows` with the arguments `_WINDOWS`."""
    of_dot, windows = bits.literal_value, count.literal_value

    def codegen(context, builder, signature, values):
        a = _args(context, builder, _WINDOWS, signature.args[2], values[2])
        _emit_windows(of_dot, windows, builder, a)
        return context.get_dummy_value()

    return types.void(bits, count, args), codegen


# ---- a block of the result: windows of some lines, some channels -------------------------------------------
@inner
def _line_of(w, image, number, z, y, line, channel, filled):
    """Where line number `line` of the lines from that on which the windows of line `y` in plane `z` reach
    begins, and bytes from pixel to pixel; `filled` and 0 if it lies outside.
    """
    tap_z, tap_y = 0, line
    if w.taps_z > 1:
        tap_z, tap_y = line // w.taps_y, line % w.taps_y
    at_z = z * w.step_z + tap_z * w.apart_z - w.front
    at_y = y * w.step_y + tap_y * w.apart_y - w.top
    if tap_z >= w.taps_z or at_z < 0 or at_z >= w.depth or at_y < 0 or at_y >= w.height:
        return filled, 0
    place = number * w.image_stride + at_z * w.depth_stride + at_y * w.height_stride + channel
    return offset(image, place), w.width_stride


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


def _make(bits: int, key: Any) -> Routine:
    size = 1 if bits else 2
    weights_bytes = WIDE * size

    @inner
    def multiply(registers, step, apart, taps, four, fours, weights, start, tile, windows):
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
                    (offset(registers, i * step), step, apart, taps, four, fours, weights, start, to),
                )
                done = i + AT_ONCE
            elif windows >= HALF:
                i = min(done, windows - HALF)
                to = offset(tile, 4 * CHANNELS * i)
                multiply_windows(
                    bits,
                    HALF,
                    (offset(registers, i * step), step, apart, taps, four, fours, weights, start, to),
                )
                done = i + HALF
            else:
                to = offset(tile, 4 * CHANNELS * done)
                multiply_windows(
                    bits,
                    1,
                    (offset(registers, done * step), step, apart, taps, four, fours, weights, start, to),
                )
                done += 1

    @routine("ppppppnpnn", key)
    def depthwise_block(plan, windows, image, weights, starts, space, out, by_row, lines_of_windows, part):
        """Block `part` of the channels, for the lines of windows number `lines_of_windows` of those that are
        computed together; `space` is the thread's memory, `out` the address of the result.

        `starts` points to what `depthwise_start` stored. `by_row` points to the bias of every window, if
        there is one.
        """
        p, w = plan_at(plan), image_at(windows)
        filled, spare, tile = (
            offset(space, p.row_sums_at),
            offset(space, p.row_compensation_at),
            offset(space, p.tile_at),
        )
        of_a_plane = (w.out_height + w.together - 1) // w.together
        plane, y = lines_of_windows // of_a_plane, lines_of_windows % of_a_plane * w.together
        lines = min(w.together, w.out_height - y)
        number, z = plane // w.out_depth, plane % w.out_depth
        last = max(p.n - LANES, 0)  # no register of channels begins behind it
        col = min(part * CHANNELS, last)
        cols = min(CHANNELS, p.n - col)
        blocks, all_blocks = (cols + LANES - 1) // LANES, (p.n + LANES - 1) // LANES
        fours = (w.taps_z * w.taps_y + FOUR - 1) // FOUR
        taps, step, apart, room, flip = w.taps_x, w.step_x, w.apart_x, w.room, p.lhs_flip
        outside = load_u8(filled, 0) ^ flip
        weights_of_block = fours * taps * weights_bytes
        for x0 in range(0, w.out_width, WINDOWS):
            count_of_windows = min(WINDOWS, w.out_width - x0)
            count = (count_of_windows - 1) * step + (taps - 1) * apart + 1
            first = x0 * step - w.left
            low = min(max(0 - first, 0), count)
            high = max(min(w.width - first, count), low)
            begin = first + low
            for four in range(fours):
                l0, s0 = _line_of(w, image, number, z, y, FOUR * four, col, filled)
                l1, s1 = _line_of(w, image, number, z, y, FOUR * four + 1, col, filled)
                l2, s2 = _line_of(w, image, number, z, y, FOUR * four + 2, col, filled)
                l3, s3 = _line_of(w, image, number, z, y, FOUR * four + 3, col, filled)
                safe = high - low
                if p.n < LANES:
                    safe = _safe(image, room, l0, s0, begin, safe)
                    safe = _safe(image, room, l1, s1, begin, safe)
                    safe = _safe(image, room, l2, s2, begin, safe)
                    safe = _safe(image, room, l3, s3, begin, safe)
                for c in range(blocks):
                    shift = min(
                        LANES * c, last - col
                    )  # less than a register, so a line that is `filled` may be read there too
                    to = offset(space, (c * fours + four) * count * WIDE)
                    fill_registers(to, outside, low)
                    interleave_lines(
                        size,
                        (
                            offset(l0, begin * s0 + shift), offset(l1, begin * s1 + shift),
                            offset(l2, begin * s2 + shift),
                            offset(l3, begin * s3 + shift), s0, s1, s2, s3, safe, flip,
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
                                spare, offset(spare, LANES), offset(spare, 2 * LANES),
                                offset(spare, 3 * LANES), 0, 0, 0, 0, 1, flip, offset(to, WIDE * i),
                            ),
                        )  # fmt: skip
                    fill_registers(offset(to, WIDE * high), outside, count - high)
            # whole lines follow one another in the result: the stages take as many as a tile holds
            in_tile = WINDOWS // count_of_windows if count_of_windows == w.out_width else 1
            for line in range(0, lines, in_tile):
                some = min(in_tile, lines - line)
                for i in range(some):
                    for c in range(blocks):
                        shift = min(LANES * c, last - col)
                        own = (
                            (line + i) * w.step_y * all_blocks + part * (CHANNELS // LANES) + c
                        ) * weights_of_block
                        multiply(
                            offset(space, c * fours * count * WIDE), step * WIDE, apart * WIDE, taps,
                            count * WIDE, fours, offset(weights, own), offset(starts, 4 * (col + shift)),
                            offset(tile, 4 * (CHANNELS * i * count_of_windows + shift)), count_of_windows,
                        )  # fmt: skip
                rows = some * count_of_windows
                row = (plane * w.out_height + y + line) * w.out_width + x0
                if p.has_row_bias != 0:  # one for each window, where a bias of axis 0 comes first
                    for i in range(rows):
                        bias = load_i32(by_row, row + i)
                        for c in range(cols):
                            store_32(tile, CHANNELS * i + c, load_i32(tile, CHANNELS * i + c) + bias)
                for i in range(p.stages):
                    call_address(
                        p.stage[i, 0],
                        (
                            as_address(tile), CHANNELS, rows, cols, row, col, p.stage[i, 1], 0, 0, 0, 0,
                            out + row * p.out_row_stride + col * p.out_col_stride, p.out_row_stride,
                            p.out_col_stride,
                        ),
                    )  # fmt: skip

    return depthwise_block


@functools.cache
def block_routine(bits: int) -> Routine:
    """The routine for a CPU with `vpdpbusd` on registers of that many bits, or for any (0)."""
    return _make(bits, bits)


@routine("nnppnnppn")
def depthwise_start(n, zero, bias, sums, has_bias, byte, starts, filled, lanes):
    """Store to `starts` what the sums of `n` channels begin with, and to `filled` a register full of the zero
    point's `byte`. `bias` holds an int32 a channel if `has_bias` is not 0.
    """
    for c in range(n):
        value = 0
        if has_bias != 0:
            value = load_i32(bias, c)
        store_32(starts, c, value - zero * load_i32(sums, c))
    for c in range(n, lanes):
        store_32(starts, c, 0)
    for i in range(WIDE):
        store_8(filled, i, byte)


# ---- one thread, and each of several -----------------------------------------------------------------------
@inner
def _start(p, s, space):
    call_address(
        p.compensation_routine,
        (
            p.n, s.lhs_zero, p.col_bias, s.rhs_sums, p.has_col_bias, s.lhs_zero + p.lhs_shift,
            space + p.on_the_fly_at, space + p.row_sums_at, LANES,
        ),
    )  # fmt: skip


@inner
def _block(plan, p, s, space, task):
    call_address(
        p.kernel,
        (
            plan, p.image, s.lhs, s.rhs, space + p.on_the_fly_at, space, s.out, p.row_bias,
            task // p.col_blocks, task % p.col_blocks,
        ),
    )  # fmt: skip


@routine("pnnnnnnnnn")
def depthwise_single(plan, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
    """A convolution on one thread; the arguments are those of `drivers.single`, the rhs is `arranged` weights
    and their sums.
    """
    p, s = plan_at(plan), state_at(stack(_STATE_BYTES))
    begin_state(p, s, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros)
    _start(p, s, s.scratch_of_workers)
    for task in range(p.row_blocks * p.col_blocks):
        _block(as_address(plan), p, s, s.scratch_of_workers, task)


@routine("ppn")
def depthwise_work(plan, state, worker):
    """What each worker of a convolution does; the arguments are those of `drivers.work`."""
    p, s = plan_at(plan), state_at(state)
    space = s.scratch_of_workers + worker * p.worker_bytes
    _start(p, s, space)
    total, counters = p.row_blocks * p.col_blocks, field_address(s, "blocks")
    while True:
        task = next_number(counters, worker, total)
        if task < 0:
            break
        _block(as_address(plan), p, s, space, task)
