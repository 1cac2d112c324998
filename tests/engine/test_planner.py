"""The planner, run by Python and compiled: the same plan."""

from __future__ import annotations

import ctypes

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm import kernels
from lowgemm.engine import planner
from lowgemm.engine.plan import Operand, Plan
from lowgemm.engine.records import PLAN, plan_of
from lowgemm.in_numba import planning

if numba.config.DISABLE_JIT:
    pytest.skip("compiled code only", allow_module_level=True)


@pytest.mark.parametrize("name", dict.fromkeys([kernels.selected().name, "portable"]))
def test_compiled_code_plans_as_python_does(name, monkeypatch):
    """One planner, run both ways: equal records, and stages with parameters of equal content."""
    kernel = kernels.by_name(name)
    record = planning.kernel_record(kernel)
    assert planning.write_plan.address  # compiled before what it calls is replaced
    monkeypatch.setattr(planner, "is_listed", lambda p, k: False)  # compiled code has no kernel for that
    small = st.sampled_from([1, 2, 5, 16, 33, 129, 1000, 5000, 70000])
    flag = st.booleans()

    @settings(max_examples=300, deadline=None)
    @given(small, small, small, flag, flag, flag, flag, flag, flag)
    def check(m, n, depth, left, right, packed, bilinear, add, column_major):
        lhs = Operand((m, depth), (depth, 1), "i" if left else "u")
        rhs = Operand((depth, n), (0, 0) if packed else (n, 1), "i" if right else "u")
        strides = (4, 4 * m) if column_major else (4 * n, 4)
        plan = Plan(
            kernel, lhs, rhs, result=np.dtype(np.int32), out_strides=strides, packed=packed,
            bilinear=bilinear, accumulate=add, num_threads=1,
        )  # fmt: skip
        numbers = np.full(planning.PLAN_BYTES // 8, -1, np.int64)
        planning.write_plan.ctypes(
            record.ctypes.data, numbers.ctypes.data, m, n, depth, *lhs.strides, left, *rhs.strides, right,
            packed, bilinear, add, *strides,
        )  # fmt: skip
        compiled = plan_of(numbers)
        used = slice(int(bilinear), compiled.stages)
        for address, other in zip(compiled.stage[used, 1], plan.p.stage[used, 1], strict=True):
            contents = [(ctypes.c_int64 * 3).from_address(int(at)) for at in (address, other)]
            assert list(contents[0]) == list(contents[1]) == [-(2**31), 2**31 - 1, add]
        compiled.stage[: compiled.stages, 1] = plan.p.stage[: compiled.stages, 1]
        # where the kernel stores every panel, Python compiles no routine that nobody would call
        if plan.p.direct and n % plan.runs.lanes == 0 and not plan.p.deep_block:
            assert plan.p.stage[: compiled.stages, 0].tolist() == [0] * compiled.stages
            compiled.stage[: compiled.stages, 0] = 0
        assert bool(compiled.deep_block) == planner.has_deep_blocks(compiled)
        # the record may be older than a template that was made anew meanwhile, which has zeros of its own
        compiled.no_compensation = plan.p.no_compensation
        assert compiled.tobytes() == plan.p.tobytes(), [
            f for f in PLAN.names if np.any(compiled[f] != plan.p[f])
        ]
        assert np.array_equal(numbers, plan.numbers)  # the table of one product behind it, too

    check()
