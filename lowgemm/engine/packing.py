"""Packing: both operands into the panels that a kernel reads, with their sums, in one pass.

The panel layout is drawn in `kernels/framework/kernel.py`. Both sides have the same routines: "mn" is the row
index of the lhs or the column index of the rhs, `width` the panel's height or width. Three cases:

* depth is contiguous in memory (row-major lhs, column-major rhs): a transposition of 4- or 8-byte units,
  `width` rows by 16 bytes or a register at a time (`panels.py`);
* mn is contiguous (column-major lhs, row-major rhs): bytes of `kr` depth steps are interleaved, up to 64
  columns at a time so that each cache line is read once even when a power-of-two stride lets lines evict
  each other;
* anything else, and every edge: elements are gathered into a small padded block first.

One routine is quick in the first case, another in the second, and both do the third. Most programs need one
of the two for each side, and compile no more.

Next files to open: `panels.py`, the instructions; `tiles.py`, the tile loop.
"""

from __future__ import annotations

import functools

from lowgemm.engine.packing_ir import CHUNK_BYTES, copy_start, interleave, power_of_two, transpose
from lowgemm.engine.rows import make_rows
from lowgemm.jit.memory import load_u8, offset, smaller, stack, store_8
from lowgemm.jit.routine import Routine, inner, routine, signature
from lowgemm.kernels import Kernel, id_of, rhs_packer, stamp_of
from lowgemm.kernels.framework.kernel import EITHER

#: Columns that the interleaving case reads from each row at a time: one cache line.
LINE = 64
#: Depth rows packed at a time where each lies on a page of its own: their pages stay in the first TLB, and
#: the lines that the hardware fetches ahead are used. 4096 x 4096 row-major from 9.0 to 14.4 GB/s on Zen 5
#: (32 or 256 rows: 13.3). Rows that share pages are better packed in one go (4096 x 1024: 27 GB/s against
#: 21).
DEPTH_ROWS, PAGE = 128, 4096


