"""The plan of one kind of product: kernel, blocking, threads, output routines, as numbers for `tiles.py`.

A plan knows shapes, strides and stages but no addresses and no zero points, so it serves every later call of
the same kind, from any Python thread.

Next file to open: `packing.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lowgemm.engine import entry, packing, threads
from lowgemm.engine import layout as c
from lowgemm.engine.batch import Batch
from lowgemm.engine.blocking import BY_COLUMNS, BY_ROWS, NOT_AT_ALL, choose_blocking, scratch_layout, up
from lowgemm.engine.drivers import single_routine
from lowgemm.engine.pace import Pace
from lowgemm.engine.terms import term_routines
from lowgemm.jit import scratch
from lowgemm.jit.addresses import NotCopied
from lowgemm.kernels import Kernel, microkernel
from lowgemm.output.pipeline import compile_pipeline, raise_failures


class Operand(NamedTuple):
    """What a plan needs to know of a matrix operand: shape, byte strides, signedness ("u" or "i")."""

    shape: tuple[int, int]
    strides: tuple[int, int]
    kind: str


class Plan(NotCopied):
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
    batch : Batch
        Leading dimensions; the default is a single product.
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

    instead = "copy the PlannedGemm that lowgemm.plan gave, which plans anew"

    def __init__(
        self,
        kernel: Kernel,
        lhs: Operand,
        rhs: Operand,
        *,
        result: np.dtype,
        out_strides: tuple[int, int],
        batch: Batch = Batch(),  # noqa: B008 (immutable)
        packed: bool = False,
        bilinear: bool = False,
        output: tuple[Any, ...] = (),
        accumulate: bool = False,
        num_threads: int | None = None,
    ) -> None:
        (m, depth), n = lhs.shape, rhs.shape[1]
        products, slots = batch.count, batch.slots
        self.kernel, self.packed, self.slots, self.batch = kernel, packed, slots, products
        self.m, self.n, self.depth, self.result = m, n, depth, np.dtype(result)
        self.bilinear, self.output, self.num_threads = bilinear, output, num_threads
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

        macs = products * m * n * depth
        # a product of few rows reads its rhs for longer than it multiplies
        work = max(macs, threads.MACS_PER_BYTE * slots * depth * n)
        wanted = threads.choose_threads(num_threads, work)
        stream = NOT_AT_ALL
        if not packed and products == slots:
            stream = BY_COLUMNS if rhs.strides[0] == 1 else BY_ROWS
        b = choose_blocking(
            kernel,
            m,
            n,
            depth,
            threads=wanted,
            batch=products,
            direct=direct,
            stream=stream,
        )
        self.blocking = b
        blocks = products * b.row_blocks * b.col_blocks
        self.threads = min(wanted, blocks * b.parts)
        #: Numba's and lowgemm's thread settings that this plan was made for; None: they play no part.
        self.made_for = threads.settings() if threads.worth_threads(num_threads, work) else None

        # ---- scratch memory: for each rhs (terms, factors, sums, panels), then for each thread
        #      (lhs panels, row sums twice, row terms, tile, a streamed rhs's panels and sums), then for each part
        #      of a shared depth (row sums, tile)
        lanes = kernel.lanes
        (
            rhs_panel_bytes, lhs_panel_bytes, row_sums_at, row_terms_at, tile_at, stream_at,
            self.worker_bytes, self.col_bytes, self.slot_bytes,
        ) = scratch_layout(
            kernel.mr, lanes, kernel.nr, kernel.element_bytes, n, depth, b.mc, b.nc, b.kc, b.depth_blocks, b.stream
        )  # fmt: skip
        per_slot = 2 * self.col_bytes + (0 if packed else self.col_bytes + self.slot_bytes)
        part_bytes = up(4 * b.mc * (1 + up(b.nc, lanes)), scratch.ALIGNMENT) if b.parts > 1 else 0
        matrices, in_order = batch.table()
        #: One thread that takes the products in order needs one rhs at a time; see `drivers._make_single`.
        self.one_by_one = self.threads == 1 and in_order
        self.slots_bytes = per_slot * (1 if self.one_by_one else slots)
        self.scratch_bytes = (
            self.slots_bytes + self.threads * self.worker_bytes + blocks * b.parts * part_bytes
        )
        #: Numbers of a call's state: those of `layout.py`, and a counter for each block whose depth is shared.
        self.state_size = c.STATE_SIZE + (blocks if b.parts > 1 else 0)

        zeros = np.zeros(max(b.mc, kernel.nr), dtype=np.int32)
        self._keep = [zeros, program]
        self.lhs_shift = packing.element_map(kernel, "lhs", lhs.kind)[1]
        self.rhs_shift = packing.element_map(kernel, "rhs", rhs.kind)[1]
        col_terms, row_terms = term_routines()
        col_bias, row_bias = program.col_bias, program.row_bias
        fields = {
            "workers": self.threads, "m": m, "n": n, "depth": depth, "batch": products, "slots": slots,
            "packed": packed,
            "kernel": microkernel(kernel).address,
            "pack_lhs": packing.pack_routine(kernel, "lhs").address,
            "pack_rhs": 0 if packed else packing.pack_routine(kernel, "rhs").address,
            "col_terms_routine": col_terms.address, "row_terms_routine": row_terms.address,
            "single": single_routine().address,
            "kr": kernel.kr, "lanes": lanes, "nr": kernel.nr,
            "lhs_row_stride": lhs.strides[0], "lhs_k_stride": lhs.strides[1],
            "lhs_flip": packing.element_map(kernel, "lhs", lhs.kind)[0], "lhs_panel_bytes": lhs_panel_bytes,
            "rhs_k_stride": rhs.strides[0], "rhs_n_stride": rhs.strides[1],
            "rhs_flip": packing.element_map(kernel, "rhs", rhs.kind)[0], "rhs_panel_bytes": rhs_panel_bytes,
            "rhs_group_bytes": kernel.rhs_group_bytes,
            "pack_chunk": 4 * up(packing.LINE, lanes),
            "mc": b.mc, "nc": b.nc, "kc": b.kc,
            "row_blocks": b.row_blocks, "col_blocks": b.col_blocks, "depth_blocks": b.depth_blocks,
            "parts": b.parts, "part_bytes": part_bytes, "stream_at": stream_at if b.stream else 0,
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
        self.p = np.concatenate([np.zeros(c.PLAN_SIZE, dtype=np.int64), matrices])
        for name, value in fields.items():
            self.p[c.F[name]] = value
        self.p[c.STAGES_AT : c.STAGES_AT + len(table)] = table
        self.p.flags.writeable = True  # Numba types read-only arrays apart; nothing writes to it
        self.pace = Pace(macs)
        #: Python's ways in for one thread and for several; see `entry.py`.
        self.enter = entry.enter() if self.one_by_one else None
        self.fill = None if self.one_by_one else entry.fill()
        self.macs = macs

    def serves(self) -> bool:
        """Whether the thread settings are still those that the plan was made for."""
        return self.made_for is None or self.made_for == threads.settings()

    def watched(self) -> tuple[np.ndarray, list[Any]]:
        """The plan's numbers for one call, and what to give to `raise_failures` after it; see `Program.watched`."""
        return self.program.watched(self.p, c.STAGES_AT)

    def run(
        self,
        lhs: int,
        rhs: int,
        rhs_sums: int,
        out: int,
        lhs_zero: int | np.ndarray,
        rhs_zero: int | np.ndarray,
    ) -> None:
        """Multiply.

        Parameters
        ----------
        lhs, out : int
            Address of the first element of the operand and of the result.
        rhs : int
            Likewise, or of a packed rhs's panels.
        rhs_sums : int
            Address of the packed rhs's column sums.
        lhs_zero, rhs_zero : int or ndarray of int32
            Zero points; vectors where the plan is bilinear.

        Raises
        ------
        Exception
            What a function of the user's raised. The result is written in part then.
        """
        vectors = [0, 0]
        if self.bilinear:
            keep = []
            for zero, shift, size in ((lhs_zero, self.lhs_shift, self.m), (rhs_zero, self.rhs_shift, self.n)):
                wide = np.broadcast_to(np.asarray(zero, dtype=np.int64), (size,)) - shift
                keep.append(wide.astype(np.int32))  # wraps, as all of this arithmetic does
            vectors = [v.ctypes.data for v in keep]
            lhs_zero = rhs_zero = 0
        p, watches = self.program.watched(self.p, c.STAGES_AT)
        space = scratch.borrow(self.scratch_bytes)
        at = space.ctypes.data
        if self.one_by_one:
            zeros = int(lhs_zero), int(rhs_zero), *vectors
            single_routine().ctypes(p.ctypes.data, lhs, rhs, rhs_sums, out, at, *zeros)
        else:
            s = np.zeros(self.state_size, dtype=np.int64)
            at_workers = at + self.slots_bytes
            at_parts = at_workers + self.threads * self.worker_bytes
            s[c.LHS : c.FOR_PARTS + 1] = lhs, rhs, rhs_sums, out, at, at_workers, at_parts
            s[c.LHS_ZERO], s[c.RHS_ZERO] = int(lhs_zero) - self.lhs_shift, int(rhs_zero) - self.rhs_shift
            s[c.LHS_ZEROS], s[c.RHS_ZEROS] = vectors
            threads.run(p, s, self.pace)
        scratch.give_back(space)
        raise_failures(watches)
