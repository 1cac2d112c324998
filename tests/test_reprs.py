"""What a prompt shows of a public object: what it is, in few words, without the numbers of long arrays."""

from __future__ import annotations

import copied
import numpy as np
import pytest

import lowgemm
from lowgemm import blockwise, nn, quantization
from lowgemm.nn import float_net

PUBLIC = {
    getattr(module, name) for module in (lowgemm, nn, quantization, blockwise) for name in module.__all__
}


@pytest.mark.parametrize("name", [n for n, (cls, _, _) in copied.OBJECTS.items() if cls in PUBLIC])
def test_a_public_object_tells_what_it_is(name):
    cls, make, _ = copied.OBJECTS[name]
    shown = repr(make())
    assert " object at 0x" not in shown
    if issubclass(cls, (quantization.RangeReport, nn.Cost)):  # their report
        return
    assert cls.__name__ in shown and len(max(shown.split("\n"), key=len)) < 400


def test_long_vectors_are_told_by_their_shape():
    assert repr(lowgemm.BiasAddition(np.arange(300))) == "BiasAddition(bias=int32 (300,), axis=1)"
    assert repr(lowgemm.Dequantize([0.5, 2])) == "Dequantize(scale=[0.5, 2.0], axis=1)"
    assert repr(quantization.QParams(np.ones(9), 0, "int8", 0)).startswith(
        "QParams(scale=float64 (9,), zero_point=int64 (9,), dtype=int8"
    )
    assert (
        repr(float_net.Linear(np.ones((3, 400))))
        == "Linear(weight=float32 (3, 400), bias=float32 (400,), activation='none')"
    )
    assert repr(quantization.MinMax("uint8", bits=4, axis=1)) == (
        "MinMax(4 bits in uint8, one range per channel of axis 1, nothing observed yet)"
    )
    assert repr(quantization.MinMax().observe([1.0])) == "MinMax(int8, has observed)"
    x = np.zeros((2, 3), np.uint8)
    assert repr(lowgemm.explain(x, x.T)) == str(lowgemm.explain(x, x.T))
