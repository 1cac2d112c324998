"""The portable kernel: plain Numba loops, no vector IR, runs wherever Numba does.

    acc[n] += lhs[r, 2g] * rhs[2g, n] + lhs[r, 2g + 1] * rhs[2g + 1, n]      16-bit values -> int32

    lhs panel, group g (16 bytes)                  rhs panel, group g (128 bytes; elements of 16 bits)
    r0: k0 k1 | r1: k0 k1 | ... r3                 n0: k0 k1 | n1: k0 k1 | ... n31

Packed elements are 16 bits wide, two of them a word, so that the column loop is shifts, multiplications and
additions of whole words, which LLVM vectorises with whatever the target has (on AVX2 it finds `vpmaddwd` by
itself). That needs two things: sums on the stack, which no panel can overlap, and a loop too long to be
unrolled first. With panels of 16 columns and the sums in an array it stayed scalar: 4 GMAC/s on Zen 5 instead
of 35. It is also the template of the test-only kernels with odd tiles: every number of the description is
free here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowgemm.jit.memory import load_i32, load_s8, load_u8, offset, stack, store_32
from lowgemm.jit.routine import Routine, routine
from lowgemm.kernels.framework.kernel import SIGNATURE, Kernel


@dataclass(frozen=True)
class Portable(Kernel):
    """A kernel that is a Python function instead of tile hooks."""

    def compile(self, kernel_id: int, key: int) -> Routine:
        """The loops for this description's numbers."""
        if self.element_bytes == 2:
            return _make_words(self.mr, self.lanes, self.max_nv, self.kr, key)
        unsigned = self.lhs_type == "u8", self.rhs_type == "u8"
        return _make_bytes(self.mr, self.lanes, self.max_nv, self.kr, *unsigned, key)


def _make_words(mr: int, lanes: int, max_nv: int, kr: int, key: int) -> Routine:
    nr, words, space = lanes * max_nv, kr // 2, 4 * lanes * max_nv

    @routine(SIGNATURE, key)
    def portable(
        m,
        nv,
        groups,
        lhs,
        lhs_stride,
        rhs,
        rhs_stride,
        c,
        ldc,
        row_compensation,
        col_compensation,
        add_c,
        requant,
        col_at,
    ):
        """The arguments are described in `framework/kernel.py`; `col_at` is that of `col` there, which
        nothing here needs.
        """
        acc = stack(space)  # which LLVM knows that no panel overlaps
        for r in range(m):
            for i in range(nr):
                store_32(acc, i, np.int32(0))
            row = offset(lhs, r // mr * lhs_stride + r % mr * (2 * kr))
            for v in range(nv):
                panel = offset(rhs, v * rhs_stride)
                sums = offset(acc, v * (4 * lanes))
                for g in range(groups):
                    for w in range(words):
                        x = np.int32(load_i32(row, g * (mr * words) + w))
                        x0, x1 = np.int32(x << 16) >> 16, x >> 16
                        group = offset(panel, (g * (lanes * words) + w) * 4)
                        for i in range(lanes):
                            y = np.int32(load_i32(group, i * words))
                            products = x0 * (np.int32(y << 16) >> 16) + x1 * (y >> 16)
                            store_32(sums, i, np.int32(load_i32(sums, i) + products))
            for i in range(nv * lanes):
                value = load_i32(acc, i) + load_i32(row_compensation, r) + load_i32(col_compensation, i)
                if add_c:
                    value += load_i32(c, r * ldc + i)
                store_32(c, r * ldc + i, value)

    return portable


def _make_bytes(
    mr: int, lanes: int, max_nv: int, kr: int, lhs_unsigned: bool, rhs_unsigned: bool, key: int
) -> Routine:
    """Loops for 8-bit packed elements; only the test-only kernels use them."""

    @routine(SIGNATURE, key)
    def portable(
        m,
        nv,
        groups,
        lhs,
        lhs_stride,
        rhs,
        rhs_stride,
        c,
        ldc,
        row_compensation,
        col_compensation,
        add_c,
        requant,
        col_at,
    ):
        for r in range(m):
            row = offset(lhs, r // mr * lhs_stride + r % mr * kr)
            for i in range(nv * lanes):
                col = offset(rhs, i // lanes * rhs_stride + i % lanes * kr)
                acc = load_i32(row_compensation, r) + load_i32(col_compensation, i)
                if add_c:
                    acc += load_i32(c, r * ldc + i)
                for g in range(groups):
                    for k in range(kr):
                        x = load_s8(row, g * (mr * kr) + k)
                        y = load_s8(col, g * (lanes * kr) + k)
                        if lhs_unsigned:
                            x = load_u8(row, g * (mr * kr) + k)
                        if rhs_unsigned:
                            y = load_u8(col, g * (lanes * kr) + k)
                        acc += x * y
                store_32(c, r * ldc + i, acc)

    return portable


KERNEL = Portable(
    name="portable",
    features=(),
    mr=4,
    lanes=32,
    max_nv=1,
    kr=2,
    lhs_type="s16",
    rhs_type="s16",
    row_tiles=(1,),
)
