"""The records that layers' routines are given, and convolutions without compiled code."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from patience import PATIENCE

from lowgemm.nn import routines
from lowgemm.nn.windows import Windows

WINDOWS = Windows((2, 5, 4, 3), (3, 2), (3, 2), (2, 3), (1, 0, 2, 1), (1, 2))


def test_a_record_holds_each_value_under_its_name():
    """Whatever order they are given in: a routine reads what was meant."""
    values = WINDOWS.fields() | {"average": 1, "flip": 128}
    record = routines.pool.record(**dict(reversed(values.items())))[0]
    assert {name: record[name] for name in record.dtype.names} == values
    seen = {name: values[name] for name in ("images", "oh", "kw", "sx", "dy", "top", "left")}
    assert seen == {"images": 2, "oh": 3, "kw": 2, "sx": 3, "dy": 1, "top": 1, "left": 2}


@pytest.mark.parametrize("change", [{"flap": 1}, {"flip": None}])
def test_a_record_wants_every_name_and_no_other(change):
    values = WINDOWS.fields() | {"flip": 0, "average": 0} | change
    with pytest.raises(TypeError, match=r"^values: expected images, height, .*, average, got images"):
        routines.pool.record(**{k: v for k, v in values.items() if v is not None})


def test_a_margin_is_filled():
    x = np.arange(2 * 5 * 4 * 3, dtype=np.uint8)
    margins = WINDOWS.margins(-7)
    out = np.empty((2, 6, 7, 3), np.uint8)
    expected = np.pad(x.reshape(2, 5, 4, 3), ((0, 0), (1, 0), (2, 1), (0, 0)), constant_values=249)
    if not numba.config.DISABLE_JIT:
        routines.pad.run(routines.pad.record(**margins), x, x, out, out)
        np.testing.assert_array_equal(out, expected)


def test_filters_without_compiled_code():
    """NUMBA_DISABLE_JIT=1 computes by the definition, output stages included."""
    code = """
import numpy as np
from lowgemm.onnx_run import conv_integer, qlinear_conv
from lowgemm.onnx_run.reference import conv_sums
g = np.random.default_rng(0)
x = g.integers(0, 256, (2, 4, 6, 5), dtype=np.uint8)
for group in (1, 2, 4):
    w = g.integers(-128, 128, (4, 4 // group, 3, 2), dtype=np.int8)
    sums = conv_sums(x, w, 9, -3, group=group, pads=[1, 0, 1, 1])
    got = conv_integer(x, w, np.uint8(9), np.int8(-3), group=group, pads=[1, 0, 1, 1])
    assert (got == sums).all()
    one = np.float32(1)
    y = qlinear_conv(x, one, np.uint8(9), w, one, np.int8(-3), np.float32(512), np.uint8(100), group=group,
                     pads=[1, 0, 1, 1])
    assert (y == np.clip(np.rint(sums / 512) + 100, 0, 255)).all()
print("right")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True,
        text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "right\n", done.stderr
