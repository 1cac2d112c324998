"""An lhs that is read from a padded copy of the image: each pixel is copied once, not once for each tap.

Gathered as patches (`image.py`), a pixel comes as often as there are taps. Here a block's lines of the image
are copied as they are, with the padding in its place. The pixels of such a *grid* follow one another, so from
one window's pixel to the next window's it is as far as from any pixel to the next, and each tap is a constant
number of bytes ahead:

    image of 4 x 4, filters of 3 x 3, padding of 1:

    . . . . . .     . is padding. Window 0 begins at pixel 0, window 1 at pixel 1, and so on. Tap (1, 2) of a
    . a b c d .     window is 6 + 2 pixels ahead of where the window begins.
    . e f g h .
    . i j k l .     The windows that begin at the last 2 pixels of a line reach over its end. They are
    . m n o p .     computed too, and stored where the first windows of the next line are stored after them.
    . . . . . .

A kernel that finds the steps of its depth through a list (`Kernel.scatters`) multiplies them so: AMX, whose
steps are 64 bytes or less, and the kernels of `vpdpbusd`, whose steps are 4. Whole steps make a tap.
Where a kernel wants unsigned numbers, the copies of signed pixels have their top bits flipped.

With a stride of 2 along an axis, windows that follow one another see every second pixel. So there are two
grids, of even and of odd pixels, or four with both axes. A tap is always in the same one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba.extending import register_jitable

from lowgemm.engine.blocking import BLOCKS_PER_THREAD, MAX_MC_WITH_STAGES
from lowgemm.engine.image import Windows, copy_runs, end_inside, fill_runs, first_inside, image_at
from lowgemm.jit.memory import as_address, is_null, load_i32, offset, smaller, store_32, store_64
from lowgemm.jit.routine import call_address, inner, routine
from lowgemm.kernels import Kernel
from lowgemm.kernels.framework.kernel import LIST_HEAD

#: Bytes of a cache line, and bytes whose multiples share so few sets of L1 that the 16 rows of a tile
#: register would evict each other.
LINE, SAME_SETS = 64, 1024


#: Rows of a block at most. On one core of a Xeon 56x56x64 to 64 takes 115, 104, 89 and 85 us with 128, 256,
#: 512 and 1,024.
TALL = 1024
#: The same where the sums of some columns, or with stages those of all, go to a tile first, which is in L2 then
#: and not in L1. Blocks of few lines copy each line of pixels several times. 128x62x12, 7x3 to 12, takes 193 us
#: with blocks of a line, 109, 93 and 86 with 256, 512 and 1,024 rows, to 24 it takes 240, 174, 140 and 150;
#: 56x56x64 to 64 with `Dequantize` 210, and 171 with 512. With AVX512-VNNI stages gain nothing by it.
WITH_TILE = 512
#: What things cost: a tile of the kernel for each column, from grids and from patches, which are not as near
#: in the caches; and to copy the patch of a row. From 24 shapes on one core of a Xeon. New time by old: 8 of
#: 7x7x512 with 512 outputs, 1.25 times the tiles, 1.12; 14x14x256 dilated by 4, 1.43 times, 256 outputs,
#: 1.10; 4 of 10x10x128, 1.25 times, 128 outputs, 0.79; 28x28x128, 1.06 times, 128 outputs, 0.65.
FROM_GRIDS, FROM_PATCHES, COPY = 20, 22, 25
#: What a tile costs beside the steps of its depth, in such steps. They count where pieces are narrower than a
#: tile register: 28x28x100 to 64 with pieces of 20 takes 0.84 of the time of patches, 28x28x32 to 512 1.05,
#: 56x56x24 to 24 1.0, 56x56x48 to 48 0.56.
FINISH = 40
#: The same for kernels that read panels, from 18 shapes there with AVX512-VNNI: 56x56x64 to 64 takes 0.93 of
#: the time of patches, 80x80x96 to 24 0.86, 80x80x32 to 32 0.76, 28x28x128 to 128 1.01, 14x14x256 to 256
#: 1.12, 40x40x64 with a stride of 2 to 128 1.02.
OF_PANELS = 20, 20, 20
#: Likewise a call of the kernel for each column, where stages run on tiles: the last tile of a call is stored
#: while no other is multiplied. With `Dequantize` 14x14x256 to 1,024 from grids of two lines took 1.07 times
#: the time from patches, 28x28x128 to 128 0.92 times.
CALL = 6


class _Axis(NamedTuple):
    """Along one axis: grids, pixels of a grid from a tap to the next in it, and from the first tap to the
    last.
    """

    grids: int
    jump: int
    ahead: int


def _along(taps: int, step: int, apart: int) -> _Axis:
    period = step // math.gcd(step, apart)  # taps so many apart see the same pixels
    grids, jump = min(period, taps), period * apart // step
    return _Axis(grids, jump, (taps - 1) // grids * jump)


def grid_fields(kernel: Kernel, windows: Windows, run: int) -> tuple[dict[str, int], dict[str, int]]:
    """What a plan (`records.PLAN`) and the record of the image need to know of the grids, for a tap of `run`
    bytes; both are empty where the kernel cannot read these windows so.
    """
    flat = windows.size[0] == windows.taps[0] == windows.out[0] == 1 and not windows.before[0]
    piece = kernel.piece_bytes(run) if flat and kernel.scatters else 0
    if not piece or windows.taps[1:] == (1, 1):
        return {}, {}
    y, x = (_along(windows.taps[i], windows.step[i], windows.apart[i]) for i in (1, 2))
    pixel = run if run % SAME_SETS else run + LINE
    of_plan = {
        "plane_rows": windows.out[1] * windows.out[2], "line_rows": windows.out[2],
        "grid_width": windows.out[2] + x.ahead, "grids": y.grids * x.grids,
        "lines_ahead": y.ahead, "pixel_bytes": pixel, "piece_bytes": piece,
    }  # fmt: skip
    of_image = {
        "grids_y": y.grids, "grids_x": x.grids, "jump_y": y.jump, "jump_x": x.jump,
        "grid_width": windows.out[2] + x.ahead, "lines_ahead": y.ahead,
    }  # fmt: skip
    return of_plan, of_image


@register_jitable
def lines_of(p, rows):
    """Lines of windows that `rows` rows of plan `p` may be of."""
    return min((rows + p.line_rows - 2) // p.line_rows + 1, p.plane_rows // p.line_rows)


@register_jitable
def pixels_of(p, rows):
    """Pixels of the grids of so many rows at most."""
    return p.grids * (lines_of(p, rows) + p.lines_ahead) * p.grid_width


@register_jitable
def most_grid_rows(p, k):
    """Rows of a block at most, for the kernel of template `k`: its grids take half of L2, or where stages run
    on a tile, that is as small as for other products, but of a whole line.
    """
    if p.direct == 0 and k.row_bytes == 0:
        return max(k.most_rows_with_stages, min(p.line_rows, k.most_rows))
    tall = TALL if p.direct != 0 and p.n % k.lanes == 0 else WITH_TILE
    return max(min(tall, k.l2 // 2 // (p.grids * p.pixel_bytes)) // k.mr * k.mr, k.mr)


@register_jitable
def _costs(k):
    """What a tile of the template `k` costs, from grids and from patches, and to copy the patch of a row."""
    return (FROM_GRIDS, FROM_PATCHES, COPY) if k.row_bytes != 0 else OF_PANELS


@register_jitable
def _cost_of_tiles(rows, height, each):
    """What tiles of `height` rows cost; in half of one the rhs is read for half of the products (0.8)."""
    whole, rest = rows // height, rows % height
    last = 0 if rest == 0 else each if 2 * rest > height else each * 4 // 5
    return each * whole + last


@register_jitable
def cost_of_block(p, rows, columns, k):
    """What a block from grids costs, in tiles of the template `k`."""
    from_grids, _, copy = _costs(k)
    if k.row_bytes != 0:
        # more steps than of patches, where pieces are narrow
        from_grids = from_grids * (FINISH + p.depth // p.piece_bytes) // (FINISH + -(-p.depth // k.row_bytes))
    lines_more = (rows - 1) // p.line_rows
    computed = rows + lines_more * (p.grid_width - p.line_rows)
    copied = p.grids * (lines_more + 1 + p.lines_ahead) * p.grid_width * p.pixel_bytes
    call = CALL if p.direct == 0 else 0
    return columns * (_cost_of_tiles(computed, k.mr, from_grids) + call) + copy * copied // p.depth


@register_jitable
def lines_of_a_block(p, planes, threads, most, k):
    """Lines of windows in a block of at most `most` rows, with which the thread that has most to do is done
    first, for `planes` planes of windows; 0: none fits.
    """
    lines = p.plane_rows // p.line_rows
    found = least = 0
    for each in range(1, min(lines, most // p.line_rows) + 1):
        blocks = planes * -(-lines // each)
        cost = -(-blocks // threads) * cost_of_block(p, each * p.line_rows, p.n, k)
        if threads > 1 and blocks < threads * BLOCKS_PER_THREAD:
            cost += cost // 8  # for a thread that comes late
        if found == 0 or cost <= least:
            found, least = each, cost
    return found


@register_jitable
def pays_as_grids(p, blocks, threads, rows, columns, k):
    """Whether `blocks` blocks of so many rows and columns, one after the other, cost less than all patches
    shared by `threads` threads.
    """
    copied = p.grids * (p.plane_rows // p.line_rows + p.lines_ahead) * p.grid_width * p.pixel_bytes
    if copied >= p.plane_rows * p.depth:  # no pixel is seen twice
        return False
    calls = CALL * -(-p.m // MAX_MC_WITH_STAGES) if p.direct == 0 else 0
    _, from_patches, copy = _costs(k)
    patches = p.batch * (p.n * (_cost_of_tiles(p.m, k.mr, from_patches) + calls) + copy * p.m)
    return threads * blocks * cost_of_block(p, min(rows, p.plane_rows), columns, k) < patches


@inner
def _copy_grid(w, image, room, y, lines, tap_y, tap_x, zero, dst, pixel_bytes):
    """The grid of tap (`tap_y`, `tap_x`), from the line of window line `y` on."""
    width, run = w.grid_width, w.run
    shift = tap_x * w.apart_x - w.left
    low = smaller(first_inside(shift, w.step_x), width)
    high = max(smaller(end_inside(shift, w.step_x, w.width), width), low)
    apart = w.step_x * w.width_stride
    for i in range(lines):
        line = (y + i) * w.step_y + tap_y * w.apart_y - w.top
        to = offset(dst, i * width * pixel_bytes)
        if line < 0 or line >= w.height:
            fill_runs(to, pixel_bytes, zero, width, run)
            continue
        fill_runs(to, pixel_bytes, zero, low, run)
        at = line * w.height_stride + (low * w.step_x + shift) * w.width_stride
        inside = offset(to, low * pixel_bytes)
        if apart == run and pixel_bytes == run:  # one after the other on both sides
            whole = (high - low) * run
            copy_runs(inside, whole, offset(image, at), whole, smaller(high - low, 1), whole, room - at)
        else:
            copy_runs(inside, pixel_bytes, offset(image, at), apart, high - low, run, room - at)
        fill_runs(offset(to, high * pixel_bytes), pixel_bytes, zero, width - high, run)


@inner
def _flip(at, size, flip):
    """Flip bits of `size` bytes, a multiple of 4."""
    word = flip | flip << 8 | flip << 16 | flip << 24
    for i in range(size // 4):
        store_32(at, i, load_i32(at, i) ^ word)


@inner
def _add_row_sums(w, of_pixels, x0, rows, ahead, begin, sums):
    """Add the sum of a tap's pixel to the sum of each of `rows` rows, or `begin` the sums with it; the tap is
    `ahead` pixels from the first of the sums `of_pixels`, and the first row is window `x0` of its line.
    """
    done = 0
    while done < rows:
        y, x = (x0 + done) // w.out_width, (x0 + done) % w.out_width
        count = smaller(w.out_width - x, rows - done)
        pixel = ahead + y * w.grid_width + x
        for i in range(count):
            before = 0 if begin else load_i32(sums, done + i)
            store_32(sums, done + i, before + load_i32(of_pixels, pixel + i))
        done += count


@routine("ppnnnnnpppnpnppn")
def pack_pixels(
    image, windows, row, rows, step, flip, zero, zeros, pack, dst, pixel_bytes, steps, most, of_pixels, sums,
    summed,
):  # fmt: skip
    """Copy what `rows` rows of the lhs from row `row` on see, which are of one image, to `dst`, and list for
    the kernel where it is.

    `step` is the bytes of a step of the depth, `pixel_bytes` those from pixel to pixel. At `steps` comes the
    list that the kernel reads, and `most` numbers behind its start the places of the rows. With `summed` the
    sums of the rows come to `sums`, and those of the pixels, which the routine `pack` makes, to `of_pixels`.
    The others are as in `image.pack_image`.
    """
    w = image_at(windows)
    if not is_null(zeros):
        zero += load_i32(zeros, 0)
    number = row // (w.out_width * w.out_height)
    window = row - number * w.out_width * w.out_height
    y0, x0 = window // w.out_width, window % w.out_width
    last = window + rows - 1
    y1, x1 = last // w.out_width, last % w.out_width
    # the rows that the kernel computes, and where each of them belongs
    width = w.grid_width
    places = offset(steps, 8 * most)
    store_64(steps, 0, as_address(dst) + x0 * pixel_bytes)
    store_64(steps, 1, (y1 - y0) * width + x1 - x0 + 1)
    store_64(steps, 2, as_address(places))
    store_64(steps, 3, step)
    for y in range(y1 - y0 + 1):
        begin, place = y * width - x0, y * w.out_width - x0
        for x in range(x0 if y == 0 else 0, x1 + 1 if y == y1 - y0 else width):
            store_64(places, begin + x, smaller(place + x, rows - 1))
    lines = y1 - y0 + 1 + w.lines_ahead
    each = w.run // step  # steps of a tap
    grid = lines * width  # pixels of a grid
    turned = w.stored_flipped != 0 and flip != 0
    for tap_y in range(w.grids_y):
        for tap_x in range(w.grids_x):
            at = (tap_y * w.grids_x + tap_x) * grid
            _copy_grid(
                w, offset(image, number * w.image_stride), w.room - number * w.image_stride, y0, lines, tap_y,
                tap_x, zero, offset(dst, at * pixel_bytes), pixel_bytes,
            )  # fmt: skip
    pixels = w.grids_y * w.grids_x * grid
    if turned:
        _flip(dst, pixels * pixel_bytes, flip)
    if summed != 0:
        # of bytes that were flipped, the sums are those of what they are now
        signed = 0 if turned else flip
        call_address(as_address(pack), (dst, pixel_bytes, 1, pixels, w.run, signed, 0, 0, of_pixels))
    for tap_y in range(w.taps_y):
        for tap_x in range(w.taps_x):
            ahead = (tap_y % w.grids_y * w.grids_x + tap_x % w.grids_x) * grid
            ahead += tap_y // w.grids_y * w.jump_y * width + tap_x // w.grids_x * w.jump_x
            tap = tap_y * w.taps_x + tap_x
            for i in range(each):
                store_64(steps, LIST_HEAD + tap * each + i, ahead * pixel_bytes + i * step)
            if summed != 0:
                _add_row_sums(w, of_pixels, x0, rows, ahead, tap == 0, sums)
