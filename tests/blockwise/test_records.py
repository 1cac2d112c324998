"""Records: the same bytes, by the same names, for Python and for compiled code."""

from __future__ import annotations

import ctypes

import numba
import numpy as np
import pytest
from numba.core import errors

from lowgemm.blockwise import job, mixed, product4, routines, rowjob, rules, steps, vectorwise
from lowgemm.blockwise.records import Number, Record, dtype_of
from lowgemm.jit.memory import pointer_field

RECORDS = [
    (job.Job, job.JOB),
    (routines.CodingJob, routines.CODING),
    (vectorwise.RowsJob, vectorwise.ROWS),
    (mixed.FinishJob, mixed.FINISH),
    (product4.ProductJob, product4.PRODUCT),
    (rowjob.RowsProductJob, rowjob.ROWS_PRODUCT),
    (steps.StepJob, steps.STEP_JOB),
    (rules.Constants, rules.CONSTANTS),
    (rules.Operands, rules.OPERANDS),
]


@pytest.mark.parametrize(("kind", "dtype"), RECORDS)
def test_what_python_writes_is_read_by_name(kind, dtype):
    """Every field gets a number of its own; none of them lies over another."""
    record, names = kind(), list(dtype.names)
    assert len(set(names)) == len(names) and dtype.itemsize == ctypes.sizeof(kind)
    plain = [name for name in names if dtype[name].shape == ()]
    for i, name in enumerate(plain):
        setattr(record, name, i + 1)
    (seen,) = np.frombuffer(bytes(record), dtype)
    assert [seen[name] for name in plain] == list(range(1, len(plain) + 1))
    assert sum(dtype[name].itemsize for name in names) <= dtype.itemsize


def test_states_of_a_step_are_records_too():
    record = steps.StepJob()
    for k in range(steps.MAX_STATES):
        for i, (name, _) in enumerate(steps.OneState._fields_):
            setattr(record.state[k], name, 10 * k + i)
    (seen,) = np.frombuffer(bytes(record), steps.STEP_JOB)["state"]
    assert seen.tolist() == [(0, 1, 2), (10, 11, 12), (20, 21, 22)]


@pytest.mark.parametrize(("kind", "dtype"), RECORDS)
def test_other_names_are_refused(kind, dtype):
    with pytest.raises(AttributeError, match="elsewhere"):
        kind().elsewhere = 1
    with pytest.raises(AttributeError, match="elsewhere"):
        kind(elsewhere=1)


class Small(Record):
    """One number."""

    __slots__ = ()
    _fields_ = (("n", Number),)


SMALL = dtype_of(Small)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="compiled code only")
def test_a_number_is_not_taken_for_a_pointer():
    @numba.njit
    def read(a):
        return numba.carray(pointer_field(a[0], "n"), (1,), np.uint8)[0]

    with pytest.raises(errors.NumbaError, match="n: expected a field of type uint64, got int64"):
        read(np.zeros(1, SMALL))
