"""Start in a fresh process: import, and the first product with and without Numba's disk cache."""

import lowgemm

from .common import operands

_OPERANDS = """
import os, tempfile
{environment}
import numpy as np, lowgemm
a = np.ones((64, 64), dtype=np.uint8)
"""
_EMPTY_CACHE = """
folder = tempfile.TemporaryDirectory()
os.environ["NUMBA_CACHE_DIR"] = folder.name
"""


class Start:
    """`timeraw_*` runs the returned code in a new Python each time."""

    repeat, number, rounds = 3, 1, 1
    timeout = 300

    def setup(self):
        lhs, _, packed = operands(64, 64, 64)  # fills the disk cache that the warm start reads
        lowgemm.gemm(lhs, packed)
        lowgemm.gemm(lhs, lhs)

    def timeraw_import(self):
        return "import lowgemm", "import numba, numpy"

    def timeraw_first_gemm_warm_cache(self):
        return "lowgemm.gemm(a, a)", _OPERANDS.format(environment="")

    def timeraw_first_gemm_empty_cache(self):
        return "lowgemm.gemm(a, a)", _OPERANDS.format(environment=_EMPTY_CACHE)
