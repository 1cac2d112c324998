"""The plan of one product: kernel, blocking, threads, output routines, as numbers for `compute.py`.

Next file to open: `packing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowgemm import compute as c
from lowgemm import packing, threads, workspace
from lowgemm.blocking import Blocking, choose_blocking
from lowgemm.kernels import Kernel, microkernel
from lowgemm.output.pipeline import compile_pipeline


def _wrap32(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


@dataclass(frozen=True)
class Operand:
    """What a plan needs to know of a matrix operand: shape, byte strides, signedness ("u" or "i")."""

    shape: tuple[int, int]
    strides: tuple[int, int]
    kind: str


class Plan:
    """All that can be decided before the addresses are known.

    Parameters
    ----------
    kernel : Kernel
        The microkernel.
    lhs, rhs : Operand
        Operand shapes (m, depth) and (depth, n); the strides of a packed rhs do not matter.
    batch, slots : int
        Number of products, and of distinct rhs matrices among them.
    packed : bool
        The rhs is packed already.
    lhs_zero, rhs_zero : int or ndarray of int32
        Zero points.
    output : tuple of stages
        Checked pipeline.
    result : dtype
        Element type of the result.
    out_strides : tuple of int
        Byte strides (row, column) of the result.
    accumulate : bool
        Add to the result.
    num_threads : int or None
        As in `gemm`.
    """

    def __init__(
        self,
        kernel: Kernel,
        lhs: Operand,
        rhs: Operand,
        *,
        batch: int = 1,
        slots: int = 1,
        packed: bool = False,
        lhs_zero: int | np.ndarray = 0,
        rhs_zero: int | np.ndarray = 0,
        output: tuple[Any, ...] = (),
        result: np.dtype,
        out_strides: tuple[int, int],
        accumulate: bool = False,
        num_threads: int | None = None,
    ) -> None:
        (m, depth), n = lhs.shape, rhs.shape[1]
        self.kernel, self.packed, self.slots = kernel, packed, slots
        self.m, self.n, self.depth, self.batch = m, n, depth, batch
        lhs_flip, lhs_shift = packing.element_map(kernel, "lhs", lhs.kind)
        rhs_flip, rhs_shift = packing.element_map(kernel, "rhs", rhs.kind)

        bilinear = None
        lhs_scalar = rhs_scalar = 0
        if np.ndim(lhs_zero) or np.ndim(rhs_zero):
            shifted = []
            for zero, shift, size in ((lhs_zero, lhs_shift, m), (rhs_zero, rhs_shift, n)):
                wide = np.broadcast_to(np.asarray(zero, dtype=np.int64), (size,)) - shift
                shifted.append(wide.astype(np.int32))  # wraps, as all of this arithmetic does
            bilinear = shifted
        else:
            lhs_scalar, rhs_scalar = _wrap32(int(lhs_zero) - lhs_shift), _wrap32(int(rhs_zero) - rhs_shift)

        self.program = compile_pipeline(output, result, accumulate=accumulate, bilinear=bilinear)
        program = self.program
        direct = program.direct and out_strides[1] == 4 and out_strides[0] % 4 == 0
        self.threads = threads.choose_threads(num_threads, batch * m * n * depth)
        b = choose_blocking(kernel, m, n, depth, threads=self.threads, batch=batch, direct=direct)
        self.blocking: Blocking = b
        self.threads = min(self.threads, b.row_blocks * b.col_blocks * batch)

        # ---- sizes of the buffers -------------------------------------------------------------------------
        lanes, size = kernel.lanes, kernel.element_bytes
        self.rhs_panels = -(-n // lanes)
        self.rhs_panel_bytes = packing.padded_depth_bytes(kernel, depth) * lanes
        lhs_panel_bytes = packing.padded_depth_bytes(kernel, b.kc) * kernel.mr
        mcp = -(-b.mc // kernel.mr) * kernel.mr
        row_sums_at = mcp // kernel.mr * lhs_panel_bytes
        row_terms_at = row_sums_at + 8 * mcp
        tile_at = -(-(row_terms_at + 4 * mcp) // 64) * 64
        tile_cols = kernel.nr if b.depth_blocks == 1 else -(-b.nc // lanes) * lanes
        self.worker_bytes = -(-(tile_at + 4 * b.mc * tile_cols) // 64) * 64 + 64
        self.col_bytes = -(-4 * self.rhs_panels * lanes // 64) * 64
        zeros = np.zeros(max(mcp, tile_cols, 1), dtype=np.int32)

        col_terms, row_terms = c.term_routines()
        chunk = -(-64 // lanes) * lanes * 4
        col_bias, row_bias = program.col_bias, program.row_bias
        self._keep = [zeros, col_bias, row_bias, bilinear, program]
        fields = {
            "workers": self.threads, "m": m, "n": n, "depth": depth, "batch": batch, "jobs": slots,
            "kernel": microkernel(kernel).address,
            "pack_lhs": packing.pack_routine(kernel, "lhs").address,
            "pack_rhs": 0 if packed else packing.pack_routine(kernel, "rhs").address,
            "col_terms_routine": col_terms.address, "row_terms_routine": row_terms.address,
            "kr": kernel.kr, "element_bytes": size, "lhs_width": kernel.mr, "lanes": lanes, "nr": kernel.nr,
            "lhs_row_stride": lhs.strides[0], "lhs_k_stride": lhs.strides[1], "lhs_flip": lhs_flip,
            "lhs_panel_bytes": lhs_panel_bytes,
            "rhs_k_stride": rhs.strides[0], "rhs_n_stride": rhs.strides[1], "rhs_flip": rhs_flip,
            "rhs_panel_bytes": self.rhs_panel_bytes, "rhs_group_bytes": kernel.rhs_group_bytes,
            "pack_chunk": chunk,
            "mc": b.mc, "nc": b.nc, "kc": b.kc,
            "row_blocks": b.row_blocks, "col_blocks": b.col_blocks, "depth_blocks": b.depth_blocks,
            "lhs_zero": lhs_scalar, "rhs_zero": rhs_scalar, "bilinear": bilinear is not None,
            "rhs_zero_vector": 0 if bilinear is None else bilinear[1].ctypes.data,
            "col_bias": 0 if col_bias is None else col_bias.ctypes.data, "has_col_bias": col_bias is not None,
            "row_bias": 0 if row_bias is None else row_bias.ctypes.data, "has_row_bias": row_bias is not None,
            "direct": direct, "accumulate": accumulate,
            "out_row_stride": out_strides[0], "out_col_stride": out_strides[1],
            "workspace_stride": self.worker_bytes, "row_sums_at": row_sums_at, "row_terms_at": row_terms_at,
            "tile_at": tile_at, "zeros": zeros.ctypes.data,
        }  # fmt: skip
        table = program.table()
        if len(table) > 2 * c.MAX_STAGES:
            raise ValueError(f"output: at most {c.MAX_STAGES} stages after merging, got {len(table) // 2}")
        fields["stages"] = len(table) // 2
        self._p = np.zeros(c.PLAN_SIZE, dtype=np.int64)
        for name, value in fields.items():
            self._p[c.F[name]] = value
        self._p[c.STAGES_AT : c.STAGES_AT + len(table)] = table

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory a call takes."""
        per_slot = 2 * self.col_bytes
        if not self.packed:
            per_slot += self.rhs_panels * self.rhs_panel_bytes + self.col_bytes
        return self.slots * per_slot + self.threads * self.worker_bytes

    def run(
        self,
        lhs: np.ndarray,
        rhs: np.ndarray,
        rhs_sums: np.ndarray | None,
        slot_of: np.ndarray | int,
        out: np.ndarray,
    ) -> None:
        """Multiply.

        Parameters
        ----------
        lhs, out : ndarray of int64
            Address of each product's lhs and result.
        rhs : ndarray of int64
            Address of each distinct rhs, or of its packed panels.
        rhs_sums : ndarray of int64 or None
            Addresses of the packed rhs's column sums.
        slot_of : ndarray of int64 or int
            Which distinct rhs each product uses.
        """
        p = self._p.copy()
        buffer = workspace.borrow(self.scratch_bytes)
        try:
            at = buffer.ctypes.data
            jobs = np.zeros((self.slots, 5), dtype=np.int64)
            steps = np.arange(self.slots, dtype=np.int64) * self.col_bytes
            jobs[:, c.JOB_TERMS] = at + steps
            jobs[:, c.JOB_FACTORS] = at + self.slots * self.col_bytes + steps
            at += 2 * self.slots * self.col_bytes
            if self.packed:
                jobs[:, c.JOB_PANELS], jobs[:, c.JOB_SUMS] = rhs, rhs_sums
            else:
                jobs[:, c.JOB_SOURCE] = rhs
                jobs[:, c.JOB_SUMS] = at + steps
                at += self.slots * self.col_bytes
                panel_bytes = self.rhs_panels * self.rhs_panel_bytes
                jobs[:, c.JOB_PANELS] = at + np.arange(self.slots, dtype=np.int64) * panel_bytes
                at += self.slots * panel_bytes
            p[c.WORKSPACE] = at
            batch = np.empty((self.batch, 5), dtype=np.int64)
            batch[:, c.LHS_ADDRESS], batch[:, c.OUT_ADDRESS] = lhs, out
            batch[:, c.RHS_PANELS] = jobs[slot_of, c.JOB_PANELS]
            batch[:, c.COL_TERMS] = jobs[slot_of, c.JOB_TERMS]
            batch[:, c.COL_FACTORS] = jobs[slot_of, c.JOB_FACTORS]
            threads.run(p, jobs, batch)
        finally:
            workspace.give_back(buffer)
