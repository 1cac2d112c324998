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

A kernel that reads rows, and finds the steps of their depth through a list (`Kernel.scatters`), multiplies
them so. A step of the depth must lie in one tap.

With a stride of 2 along an axis, windows that follow one another see every second pixel. So there are two
grids, of even and of odd pixels, or four with both axes. A tap is always in the same one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lowgemm.engine.image import Windows, copy_runs, end_inside, fill_runs, first_inside, image_at
from lowgemm.jit.memory import as_address, is_null, load_i32, offset, smaller, store_32, store_64
from lowgemm.jit.routine import call_address, inner, routine
from lowgemm.kernels import Kernel
from lowgemm.kernels.framework.kernel import LIST_HEAD

#: Bytes of a cache line, and bytes whose multiples share so few sets of L1 that the 16 rows of a tile register
#: would evict each other.
LINE, SAME_SETS = 64, 1024


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


def grid_fields(kernel: Kernel, windows: Windows, run: int) -> tuple[dict[str, int], dict[str, int]] | None:
    """What a plan (`records.PLAN`) and the record of the image need to know of the grids, for a tap of `run`
    bytes; None: the kernel cannot read these windows so.
    """
    flat = windows.size[0] == windows.taps[0] == windows.out[0] == 1 and not windows.before[0]
    if not flat or not kernel.scatters or run % kernel.row_bytes or windows.taps[1:] == (1, 1):
        return None
    y, x = (_along(windows.taps[i], windows.step[i], windows.apart[i]) for i in (1, 2))
    pixel = run if run % SAME_SETS else run + LINE
    of_plan = {
        "plane_rows": windows.out[1] * windows.out[2], "line_rows": windows.out[2],
        "grid_width": windows.out[2] + x.ahead, "grids": y.grids * x.grids,
        "lines_ahead": y.ahead, "pixel_bytes": pixel,
    }  # fmt: skip
    of_image = {
        "grids_y": y.grids, "grids_x": x.grids, "jump_y": y.jump, "jump_x": x.jump,
        "grid_width": windows.out[2] + x.ahead, "lines_ahead": y.ahead,
    }  # fmt: skip
    return of_plan, of_image


@inner
def _copy_grid(w, image, room, y, lines, tap_y, tap_x, zero, dst, pixel_bytes):
    """The grid of a tap, from the line of window line `y` on."""
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
            copy_runs(inside, 0, offset(image, at), 0, smaller(high - low, 1), (high - low) * run, room - at)
        else:
            copy_runs(inside, pixel_bytes, offset(image, at), apart, high - low, run, room - at)
        fill_runs(offset(to, high * pixel_bytes), pixel_bytes, zero, width - high, run)


@inner
def _add_row_sums(w, of_pixels, x0, rows, ahead, begin, sums):
    """Add the sum of a tap's pixel to the sum of each of `rows` rows, or `begin` the sums with it; the tap is
    `ahead` pixels from the first of the sums `of_pixels`.
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
    sums of the rows come to `sums`, and those of the pixels to `of_pixels`. The others are as in
    `image.pack_image`.
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
    for y in range(y1 - y0 + 1):
        begin, place = y * width - x0, y * w.out_width - x0
        for x in range(x0 if y == 0 else 0, x1 + 1 if y == y1 - y0 else width):
            store_64(places, begin + x, smaller(place + x, rows - 1))
    lines = y1 - y0 + 1 + w.lines_ahead
    each = w.run // step  # steps of a tap
    grid = lines * width  # pixels of a grid
    for tap_y in range(w.grids_y):
        for tap_x in range(w.grids_x):
            at = (tap_y * w.grids_x + tap_x) * grid
            _copy_grid(
                w, offset(image, number * w.image_stride), w.room - number * w.image_stride, y0, lines, tap_y,
                tap_x, zero, offset(dst, at * pixel_bytes), pixel_bytes,
            )  # fmt: skip
    if summed != 0:
        call_address(
            as_address(pack),
            (dst, pixel_bytes, 1, w.grids_y * w.grids_x * grid, w.run, flip, 0, 0, of_pixels),
        )
    for tap_y in range(w.taps_y):
        for tap_x in range(w.taps_x):
            ahead = (tap_y % w.grids_y * w.grids_x + tap_x % w.grids_x) * grid
            ahead += tap_y // w.grids_y * w.jump_y * width + tap_x // w.grids_x * w.jump_x
            tap = tap_y * w.taps_x + tap_x
            for i in range(each):
                store_64(steps, LIST_HEAD + tap * each + i, ahead * pixel_bytes + i * step)
            if summed != 0:
                _add_row_sums(w, of_pixels, x0, rows, ahead, tap == 0, sums)
