"""A few rows by an rhs that is read where it lies: no panels, one pass, its column sums among the products.

Packing an rhs for one row writes and reads each byte again, which takes longer than the product. Here the registers are filled from the
matrix itself. Where its rows are contiguous, bytes of four of them are interleaved in registers, `DEPTH_AT_A_TIME` rows at a time over
all columns, so that memory is read in long runs; the int32 sums wait in the first-level cache. Where its columns are contiguous, a
register holds a piece of one column, and its products are added up at the end.

Sums of columns are the products with a row of ones: one more row.
"""

from __future__ import annotations

import functools

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
    shuffle,
    splat,
    store,
    vec,
)

#: Rows of the rhs that pass over the columns together, where rows are contiguous.
DEPTH_AT_A_TIME = 32
#: Columns that are read together, where columns are contiguous.
COLUMNS_AT_A_TIME = 4
#: How far ahead memory is asked for, in bytes of a row and of a column of the rhs. At the end of a block's piece of a row that is in vain.
ROW_AHEAD, COLUMN_AHEAD = 512, 1024


def rows_in_place(kernel: Kernel) -> int:
    """Rows up to which a kernel multiplies an rhs in place, 0 if it does not: so many that their sums fit the registers."""
    if kernel.expect != "vpdpbusd" or kernel.kr != 4:
        return 0
    return 4 if kernel.lanes == 16 else 2


