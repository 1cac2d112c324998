"""A few rows by an rhs that is read where it lies: no panels, one pass, its column sums among the products.

Packing an rhs for one row writes and reads each byte again, which takes longer than the product. Here the
registers are filled from the matrix itself. Where its rows are contiguous, bytes of four of them are
interleaved in registers, `DEPTH_AT_A_TIME` rows at a time over all columns, so that memory is read in long
runs; the int32 sums wait in the first-level cache. Where its columns are contiguous, a register holds a piece
of one column, and its products are added up at the end.

Sums of columns are the products with a row of ones: one more row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from lowgemm.engine.blocking import up
from lowgemm.jit.memory import load_i32, load_u8, offset, store_8, store_32
from lowgemm.jit.routine import Routine, inner, routine, signature
from lowgemm.kernels import Kernel, by_id, id_of, stamp_of
from lowgemm.kernels.framework.irtools import (
    at,
    call_intrinsic,
    const,
    i8,
    i32,
    i64,
    load,
    prefetch,
    repeat,
    shuffle,
    splat,
    store,
    vec,
)

#: Rows of the rhs that pass over the columns together, where rows are contiguous.
DEPTH_AT_A_TIME = 16
#: Columns that are read together, where columns are contiguous.
COLUMNS_AT_A_TIME = 4
#: Runs of a copy of what is left at the end of the depth: 4 depth steps, or as many columns as are read
#: together.
EDGE_RUNS = 4
#: How far ahead memory is asked for, in bytes of a row and of a column of the rhs; at their end, from the
#: beginning of the next ones. (1 x 4096 x 4096 that no cache holds, Sapphire Rapids: 1.25 and 1.27 ms. Asking
#: for a whole turn ahead 1.29 and 1.30; half and double of these 1.24 to 1.27 and 1.29 to 1.31. Twice the
#: rows together 1.41.)
ROW_AHEAD, COLUMN_AHEAD = 1024, 2048


def rows_in_place(kernel: Kernel) -> int:
    """Rows up to which a kernel multiplies an rhs in place, 0 if it does not: so many that their sums fit the
    registers.
    """
    if kernel.expect != "vpdpbusd" or kernel.kr != 4 or kernel.lhs_type != "u8":
        return 0
    return 4 if kernel.lanes == 16 else 2


def _interleaved(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Four registers of bytes as four with 4 bytes of each column, as int32: unpacking within 16-byte lanes,
    twice.

    Register j of the result has, from lane l of the operands, columns 16 l + 4 j and the next three.
    """
    width = rows[0].type.count

    def unpack(x: ir.Value, y: ir.Value, half: int, unit: int) -> ir.Value:
        mask = []
        for lane in range(0, width, 16):
            for i in range(lane + 8 * half, lane + 8 * half + 8, unit):
                mask += [*range(i, i + unit), *range(width + i, width + i + unit)]
        return shuffle(b, x, y, mask)

    found = []
    for half in range(2):
        low, high = unpack(rows[0], rows[1], half, 1), unpack(rows[2], rows[3], half, 1)
        found += [unpack(low, high, quarter, 2) for quarter in range(2)]
    return [b.bitcast(x, vec(i32, width // 4)) for x in found]


def _for_each_count(b: ir.IRBuilder, count: ir.Value, most: int, emit: Callable[[int], None]) -> None:
    """Emit code for 1, 2, ... `most` rows; a call runs that for `count`."""
    after = b.function.append_basic_block("counted")
    switch = b.switch(count, after)
    for number in range(1, most + 1):
        block = b.function.append_basic_block(f"rows_{number}")
        switch.add_case(const(i64, number), block)
        b.position_at_end(block)
        emit(number)
        b.branch(after)
    b.position_at_end(after)


def _taken(b: ir.IRBuilder, ty: ir.Type, source: ir.Value, flips: ir.Value, ahead: ir.Value) -> ir.Value:
    """A register of the rhs, flipped; memory is asked for what lies `ahead` bytes behind it."""
    prefetch(b, at(b, source, ahead))
    return b.xor(load(b, ty, source), flips)


#: What `_by_rows` and `_by_columns` take: how many rows of the lhs there are and how many turns of the loop;
#: where the rhs begins, from one of its rows (or columns) to the next, the byte to flip it by, and how far
#: ahead memory is asked for; the lhs and its row stride; int32 sums, for each row and then for the ones, and
#: from one to the next.
_ARGUMENTS = types.Tuple(
    [types.voidptr if a in ("rhs", "lhs", "sums") else types.intp for a in
     ("rows", "turns", "rhs", "rhs_stride", "flip", "ahead", "lhs", "lhs_stride", "sums", "sums_stride")]
)  # fmt: skip


@intrinsic(prefer_literal=True)
def _by_rows(typingctx, kernel_id, most, args):
    """One register's width of columns by some groups of 4 depth steps, added to sums in the order of
    `_interleaved`.

    `args` is as `_ARGUMENTS` says; sums are 4 registers for each row.
    """
    kernel, highest = by_id(kernel_id.literal_value), most.literal_value
    lanes, width = kernel.lanes, 4 * kernel.lanes

    def codegen(context, builder, signature, values):
        b = builder
        rows, groups, rhs, rhs_stride, flip, ahead, lhs, lhs_stride, sums, sums_stride = cgutils.unpack_tuple(
            b, values[2]
        )
        ty, words = vec(i8, width), vec(i32, lanes)
        flips, ones = splat(b, b.trunc(flip, i8), width), const(words, 0x01010101)

        def emit(count: int) -> None:
            starts = [at(b, sums, b.mul(sums_stride, const(i64, r))) for r in range(count + 1)]
            places = [at(b, start, j * width) for start in starts for j in range(4)]

            def turn(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
                depth = b.mul(number, const(i64, 4))
                sources = [at(b, rhs, b.mul(rhs_stride, b.add(depth, const(i64, i)))) for i in range(4)]
                columns = _interleaved(b, [_taken(b, ty, source, flips, ahead) for source in sources])
                lefts = [
                    kernel.load_lhs(b, at(b, at(b, lhs, b.mul(lhs_stride, const(i64, r))), depth))
                    for r in range(count)
                ]
                pairs = [(left, column) for left in [*lefts, ones] for column in columns]
                return [kernel.product(b, (t,), *pair)[0] for t, pair in zip(totals, pairs, strict=True)]

            totals = repeat(b, groups, [load(b, words, p, 4) for p in places], turn)
            for place, total in zip(places, totals, strict=True):
                store(b, total, place, 4)

        _for_each_count(b, rows, highest, emit)
        return context.get_dummy_value()

    return types.void(kernel_id, most, _ARGUMENTS), codegen


@intrinsic(prefer_literal=True)
def _by_columns(typingctx, kernel_id, most, args, columns):
    """`COLUMNS_AT_A_TIME` columns along the depth, a register at a time, added to int32 sums.

    `args` is as `_ARGUMENTS` says; sums are one for each column. Of less `columns` the last one takes the
    others' places.
    """
    kernel, highest = by_id(kernel_id.literal_value), most.literal_value
    lanes, width, wide = kernel.lanes, 4 * kernel.lanes, COLUMNS_AT_A_TIME

    def codegen(context, builder, signature, values):
        b = builder
        rows, steps, rhs, rhs_stride, flip, ahead, lhs, lhs_stride, sums, sums_stride = cgutils.unpack_tuple(
            b, values[2]
        )
        ty, words = vec(i8, width), vec(i32, lanes)
        flips, ones = splat(b, b.trunc(flip, i8), width), const(words, 0x01010101)
        starts = []
        for c in range(wide):
            there = b.icmp_signed("<", const(i64, c), values[3])
            column = b.select(there, const(i64, c), b.sub(values[3], const(i64, 1)))
            starts.append(at(b, rhs, b.mul(rhs_stride, column)))

        def emit(count: int) -> None:
            def turn(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
                place = b.mul(number, const(i64, width))
                rights = [
                    b.bitcast(_taken(b, ty, at(b, start, place), flips, ahead), words) for start in starts
                ]
                lefts = [
                    load(b, words, at(b, at(b, lhs, b.mul(lhs_stride, const(i64, r))), place))
                    for r in range(count)
                ]
                pairs = [(left, right) for left in [*lefts, ones] for right in rights]
                return [kernel.product(b, (t,), *pair)[0] for t, pair in zip(totals, pairs, strict=True)]

            totals = repeat(b, steps, [const(words, 0)] * ((count + 1) * wide), turn)
            for i, x in enumerate(totals):
                total = call_intrinsic(b, f"llvm.vector.reduce.add.v{lanes}i32", i32, [x])
                to = at(b, at(b, sums, b.mul(sums_stride, const(i64, i // wide))), 4 * (i % wide))
                store(b, b.add(load(b, i32, to, 4), total), to, 4)

        _for_each_count(b, rows, highest, emit)
        return context.get_dummy_value()

    return types.void(kernel_id, most, _ARGUMENTS, types.intp), codegen


@inner
def _copy_rows(source, row_stride, k_stride, rows, depth, padded, flip, to, sums):
    """`rows` rows of the lhs one after the other to `to`, flipped, with zeros up to `padded` bytes behind
    them; and their sums.
    """
    for r in range(rows):
        start, row = offset(source, r * row_stride), offset(to, r * padded)
        total = 0
        if k_stride == 1:
            near, far = numba.carray(start, (depth,), np.uint8), numba.carray(row, (padded,), np.uint8)
            count = np.int32(0)
            byte = np.uint8(flip)
            for k in range(depth):
                x = near[k] ^ byte
                far[k] = x
                count += np.int32(x)
            total = count
        else:
            for k in range(depth):
                x = load_u8(start, k * k_stride) ^ flip
                store_8(row, k, x)
                total += x
        for k in range(depth, padded):
            store_8(row, k, 0)
        store_32(sums, r, total)


@inner
def _edge(source, stride, runs, size, wide, flip, to):
    """`runs` runs of `size` bytes, `stride` apart, as `EDGE_RUNS` runs of `wide` bytes; what is added is zero
    once it is flipped.
    """
    for i in range(EDGE_RUNS):
        for k in range(wide):
            there = i < runs and k < size
            store_8(to, i * wide + k, load_u8(source, i * stride + k) if there else flip)


@register_jitable
def space_bytes(lanes, rows, cols, depth):
    """Bytes of memory that a product needs."""
    width = 4 * lanes
    return rows * up(depth, width) + 4 * (rows + 1) * (up(cols, width) + width) + 4 * width + 256


#: Of the routines that `in_place_routine` describes.
_SIGNATURE = signature("pnnnnnpnnnnppnpp")


def _make_by_rows(kernel_id: int, key: int, lanes: int, most: int) -> Routine:
    width = 4 * lanes

    @routine(_SIGNATURE, key)
    def by_rows(
        lhs, lhs_row_stride, lhs_k_stride, rows, depth, lhs_flip, rhs, rhs_k_stride, rhs_n_stride, cols,
        rhs_flip, space, tile, ld, row_sums, col_sums,
    ):  # fmt: skip
        """By an rhs whose rows are contiguous."""
        padded = (depth + width - 1) // width * width
        _copy_rows(lhs, lhs_row_stride, lhs_k_stride, rows, depth, padded, lhs_flip, space, row_sums)
        block = offset(space, rows * padded)
        sums = offset(block, 4 * width + (-(rows * padded + 4 * width)) % 64)
        blocks = (cols + width - 1) // width
        stride = 4 * width * blocks
        for i in range((rows + 1) * width * blocks):
            store_32(sums, i, 0)
        whole = depth // 4 * 4
        next_rows = DEPTH_AT_A_TIME * rhs_k_stride - cols  # from the end of these
        for k in range(0, whole, DEPTH_AT_A_TIME):
            groups = min(DEPTH_AT_A_TIME, whole - k) // 4
            for i in range(blocks):
                # the last registers reach back over columns that were taken before
                col = min(i * width, cols - width)
                start, to = offset(rhs, k * rhs_k_stride + col), offset(sums, 4 * width * i)
                ahead = ROW_AHEAD if col + ROW_AHEAD < cols else ROW_AHEAD + next_rows
                args = (
                    rows, groups, start, rhs_k_stride, rhs_flip, ahead, offset(space, k), padded, to, stride,
                )  # fmt: skip
                _by_rows(kernel_id, most, args)
        if whole < depth:
            for i in range(blocks):
                start = offset(rhs, whole * rhs_k_stride + min(i * width, cols - width))
                _edge(start, rhs_k_stride, depth - whole, width, width, rhs_flip, block)
                to = offset(sums, 4 * width * i)
                args = (rows, 1, block, width, rhs_flip, 0, offset(space, whole), padded, to, stride)
                _by_rows(kernel_id, most, args)
        for i in range(blocks):
            col = min(i * width, cols - width)
            for r in range(rows + 1):
                at_row = offset(sums, r * stride + 4 * width * i)
                to = offset(tile, 4 * (r * ld + col)) if r < rows else offset(col_sums, 4 * col)
                # column 16 l + 4 j + e is element 4 l + e of register j
                for j in range(4):
                    for lane in range(lanes // 4):
                        for e in range(4):
                            store_32(to, 16 * lane + 4 * j + e, load_i32(at_row, lanes * j + 4 * lane + e))

    return by_rows


def _make_by_columns(kernel_id: int, key: int, lanes: int, most: int) -> Routine:
    width = 4 * lanes
    wide = COLUMNS_AT_A_TIME

    @routine(_SIGNATURE, key)
    def by_columns(
        lhs, lhs_row_stride, lhs_k_stride, rows, depth, lhs_flip, rhs, rhs_k_stride, rhs_n_stride, cols,
        rhs_flip, space, tile, ld, row_sums, col_sums,
    ):  # fmt: skip
        """By an rhs whose columns are contiguous."""
        padded = (depth + width - 1) // width * width
        _copy_rows(lhs, lhs_row_stride, lhs_k_stride, rows, depth, padded, lhs_flip, space, row_sums)
        block = offset(space, rows * padded)
        sums = offset(block, 4 * width + (-(rows * padded + 4 * width)) % 64)
        steps, whole = depth // width, depth // width * width
        near = max(
            0, steps - COLUMN_AHEAD // width
        )  # steps behind which there are so many bytes of the column
        next_columns = wide * rhs_n_stride - whole  # from the end of these
        for col in range(0, cols, wide):
            count = min(wide, cols - col)
            start = offset(rhs, col * rhs_n_stride)
            for i in range((rows + 1) * wide):
                store_32(sums, i, 0)
            for first, end, ahead in (
                (0, near, COLUMN_AHEAD),
                (near, steps, COLUMN_AHEAD + next_columns),
            ):
                if first < end:
                    k = first * width
                    args = (
                        rows, end - first, offset(start, k), rhs_n_stride, rhs_flip, ahead, offset(space, k),
                        padded, sums, 4 * wide,
                    )  # fmt: skip
                    _by_columns(kernel_id, most, args, count)
            if whole < depth:
                _edge(offset(start, whole), rhs_n_stride, count, depth - whole, width, rhs_flip, block)
                args = (rows, 1, block, width, rhs_flip, 0, offset(space, whole), padded, sums, 4 * wide)
                _by_columns(kernel_id, most, args, count)
            for c in range(count):
                for r in range(rows):
                    store_32(tile, r * ld + col + c, load_i32(sums, r * wide + c))
                store_32(col_sums, col + c, load_i32(sums, rows * wide + c))

    return by_columns


@routine("pnnnpp")
def add_compensation(tile, ld, rows, cols, for_rows, for_cols):
    """Add an int32 for each row (`for_rows`) and one for each column (`for_cols`) to a tile."""
    for r in range(rows):
        one = np.int32(load_i32(for_rows, r))
        row = numba.carray(offset(tile, 4 * r * ld), (cols,), np.int32)
        each = numba.carray(for_cols, (cols,), np.int32)
        for c in range(cols):
            row[c] += each[c] + one


@functools.cache
def in_place_routine(kernel: Kernel, by_columns: bool) -> Routine:
    """The routine for a kernel whose `rows_in_place` is not 0, and for an rhs whose rows or columns are
    contiguous.

    It stores int32 products of the flipped operands, and sums of their rows and columns. Arguments: the lhs,
    its row and depth strides, rows, depth, the byte to flip it by; the rhs, its depth and column strides,
    columns, the byte to flip it by; memory (`space_bytes`); the tile and its row stride in elements; int32
    sums of rows and of columns. With contiguous rows `cols` is at least a register's bytes.
    """
    make = _make_by_columns if by_columns else _make_by_rows
    return make(id_of(kernel), stamp_of(kernel), kernel.lanes, rows_in_place(kernel))
