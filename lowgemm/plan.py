"""The plan of one kind of product: kernel, blocking, threads, output routines, as numbers for `compute.py`.

A plan knows shapes, strides and stages but no addresses and no zero points, so it serves every later call of
the same kind, from any Python thread.

Next file to open: `packing.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lowgemm import compute as c
from lowgemm import entry, packing, threads, workspace
from lowgemm.blocking import choose_blocking
from lowgemm.kernels import Kernel, microkernel
from lowgemm.output.pipeline import compile_pipeline


class Operand(NamedTuple):
    """What a plan needs to know of a matrix operand: shape, byte strides, signedness ("u" or "i")."""

    shape: tuple[int, int]
    strides: tuple[int, int]
    kind: str


def _up(x: int, step: int) -> int:
    return -(-x // step) * step


def _one(address: Any) -> int:
    """An address that may come as an array of one."""
    return address if type(address) is int else int(address.item())


class Plan:
    """All that can be decided before addresses and zero points are known.

    Parameters
    ----------
    kernel : Kernel
        The microkernel.
    lhs, rhs : Operand
        Operands of shapes (m, depth) and (depth, n); the strides of a packed rhs do not matter.
    result : dtype
        Element type of the result.
    out_strides : tuple of int
        Byte strides (row, column) of the result.
    batch, slots : int
        Number of products, and of distinct rhs matrices among them.
    packed : bool
        The rhs is packed already.
    bilinear : bool
        Zero points come as vectors, one for each row and column.
    output : tuple of stages
        Checked pipeline.
    accumulate : bool
        Add to the result.
    num_threads : int or None
        As in `gemm`.

    Attributes
    ----------
    blocking : Blocking
        Block sizes and counts.
    threads : int
        Threads that a call uses.
    program : Program
        Output routines.
    scratch_bytes : int
        Scratch memory of a call; it does not grow with m.
    """

    def __init__(
        self,
        kernel: Kernel,
        lhs: Operand,
        rhs: Operand,
        *,
        result: np.dtype,
        out_strides: tuple[int, int],
        batch: int = 1,
        slots: int = 1,
        packed: bool = False,
        bilinear: bool = False,
        output: tuple[Any, ...] = (),
        accumulate: bool = False,
        num_threads: int | None = None,
    ) -> None:
        (m, depth), n = lhs.shape, rhs.shape[1]
        self.kernel, self.packed, self.slots, self.batch = kernel, packed, slots, batch
        self.m, self.n, self.depth, self.result = m, n, depth, np.dtype(result)
        self.bilinear = bilinear
        self.program = program = compile_pipeline(
            output,
            result,
            accumulate=accumulate,
            bilinear=bilinear,
            size=(m, n),
            contiguous=out_strides[1] == self.result.itemsize,
        )
        table = program.table()
        direct = program.direct and out_strides[1] == 4 and out_strides[0] % 4 == 0
        #: The kernel scales and stores bytes itself: the only step left is the scale that it can fuse.
        self.fused = kernel.fuses_requantize and [name for name, _ in program.steps] == ["requantize_store8"]
        direct = direct or self.fused

        macs = batch * m * n * depth
        work = macs + slots * depth * n  # a product of few rows reads its rhs for longer than it multiplies
        wanted = threads.choose_threads(num_threads, work)
        b = choose_blocking(kernel, m, n, depth, threads=wanted, batch=batch, direct=direct)
        self.blocking = b
        self.threads = min(wanted, b.row_blocks * b.col_blocks * batch)
        #: Numba's and lowgemm's thread settings that this plan was made for; None: they play no part.
        self.made_for = threads.settings() if threads.worth_threads(num_threads, work) else None

        # ---- scratch memory: for each rhs (terms, factors, sums, panels), then for each thread
        #      (lhs panels, row sums twice, row terms, tile)
        lanes = kernel.lanes
        rhs_panels = -(-n // lanes)
        rhs_panel_bytes = packing.padded_depth_bytes(kernel, depth) * lanes
        lhs_panel_bytes = packing.padded_depth_bytes(kernel, b.kc) * kernel.mr
        row_sums_at = b.mc // kernel.mr * lhs_panel_bytes
        row_terms_at = row_sums_at + 8 * b.mc
        tile_at = _up(row_terms_at + 4 * b.mc, workspace.ALIGNMENT)
        tile_cols = kernel.nr if b.depth_blocks == 1 else _up(b.nc, lanes)
        self.worker_bytes = _up(tile_at + 4 * b.mc * tile_cols, workspace.ALIGNMENT) + workspace.ALIGNMENT
        self.col_bytes = _up(4 * rhs_panels * lanes, workspace.ALIGNMENT)
        self.slot_bytes = _up(rhs_panels * rhs_panel_bytes, workspace.ALIGNMENT)
        per_slot = 2 * self.col_bytes + (0 if packed else self.col_bytes + self.slot_bytes)
        self.scratch_bytes = slots * per_slot + self.threads * self.worker_bytes

        zeros = np.zeros(max(b.mc, tile_cols), dtype=np.int32)
        self._keep = [zeros, program, output]
        self.lhs_shift = packing.element_map(kernel, "lhs", lhs.kind)[1]
        self.rhs_shift = packing.element_map(kernel, "rhs", rhs.kind)[1]
        col_terms, row_terms = c.term_routines()
        col_bias, row_bias = program.col_bias, program.row_bias
        fields = {
            "workers": self.threads, "m": m, "n": n, "depth": depth, "batch": batch, "jobs": slots,
            "packed": packed,
            "kernel": microkernel(kernel).address,
            "pack_lhs": packing.pack_routine(kernel, "lhs").address,
            "pack_rhs": 0 if packed else packing.pack_routine(kernel, "rhs").address,
            "col_terms_routine": col_terms.address, "row_terms_routine": row_terms.address,
            "single": c.single_routine().address,
            "kr": kernel.kr, "lanes": lanes, "nr": kernel.nr,
            "lhs_row_stride": lhs.strides[0], "lhs_k_stride": lhs.strides[1],
            "lhs_flip": packing.element_map(kernel, "lhs", lhs.kind)[0], "lhs_panel_bytes": lhs_panel_bytes,
            "rhs_k_stride": rhs.strides[0], "rhs_n_stride": rhs.strides[1],
            "rhs_flip": packing.element_map(kernel, "rhs", rhs.kind)[0], "rhs_panel_bytes": rhs_panel_bytes,
            "rhs_group_bytes": kernel.rhs_group_bytes,
            "pack_chunk": 4 * _up(packing.LINE, lanes),
            "mc": b.mc, "nc": b.nc, "kc": b.kc,
            "row_blocks": b.row_blocks, "col_blocks": b.col_blocks, "depth_blocks": b.depth_blocks,
            "lhs_shift": self.lhs_shift, "rhs_shift": self.rhs_shift, "bilinear": bilinear,
            "col_bias": 0 if col_bias is None else col_bias.ctypes.data, "has_col_bias": col_bias is not None,
            "row_bias": 0 if row_bias is None else row_bias.ctypes.data, "has_row_bias": row_bias is not None,
            "direct": direct, "accumulate": accumulate, "fused": table[1] if self.fused else 0,
            "out_row_stride": out_strides[0], "out_col_stride": out_strides[1],
            "worker_bytes": self.worker_bytes, "col_bytes": self.col_bytes, "slot_bytes": self.slot_bytes,
            "row_sums_at": row_sums_at, "row_terms_at": row_terms_at, "tile_at": tile_at,
            "zeros": zeros.ctypes.data, "stages": len(table) // 2,
        }  # fmt: skip
        if len(table) > 2 * c.MAX_STAGES:
            raise ValueError(f"output: at most {c.MAX_STAGES} stages after merging, got {len(table) // 2}")
        self.p = np.zeros(c.PLAN_SIZE, dtype=np.int64)
        for name, value in fields.items():
            self.p[c.F[name]] = value
        self.p[c.STAGES_AT : c.STAGES_AT + len(table)] = table
        self.p.flags.writeable = True  # Numba types read-only arrays apart; nothing writes to it
        #: Python's way in for one product on one thread, and the first argument of that; see `entry.py`.
        self.enter = entry.enter() if batch == 1 and not bilinear and self.threads == 1 else None
        self.record = entry.record_of(self.p, int(self.p[c.SINGLE]), packed, macs) if self.enter else None

    def serves(self) -> bool:
        """Whether the thread settings are still those that the plan was made for."""
        return self.made_for is None or self.made_for == threads.settings()

    def run(
        self,
        lhs: np.ndarray,
        rhs: np.ndarray,
        rhs_sums: np.ndarray | None,
        slot_of: np.ndarray,
        out: np.ndarray,
        lhs_zero: int | np.ndarray,
        rhs_zero: int | np.ndarray,
    ) -> None:
        """Multiply a batch.

        Parameters
        ----------
        lhs, out : ndarray of int64
            Address of each product's lhs and result.
        rhs : ndarray of int64
            Address of each distinct rhs, or of its packed panels.
        rhs_sums : ndarray of int64 or None
            Addresses of the packed rhs's column sums.
        slot_of : ndarray of int
            Which distinct rhs each product uses.
        lhs_zero, rhs_zero : int or ndarray of int32
            Zero points; vectors where the plan is bilinear.
        """
        s = np.zeros(c.STATE_SIZE, dtype=np.int64)
        if self.bilinear:
            vectors = []
            for zero, shift, size in ((lhs_zero, self.lhs_shift, self.m), (rhs_zero, self.rhs_shift, self.n)):
                wide = np.broadcast_to(np.asarray(zero, dtype=np.int64), (size,)) - shift
                vectors.append(wide.astype(np.int32))  # wraps, as all of this arithmetic does
            s[c.LHS_ZEROS], s[c.RHS_ZEROS] = (v.ctypes.data for v in vectors)
        else:
            s[c.LHS_ZERO], s[c.RHS_ZERO] = int(lhs_zero) - self.lhs_shift, int(rhs_zero) - self.rhs_shift
        space = workspace.borrow(self.scratch_bytes)
        tables = self._tables_of_one if self.batch == self.slots == 1 else self._tables
        jobs, batch, s[c.SPACE] = tables(space.ctypes.data, lhs, rhs, rhs_sums, slot_of, out)
        threads.run(self.p, s, jobs, batch)
        workspace.give_back(space)

    def _tables_of_one(
        self, at: int, lhs: Any, rhs: Any, rhs_sums: Any, slot_of: Any, out: Any
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """`_tables` for a single product, without its dozen small array operations (10 us)."""
        col_bytes = self.col_bytes
        terms, factors, at = at, at + col_bytes, at + 2 * col_bytes
        if self.packed:
            source, panels, sums = 0, _one(rhs), _one(rhs_sums)
        else:
            source, panels, sums = _one(rhs), at + col_bytes, at
            at += col_bytes + self.slot_bytes
        jobs = np.array([[source, panels, sums, terms, factors]], dtype=np.int64)
        batch = np.array([[_one(lhs), panels, terms, factors, _one(out)]], dtype=np.int64)
        return jobs, batch, at

    def _tables(
        self, at: int, lhs: Any, rhs: Any, rhs_sums: Any, slot_of: Any, out: Any
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Address tables of `compute.py` for scratch memory at `at`, and where the threads' part of that begins."""
        slots, col_bytes = self.slots, self.col_bytes
        steps = np.arange(slots, dtype=np.int64)
        jobs = np.zeros((slots, 5), dtype=np.int64)
        jobs[:, c.JOB_TERMS] = at + steps * col_bytes
        jobs[:, c.JOB_FACTORS] = at + (steps + slots) * col_bytes
        at += 2 * slots * col_bytes
        if self.packed:
            jobs[:, c.JOB_PANELS], jobs[:, c.JOB_SUMS] = rhs, rhs_sums
        else:
            jobs[:, c.JOB_SOURCE] = rhs
            jobs[:, c.JOB_SUMS] = at + steps * col_bytes
            at += slots * col_bytes
            jobs[:, c.JOB_PANELS] = at + steps * self.slot_bytes
            at += slots * self.slot_bytes
        batch = np.empty((self.batch, 5), dtype=np.int64)
        batch[:, c.LHS_ADDRESS], batch[:, c.OUT_ADDRESS] = lhs, out
        for to, source in (
            (c.RHS_PANELS, c.JOB_PANELS), (c.COL_TERMS, c.JOB_TERMS), (c.COL_FACTORS, c.JOB_FACTORS)
        ):  # fmt: skip
            batch[:, to] = jobs[slot_of, source]
        return jobs, batch, at
