"""What the loops of depthwise and of grouped convolutions share: they go line by line, in vectors of
channels.

A task is a block of channels for some lines of the result that are computed together. For each run of
windows on these lines, the loop brings the lines of the image that they reach into registers side by side in
the thread's memory, one for each column of pixels; what lies outside of the image is the zero point. Then it
multiplies them with weights into a tile of int32, which the output stages take while it is in L1.

Sums begin with the bias of columns less the image's zero point times the sum of the weights.

Next files to open: `depthwise.py` and `grouped.py`, what is in the registers and how they are multiplied;
`loop_plan.py`, the plan.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.engine.drivers import begin_state
from lowgemm.engine.records import STATE, plan_at, state_at
from lowgemm.jit.both_ends import next_number
from lowgemm.jit.memory import as_address, field_address, load_i32, offset, stack, store_8, store_32
from lowgemm.jit.routine import call_address, inner, routine, unpack_words
from lowgemm.kernels import Kernel
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i32,
    i64,
    shuffle,
    splat,
    store,
    vec,
)

#: Bytes of a register, and channels of the image in a block.
WIDE, CHANNELS = 64, 64
#: Windows of a block: its int32 tile has 8 KiB, which stay in L1.
WINDOWS = 32
_STATE_BYTES = STATE.itemsize


def dot_bits(kernel: Kernel) -> int:
    """Bits of the registers of `vpdpbusd`, or 0."""
    for feature, bits in (("avx512vnni", 512), ("avxvnni", 256)):
        if feature in kernel.features:
            return bits
    return 0


def columns_at_most(taps: int, step: int, apart: int) -> int:
    """Columns of pixels that the windows of a block reach at most."""
    return (WINDOWS - 1) * step + (taps - 1) * apart + 1


# ---- in vectors --------------------------------------------------------------------------------------------
def arguments(
    context: Any, b: ir.IRBuilder, names: tuple[str, ...], ty: Any, value: ir.Value
) -> dict[str, ir.Value]:
    """The words of a tuple by their names."""
    return dict(zip(names, unpack_words(context, b, ty, value), strict=True))


@contextlib.contextmanager
def loop_of_pointers(
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


@contextlib.contextmanager
def loop_of_taps(
    b: ir.IRBuilder, a: dict[str, ir.Value], accs: list[ir.Value]
) -> Iterator[tuple[ir.Value, ir.Value, list[ir.Value]]]:
    """Emit a loop over the taps of a window: the tap's number, where its column of pixels begins, and the
    sums so far, a list in which the body puts those behind the tap.

    `columns` has the registers of the first window's first column, of which `apart` bytes lead to the next
    tap, and `line` to the next line of registers; there are `lines` of these, with `taps` taps each. `accs`
    are the sums before the first tap; behind the loop the list has those behind the last.
    """
    fn, entry = b.function, b.block
    total = b.mul(a["lines"], a["taps"])
    body, done = fn.append_basic_block("taps"), fn.append_basic_block("taps_done")
    b.branch(body)
    b.position_at_end(body)
    number, tap, place = (b.phi(i64) for _ in range(3))
    sums = [b.phi(acc.type) for acc in accs]
    after = list(sums)
    yield number, at(b, a["columns"], place), after
    following = b.add(number, const(i64, 1))
    next_tap = b.add(tap, const(i64, 1))
    wraps = b.icmp_signed("==", next_tap, a["taps"])
    # from the last tap of a line to the first of the next
    jump = b.sub(a["line"], b.mul(b.sub(a["taps"], const(i64, 1)), a["apart"]))
    next_place = b.add(place, b.select(wraps, jump, a["apart"]))
    next_tap = b.select(wraps, const(i64, 0), next_tap)
    for phi, first, then in (
        (number, const(i64, 0), following),
        (tap, const(i64, 0), next_tap),
        (place, const(i64, 0), next_place),
        *zip(sums, accs, after, strict=True),
    ):
        phi.add_incoming(first, entry)
        phi.add_incoming(then, b.block)
    b.cbranch(b.icmp_signed("<", following, total), body, done)
    b.position_at_end(done)
    accs[:] = after


def dot(bits: int, b: ir.IRBuilder, acc: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
    """Emit: `acc` plus, in each lane, the products of four bytes of `x` with four weights of 8 bits; or where
    there is no `vpdpbusd` (`bits` 0), of two bytes with two weights of 16 bits.
    """
    lanes = acc.type.count
    if not bits:
        products = b.mul(b.zext(x, vec(i32, 2 * lanes)), b.sext(w, vec(i32, 2 * lanes)))
        even, odd = (shuffle(b, products, None, list(range(i, 2 * lanes, 2))) for i in range(2))
        return b.add(acc, b.add(even, odd))
    held = bits // 32
    x, w = (b.bitcast(v, acc.type) for v in (x, w))
    parts = []
    for first in range(0, lanes, held):
        three = [shuffle(b, v, None, list(range(first, first + held))) for v in (acc, x, w)]
        parts.append(call_intrinsic(b, f"llvm.x86.avx512.vpdpbusd.{bits}", vec(i32, held), three))
    return parts[0] if len(parts) == 1 else shuffle(b, *parts, list(range(lanes)))


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


# ---- where things lie --------------------------------------------------------------------------------------
def groups_of_lines(height: int, together: int, apart: int) -> int:
    """Groups of lines of a plane of `height` lines that are computed together: see `lines_of`."""
    whole, left = divmod(height, together * apart)
    return whole * apart + min(left, apart)


@inner
def lines_of(w, number):
    """Of group number `number` of the lines that are computed together: image, plane, first line, and how
    many.

    The lines of a group are as far from one another as taps are, `apart_y`, so that their windows reach the
    same lines of the image. `apart_y` groups, which begin line by line, take turns.
    """
    block = w.together * w.apart_y
    whole, left = w.out_height // block, w.out_height % block
    of_a_plane = whole * w.apart_y + min(left, w.apart_y)
    plane, group = number // of_a_plane, number % of_a_plane
    y = group // w.apart_y * block + group % w.apart_y
    lines = min(w.together, (w.out_height - y + w.apart_y - 1) // w.apart_y)
    return plane // w.out_depth, plane % w.out_depth, y, lines


@inner
def first_row(w, number, z, y, line):
    """Row of the result where line number `line` of a group that begins at line `y` begins."""
    return ((number * w.out_depth + z) * w.out_height + y + line * w.apart_y) * w.out_width


@inner
def columns_of(w, x0, windows):
    """Columns of pixels that `windows` windows from `x0` on reach: how many; of these the first inside of the
    image and that behind the last inside; and the first one's place in the image.
    """
    count = (windows - 1) * w.step_x + (w.taps_x - 1) * w.apart_x + 1
    first = x0 * w.step_x - w.left
    low = min(max(0 - first, 0), count)
    return count, low, max(min(w.width - first, count), low), first


@inner
def line_of(w, image, number, z, y, line, channel, filled):
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
    place = w.start + number * w.image_stride + at_z * w.depth_stride + at_y * w.height_stride + channel
    return offset(image, place), w.width_stride


@inner
def tile_to_stages(p, tile, columns, rows, cols, row, col, by_row, out):
    """Have the output stages take `rows` x `cols` of a tile of `columns` columns, which are those of the
    result from (`row`, `col`) on. `by_row` are the biases of windows, if there are any.
    """
    if p.has_row_bias != 0:  # one for each window, where a bias of axis 0 comes first
        for i in range(rows):
            bias = load_i32(by_row, row + i)
            for c in range(cols):
                store_32(tile, columns * i + c, load_i32(tile, columns * i + c) + bias)
    for i in range(p.stages):
        call_address(
            p.stage[i, 0],
            (
                as_address(tile), columns, rows, cols, row, col, p.stage[i, 1], 0, 0, 0, 0,
                out + row * p.out_row_stride + col * p.out_col_stride, p.out_row_stride, p.out_col_stride,
            ),
        )  # fmt: skip


@routine("nnppnnppn")
def loop_start(n, zero, bias, sums, has_bias, byte, starts, filled, least):
    """Store to `starts` what the sums of `n` outputs begin with, and zeros for others up to `least`; and to
    `filled` a register full of the zero point's `byte`. `bias` holds an int32 an output if `has_bias` is not
    0.
    """
    for c in range(n):
        value = 0
        if has_bias != 0:
            value = load_i32(bias, c)
        store_32(starts, c, value - zero * load_i32(sums, c))
    for c in range(n, least):
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
            space + p.on_the_fly_at, space + p.row_sums_at, p.lanes,
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
def loop_single(plan, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros):
    """A convolution on one thread; the arguments are those of `drivers.single`, the rhs is arranged weights
    and their sums.
    """
    p, s = plan_at(plan), state_at(stack(_STATE_BYTES))
    begin_state(p, s, lhs, rhs, rhs_sums, out, space, lhs_zero, rhs_zero, lhs_zeros, rhs_zeros)
    _start(p, s, s.scratch_of_workers)
    for task in range(p.row_blocks * p.col_blocks):
        _block(as_address(plan), p, s, s.scratch_of_workers, task)


@routine("ppn")
def loop_work(plan, state, worker):
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
