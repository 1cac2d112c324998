"""Small calls: the Python around the product."""

import numpy as np

import lowgemm

from .common import feature, operand, operands


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


class Batch:
    """Many tiny products in one call, a packed rhs for each."""

    params = ([(64, 64, 64, 64)], [1, 2])
    param_names = ("shape", "threads")

    def setup(self, shape, threads):
        batch, m, k, n = shape
        rng = np.random.default_rng(0)
        self.lhs = operand(rng, "uint8", (batch, m, k))
        self.packed = feature("pack_rhs")(operand(rng, "int8", (batch, k, n)))
        for _ in range(2):
            self.time_batch(shape, threads)

    def time_batch(self, shape, threads):
        lowgemm.gemm(self.lhs, self.packed, num_threads=threads)


class FewRows:
    """An rhs that is used once, without packing it first. One thread."""

    params = ([1, 8], ["rows", "columns"])
    param_names = ("m", "contiguous")

    def setup(self, m, contiguous):
        self.lhs, rhs, _ = operands(m, 4096, 4096)
        self.rhs = np.asfortranarray(rhs) if contiguous == "columns" else rhs
        self.time_fresh(m, contiguous)

    def time_fresh(self, m, contiguous):
        lowgemm.gemm(self.lhs, self.rhs, num_threads=1)
