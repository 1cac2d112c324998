"""MatMulNBits as passes of a tape: code the rows, multiply them with the weights' codes, put results
together.

The numbers are those of `nbits_weights.PackedBlocks.product`. There Python prepares each product; here a
recorded job (`blockwise/rowjob.py`) is copied into the tape's memory and run, which for one row of 1024 x
1024 takes half of the time.
"""

from __future__ import annotations

import ctypes

import numba
import numpy as np

from lowgemm.blockwise import job as jobs
from lowgemm.blockwise import rowjob, rowtile
from lowgemm.engine import parts
from lowgemm.jit import team
from lowgemm.jit.memory import is_null, load_f32, load_i64, pointer_at, store_64, store_f32
from lowgemm.jit.routine import call_address, inner, routine
from lowgemm.kernels import rhs_packer, selected
from lowgemm.onnx_run.nbits_rows import code_rows, split_rows
from lowgemm.onnx_run.nbits_weights import PackedBlocks
from lowgemm.onnx_run.tape import Recorder

_JOB_WORDS = ctypes.sizeof(rowjob.RowsProductJob) // 8
_f32 = np.float32
#: Of `add_up`, for a number.
NANOSECONDS = 0.5


@routine(parts.PASS)
def multiply_rows(args, first, end, worker):
    """A product of int8 rows with coded weights.

    Arguments: a job as `rowjob.laid_out` makes it, its memory (in which the job comes first), rows, their
    scales, bias or 0, result; the team, addresses of `team.run` and of a worker's loop, workers.
    """
    memory = pointer_at(args, 1)
    for i in range(_JOB_WORDS):
        store_64(memory, i, load_i64(pointer_at(args, 0), i))
    job, begin = numba.carray(memory, (1,), rowjob.ROWS_PRODUCT)[0], np.uint64(load_i64(args, 1))
    job.lhs += begin
    job.row_terms += begin
    job.scratch += begin
    if job.row_sums != 0:
        job.row_sums += begin
    if job.factors != 0:
        job.factors += begin
        job.group_scales = load_i64(args, 3)
    else:
        job.row_scales = load_i64(args, 3)
    job.source, job.bias, job.out = load_i64(args, 2), load_i64(args, 4), load_i64(args, 5)
    at, workers = load_i64(args, 1), load_i64(args, 9)
    if workers > 1:
        call_address(load_i64(args, 7), (load_i64(args, 6), load_i64(args, 8), at, 0, workers, 1))
    else:
        call_address(load_i64(args, 8), (at, 0, 0))


@routine(parts.PASS)
def add_up(args, first, end, worker):
    """Rows of a result from products. Arguments: products of the digits of the rows (the first digits', then
    the second ones') or of the rows, those with the weights' lower halves or 0, columns, bias or 0, result;
    how many rows each has, and whether they are of digits. Pieces are rows.
    """
    n, rows, digits = load_i64(args, 2), load_i64(args, 5), load_i64(args, 6)
    upper, lower, bias, out = (
        pointer_at(args, 0),
        pointer_at(args, 1),
        pointer_at(args, 3),
        pointer_at(args, 4),
    )
    for i in range(first * n, end * n):
        total = _of_digits(upper, i, rows * n, digits)
        if not is_null(lower):
            total += _of_digits(lower, i, rows * n, digits)
        if not is_null(bias):
            total += load_f32(bias, i % n)
        store_f32(out, i, total)


@inner
def _of_digits(products, i, step, digits):
    """A number of the product, from those of its three digits, the smallest first, `step` apart, if there
    are any.
    """
    if digits == 0:
        return load_f32(products, i)
    return (load_f32(products, i + step) + load_f32(products, i + 2 * step)) + load_f32(products, i)


def record(
    recorder: Recorder, x: np.ndarray, w: PackedBlocks, bias: np.ndarray | None, coded: bool,
    num_threads: int | None
) -> np.ndarray | None:  # fmt: skip
    """Take a product down; None if that cannot be: the kernel takes no codes in registers, or Numba compiles
    nothing.
    """
    kernel = rhs_packer(selected())
    if numba.config.DISABLE_JIT or not rowtile.decodes(kernel) or not x.flags.c_contiguous:
        return None
    (count, n), depth = (x.size // w.depth, w.shape[0]), w.depth
    y, finite = np.empty((*x.shape[:-1], n), _f32), np.empty(1, _f32)
    blocks, rows = -(-depth // w.block), count if coded else 3 * count
    codes, scales = np.empty((rows, depth), np.int8), np.empty((rows, blocks) if coded else rows, _f32)
    recorder.keep(y, finite, codes, scales)
    at = recorder.at
    recorder.run(
        code_rows if coded else split_rows,
        [at(x), at(codes), at(scales), at(finite), count, depth, w.block], 1,
    )  # fmt: skip
    recorder.check(finite)
    alone = coded and len(w.parts) == 1  # the product writes the result
    products = [y if alone else np.empty((rows, n), _f32) for _ in w.parts]
    recorder.keep(products)
    for part, product in zip(w.parts, products, strict=True):
        part = part.repacked(kernel)
        made = rowjob.laid_out(part, rows, coded)
        workers = min(part.threads_for(rows, num_threads), made.job.tasks)
        standing = team.the_team() if workers > 1 else None
        if standing is None:
            workers, shared = 1, (0, 0)
        else:
            shared = standing.address, team.run.address
        made.job.several, made.job.row_stride, made.job.depth_stride = workers > 1, depth, 1
        memory = np.empty(made.nbytes + workers * made.job.scratch_bytes, np.uint8)
        recorder.keep(memory)
        recorder.kept += [made, part]
        recorder.run(
            multiply_rows,
            [
                made.job.address, at(memory), at(codes), at(scales),
                at(bias) if alone and bias is not None else 0,
                at(product), *shared, jobs.work.address, workers,
            ], 1,
        )  # fmt: skip
    if not alone:
        places = at(products[0]), at(products[1]) if len(products) > 1 else 0
        parts.run_shared(
            add_up, [*places, n, 0 if bias is None else at(bias), at(y), count, int(not coded)], count,
            count * n * NANOSECONDS, num_threads, recorder.run,
        )  # fmt: skip
    return y
