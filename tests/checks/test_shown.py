"""Short lines for values: everything of a small one, dtype and shape of a large one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lowgemm.checks.shown import fields_shown, shown


@pytest.mark.parametrize(
    "value, line",
    [
        (np.arange(6), "[0, 1, 2, 3, 4, 5]"),
        (np.arange(7, dtype=np.int16), "int16 (7,)"),
        (np.float32(0.5), repr(np.float32(0.5))),
        (np.array(3), "3"),
        ((np.int8(1).dtype, None), "(int8, None)"),
        ((1,), "(1,)"),
        ([1, 2, 3], "list of 3"),
        ("rows", "'rows'"),
    ],
)
def test_value_in_one_line(value, line):
    assert shown(value) == line


@dataclasses.dataclass
class Record:
    scale: float
    bias: np.ndarray | None
    weight: np.ndarray
    hidden: int = dataclasses.field(default=0, repr=False)


def test_fields_that_are_none_or_hidden_are_left_out():
    assert (
        fields_shown(Record(0.5, None, np.zeros((3, 4), np.int8))) == "Record(scale=0.5, weight=int8 (3, 4))"
    )
    assert (
        fields_shown(Record(0.5, np.array([1.0]), np.zeros(0, np.int8)))
        == "Record(scale=0.5, bias=[1.0], weight=[])"
    )