def padded_depth_bytes(kernel: Kernel, depth: int) -> int:
    """Bytes that one row or column of `depth` elements takes in a packed panel."""
    return -(-depth * kernel.element_bytes // CHUNK_BYTES) * CHUNK_BYTES


def groups(kernel: Kernel, depth: int) -> int:
    """Depth groups the kernel's loop runs over."""
    return -(-depth // kernel.kr)


# ---- the routine -----------------------------------------------------------------------------------------
_SIGNATURE = signature("pnnnnnpnp")


@inner
def _clear(sums, n):
    """Set n int32 at the pointer `sums` to 0."""
    for i in range(4 * n):
        store_8(sums, i, 0)


@inner
def _rows_before_the_end(mn_stride, rows, bytes_more):
    """How many of the first of `rows` rows, `mn_stride` bytes apart, have `bytes_more` bytes of others behind
    them.
    """
    if mn_stride <= 0:
        return 0
    return max(rows - (bytes_more + mn_stride - 1) // mn_stride, 0)


@inner
def _gather(src, mn_stride, k_stride, valid, k0, count, block, first, width, per_row, pad):
    """Copy `count` depth steps from `k0` on of `valid` rows into a padded block of `width` rows x `per_row`
    bytes, but for the `first` rows.

    `src` and `block` are pointers, the strides are in bytes, and `pad` is the byte of the padding.
    """
    for i in range(first, width):
        row = smaller(i, valid - 1) * mn_stride
        for j in range(per_row):
            value = pad
            if j < count:
                value = load_u8(src, row + (k0 + j) * k_stride)
            store_8(block, i * per_row + j, value)


def _make_pack(
    kernel_id: int, side: int, by_depth: bool, width: int, chunks: int, kr: int, element_bytes: int, key: int
) -> Routine:
    per_row = CHUNK_BYTES // element_bytes
    chunk_bytes = CHUNK_BYTES * width
    block_bytes = width * per_row
    wide = LINE // width
    # Numba leaves out what stands behind an `if` of such a name
    several_chunks, by_mn = by_depth and chunks > 1, not by_depth

    @routine(_SIGNATURE, key)
    def pack(src, mn_stride, k_stride, mn, depth, flip, dst, dst_stride, sums):
        """The arguments are described at `pack_routine`."""
        block = stack(block_bytes)
        # What the padding must hold so that it is zero once packed.
        pad = flip if element_bytes == 1 else 0
        panels = (mn + width - 1) // width
        _clear(sums, panels * width)
        rows_at_once = DEPTH_ROWS if k_stride >= PAGE else depth
        first = p = 0  # the depth step and the panel that come next
        while first < depth and panels > 0:
            rows = smaller(rows_at_once, depth - first)
            valid = smaller(width, mn - p * width)
            start = offset(src, p * width * mn_stride + first * k_stride)
            panel = offset(dst, p * dst_stride + first // per_row * chunk_bytes)
            total = offset(sums, 4 * p * width)
            done = 0  # depth steps packed
            count = 1
            if several_chunks and k_stride == 1:
                steps = rows // (chunks * per_row)
                transpose(
                    kernel_id, side, width, chunks, (start, mn_stride, valid, steps, flip, panel, total)
                )
                done = steps * chunks * per_row
            if by_mn and mn_stride == 1 and k_stride != 1 and valid == width:
                # whole chunks only, so that the remainder starts on a chunk
                steps = rows // per_row * (per_row // kr)
                if mn - p * width >= LINE:
                    count = wide
                    interleave(
                        kernel_id, side, width, wide, (start, k_stride, steps, flip, panel, dst_stride, total)
                    )
                else:
                    interleave(
                        kernel_id, side, width, 1, (start, k_stride, steps, flip, panel, dst_stride, total)
                    )
                done = rows // per_row * per_row
            for q in range(count):
                at_depth = done
                while at_depth < rows:
                    to = offset(panel, q * dst_stride + at_depth // per_row * chunk_bytes)
                    source, stride, height, steps = block, per_row, width, 1
                    if k_stride == 1 and rows - at_depth >= per_row:
                        # whole chunks, which are left of several at a time
                        source, stride, height = offset(start, at_depth), mn_stride, valid
                        steps = (rows - at_depth) // per_row
                    else:
                        steps_left, wide_rows = smaller(per_row, rows - at_depth), 0
                        if by_depth and k_stride == 1:
                            # a part of a chunk: read as a whole one, where that is not behind the matrix
                            behind = _rows_before_the_end(mn_stride, mn - p * width, per_row - steps_left)
                            wide_rows = smaller(valid, behind)
                            for i in range(wide_rows):
                                source_row = offset(start, i * mn_stride + at_depth)
                                copy_start(offset(block, i * per_row), source_row, per_row, steps_left, pad)
                        _gather(
                            offset(start, q * width * mn_stride), mn_stride, k_stride, valid, at_depth,
                            steps_left, block, wide_rows, width, per_row, pad,
                        )  # fmt: skip
                    transpose(
                        kernel_id, side, width, 1,
                        (source, stride, height, steps, flip, to, offset(total, 4 * q * width)),
                    )  # fmt: skip
                    at_depth += steps * per_row
            p += count
            if p >= panels:
                p = 0
                first += rows

    return pack


@functools.cache
def pack_routine(kernel: Kernel, side: str, by_depth: bool) -> Routine:
    """Packing routine of one side of a kernel (`side` is ``"lhs"`` or ``"rhs"``). It takes any strides, and
    is quick where the depth is contiguous (`by_depth`), or else where rows, or columns, are.

    C signature: ``(src, mn_stride, k_stride, mn, depth, flip, dst, dst_stride, sums)``.

    `src` points to element (0, 0) of the matrix, of `mn` rows or columns and of `depth`; its strides are in
    bytes. `flip` is 0x80 or 0 (see `element_map`). `dst` points to the first panel, and `dst_stride` is the
    bytes from one panel to the next. `sums` receives one int32 for each row of every panel, the sum of its
    packed elements over the depth, modulo 2**32.
    """
    if side == "lhs" and kernel.row_bytes:
        return make_rows(id_of(kernel), kernel.row_bytes, stamp_of(kernel))
    if side == "rhs":
        kernel = rhs_packer(kernel)
    width = kernel.mr if side == "lhs" else kernel.lanes
    return _make_pack(
        id_of(kernel), int(side == "rhs"), by_depth, width, _chunks(kernel, width), kernel.kr,
        kernel.element_bytes, stamp_of(kernel),
    )  # fmt: skip


def sums_routine(kernel: Kernel) -> Routine:
    """The routine of `rows.py` for a kernel that reads pixels where they were copied to: their sums alone."""
    return make_rows(id_of(kernel), kernel.row_bytes or LINE, stamp_of(kernel))


def _chunks(kernel: Kernel, width: int) -> int:
    """16-byte chunks of each row that a transposition takes at a time: a register, if the exchanges work out,
    or one.
    """
    unit = kernel.kr * kernel.element_bytes
    n = CHUNK_BYTES // unit
    quads = power_of_two(-(-width // n))
    chunks = min(4 * kernel.lanes, LINE) // CHUNK_BYTES
    return chunks if quads <= chunks <= quads * n and chunks == power_of_two(chunks) else 1


def element_map(kernel: Kernel, side: str, dtype_kind: str) -> tuple[int, int]:
    """How raw elements become packed ones: the byte to xor, and what was subtracted from the value by that.

    A uint8 value x stored as int8 is ``x ^ 0x80``, which reads as ``x - 128``; an int8 value stored as uint8
    is the same flip and reads as ``x + 128``. The zero point moves along, so the product stays exact: ``(x -
    d) - (zero_point - d) = x - zero_point``. A 16-bit element holds both signs as they are.
    """
    stored = kernel.lhs_type if side == "lhs" else kernel.rhs_type
    unsigned = dtype_kind == "u"
    if stored == EITHER:  # the bytes stay as they are; `rows.py` flips them for their sums alone
        return (0 if unsigned else 0x80), 0
    if stored == "s16":
        return (0x80 if unsigned else 0), 0
    if unsigned == (stored == "u8"):
        return 0, 0
    return 0x80, (128 if unsigned else -128)
