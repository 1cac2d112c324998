"""`gemm_4bit`: the int8 kernels on 4-bit weights, whose codes become integer levels in cache, a group at a
time.

For each chunk of columns, and each group of depth: expand the chunk's codes to int8 panels (they stay in the
first-level cache), run the ordinary microkernel over a block of rows, and add its exact int32 sums, times the
group's scales, to float32 sums. So every kernel of `lowgemm.kernels` serves, and memory sees half a byte for
each weight.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm import config
from lowgemm.blockwise import job as jobs
from lowgemm.blockwise import reference, rowcall, rowjob, rowtile
from lowgemm.blockwise.job import Job
from lowgemm.blockwise.levels import expand_levels, step_of
from lowgemm.blockwise.mixed import as_bias
from lowgemm.blockwise.packed4 import PackedRhsLowbit
from lowgemm.blockwise.records import Number, Pointer, dtype_of
from lowgemm.blockwise.rowstore import store_rows
from lowgemm.blockwise.vectorwise import as_rows, code_rows
from lowgemm.checks.arguments import as_num_threads, as_operand, check_out
from lowgemm.checks.arrays import as_floats
from lowgemm.checks.values import integer
from lowgemm.engine import packing, threads
from lowgemm.jit.memory import as_address, offset, pointer_field
from lowgemm.jit.routine import Routine, call_address, routine
from lowgemm.jit.scratch import aligned_empty
from lowgemm.kernels import Kernel, by_name, microkernel, rhs_packer, selected

#: Depth that is expanded at once: 48 columns of it are 24 KB. A multiple of 128 and of every kernel's kr.
EXPANDED = 512
#: Rows of a block: their int32 and float32 tiles of 48 columns are 24 KB.
BLOCK_ROWS = 64
#: Rows up to which a weight keeps what a call needs, and kinds of call for which it keeps more.
ROWS_KEPT, KINDS_KEPT = 16, 16


class ProductJob(Job):
    """A product; first its lhs is packed. The addresses without a pointer are handed on to the kernel's
    routines.
    """

    __slots__ = ()
    _fields_ = (
        # rows of the lhs, columns of the rhs, depth, depth steps of a group, groups
        ("rows", Number), ("cols", Number), ("depth", Number), ("group", Number), ("groups", Number),
        # the lhs as it came, strides of its rows and of its depth, what its bytes are changed by (exclusive
        # or)
        ("source", Number), ("row_stride", Number), ("depth_stride", Number), ("flip", Number),
        # the packed lhs, bytes of all panels of a group, bytes of a panel; int32 sums of the rows in each
        # group
        ("lhs", Number), ("lhs_group", Number), ("lhs_panel", Number), ("row_sums", Pointer),
        # addresses of the kernel's packing routine and of its microkernel; panels that one task packs
        ("pack", Number), ("microkernel", Number), ("chunk", Number),
        # packed 4-bit codes, bytes of a panel, the level of each code; int32 sums of levels and float32
        # scales by group and column
        ("panels", Pointer), ("panel_bytes", Number), ("levels", Pointer), ("sums", Pointer),
        ("scales", Pointer),
        # zero point of the packed lhs; int8 zero points of the levels by group and column, or none
        ("zero", Number), ("zeros", Pointer),
        # float32 result, a scale for each row or none, a bias for each column or none
        ("out", Pointer), ("row_scales", Pointer), ("bias", Pointer),
        # float32 scales of each row and group, or none
        ("group_scales", Pointer),
    )  # fmt: skip


PRODUCT = dtype_of(ProductJob)
_FLOAT32 = np.dtype(np.float32)
#: Read in every call; see `gemm.py`.
_settings = vars(config)


def _make_pack(mr: int) -> Routine:
    @routine("ppn")
    def pack(job_address, scratch, task):
        """Some panels of the lhs, group by group."""
        job = numba.carray(job_address, (1,), PRODUCT)[0]
        panels = (job.rows + mr - 1) // mr
        row = task * job.chunk * mr
        rows = min(job.chunk * mr, job.rows - row)
        row_sums = as_address(pointer_field(job, "row_sums"))
        for g in range(job.groups):
            k = g * job.group
            call_address(
                job.pack,
                (
                    job.source + row * job.row_stride + k * job.depth_stride, job.row_stride,
                    job.depth_stride, rows, min(job.group, job.depth - k), job.flip,
                    job.lhs + g * job.lhs_group + row // mr * job.lhs_panel, job.lhs_panel,
                    row_sums + 4 * (g * panels * mr + row),
                ),
            )  # fmt: skip

    return pack


def rows_of_block(mr: int) -> int:
    """Rows of a block: whole panels of `mr`."""
    return max(1, BLOCK_ROWS // mr) * mr


def _make_product(
    mr: int, lanes: int, wide: int, kr: int, element_bytes: int, shift: int, bits: int
) -> tuple[Routine, int]:
    step = step_of(bits)
    nr, block_rows = lanes * wide, rows_of_block(mr)
    panel = EXPANDED * lanes * element_bytes
    tile_at = wide * panel
    sums_at = tile_at + 4 * block_rows * nr
    cols_at = sums_at + 4 * block_rows * nr
    rows_at = cols_at + 4 * nr
    zeros_at = rows_at + 4 * block_rows
    lhs_step = mr * element_bytes

    @routine("ppn")
    def product(job_address, scratch, task):
        """A block of rows by a chunk of columns."""
        job = numba.carray(job_address, (1,), PRODUCT)[0]
        m, groups, group, depth = job.rows, job.groups, job.group, job.depth
        blocks = (m + block_rows - 1) // block_rows
        padded_rows = (m + mr - 1) // mr * mr
        tile = numba.carray(offset(scratch, tile_at), (block_rows * nr,), np.int32)
        total = numba.carray(offset(scratch, sums_at), (block_rows * nr,), np.float32)
        col_compensation = numba.carray(offset(scratch, cols_at), (nr,), np.int32)
        row_compensation = numba.carray(offset(scratch, rows_at), (block_rows,), np.int32)
        zeros = numba.carray(offset(scratch, zeros_at), (max(nr, block_rows),), np.int32)
        zeros[:] = np.int32(0)
        row_compensation[:] = np.int32(0)
        base = as_address(scratch)
        chunk, row = task // blocks, task % blocks * block_rows
        rows, cols = min(block_rows, m - row), min(nr, job.cols - chunk * nr)
        nv = (cols + lanes - 1) // lanes
        for g in range(groups):
            size = min(group, depth - g * group)
            at = chunk * groups + g
            sums = numba.carray(offset(pointer_field(job, "sums"), 4 * at * nr), (nr,), np.int32)
            for c in range(nr):
                col_compensation[c] = np.int32(-job.zero * sums[c])
            row_sums = numba.carray(
                offset(pointer_field(job, "row_sums"), 4 * (g * padded_rows + row)), (rows,), np.int32
            )
            if shift != 0:
                for r in range(rows):
                    row_compensation[r] = np.int32(shift * row_sums[r])
            for k in range(0, size, EXPANDED):
                part = min(EXPANDED, size - k)
                steps = ((part + kr - 1) // kr * kr * lanes + step - 1) // step
                for v in range(nv):
                    source = (at * wide + v) * job.panel_bytes + k * lanes * bits // 8
                    expand_levels(
                        offset(pointer_field(job, "panels"), source), pointer_field(job, "levels"),
                        offset(scratch, v * panel), steps, element_bytes, bits,
                    )  # fmt: skip
                first = k == 0
                call_address(
                    job.microkernel,
                    (
                        rows, nv, (part + kr - 1) // kr,
                        job.lhs + g * job.lhs_group + row // mr * job.lhs_panel + k * lhs_step,
                        job.lhs_panel, base, panel, base + tile_at, nr,
                        base + (rows_at if first else zeros_at), base + (cols_at if first else zeros_at),
                        0 if first else 1, 0, 0,
                    ),
                )  # fmt: skip
            if job.zeros != 0:
                levels_zeros = numba.carray(offset(pointer_field(job, "zeros"), at * nr), (nr,), np.int8)
                for r in range(rows):
                    for c in range(nr):
                        tile[r * nr + c] -= np.int32(levels_zeros[c]) * row_sums[r]
            scales = numba.carray(offset(pointer_field(job, "scales"), 4 * at * nr), (nr,), np.float32)
            for r in range(rows):
                if job.group_scales != 0:
                    of_rows = numba.carray(pointer_field(job, "group_scales"), (m * groups,), np.float32)
                    factor, before = of_rows[(row + r) * groups + g], np.float32(-0.0)
                    for c in range(nr):
                        if g != 0:
                            before = total[r * nr + c]
                        total[r * nr + c] = before + np.float32(tile[r * nr + c]) * (scales[c] * factor)
                elif g == 0:
                    for c in range(nr):
                        total[r * nr + c] = np.float32(tile[r * nr + c]) * scales[c]
                else:
                    for c in range(nr):
                        total[r * nr + c] += np.float32(tile[r * nr + c]) * scales[c]
        store_rows(job, total, nr, row, rows, chunk * nr, cols)

    return product, zeros_at + 4 * max(nr, block_rows)


@functools.cache
def routines(kernel: Kernel, bits: int = 4) -> tuple[Routine, Routine, int]:
    """Tasks that pack the lhs and multiply, and the bytes of a worker's memory."""
    _, shift = packing.element_map(kernel, "rhs", "i")
    product, scratch = _make_product(
        kernel.mr, kernel.lanes, kernel.max_nv, kernel.kr, kernel.element_bytes, shift, bits
    )
    return _make_pack(kernel.mr), product, scratch


