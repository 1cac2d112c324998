"""Means of float images: the bits of onnxruntime's GlobalAveragePool, in any layout."""

from __future__ import annotations

import numpy as np
import onnx_models as om
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from onnx import helper as h

from lowgemm.onnx_run import float_mean


def last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def test_beside_onnxruntime(threads):
    peers.need("onnxruntime")
    g = np.random.default_rng(0)
    models = {}
    for trial in range(60):
        axes = trial % 3 + 1
        size = [int(n) for n in g.integers(1, (200, 40, 9)[axes - 1], axes)]
        x = g.standard_normal((int(g.integers(1, 4)), int(g.integers(1, 200)), *size)).astype(np.float32)
        if trial % 5 == 0:
            x[0, 0] = g.choice([-0.0, np.inf, np.nan, 3e38])
        if axes not in models:
            info = h.make_tensor_value_info
            models[axes] = om.model_of(
                [h.make_node("GlobalAveragePool", ["x"], ["y"])], [info("x", 1, [None] * x.ndim)],
                [info("y", 1, None)], {}, checked=False,
            )  # fmt: skip
        want = om.onnxruntime_run(models[axes], {"x": x})["y"]
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(float_mean.by_definition(x), want)
        for y in (x, last(x)):
            np.testing.assert_array_equal(float_mean.compiled(y, threads), want)


def test_what_it_is_not_for():
    x = np.ones((2, 3, 4, 6), np.float32)
    assert float_mean.compiled(x[..., ::2]) is NotImplemented
    assert float_mean.compiled(x[:0]) is NotImplemented


def test_no_images():
    for shape in ((0, 3, 4, 6), (0, 3, 0), (2, 0, 4)):
        y = float_mean.by_definition(np.ones(shape, np.float32))
        assert y.shape == (*shape[:2], *(1,) * (len(shape) - 2))
