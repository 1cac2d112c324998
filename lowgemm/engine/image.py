"""An lhs whose rows are the patches of an image: they are gathered while the lhs is packed (implicit GEMM).

A convolution is a product: a row of its lhs is what one window sees, filter line by filter line, each tap
with its channels; the rhs holds the filters in the same order. That lhs is never in memory as a whole. Where
the tile loop packs a block of an lhs, it calls `pack_image`, which copies the block's rows from the image,
writes the zero point where a window hangs over the edge, and packs that.

Images have up to three spatial axes, here depth, height and width; missing ones have a size of 1. Channels
are last and side by side.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from lowgemm.engine.packing_ir import CHUNK_BYTES
from lowgemm.engine.records import record_type
from lowgemm.jit.memory import as_address, copy_bytes, is_null, load_i32, load_u8, offset, record_at, store_8
from lowgemm.jit.routine import call_address, inner, routine

#: What `pack_image` needs to know of an image and its windows. Sizes and steps are in pixels, strides in
#: bytes.
IMAGE = record_type(
    "depth height width",  # of an image
    "image_stride depth_stride height_stride width_stride",
    "out_depth out_height out_width",  # windows along each axis
    "taps_z taps_y taps_x",  # size of a window
    "step_z step_y step_x",  # from one window to the next
    "apart_z apart_y apart_x",  # from one tap to the next
    "front top left",  # padding before the image
    "run",  # bytes of a tap: the channels of a group
    "start",  # byte of the first pixel that counts, in a loop of depthwise or grouped convolutions
    "room",  # bytes from the first tap's to the end of the last pixel's
    "row_bytes",  # what rows of the lhs are padded to, for a kernel that reads them as rows; or 0
    "mr",  # rows of a panel
    "together",  # lines of windows that are computed together, in a loop of depthwise or grouped convolutions
    # where it is read from grids of its pixels (`pixels.py`): grids along each axis; pixels from a tap to the
    # next in a grid; pixels of a grid's line; lines of a grid in addition to those of windows
    "grids_y grids_x jump_y jump_x grid_width lines_ahead",
    "stored_flipped",  # whether the copy of a pixel has its top bits flipped, for a kernel that wants one sign
    # for a kernel that reads panels: rows that are gathered at a time, bytes of the memory of such a row, and
    # bytes of it that are packed at a time
    "panel_rows panel_bytes panel_chunk",
)
image_at = record_at(IMAGE)


class Windows(NamedTuple):
    """Where the windows of a convolution lie; every tuple has three entries, for depth, height and width.

    Attributes
    ----------
    images : int
        Number of images.
    size, out, taps, step, apart, before : tuple of int
        Size of an image, windows along each axis, taps of a window, pixels from one window to the next and
        from one tap to the next, padding before the image.
    channels : int
        Channels of an image.
    """

    images: int
    size: tuple[int, int, int]
    out: tuple[int, int, int]
    taps: tuple[int, int, int]
    step: tuple[int, int, int]
    apart: tuple[int, int, int]
    before: tuple[int, int, int]
    channels: int

    @property
    def inside(self) -> bool:
        """Whether no window reaches into padding."""
        ends = zip(self.out, self.step, self.taps, self.apart, self.before, self.size, strict=True)
        return not any(self.before) and all(
            (o - 1) * s + (t - 1) * a - b < size for o, s, t, a, b, size in ends
        )

    @property
    def pointwise(self) -> bool:
        """Whether the windows are the pixels, one by one."""
        return self.taps == self.step == (1, 1, 1) and self.out == self.size and not any(self.before)

    def without_gaps(self) -> tuple[tuple[int, ...], tuple[int, ...], Windows]:
        """The same windows on the pixels that they reach, where both steps, from window to window and from
        tap to tap, are multiples of more than one pixel.

        The first pixel that is left along each axis, and of how many pixels each time one; and the windows.
        """
        axes = zip(self.size, self.out, self.taps, self.step, self.apart, self.before, strict=True)
        firsts, everies, found = [], [], []
        for size, out, taps, step, apart, before in axes:
            every = math.gcd(step if out > 1 else 0, apart if taps > 1 else 0) or 1
            around = -(-before // every)
            first = around * every - before
            left = max(0, -(-(size - first) // every))
            firsts.append(first)
            everies.append(every)
            found.append((left, max(1, step // every), max(1, apart // every), around))
        size, step, apart, before = zip(*found, strict=True)
        windows = self._replace(size=size, step=step, apart=apart, before=before)
        return tuple(firsts), tuple(everies), windows

    def record(self, strides: tuple[int, ...], run: int) -> np.ndarray:
        """The record of images with these strides, for the channels of one group, as an array of one."""
        made = np.zeros(1, IMAGE)
        values = dict(
            zip(("image_stride", "depth_stride", "height_stride", "width_stride"), strides, strict=True)
        )
        for names, numbers in (
            ("depth height width", self.size),
            ("out_depth out_height out_width", self.out),
            ("taps_z taps_y taps_x", self.taps),
            ("step_z step_y step_x", self.step),
            ("apart_z apart_y apart_x", self.apart),
            ("front top left", self.before),
        ):
            values.update(zip(names.split(), numbers, strict=True))
        last = sum((n - 1) * stride for n, stride in zip((self.images, *self.size), strides, strict=True))
        for name, value in {**values, "run": run, "room": last + run}.items():
            made[name] = value
        return made


@intrinsic(prefer_literal=True)
def _fill_bytes(typingctx, to, value, size):
    """Write `size` (a constant) bytes of one value, of any alignment."""
    ty = ir.VectorType(ir.IntType(8), size.literal_value)

    def codegen(context, builder, signature, values):
        byte = builder.trunc(values[1], ir.IntType(8))
        one = builder.insert_element(ir.Constant(ty, ir.Undefined), byte, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), size.literal_value), [0] * size.literal_value)
        whole = builder.shuffle_vector(one, ir.Constant(ty, ir.Undefined), mask)
        builder.store(whole, builder.bitcast(values[0], ty.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.voidptr, types.int64, size), codegen


#: Bytes behind a row of patches that copying may write: runs are copied in whole vectors, from left to right,
#: so that the next run covers what the one before wrote too much.
SLACK = 32


#: Bytes of a line of taps up to which they are copied window by window.
LINE = 32


#: Bytes of rows that are gathered before they are packed into panels: a part of L1.
PATCHES = 16384


#: Bytes of rows whose filter lines are gathered one after the other: rows share cache lines with those of the
#: line before, which are in L1.
GATHERED = 16384


@register_jitable
def patch_bytes(depth):
    """Bytes from one gathered row to the next."""
    return (depth + SLACK + 63) // 64 * 64


@register_jitable
def patch_rows(mr, depth):
    """Rows that are gathered at a time, a multiple of the `mr` rows of a panel."""
    return mr * max(1, PATCHES // (mr * patch_bytes(depth)))


@inner
def _copy_wide(dst, dst_stride, src, src_stride, count, run):
    """Copy `count` runs of `run` bytes in vectors, of which the last reads and writes too much."""
    if run <= 16:
        for r in range(count):
            copy_bytes(offset(dst, r * dst_stride), offset(src, r * src_stride), 16)
    elif run <= 32:
        for r in range(count):
            copy_bytes(offset(dst, r * dst_stride), offset(src, r * src_stride), 32)
    else:
        # the last 32 bytes by themselves, so that they straddle no cache line where rows and runs are
        # multiples of 32
        whole = (run + 31) // 64 * 64
        for r in range(count):
            to, source = offset(dst, r * dst_stride), offset(src, r * src_stride)
            for j in range(0, whole, 64):
                copy_bytes(offset(to, j), offset(source, j), 64)
            if run > whole:
                copy_bytes(offset(to, whole), offset(source, whole), 32)


@inner
def copy_runs(dst, dst_stride, src, src_stride, count, run, room):
    """Copy `count` runs of `run` bytes; the strides are from one to the next, `room` is how many bytes there
    are from `src` on.

    Behind each run fewer than `SLACK` bytes are written.
    """
    wide = 16 if run <= 16 else (run + 31) // 32 * 32
    safe = count
    if src_stride <= 0 or (count - 1) * src_stride + wide > room:  # a division only where it is needed
        safe = min(count, max((room - wide + src_stride) // src_stride, 0)) if src_stride > 0 else 0
    _copy_wide(dst, dst_stride, src, src_stride, safe, run)
    for r in range(safe, count):
        for j in range(run):
            store_8(dst, r * dst_stride + j, load_u8(src, r * src_stride + j))


@inner
def fill_runs(dst, dst_stride, value, count, run):
    """Fill `count` runs of `run` bytes, and up to 15 behind each."""
    for r in range(count):
        to = offset(dst, r * dst_stride)
        for j in range(0, run, 16):
            _fill_bytes(offset(to, j), value, 16)


@inner
def _fill_exactly(dst, dst_stride, value, count, run):
    """Fill `count` runs of `run` bytes, at most 64, and no other: by two vectors that may overlap."""
    if run >= 32:
        for r in range(count):
            _fill_bytes(offset(dst, r * dst_stride), value, 32)
            _fill_bytes(offset(dst, r * dst_stride + run - 32), value, 32)
    elif run >= 8:
        for r in range(count):
            for j in range(0, run - 8, 8):
                _fill_bytes(offset(dst, r * dst_stride + j), value, 8)
            _fill_bytes(offset(dst, r * dst_stride + run - 8), value, 8)
    else:
        for r in range(count):
            for j in range(run):
                store_8(dst, r * dst_stride + j, value)


@inner
def first_inside(shift, step):
    """The first window whose tap, at ``window * step + shift``, is not before the image."""
    return (-shift + step - 1) // step if shift < 0 else 0


@inner
def end_inside(shift, step, size):
    """The window behind the last whose tap is not behind an image of `size` pixels."""
    return (size - shift + step - 1) // step if size > shift else 0


@inner
def _tap(w, line, room, shift, first, count, zero, dst, dst_stride, begin, size):
    """Bytes `begin` to ``begin + size`` of one tap for `count` windows of a line from window `first` on.

    `line` points to the image's line, from which on there are `room` bytes; `shift` is where the tap of
    window 0 lies in it.
    """
    low = min(max(first_inside(shift, w.step_x), first), first + count)
    high = max(min(end_inside(shift, w.step_x, w.width), first + count), low)
    if low > first:
        fill_runs(dst, dst_stride, zero, low - first, size)
    if high > low:
        at = (low * w.step_x + shift) * w.width_stride + begin
        copy_runs(
            offset(dst, (low - first) * dst_stride), dst_stride, offset(line, at), w.step_x * w.width_stride,
            high - low, size, room - at,
        )  # fmt: skip
    if first + count > high:
        fill_runs(offset(dst, (high - first) * dst_stride), dst_stride, zero, first + count - high, size)


@inner
def _at_the_edge(w, line, room, first, count, zero, dst, dst_stride):
    """All taps of a filter line, which lie side by side, for `count` windows from `first` on that reach over
    an end of the line.
    """
    taps, run = w.taps_x, w.run
    for r in range(count):
        start, to = (first + r) * w.step_x - w.left, offset(dst, r * dst_stride)
        low = min(max(0 - start, 0), taps)
        high = max(min(w.width - start, taps), low)
        if low > 0:
            fill_runs(to, dst_stride, zero, 1, low * run)
        if high > low:
            at = (start + low) * run
            copy_runs(
                offset(to, low * run), dst_stride, offset(line, at), run, 1, (high - low) * run, room - at
            )
        if taps > high:
            fill_runs(offset(to, high * run), dst_stride, zero, 1, (taps - high) * run)


@inner
def _line_of_taps(w, line, room, first, count, zero, dst, dst_stride, k0, k1):
    """All taps of a filter line for `count` windows of a line; only bytes `k0` to `k1` of what they give."""
    taps, run = w.taps_x, w.run
    if taps > 1 and w.apart_x == 1 and w.width_stride == run and k0 == 0 and k1 == taps * run:
        # taps lie side by side: one run, for windows that are all inside
        left, right = 0 - w.left, taps - 1 - w.left
        low = min(max(first_inside(left, w.step_x), first), first + count)
        high = max(min(end_inside(right, w.step_x, w.width), first + count), low)
        if low > first:
            _at_the_edge(w, line, room, first, low - first, zero, dst, dst_stride)
        if high > low:
            at = (low * w.step_x + left) * run
            copy_runs(
                offset(dst, (low - first) * dst_stride), dst_stride, offset(line, at), w.step_x * run,
                high - low, taps * run, room - at,
            )  # fmt: skip
        if first + count > high:
            to = offset(dst, (high - first) * dst_stride)
            _at_the_edge(w, line, room, high, first + count - high, zero, to, dst_stride)
        return
    for x in range(taps):
        begin, end = max(k0, x * run), min(k1, (x + 1) * run)
        if begin < end:
            to, shift = offset(dst, begin - k0), x * w.apart_x - w.left
            _tap(w, line, room, shift, first, count, zero, to, dst_stride, begin - x * run, end - begin)


def _make_copy(size: int) -> Any:
    @inner
    def copy(dst, dst_stride, src, src_stride, count, lines, run, apart):
        """`_copy_lines` in vectors of `size` bytes."""
        for r in range(count):
            to, source = offset(dst, r * dst_stride), offset(src, r * src_stride)
            for line in range(0, lines - 2, 3):  # three at a time: a turn takes as long as a copy
                third, at_third = offset(to, line * run), offset(source, line * apart)
                copy_bytes(third, at_third, size)
                copy_bytes(offset(third, run), offset(at_third, apart), size)
                copy_bytes(offset(third, 2 * run), offset(at_third, 2 * apart), size)
            for line in range(lines // 3 * 3, lines):
                copy_bytes(offset(to, line * run), offset(source, line * apart), size)

    return copy


_copy_16, _copy_32 = _make_copy(16), _make_copy(32)


@inner
def _copy_lines(dst, dst_stride, src, src_stride, count, lines, run, apart):
    """Copy `lines` runs of `run` bytes, at most `LINE`, for each of `count` windows: the runs are `apart`
    bytes apart, and side by side in the copy. Up to `LINE` bytes are read and written for each.
    """
    if run <= 16:
        _copy_16(dst, dst_stride, src, src_stride, count, lines, run, apart)
    else:
        _copy_32(dst, dst_stride, src, src_stride, count, lines, run, apart)


@inner
def _short_lines(w, image, at, y, first, count, zero, dst, dst_stride):
    """The first lines of taps of one plane for `count` windows of line `y` from window `first` on, window by
    window; how many lines these are. The others reach over the lower end, or the end of the memory. `at` is
    where the plane begins.

    Lines of taps are short here: copied line by line for many windows, each would come to another cache line.
    """
    taps, run, step, end = w.taps_x, w.run, w.step_x, first + count
    line_bytes, apart, at_y = taps * run, w.apart_y * w.height_stride, y * w.step_y - w.top
    above = min(first_inside(at_y, w.apart_y), w.taps_y)
    below = max(min(end_inside(at_y, w.apart_y, w.height), w.taps_y), above)
    # no window reads more than this from the start of a line
    reach = max((end - 1) * step - w.left, 0) * run + LINE
    at += at_y * w.height_stride
    while below > above and at + (below - 1) * apart + reach > w.room:
        below -= 1
    if above > 0:
        fill_runs(dst, dst_stride, zero, count, above * line_bytes)
    behind = end_inside(taps - 1 - w.left, step, w.width)
    window = first
    while window < end:
        start = window * step - w.left
        low = min(max(0 - start, 0), taps)
        high = max(min(w.width - start, taps), low)
        some = 1
        if high - low == taps:  # and so are all windows up to `behind`
            some = min(behind, end) - window
        to = offset(dst, (window - first) * dst_stride + above * line_bytes)
        if high > low:
            source = offset(image, at + above * apart + (start + low) * run)
            place = offset(to, low * run)
            _copy_lines(place, dst_stride, source, step * run, some, below - above, line_bytes, apart)
        if high - low < taps:
            _fill_exactly(to, line_bytes, zero, below - above, low * run)
            _fill_exactly(offset(to, high * run), line_bytes, zero, below - above, (taps - high) * run)
        window += some
    return below


@inner
def gather_rows(w, image, row, rows, k0, depth, zero, dst, dst_stride):
    """Bytes `k0` to ``k0 + depth`` of `rows` rows of the lhs from row `row` on, to `dst`."""
    line_bytes = w.taps_x * w.run
    side_by_side = w.apart_x == 1 and w.width_stride == w.run
    short = side_by_side and line_bytes <= LINE and k0 == 0 and depth == w.taps_z * w.taps_y * line_bytes
    done = 0
    while done < rows:
        line_of_windows, x = (row + done) // w.out_width, (row + done) % w.out_width
        count = min(w.out_width - x, rows - done, max(GATHERED // dst_stride, 1))
        plane, y = line_of_windows // w.out_height, line_of_windows % w.out_height
        number, z = plane // w.out_depth, plane % w.out_depth
        to = offset(dst, done * dst_stride)
        for tap_z in range(w.taps_z):
            at_z, tap_y = z * w.step_z + tap_z * w.apart_z - w.front, 0
            at_plane = number * w.image_stride + at_z * w.depth_stride
            inside = at_z >= 0 and at_z < w.depth
            if short and inside:
                place = offset(to, tap_z * w.taps_y * line_bytes)
                tap_y = _short_lines(w, image, at_plane, y, x, count, zero, place, dst_stride)
            while tap_y < w.taps_y:
                first = (tap_z * w.taps_y + tap_y) * line_bytes
                begin, end = max(k0, first), min(k0 + depth, first + line_bytes)
                if begin < end:
                    at_y = y * w.step_y + tap_y * w.apart_y - w.top
                    place = offset(to, begin - k0)
                    if not inside or at_y < 0 or at_y >= w.height:
                        fill_runs(place, dst_stride, zero, count, end - begin)
                    else:
                        at = at_plane + at_y * w.height_stride
                        _line_of_taps(
                            w, offset(image, at), w.room - at, x, count, zero, place, dst_stride,
                            begin - first, end - first,
                        )  # fmt: skip
                tap_y += 1
        done += count


@routine("ppnnnnnnpppnppn")
def pack_image(
    image, windows, row, rows, k0, depth, flip, zero, zeros, pack, dst, dst_stride, patches, sums, summed
):
    """Pack `rows` x `depth` of the lhs from (`row`, `k0`) on.

    `image` points to the first image, `windows` to its `IMAGE`. `zero` is what padding is, as a number of 8
    bits; where the filters' zero points differ, `zeros` points to int32 that it is to be added to, all alike.
    `pack` points to the kernel's packing routine; `flip`, `dst`, `dst_stride` and `sums` are its arguments.
    `patches` points to memory for `panel_rows` rows. Rows that the kernel reads as they are come to `dst` at
    once; their sums are made if `summed` is not 0.
    """
    w = image_at(windows)
    if not is_null(zeros):
        zero += load_i32(zeros, 0)
    to_rows = w.row_bytes != 0
    chunk = w.row_bytes if to_rows else w.panel_chunk
    padded = (depth + chunk - 1) // chunk * chunk
    # what is 0 in a row, or in whole chunks when they are packed: the packing of a part of one is slow
    nothing = flip if not to_rows and chunk == CHUNK_BYTES else 0
    at = 0
    while at < rows:
        count, to, stride = rows, dst, dst_stride
        if not to_rows:
            count, to, stride = min(w.panel_rows, rows - at), patches, w.panel_bytes
        gather_rows(w, image, row + at, count, k0, depth, zero, to, stride)
        _fill_exactly(offset(to, depth), stride, nothing, count, padded - depth)
        if not to_rows:
            call_address(
                as_address(pack),
                (
                    patches, stride, 1, count, padded, flip, offset(dst, at // w.mr * dst_stride), dst_stride,
                    offset(sums, 4 * at),
                ),
            )  # fmt: skip
        elif summed != 0:
            call_address(as_address(pack), (dst, stride, 1, rows, depth, flip, 0, 0, sums))
        at += count
