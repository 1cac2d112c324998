"""Products that wait for memory: float32 rows by 4-bit and ternary weights, and few rows by int8 weights that are not packed. One thread.

Weights are taken in turn, so that the second-level cache holds none of those that come next.
"""

import itertools

import numpy as np

import lowgemm

from .common import feature, operand, shape_of
from .measure import float32_ratio, hold_blas, ratio

#: Weights that take turns: 16 of 4096 x 4096 in 4 bits are 134 MB, in 8 bits twice that.
TURNS = 16


class LowBit:
    params = (["1x4096x4096", "4x4096x4096", "16x4096x4096"], ["int4", "nf4", "ternary"])
    param_names = ("shape", "weights")

    def setup(self, shape, book):
        m, k, n = shape_of(shape)
        pack, product = (
            feature("pack_rhs_lowbit", "lowgemm.blockwise"),
            feature("gemm_lowbit", "lowgemm.blockwise"),
        )
        rng = np.random.default_rng(0)
        x, weight = (
            rng.standard_normal((m, k), dtype=np.float32),
            rng.standard_normal((k, n), dtype=np.float32),
        )
        coded = [pack(weight, book, group=64 if book == "nf4" else 128)]
        coded += [coded[0].__class__.__new__(coded[0].__class__) for _ in range(TURNS - 1)]
        for other in coded[1:]:
            other.__setstate__(coded[0].__getstate__())
        turn = itertools.cycle(coded)
        self.call = lambda: product(x, next(turn), num_threads=1)
        self.base = lambda: x @ weight
        self.call()

    def time_product(self, shape, book):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, shape, book):
        with hold_blas():
            return ratio(self.call, self.base)


class InPlace:
    params = (["1x4096x4096", "4x4096x4096"], ["rows", "columns"])
    param_names = ("shape", "contiguous")

    def setup(self, shape, contiguous):
        m, k, n = shape_of(shape)
        rng = np.random.default_rng(0)
        x = operand(rng, "uint8", (m, k))
        turn = itertools.cycle([operand(rng, "int8", (k, n)) for _ in range(TURNS)])
        right = (lambda: next(turn).T) if contiguous == "columns" else (lambda: next(turn))
        f_x, f_w = x.astype(np.float32), next(turn).astype(np.float32)
        self.call = lambda: lowgemm.gemm(x, right(), num_threads=1)
        self.base = lambda: f_x @ f_w
        self.call()

    def time_product(self, shape, contiguous):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, shape, contiguous):
        with hold_blas():
            return ratio(self.call, self.base)
