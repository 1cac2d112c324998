"""The plan of one product, made by compiled code with the planner that Python runs.

Next file to open: `linked.py`.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from lowgemm import kernels
from lowgemm.checks.values import INT32_MAX, INT32_MIN
from lowgemm.engine.in_place import rows_in_place
from lowgemm.engine.planner import BOTH, fill_plan, template_of
from lowgemm.engine.records import ONE_ITEM_LAYOUT, PLAN_SIZE, TEMPLATE, plan_at
from lowgemm.jit.memory import offset, record_at
from lowgemm.jit.routine import routine
from lowgemm.kernels.framework.kernel import pays
from lowgemm.output.bilinear import bilinear
from lowgemm.output.store import store32

#: A kernel's template, and the output stages that a product in compiled code may have: routines and their
#: parameters, as addresses.
KERNEL = np.dtype(
    [
        *((name, TEMPLATE[name]) for name in TEMPLATE.names or ()),
        ("bilinear", np.int64),
        ("nothing", np.int64),
        ("store", np.int64),
        ("set_to", np.int64),
        ("add_to", np.int64),
        ("least_rows", np.int64),
        ("least_depth", np.int64),
        ("least_work", np.int64),
    ],
    align=True,
)
kernel_at = record_at(KERNEL)
_KERNEL_BYTES = KERNEL.itemsize
#: Numbers of a plan with the layout of one product, and their bytes.
_NUMBERS = PLAN_SIZE + ONE_ITEM_LAYOUT
PLAN_BYTES = 8 * _NUMBERS
#: Parameters of the int32 store: bounds (unused) and whether to add; and of the bilinear stage.
_SET = np.array([INT32_MIN, INT32_MAX, 0], dtype=np.int64)
_ADD = np.array([INT32_MIN, INT32_MAX, 1], dtype=np.int64)
_NOTHING = np.zeros(1, dtype=np.int64)


@functools.cache
def kernel_record(kernel: kernels.Kernel) -> np.ndarray:
    """For the plan routine: the `KERNEL`, and its fallback or itself behind it; compiles what they hold the
    addresses of.
    """
    stages = (
        bilinear.address, _NOTHING.ctypes.data, store32.address, _SET.ctypes.data,
        _ADD.ctypes.data,
    )  # fmt: skip
    pair = kernel, kernels.by_name(kernel.fallback) if kernel.fallback else kernel
    return np.array(
        [
            (
                *template_of(k, BOTH if rows_in_place(k) else (), deep=True),
                *stages,
                k.least_rows,
                k.least_depth,
                k.least_work,
            )
            for k in pair
        ],
        dtype=KERNEL,
    )


@routine("pp" + "n" * 14)
def write_plan(
    kernel,
    to,
    m,
    n,
    depth,
    lhs_row_stride,
    lhs_k_stride,
    lhs_signed,
    rhs_k_stride,
    rhs_n_stride,
    rhs_signed,
    packed,
    bilinear,
    accumulate,
    out_row_stride,
    out_col_stride,
):
    """Write the plan of one product on one thread without output stages.

    `kernel` is a pointer to a `KERNEL`; `to` receives the plan, `PLAN_BYTES` long. `m`, `n` and `depth` are
    counts, the strides are in bytes, and all others are 1 or 0.
    """
    numbers = numba.carray(to, (_NUMBERS,), np.int64)
    numbers[:] = 0
    k, p = kernel_at(kernel), plan_at(to)
    if not pays(k, m, n, depth):
        k = kernel_at(offset(kernel, _KERNEL_BYTES))
    p.m = m
    p.n = n
    p.depth = depth
    p.batch = 1
    p.distinct_rhs = 1
    p.packed = packed
    p.lhs_row_stride = lhs_row_stride
    p.lhs_k_stride = lhs_k_stride
    p.rhs_k_stride = rhs_k_stride
    p.rhs_n_stride = rhs_n_stride
    p.out_row_stride = out_row_stride
    p.out_col_stride = out_col_stride
    p.bilinear = bilinear
    p.accumulate = accumulate
    fill_plan(p, k, lhs_signed, rhs_signed, not bilinear, 1, True)
    last = 0
    if bilinear:
        p.stage[0, 0] = k.bilinear
        p.stage[0, 1] = k.nothing
        last = 1
    p.stage[last, 0] = k.store
    p.stage[last, 1] = k.add_to if accumulate else k.set_to
    p.stages = last + 1
