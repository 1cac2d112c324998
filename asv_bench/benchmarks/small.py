"""Small calls: the Python around the product."""

import lowgemm

from .common import feature, operands


class Calls:
    params = ([8, 32, 64], ["gemm", "plan"])
    param_names = ("n", "by")

    def setup(self, n, by):
        self.lhs, _, self.packed = operands(n, n, n)
        self.call = feature("plan")(self.lhs, self.packed) if by == "plan" else lowgemm.gemm
        for _ in range(2):  # the second call is the first to take the short way
            self.call(self.lhs, self.packed)

    def time_call(self, n, by):
        self.call(self.lhs, self.packed)
