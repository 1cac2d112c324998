"""Memory that one product takes beyond its operands and its result, at the peak."""

import pathlib

import numpy as np

import lowgemm

from .common import operands, shape_of
from .measure import named

_RESET, _STATUS = pathlib.Path("/proc/self/clear_refs"), pathlib.Path("/proc/self/status")


def _kib(field):
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])


class Peak:
    """Resident bytes: the highest during the call less those before it, result given by `out`."""

    params = (["2048x2048x2048", "8192x1024x1024"], ["fresh", "packed"])
    param_names = ("shape", "operands")

    def setup(self, shape, kind):
        try:
            _RESET.write_text("5")  # Linux: sets the high-water mark to what is resident now
        except OSError:
            raise NotImplementedError("needs Linux's /proc/self/clear_refs") from None
        m, k, n = shape_of(shape)
        lhs, self.rhs, self.packed = operands(m, k, n)
        small = lhs[:64, :64].copy(), self.rhs[:64, :64].copy(), np.zeros((64, 64), dtype=np.int32)
        self.out = np.ones((m, n), dtype=np.int32)
        rhs = self.rhs if kind == "fresh" else self.packed
        self.call = lambda: lowgemm.gemm(lhs, rhs, out=self.out, num_threads=1)
        try:
            lowgemm.gemm(small[0], small[1], out=small[2], num_threads=1)  # compiles
        except TypeError:
            raise NotImplementedError("this commit has no out=") from None

    @named("bytes", "Peak extra memory")
    def track_peak_extra_memory(self, shape, kind):
        _RESET.write_text("5")
        before = _kib("VmRSS")
        self.call()
        return 1024 * (_kib("VmHWM") - before)