def gemm_lowbit(
    lhs: ArrayLike, rhs: PackedRhsLowbit, *, lhs_zero_point: int = 0, lhs_scale: ArrayLike | None = None,
    bias: ArrayLike | None = None, out: np.ndarray | None = None, num_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Multiply 8-bit or float activations by 4-bit or 2-bit weights with a scale for each group of depth.

    Parameters
    ----------
    lhs : array_like of int8, uint8, float32, float64, float16 or bfloat16, shape (..., depth)
        Any strides. Floats are coded as int8 with one scale for each row, as by `quantize_vectorwise`.
    rhs : PackedRhsLowbit
        From `pack_rhs_lowbit` or `pack_rhs_4bit`.
    lhs_zero_point : int
        Subtracted from an integer lhs. Any int32.
    lhs_scale : float or array_like of float, shape (...) or (..., groups), optional
        Of an integer lhs: one for all, one for each row, or one for each row and group.
    bias : array_like of float, shape (n,), optional
    out : ndarray of float32, shape (..., n), optional
        Where to write the result, any strides, no overlap with `lhs` and `bias`.
    num_threads : int, optional
        At most so many threads.

    Returns
    -------
    ndarray of float32, shape (..., n)
        ``(float32(s0) * scales[0] + float32(s1) * scales[1] + ...) * lhs_scale + bias`` with the exact int32
        sums s0, s1, ... of the groups, ``sum_k (lhs - lhs_zero_point) * rhs.integers()`` (modulo 2**32, which
        those of groups below 65,000 cannot pass), and ``scales = rhs.group_scales()``; groups ascending, each
        operation rounded to float32. Scales of each row and group are multiplied with those of the group
        instead: ``float32(s0) * (scales[0] * lhs_scale[:, 0]) + ...``. The same bits on every CPU and for any
        number of threads. `out` if that is given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Notes
    -----
    NF4 could be decoded to float32 and multiplied there. As integers the products inside a group are exact,
    so their order, and with it the CPU and the tile, does not matter, and they run at the speed of the int8
    kernels.

    Examples
    --------
    >>> from lowgemm.blockwise import pack_rhs_lowbit
    >>> w = pack_rhs_lowbit(np.float32([[1, 0.5], [-2, 0.25]]), "int4")
    >>> print(gemm_lowbit(np.int8([[1, 2]]), w), gemm_lowbit(np.float32([[127, 127]]), w))
    [[-3.      0.9375]] [[-127.     87.3125]]
    """
    if not isinstance(rhs, PackedRhsLowbit):
        raise TypeError(
            "rhs: expected a PackedRhsLowbit (from pack_rhs_lowbit or pack_rhs_4bit), got "
            f"{type(rhs).__name__}"
        )
    # A call of a kind that was seen before goes on in compiled code.
    key = None
    if (
        type(lhs) is np.ndarray
        and type(rhs) is PackedRhsLowbit
        and type(lhs_zero_point) is int
        and lhs_zero_point == 0
        and lhs_scale is None
        and type(num_threads) in (int, type(None))
    ):
        key = (lhs.shape, num_threads, bias is None, _settings["kernel"])
        known = rhs.again.get(key)
        if known is not None and (known.made_for is None or known.made_for == threads.settings()):
            done = known.run(lhs, bias, out)
            if done is not None:
                return done
    plain = type(lhs) is np.ndarray and lhs.dtype == _FLOAT32 and lhs.flags.c_contiguous and lhs.flags.aligned
    a = lhs if plain else as_floats(lhs, "lhs", "a rectangular array")
    zero, num_threads = integer(lhs_zero_point, "lhs_zero_point"), as_num_threads(num_threads)
    depth, n = rhs.shape
    if a.ndim == 0 or a.shape[-1] != depth:
        raise ValueError(f"lhs: expected shape (..., {depth}), got {a.shape}")
    lead = a.shape[:-1]
    offsets = as_bias(bias, n)
    factors: np.ndarray | None
    if a.dtype.kind == "f":
        if zero or lhs_scale is not None:
            raise ValueError("lhs_zero_point, lhs_scale: expected none with a float lhs")
        q = a.reshape(math.prod(lead), depth) if plain else as_rows(lhs, "lhs")[0]
        factors = None
    else:
        whole = as_operand(lhs, "lhs")
        q = whole.reshape(-1, depth) if depth else np.zeros((math.prod(lead), 0), whole.dtype)
        factors = _row_scales(lhs_scale, lead, rhs.groups)
    result = to = None
    if out is not None:
        inputs = {"lhs": a} if bias is None else {"lhs": a, "bias": np.asarray(bias)}
        result = check_out(out, (*lead, n), np.dtype(np.float32), inputs)
        to = result.reshape(-1, n) if result.flags.c_contiguous and result.size else None
    if to is None:
        to = np.empty((q.shape[0], n), np.float32)
    if to.size:
        _multiply(q, rhs, zero, factors, offsets, to, num_threads)
        if key is not None and plain and (offsets is None or offsets is bias):
            _remember(key, lhs, rhs, to.reshape(*lead, n), offsets, num_threads)
    if result is None:
        return to.reshape(*lead, n)
    if not result.flags.c_contiguous:
        result[...] = to.reshape(result.shape)
    return result


def _remember(
    key: Any, lhs: np.ndarray, rhs: PackedRhsLowbit, out: np.ndarray, bias: np.ndarray | None,
    num_threads: int | None
) -> None:  # fmt: skip
    """Keep the job of a call, as `rowcall.Again`, for the next call of its kind.

    Only if it is known to come again, or if Python's way in is compiled already.
    """
    again, rows = rhs.again, math.prod(lhs.shape[:-1])
    if len(again) >= KINDS_KEPT:
        again.clear()
    made_for = None if num_threads == 1 else threads.settings()
    known = again.get(key)
    if known is not None and known.made_for == made_for:
        return  # it was busy with another thread's call
    if not rowcall.is_made() and key not in again:
        again[key] = None
    elif rowcall.multiply_again() is not None and (ready := rhs.ready.pop(rows, None)):
        again[key] = rowcall.Again(ready, lhs, out, bias, rhs.threads_for(rows, num_threads), made_for)


def gemm_4bit(
    lhs: ArrayLike, rhs: PackedRhsLowbit, *, lhs_zero_point: int = 0, lhs_scale: ArrayLike | None = None,
    bias: ArrayLike | None = None, out: np.ndarray | None = None, num_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """`gemm_lowbit`, by the name that it had while there were 4-bit weights only.

    Parameters
    ----------
    lhs, rhs, lhs_zero_point, lhs_scale, bias, out, num_threads
        As for `gemm_lowbit`.

    Returns
    -------
    ndarray of float32, shape (..., n)

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message names it.

    Examples
    --------
    >>> from lowgemm.blockwise import pack_rhs_4bit
    >>> w = pack_rhs_4bit(np.float32([[1, 0.5], [-2, 0.25]]), "int4")
    >>> print(gemm_4bit(np.int8([[1, 2]]), w))
    [[-3.      0.9375]]
    """
    return gemm_lowbit(
        lhs,
        rhs,
        lhs_zero_point=lhs_zero_point,
        lhs_scale=lhs_scale,
        bias=bias,
        out=out,
        num_threads=num_threads,
    )


def _row_scales(value: Any, lead: tuple[int, ...], groups: int) -> np.ndarray | None:
    """One scale a row, or rows of one a group."""
    if value is None:
        return None
    a = as_floats(value, "lhs_scale", "a number or an array of numbers")
    if a.dtype.kind not in "iuf":
        raise TypeError(f"lhs_scale: expected real numbers, got {a.dtype}")
    if a.ndim and a.shape == (*lead, groups):
        return np.ascontiguousarray(a, dtype=np.float32).reshape(math.prod(lead), groups)
    if a.ndim and a.shape != lead:
        raise ValueError(f"lhs_scale: expected a number, shape {lead} or {(*lead, groups)}, got {a.shape}")
    return np.ascontiguousarray(np.broadcast_to(a, lead), dtype=np.float32).reshape(-1)


def _multiply(
    x: np.ndarray, rhs: PackedRhsLowbit, zero: int, factors: np.ndarray | None, bias: np.ndarray | None,
    out: np.ndarray, num_threads: int | None,
) -> None:  # fmt: skip
    """The product of checked operands, by the path that the kernel has."""
    if numba.config.DISABLE_JIT or rhs.shape[0] == 0 or not rowtile.decodes(rhs_packer(selected())):
        if x.dtype.kind == "f":
            x, scales, _ = code_rows(x, 0.0, num_threads, "lhs")
            factors = scales / np.float32(127)
        if numba.config.DISABLE_JIT or rhs.shape[0] == 0:
            out[...] = reference.gemm_4bit(
                x, rhs.integers(), rhs.group_scales(), rhs.group, zero, factors, bias
            )
        else:
            _run(x, rhs.repacked(rhs_packer(selected())), zero, factors, bias, out, num_threads)
    else:
        _run_decoded(x, rhs.repacked(rhs_packer(selected())), zero, factors, bias, out, num_threads)


def _run(
    q: np.ndarray, w: PackedRhsLowbit, zero: int, factors: np.ndarray | None, bias: np.ndarray | None,
    out: np.ndarray, num_threads: int | None,
) -> None:  # fmt: skip
    """By panels of levels in memory: on kernels whose products take no levels from registers."""
    kernel = by_name(w.kernel)
    pack, product, each = routines(kernel, w.bits)
    m, depth, groups = q.shape[0], q.shape[1], w.groups
    panels = -(-m // kernel.mr)
    flip, shift = packing.element_map(kernel, "lhs", q.dtype.kind)
    rhs_flip, _ = packing.element_map(kernel, "rhs", "i")
    levels = (w.levels.view(np.uint8) ^ np.uint8(rhs_flip)).copy()
    panel_bytes = packing.padded_depth_bytes(kernel, w.group) * kernel.mr
    space, row_sums = (
        aligned_empty(groups * panels * panel_bytes),
        np.empty(groups * panels * kernel.mr, np.int32),
    )
    chunk = max(1, jobs.ELEMENTS_PER_TASK // (kernel.mr * depth))
    job = ProductJob(
        rows=m, cols=out.shape[1], depth=depth, group=w.group, groups=groups, source=q.ctypes.data,
        row_stride=q.strides[0], depth_stride=q.strides[1], flip=flip, lhs=space.ctypes.data,
        lhs_group=panels * panel_bytes, lhs_panel=panel_bytes, row_sums=row_sums.ctypes.data,
        pack=packing.pack_routine(kernel, "lhs", q.strides[1] == 1).address,
        microkernel=microkernel(kernel).address, chunk=chunk,
        panels=w.panels.ctypes.data, panel_bytes=w.panel_bytes, levels=levels.ctypes.data,
        sums=w.sums.ctypes.data,
        scales=w.scales.ctypes.data, zero=zero - shift, zeros=0 if w.zeros is None else w.zeros.ctypes.data,
        out=out.ctypes.data, row_scales=0 if factors is None or factors.ndim > 1 else factors.ctypes.data,
        bias=0 if bias is None else bias.ctypes.data,
        group_scales=factors.ctypes.data if factors is not None and factors.ndim > 1 else 0,
    )  # fmt: skip
    job.tasks = -(-panels // chunk)
    jobs.run(pack, job, jobs.choose_threads(num_threads, q.size))
    job.tasks = w.chunks * -(-m // rows_of_block(kernel.mr))
    jobs.run(product, job, w.threads_for(m, num_threads), each)


def _run_decoded(
    x: np.ndarray, w: PackedRhsLowbit, zero: int, factors: np.ndarray | None, bias: np.ndarray | None,
    out: np.ndarray, num_threads: int | None,
) -> None:  # fmt: skip
    """By levels decoded in registers; float rows are coded while they are copied."""
    m, by_group = x.shape[0], factors is not None and factors.ndim > 1
    key = -m if by_group else m
    ready = w.ready.pop(key, None) or rowjob.Ready(w, m, by_group)  # another thread's call makes its own
    finite = ready.run(x, zero, factors, bias, out, w.threads_for(m, num_threads))
    if m <= ROWS_KEPT:
        w.ready[key] = ready
    if not finite:
        row = int(np.isfinite(x).all(axis=1).argmin())
        raise ValueError(f"lhs: expected finite numbers (of float32), got NaN or infinity in row {row}")
