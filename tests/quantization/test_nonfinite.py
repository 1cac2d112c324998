"""NaN is refused (but by ONNX operators); infinity saturates where the scale is given and is refused where it
comes from the data.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from nonfinite import wrong
from patience import PATIENCE

from lowgemm.compat import onnx as ox


def test_every_quantizer_keeps_the_rule():
    assert wrong() == []


def test_the_definitions_keep_it_too():
    """Without compiled code (NUMBA_DISABLE_JIT) the references run."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "import nonfinite; nonfinite.SIZES = (7, 300); print(nonfinite.wrong())"
    )
    tests = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, tests], env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_scales_that_would_make_nan(scale):
    one = np.float32(1)
    a, b = np.ones((1, 2), np.uint8), np.ones((2, 1), np.uint8)
    z = np.uint8(0)
    with pytest.raises(ValueError, match=r"^y_scale:"):
        ox.qlinear_matmul(a, one, z, b, one, z, np.float32(scale), z)
    if scale:
        with pytest.raises(ValueError, match=r"^a_scale:"):
            ox.qlinear_matmul(a, np.float32(scale), z, b, one, z, one, z)


@pytest.mark.parametrize(("low", "high"), [(-3e38, 3e38), (0, 1e-45), (-1e-44, 1e-45), (0, 3.4e38)])
def test_dynamic_ranges_at_the_ends_of_float32(low, high):
    y, scale, zero = ox.dynamic_quantize_linear(np.array([low, 0, high], np.float32))
    assert np.isfinite(scale) and scale > 0
    back = (y.astype(float) - int(zero)) * float(scale)
    assert np.abs(back - np.array([low, 0, high], np.float32)).max() <= float(scale)
    assert y[1] == zero
