"""Packages and names that are loaded when they are first asked for: after `import lowgemm` alone, and without
work before.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from patience import PATIENCE

import lowgemm
import lowgemm.compat
import lowgemm.nn

ALONE = """
import sys, lowgemm
early = [m for m in sys.modules if m.startswith(("lowgemm.nn", "lowgemm.quantization", "lowgemm.blockwise",
                                                "lowgemm.onnx_run", "lowgemm.compat", "lowgemm.dask"))]
assert not early, early
for name in NAMES:
    value = lowgemm
    for part in name.split("."):
        assert part in dir(value), (name, part)
        value = getattr(value, part)
print("all there")
"""
NAMES = [
    "blockwise.Adam", "compat.gemmlowp", "compat.onnx.matmul_integer", "nn.QuantizedLinear",
    "nn.convert.convert",
    "quantization.choose_qparams", "quantize", "dynamic_linear", "QuantizedSequential",
]  # fmt: skip


def test_after_import_lowgemm_alone():
    done = subprocess.run(
        [sys.executable, "-c", f"NAMES = {NAMES!r}\n{ALONE}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout == "all there\n", done.stderr


@pytest.mark.parametrize("package", [lowgemm, lowgemm.compat, lowgemm.nn], ids=lambda p: p.__name__)
def test_every_lazy_name_loads_or_says_what_is_missing(package):
    for name in package._LAZY:
        try:
            assert getattr(package, name) is importlib.import_module(f"{package.__name__}.{name}")
        except ImportError as error:
            assert "install" in str(error), name
    assert set(package._LAZY) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense
