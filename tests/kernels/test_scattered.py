"""Kernels that read an lhs through a list, beside its definition (`Kernel.scatters`)."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from lowgemm import kernels
from lowgemm.jit.scratch import aligned_empty
from lowgemm.kernels import x86_amx_int8
from lowgemm.kernels.framework.kernel import EITHER
from lowgemm.kernels.tools import cross

SOFTWARE = kernels.in_software(x86_amx_int8.KERNEL)
SCATTERS = [k for k in kernels.all_kernels() if k.scatters]


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="kernels are compiled")
@pytest.mark.parametrize("kernel", SCATTERS, ids=lambda k: k.name)
def test_a_scattered_lhs(kernel):
    """Pieces anywhere, rows of the result in any order, and of two with one place the later."""
    if kernels.why_not(kernel):
        pytest.skip(kernels.why_not(kernel))
    lanes, kr = kernel.lanes, kernel.kr
    for seed in range(40):
        g = np.random.default_rng(seed)
        piece = kernel.piece_bytes(kr * int(g.integers(1, 60)))
        signed = bool(seed % 2) and kernel.lhs_type == EITHER
        rows, pieces = int(g.integers(1, 100)), int(g.integers(1, 24))
        panels = int(g.integers(1, 6 if kernel.any_panels else kernel.max_nv + 1))
        stride, cols, depth = piece * int(g.integers(1, 40)), lanes * panels, piece * pieces
        at_pieces = piece * g.integers(0, 9, pieces)
        memory = aligned_empty(rows * stride + piece * 10)
        memory[:] = g.integers(0, 256, memory.size, dtype=np.uint8)
        rhs = g.integers(-128, 128, (depth, cols), dtype=np.int8)
        packed = aligned_empty(rhs.size)
        ordered = rhs.reshape(depth // kr, kr, panels, lanes).transpose(2, 0, 3, 1)
        packed[:] = ordered.ravel().view(np.uint8)
        lhs = np.array(
            [np.concatenate([memory[r * stride + s :][:piece] for s in at_pieces]) for r in range(rows)]
        ).view(np.int8 if signed else np.uint8)
        places = g.integers(0, rows, rows) if seed % 4 > 1 else np.arange(rows)
        of_rows, of_cols = (g.integers(-(2**20), 2**20, n).astype(np.int32) for n in (rows, cols))
        found, expected = np.zeros((2, rows, cols), np.int32)
        for r, place in enumerate(places):
            expected[place] = lhs[r].astype(np.int32) @ rhs.astype(np.int32) + of_rows[place] + of_cols
        numbers = np.array([memory.ctypes.data, rows, places.ctypes.data, piece, *at_pieces], np.int64)
        kernels.microkernel(kernel, signed, scattered=True).ctypes(
            0, panels, depth // kr, numbers.ctypes.data, stride, packed.ctypes.data, lanes * depth,
            found.ctypes.data, cols, of_rows.ctypes.data, of_cols.ctypes.data, 0, None, 0,
        )  # fmt: skip
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["x86_avx512vnni", "x86_avxvnni"])
def test_sums_stay_in_registers(name):
    """Of tiles of two panels; addresses may wait on the stack. With three LLVM loads all rows first and some
    sums wait there too, which costs nothing that could be measured: two panels a call are 0 to 10 % slower.
    """
    kernel = kernels.by_name(name)
    assembly, _ = cross.compile_for(kernel, scattered=True)
    loops = cross.depth_loops(assembly, kernel.expect)
    assert len(loops) >= len(kernel.row_tiles) * kernel.max_nv
    most = 2 * kernel.mr
    small = [loop for loop in loops if sum(kernel.expect in line for line in loop) <= most]
    assert any(sum(kernel.expect in line for line in loop) == most for loop in small)
    for loop in small:
        assert not [line for line in cross.spills(loop) if "xmm" in line or "ymm" in line or "zmm" in line]