def _interleaved(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Four registers of bytes as four with 4 bytes of each column, as int32: unpacking within 16-byte lanes, twice.

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


def _ask(b: ir.IRBuilder, address: ir.Value) -> None:
    args = [address, const(i32, 0), const(i32, 2), const(i32, 1)]
    call_intrinsic(b, "llvm.prefetch.p0", ir.VoidType(), args)


@intrinsic(prefer_literal=True)
def _by_rows(typingctx, kernel_id, rows, args):
    """One register's width of columns by some groups of 4 depth steps, added to sums in the order of `_interleaved`.

    `args`: groups, first group's address in the rhs and its row stride, the byte to flip by, the lhs and its row stride, the sums (for
    each row, and for the ones, 4 registers) and their row stride.
    """
    kernel, count = by_id(kernel_id.literal_value), rows.literal_value
    lanes, width = kernel.lanes, 4 * kernel.lanes

    def codegen(context, builder, signature, values):
        b = builder
        groups, rhs, rhs_stride, flip, lhs, lhs_stride, sums, sums_stride = cgutils.unpack_tuple(b, values[2])
        ty, words = vec(i8, width), vec(i32, lanes)
        flips = splat(b, b.trunc(flip, i8), width)
        ones = const(words, 0x01010101)
        places = [
            at(b, at(b, sums, b.mul(sums_stride, const(i64, r))), j * width)
            for r in range(count + 1)
            for j in range(4)
        ]
        starts = [load(b, words, p, 4) for p in places]
        entry, body, done = (
            b.block,
            b.function.append_basic_block("groups"),
            b.function.append_basic_block("summed"),
        )
        b.branch(body)
        b.position_at_end(body)
        step = b.phi(i64)
        step.add_incoming(const(i64, 0), entry)
        phis = [b.phi(words) for _ in starts]
        for phi, start in zip(phis, starts, strict=True):
            phi.add_incoming(start, entry)
        first = at(b, rhs, b.mul(rhs_stride, b.mul(step, const(i64, 4))))
        taken = []
        for i in range(4):
            source = at(b, first, b.mul(rhs_stride, const(i64, i)))
            _ask(b, at(b, source, ROW_AHEAD))
            taken.append(b.xor(load(b, ty, source), flips))
        columns = _interleaved(b, taken)
        after = []
        for r in range(count + 1):
            left = ones
            if r < count:
                row = at(b, at(b, lhs, b.mul(lhs_stride, const(i64, r))), b.mul(step, const(i64, 4)))
                left = kernel.load_lhs(b, row)
            after += [kernel.product(b, (phis[4 * r + j],), left, columns[j])[0] for j in range(4)]
        following = b.add(step, const(i64, 1))
        step.add_incoming(following, body)
        for phi, x in zip(phis, after, strict=True):
            phi.add_incoming(x, body)
        b.cbranch(b.icmp_signed("<", following, groups), body, done)
        b.position_at_end(done)
        for place, x in zip(places, after, strict=True):
            store(b, x, place, 4)
        return context.get_dummy_value()

    v, n = types.voidptr, types.intp
    return types.void(kernel_id, rows, types.Tuple((n, v, n, n, v, n, v, n))), codegen


@intrinsic(prefer_literal=True)
def _by_columns(typingctx, kernel_id, rows, columns, args):
    """Some columns along the depth, a register at a time, added to int32 sums.

    `args`: registers of depth, first column's address and the column stride, the byte to flip by, the lhs and its row stride, the
    sums (for each row, and for the ones, `columns` of them) and their row stride.
    """
    kernel, count, wide = by_id(kernel_id.literal_value), rows.literal_value, columns.literal_value
    lanes, width = kernel.lanes, 4 * kernel.lanes

    def codegen(context, builder, signature, values):
        b = builder
        steps, rhs, rhs_stride, flip, lhs, lhs_stride, sums, sums_stride = cgutils.unpack_tuple(b, values[3])
        ty, words = vec(i8, width), vec(i32, lanes)
        flips = splat(b, b.trunc(flip, i8), width)
        zero, ones = const(words, 0), const(words, 0x01010101)
        entry, body, done = (
            b.block,
            b.function.append_basic_block("steps"),
            b.function.append_basic_block("summed"),
        )
        b.branch(body)
        b.position_at_end(body)
        step = b.phi(i64)
        step.add_incoming(const(i64, 0), entry)
        phis = [b.phi(words) for _ in range((count + 1) * wide)]
        for phi in phis:
            phi.add_incoming(zero, entry)
        place = b.mul(step, const(i64, width))
        right = []
        for c in range(wide):
            source = at(b, at(b, rhs, b.mul(rhs_stride, const(i64, c))), place)
            _ask(b, at(b, source, COLUMN_AHEAD))
            right.append(b.bitcast(b.xor(load(b, ty, source), flips), words))
        after = []
        for r in range(count + 1):
            left = ones
            if r < count:
                left = load(b, words, at(b, at(b, lhs, b.mul(lhs_stride, const(i64, r))), place))
            after += [kernel.product(b, (phis[wide * r + c],), left, right[c])[0] for c in range(wide)]
        following = b.add(step, const(i64, 1))
        step.add_incoming(following, body)
        for phi, x in zip(phis, after, strict=True):
            phi.add_incoming(x, body)
        b.cbranch(b.icmp_signed("<", following, steps), body, done)
        b.position_at_end(done)
        for i, x in enumerate(after):
            total = call_intrinsic(b, f"llvm.vector.reduce.add.v{lanes}i32", i32, [x])
            to = at(b, at(b, sums, b.mul(sums_stride, const(i64, i // wide))), 4 * (i % wide))
            store(b, b.add(load(b, i32, to, 4), total), to, 4)
        return context.get_dummy_value()

    v, n = types.voidptr, types.intp
    return types.void(kernel_id, rows, columns, types.Tuple((n, v, n, n, v, n, v, n))), codegen


@inner
def _copy_rows(source, row_stride, k_stride, rows, depth, padded, flip, to, sums):
    """Rows of the lhs one after the other, flipped, zeros behind them; and their sums."""
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
def _edge(source, stride, count, size, wide, flip, to):
    """`count` runs of `size` bytes, `stride` apart, as runs of `wide` bytes; what is added is zero once it is flipped."""
    for i in range(count):
        for k in range(wide):
            store_8(to, i * wide + k, load_u8(source, i * stride + k) if k < size else flip)


@register_jitable
def space_bytes(lanes, rows, cols, depth):
    """Bytes of memory that a product needs."""
    width = 4 * lanes
    return rows * up(depth, width) + 4 * (rows + 1) * (up(cols, width) + width) + 4 * width + 256


def _make(kernel_id: int, key: int, lanes: int, most: int) -> Routine:
    width = 4 * lanes
    wide = COLUMNS_AT_A_TIME
    three = min(3, most)

    @routine(signature("pnnnnnpnnnnppnpp"), key)
    def multiply(
        lhs, lhs_row_stride, lhs_k_stride, rows, depth, lhs_flip, rhs, rhs_k_stride, rhs_n_stride, cols, rhs_flip, space, tile,
        ld, row_sums, col_sums,
    ):  # fmt: skip
        """Int32 products of the flipped operands to `tile`, whose rows are `ld` elements apart, and sums of rows and columns."""
        padded = (depth + width - 1) // width * width
        _copy_rows(lhs, lhs_row_stride, lhs_k_stride, rows, depth, padded, lhs_flip, space, row_sums)
        block = offset(space, rows * padded)
        sums = offset(block, 4 * width + (-(rows * padded + 4 * width)) % 64)
        if rhs_k_stride == 1:
            # at the end of the depth, a padded copy
            whole = depth // width
            left = depth - whole * width
            for col in range(0, cols, wide):
                count = min(wide, cols - col)
                for i in range((rows + 1) * wide):
                    store_32(sums, i, 0)
                source = offset(rhs, col * rhs_n_stride)
                for c in range(0, count, wide if count == wide else 1):
                    start, to = offset(source, c * rhs_n_stride), offset(sums, 4 * c)
                    for part in range(2):
                        steps = whole if part == 0 else min(left, 1)
                        if steps == 0:
                            continue
                        from_, stride, row = start, rhs_n_stride, space
                        if part == 1:
                            _edge(
                                offset(start, whole * width), rhs_n_stride, wide if count == wide else 1, left, width, rhs_flip,
                                block,
                            )  # fmt: skip
                            from_, stride, row = block, width, offset(space, whole * width)
                        args = (steps, from_, stride, rhs_flip, row, padded, to, 4 * wide)
                        if count == wide:
                            if rows == 1:
                                _by_columns(kernel_id, 1, wide, args)
                            elif rows == 2:
                                _by_columns(kernel_id, 2, wide, args)
                            elif most > 2 and rows == 3:
                                _by_columns(kernel_id, three, wide, args)
                            elif most > 2:
                                _by_columns(kernel_id, most, wide, args)
                        elif rows == 1:
                            _by_columns(kernel_id, 1, 1, args)
                        elif rows == 2:
                            _by_columns(kernel_id, 2, 1, args)
                        elif most > 2 and rows == 3:
                            _by_columns(kernel_id, three, 1, args)
                        elif most > 2:
                            _by_columns(kernel_id, most, 1, args)
                for c in range(count):
                    for r in range(rows):
                        store_32(tile, r * ld + col + c, load_i32(sums, r * wide + c))
                    store_32(col_sums, col + c, load_i32(sums, rows * wide + c))
        else:
            blocks = (cols + width - 1) // width
            stride = 4 * width * blocks
            for i in range((rows + 1) * width * blocks):
                store_32(sums, i, 0)
            for k in range(0, depth, DEPTH_AT_A_TIME):
                steps = min(DEPTH_AT_A_TIME, depth - k)
                for i in range(blocks):
                    # the last registers reach back over columns that were taken before
                    col = min(i * width, cols - width)
                    to = offset(sums, 4 * width * i)
                    start = offset(rhs, k * rhs_k_stride + col)
                    for part in range(2):
                        groups = steps // 4 if part == 0 else min(steps % 4, 1)
                        if groups == 0:
                            continue
                        from_, step, row = start, rhs_k_stride, offset(space, k)
                        if part == 1:
                            done = steps // 4 * 4
                            for j in range(4 * width):
                                store_8(block, j, rhs_flip)
                            _edge(
                                offset(start, done * rhs_k_stride),
                                rhs_k_stride,
                                steps - done,
                                width,
                                width,
                                rhs_flip,
                                block,
                            )
                            from_, step, row = block, width, offset(space, k + done)
                        args = (groups, from_, step, rhs_flip, row, padded, to, stride)
                        if rows == 1:
                            _by_rows(kernel_id, 1, args)
                        elif rows == 2:
                            _by_rows(kernel_id, 2, args)
                        elif most > 2 and rows == 3:
                            _by_rows(kernel_id, three, args)
                        elif most > 2:
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
                                store_32(
                                    to, 16 * lane + 4 * j + e, load_i32(at_row, lanes * j + 4 * lane + e)
                                )

    return multiply


@routine("pnnnpp")
def add_compensation(tile, ld, rows, cols, for_rows, for_cols):
    """Add an int32 for each row and one for each column to a tile."""
    for r in range(rows):
        one = np.int32(load_i32(for_rows, r))
        row = numba.carray(offset(tile, 4 * r * ld), (cols,), np.int32)
        each = numba.carray(for_cols, (cols,), np.int32)
        for c in range(cols):
            row[c] += each[c] + one


@functools.cache
def in_place_routine(kernel: Kernel) -> Routine:
    """The routine for a kernel whose `rows_in_place` is not 0.

    Arguments: the lhs, its row and depth strides, rows, depth, the byte to flip it by; the rhs, its depth and column strides, columns,
    the byte to flip it by; memory (`space_bytes`); the tile and its row stride in elements; int32 sums of rows and of columns. One of
    the strides of the rhs is 1; with contiguous rows `cols` is at least a register's bytes.
    """
    return _make(id_of(kernel), stamp_of(kernel), kernel.lanes, rows_in_place(kernel))
