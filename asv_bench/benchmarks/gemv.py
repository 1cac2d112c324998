"""One row times a matrix: as fast as memory, or the cache that holds the weights, can be read. One thread."""

import lowgemm

from .common import operands
from .measure import float32_ratio, median_seconds, named, ratio_to_float32


class Gemv:
    params = ([1024, 4096], ["fresh", "packed"])
    param_names = ("n", "operands")

    def setup(self, n, kind):
        self.lhs, self.rhs, packed = operands(1, n, n)
        rhs = self.rhs if kind == "fresh" else packed
        self.call = lambda: lowgemm.gemm(self.lhs, rhs, num_threads=1)
        self.call()

    def time_gemv(self, n, kind):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, n, kind):
        return ratio_to_float32(self.lhs, self.rhs, self.call)

    @named("GB/s of weights (higher is better)", "Weights read (to read, not to judge by)")
    def track_gbytes(self, n, kind):
        return n * n / median_seconds(self.call) / 1e9
