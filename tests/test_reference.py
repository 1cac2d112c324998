"""The oracle owes nothing to what it is compared with."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowgemm
from lowgemm import reference
from lowgemm.output.stages import requantize as requantize_stage
from lowgemm.output.stages import tanh
from lowgemm.output.stages.requantize import quantize_multiplier


def test_it_takes_only_classes_and_the_check_of_the_pipeline():
    for node in ast.walk(ast.parse(pathlib.Path(reference.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lowgemm."):
            taken = {alias.name for alias in node.names}
            assert taken <= {"Stage", "requantize", "stages", "check_pipeline"}, ast.unparse(node)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("requantize", "stages"):
            cls = getattr(getattr(reference, node.value.id), node.attr)
            assert inspect.isclass(cls) and issubclass(cls, lowgemm.Stage), ast.unparse(node)
        assert not (
            isinstance(node, ast.Attribute) and node.attr in ("fixed_point", "lower", "step", "one_pass")
        )


@pytest.mark.parametrize("scale", [3 * 2.0**-32, 0.1, 1 - 2.0**-40])
def test_a_fault_in_the_fast_constants_is_seen(monkeypatch, scale):
    """Planted: another multiplier and another amplitude."""
    acc = np.arange(-(2**30), 2**30, 2**22 + 1, dtype=np.int32)[None]
    stages = [[lowgemm.Requantize(scale, 3, np.int16, rounding=r)] for r in ("gemmlowp", "tflite_single")]
    amplitude = 2**20 + round(
        1024 * scale
    )  # another each time: equal stages are remembered, with their fault
    stages.append([lowgemm.Tanh(0, amplitude)])
    before = [reference.apply_pipeline(acc, tuple(s)) for s in stages]
    for s, expected in zip(stages, before, strict=True):
        np.testing.assert_array_equal(lowgemm.requantize(acc, s), expected)
    monkeypatch.setattr(requantize_stage, "quantize_multiplier", lambda scale: (2**30 + 12345678, -20))
    monkeypatch.setattr(tanh, "tanh_constants", lambda amplitude: (2**30, 3, 2**30, 9))
    stages = [[dataclasses.replace(s[0])] for s in stages]  # `requantize` remembers what it was called with
    for s, expected in zip(stages, before, strict=True):
        np.testing.assert_array_equal(reference.apply_pipeline(acc, tuple(s)), expected)
        assert (lowgemm.requantize(acc, s) != expected).any()


@given(st.floats(0, 2.0**30, exclude_max=True))
def test_multipliers_are_those_of_the_definition(scale):
    try:
        expected = quantize_multiplier(scale)
    except ValueError:  # rounds up to 2**30
        return
    assert reference.multiplier_and_exponent(scale) == expected


@pytest.mark.parametrize("halves", [(2**30 + 0.5, 2**30 + 1), (2**30 + 1.5, 2**30 + 2), (2**31 - 0.5, 2**30)])
def test_ties_of_a_multiplier_go_up(halves):
    """Half to even would take 2**30 for the first."""
    real, multiplier = halves
    exponent = int(real > 2**31 - 1)
    for function in (quantize_multiplier, reference.multiplier_and_exponent):
        assert function(real / 2**31) == (multiplier, exponent)
