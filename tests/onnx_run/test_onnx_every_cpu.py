"""A model's outputs do not depend on the CPU: compiled for AVX2 alone they are those of this one, bit for
bit.
"""

from __future__ import annotations

import pathlib
import platform
import sys

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx_models as om

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "asv_bench"))
import compare_cpus

#: Integer products with float nodes around them, patterns that are rewritten, and integers throughout.
FORMS = ("dynamic", "qdq_channel", "qoperator")


def test_avx2(tmp_path):
    peers.need("onnxruntime")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("a target without VNNI is forced on x86-64 alone")
    g = np.random.default_rng(3)
    proto, shape = om.conv_net(g)
    batches, inputs, models = (
        [g.random((8, *shape), np.float32) for _ in range(2)],
        str(tmp_path / "inputs.npz"),
        [],
    )
    for form in FORMS:
        models.append((str(tmp_path / f"{form}.onnx"), inputs))
        om.quantized(proto, models[-1][0], form, batches)
    np.savez(inputs, x=g.random((20, *shape), np.float32))
    here, there = compare_cpus.ours(*models)
    assert len(here) == len(FORMS)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)
